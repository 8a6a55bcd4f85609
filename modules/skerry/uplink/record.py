"""What the uplink carries: the bytes of an event as it was accepted, and what it must know of it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from skerry.messages import Count, Lane

GAP = "skerry.gap"
"""The type of the one event that may stand for many records."""


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """The attributes of an event that the uplink looks at; `data` is never decoded."""

    id: str
    source: str
    type: str
    subject: str
    lane: Lane
    epoch: str
    seq: Annotated[int, Meta(ge=1)]
    bootid: str
    monotonic: Count


class Record(msgspec.Struct, frozen=True, gc=False):
    """One event on its way. `raw` has no line feed, so that it can be a line of a file."""

    raw: bytes
    envelope: Envelope


class Flaw(msgspec.Struct, frozen=True, gc=False):
    """Something on its way that is no event: it is refused in its turn and keeps nobody waiting."""

    raw: bytes
    reason: str


_DECODER = msgspec.json.Decoder(Envelope)
_LONGEST_REASON = 300


def read(raw: bytes) -> Record | Flaw:
    """Look into the bytes of an event."""
    try:
        return Record(raw, _DECODER.decode(raw))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        return Flaw(raw, f"not an event: {error}"[:_LONGEST_REASON])


def read_all(raws: list[bytes]) -> list[Record | Flaw]:
    """Look into the bytes of several events."""
    try:
        return list(map(Record, raws, map(_DECODER.decode, raws)))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return [read(raw) for raw in raws]  # slower, and finds out which


def one_line(raws: list[bytes]) -> list[bytes]:
    """The same JSON without line feeds between its parts; in a string JSON allows none."""
    together = b"".join(raws)
    if b"\n" not in together and b"\r" not in together:
        return raws
    return [_tightened(raw) for raw in raws]


def _tightened(raw: bytes) -> bytes:
    try:
        return msgspec.json.format(raw, indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return raw.replace(b"\n", b" ").replace(b"\r", b" ")  # no JSON: refused when it is looked into
