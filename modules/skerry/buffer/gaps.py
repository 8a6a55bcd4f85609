"""What a chain lost: spans of offsets, each with its reason and, as far as known, what was in it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from skerry.buffer.blocks import RECORDS, Block, Names, Run, payloads_of, preface_of
from skerry.buffer.disk import Disk
from skerry.buffer.segment import Span

CAPACITY, CORRUPT, NEVER_SUBMITTED, QUARANTINED = "capacity", "corrupt", "never_submitted", "quarantined"
_MOST_NAMES = 200
"""Epochs that one gap record names."""
MOST_RUNS = 2000
"""Runs that are kept of a hole: more records than are ever under way."""

log = structlog.get_logger()
Key = tuple[str, str]
"""Producer and epoch."""


class Hole(msgspec.Struct, kw_only=True):
    """Records `first` to `last` of a chain, which nobody has any more.

    Attributes:
        epoch, seq: the name of its gap record: identity of the chain, and `first`, when the hole came to be.
        names: of the records; where the disk lost them, what may be missing at most.
        runs: what its first records are, one after the other, as far as is known.
        told: handed out as a gap record: it must not change any more.
    """

    first: int
    last: int
    reason: str
    epoch: str
    seq: int
    detail: str = ""
    names: list[Names] = []
    runs: list[Run] = []
    bytes: int = 0
    from_ns: int = 0
    to_ns: int = 0
    told: bool = False

    @property
    def count(self) -> int:
        """How many records."""
        return self.last - self.first + 1

    def extend(self, other: Hole) -> None:
        """Take in the hole that follows."""
        self.last = other.last
        self.bytes += other.bytes
        self.from_ns, self.to_ns = self.from_ns or other.from_ns, other.to_ns or self.to_ns
        self.names = merged([*self.names, *other.names])

    def trim(self, first: int) -> None:
        """Begin at `first`: what stood before has arrived all the same."""
        late, self.first = first - self.first, first
        names = {(n.producer, n.epoch): n for n in self.names}
        while late > 0 and self.runs:
            run = self.runs.pop(0)
            gone = min(late, run.count)
            late -= gone
            if gone < run.count:
                self.runs.insert(0, Run(run.producer, run.epoch, run.seq + gone, run.count - gone))
            named = names.get((run.producer, run.epoch))
            if named is not None:
                named.first, named.count = run.seq + gone, named.count - gone
        self.names = [n for n in names.values() if n.count > 0]


def merged(names: Iterable[Names]) -> list[Names]:
    """Names by (producer, epoch), in order of appearance; at most 200."""
    found: dict[Key, Names] = {}
    for n in names:
        known = found.get((n.producer, n.epoch))
        if known is not None:
            known.last, known.count = max(known.last, n.last), known.count + n.count
        elif len(found) < _MOST_NAMES:
            found[n.producer, n.epoch] = Names(n.producer, n.epoch, n.first, n.last, n.count)
    return list(found.values())


def of_blocks(blocks: Iterable[Block], first: int) -> tuple[list[Run], int]:
    """The runs of a segment's records from the offset `first` on, in order, and their bytes."""
    runs: list[Run] = []
    size = 0
    for block in blocks:
        header = block.header
        if header.kind != RECORDS or header.stop <= first:
            continue
        size += sum(map(len, payloads_of(block)[max(first - header.first, 0) :]))
        at = header.first
        for run in preface_of(block.body).runs:
            late = min(max(first - at, 0), run.count)
            at += run.count
            if late < run.count:
                _join(runs, Run(run.producer, run.epoch, run.seq + late, run.count - late))
    return runs, size


def _join(runs: list[Run], run: Run) -> None:
    """Add a run, to the last one where it goes on with it."""
    last = runs[-1] if runs else None
    if (
        last is not None
        and (last.producer, last.epoch) == (run.producer, run.epoch)
        and last.seq + last.count == run.seq
    ):
        runs[-1] = Run(run.producer, run.epoch, last.seq, last.count + run.count)
    else:
        runs.append(run)


def names_of(runs: Iterable[Run]) -> list[Names]:
    """Runs by (producer, epoch)."""
    return merged(Names(r.producer, r.epoch, r.seq, r.seq + r.count - 1, r.count) for r in runs)


def missing(
    holes: Sequence[Span], blocks: Iterable[Block], before: Mapping[Key, int], after: Mapping[Key, int]
) -> dict[Span, list[Names]]:
    """Which events may have been in each hole of a segment, from what stands before and behind it.

    Args:
        holes: ascending.
        blocks: the sound ones of the segment, in order.
        before: watermarks where the segment begins.
        after: watermarks where it ends.
    """
    found: dict[Span, list[Names]] = {hole: [] for hole in holes}
    known = dict(before)

    def lack(key: Key, seq: int, upto: int) -> None:
        """`seq` is the next of `key` that is there, and `upto` where it is."""
        near = [hole for hole in holes if hole[1] < upto]
        if near and seq > known.get(key, 0) + 1:
            first = known.get(key, 0) + 1
            found[near[-1]].append(Names(*key, first, seq - 1, seq - first))

    for block in blocks:
        if block.header.kind != RECORDS:
            continue
        for run in preface_of(block.body).runs:
            key = run.producer, run.epoch
            lack(key, run.seq, block.header.first)
            known[key] = max(known.get(key, 0), run.seq + run.count - 1)
    for key, seq in after.items():
        lack(key, seq + 1, 1 << 63)
    return {hole: names[:_MOST_NAMES] for hole, names in found.items()}


class GapFile:
    """Keeps the holes whose records are gone from the disk on purpose: written before they go.

    Args:
        path: the file.
        disk: the file system.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self.damaged = False

    def load(self) -> list[Hole]:
        """What is kept; nothing when the file is missing or damaged (the holes are seen all the same)."""
        try:
            crc, _, content = self._path.read_bytes().partition(b"\n")
            if crc != _crc(content):
                raise ValueError("the checksum is wrong")
            holes = msgspec.json.decode(content, type=list[Hole])
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            self.damaged = True
            log.warning("store.gaps_lost", path=self._path.name, error=str(error))
            return []
        return holes

    def save(self, holes: Sequence[Hole]) -> None:
        """Make them durable.

        Raises:
            OSError: what was kept before still is.
        """
        content = msgspec.json.encode(holes)
        self._disk.close(self._disk.write_file(self._path, _crc(content) + b"\n" + content))


def _crc(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)
