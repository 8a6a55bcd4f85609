"""A store as it lies on disk, seen by somebody who must not touch it: live, stopped, or on a disk pulled out.

Nothing is opened for writing, no lock is taken and nothing is repaired. A buffer that is at work appends,
renames and reuses files meanwhile: a lane is looked at again until its files stayed the same for one look.
Lanes are looked at one after the other, so of a busy store each is of its own moment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from skerry.buffer import segment
from skerry.buffer.blocks import (
    CHECKPOINT,
    HEADER_SIZE,
    RECORDS,
    TIMES,
    Block,
    Checkpoint,
    Damage,
    Stamp,
    checkpoint_of,
    header_of,
    next_header,
    opened,
    payloads_of,
    preface_of,
)
from skerry.buffer.cursor import Cursor, Position
from skerry.buffer.disk import Disk
from skerry.buffer.gaps import CORRUPT, GapFile, Hole
from skerry.buffer.records import OWN
from skerry.buffer.seal import COMPRESSED, ENCRYPTED, Seal
from skerry.buffer.segment import Segment, Span
from skerry.buffer.times import Anchors
from skerry.errors import ConfigError, Unavailable
from skerry.messages import LANES, Lane

_LOOKS = 25
"""At one lane, until its files stay the same during one."""
_TORN_LOOKS = 3
"""What is torn in as many looks was not just being written."""
_LOCK = re.compile(r"^\d+: FLOCK +\w+ +WRITE +(\d+) +(\w+):(\w+):(\d+) ", re.MULTILINE)
_KEY_ID = 4


class Item(NamedTuple):
    """A record, and when it was committed."""

    offset: int
    payload: bytes
    at: Stamp
    times: bool
    """Its times want correction."""


class Unread(NamedTuple):
    """Records that are not read, although nobody lost them."""

    first: int
    last: int
    why: str


class Spot(NamedTuple):
    """Bytes `at` to `end` of a file that are no block."""

    file: str
    at: int
    end: int


@dataclass
class LaneView:
    """One chain, as its files say it is.

    Attributes:
        id: identity of the chain.
        last: offset of the last record.
        upto: the far end has, or nobody has any more, every record up to here.
        delivered: records that the far end confirmed, ever.
        stated: records that the buffer itself added, ever; at least, where a key is missing.
        evicted: records lost, ever, by reason, those of `holes` included.
        holes: what is missing beyond `upto`, ascending: gap records that the far end has not confirmed.
        marks: epochs whose watermark is kept; None where a key is missing.
        segments: oldest first.
        oldest: when the oldest waiting record was committed; None where nothing waits or a key is missing.
        closed: the process that had it open has closed it.
        damage: what was seen of it.
        troubles: files that could not be read, and why.
        torn: a cursor or a gap file was found neither empty nor whole: it rots, or was just being written.
        steady: nothing was renamed or removed while it was looked at.
    """

    lane: Lane
    id: str = ""
    last: int = 0
    upto: int = 0
    delivered: int = 0
    stated: int = 0
    evicted: dict[str, int] = field(default_factory=dict)
    holes: list[Hole] = field(default_factory=list)
    marks: int | None = 0
    segments: list[Segment] = field(default_factory=list)
    oldest: Stamp | None = None
    closed: bool = True
    damage: list[Spot] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    torn: bool = False
    steady: bool = True

    @property
    def waiting(self) -> int:
        """Records beyond `upto` that are there."""
        return self.last - self.upto - sum(h.last - max(h.first, self.upto + 1) + 1 for h in self.holes)

    @property
    def space(self) -> int:
        """Bytes of its segments on disk."""
        return sum(s.space for s in self.segments)


@dataclass
class StoreView:
    """A store, as its files say it is.

    Attributes:
        lanes: each chain.
        space: bytes of all files.
        free: bytes of each file that is kept for a segment to come.
        compressed, encrypted: some block that was looked at is.
        missing_keys: ids of keys that it is encrypted with, and that were not given.
    """

    folder: Path
    lanes: dict[Lane, LaneView]
    space: int
    free: list[int]
    compressed: bool
    encrypted: bool
    missing_keys: list[str]

    @property
    def closed(self) -> bool:
        """The process that had it open has closed it."""
        return all(lane.closed for lane in self.lanes.values())


class ReadOnlyDisk(Disk):
    """Opens for reading only; has nothing to make durable."""

    def open(self, path: Path, *, writing: bool = False) -> int:
        """An existing file, open for reading."""
        return super().open(path, writing=writing)

    def sync(self, file: int) -> None:
        """Nothing was written."""


class Lenient(Seal):
    """Opens what it has the key for; the rest counts as sound, and empty.

    `missing` holds the ids of the keys that were not given.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        super().__init__(old_keys=keys)
        self.missing: set[str] = set()

    def open(self, flags: int, body: bytes, about: bytes) -> bytes:
        """The body as it was, or nothing."""
        try:
            return super().open(flags, body, about)
        except ConfigError:
            if not flags & ENCRYPTED:
                raise
            self.missing.add(body[:_KEY_ID].hex())
            return b""


# Where it is, and who has it


def find(folder: Path) -> Path:
    """The folder of a store.

    Args:
        folder: of the store itself, of a buffer's state, or the output folder of a run.

    Raises:
        ConfigError: there are several.
        Unavailable: there is none.
    """
    try:
        places = [folder, folder / "log", *sorted(folder.glob("*/log")), *sorted(folder.glob("state/*/log"))]
        found = [place for place in dict.fromkeys(places) if _is_store(place)]
    except OSError as error:
        raise Unavailable(f"{folder}: cannot read it: {error.strerror}") from error
    if len(found) > 1:
        names = ", ".join(str(place) for place in found)
        raise ConfigError(f"{folder}: expected one store, got {len(found)} (name one of {names})")
    if not found:
        what = "no store in it" if folder.is_dir() else "no such folder"
        raise Unavailable(
            f"{folder}: {what} (give the folder log of a buffer's state, or the --out folder of skerry run)"
        )
    return found[0]


def _is_store(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return any(f"{lane}.cursor" in names or segment.listed(folder, lane) for lane in LANES)


def holder(folder: Path) -> int | None:
    """Process that has a store open; None where none is seen.

    Asked of the kernel's list of locks, because a lock that is only tried would get into the way of a
    buffer that starts at that moment. A process in another container is not seen.

    Source: proc(5), /proc/locks.
    """
    try:
        ours = (folder / "lock").stat()
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    device = os.major(ours.st_dev), os.minor(ours.st_dev)
    for pid, major, minor, inode in _LOCK.findall(locks):
        if int(inode) != ours.st_ino:
            continue
        # Some file systems (btrfs, overlay) show other device numbers to stat(2) than to this list.
        if (int(major, 16), int(minor, 16)) == device or _has_open(int(pid), ours):
            return int(pid)
    return None


def _has_open(pid: int, file: os.stat_result) -> bool:
    try:
        return any(os.path.samestat(path.stat(), file) for path in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


# What it holds


def look(folder: Path, keys: Sequence[bytes] = (), *, scan: bool = False) -> StoreView:
    """All that is known of a store without changing it.

    Args:
        folder: of the store.
        keys: that it may be encrypted with. Without them the counts are there all the same.
        scan: read every block, and so find all damage; otherwise what a buffer reads when it starts.

    Raises:
        Unavailable: it cannot be read.
        ConfigError: it is compressed, and what that takes is not installed.
    """
    seal = Lenient(keys)
    seen: set[int] = set()
    try:
        lanes = {lane: look_at(folder, lane, seal, scan=scan, flags=seen) for lane in LANES}
        sizes = _sizes(folder)
    except OSError as error:
        raise Unavailable(f"{folder}: cannot read it: {error.strerror}") from error
    return StoreView(
        folder,
        lanes,
        space=sum(sizes.values()),
        free=[size for name, size in sizes.items() if name.startswith("free-")],
        compressed=any(flags & COMPRESSED for flags in seen),
        encrypted=any(flags & ENCRYPTED for flags in seen),
        missing_keys=sorted(seal.missing),
    )


def _sizes(folder: Path) -> dict[str, int]:
    found = {}
    with os.scandir(folder) as files:
        for entry in files:
            try:
                found[entry.name] = entry.stat().st_size
            except FileNotFoundError:
                continue  # renamed in the meantime
    return found


def look_at(
    folder: Path, lane: Lane, seal: Seal, *, scan: bool = False, flags: set[int] | None = None
) -> LaneView:
    """One lane, at one moment.

    Args:
        folder: of the store.
        lane: which.
        seal: how blocks are read.
        scan: read every block.
        flags: of all blocks that were looked at; added to.

    Raises:
        OSError: it cannot be read.
        Unavailable: it changed at every look.
        ConfigError: `seal` does not have the key.
    """
    view: LaneView | None = None
    torn = 0
    for _ in range(_LOOKS):
        before = _state(folder, lane)
        try:
            view = _Look(folder, lane, seal, set() if flags is None else flags).take(scan=scan)
        except FileNotFoundError:
            continue  # renamed between listing and opening
        torn += view.torn
        if _state(folder, lane) == before and (not view.torn or torn == _TORN_LOOKS):
            if view.torn:
                view.troubles.append(f"{lane}.cursor or {lane}.gaps is damaged: some counts are reckoned")
            return view
    if view is None:
        raise Unavailable(f"{folder}: the lane {lane} changes faster than it can be read (try again)")
    view.steady = False
    return view


def _state(folder: Path, lane: Lane) -> tuple[object, ...]:
    """What changes when a segment or a gap record comes or goes."""
    try:
        stat = (folder / f"{lane}.gaps").stat()
        told = stat.st_ino, stat.st_mtime_ns
    except FileNotFoundError:
        told = 0, 0
    return told, tuple(path.name for path, _, _ in segment.listed(folder, lane))


class _Head(NamedTuple):
    """What stands at the beginning of a segment."""

    flags: int
    checkpoint: Checkpoint | None


class _Look:
    """One look at a lane. Whatever a buffer would conclude when it starts, concluded without writing."""

    def __init__(self, folder: Path, lane: Lane, seal: Seal, flags: set[int]) -> None:
        self._folder = folder
        self._seal = seal
        self._flags = flags
        self._view = LaneView(lane)
        self._marks: set[tuple[str, str]] = set()
        self._blind = False
        self._lost: list[Span] = []
        self._newest: Checkpoint | None = None

    def take(self, *, scan: bool) -> LaneView:
        """Look.

        Raises:
            OSError: a file cannot be read; FileNotFoundError when one has just gone.
        """
        view, disk = self._view, ReadOnlyDisk()
        cursor = Cursor(self._folder / f"{view.lane}.cursor", disk)
        position = cursor.load()
        cursor.close()
        gap_file = GapFile(self._folder / f"{view.lane}.gaps", disk)
        told = gap_file.load()
        view.torn = cursor.damaged or gap_file.damaged
        self._load(scan=scan, committed=position.committed if position else 0)
        self._place(position)
        self._account(told, position.committed if position else 0)
        if view.torn or position is None:
            _mend(view)
        view.marks = None if self._blind else len(self._marks)
        view.oldest = self._oldest()
        return view

    def _load(self, *, scan: bool, committed: int) -> None:
        view = self._view
        listed = segment.listed(self._folder, view.lane)
        heads = [self._head(path, number) for path, number, _ in listed]
        for n, (path, number, first) in enumerate(listed):
            self._take_up(heads[n].checkpoint)
            if view.segments and first > view.segments[-1].end:
                self._lost.append((view.segments[-1].end, first - 1))
            after = heads[n + 1].checkpoint if n + 1 < len(listed) else None
            before = after.before if after is not None else None
            known = (
                before if before is not None and (before.number, before.first) == (number, first) else None
            )
            stop = listed[n + 1][2] if n + 1 < len(listed) else None
            if known is not None and not scan:
                view.segments.append(segment.of_summary(path, known))
            elif stop is not None and self._blind and not scan:
                space = path.stat().st_size
                view.segments.append(Segment(path, number, first, stop, space, space))
            else:
                size = None if known is None else known.size
                view.segments.append(self._read(listed[n], stop, size, committed))

    def _head(self, path: Path, number: int) -> _Head:
        try:
            with path.open("rb") as file:
                header = header_of(file.read(HEADER_SIZE), number)
                if header is None or header.kind != CHECKPOINT:
                    return _Head(0, None)
                body = opened(self._seal, header, file.read(header.length))
        except FileNotFoundError:
            raise
        except OSError:
            return _Head(0, None)  # named when it is read as a whole
        self._flags.add(header.flags)
        if body == b"":
            self._blind = True
        try:
            return _Head(header.flags, checkpoint_of(body) if body else None)
        except ValueError:
            return _Head(header.flags, None)

    def _take_up(self, found: Checkpoint | None) -> None:
        if found is not None:
            self._newest = found
            self._view.stated = found.stated
            self._marks.update((m.producer, m.epoch) for m in found.marks if m.producer != OWN)

    def _read(
        self, entry: tuple[Path, int, int], stop: int | None, size: int | None, committed: int
    ) -> Segment:
        """A segment that nothing else describes, or that is to be read."""
        path, number, first = entry
        last = size is None
        stated = 0

        def visit(block: Block) -> None:
            nonlocal stated
            self._flags.add(block.header.flags)
            if block.header.kind != RECORDS:
                return
            if not block.body:
                self._blind = True
                return
            for run in preface_of(block.body).runs:
                if run.producer == OWN:
                    stated += run.count
                else:
                    self._marks.add((run.producer, run.epoch))

        try:
            found = segment.inspect(
                path, number, first, seal=self._seal, stop=stop, visit=visit, size=size, committed=committed
            )
        except FileNotFoundError:
            raise
        except OSError as error:
            self._view.troubles.append(f"{path.name}: cannot be read: {error.strerror}")
            end = stop if stop is not None else max(committed + 1, first)
            return Segment(path, number, first, end, 0, 0)
        if last:  # the next checkpoint counts those of a closed segment
            self._view.stated += stated
        self._lost += found.holes
        self._view.damage += [Spot(path.name, d.at, d.end) for d in _seen(found.damage)]
        if stop is None and committed >= found.segment.end:  # what should be at its end is not
            self._view.damage.append(Spot(path.name, found.sound, found.segment.space))
        return found.segment

    def _place(self, position: Position | None) -> None:
        """Where the far end is, from the cursor or, without it, from where the oldest segment begins."""
        view = self._view
        if position is not None:
            view.id, view.upto, view.delivered = position.store, position.upto, position.delivered
            view.evicted, view.closed = dict(position.evicted), position.clean
        elif view.segments:
            view.upto = view.segments[0].first - 1
            view.evicted = dict(self._newest.evicted) if self._newest else {}
            view.delivered = max(view.upto - sum(view.evicted.values()), 0)
            view.closed = False

    def _account(self, told: list[Hole], committed: int) -> None:
        """What is missing, by what the gap file says of it, else as lost by the disk."""
        view = self._view
        end = view.segments[-1].end if view.segments else view.upto + 1
        start = view.segments[0].first if view.segments else max(end - 1, committed) + 1
        if start > view.upto + 1:
            self._lost.append((view.upto + 1, start - 1))
        if committed >= end:
            self._lost.append((end, committed))
        view.last = max(end - 1, committed, view.upto)
        for hole in told:
            if not hole.told:  # what is still there was not given up
                hole.last = min(hole.last, start - 1)
            if hole.last < max(hole.first, view.upto + 1):
                continue
            if not hole.told and hole.first <= view.upto:
                hole.trim(view.upto + 1)
            view.holes.append(hole)
        for first, last in sorted(segment.clip(self._lost, view.upto + 1, view.last)):
            known = [(h.first, h.last) for h in view.holes]
            view.holes += [_corrupt(view, a, b) for a, b in _without(known, first, last)]
            view.holes.sort(key=lambda h: h.first)
        for hole in view.holes:
            view.evicted[hole.reason] = view.evicted.get(hole.reason, 0) + hole.count

    def _oldest(self) -> Stamp | None:
        view = self._view
        if self._blind or not view.waiting:
            return None
        found = (item for item in read(view, self._seal) if isinstance(item, Item))
        item = next(found, None)
        return None if item is None else item.at


def _mend(view: LaneView) -> None:
    """What became of some records is not known: count them as corrupt, or as not delivered."""
    lacking = view.last - view.delivered - view.waiting - sum(view.evicted.values())
    if lacking > 0:
        view.evicted[CORRUPT] = view.evicted.get(CORRUPT, 0) + lacking
    elif lacking < 0:
        view.delivered += lacking


def _seen(damage: Iterable[Damage]) -> Iterator[Damage]:
    return (d for d in damage if d.end > d.at)


def _corrupt(view: LaneView, first: int, last: int) -> Hole:
    return Hole(first=first, last=last, reason=CORRUPT, epoch=view.id, seq=first)


def _without(spans: Sequence[Span], first: int, last: int) -> Iterator[Span]:
    """What of `first` to `last` is in none of the spans."""
    for a, b in sorted(segment.clip(spans, first, last)):
        if first < a:
            yield first, a - 1
        first = max(first, b + 1)
    if first <= last:
        yield first, last


# Records


def read(view: LaneView, seal: Seal, first: int | None = None) -> Iterator[Item | Hole | Unread]:
    """Records of a lane in order, and what is missing in its place.

    Args:
        view: of the lane. What was added since is not read; what has gone since is named.
        seal: how blocks are read. One that is lenient passes over what it has no key for.
        first: offset to begin with; the oldest waiting record when None.

    Raises:
        ConfigError: `seal` does not have the key.
    """
    at = view.upto + 1 if first is None else first
    holes = [h for h in view.holes if h.last >= at]
    for item in _found(view, seal, at):
        while holes and holes[0].first <= item.offset:
            hole = holes.pop(0)
            yield from _missing(view, at, hole.first - 1)
            yield hole
            at = max(at, hole.last + 1)
        if item.offset < at:
            continue
        yield from _missing(view, at, item.offset - 1)
        yield item
        at = item.offset + 1
    for hole in holes:
        yield from _missing(view, at, hole.first - 1)
        yield hole
        at = max(at, hole.last + 1)
    yield from _missing(view, at, view.last)


def _found(view: LaneView, seal: Seal, first: int) -> Iterator[Item]:
    """Every record from `first` on that can be read, in order."""
    at = first
    for part in view.segments:
        if part.end <= at:
            continue
        try:
            for block in _blocks(part, at, seal):
                header = block.header
                try:
                    payloads, stamp = payloads_of(block), preface_of(block.body).at
                except ValueError:
                    continue
                for n, payload in enumerate(payloads, header.first):
                    if at <= n < part.end:
                        yield Item(n, payload, stamp, bool(header.flags & TIMES))
                        at = n + 1
        except FileNotFoundError:
            continue  # what was in it is told as unread
        except OSError as error:
            view.troubles.append(f"{part.path.name}: cannot be read: {error.strerror}")


def _blocks(part: Segment, offset: int, seal: Seal) -> Iterator[Block]:
    """The sound blocks of records of a segment, from the one with `offset` on."""
    at = part.seek(offset)
    with part.path.open("rb") as file:
        while at < part.size:
            file.seek(at)
            header = header_of(file.read(HEADER_SIZE), part.number)
            if header is None:
                at = next_header(file, at + 1, part.size, part.number)
                continue
            if header.kind == RECORDS and header.stop > offset:
                body = opened(seal, header, file.read(header.length))
                if body is not None:
                    yield Block(at, header, body)
            at += HEADER_SIZE + header.length


def _missing(view: LaneView, first: int, last: int) -> Iterator[Hole | Unread]:
    """What was expected, and not found."""
    part = None
    while first <= last:
        part = next((p for p in view.segments if p.first <= first < p.end), None)
        stop = last if part is None else min(last, part.end - 1)
        if part is not None and not part.path.exists():
            yield Unread(first, stop, "the buffer has freed the file meanwhile")
        elif first <= view.upto:
            stop = min(stop, view.upto)
            yield Unread(first, stop, "delivered, and no longer on the disk")
        else:
            yield _corrupt(view, first, stop)
        first = stop + 1


# Times


class Clocks(msgspec.Struct, frozen=True):
    """The reader's own clocks, once."""

    boot: str
    mono_ns: int
    wall_ns: int


def committed_ns(at: Stamp, anchors: Anchors) -> int:
    """POSIX time of a commit in nanoseconds, as well as it is known."""
    known = None if at.synchronised else anchors.wall_ns(at.boot, at.mono_ns)
    return at.wall_ns if known is None else known


def age_s(at: Stamp, anchors: Anchors, now: Clocks) -> float:
    """Seconds since a commit: of this boot by the monotonic clock, otherwise by the wall clock."""
    if at.boot == now.boot:
        return max(now.mono_ns - at.mono_ns, 0) / 1e9
    return max(now.wall_ns - committed_ns(at, anchors), 0) / 1e9
