"""One segment file: its name, what was found in it, and where in it a record lies."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from skerry.buffer.blocks import CHECKPOINT, RECORDS, Block, Damage, scan

_NAME = re.compile(r"^(\d{10})-(\d{20})\.segment$")
_MARK_EVERY = 64 * 1024
"""Bytes between two entries of a segment's index: one seek, then at most this much to pass over."""

_BUFFER = 256 * 1024

Span = tuple[int, int]
"""Records from and to, both included."""


@dataclass
class Segment:
    """A segment as the store knows it.

    Attributes:
        number: dense over the life of the store; also in every block of the file.
        first: offset that the first record has, or would have.
        end: offset after the last record.
        size: bytes of sound blocks; the next block goes here.
    """

    path: Path
    number: int
    first: int
    end: int
    size: int
    index: list[Span] = field(default_factory=list)
    """(offset of the first record, byte) of some blocks, ascending."""

    @property
    def empty(self) -> bool:
        """Whether it never held a record."""
        return self.end == self.first

    def note(self, first: int, at: int) -> None:
        """Remember where a block lies, if none near it is remembered yet."""
        if not self.index or at - self.index[-1][1] >= _MARK_EVERY:
            self.index.append((first, at))

    def seek(self, offset: int) -> int:
        """A byte from which reading forward finds the record `offset`."""
        found = bisect_right(self.index, offset, key=lambda entry: entry[0])
        return self.index[found - 1][1] if found else 0


def path_of(folder: Path, number: int, first: int) -> Path:
    """Where a segment is kept. The name says where it begins even when its content is lost."""
    return folder / f"{number:010d}-{first:020d}.segment"


def listed(folder: Path) -> list[tuple[Path, int, int]]:
    """(path, number, first) of every segment in a folder, oldest first."""
    found = []
    for path in folder.iterdir():
        name = _NAME.match(path.name)
        if name:
            found.append((path, int(name[1]), int(name[2])))
    return sorted(found, key=lambda entry: entry[1])


@dataclass
class Contents:
    """What is found in a segment by reading all of it."""

    segment: Segment
    holes: list[Span]
    damage: list[Damage]
    sound: int
    """Bytes up to the end of the last sound block."""


def inspect(
    path: Path,
    number: int,
    first: int,
    *,
    stop: int | None,
    visit: Callable[[Block], None],
    size: int | None = None,
) -> Contents:
    """Read a segment from end to end.

    Args:
        path: the file.
        number: its number.
        first: offset at which it begins.
        stop: offset at which the next segment begins, None for the last one. What a segment holds
            from there on was written again in the next one.
        visit: called with every block that counts; one that raises ValueError counts as damage.
        size: bytes to look at; all there are when None.
    """
    size = path.stat().st_size if size is None else size
    segment = Segment(path, number, first, first, 0)
    contents = Contents(segment, [], [], 0)
    with path.open("rb", buffering=_BUFFER) as file:
        for found in scan(file, size, number):
            if isinstance(found, Damage):
                contents.damage.append(found)
                continue
            contents.sound = found.end
            try:
                _add(contents, found, stop, visit)
            except ValueError:
                contents.damage.append(Damage(found.at, found.end))
    segment.size = contents.sound
    if stop is not None and segment.end < stop:
        contents.holes.append((segment.end, stop - 1))
        segment.end = stop
    return contents


def _add(contents: Contents, block: Block, stop: int | None, visit: Callable[[Block], None]) -> None:
    """Take note of one sound block."""
    segment, header = contents.segment, block.header
    if header.kind == CHECKPOINT:
        visit(block)
    if header.kind != RECORDS or header.first < segment.end or (stop is not None and header.stop > stop):
        return
    visit(block)
    if header.first > segment.end:
        contents.holes.append((segment.end, header.first - 1))
    segment.note(header.first, block.at)
    segment.end = header.stop


def blocks(path: Path, number: int, size: int) -> Iterator[Block]:
    """Every sound block of a segment, in order."""
    with path.open("rb", buffering=_BUFFER) as file:
        for found in scan(file, size, number):
            if isinstance(found, Block):
                yield found


def clip(spans: Iterable[Span], first: int, last: int) -> list[Span]:
    """The parts of `spans` between `first` and `last`, both included."""
    cut = ((max(a, first), min(b, last)) for a, b in spans)
    return [(a, b) for a, b in cut if a <= b]


def length(spans: Iterable[Span]) -> int:
    """How many records lie in `spans`, which do not overlap."""
    return sum(b - a + 1 for a, b in spans)
