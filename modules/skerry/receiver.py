"""For far ends: each event once, and proof that none is missing.

Delivery is at least once. `(source, epoch, seq)` is dense and ascending per source and epoch, so one
number for each is enough to make the effect exactly once:

    marks = Watermarks.load(saved)              # b"" the first time
    for event in arrived:
        if marks.fresh(event["source"], event["epoch"], event["seq"]):
            store(event)
    save(marks.dump())                          # in the same transaction as what was stored

And since it is dense, a jump in it is a hole. What will never come is explained by a gap record, an
event of type `skerry.gap` that arrives like any other; a hole that none explains is a loss, and the
edge says that there are none. `Account` keeps that book:

    account = Account()
    for event in arrived:
        if account.take(event):
            store(event)
    assert not account.unexplained(), "something was lost without a word"
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, Self

import msgspec

GAP = "skerry.gap"
"""The type of a gap record."""
MAX_EPOCHS = 16_384
"""An epoch begins with each start of a producer, per lane; 16,384 take about 4 MB."""

Key = tuple[str, str]
Span = tuple[int, int]
"""From and to, both included."""


class Watermarks:
    """The highest seq seen per (source, epoch), of the epochs that were active last.

    Args:
        known: what an earlier run had seen; keep `seen` together with what it stands for.
        max_epochs: the epoch that was quiet for longest makes room. A repeat from so long ago would be
            taken for new.
    """

    def __init__(self, known: Mapping[Key, int] | None = None, max_epochs: int = MAX_EPOCHS) -> None:
        self._high: OrderedDict[Key, int] = OrderedDict(known or {})
        self._max_epochs = max_epochs
        self._trim()

    @property
    def seen(self) -> dict[Key, int]:
        """A copy: (source, epoch) to its highest seq, the one that was active last at the end."""
        return dict(self._high)

    def repeated(self, source: str, epoch: str, seq: int) -> bool:
        """Whether this event, or one after it, was seen before. Changes nothing."""
        return seq <= self._high.get((source, epoch), 0)

    def fresh(self, source: str, epoch: str, seq: int) -> bool:
        """Whether this event is new; it counts as seen from now on."""
        key = source, epoch
        high = self._high.get(key)
        if high is None:
            self._high[key] = seq
            self._trim()
            return True
        if seq <= high:
            return False
        self._high[key] = seq
        self._high.move_to_end(key)
        return True

    def highest(self, source: str, epoch: str) -> int:
        """The highest seq seen; 0 when there was none."""
        return self._high.get((source, epoch), 0)

    def dump(self) -> bytes:
        """All of it as JSON, for `load`."""
        return msgspec.json.encode([(source, epoch, seq) for (source, epoch), seq in self._high.items()])

    @classmethod
    def load(cls, saved: bytes, max_epochs: int = MAX_EPOCHS) -> Self:
        """What `dump` gave; nothing makes new ones.

        Raises:
            ValueError: it is not what `dump` gives.
        """
        try:
            rows = msgspec.json.decode(saved, type=list[tuple[str, str, int]]) if saved else []
        except msgspec.DecodeError as error:
            raise ValueError(f"expected what Watermarks.dump gave, got {saved[:40]!r} ({error})") from error
        return cls({(source, epoch): seq for source, epoch, seq in rows}, max_epochs)

    def _trim(self) -> None:
        while len(self._high) > self._max_epochs:
            self._high.popitem(last=False)


class _Name(msgspec.Struct):
    """What names an event for ever."""

    source: str
    epoch: str
    seq: int


class _Range(msgspec.Struct):
    """Of a gap record: events of one epoch that will never come."""

    epoch: str
    first: int
    last: int


class _Gap(msgspec.Struct):
    """The data of a gap record, as far as it matters here."""

    reason: str
    count: int
    ranges: list[_Range] = []


class Account:
    """Drops repeats, and holds every jump in an epoch's seq against the gap records.

    Let it begin with the first event that the edge ever sent; one that begins later finds a hole from 1
    in each epoch that was there before.

    Args:
        marks: of an earlier run, with its holes.
        holes: what `unexplained` gave in it.
        max_holes: that are remembered, and as many gap records that came before their hole; beyond it
            the oldest is given up and counted in `forgotten`.

    Attributes:
        lost: events that gap records gave up, by reason.
        forgotten: holes that could not be remembered.
    """

    def __init__(
        self, marks: Watermarks | None = None, holes: Mapping[str, list[Span]] | None = None,
        max_holes: int = 10_000,
    ) -> None:  # fmt: skip
        self.marks = marks or Watermarks()
        self.lost: Counter[str] = Counter()
        self.forgotten = 0
        self._holes: OrderedDict[str, list[Span]] = OrderedDict(
            (epoch, list(spans)) for epoch, spans in (holes or {}).items()
        )
        self._excused: OrderedDict[str, list[Span]] = OrderedDict()
        self._max_holes = max_holes

    def take(self, event: Mapping[str, Any]) -> bool:
        """Note an event as it arrived; whether it is new.

        Raises:
            ValueError: it is none of Skerry's events.
        """
        try:
            name = msgspec.convert(event, _Name)
        except msgspec.ValidationError as error:
            raise ValueError(f"expected an event with source, epoch and seq, got {error}") from error
        before = self.marks.highest(name.source, name.epoch)
        if not self.marks.fresh(name.source, name.epoch, name.seq):
            return False
        if event.get("type") == GAP:
            self._excuse(event.get("data"))
        elif name.seq > before + 1 and "retryof" not in event:
            self._jump(name.epoch, (before + 1, name.seq - 1))
        return True

    def unexplained(self) -> dict[str, list[Span]]:
        """Epoch to the seqs that are missing without a word; what explains them may still be on its way."""
        return {epoch: list(spans) for epoch, spans in self._holes.items()}

    def _jump(self, epoch: str, hole: Span) -> None:
        left = [hole]
        for span in self._excused.get(epoch, ()):
            left = _without(left, span)
        if left:
            self._holes.setdefault(epoch, []).extend(left)
            self._bound(self._holes)

    def _excuse(self, data: object) -> None:
        try:
            gap = msgspec.convert(data, _Gap)
        except msgspec.ValidationError as error:
            raise ValueError(f"expected a gap record, got {error}") from error
        self.lost[gap.reason] += gap.count
        for r in gap.ranges:
            span = r.first, r.last
            self._excused.setdefault(r.epoch, []).append(span)
            left = _without(self._holes.pop(r.epoch, []), span)
            if left:
                self._holes[r.epoch] = left
        self._bound(self._excused)

    def _bound(self, book: OrderedDict[str, list[Span]]) -> None:
        while sum(map(len, book.values())) > self._max_holes:
            epoch = next(iter(book))
            book[epoch].pop(0)
            if not book[epoch]:
                del book[epoch]
            self.forgotten += book is self._holes


def _without(spans: list[Span], cut: Span) -> list[Span]:
    """What is left of spans once a part of them is cut out."""
    left = []
    for first, last in spans:
        if cut[1] < first or last < cut[0]:
            left.append((first, last))
            continue
        if first < cut[0]:
            left.append((first, cut[0] - 1))
        if cut[1] < last:
            left.append((cut[1] + 1, last))
    return left
