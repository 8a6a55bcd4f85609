"""One segment file: its name, what was found in it, and where in it a record lies."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from skerry.buffer.blocks import (
    CHECKPOINT,
    RECORDS,
    Block,
    Damage,
    Header,
    Names,
    Run,
    Stamp,
    Summary,
    next_header,
    scan,
)
from skerry.buffer.seal import Seal
from skerry.messages import LANES, Lane

_NAME = re.compile(rf"^({'|'.join(LANES)})-(\d{{10}})-(\d{{20}})\.segment$")
_MARK_EVERY = 64 * 1024
"""Bytes between two entries of a segment's index: one seek, then at most this much to pass over."""
_MOST_NAMES = 1000
"""Epochs that are named one by one in a segment's summary."""
_BUFFER = 256 * 1024

Span = tuple[int, int]
"""Records from and to, both included."""


@dataclass
class Segment:
    """A segment as the store knows it.

    Attributes:
        number: ascending over the life of the chain, and of no other segment of the store; also in every
            block of the file.
        first: offset that the first record has, or would have.
        end: offset after the last record.
        size: bytes of sound blocks; the next block goes here.
        space: bytes of the file.
        names: which events it holds, by (producer, epoch).
        from_ns, to_ns: wall time of the first and of the last commit.
        worn: a flush of the file has failed; it must not be used again.
    """

    path: Path
    number: int
    first: int
    end: int
    size: int
    space: int
    index_first: array[int] = field(default_factory=lambda: array("Q"))
    index_at: array[int] = field(default_factory=lambda: array("Q"))
    names: dict[tuple[str, str], Names] = field(default_factory=dict)
    payload_bytes: int = 0
    from_ns: int = 0
    to_ns: int = 0
    worn: bool = False

    @property
    def empty(self) -> bool:
        """Whether it never held a record."""
        return self.end == self.first

    def note(self, first: int, at: int) -> None:
        """Remember where a block lies, if none near it is remembered yet."""
        if not self.index_at or at - self.index_at[-1] >= _MARK_EVERY:
            self.index_first.append(first)
            self.index_at.append(at)

    def seek(self, offset: int) -> int:
        """A byte from which reading forward finds the record `offset`."""
        found = bisect_right(self.index_first, offset)
        return self.index_at[found - 1] if found else 0

    def add(self, stamp: Stamp, runs: Iterable[Run], payload_bytes: int) -> None:
        """Take note of what a block holds: its stamp, its runs, its size."""
        self.from_ns = self.from_ns or stamp.wall_ns
        self.to_ns = stamp.wall_ns
        self.payload_bytes += payload_bytes
        names = self.names
        for run in runs:
            key, last = (run.producer, run.epoch), run.seq + run.count - 1
            known = names.get(key)
            if known is not None:
                known.last = last
                known.count += run.count
            elif len(names) < _MOST_NAMES:
                names[key] = Names(*key, run.seq, last, run.count)

    def summary(self) -> Summary:
        """All of it, for the segment after this one."""
        index = [n for entry in zip(self.index_first, self.index_at, strict=True) for n in entry]
        return Summary(
            self.number, self.first, self.end, self.size, index, list(self.names.values()),
            self.payload_bytes, self.from_ns, self.to_ns,
        )  # fmt: skip


def of_summary(path: Path, found: Summary) -> Segment:
    """A closed segment, unread.

    Raises:
        OSError: it cannot be looked at.
    """
    return Segment(
        path, found.number, found.first, found.end, found.size, path.stat().st_size,
        array("Q", found.index[::2]), array("Q", found.index[1::2]),
        {(n.producer, n.epoch): n for n in found.names}, found.payload_bytes, found.from_ns, found.to_ns,
    )  # fmt: skip


def path_of(folder: Path, lane: Lane, number: int, first: int) -> Path:
    """Where a segment is kept. The name says where it begins even when its content is lost."""
    return folder / f"{lane}-{number:010d}-{first:020d}.segment"


def highest(folder: Path) -> int:
    """The highest number of any segment in a folder; 0 when there is none."""
    names = (_NAME.match(path.name) for path in folder.iterdir())
    return max((int(name[2]) for name in names if name), default=0)


def listed(folder: Path, lane: Lane) -> list[tuple[Path, int, int]]:
    """(path, number, first) of every segment of a lane, oldest first."""
    found = []
    for path in folder.iterdir():
        name = _NAME.match(path.name)
        if name and name[1] == lane:
            found.append((path, int(name[2]), int(name[3])))
    return sorted(found, key=lambda entry: entry[1])


@dataclass
class Contents:
    """What is found in a segment by reading all of it."""

    segment: Segment
    holes: list[Span]
    damage: list[Damage]
    sound: int
    """Bytes up to the end of the last sound block."""

    @property
    def spots(self) -> list[str]:
        """The first places that are damaged, for the log."""
        return [f"bytes {d.at} to {d.end}" for d in self.damage[:20]]


def inspect(
    path: Path,
    number: int,
    first: int,
    *,
    seal: Seal,
    stop: int | None,
    visit: Callable[[Block], None],
    size: int | None = None,
    committed: int = 0,
) -> Contents:
    """Read a segment from end to end.

    Of a commit that was torn at the very end, blocks may be sound whose predecessors are not. They count
    only if the commit is known to have been durable: something follows it, or `committed` says so.

    Args:
        path: the file.
        number: its number.
        first: offset at which it begins.
        seal: how blocks are read.
        stop: offset at which the next segment begins, None for the last one. What a segment holds
            from there on was written again in the next one.
        visit: called with every block that counts; one that raises ValueError counts as damage.
        size: bytes of its blocks; when None, what is behind the last sound block is no damage.
        committed: offset of a record that is known to have been durable.
    """
    space = path.stat().st_size
    segment = Segment(path, number, first, first, 0, space)
    contents = Contents(segment, [], [], 0)
    orphans: list[Block] = []
    last: Header | None = None
    with path.open("rb", buffering=_BUFFER) as file:
        for found in scan(file, space if size is None else size, number, seal):
            if isinstance(found, Damage):
                contents.damage.append(found)
                continue
            if found.header.part and (orphans or not _follows(last, found)):
                orphans.append(found)
                continue
            for block in [*orphans, found]:
                _count(contents, block, stop, visit)
            orphans.clear()
            last = found.header
    if orphans and (stop is not None or size is not None or committed >= orphans[-1].header.stop - 1):
        for block in orphans:
            _count(contents, block, stop, visit)
    while size is None and contents.damage and contents.damage[-1].at >= contents.sound:
        contents.damage.pop()
    segment.size = contents.sound
    if stop is not None and segment.end < stop:
        contents.holes.append((segment.end, stop - 1))
        segment.end = stop
    return contents


def _follows(last: Header | None, block: Block) -> bool:
    """Whether a block goes on with the commit that the last sound one belongs to."""
    header = block.header
    return last is not None and last.stop == header.first and last.part in {header.part - 1, header.part}


def _count(contents: Contents, block: Block, stop: int | None, visit: Callable[[Block], None]) -> None:
    contents.sound = block.end
    try:
        _add(contents, block, stop, visit)
    except ValueError:
        contents.damage.append(Damage(block.at, block.end))


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


def blocks(path: Path, number: int, size: int, seal: Seal) -> Iterator[Block]:
    """Every sound block of a segment, in order."""
    with path.open("rb", buffering=_BUFFER) as file:
        for found in scan(file, size, number, seal):
            if isinstance(found, Block):
                yield found


def headers_behind(path: Path, number: int, at: int, size: int) -> Iterator[int]:
    """Where headers of this segment stand behind its last sound block: commits that never counted."""
    with path.open("rb", buffering=_BUFFER) as file:
        at = next_header(file, at, size, number)
        while at < size:
            yield at
            at = next_header(file, at + 1, size, number)


def clip(spans: Iterable[Span], first: int, last: int) -> list[Span]:
    """The parts of `spans` between `first` and `last`, both included."""
    cut = ((max(a, first), min(b, last)) for a, b in spans)
    return [(a, b) for a, b in cut if a <= b]


def length(spans: Iterable[Span]) -> int:
    """How many records lie in `spans`, which do not overlap."""
    return sum(b - a + 1 for a, b in spans)
