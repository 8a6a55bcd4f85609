"""A producer's own journals, one a lane: events wait here until the buffer has accepted them.

`Outboxes` holds an `Outbox` for each lane. Each numbers its events and is bounded for itself, so a lane that
the buffer does not take fills its own outbox and no other, and an epoch is of one lane: an event that
overtakes those of lower lanes takes no number from them.

A journal is an append-only file, written without fsync: the page cache keeps it when the process is killed,
so an event that `add` returned is there after kill -9. A power cut may take what the system had not yet
written; that loss is bounded by acceptance, since what the buffer accepted was on its disk.

`(epoch, seq)` names an event for ever. An epoch ends when its numbering can no longer be trusted, for a
number must never name two events: when the machine was restarted (the end of the file may be missing), when
the file is cut short, damaged or gone, or when the source is another. Events of an earlier epoch keep their
names and go first.

Layout: records of `<kind: 1 byte> <length: u32> <crc32: u32> <payload: JSON>`, kind E for an event, A for an
acceptance, H for the beginning of an epoch. The CRC covers kind and payload.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import msgspec
import structlog

from skerry.errors import Unavailable
from skerry.messages import LANES, Event, Lane

log = structlog.get_logger()

_HEADER = struct.Struct("<cII")
_LONGEST = 64 * 1024 * 1024
_LEAST_WASTE = 1024 * 1024
"""Bytes of accepted events that the file may carry before it is written anew."""


class _Epoch(msgspec.Struct, frozen=True):
    """The beginning of an epoch: its name, what it is bound to, and where the count stands."""

    epoch: str
    source: str
    boot: str
    seq: int
    """The last number given out before this record."""
    before: int
    """Events added in earlier epochs."""


class _Name(msgspec.Struct, frozen=True):
    """What an acceptance, or the least that must be known of an event, says."""

    epoch: str
    seq: int


_encoder = msgspec.json.Encoder()
_event = msgspec.json.Decoder(Event)
_epoch = msgspec.json.Decoder(_Epoch)
_name = msgspec.json.Decoder(_Name)


class _Entry:
    """Where an event is in the file."""

    __slots__ = ("at", "epoch", "seq", "size")

    def __init__(self, epoch: str, seq: int, at: int, size: int) -> None:
        self.epoch, self.seq, self.at, self.size = epoch, seq, at, size


class Outbox:
    """Events of a lane in order, each kept until accepted. Not thread-safe: it is the module's loop's own.

    Use `open`. Events are in the file alone; memory holds where they are (about 150 bytes each).

    Attributes:
        lane: the priority class of its events.
        epoch: the present epoch.
        seq: the last number given out in it, 0 when there was none.
        added: events added in all epochs.
        refused: events not taken since `open`, because the outbox or the disk was full.
        damaged: bytes of the file that could not be read at `open`.
    """

    def __init__(
        self, path: Path, lane: Lane, *, source: str, boot: str, capacity: int, max_bytes: int
    ) -> None:
        self.lane: Lane = lane
        self._path = path
        self._source, self._boot = source, boot
        self._capacity, self._max_bytes = capacity, max_bytes
        self._waiting: deque[_Entry] = deque()
        self._bytes = 0
        self._end = 0
        self._lock = _lock(path.parent)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self.epoch = ""
        self.seq = 0
        self.added = 0
        self.refused = 0
        self.damaged = 0

    @classmethod
    def open(
        cls,
        folder: Path,
        lane: Lane,
        source: str,
        capacity: int,
        *,
        boot: str,
        draw: Callable[[], str],
        max_bytes: int = 256 * 1024 * 1024,
        added_before: int = 0,
    ) -> Outbox:
        """Open the outbox in a folder, or make one.

        Args:
            folder: where the journal is; made if missing. It is of this lane for ever.
            lane: priority class of its events.
            source: CloudEvents source of new events, e.g. `skerry/hall/decision`.
            capacity: events that may wait, 1 or more.
            boot: identity of this boot of the machine.
            draw: gives the name of a new epoch; it must never repeat.
            max_bytes: bytes of waiting events.
            added_before: events ever added, for a journal that is gone.

        Raises:
            Unavailable: another process has it open.
        """
        folder.mkdir(parents=True, exist_ok=True)
        outbox = cls(
            folder / "journal", lane, source=source, boot=boot, capacity=capacity, max_bytes=max_bytes
        )
        if outbox._load() != (source, boot) or outbox.damaged:
            outbox.added = max(outbox.added, added_before)
            outbox._begin(draw())
        return outbox

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Events that wait for acceptance."""
        return len(self._waiting)

    @property
    def epochs(self) -> set[str]:
        """The present epoch and those of which events wait."""
        return {self.epoch} | {entry.epoch for entry in self._waiting}

    @property
    def oldest(self) -> int:
        """The first number of the oldest waiting epoch; the next one to come when nothing waits."""
        return self._waiting[0].seq if self._waiting else self.seq + 1

    def add(
        self, *, type_: str, subject: str, time: str, monotonic: int, data: dict[str, Any]
    ) -> Event | None:
        """Give an event its name and keep it.

        Args:
            type_: CloudEvents type, e.g. `skerry.line.crossed`.
            subject: CloudEvents subject, e.g. `gate/count`.
            time: RFC 3339, when it happened.
            monotonic: CLOCK_MONOTONIC in nanoseconds, when it was decided.
            data: what happened; plain values.

        Returns:
            The event; None when it was refused, which takes no number.
        """
        seq = self.seq + 1
        event = Event(
            id=f"{self.epoch}-{seq}", source=self._source, type=type_, time=time, subject=subject,
            lane=self.lane, epoch=self.epoch, seq=seq, bootid=self._boot, monotonic=monotonic, data=data,
        )  # fmt: skip
        payload = _encoder.encode(event)
        full = len(self._waiting) >= self._capacity or self._bytes + len(payload) > self._max_bytes
        at = self._end + _HEADER.size
        if full or not self._append(b"E", payload):
            self.refused += 1
            return None
        self.seq, self.added = seq, self.added + 1
        self._waiting.append(_Entry(self.epoch, seq, at, len(payload)))
        self._bytes += len(payload)
        return event

    def accepted(self, epoch: str, seq: int) -> int | None:
        """Let go of the events of `epoch` up to and including `seq`.

        Returns:
            How many were let go; None for a watermark that cannot be true, which changes nothing.
        """
        if epoch == self.epoch and seq > self.seq:
            return None
        before = len(self._waiting)
        if not self._release(epoch, seq):
            return None
        freed = before - len(self._waiting)
        if freed:
            self._append(b"A", _encoder.encode(_Name(epoch, seq)))
            if self._end - self._bytes > max(_LEAST_WASTE, self._bytes):
                self._compact()
        return freed

    def pending(self, limit: int, skip: int = 0, max_bytes: int = 1 << 62) -> list[Event]:
        """The oldest waiting events: of one epoch, in order, dense in seq.

        Args:
            limit: at most this many, 1 or more.
            skip: leave out this many, e.g. those in flight.
            max_bytes: at most this many bytes, though always one event.
        """
        events: list[Event] = []
        size = 0
        for n in range(skip, min(skip + limit, len(self._waiting))):
            entry = self._waiting[n]
            size += entry.size
            if events and (size > max_bytes or entry.epoch != events[0].epoch):
                break
            events.append(_event.decode(os.pread(self._file, entry.size, entry.at)))
        return events

    def size(self, count: int) -> int:
        """Bytes of the oldest `count` waiting events."""
        return sum(entry.size for entry in islice(self._waiting, count))

    def first_of(self, epoch: str) -> int:
        """The first waiting number of an epoch; the next one to come where none of it waits."""
        return next((e.seq for e in self._waiting if e.epoch == epoch), self.seq + 1)

    def latest(self, limit: int) -> list[Event]:
        """The youngest waiting events, oldest first, of whatever epoch."""
        entries = list(self._waiting)[-limit:]
        return [_event.decode(os.pread(self._file, e.size, e.at)) for e in entries]

    def close(self) -> None:
        """Close the file; what waits stays in it."""
        if self._file >= 0:
            os.close(self._file)
            os.close(self._lock)
            self._file = -1

    def _begin(self, epoch: str) -> None:
        self.epoch, self.seq = epoch, 0
        self._append(b"H", _encoder.encode(_Epoch(epoch, self._source, self._boot, 0, self.added)))

    def _release(self, epoch: str, seq: int) -> bool:
        """Forget the accepted; False for an epoch that is not known any more."""
        waiting, before = self._waiting, len(self._waiting)
        while waiting and waiting[0].epoch == epoch and waiting[0].seq <= seq:
            self._bytes -= waiting.popleft().size
        if len(waiting) < before or epoch == self.epoch or (waiting and waiting[0].epoch == epoch):
            known = True
        else:
            known = any(e.epoch == epoch for e in waiting)
        if known and waiting and waiting[0].epoch != epoch:
            self._release_later(epoch, seq)
        return known

    def _release_later(self, epoch: str, seq: int) -> None:
        """The same for an epoch that has earlier ones before it."""
        kept = [e for e in self._waiting if e.epoch != epoch or e.seq > seq]
        if len(kept) < len(self._waiting):
            self._waiting = deque(kept)
            self._bytes = sum(e.size for e in kept)

    def _append(self, kind: bytes, payload: bytes) -> bool:
        """Write a record at the end; False, and nothing written, when the disk will not take it."""
        record = _pack(kind, payload)
        try:
            written = os.pwrite(self._file, record, self._end)
        except OSError as error:
            log.warning("outbox.write_failed", path=str(self._path), error=error.strerror)
            return False
        if written < len(record):
            os.ftruncate(self._file, self._end)
            log.warning("outbox.write_failed", path=str(self._path), error="disk full")
            return False
        self._end += written
        return True

    def _load(self) -> tuple[str, str]:
        """Read the file up to where it is whole, cut off the rest; source and boot of its last epoch."""
        size = os.fstat(self._file).st_size
        bound, at = ("", ""), 0
        while (found := self._record(at)) is not None:
            kind, payload = found
            try:
                bound = self._replay(kind, payload, at) or bound
            except msgspec.DecodeError as error:
                log.warning("outbox.unreadable", path=str(self._path), at=at, error=str(error))
                break
            at += _HEADER.size + len(payload)
        self._end, self.damaged = at, size - at
        if self.damaged:
            os.ftruncate(self._file, at)
            log.warning("outbox.cut", path=str(self._path), bytes=self.damaged)
        return bound

    def _record(self, at: int) -> tuple[bytes, bytes] | None:
        """Kind and payload of the record at an offset, None when it is not whole."""
        header = os.pread(self._file, _HEADER.size, at)
        if len(header) < _HEADER.size:
            return None
        kind, length, crc = _HEADER.unpack(header)
        if kind not in (b"E", b"A", b"H") or length > _LONGEST:
            return None
        payload = os.pread(self._file, length, at + _HEADER.size)
        return (kind, payload) if len(payload) == length and _crc(kind, payload) == crc else None

    def _replay(self, kind: bytes, payload: bytes, at: int) -> tuple[str, str] | None:
        """Take one record; source and boot of an epoch that begins with it."""
        if kind == b"H":
            began = _epoch.decode(payload)
            self.epoch, self.seq, self.added = began.epoch, began.seq, began.before + began.seq
            return began.source, began.boot
        name = _name.decode(payload)
        if kind == b"A":
            self._release(name.epoch, name.seq)
            return None
        self._waiting.append(_Entry(name.epoch, name.seq, at + _HEADER.size, len(payload)))
        self._bytes += len(payload)
        if name.epoch == self.epoch and name.seq > self.seq:
            self.added += name.seq - self.seq
            self.seq = name.seq
        return None

    def _compact(self) -> None:
        """Write a new file from the first waiting event on, and put it in the place of the old one.

        Acceptances and epochs that stand between the events are copied with them; they do no harm.
        """
        fresh = self._path.with_suffix(".new")
        began = _Epoch(self.epoch, self._source, self._boot, self.seq, self.added - self.seq)
        head = _pack(b"H", _encoder.encode(began))
        start = self._waiting[0].at - _HEADER.size if self._waiting else self._end
        try:
            file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            try:
                _write_all(file, head)
                _copy(self._file, start, self._end, file)
                fresh.replace(self._path)
            except OSError:
                os.close(file)
                raise
        except OSError as error:
            log.warning("outbox.compaction_failed", path=str(self._path), error=error.strerror)
            return
        os.close(self._file)
        self._file, self._end = file, len(head) + self._end - start
        for entry in self._waiting:
            entry.at += len(head) - start


class Outboxes:
    """A producer's outboxes by lane, each in a folder of its own: `outbox-<lane>`. Not thread-safe.

    Use `open`. Iterates from the highest lane to the lowest.

    Attributes:
        lane_of: the lane of each epoch that was known when its outbox was opened; it is replaced, never
            changed, so any thread may read it.
    """

    def __init__(self, boxes: dict[Lane, Outbox], opener: Callable[[Lane], Outbox]) -> None:
        self._boxes = boxes
        self._opener = opener
        self.lane_of: Mapping[str, Lane] = _lanes(boxes)

    @classmethod
    def open(
        cls,
        folder: Path,
        lanes: Collection[Lane],
        source: str,
        capacity: int,
        *,
        boot: str,
        draw: Callable[[], str],
        max_bytes: int = 256 * 1024 * 1024,
        added_before: Mapping[Lane, int] = MappingProxyType({}),
    ) -> Self:
        """Open the outboxes of the lanes that are used, and of those that were: their events may still wait.

        Args:
            folder: the module's state folder.
            lanes: the lanes that events will be added to.
            source: CloudEvents source of new events.
            capacity: events that may wait in each lane, 1 or more.
            boot: identity of this boot of the machine.
            draw: gives the name of a new epoch; it must never repeat, in no lane.
            max_bytes: bytes of waiting events in each lane.
            added_before: events ever added to a lane, for a journal that is gone.

        Raises:
            Unavailable: another process has one of them open.
        """

        def opener(lane: Lane) -> Outbox:
            return Outbox.open(
                folder / f"outbox-{lane}", lane, source, capacity, boot=boot, draw=draw, max_bytes=max_bytes,
                added_before=added_before.get(lane, 0),
            )  # fmt: skip

        boxes: dict[Lane, Outbox] = {}
        try:
            for lane in LANES:
                if lane in lanes or (folder / f"outbox-{lane}").exists():
                    boxes[lane] = opener(lane)
        except BaseException:
            for box in boxes.values():
                box.close()
            raise
        return cls(boxes, opener)

    def ensure(self, lane: Lane) -> Outbox:
        """The outbox of a lane, opened now where it was not used before.

        Raises:
            Unavailable: another process has it open, or it cannot be made.
        """
        if lane not in self._boxes:
            try:
                box = self._opener(lane)
            except OSError as error:
                raise Unavailable(
                    f"outbox of lane {lane}: cannot be made: {error.strerror} (make room, or check the disk)"
                ) from error
            boxes = {**self._boxes, lane: box}
            self._boxes = {each: boxes[each] for each in LANES if each in boxes}
            self.lane_of = _lanes(self._boxes)
        return self._boxes[lane]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, lane: Lane) -> Outbox:
        """The outbox of a lane that is open.

        Raises:
            KeyError: it is not.
        """
        return self._boxes[lane]

    def __iter__(self) -> Iterator[Outbox]:
        return iter(self._boxes.values())

    @property
    def waiting(self) -> int:
        """Events that wait for acceptance, all lanes together."""
        return sum(len(box) for box in self)

    @property
    def added(self) -> int:
        """Events added in all epochs of all lanes."""
        return sum(box.added for box in self)

    def close(self) -> None:
        """Close the files; what waits stays in them."""
        for box in self:
            box.close()


def _lanes(boxes: Mapping[Lane, Outbox]) -> dict[str, Lane]:
    return {epoch: lane for lane, box in boxes.items() for epoch in box.epochs}


def _lock(folder: Path) -> int:
    """Keep every other process out, until closed or killed."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise Unavailable(
            f"{folder}: expected to be alone, got an outbox in use (give each module its own state folder)"
        ) from error
    return handle


def _crc(kind: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(kind))


def _pack(kind: bytes, payload: bytes) -> bytes:
    return _HEADER.pack(kind, len(payload), _crc(kind, payload)) + payload


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _copy(source: int, start: int, end: int, target: int) -> None:
    """Append source[start:end] to the target, inside the kernel."""
    while start < end:
        sent = os.sendfile(target, source, start, end - start)
        if sent == 0:
            raise OSError(errno.EIO, "the file is shorter than it was")
        start += sent
