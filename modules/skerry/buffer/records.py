"""Records as a producer gives them, and as blocks hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from skerry.buffer import blocks
from skerry.buffer.blocks import Preface, Run, Stamp
from skerry.buffer.seal import Seal

OWN = ""
"""Producer of the records that the buffer itself adds; their epoch is the chain's identity, their seq
the offset."""
BLOCK_BYTES = 64 * 1024
"""Records of one commit are split into blocks of about this size: what one flipped bit can cost."""

Key = tuple[str, str]
"""Producer and epoch."""


class Record(NamedTuple):
    """What a producer wants kept; `payload` is kept as it is."""

    producer: str
    epoch: str
    seq: int
    payload: bytes


class Series(NamedTuple):
    """Records of one producer and epoch, dense in seq from `seq`: what a submission is."""

    producer: str
    epoch: str
    seq: int
    payloads: Sequence[bytes]


def series_of(records: Sequence[Record]) -> list[Series]:
    """Records as series, in order."""
    found: list[Series] = []
    start = 0
    while start < len(records):
        producer, epoch, seq, _ = records[start]
        stop = start + 1
        while stop < len(records):
            record = records[stop]
            if record[2] != seq + stop - start or record[1] != epoch or record[0] != producer:
                break
            stop += 1
        found.append(Series(producer, epoch, seq, [r.payload for r in records[start:stop]]))
        start = stop
    return found


class Commit(NamedTuple):
    """What is written at one time.

    Attributes:
        runs: of all its records, in order.
        payloads: of all its records, in order.
        lengths: of the payloads.
        size: bytes of the payloads.
    """

    runs: list[Run]
    payloads: Sequence[bytes]
    lengths: list[int]
    size: int


def commit_of(series: Sequence[Series], marks: Mapping[Key, int]) -> Commit:
    """Series, checked, counted and measured once.

    Raises:
        ValueError: a series is not above the watermark of its epoch, as the ones before it leave it.
    """
    if len(series) == 1:  # nearly always
        producer, epoch, seq, payloads = series[0]
        if seq <= marks.get((producer, epoch), 0):
            raise ValueError(f"append: expected a seq above the watermark of {producer}/{epoch}, got {seq}")
        lengths = [*map(len, payloads)]
        return Commit([Run(producer, epoch, seq, len(lengths))], payloads, lengths, sum(lengths))
    high: dict[Key, int] = {}
    runs = []
    for producer, epoch, seq, payloads in series:
        key = producer, epoch
        if seq <= high.get(key, marks.get(key, 0)):
            raise ValueError(f"append: expected a seq above the watermark of {producer}/{epoch}, got {seq}")
        high[key] = seq + len(payloads) - 1
        runs.append(Run(producer, epoch, seq, len(payloads)))
    every = [p for s in series for p in s.payloads]
    lengths = [*map(len, every)]
    return Commit(runs, every, lengths, sum(lengths))


def framed(
    commit: Commit, *, seal: Seal, number: int, first: int, stamp: Stamp, flags: int
) -> list[tuple[int, bytes]]:
    """The blocks of one commit, of about 64 KiB each, with the offset of their first record.

    Args:
        commit: what is in them.
        seal: how blocks are written.
        number: of the segment.
        first: offset of the first record.
        stamp: the clocks.
        flags: of every block.
    """
    runs, payloads, lengths, size = commit
    count = len(lengths)
    if size <= BLOCK_BYTES:
        body = blocks.records_body(Preface(stamp, runs), payloads, lengths)
        block = blocks.frame(
            seal, blocks.RECORDS, segment=number, first=first, count=count, body=body, flags=flags
        )
        return [(first, block)]
    found: list[tuple[int, bytes]] = []
    start = 0
    while start < count:
        stop = _stop(lengths, start)
        preface = Preface(stamp, _cut(runs, start, stop))
        block = blocks.frame(
            seal, blocks.RECORDS, segment=number, first=first + start, count=stop - start,
            body=blocks.records_body(preface, payloads[start:stop], lengths[start:stop]),
            flags=flags, part=len(found),
        )  # fmt: skip
        found.append((first + start, block))
        start = stop
    return found


def _cut(runs: Iterable[Run], start: int, stop: int) -> list[Run]:
    """What the runs say of the records `start` to `stop` of a commit."""
    found, at = [], 0
    for run in runs:
        a, b = max(start - at, 0), min(stop - at, run.count)
        if a < b:
            found.append(Run(run.producer, run.epoch, run.seq + a, b - a))
        at += run.count
    return found


def _stop(lengths: Sequence[int], start: int) -> int:
    """Where a block of about `BLOCK_BYTES` ends that begins with the record `start`; one record at least."""
    size, stop = 0, start
    while stop < len(lengths) and (stop == start or size + lengths[stop] <= BLOCK_BYTES):
        size += lengths[stop]
        stop += 1
    return stop
