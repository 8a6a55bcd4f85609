"""The holes of one chain that the far end does not know of yet, and how many records are in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from skerry.buffer.gaps import CAPACITY, CORRUPT, GapFile, Hole
from skerry.buffer.segment import Span, clip


class Holes:
    """Beyond what the far end has, ascending, none over another. Not thread-safe.

    A hole that was told does not change any more; one that was not may grow, shrink from its
    beginning when what it stands for arrives all the same, and be taken in by another.

    Args:
        file: keeps those that nothing on disk would show, or not as they were told.
    """

    def __init__(self, file: GapFile) -> None:
        self._file = file
        self._holes: list[Hole] = []

    def __iter__(self) -> Iterator[Hole]:
        return iter(self._holes)

    def __len__(self) -> int:
        return len(self._holes)

    def __contains__(self, offset: int) -> bool:
        return any(h.first <= offset <= h.last for h in self._holes)

    @property
    def damaged(self) -> bool:
        """Whether the file could not be read."""
        return self._file.damaged

    @property
    def counts(self) -> Counter[str]:
        """Records in them, by reason."""
        found: Counter[str] = Counter()
        for hole in self._holes:
            found[hole.reason] += hole.count
        return found

    def spans(self, *, told: bool = False) -> list[Span]:
        """From and to of each, or of those that were told."""
        return [(h.first, h.last) for h in self._holes if h.told or not told]

    def next(self, offset: int) -> Hole | None:
        """The first that ends at or behind an offset."""
        return next((h for h in self._holes if h.last >= offset), None)

    def add(self, hole: Hole) -> None:
        """A hole where there was none."""
        self._holes = sorted([*self._holes, hole], key=lambda h: h.first)

    def rest(self, first: int, last: int) -> list[Span]:
        """What of these offsets is in no hole."""
        return _without(self.spans(), first, last)

    def load(self, upto: int, start: int) -> None:
        """Take up what was kept, as far as it still holds.

        Args:
            upto: the far end has every record up to here.
            start: the first offset that is on disk.
        """
        for hole in self._file.load():
            if not hole.told:  # what is still there was not given up after all
                hole.last = min(hole.last, start - 1)
            if hole.last < max(hole.first, upto + 1):
                continue
            if not hole.told and hole.first <= upto:
                hole.trim(upto + 1)
            self.add(hole)

    def given_up(self, lost: Hole) -> tuple[list[Hole], int]:
        """How the holes would be with another one, and how many records more would be in them.

        What was told stays as it is; what was not, and lies within, is taken in; one that ends where
        this one begins grows, if it has the same reason and was not told.

        Args:
            lost: all records from its first to its last, in whatever state.
        """
        told = [h for h in self._holes if h.told and h.first <= lost.last]
        taken = [h for h in self._holes if not h.told and lost.first <= h.first <= lost.last]
        parts = _without([(h.first, h.last) for h in told], lost.first, lost.last)
        fresh = [_part(lost, first, last) for first, last in parts]
        more = sum(h.count for h in fresh) - sum(h.count for h in taken)
        kept = [h for h in self._holes if h not in taken]
        before = kept[-1] if kept and kept[-1].last + 1 == lost.first else None
        if before is not None and not before.told and before.reason == lost.reason and len(fresh) == 1:
            grown = _part(before, before.first, before.last)
            grown.extend(fresh[0])
            kept, fresh = [h for h in kept if h is not before], [grown]
        return sorted([*kept, *fresh], key=lambda h: h.first), more

    def tell(self, hole: Hole) -> None:
        """A hole is handed out: it is what it is from now on, after a restart too.

        Raises:
            OSError: that could not be kept; it is not told.
        """
        hole.told = True
        try:
            self.keep(self._holes)
        except OSError:
            hole.told = False
            raise

    def keep(self, holes: Sequence[Hole]) -> None:
        """Have these holes from now on, durably. The cursor must have passed the others, durably.

        Raises:
            OSError: nothing has changed.
        """
        self._file.save([h for h in holes if h.told or h.reason == CAPACITY])
        self._holes = list(holes)

    def passed(self, upto: int) -> Counter[str]:
        """Leave behind the holes up to here; how many records the far end was told are gone, by reason.

        What was under way when it was given up, and arrived before anybody was told, was delivered.
        """
        gone: Counter[str] = Counter()
        kept = []
        for hole in self._holes:
            if hole.last > upto:
                if hole.first <= upto and not hole.told:
                    hole.trim(upto + 1)
                kept.append(hole)
            elif hole.told:
                gone[hole.reason] += hole.count
        self._holes = kept
        return gone

    def nameless(self, first: int, end: int) -> list[Hole]:
        """Corrupt holes from `first` to before `end` of which it was not found out what was in them."""
        return [
            h for h in self._holes
            if h.reason == CORRUPT and not h.names and not h.told and first <= h.first and h.last < end
        ]  # fmt: skip


def _part(hole: Hole, first: int, last: int) -> Hole:
    """The part of a hole from `first` to `last`; it is named by its own first offset."""
    whole = first == hole.first
    return Hole(
        first=first, last=last, reason=hole.reason, epoch=hole.epoch, seq=hole.seq if whole else first,
        detail=hole.detail, names=list(hole.names), runs=list(hole.runs) if whole else [], bytes=hole.bytes,
        from_ns=hole.from_ns, to_ns=hole.to_ns,
    )  # fmt: skip


def _without(spans: Sequence[Span], first: int, last: int) -> list[Span]:
    """What of `first` to `last` is in none of the spans, which ascend and do not overlap."""
    found = []
    for a, b in clip(spans, first, last):
        if first < a:
            found.append((first, a - 1))
        first = b + 1
    if first <= last:
        found.append((first, last))
    return found
