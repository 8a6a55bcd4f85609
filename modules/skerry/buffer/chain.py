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
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import structlog
from msgspec.structs import replace

from skerry.buffer import blocks, gaps, segment
from skerry.buffer.blocks import Block, Checkpoint, Mark, Run, Stamp
from skerry.buffer.cursor import Cursor, Position
from skerry.buffer.disk import Disk, fault
from skerry.buffer.gaps import CAPACITY, CORRUPT, QUARANTINED, GapFile, Hole
from skerry.buffer.holes import Holes
from skerry.buffer.pool import Pool
from skerry.buffer.reader import Reader, checkpoint_in
from skerry.buffer.records import BLOCK_BYTES, OWN, Key, Record, Series, commit_of, framed, series_of
from skerry.buffer.recovery import recover
from skerry.buffer.seal import Seal
from skerry.buffer.segment import Contents, Segment, Span
from skerry.messages import Lane

REMEMBERED = 1000
"""Epochs whose watermark is kept. One that was forgotten may bring repeats, never a loss."""
log = structlog.get_logger()


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
        self._plain = home.seal.plain
        self._cursor = Cursor(home.folder / f"{lane}.cursor", home.disk)
        self._marks: OrderedDict[Key, int] = OrderedDict()
        self._segments: list[Segment] = []  # oldest first; the last one is written to
        self._file = -1  # of the last segment
        self._suspect = False  # the last segment's file must not be written to any more
        self._holes = Holes(GapFile(home.folder / f"{lane}.gaps", home.disk))
        self._evicted: dict[str, int] = {}  # without `_holes`
        self._reader = Reader(home.disk, home.seal)
        self._recovered = False

    # What it holds

    @property
    def accepted(self) -> int:
        """Records ever taken."""
        return self.last

    @property
    def evicted(self) -> dict[str, int]:
        """Records lost, ever, by reason."""
        return dict(Counter(self._evicted) + self._holes.counts)

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
        """`commit`, for records one by one.

        Args:
            records: per (producer, epoch) ascending in seq and above its watermark.
            times: as there.
        """
        return self.commit(series_of(records), times=times)

    def commit(self, series: Sequence[Series], *, times: bool = False) -> int:
        """Keep records: one write, one fdatasync. They are on disk when this returns.

        Args:
            series: per (producer, epoch) ascending in seq and above its watermark.
            times: their times want correction, whatever the clock says now.

        Returns:
            The offset of the last one.

        Raises:
            StoreFull: there is no room. Nothing of `series` is kept; try again later.
            StoreFault: the disk failed. Nothing of `series` is kept; try again later.
        """
        if not series:
            return self.last
        try:
            if len(series) == 1 and self._straight(series[0], times=times):
                return self.last
            return self._commit(series, times=times)
        except OSError as error:
            raise fault(self._home.folder, error) from error

    def _straight(self, series: Series, *, times: bool) -> bool:
        """The common case without detours; False, and nothing done, where it is not that.

        One series of a producer that this segment has heard of, in one block, not sealed, with room for it:
        what `_commit` does for all cases, in half the time. Beside the disk, that is all an append costs.
        """
        producer, epoch, seq, payloads = series
        key = producer, epoch
        marks = self._marks
        if self._suspect or not self._segments or not self._plain or seq <= marks.get(key, seq):
            return False
        active = self._segments[-1]
        names = active.names.get(key)
        lengths = [*map(len, payloads)]
        size, count = sum(lengths), len(lengths)
        if names is None or size > BLOCK_BYTES or producer == OWN:
            return False
        stamp = self._home.stamp()
        flags = blocks.TIMES if times or not stamp.synchronised else 0
        run = Run(producer, epoch, seq, count)
        block = blocks.plain_run(
            run, payloads, lengths, segment=active.number, first=self.last + 1, stamp=stamp, flags=flags
        )
        at = active.size
        end = at + len(block)
        if end > active.space:
            return False
        self._put(block, (at,))
        active.note(self.last + 1, at)
        active.size = end
        active.end += count
        active.to_ns = stamp.wall_ns
        active.payload_bytes += size
        names.last = marks[key] = seq + count - 1
        names.count += count
        marks.move_to_end(key)
        self.last += count
        self.waiting += count
        return True

    def _commit(self, series: Sequence[Series], *, times: bool) -> int:
        """The long way, for everything.

        Raises:
            OSError: nothing was kept.
        """
        commit = commit_of(series, self._marks)
        stamp = self._home.stamp()
        active = self._with_room(commit.size + 4 * len(commit.lengths) + 256 * (len(commit.runs) + 1))
        content = framed(
            commit, seal=self._home.seal, number=active.number, first=self.last + 1, stamp=stamp,
            flags=blocks.TIMES if times or not stamp.synchronised else 0,
        )  # fmt: skip
        self._write(active, content, len(commit.lengths))
        active.add(stamp, commit.runs, commit.size)
        for run in commit.runs:
            self._raise(run)
        self.waiting += len(commit.lengths)
        return self.last

    def _raise(self, run: Run) -> None:
        """Raise the watermark of an epoch, which is the one that moved last from now on."""
        key, seq = (run.producer, run.epoch), run.seq + run.count - 1
        marks = self._marks
        if key in marks:
            marks[key] = seq
            marks.move_to_end(key)
        else:
            marks[key] = seq
            if len(marks) > REMEMBERED:
                marks.popitem(last=False)
        if run.producer == OWN:
            self.stated += run.count

    def _with_room(self, needed: int) -> Segment:
        """A sound last segment with `needed` bytes free in it, with the store within its limits."""
        if self._segments and not self._suspect:
            active = self._segments[-1]
            if active.size + needed <= active.space:
                return active
        if self._suspect:
            self._heal(needed)
        fresh = max(self._home.pool.size, needed + 512 + 96 * len(self._marks))  # with its checkpoint
        if not self._segments:
            self._home.make_room(self.lane, fresh)
            self._use(*self._begin(self.last + 1))
        active = self._segments[-1]
        if active.size + needed <= active.space:
            return active
        if active.empty:
            self._home.make_room(self.lane, active.size + needed - active.space)
            return active
        if active.end - 1 <= self.upto:  # it goes as soon as there is another
            self._save(durable=True)
            fresh = max(fresh - active.space, 0)
        self._home.make_room(self.lane, fresh)
        self._use(*self._begin(self.last + 1))
        self._sweep()
        return self._segments[-1]

    def _write(self, active: Segment, content: list[tuple[int, bytes]], records: int) -> None:
        """Write blocks behind the last sound one, and make them durable.

        Args:
            active: the last segment.
            content: offset of the first record, and the block.
            records: in all of them.
        """
        at, heads = active.size, []
        for _, block in content:
            heads.append(at)
            at += len(block)
        self._put(b"".join(block for _, block in content), heads)
        for head, (offset, _) in zip(heads, content, strict=True):
            active.note(offset, head)
        active.size = at
        active.space = max(active.space, at)
        active.end += records
        self.last = active.end - 1

    def _put(self, content: bytes, heads: Sequence[int]) -> None:
        """Write blocks at the first of these bytes, where their headers stand, and make them durable.

        Raises:
            OSError: none of them counts.
        """
        try:
            self._disk.write(self._file, content, heads[0])
        except OSError:
            self._take_back(heads)
            raise
        try:
            self._disk.sync(self._file)
        except OSError:
            # The kernel may have marked the pages clean without writing them: a second fdatasync
            # would succeed and mean nothing. The file is given up at the next append, and wiped now: a
            # process started in between must not find the block in the page cache and believe in it.
            self._take_back(heads)
            self._suspect = True
            raise

    def _take_back(self, heads: Sequence[int]) -> None:
        """Wipe the headers that a failed commit may have left behind the last sound block."""
        try:
            for at in heads:
                self._disk.write(self._file, bytes(blocks.HEADER_SIZE), at)
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
        self._reader.forget(old.number)
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
        self._reader.forget(part.number)
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
        """Note as lost what of a segment was not delivered; durable when this returns."""
        first, last = max(part.first, self.upto + 1), part.end - 1
        runs, size = gaps.of_blocks(self._sound_blocks(part), first)
        lost = Hole(
            first=first, last=last, reason=CAPACITY, epoch=self.id, seq=first, names=gaps.names_of(runs),
            runs=runs[: gaps.MOST_RUNS], bytes=size, from_ns=part.from_ns, to_ns=part.to_ns,
        )  # fmt: skip
        holes, more = self._holes.given_up(lost)
        self._save(durable=True)  # the gap file forgets what the cursor has passed
        self._holes.keep(holes)
        self.waiting -= more
        log.warning("store.evicted", lane=self.lane, records=more, segment=part.path.name)

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
            hole = self._holes.next(at)
            if hole is not None and hole.first <= at:
                if payloads:
                    break
                if not hole.told:
                    self._save(durable=True)  # the gap file forgets what the cursor has passed
                    self._holes.tell(hole)
                return hole
            part = self._segments[self._position(at)]
            found = self._reader.find(part, at)
            if found is None:  # it has rotted since it was last read
                self._examine(part, at)
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

    def _position(self, offset: int) -> int:
        return max(bisect_right(self._segments, offset, key=lambda s: s.first) - 1, 0)

    def _examine(self, part: Segment, offset: int) -> None:
        """Find out what of a segment can no longer be read, and count it as lost."""
        found = self._look(part, lambda _: None)
        spans = segment.clip([*found.holes, (offset, offset)], self.upto + 1, self.last)
        for first, last in spans:
            self._lose_rest(first, last)
        self._name(part, found)
        log.error("store.corrupt", segment=part.path.name, damage=found.spots)

    def _name(self, part: Segment, found: Contents) -> None:
        """Say of the holes in a segment which events may have been in them."""
        inside = self._holes.nameless(part.first, part.end)
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
            behind = self._segments[position + 1]
            said_next = checkpoint_in(behind.path, behind.number, self._home.seal)
            after = {(m.producer, m.epoch): m.seq for m in said_next.marks} if said_next else {}
        names = gaps.missing([(h.first, h.last) for h in inside], sound, before, after)
        damaged = sum(d.end - d.at for d in found.damage)
        for hole in inside:
            hole.names = names[hole.first, hole.last]
            hole.bytes = damaged if len(inside) == 1 else 0
            hole.from_ns, hole.to_ns = part.from_ns, part.to_ns

    def skip(self, offset: int, reason: str, detail: str = "") -> None:
        """Give up one waiting record that cannot be used, and count it under `reason`."""
        if self.upto < offset <= self.last and offset not in self._holes:
            self._lose(offset, offset, reason, detail)

    def _lose_rest(self, first: int, last: int) -> None:
        """What of these records is not known to be gone yet, has rotted."""
        for a, b in self._holes.rest(first, last):
            self._lose(a, b, CORRUPT)

    def _lose(self, first: int, last: int, reason: str, detail: str = "") -> None:
        """Waiting records that are gone."""
        hole = Hole(first=first, last=last, reason=reason, epoch=self.id, seq=first, detail=detail)
        self._holes.add(hole)
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
        behind = self.upto + 1
        inside = segment.length(segment.clip(self._holes.spans(), behind, upto))
        told = segment.length(segment.clip(self._holes.spans(told=True), behind, upto))
        refusals = sum(behind <= n <= upto and n not in self._holes for n in set(refused))
        count = upto - self.upto - told - refusals
        self.delivered += count
        self.waiting -= upto - self.upto - inside
        gone = self._holes.passed(upto)
        gone[QUARANTINED] += refusals
        self._evicted = dict(Counter(self._evicted) + gone)
        self.upto = upto
        try:
            self._save()
            self._sweep()
        except OSError as error:
            raise fault(self._home.folder, error) from error
        return count

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
            self._reader.forget()
            if self._file >= 0:
                self._disk.close(self._file)
                self._file = -1

    def recover(self, committed: int) -> None:
        """Find out what is there.

        Args:
            committed: a last offset known from elsewhere; what is missing up to it counts as lost.

        Raises:
            OSError: the disk failed.
            ConfigError: it is encrypted, and the key was not given.
        """
        position = self._cursor.load()
        if position is None and segment.listed(self._home.folder, self.lane):
            log.error("store.cursor_lost", lane=self.lane)
        clean = position is not None and position.clean
        committed = max(committed, position.committed if position else 0)
        found = recover(self._home.folder, self.lane, self._home.seal, committed)
        self._segments, self.stated = found.segments, found.stated
        self._marks = OrderedDict(list(found.marks.items())[-REMEMBERED:])
        self._take_position(position, found.newest, clean=clean)
        self._resume(found.holes, max(committed, self.upto), clean=clean)

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
        self._holes.load(self.upto, start)
        self.waiting -= segment.length(segment.clip(self._holes.spans(), self.upto + 1, self.last))
        before = len(self._holes)
        for first, last in segment.clip(holes, self.upto + 1, self.last):
            self._lose_rest(first, last)
        if len(self._holes) > before:
            lost = [(h.first, h.last) for h in self._holes if h.reason == CORRUPT]
            log.error("store.records_lost", lane=self.lane, records=segment.length(lost), spans=lost[:20])
            for part in list(self._segments):
                if any(part.first <= a < part.end for a, _ in lost):
                    self._name(part, self._look(part, lambda _: None))
        if self._cursor.damaged or self._holes.damaged or not self._cursor.found:
            self._mend()
        self._take_up(clean=clean)
        self._save(durable=True)
        self._recovered = True
        self._sweep()

    def _mend(self) -> None:
        """What became of some records is not known any more: count them as corrupt, or as not delivered."""
        lacking = self.last - self.delivered - self.waiting - sum(self.evicted.values())
        if lacking > 0:
            self._evicted[CORRUPT] = self._evicted.get(CORRUPT, 0) + lacking
        elif lacking < 0:
            self.delivered += lacking
        if lacking:
            log.error("store.counts_mended", lane=self.lane, records=lacking)

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
