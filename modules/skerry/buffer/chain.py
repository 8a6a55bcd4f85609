"""The records of one lane on disk: what `append` returned for is there until the far end has it.

The files of a chain, in the store's folder:

    LANE.cursor                 how far the far end has confirmed (`skerry.buffer.cursor`)
    LANE.gaps                   what was given up at the limit and not told yet (`skerry.buffer.gaps`)
    LANE-NUMBER-FIRST.segment   records from offset FIRST on (`skerry.buffer.blocks`)

Offsets are dense from 1 for the life of the chain. `last` is the offset of the last record; each record is
delivered, waiting or evicted, and these are counted on their own, so their sum can be checked. A hole is
read in its place, as a `Hole`, so that the far end can be told of it there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import structlog
from msgspec.structs import replace

from skerry.buffer import blocks, gaps, segment
from skerry.buffer.blocks import Block, Checkpoint, Mark, Preface, Run, Stamp
from skerry.buffer.cursor import Cursor, Position
from skerry.buffer.disk import Disk
from skerry.buffer.gaps import CAPACITY, CORRUPT, QUARANTINED, GapFile, Hole
from skerry.buffer.pool import FULL, Pool
from skerry.buffer.seal import Seal
from skerry.buffer.segment import Contents, Segment, Span
from skerry.errors import Unavailable
from skerry.messages import Lane

REMEMBERED = 1000
"""Epochs whose watermark is kept. One that was forgotten may bring repeats, never a loss."""
OWN = ""
"""Producer of the records that the buffer itself adds; their epoch is the chain's identity, their seq
the offset."""
_BLOCK_BYTES = 64 * 1024
"""Records of one commit are split into blocks of about this size: what one flipped bit can cost."""

log = structlog.get_logger()
Key = tuple[str, str]
"""Producer and epoch."""


class StoreFull(Unavailable):
    """There is no room: nothing of this append is kept, all that was accepted before is."""


class StoreFault(Unavailable):
    """The disk failed: nothing of this append is kept, all that was accepted before is."""


class Record(NamedTuple):
    """What a producer wants kept; `payload` is kept as it is."""

    producer: str
    epoch: str
    seq: int
    payload: bytes


class Batch(NamedTuple):
    """Records `first`, `first + 1`, ... of a chain."""

    first: int
    payloads: list[bytes]
    times: bool = False
    """Some were committed while the clock could not be believed."""

    @property
    def last(self) -> int:
        """Offset of the last one."""
        return self.first + len(self.payloads) - 1


class _Said(NamedTuple):
    """Records, as a block has them."""

    runs: list[Run]
    payloads: Sequence[bytes]
    lengths: list[int]
    size: int
    """Bytes of the payloads."""


class Home(Protocol):
    """What a chain needs of the store that it belongs to."""

    folder: Path
    disk: Disk
    pool: Pool
    seal: Seal
    stamp: Callable[[], Stamp]
    draw: Callable[[], str]

    def number(self) -> int:
        """A number for a segment, which no block in any file of the store has."""

    def make_room(self, lane: Lane, space: int) -> None:
        """Have `space` bytes more within the limits, by giving up older records where the lanes allow it.

        Raises:
            StoreFull: there is none.
            OSError: the disk failed.
        """


class _Read(NamedTuple):
    """The block read last, and where the next one begins."""

    number: int
    first: int
    payloads: list[bytes]
    times: bool
    next_at: int


class Chain:
    """One lane of a store, which opens it. Not thread-safe.

    Attributes:
        lane: which one.
        id: identity of the chain. Drawn when it is made, and again when it was not closed: offsets
            that nobody was told of may be given out anew, and no receipt for an old one may count.
        last: offset of the last record that is durable; 0 when there never was one.
        upto: the far end has, or nobody has any more, every record up to here.
        delivered: records that the far end confirmed, ever.
        waiting: records on disk that it has not confirmed.
        stated: records that the buffer itself added, ever.
    """

    def __init__(self, home: Home, lane: Lane) -> None:
        self.lane: Lane = lane
        self.id = ""
        self.last = 0
        self.upto = 0
        self.delivered = 0
        self.waiting = 0
        self.stated = 0
        self._home = home
        self._disk = home.disk
        self._cursor = Cursor(home.folder / f"{lane}.cursor", home.disk)
        self._gap_file = GapFile(home.folder / f"{lane}.gaps", home.disk)
        self._marks: OrderedDict[Key, int] = OrderedDict()
        self._segments: list[Segment] = []  # oldest first; the last one is written to
        self._file = -1  # of the last segment
        self._suspect = False  # the last segment's file must not be written to any more
        self._holes: list[Hole] = []  # beyond `upto`, ascending
        self._evicted: dict[str, int] = {}  # without `_holes`
        self._reader = -1, -1  # (number of a segment, its file)
        self._read: _Read | None = None
        self._recovered = False

    # What it holds

    @property
    def accepted(self) -> int:
        """Records ever taken."""
        return self.last

    @property
    def evicted(self) -> dict[str, int]:
        """Records lost, ever, by reason."""
        counts = dict(self._evicted)
        for hole in self._holes:
            counts[hole.reason] = counts.get(hole.reason, 0) + hole.count
        return counts

    @property
    def space(self) -> int:
        """Bytes of its segments on disk."""
        return sum(s.space for s in self._segments)

    @property
    def evictable(self) -> bool:
        """Whether there is a segment that can be given up."""
        return len(self._segments) > 1

    @property
    def since_ns(self) -> int:
        """Wall time by which the oldest waiting record was accepted; 0 when nothing waits.

        That of its segment: exact enough to tell a backlog of minutes.
        """
        if self.upto >= self.last or not self._segments:
            return 0
        return self._segments[self._position(self.upto + 1)].from_ns

    def watermark(self, producer: str, epoch: str) -> int | None:
        """Every record of `(producer, epoch)` up to here is accepted; None for an epoch never heard of."""
        return self._marks.get((producer, epoch))

    def watermarks(self) -> dict[Key, int]:
        """All of them, the one that moved last at the end; without the buffer's own."""
        return {key: seq for key, seq in self._marks.items() if key[0] != OWN}

    def recount(self) -> int:
        """Records beyond `upto` that can be read now: what `waiting` should say, from the files alone."""
        count = 0
        for part in self._segments:
            if part.end - 1 > self.upto:
                found = self._look(part, lambda _: None)
                gone = segment.clip(found.holes, self.upto + 1, part.end - 1)
                count += part.end - max(part.first, self.upto + 1) - segment.length(gone)
        return count

    # Append

    def append(self, records: Sequence[Record], *, times: bool = False) -> int:
        """Keep records: one write, one fdatasync. They are on disk when this returns.

        Args:
            records: per (producer, epoch) ascending in seq and above its watermark.
            times: their times want correction, whatever the clock says now.

        Returns:
            The offset of the last one.

        Raises:
            StoreFull: there is no room. Nothing of `records` is kept; try again later.
            StoreFault: the disk failed. Nothing of `records` is kept; try again later.
        """
        if not records:
            return self.last
        said = _said(records, self._marks)
        runs, size = said.runs, said.size
        stamp = self._home.stamp()
        try:
            active = self._prepare(size + 4 * len(records) + 256 * (len(runs) + 1))
            framed = self._framed(active.number, records, said, stamp, times=times)
            self._commit(active, framed, len(records))
        except OSError as error:
            raise fault(self._home.folder, error) from error
        active.add(stamp, runs, size)
        for run in runs:
            _raise(self._marks, (run.producer, run.epoch), run.seq + run.count - 1)
            if run.producer == OWN:
                self.stated += run.count
        while len(self._marks) > REMEMBERED:
            self._marks.popitem(last=False)
        self.waiting += len(records)
        return self.last

    def _prepare(self, needed: int) -> Segment:
        """A sound last segment with `needed` bytes free in it, with the store within its limits."""
        if self._suspect:
            self._heal(needed)
        fresh = max(self._home.pool.size, needed + 512 + 96 * len(self._marks))  # with its checkpoint
        if not self._segments:
            self._home.make_room(self.lane, fresh)
            self._use(*self._begin(self.last + 1))
        active = self._segments[-1]
        if active.size + needed > active.space:
            if active.empty:
                self._home.make_room(self.lane, active.size + needed - active.space)
                return active
            delivered = (
                active.space if active.end - 1 <= self.upto else 0
            )  # it goes as soon as there is another
            self._home.make_room(self.lane, max(fresh - delivered, 0))
            self._use(*self._begin(self.last + 1))
            self._sweep()
        return self._segments[-1]

    def _framed(
        self, number: int, records: Sequence[Record], said: _Said, stamp: Stamp, *, times: bool
    ) -> list[tuple[int, bytes]]:
        """Blocks of about `_BLOCK_BYTES`, each with the offset of its first record."""
        flags = blocks.TIMES if times or not stamp.synchronised else 0
        framed: list[tuple[int, bytes]] = []
        start, count = 0, len(records)
        while start < count:
            stop = count if said.size <= _BLOCK_BYTES else _stop(said.lengths, start)
            part = said if stop - start == count else _said(records[start:stop], {})
            body = blocks.records_body(Preface(stamp, part.runs), part.payloads, part.lengths)
            first = self.last + 1 + start
            block = blocks.frame(
                self._home.seal, blocks.RECORDS, segment=number, first=first, count=stop - start, body=body,
                flags=flags, part=len(framed),
            )  # fmt: skip
            framed.append((first, block))
            start = stop
        return framed

    def _commit(self, active: Segment, framed: list[tuple[int, bytes]], records: int) -> None:
        """Write blocks behind the last sound one, and make them durable.

        Args:
            active: the last segment.
            framed: offset of the first record, and the block.
            records: in all of them.
        """
        content = framed[0][1] if len(framed) == 1 else b"".join(block for _, block in framed)
        try:
            self._disk.write(self._file, content, active.size)
        except OSError:
            self._take_back(framed)
            raise
        try:
            self._disk.sync(self._file)
        except OSError:
            # The kernel may have marked the pages clean without writing them: a second fdatasync
            # would succeed and mean nothing. The file is given up at the next append, and wiped now: a
            # process started in between must not find the block in the page cache and believe in it.
            self._take_back(framed)
            self._suspect = True
            raise
        at = active.size
        for offset, block in framed:
            active.note(offset, at)
            at += len(block)
        active.size = at
        active.space = max(active.space, at)
        active.end += records
        self.last = active.end - 1

    def _take_back(self, framed: list[tuple[int, bytes]]) -> None:
        """Wipe the headers that a failed commit may have left behind the last sound block."""
        at = self._segments[-1].size
        try:
            for _, block in framed:
                self._disk.write(self._file, bytes(blocks.HEADER_SIZE), at)
                at += len(block)
        except OSError:
            self._suspect = True

    # Segments

    def _begin(self, first: int, kept: Sequence[Block] = ()) -> tuple[Segment, int]:
        """A new, durable segment that holds a checkpoint, and its file. It is not in use yet.

        Args:
            first: offset at which it begins, up to which the last one counts from now on.
            kept: blocks of the last one, to be in the new one from the beginning.
        """
        number, seal = self._home.number(), self._home.seal
        marks = [Mark(producer, epoch, seq) for (producer, epoch), seq in self._marks.items()]
        before = replace(self._segments[-1].summary(), end=first) if self._segments else None
        content = Checkpoint(self._home.stamp(), marks, self.delivered, self._evicted, self.stated, before)
        written = [blocks.checkpoint(seal, number, first, content)]
        path = segment.path_of(self._home.folder, self.lane, number, first)
        new = Segment(path, number, first, first, len(written[0]), self._home.pool.size)
        for block in kept:
            h, preface = block.header, blocks.preface_of(block.body)
            written.append(blocks.frame(
                seal, h.kind, segment=number, first=h.first, count=h.records, body=block.body,
                flags=h.flags & blocks.TIMES,
            ))  # fmt: skip
            new.note(h.first, new.size)
            new.add(preface.at, preface.runs, len(block.body))
            new.size += len(written[-1])
            new.end = h.stop
        file = self._home.pool.begin(path, b"".join(written))
        new.space = max(new.space, new.size)
        return new, file

    def _use(self, new: Segment, file: int) -> None:
        """Write to `new` from now on."""
        if self._file >= 0:
            self._disk.close(self._file)
        self._segments.append(new)
        self._file = file
        self._suspect = False

    def _heal(self, needed: int) -> None:
        """Write what the last segment still owes to a new one, and give its file up.

        The old one stays until the new one is durable. At the next start a segment ends where the
        next one begins, so what is in both is read from the new one.
        """
        old = self._segments[-1]
        old.worn = True
        kept = [b for b in self._sound_blocks(old) if b.header.stop - 1 > self.upto]
        first = kept[0].header.first if kept else self.last + 1
        self._lose_rest(max(old.first, self.upto + 1), first - 1)
        size = sum(len(b.body) + 64 for b in kept)
        self._home.make_room(self.lane, max(self._home.pool.size, size + needed))
        new, file = self._begin(first, kept)
        new.end = self.last + 1  # what is missing at its end is a hole by now, or will be found to be one
        log.warning(
            "store.segment_abandoned", segment=old.path.name, rewritten=sum(b.header.records for b in kept)
        )
        old.end = first
        self._read = None
        self._use(new, file)
        self._sweep()

    def _sound_blocks(self, part: Segment) -> list[Block]:
        found: list[Block] = []
        segment.inspect(
            part.path, part.number, part.first, seal=self._home.seal, stop=part.end, size=part.size,
            visit=lambda b: found.append(b) if b.header.kind == blocks.RECORDS else None,
        )  # fmt: skip
        return found

    def _sweep(self) -> None:
        """Give back the segments that nobody needs any more. The cursor is durable before they go."""
        if len(self._segments) < 2 or self._segments[0].end - 1 > self.upto:
            return
        self._save(durable=True)
        while len(self._segments) > 1 and self._segments[0].end - 1 <= self.upto:
            self._drop(self._segments[0])
        self._disk.sync_folder(self._home.folder)

    def _drop(self, part: Segment) -> None:
        """Let go of the oldest segment; durable once the folder is."""
        number, file = self._reader
        if number == part.number:
            self._disk.close(file)
            self._reader = -1, -1
        if self._read is not None and self._read.number == part.number:
            self._read = None
        self._home.pool.give(part.path, fit=not part.worn and part.space == self._home.pool.size)
        self._segments.remove(part)

    def evict(self) -> None:
        """Give up the oldest segment; what it still owed becomes a hole, durably, before it goes.

        Raises:
            OSError: the disk failed, or is too full to keep the gap record. Nothing is given up.
        """
        part = self._segments[0]
        assert self.evictable, "the last segment is never given up"
        if part.end - 1 > self.upto:
            self._give_up(part)
        else:
            self._save(durable=True)
        self._drop(part)
        self._disk.sync_folder(self._home.folder)

    def _give_up(self, part: Segment) -> None:
        """Note as lost what of a segment was not delivered."""
        first, last = max(part.first, self.upto + 1), part.end - 1
        told = [h for h in self._holes if h.told and h.first <= last]
        absorbed = [h for h in self._holes if not h.told and first <= h.first <= last]
        runs, size = gaps.of_blocks(self._sound_blocks(part), first)
        fresh = [
            Hole(
                first=a, last=b, reason=CAPACITY, epoch=self.id, seq=a, names=gaps.names_of(runs),
                runs=runs[: gaps.MOST_RUNS] if a == first else [],
                bytes=size, from_ns=part.from_ns, to_ns=part.to_ns,
            )
            for a, b in _without([(h.first, h.last) for h in told], first, last)
        ]  # fmt: skip
        rest = [h for h in self._holes if h not in absorbed]
        before = rest[-1] if rest and rest[-1].last + 1 == first else None
        holes = sorted([*rest, *fresh], key=lambda h: h.first)
        if before is not None and not before.told and before.reason == CAPACITY and len(fresh) == 1:
            grown = Hole(**{f: getattr(before, f) for f in Hole.__struct_fields__})
            grown.extend(fresh[0])
            holes = sorted([*(h for h in rest if h is not before), grown], key=lambda h: h.first)
        self._keep(holes)
        lost = sum(h.count for h in fresh) - sum(h.count for h in absorbed)
        self._holes = holes
        self.waiting -= lost
        log.warning("store.evicted", lane=self.lane, records=lost, segment=part.path.name)

    # Read

    def read(self, first: int, max_records: int, max_bytes: int) -> Batch | Hole | None:
        """What comes next, in order, at or after the offset `first` and beyond `upto`.

        Args:
            first: offset, from 1.
            max_records: 1 or more.
            max_bytes: of payloads; one record is returned whatever its size.

        Returns:
            Records without a gap between them, or what is missing in their place, or None when
            there is nothing. A hole does not change any more once it was returned.

        Raises:
            StoreFault: the disk failed.
        """
        try:
            return self._next(max(first, self.upto + 1), max_records, max_bytes)
        except OSError as error:
            raise fault(self._home.folder, error) from error

    def _next(self, at: int, max_records: int, max_bytes: int) -> Batch | Hole | None:
        payloads: list[bytes] = []
        size, start, times = 0, at, False
        while at <= self.last:
            hole = next((h for h in self._holes if h.last >= at), None)
            if hole is not None and hole.first <= at:
                if payloads:
                    break
                self._tell(hole)
                return hole
            found = self._block_with(at)
            if found is None:  # it has rotted since it was last read
                continue
            times = times or found.times
            stop = found.first + len(found.payloads) if hole is None else hole.first
            for payload in found.payloads[at - found.first : stop - found.first]:
                size += len(payload)
                if payloads and (len(payloads) == max_records or size > max_bytes):
                    return Batch(start, payloads, times)
                payloads.append(payload)
                at += 1
        return Batch(start, payloads, times) if payloads else None

    def _tell(self, hole: Hole) -> None:
        """A hole is handed out: it is what it is from now on, after a restart too."""
        if hole.told:
            return
        hole.told = True
        self._keep(self._holes)

    def _keep(self, holes: Sequence[Hole]) -> None:
        """Make the holes durable that nothing on disk would show, or not as they were told.

        The file no longer has those that were passed, so the cursor must be durable before it.
        """
        self._save(durable=True)
        self._gap_file.save([h for h in holes if h.told or h.reason == CAPACITY])

    def _position(self, offset: int) -> int:
        return max(bisect_right(self._segments, offset, key=lambda s: s.first) - 1, 0)

    def _block_with(self, offset: int) -> _Read | None:
        """The block that holds a record; None, and a hole noted, when it cannot be read."""
        last = self._read
        if last is not None and last.first <= offset < last.first + len(last.payloads):
            return last
        part = self._segments[self._position(offset)]
        at = part.seek(offset)
        if last is not None and last.number == part.number and offset == last.first + len(last.payloads):
            at = last.next_at
        block = self._walk(part, at, offset)
        payloads = _payloads(block)
        if block is None or payloads is None:
            self._examine(part, offset)
            return None
        times = bool(block.header.flags & blocks.TIMES)
        self._read = _Read(part.number, block.header.first, payloads, times, block.end)
        return self._read

    def _walk(self, part: Segment, at: int, offset: int) -> Block | None:
        """The sound block with the record `offset`, reading forward from byte `at`."""
        file = self._open_for_reading(part)
        while at < part.size:
            header = blocks.header_of(self._disk.read(file, blocks.HEADER_SIZE, at), part.number)
            if header is None:
                return self._search(part, offset)
            if header.kind == blocks.RECORDS and header.first <= offset < header.stop:
                raw = self._disk.read(file, header.length, at + blocks.HEADER_SIZE)
                body = blocks.opened(self._home.seal, header, raw)
                return None if body is None else Block(at, header, body)
            at += blocks.HEADER_SIZE + header.length
        return None

    def _search(self, part: Segment, offset: int) -> Block | None:
        """The slow way: look at the whole segment, past whatever is damaged."""
        for block in segment.blocks(part.path, part.number, part.size, self._home.seal):
            header = block.header
            if header.kind == blocks.RECORDS and header.first <= offset < header.stop:
                return block
        return None

    def _open_for_reading(self, part: Segment) -> int:
        number, file = self._reader
        if number != part.number:
            if file >= 0:
                self._disk.close(file)
            self._reader = -1, -1
            self._reader = part.number, self._disk.open(part.path)
        return self._reader[1]

    def _examine(self, part: Segment, offset: int) -> None:
        """Find out what of a segment can no longer be read, and count it as lost."""
        found = self._look(part, lambda _: None)
        spans = segment.clip([*found.holes, (offset, offset)], self.upto + 1, self.last)
        for first, last in spans:
            self._lose_rest(first, last)
        self._name(part, found)
        log.error("store.corrupt", segment=part.path.name, damage=_spots(found))

    def _name(self, part: Segment, found: Contents) -> None:
        """Say of the holes in a segment which events may have been in them."""
        nameless = [h for h in self._holes if h.reason == CORRUPT and not h.names and not h.told]
        inside = [h for h in nameless if part.first <= h.first and h.last < part.end]
        if not inside:
            return
        sound, before = self._sound_blocks(part), {}
        for block in segment.blocks(part.path, part.number, part.size, self._home.seal):
            if block.header.kind == blocks.CHECKPOINT:
                said = blocks.checkpoint_of(block.body)
                before = {(m.producer, m.epoch): m.seq for m in said.marks}
            break
        after: dict[Key, int] = dict(self._marks) if part is self._segments[-1] else {}
        position = self._segments.index(part)
        if position + 1 < len(self._segments):
            said_next = self._checkpoint(self._segments[position + 1])
            after = {(m.producer, m.epoch): m.seq for m in said_next.marks} if said_next else {}
        names = gaps.missing([(h.first, h.last) for h in inside], sound, before, after)
        damaged = sum(d.end - d.at for d in found.damage)
        for hole in inside:
            hole.names = names[hole.first, hole.last]
            hole.bytes = damaged if len(inside) == 1 else 0
            hole.from_ns, hole.to_ns = part.from_ns, part.to_ns

    def _checkpoint(self, part: Segment) -> Checkpoint | None:
        """What stands at the beginning of a segment, when it can be read."""
        return _checkpoint_in(part.path, part.number, self._home.seal)

    def skip(self, offset: int, reason: str, detail: str = "") -> None:
        """Give up one waiting record that cannot be used, and count it under `reason`."""
        if self.upto < offset <= self.last and not any(h.first <= offset <= h.last for h in self._holes):
            self._lose(offset, offset, reason, detail)

    def _lose_rest(self, first: int, last: int) -> None:
        """What of these records is not known to be gone yet, has rotted."""
        for a, b in _without([(h.first, h.last) for h in self._holes], first, last):
            self._lose(a, b, CORRUPT)

    def _lose(self, first: int, last: int, reason: str, detail: str = "") -> None:
        """Waiting records that are gone."""
        hole = Hole(first=first, last=last, reason=reason, epoch=self.id, seq=first, detail=detail)
        self._holes = sorted([*self._holes, hole], key=lambda h: h.first)
        self.waiting -= hole.count

    # Receipts

    def receipt(self, upto: int, refused: Collection[int] = ()) -> int:
        """The far end has every record up to and including `upto`, or was told that it is gone.

        Args:
            upto: offset.
            refused: of those, what the far end will never take.

        Returns:
            How many were delivered; 0 when this was known already.

        Raises:
            ValueError: there is no such record yet.
            StoreFault: the disk failed; the receipt counts, and is repeated at most after a power cut.
        """
        if upto > self.last:
            raise ValueError(f"receipt: expected at most {self.last}, got {upto}")
        if upto <= self.upto:
            return 0
        lost = [(h.first, h.last) for h in self._holes]
        inside = segment.length(segment.clip(lost, self.upto + 1, upto))
        refusals = sum(self.upto < n <= upto and not any(a <= n <= b for a, b in lost) for n in set(refused))
        told = [(h.first, h.last) for h in self._holes if h.told]
        count = upto - self.upto - refusals
        count -= segment.length(segment.clip(told, self.upto + 1, upto))
        self._pass_holes(upto)
        self.delivered += count
        self.waiting -= upto - self.upto - inside
        if refusals:
            self._evicted[QUARANTINED] = self._evicted.get(QUARANTINED, 0) + refusals
        self.upto = upto
        try:
            self._save()
            self._sweep()
        except OSError as error:
            raise fault(self._home.folder, error) from error
        return count

    def _pass_holes(self, upto: int) -> None:
        """Leave behind the holes up to here.

        What was under way when it was given up, and arrived before anybody was told, was delivered.
        """
        kept = []
        for hole in self._holes:
            if hole.last > upto:
                if hole.first <= upto and not hole.told:
                    hole.trim(upto + 1)
                kept.append(hole)
            elif hole.told:
                self._evicted[hole.reason] = self._evicted.get(hole.reason, 0) + hole.count
        self._holes = kept

    def _save(self, durable: bool = False, clean: bool = False) -> None:
        position = Position(
            store=self.id,
            upto=self.upto,
            delivered=self.delivered,
            committed=self.last,
            evicted=self._evicted,
            clean=clean,
        )
        self._cursor.save(position, durable)

    # Open and close

    def close(self) -> None:
        """Make the cursor durable and let go of all files."""
        try:
            if self._recovered:
                self._save(durable=True, clean=not self._suspect)
        except OSError as error:
            log.warning("store.cursor_not_saved", lane=self.lane, error=str(error))
        finally:
            self._cursor.close()
            for file in (self._file, self._reader[1]):
                if file >= 0:
                    self._disk.close(file)
            self._file, self._reader = -1, (-1, -1)

    def recover(self, committed: int) -> None:
        """Find out what is there.

        Args:
            committed: a last offset known from elsewhere; what is missing up to it counts as lost.

        Raises:
            OSError: the disk failed.
            ConfigError: it is encrypted, and the key was not given.
        """
        listed = segment.listed(self._home.folder, self.lane)
        position = self._cursor.load()
        if position is None and listed:
            log.error("store.cursor_lost", lane=self.lane)
        clean = position is not None and position.clean
        marks: dict[Key, int] = {}
        holes: list[Span] = []
        committed = max(committed, position.committed if position else 0)
        newest = self._load_segments(listed, marks, holes, committed)
        self._marks = OrderedDict(list(marks.items())[-REMEMBERED:])
        self._take_position(position, newest, clean=clean)
        self._resume(holes, max(committed, self.upto), clean=clean)

    def _load_segments(
        self, listed: list[tuple[Path, int, int]], marks: dict[Key, int], holes: list[Span], committed: int
    ) -> Checkpoint | None:
        """Take up every segment: by its summary, or by reading it. Returns the newest checkpoint."""
        said = [_checkpoint_in(path, number, self._home.seal) for path, number, _ in listed]
        newest: Checkpoint | None = None
        for n, (path, number, first) in enumerate(listed):
            here = said[n]
            if here is not None:
                newest = here
                self.stated = here.stated
                for mark in here.marks:
                    _raise(marks, (mark.producer, mark.epoch), mark.seq)
            if self._segments and first > self._segments[-1].end:
                holes.append((self._segments[-1].end, first - 1))
            after = said[n + 1] if n + 1 < len(listed) else None
            summary = after.before if after is not None else None
            if summary is not None and (summary.number, summary.first) == (number, first):
                self._segments.append(segment.of_summary(path, summary))
                continue
            stop = listed[n + 1][2] if n + 1 < len(listed) else None
            found, prefaces = self._read_through(path, number, first, stop, committed)
            for preface in prefaces:
                for run in preface.runs:
                    _raise(marks, (run.producer, run.epoch), run.seq + run.count - 1)
                    self.stated += run.count if run.producer == OWN else 0
            holes += found.holes
            self._segments.append(found.segment)
        return newest

    def _read_through(
        self, path: Path, number: int, first: int, stop: int | None, committed: int
    ) -> tuple[Contents, list[Preface]]:
        """What is in a segment that has no summary, or is the last one."""
        said: list[tuple[Preface, int]] = []

        def visit(block: Block) -> None:
            if block.header.kind == blocks.RECORDS:
                said.append((blocks.preface_of(block.body), len(block.body)))

        found = segment.inspect(
            path, number, first, seal=self._home.seal, stop=stop, visit=visit, committed=committed
        )
        for preface, size in said:
            found.segment.add(preface.at, preface.runs, size)
        if found.damage:
            log.error("store.corrupt", segment=path.name, damage=_spots(found))
        return found, [preface for preface, _ in said]

    def _take_position(self, position: Position | None, newest: Checkpoint | None, *, clean: bool) -> None:
        """Where the far end is, from the cursor or, without it, from where the oldest segment begins."""
        if position is not None:
            self.id, self.upto, self.delivered = position.store, position.upto, position.delivered
            self._evicted = dict(position.evicted)
        elif self._segments:
            self.upto = self._segments[0].first - 1
            self._evicted = dict(newest.evicted) if newest else {}
            self.delivered = max(self.upto - sum(self._evicted.values()), 0)
        if not clean:
            self.id = self._home.draw()

    def _resume(self, holes: list[Span], committed: int, *, clean: bool) -> None:
        """Account for what is missing and make the last segment fit to be written to."""
        end = self._segments[-1].end if self._segments else self.upto + 1
        if self._segments and self._segments[0].first > self.upto + 1:
            holes.append((self.upto + 1, self._segments[0].first - 1))
        if committed >= end:
            holes.append((end, committed))
        self.last = max(end - 1, committed)
        self.waiting = self.last - self.upto
        start = self._segments[0].first if self._segments else self.last + 1
        for hole in self._gap_file.load():
            if not hole.told:  # what is still there was not given up after all
                hole.last = min(hole.last, start - 1)
            if hole.last < max(hole.first, self.upto + 1):
                continue
            if not hole.told and hole.first <= self.upto:
                hole.trim(self.upto + 1)
            self._holes.append(hole)
            self.waiting -= hole.last - max(hole.first, self.upto + 1) + 1
        before = len(self._holes)
        for first, last in segment.clip(holes, self.upto + 1, self.last):
            self._lose_rest(first, last)
        if len(self._holes) > before:
            lost = [(h.first, h.last) for h in self._holes if h.reason == CORRUPT]
            log.error("store.records_lost", lane=self.lane, records=segment.length(lost), spans=lost[:20])
            for part in list(self._segments):
                if any(part.first <= a < part.end for a, _ in lost):
                    self._name(part, self._look(part, lambda _: None))
        self._take_up(clean=clean)
        self._save(durable=True)
        self._recovered = True
        self._sweep()

    def _take_up(self, *, clean: bool) -> None:
        """Continue the last segment behind its last sound block."""
        if not self._segments:
            return
        active = self._segments[-1]
        self._file = self._disk.open(active.path)
        if not clean:
            stray = list(segment.headers_behind(active.path, active.number, active.size, active.space))
            for at in stray:
                self._disk.write(self._file, bytes(blocks.HEADER_SIZE), at)
            if stray:
                log.warning("store.tail_wiped", segment=active.path.name, blocks=len(stray))
        # A process killed between write and fdatasync left sound blocks that are only in the page cache.
        self._disk.sync(self._file)
        self._disk.sync_folder(self._home.folder)
        if active.end == self.last + 1 and active.size > 0:
            return
        try:
            self._use(*self._begin(self.last + 1))
        except OSError as error:  # the next append tries again
            log.warning("store.no_segment", lane=self.lane, error=error.strerror)
            self._suspect = True

    def _look(self, part: Segment, visit: Callable[[Block], None]) -> Contents:
        return segment.inspect(
            part.path,
            part.number,
            part.first,
            seal=self._home.seal,
            stop=part.end,
            visit=visit,
            size=part.size,
        )


def fault(folder: Path, error: OSError) -> Unavailable:
    """An error of the disk, in the words of the store."""
    if error.errno in FULL:
        return StoreFull(f"{folder}: the disk is full (make room; nothing accepted is lost)")
    return StoreFault(f"{folder}: the disk failed: {error.strerror} (check it; nothing accepted is lost)")


def _said(records: Sequence[Record], marks: dict[Key, int]) -> _Said:
    """What one commit says of its records.

    Raises:
        ValueError: a seq is not above the watermark of its epoch.
    """
    producers, epochs, seqs, payloads = zip(*records, strict=True)
    lengths = [*map(len, payloads)]
    producer, epoch, seq, count = producers[0], epochs[0], seqs[0], len(records)
    # Nearly always one producer and no gap: told apart without a loop of our own, which would cost as
    # much as everything else that an append does besides the disk.
    if (
        seqs == tuple(range(seq, seq + count))
        and producers.count(producer) == count
        and epochs.count(epoch) == count
        and seq > marks.get((producer, epoch), 0)
    ):
        runs = [Run(producer, epoch, seq, count)]
    else:
        runs = _runs(records, marks)
    return _Said(runs, payloads, lengths, sum(lengths))


def _runs(records: Sequence[Record], marks: dict[Key, int]) -> list[Run]:
    """Records as runs of dense seq, in order.

    Raises:
        ValueError: a seq is not above the watermark of its epoch.
    """
    runs: list[Run] = []
    high: dict[Key, int] = {}
    start = 0
    while start < len(records):
        producer, epoch, seq, _ = records[start]
        key = producer, epoch
        if seq <= high.get(key, marks.get(key, 0)):
            raise ValueError(f"append: expected a seq above the watermark of {producer}/{epoch}, got {seq}")
        stop = start + 1
        while stop < len(records):
            record = records[stop]
            if record[2] != seq + stop - start or record[1] != epoch or record[0] != producer:
                break
            stop += 1
        high[key] = seq + stop - start - 1
        runs.append(Run(producer, epoch, seq, stop - start))
        start = stop
    return runs


def _stop(lengths: Sequence[int], start: int) -> int:
    """Where a block of about `_BLOCK_BYTES` ends that begins with the record `start`; one record at least."""
    size, stop = 0, start
    while stop < len(lengths) and (stop == start or size + lengths[stop] <= _BLOCK_BYTES):
        size += lengths[stop]
        stop += 1
    return stop


def _without(spans: Sequence[Span], first: int, last: int) -> Iterator[Span]:
    """What of `first` to `last` is in none of the spans, which ascend and do not overlap."""
    for a, b in segment.clip(spans, first, last):
        if first < a:
            yield first, a - 1
        first = b + 1
    if first <= last:
        yield first, last


def _payloads(block: Block | None) -> list[bytes] | None:
    try:
        return None if block is None else blocks.payloads_of(block)
    except ValueError:
        return None


def _checkpoint_in(path: Path, number: int, seal: Seal) -> Checkpoint | None:
    """What stands at the beginning of a segment file, when it can be read."""
    with path.open("rb") as file:
        header = blocks.header_of(file.read(blocks.HEADER_SIZE), number)
        if header is None or header.kind != blocks.CHECKPOINT:
            return None
        body = blocks.opened(seal, header, file.read(header.length))
    try:
        return None if body is None else blocks.checkpoint_of(body)
    except ValueError:
        return None


def _raise(marks: dict[Key, int], key: Key, seq: int) -> None:
    """Raise a watermark and move it to the end; it never goes down."""
    marks[key] = max(marks.pop(key, 0), seq)


def _spots(found: Contents) -> list[str]:
    return [f"bytes {d.at} to {d.end}" for d in found.damage[:20]]
