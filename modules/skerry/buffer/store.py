"""An append-only log of records on disk: what `append` returned for is there until the far end has it.

The files of a store, all in one folder:

    lock                        held (flock) by the process that has the store open
    cursor                      how far the far end has confirmed (`skerry.buffer.cursor`)
    spare                       space to fall back on when the disk is full
    NUMBER-FIRST.segment        records from offset FIRST on (`skerry.buffer.blocks`)
    *.tmp                       drafts, removed at the next start

Offsets are dense from 1 for the life of the store. `accepted` is the last offset; each record is then
delivered, waiting or evicted, and these are counted on their own, so their sum can be checked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from skerry.buffer import blocks, segment
from skerry.buffer.blocks import Block, Checkpoint, Mark, Preface, Run, Stamp
from skerry.buffer.cursor import Cursor, Position
from skerry.buffer.disk import Disk
from skerry.buffer.segment import Contents, Segment
from skerry.errors import Unavailable

SEGMENT_BYTES = 8 * 1024 * 1024
SPARE_BYTES = 256 * 1024
"""Enough for a checkpoint of `REMEMBERED` producers with the longest names."""
REMEMBERED = 1000
"""Epochs whose watermark is kept. One that was forgotten may bring repeats, never a loss."""
_BLOCK_BYTES = 64 * 1024
"""Records of one commit are split into blocks of about this size: what one flipped bit can cost."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
CAPACITY, CORRUPT = "capacity", "corrupt"

log = structlog.get_logger()


class StoreFull(Unavailable):
    """The disk has no room: nothing of this append is kept, all that was accepted before is."""


class StoreFault(Unavailable):
    """The disk failed: nothing of this append is kept, all that was accepted before is."""


class Record(NamedTuple):
    """What a producer wants kept; `payload` is kept as it is."""

    producer: str
    epoch: str
    seq: int
    payload: bytes


class Batch(NamedTuple):
    """Records `first`, `first + 1`, ... of a store."""

    first: int
    payloads: list[bytes]


class _Read(NamedTuple):
    """The block read last, and where the next one begins."""

    number: int
    first: int
    payloads: list[bytes]
    next_at: int


class Store:
    """One log. Made by `Store.open`; not thread-safe.

    Attributes:
        id: identity of the store. Drawn when it is made, and again when its tail had to be cut:
            offsets after the cut are given out anew, and no receipt for an old one may count for them.
        last: offset of the last record that is durable; 0 when there never was one.
        upto: the far end has, or nobody has any more, every record up to here.
        delivered: records that the far end confirmed, ever.
        waiting: records on disk that it has not confirmed.
    """

    def __init__(
        self, folder: Path, *, limit_bytes: int, segment_bytes: int, spare_bytes: int, disk: Disk,
        stamp: Callable[[], Stamp], lock: int,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.id = ""
        self.last = 0
        self.upto = 0
        self.delivered = 0
        self.waiting = 0
        self._limit = limit_bytes
        self._segment_bytes = segment_bytes
        self._spare_bytes = spare_bytes
        self._disk = disk
        self._stamp = stamp
        self._lock = lock
        self._cursor = Cursor(folder / "cursor", disk)
        self._marks: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._segments: list[Segment] = []  # oldest first; the last one is written to
        self._file = -1  # of the last segment
        self._suspect = False  # the last segment's file must not be written to any more
        self._starved = False  # the disk was full at the last append
        self._holes: list[tuple[int, int, str]] = []  # beyond `upto`, ascending
        self._evicted: dict[str, int] = {}  # without `_holes`
        self._reader = -1, -1  # (number of a segment, its file)
        self._read: _Read | None = None

    @classmethod
    def open(
        cls, folder: Path, *, limit_bytes: int, stamp: Callable[[], Stamp],
        segment_bytes: int = SEGMENT_BYTES, spare_bytes: int = SPARE_BYTES,
        committed: int = 0, disk: Disk | None = None,
        draw: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> Store:  # fmt: skip
        """Open a store, or make one; whatever is damaged in it is skipped, counted and named in the log.

        Args:
            folder: holds the store and nothing else; made if missing.
            limit_bytes: bound of the bytes on disk, at least twice `segment_bytes` and `spare_bytes`.
            stamp: the clocks, kept with each commit.
            segment_bytes: a segment that is larger is closed and a new one begun.
            spare_bytes: kept free for the moment when the disk is full.
            committed: a last offset known from elsewhere; records up to it that are missing count as lost.
            disk: the file system.
            draw: a fresh identity.

        Raises:
            Unavailable: the folder cannot be used, or another process has the store open.
        """
        if limit_bytes < 2 * (segment_bytes + spare_bytes):
            raise ValueError(f"limit_bytes: expected at least {2 * (segment_bytes + spare_bytes)}")
        lock = _locked(folder)
        store = cls(
            folder, limit_bytes=limit_bytes, segment_bytes=segment_bytes, spare_bytes=spare_bytes,
            disk=disk or Disk(), stamp=stamp, lock=lock,
        )  # fmt: skip
        try:
            store._recover(committed, draw)
        except OSError as error:
            store.close()
            raise _fault(folder, error) from error
        except BaseException:
            store.close()
            raise
        return store

    # What it holds

    @property
    def accepted(self) -> int:
        """Records ever taken."""
        return self.last

    @property
    def evicted(self) -> dict[str, int]:
        """Records lost, ever, by reason."""
        counts = dict(self._evicted)
        for first, last, reason in self._holes:
            counts[reason] = counts.get(reason, 0) + last - first + 1
        return counts

    @property
    def bytes_on_disk(self) -> int:
        """Of all files of the store."""
        return sum(s.size for s in self._segments) + self._spare_bytes + 2 * 4096

    def watermark(self, producer: str, epoch: str) -> int | None:
        """Every record of `(producer, epoch)` up to here is accepted; None for an epoch never heard of."""
        return self._marks.get((producer, epoch))

    def watermarks(self) -> dict[tuple[str, str], int]:
        """All of them, the one that moved last at the end."""
        return dict(self._marks)

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

    def append(self, records: Sequence[Record]) -> int:
        """Keep records: one write, one fdatasync. They are on disk when this returns.

        Args:
            records: per (producer, epoch) ascending in seq and above its watermark.

        Returns:
            The offset of the last one.

        Raises:
            StoreFull: the disk has no room. Nothing of `records` is kept; try again later.
            StoreFault: the disk failed. Nothing of `records` is kept; try again later.
        """
        if not records:
            return self.last
        runs = _runs(records, self._marks)
        needed = sum(len(r.payload) for r in records) + 256 * (len(runs) + 1)
        try:
            self._prepare(needed)
            self._commit(records)
        except OSError as error:
            self._starved = error.errno in _FULL
            raise _fault(self.folder, error) from error
        self._starved = False
        for run in runs:
            self._mark(run.producer, run.epoch, run.seq + run.count - 1)
        self.waiting += len(records)
        return self.last

    def _prepare(self, needed: int) -> None:
        """Have a sound last segment with room in it, and keep the store within its limit."""
        active = self._segments[-1]
        if self._suspect:
            self._heal()
        elif self._starved and not active.empty and active.end - 1 <= self.upto:
            self._roll()
        elif not active.empty and active.size + needed > self._segment_bytes:
            self._make_room(needed)
            self._roll()
        self._make_room(needed)

    def _commit(self, records: Sequence[Record]) -> None:
        active = self._segments[-1]
        framed = list(self._framed(records, active.number))
        content = b"".join(framed)
        try:
            self._disk.write(self._file, content, active.size)
        except OSError:
            self._cut_back()
            raise
        try:
            self._disk.sync(self._file)
        except OSError:
            # The kernel may have marked the pages clean without writing them: a second fdatasync
            # would succeed and mean nothing. The file is given up at the next append, and cut now: a
            # process started in between must not find the block in the page cache and believe in it.
            self._cut_back()
            self._suspect = True
            raise
        at = active.size
        for block in framed:
            header = blocks.header_of(block[: blocks.HEADER_SIZE], active.number)
            assert header is not None
            active.note(header.first, at)
            at += len(block)
        active.size = at
        active.end += len(records)
        self.last = active.end - 1

    def _framed(self, records: Sequence[Record], number: int) -> Iterator[bytes]:
        """Blocks of about `_BLOCK_BYTES`."""
        stamp, first = self._stamp(), self.last + 1
        chunk: list[Record] = []
        size = 0
        for record in records:
            if chunk and size + len(record.payload) > _BLOCK_BYTES:
                yield _block(number, first, stamp, chunk)
                first += len(chunk)
                chunk, size = [], 0
            chunk.append(record)
            size += len(record.payload)
        yield _block(number, first, stamp, chunk)

    def _cut_back(self) -> None:
        """Remove what a failed write left behind the last sound block."""
        try:
            self._disk.truncate(self._file, self._segments[-1].size)
        except OSError:
            self._suspect = True

    # Segments

    def _begin(self, first: int) -> tuple[Segment, int]:
        """A new, durable segment that holds a checkpoint, and its file. It is not in use yet."""
        number = self._segments[-1].number + 1 if self._segments else 1
        path = segment.path_of(self.folder, number, first)
        marks = [Mark(producer, epoch, seq) for (producer, epoch), seq in self._marks.items()]
        content = Checkpoint(self._stamp(), marks, self.delivered, self._evicted)
        block = blocks.checkpoint(number, first, content)
        try:
            file = self._disk.write_file(path, block)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._disk.unlink(self.folder / "spare")
            file = self._disk.write_file(path, block)
        return Segment(path, number, first, first, len(block)), file

    def _use(self, new: Segment, file: int) -> None:
        """Write to `new` from now on."""
        if self._file >= 0:
            self._disk.close(self._file)
        self._segments.append(new)
        self._file = file
        self._suspect = False

    def _roll(self) -> None:
        """Close the last segment and begin another."""
        self._use(*self._begin(self.last + 1))
        self._sweep()
        self._keep_spare()

    def _heal(self) -> None:
        """Write what the last segment still owes to a new one, and give its file up.

        The old one stays until the new one is durable. At the next start a segment ends where the
        next one begins, so what is in both is read from the new one.
        """
        old = self._segments[-1]
        kept = [b for b in self._sound_blocks(old) if b.header.stop - 1 > self.upto]
        first = kept[0].header.first if kept else self.last + 1
        for a, b in segment.clip([(max(old.first, self.upto + 1), first - 1)], self.upto + 1, self.last):
            self._lose_rest(a, b)
        self._make_room(sum(len(b.body) for b in kept))
        new, file = self._begin(first)
        content = b"".join(
            blocks.frame(blocks.RECORDS, new.number, b.header.first, b.header.records, b.body) for b in kept
        )
        try:
            self._disk.write(file, content, new.size)
            self._disk.sync(file)
        except OSError:
            self._disk.close(file)
            self._disk.unlink(new.path)
            raise
        log.warning(
            "store.segment_abandoned", segment=old.path.name, rewritten=sum(b.header.records for b in kept)
        )
        new.size += len(content)
        new.end = self.last + 1
        new.index = []
        self._segments.pop()
        self._use(new, file)
        self._read = None
        self._remove(old)
        self._keep_spare()

    def _sound_blocks(self, part: Segment) -> list[Block]:
        found = segment.blocks(part.path, part.number, part.size)
        return [b for b in found if b.header.kind == blocks.RECORDS and b.header.first < part.end]

    def _sweep(self) -> None:
        """Remove closed segments whose records the far end has."""
        done = [s for s in self._segments[:-1] if s.end - 1 <= self.upto]
        if not done:
            return
        self._save(durable=True)
        for part in done:
            self._segments.remove(part)
            self._remove(part)

    def _make_room(self, needed: int) -> None:
        """Evict the oldest closed segments until `needed` more bytes fit into the limit."""
        while len(self._segments) > 1 and self.bytes_on_disk + self._spare_bytes + needed > self._limit:
            self._evict(self._segments[0])

    def _evict(self, part: Segment) -> None:
        """Give up a segment's records that still wait; the count is durable before they are gone."""
        first = max(part.first, self.upto + 1)
        gone = segment.length(segment.clip([(a, b) for a, b, _ in self._holes], first, part.end - 1))
        lost = max(part.end - first, 0) - gone
        if lost:
            self._evicted[CAPACITY] = self._evicted.get(CAPACITY, 0) + lost
            self.waiting -= lost
            log.warning("store.evicted", segment=part.path.name, first=first, last=part.end - 1, records=lost)
        self._pass(part.end - 1)
        self._save(durable=True)
        self._segments.remove(part)
        self._remove(part)

    def _remove(self, part: Segment) -> None:
        number, file = self._reader
        if number == part.number:
            self._disk.close(file)
            self._reader = -1, -1
            self._read = None
        self._disk.unlink(part.path)
        self._disk.sync_folder(self.folder)

    def _keep_spare(self) -> None:
        """Have the spare space, if the disk has it."""
        path = self.folder / "spare"
        if path.exists() and path.stat().st_size == self._spare_bytes:
            return
        try:
            self._disk.close(self._disk.write_file(path, bytes(self._spare_bytes)))
        except OSError as error:
            log.warning("store.no_spare", error=str(error))

    # Read

    def read(self, first: int, max_records: int, max_bytes: int) -> Batch | None:
        """The next records in order, from the first at or after `first` that is there.

        Args:
            first: offset, from 1.
            max_records: 1 or more.
            max_bytes: of payloads; one record is returned whatever its size.

        Returns:
            Records without a gap between them, or None when there are none.

        Raises:
            StoreFault: the disk failed.
        """
        try:
            return self._batch(first, max_records, max_bytes)
        except OSError as error:
            raise _fault(self.folder, error) from error

    def _batch(self, first: int, max_records: int, max_bytes: int) -> Batch | None:
        batch: Batch | None = None
        size = 0
        at = self._present(first)
        while at <= self.last:
            found = self._block_with(at)
            if found is None:  # it has rotted since it was last read
                if batch is not None:
                    return batch
                at = self._present(at)
                continue
            batch = batch or Batch(at, [])
            for payload in found.payloads[at - found.first :]:
                size += len(payload)
                if batch.payloads and (len(batch.payloads) == max_records or size > max_bytes):
                    return batch
                batch.payloads.append(payload)
                at += 1
            if self._present(at) != at:
                return batch
        return batch

    def _present(self, offset: int) -> int:
        """`offset`, or the next one that is not in a hole and not before the oldest segment."""
        offset = max(offset, self._segments[0].first)
        for first, last, _ in self._holes:
            if first <= offset <= last:
                offset = last + 1
        return offset

    def _block_with(self, offset: int) -> _Read | None:
        """The block that holds a record; None, and a hole noted, when it cannot be read."""
        last = self._read
        if last is not None and last.first <= offset < last.first + len(last.payloads):
            return last
        position = bisect_right(self._segments, offset, key=lambda s: s.first) - 1
        part = self._segments[position]
        at = part.seek(offset)
        if last is not None and last.number == part.number and offset == last.first + len(last.payloads):
            at = last.next_at
        block = self._walk(part, at, offset)
        if block is None:
            self._examine(part, offset)
            return None
        self._read = _Read(part.number, block.header.first, blocks.payloads_of(block), block.end)
        return self._read

    def _walk(self, part: Segment, at: int, offset: int) -> Block | None:
        """The sound block with the record `offset`, reading forward from byte `at`."""
        file = self._open_for_reading(part)
        while at < part.size:
            header = blocks.header_of(self._disk.read(file, blocks.HEADER_SIZE, at), part.number)
            if header is None:
                return self._search(part, offset)
            if header.kind == blocks.RECORDS and header.first <= offset < header.stop:
                body = self._disk.read(file, header.length, at + blocks.HEADER_SIZE)
                return Block(at, header, body) if blocks.sound(header, body) else None
            at += blocks.HEADER_SIZE + header.length
        return None

    def _search(self, part: Segment, offset: int) -> Block | None:
        """The slow way: look at the whole segment, past whatever is damaged."""
        for block in segment.blocks(part.path, part.number, part.size):
            header = block.header
            if header.kind == blocks.RECORDS and header.first <= offset < header.stop:
                return block
        return None

    def _open_for_reading(self, part: Segment) -> int:
        number, file = self._reader
        if number != part.number:
            if file >= 0:
                self._disk.close(file)
            self._reader = part.number, self._disk.open(part.path)
        return self._reader[1]

    def _examine(self, part: Segment, offset: int) -> None:
        """Find out what of a segment can no longer be read, and count it as lost."""
        found = self._look(part, lambda _: None)
        for first, last in segment.clip([*found.holes, (offset, offset)], self.upto + 1, self.last):
            self._lose_rest(first, last)
        self._settle()
        log.error("store.corrupt", segment=part.path.name, damage=_spots(found))

    def skip(self, offset: int, reason: str) -> None:
        """Give up one waiting record that cannot be used, and count it under `reason`."""
        if self.upto < offset <= self.last and self._present(offset) == offset:
            self._lose(offset, offset, reason)
            self._settle()

    def _lose_rest(self, first: int, last: int) -> None:
        """What of these records is not known to be gone yet, has rotted."""
        at = first
        for a, b in segment.clip([(a, b) for a, b, _ in self._holes], first, last):
            if at < a:
                self._lose(at, a - 1, CORRUPT)
            at = b + 1
        if at <= last:
            self._lose(at, last, CORRUPT)

    def _lose(self, first: int, last: int, reason: str) -> None:
        """Waiting records that are gone."""
        self._holes.append((first, last, reason))
        self._holes.sort()
        self.waiting -= last - first + 1

    # Receipts

    def receipt(self, upto: int) -> int:
        """The far end has every record up to and including `upto`.

        Returns:
            How many of them were waiting; 0 when this was known already.

        Raises:
            ValueError: there is no such record yet.
            StoreFault: the disk failed; the receipt counts, and is repeated at most after a power cut.
        """
        if upto > self.last:
            raise ValueError(f"receipt: expected at most {self.last}, got {upto}")
        if upto <= self.upto:
            return 0
        gone = segment.length(segment.clip([(a, b) for a, b, _ in self._holes], self.upto + 1, upto))
        count = upto - self.upto - gone
        self.delivered += count
        self.waiting -= count
        self._pass(upto)
        try:
            self._save()
            self._sweep()
        except OSError as error:
            raise _fault(self.folder, error) from error
        return count

    def _pass(self, upto: int) -> None:
        """Move the cursor, and count the holes that it leaves behind."""
        self.upto = max(self.upto, upto)
        self._settle()

    def _settle(self) -> None:
        while self._holes and self._holes[0][0] <= self.upto + 1:
            first, last, reason = self._holes.pop(0)
            self._evicted[reason] = self._evicted.get(reason, 0) + last - first + 1
            self.upto = max(self.upto, last)

    def _save(self, durable: bool = False) -> None:
        position = Position(
            store=self.id,
            upto=self.upto,
            delivered=self.delivered,
            committed=self.last,
            evicted=self._evicted,
        )
        self._cursor.save(position, durable)

    # Open and close

    def close(self) -> None:
        """Make the cursor durable and let go of the folder."""
        if self._lock < 0:
            return
        try:
            if self._segments and self._file >= 0:
                self._save(durable=True)
        except OSError as error:
            log.warning("store.cursor_not_saved", error=str(error))
        finally:
            self._cursor.close()
            for file in (self._file, self._reader[1]):
                if file >= 0:
                    self._disk.close(file)
            os.close(self._lock)
            self._lock = -1

    def _recover(self, committed: int, draw: Callable[[], str]) -> None:
        """Find out what is there."""
        for draft in self.folder.glob("*.tmp"):
            self._disk.unlink(draft)
        listed = segment.listed(self.folder)
        position = self._cursor.load()
        if position is None and (listed or (self.folder / "cursor").exists()):
            log.error("store.cursor_lost", folder=str(self.folder))
        cut = False
        marks: dict[tuple[str, str], int] = {}
        newest: list[Checkpoint] = []
        holes: list[tuple[int, int]] = []

        def visit(block: Block) -> None:
            if block.header.kind == blocks.CHECKPOINT:
                newest[:] = [blocks.checkpoint_of(block.body)]
                for mark in newest[0].marks:
                    _raise(marks, (mark.producer, mark.epoch), mark.seq)
            else:
                for run in blocks.preface_of(block.body).runs:
                    _raise(marks, (run.producer, run.epoch), run.seq + run.count - 1)

        for n, (path, number, first) in enumerate(listed):
            stop = listed[n + 1][2] if n + 1 < len(listed) else None
            found = segment.inspect(path, number, first, stop=stop, visit=visit)
            if self._segments and first > self._segments[-1].end:
                holes.append((self._segments[-1].end, first - 1))
            holes += found.holes
            self._segments.append(found.segment)
            if found.damage:
                log.error("store.corrupt", segment=path.name, damage=_spots(found))
                cut = cut or stop is None
        self._marks = OrderedDict(list(marks.items())[-REMEMBERED:])
        self._take_position(position, newest, draw if cut or position is None else None)
        self._resume(holes, max(committed, position.committed if position else 0, self.upto))

    def _take_position(
        self, position: Position | None, newest: list[Checkpoint], draw: Callable[[], str] | None
    ) -> None:
        """Where the far end is, from the cursor or, without it, from where the oldest segment begins."""
        if position is not None:
            self.id, self.upto, self.delivered = position.store, position.upto, position.delivered
            self._evicted = dict(position.evicted)
        elif self._segments:
            self.upto = self._segments[0].first - 1
            self._evicted = dict(newest[0].evicted) if newest else {}
            self.delivered = max(self.upto - sum(self._evicted.values()), 0)
        if draw is not None:
            self.id = draw()

    def _resume(self, holes: list[tuple[int, int]], committed: int) -> None:
        """Account for what is missing and make the last segment fit to be written to."""
        end = self._segments[-1].end if self._segments else self.upto + 1
        if self._segments and self._segments[0].first > self.upto + 1:
            holes.append((self.upto + 1, self._segments[0].first - 1))
        if committed >= end:
            holes.append((end, committed))
        self.last = max(end - 1, committed)
        lost = segment.clip(holes, self.upto + 1, self.last)
        self._holes = sorted((a, b, CORRUPT) for a, b in lost)
        if lost:
            log.error("store.records_lost", records=segment.length(lost), spans=lost[:20])
        self._take_up()
        self.waiting = self.last - self.upto - segment.length(lost)
        self._settle()
        self._save(durable=True)
        self._sweep()
        self._make_room(0)
        self._keep_spare()

    def _take_up(self) -> None:
        """Continue the last segment behind its last sound block, or begin one."""
        if not self._segments:
            self._use(*self._begin(self.last + 1))
            return
        active = self._segments[-1]
        self._file = self._disk.open(active.path)
        size = active.path.stat().st_size
        if size > active.size:
            log.warning("store.tail_cut", segment=active.path.name, bytes=size - active.size)
            self._disk.truncate(self._file, active.size)
        # A process killed between write and fdatasync left sound blocks that are only in the page cache.
        self._disk.sync(self._file)
        self._disk.sync_folder(self.folder)
        if active.end != self.last + 1 or active.size == 0:
            self._use(*self._begin(self.last + 1))

    def _look(self, part: Segment, visit: Callable[[Block], None]) -> Contents:
        return segment.inspect(part.path, part.number, part.first, stop=part.end, visit=visit, size=part.size)

    def _mark(self, producer: str, epoch: str, seq: int) -> None:
        _raise(self._marks, (producer, epoch), seq)
        while len(self._marks) > REMEMBERED:
            self._marks.popitem(last=False)


def _locked(folder: Path) -> int:
    """The folder, made if missing, and the lock on it.

    Raises:
        Unavailable: it cannot be made, or another process holds it.
    """
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise _fault(folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise Unavailable(
            f"{folder}: the store is open in another process (stop it, or use another folder)"
        ) from error
    return lock


def _runs(records: Sequence[Record], marks: OrderedDict[tuple[str, str], int]) -> list[Run]:
    """Records as runs of dense seq, in order.

    Raises:
        ValueError: a seq is not above the watermark of its epoch.
    """
    runs: list[Run] = []
    high: dict[tuple[str, str], int] = {}
    for producer, epoch, seq, _ in records:
        key = producer, epoch
        if seq <= high.get(key, marks.get(key, 0)):
            raise ValueError(f"append: expected a seq above the watermark of {producer}/{epoch}, got {seq}")
        high[key] = seq
        last = runs[-1] if runs else None
        if last and (last.producer, last.epoch) == key and last.seq + last.count == seq:
            runs[-1] = Run(producer, epoch, last.seq, last.count + 1)
        else:
            runs.append(Run(producer, epoch, seq, 1))
    return runs


def _block(number: int, first: int, stamp: Stamp, chunk: list[Record]) -> bytes:
    preface = Preface(stamp, _runs(chunk, OrderedDict()))
    return blocks.records(number, first, preface, [r.payload for r in chunk])


def _raise(marks: dict[tuple[str, str], int], key: tuple[str, str], seq: int) -> None:
    """Raise a watermark and move it to the end; it never goes down."""
    marks[key] = max(marks.pop(key, 0), seq)


def _spots(found: Contents) -> list[str]:
    return [f"bytes {d.at} to {d.end}" for d in found.damage[:20]]


def _fault(folder: Path, error: OSError) -> Unavailable:
    if error.errno in _FULL:
        return StoreFull(f"{folder}: the disk is full (make room; nothing accepted is lost)")
    return StoreFault(f"{folder}: the disk failed: {error.strerror} (check it; nothing accepted is lost)")
