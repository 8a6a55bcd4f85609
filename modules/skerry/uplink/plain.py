"""Events as flat objects, for those who read one at a time: dashboards, scripts, home automation. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

_MOST_KEYS = 64
_LONGEST_KEY = 64
_INSIDE = frozenset({"captured_ns", "media_ns", "trace"})
"""Of an event's data, what means something inside the site alone."""

Value = str | int | float | bool | None


class Told(msgspec.Struct, frozen=True, gc=False):
    """An event with its data, of whatever shape."""

    id: str
    source: str
    type: str
    time: str
    subject: str
    lane: str
    epoch: str
    seq: int
    bootid: str
    monotonic: int
    data: dict[str, Any] = {}
    timequality: str = ""
    retryof: str = ""


_DECODER = msgspec.json.Decoder(Told)


def told(raw: bytes) -> Told:
    """An event.

    Raises:
        ValueError: it is none.
    """
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"expected an event ({str(error)[:200]})") from error


def place(subject: str) -> tuple[str, str]:
    """Camera and rule, each fit to be a level of a topic; `-` where an event has none."""
    camera, _, rule = subject.partition("/")
    return level(camera), level(rule)


def level(text: str) -> str:
    """A text as one level of a topic."""
    for character in "/+#\0":
        text = text.replace(character, "_")
    return text or "-"


def flat(event: Told) -> dict[str, Value]:
    """What an event says, without nesting.

    Objects in the data become `name_key`; lists, such as boxes, are left out. At most 64 keys.
    """
    camera, rule = place(event.subject)
    said: dict[str, Value] = {
        "time": event.time, "lane": event.lane, "type": event.type, "camera": camera, "rule": rule,
        "id": event.id, "source": event.source,
    }  # fmt: skip
    if event.timequality:
        said["timequality"] = event.timequality
    for name, value in event.data.items():
        if name in _INSIDE:
            continue
        if isinstance(value, dict):
            for key, inner in value.items():
                _put(said, f"{name}_{key}", inner)
        else:
            _put(said, name, value)
    return said


def _put(said: dict[str, Value], name: str, value: object) -> None:
    fits = len(name) <= _LONGEST_KEY and len(said) < _MOST_KEYS
    if fits and name not in said and (value is None or isinstance(value, str | int | float)):
        said[name] = value
