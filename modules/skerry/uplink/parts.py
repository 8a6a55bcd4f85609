"""Consecutive records of one store: what came with one message, or goes with one batch."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from skerry.messages import Lane
from skerry.uplink.record import GAP, Flaw, Record


class Chain(msgspec.Struct, kw_only=True, eq=False):
    """How far the records of one store have come. Changed only by who holds the lock of `Lanes`.

    Attributes:
        queued: the last record that was taken from the bus.
        confirmed: the far end has, or has refused, every record up to here.
        refused: offset to reason of what it refused, until the buffer knows.
        alone: records up to here are sent one by one, to find the one that is refused.
        untold: what the buffer is to be told next, 0 when nothing: after a repeat no more than that, for a
            buffer that lost its place believes nobody who is ahead of what it has sent since.
    """

    store: str
    lane: Lane
    queued: int = 0
    confirmed: int = 0
    refused: dict[int, str] = {}
    alone: int = 0
    untold: int = 0


class Part(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """Records `first` to `last` of a chain. Pure.

    Either each has an offset of its own, or there is one record, of a gap, for all the offsets.
    """

    chain: Chain
    backlog: bool
    first: int
    last: int
    records: Sequence[Record | Flaw]
    size: int
    """Bytes of the records."""

    @property
    def spans(self) -> bool:
        """Whether its one record stands for many."""
        return self.last - self.first + 1 != len(self.records)

    def split(self, records: int) -> tuple[Part, Part | None]:
        """The first records, 1 or more, and the rest."""
        if records >= len(self.records):
            return self, None
        head = self._of(self.first, self.first + records - 1, self.records[:records])
        rest = self.records[records:]
        return head, self._of(self.first + records, self.last, rest, self.size - head.size)

    def _of(self, first: int, last: int, records: Sequence[Record | Flaw], size: int | None = None) -> Part:
        if size is None:
            size = sum(len(r.raw) for r in records)
        return Part(
            chain=self.chain, backlog=self.backlog, first=first, last=last, records=records, size=size
        )  # fmt: skip

    def joins(self, after: Part) -> bool:
        """Whether `after` goes on where this ends, record by record."""
        return (
            after.chain is self.chain
            and after.first == self.last + 1
            and after.backlog == self.backlog
            and not (self.spans or after.spans)
            and self.first > self.chain.alone
        )

    def fitting(self, most: float, max_bytes: float) -> int:
        """How many of the first records one batch may have, 1 or more.

        Args:
            most: records in a batch.
            max_bytes: of records, each counted with a byte more. One record may be larger.
        """
        if isinstance(self.records[0], Flaw) or self.first <= self.chain.alone:
            return 1
        room, n = max_bytes, 0
        for record in self.records:
            room -= len(record.raw) + 1
            if n >= most or (room < 0 and n) or isinstance(record, Flaw):
                break
            n += 1
        return n


def joined(parts: Sequence[Part]) -> Part:
    """Several that join, as one."""
    if len(parts) == 1:
        return parts[0]
    return Part(
        chain=parts[0].chain, backlog=parts[0].backlog, first=parts[0].first, last=parts[-1].last,
        records=[record for part in parts for record in part.records], size=sum(p.size for p in parts),
    )  # fmt: skip


def mismatch(part: Part) -> str:
    """What is wrong with how a message counts its records, or "": only a gap stands for several."""
    if not part.spans:
        return ""
    only = part.records[0]
    if len(part.records) == 1 and isinstance(only, Record) and only.envelope.type == GAP:
        return ""
    return f"expected {part.last - part.first + 1} records, got {len(part.records)}"
