"""What was done with models here: an append-only log, each entry chained to the one before by its hash.

    FOLDER/00000001.jsonl    entries 1 to 340, one a line
    FOLDER/00000341.jsonl    the next segment, named by its first entry; its `previous` is the hash of 340

An entry is canonical JSON: keys sorted, no space, UTF-8. Its `hash` is the sha256 of itself without `hash`,
so of everything before it, too, through `previous`. The log takes a bounded room: the oldest segments go,
and an entry that says so is durable before they do.

What is appended, and with which fields (all text, but `refreshed`'s):

    refreshed    signed metadata was accepted                      root, targets (versions)
    chosen       what the site or its operator asks for changed    slot model version digest reason
    fetched      a package is here, complete and verified          model version digest
    refused      a package or a repository was                     slot model version digest reason
    offered      inference was asked to try it                     slot model version digest
    step         inference took a step of its activation           slot model version digest step reason
    confirmed    it has proved itself and serves                   slot model version digest
    withdrawn    it was taken back before it served                slot model version digest reason
    rolled_back  it served, and the one before serves again        slot model version digest reason
    scrubbed     every hash in the store was compared              reason (what was found)
    fell_back    a damaged package was replaced by another here    slot model version digest reason

`slot` is where a model serves; `digest` the package's, 64 hexadecimal digits; `step` one of those that
inference reports. The log itself adds `dropped` (through, hash: where what is left begins), `cut` (bytes,
sha256: what a power cut left of an entry was removed), `missed` (count: entries that the disk did not take),
and `damaged` (reason).

It is proof against accidents and against changes by who cannot compute hashes. Whoever may write the folder
can write another chain: so `head` is reported elsewhere, and `verify` compares with what was reported.
See docs/audit.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import msgspec
import structlog

from skerry.clock import boot_id, utc
from skerry.disk import Disk
from skerry.errors import Unavailable

What = Literal[
    "refreshed", "chosen", "fetched", "refused", "offered", "step", "confirmed", "withdrawn", "rolled_back",
    "scrubbed", "fell_back",
]  # fmt: skip
OWN = ("dropped", "cut", "missed", "damaged")
"""What only the log itself says."""
Field = str | int | float | bool | None

SEGMENTS = 7
"""At most so many, each of an eighth of the limit."""
LEAST_BYTES = 64 * 1024
ENTRY_BYTES = 4096
WAITING = 256
"""Entries that wait for a disk that fails; later ones are counted."""
_FIRST = "0" * 64
_SEGMENT = re.compile(r"[0-9]{8,16}\.jsonl")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}")
_HEX = re.compile(r"[0-9a-f]{64}")
_PIECE = 64 * 1024
_FIELDS_BYTES = ENTRY_BYTES - 512
_MOST_PROBLEMS = 100
_TRIES = 5
_SHORTER = (2000, 400, 80)
"""Characters that a text is cut to, the first of these that makes the entry fit."""

log = structlog.get_logger()


class Head(NamedTuple):
    """Where a log ends: the number of its last entry, 0 where there is none, and that entry's hash."""

    number: int = 0
    hash: str = _FIRST

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Of `NUMBER:HASH`.

        Raises:
            ValueError: it is something else.
        """
        number, _, value = text.partition(":")
        if not number.isascii() or not number.isdecimal() or len(number) > 16 or not _HEX.fullmatch(value):
            raise ValueError(f"expected NUMBER:HASH with 64 hexadecimal digits, got {text[:90]!r}")
        return cls(int(number), value)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line.

    Attributes:
        number: from 1, without gaps.
        at: wall time, RFC 3339 in UTC; as good as the clock was.
        boot: identity of the boot, and
        monotonic_ms: how long it had lasted: the order and distance of entries of one boot, whatever the
            clock says.
        previous: hash of the entry before; zeros in the first.
        what: see the module.
        fields: of it.
        hash: sha256 of all this, hexadecimal.
    """

    number: int
    at: str
    boot: str
    monotonic_ms: int
    previous: str
    what: str
    fields: dict[str, Field]
    hash: str

    @property
    def head(self) -> Head:
        return Head(self.number, self.hash)


@dataclass(frozen=True)
class Stamp:
    """When something happened; see `Entry`."""

    at: str
    boot: str
    monotonic_ms: int


def now() -> Stamp:
    """This moment, of this boot."""
    try:
        boot = boot_id()
    except OSError:  # no /proc: order within the log is still told by the numbers
        boot = ""
    return Stamp(utc(), boot, time.monotonic_ns() // 1_000_000)


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        head: of the last entry that is whole.
        entries: how many there are.
        first: number of the first that is still there; 0 where there is none.
        problems: what was changed, removed, reordered, inserted or cut off; empty if the log is whole.
        unfinished: bytes after the last entry that are none: of one that is being written, or was at a power
            cut; the next start removes them and says so.
    """

    head: Head
    entries: int
    first: int
    problems: tuple[str, ...]
    unfinished: int = 0


def canonical(value: Any) -> bytes:
    """JSON in one form: keys sorted by code point, no space, UTF-8."""
    return msgspec.json.encode(value, order="sorted")


def seal(head: Head, stamp: Stamp, what: str, fields: dict[str, Field]) -> tuple[Entry, bytes]:
    """The entry that follows a head, and its line, the line break included."""
    content: dict[str, Any] = {
        "number": head.number + 1, "at": stamp.at, "boot": stamp.boot, "monotonic_ms": stamp.monotonic_ms,
        "previous": head.hash, "what": what, "fields": fields,
    }  # fmt: skip
    content["hash"] = hashlib.sha256(canonical(content)).hexdigest()
    return msgspec.convert(content, Entry), canonical(content) + b"\n"


class AuditLog:
    """The log, for writing; one process at a time has it.

    Nothing here raises for what a disk does: whoever keeps a log must be able to go on without it. An entry
    that could not be made durable waits in memory, up to `WAITING` of them, and goes first when the next one
    is appended or `flush` is called; `fault` says why, and the log of the process does. What did not even
    fit there is counted, and the count is an entry (`missed`) as soon as there can be one. What waits when
    the process ends is lost. `head` never names an entry that is not durable.

    Args:
        folder: made if missing, with its parents.
        limit_bytes: the most that it takes, `LEAST_BYTES` or more.
        stamp: gives the time of an entry.
        disk: what it is on.

    Raises:
        ValueError: the limit is too low.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int = 4 * 1024 * 1024,
        *,
        stamp: Callable[[], Stamp] = now,
        disk: Disk | None = None,
    ) -> None:
        if limit_bytes < LEAST_BYTES:
            raise ValueError(f"limit_bytes: expected {LEAST_BYTES} or more, got {limit_bytes}")
        self.folder = folder
        self.fault: str | None = None
        self._segment_bytes = limit_bytes // (SEGMENTS + 1)
        self._stamp = stamp
        self._disk = disk or Disk()
        self._mutex = threading.Lock()
        self._waiting: list[tuple[Stamp, str, dict[str, Field]]] = []
        self._missed = 0
        self._owner = -1
        self._head = Head()
        self._segments: list[_Start] = []
        self._last: Path | None = None
        self._size = 0
        self._gone = 0
        self.flush()

    @property
    def head(self) -> Head:
        """Of the last durable entry; `Head()` where there is none, or the log could not be read yet."""
        return self._head

    @property
    def waiting(self) -> int:
        """Entries that are not durable yet, or were missed."""
        return len(self._waiting) + self._missed

    def append(self, what: What, **fields: Field) -> Entry | None:
        """Add an entry.

        Args:
            what: see the module.
            fields: of it; None is left out, text that is too long is cut, with an ellipsis.

        Returns:
            The entry, which survives whatever happens from now on; None where it waits, see `fault`.

        Raises:
            ValueError: the log says that itself, or the fields do not fit an entry at all.
        """
        if what in OWN or not _WORD.fullmatch(what):
            raise ValueError(f"expected a word that is not the log's own, got {what!r}")
        content = _fitting(fields)
        with self._mutex:
            if len(self._waiting) >= WAITING:
                self._flush()
            if len(self._waiting) >= WAITING:
                self._missed += 1
                return None
            self._waiting.append((self._stamp(), what, content))
            return self._flush()

    def flush(self) -> bool:
        """Try again what waits; whether everything is durable now."""
        with self._mutex:
            self._flush()
            return self.fault is None

    def entries(self) -> tuple[Entry, ...]:
        """What is in it, oldest first; see `entries`."""
        return entries(self.folder)

    def close(self) -> None:
        """Let another process have it. Nothing needs to be written."""
        with self._mutex:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> Entry | None:
        last = None
        try:
            if self._owner < 0:
                self._open()
            self._remove_gone()
            while self._waiting:
                last = self._write(*self._waiting[0])
                del self._waiting[0]
            if self._missed:
                self._write(self._stamp(), "missed", {"count": self._missed})
                self._missed = 0
        except OSError as error:
            if isinstance(error, FileNotFoundError):  # somebody removed it: look again at what is there
                self._release()
            reason = f"{error.filename or self.folder}: {error.strerror or error}"
            if self.fault != reason:
                log.warning(
                    "audit.not_kept", folder=str(self.folder), error=reason, waiting=len(self._waiting)
                )
            self.fault = reason
            return None
        if self.fault is not None:
            log.info("audit.kept_again", folder=str(self.folder), head=self._head.number)
        self.fault = None
        return last

    def _open(self) -> None:
        """Take the folder, read what is there, and remove what a power cut left of an entry."""
        _make(self.folder, self._disk)
        owner = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OSError(error.errno, "another process has this log", str(self.folder)) from error
            self._recover()
        except BaseException:
            os.close(owner)
            raise
        self._owner = owner

    def _recover(self) -> None:
        found = _Reader(self.folder, self._disk, lambda _entry: None).read()
        self._head, self._segments, self._gone = found.head, found.segments, found.gone
        self._last, self._size = None, 0
        if found.end_damaged:  # leave it as it is, as evidence, and go on beside it
            self._head = Head(max(found.head.number, found.segments[-1].number), found.head.hash)
        elif found.segments:
            self._last, self._size = _path(self.folder, found.segments[-1].number), found.whole
            self._pin(self._last, found)
        says: list[tuple[str, dict[str, Field]]] = []
        if found.tail:
            log.warning("audit.cut", folder=str(self.folder), bytes=len(found.tail))
            digest = hashlib.sha256(found.tail).hexdigest()
            says.append(("cut", {"bytes": len(found.tail), "sha256": digest}))
        if found.problems and found.problems[0] != found.told:
            log.error("audit.damaged", folder=str(self.folder), problems=found.problems[:10])
            says.append(("damaged", {"reason": found.problems[0]}))
        self._waiting[:0] = [(self._stamp(), what, fields) for what, fields in says]

    def _pin(self, path: Path, found: _Found) -> None:
        """Make what was read durable, before anything is told of it; cut off what is no entry."""
        file = self._disk.open(path, writing=True)
        try:
            if found.tail:
                self._disk.truncate(file, found.whole)
            self._disk.sync(file)
        finally:
            self._disk.close(file)
        self._disk.sync_folder(self.folder)

    def _write(self, stamp: Stamp, what: str, fields: dict[str, Field]) -> Entry:
        """One durable entry, in a new segment where this one is full."""
        if self._last is not None and self._size + ENTRY_BYTES > self._segment_bytes:
            self._last = None
        if self._last is None and len(self._segments) >= SEGMENTS:
            second = self._segments[1]
            gone: dict[str, Field] = {"through": second.number - 1, "hash": second.previous}
            self._add(self._stamp(), "dropped", gone)
            self._gone = second.number - 1
            self._remove_gone()
        return self._add(stamp, what, fields)

    def _add(self, stamp: Stamp, what: str, fields: dict[str, Field]) -> Entry:
        entry, line = seal(self._head, stamp, what, fields)
        if self._last is None:
            path = _path(self.folder, entry.number)
            self._begin(path, line)
            self._segments.append(_Start(entry.number, entry.previous))
            self._last, self._size = path, 0
        else:
            self._put(self._last, line)
        self._size += len(line)
        self._head = entry.head
        return entry

    def _begin(self, path: Path, line: bytes) -> None:
        """A durable segment of one line, where there may be the rest of an attempt."""
        try:
            file = self._disk.create(path)
        except FileExistsError:
            file = self._disk.open(path, writing=True)
        try:
            self._fill(file, line, 0)
        finally:
            self._disk.close(file)
        self._disk.sync_folder(self.folder)

    def _put(self, path: Path, line: bytes) -> None:
        file = self._disk.open(path, writing=True)
        try:
            self._fill(file, line, self._size)
        finally:
            self._disk.close(file)

    def _fill(self, file: int, line: bytes, at: int) -> None:
        """After a failure all of it is written again: no flush tells of the same failure twice.

        What is written again is never shorter: the same entry, or one of a later time or higher count.
        """
        self._disk.write(file, line, at)
        self._disk.sync(file)

    def _remove_gone(self) -> None:
        """Remove the segments whose end the log itself has told of, durably."""
        while len(self._segments) > 1 and self._segments[1].number - 1 <= self._gone:
            self._disk.unlink(_path(self.folder, self._segments[0].number))
            del self._segments[0]

    def _release(self) -> None:
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1


def entries(folder: Path) -> tuple[Entry, ...]:
    """What is in a log and whole, oldest first; somebody may be writing it.

    Raises:
        Unavailable: it cannot be read.
    """
    return read(folder)[1]


def verify(folder: Path, head: Head | None = None) -> Report:
    """Whether a log is what was written; somebody may be writing it.

    Args:
        folder: of the log.
        head: what the log's head was once, as it was reported elsewhere: without it, entries missing at the
            end are not noticed, nor is another log in the place of this one.

    Raises:
        Unavailable: it cannot be read.
    """
    return read(folder, head)[0]


def read(folder: Path, head: Head | None = None) -> tuple[Report, tuple[Entry, ...]]:
    """`verify` and `entries` of one moment."""
    disk = Disk()
    for _ in range(_TRIES):
        there: list[Entry] = []
        try:
            found = _Reader(folder, disk, there.append).read()
        except FileNotFoundError as error:
            if not folder.is_dir():
                raise Unavailable(f"{folder}: expected the folder of an audit log, got none") from error
            continue  # the oldest segment has just been dropped
        except OSError as error:
            raise Unavailable(f"{error.filename or folder}: {error.strerror}") from error
        problems = [*found.problems, *_misfits(found, there, head)]
        first = there[0].number if there else 0
        return Report(found.head, len(there), first, tuple(problems), len(found.tail)), tuple(there)
    raise Unavailable(f"{folder}: it changes faster than it can be read (try again)")


class _Start(NamedTuple):
    """Of a segment: its first entry's number, as its name says, and what that has as `previous`."""

    number: int
    previous: str


@dataclass
class _Found:
    """What is in a folder.

    Attributes:
        segments: in order.
        head: of the last entry that is whole.
        problems: all but an unfinished end.
        told: of the first problem, as the log last told of it.
        gone: entries up to this one were dropped.
        tail: bytes after the last entry of the last segment, which are none.
        whole: bytes of the last segment before them.
        end_damaged: the last segment ends with something that no power cut leaves.
    """

    segments: list[_Start]
    head: Head = field(default_factory=Head)
    problems: list[str] = field(default_factory=list)
    told: str = ""
    gone: int = 0
    tail: bytes = b""
    whole: int = 0
    end_damaged: bool = False


class _Reader:
    """Reads and judges the whole of a log.

    Args:
        folder: of the log.
        disk: what it is on.
        each: gets every entry that is whole.
    """

    def __init__(self, folder: Path, disk: Disk, each: Callable[[Entry], object]) -> None:
        self._folder = folder
        self._disk = disk
        self._each = each
        self._found = _Found([])
        self._dropped: set[Head] = set()

    def read(self) -> _Found:
        """Once.

        Raises:
            OSError: it cannot be read.
        """
        numbers = []
        for path in self._folder.iterdir():
            if _SEGMENT.fullmatch(path.name) and _path(self._folder, int(path.stem)) == path:
                numbers.append(int(path.stem))
            else:
                self._say(f"{path.name[:90]!r}: expected nothing but segments")
        for number in sorted(numbers):
            self._segment(number, last=number == max(numbers))
        if found := self._found.segments:
            first = found[0]
            if first.number > 1 and Head(first.number - 1, first.previous) not in self._dropped:
                self._say(f"expected entry 1, or word of what was dropped, got {first.number} as the first")
        return self._found

    def _segment(self, number: int, *, last: bool) -> None:
        found, path = self._found, _path(self._folder, number)
        start = _Start(number, found.head.hash)
        if found.head.number and number != found.head.number + 1:
            self._say(f"{path.name}: expected the segment of entry {found.head.number + 1}")
        if not stat.S_ISREG(path.lstat().st_mode):
            self._say(f"{path.name}: expected a file")
            found.segments.append(start)
            found.end_damaged = last
            return
        bad, at, whole, row = "", 0, 0, 0
        line = b""
        for n, line in enumerate(_lines(self._disk, path), 1):
            at += len(line)
            if bad:
                self._say(bad)
            where = f"{path.name}, line {n}"
            entry = _parsed(line)
            bad = "" if entry else f"{where}: expected an entry as it was written, got something else"
            row = 0 if entry else row + 1
            if entry is None:
                continue
            whole = at
            if n == 1:
                start = _Start(number, entry.previous)
                if entry.number != number:
                    self._say(
                        f"{where}: expected entry {number}, as the segment's name says, got {entry.number}"
                    )
            self._entry(where, entry)
        found.segments.append(start)
        one = row == 1 and len(line) <= ENTRY_BYTES
        if bad and last and one:
            found.tail = line
        elif bad:
            self._say(bad)
        elif not line and not last:
            self._say(f"{path.name}: expected entries, got none")
        if last:
            found.whole, found.end_damaged = whole, row > 0 and not one

    def _entry(self, where: str, entry: Entry) -> None:
        found, head = self._found, self._found.head
        if head.number and entry.number != head.number + 1:
            self._say(f"{where}: expected entry {head.number + 1}, got {entry.number}")
        elif (head.number or entry.number == 1) and entry.previous != head.hash:
            self._say(f"{where}: expected it to follow {head.hash[:16]}, got {entry.previous[:16]}")
        found.head = entry.head
        if entry.what == "dropped":
            through, value = entry.fields.get("through"), entry.fields.get("hash")
            if isinstance(through, int) and isinstance(value, str):
                self._dropped.add(Head(through, value))
                found.gone = max(found.gone, through)
        elif entry.what == "damaged":
            found.told = str(entry.fields.get("reason"))
        self._each(entry)

    def _say(self, problem: str) -> None:
        if len(self._found.problems) < _MOST_PROBLEMS:
            self._found.problems.append(problem)


def _lines(disk: Disk, path: Path) -> Iterator[bytes]:
    """Lines with their line breaks; what is longer than any entry comes in pieces."""
    file = disk.open(path)
    try:
        at, rest = 0, b""
        while piece := disk.read(file, _PIECE, at):
            at += len(piece)
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line + b"\n"
            if len(rest) > ENTRY_BYTES:
                yield rest
                rest = b""
        if rest:
            yield rest
    finally:
        disk.close(file)


def _parsed(line: bytes) -> Entry | None:
    """The entry that a line is, byte by byte; None if it is none."""
    try:
        entry = msgspec.json.decode(line, type=Entry)
        content = msgspec.to_builtins(entry)
        whole = canonical(content) + b"\n" == line
        claimed = content.pop("hash")
        return entry if whole and claimed == hashlib.sha256(canonical(content)).hexdigest() else None
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def _misfits(found: _Found, there: list[Entry], head: Head | None) -> Iterator[str]:
    """What is wrong at the end, and with a head that was reported."""
    if found.tail.endswith(b"\n"):
        yield (
            f"after entry {found.head.number}: expected an entry as it was written, got something else "
            "(changed, or a power cut that the next start will tell of)"
        )
    if head is None or head == Head():
        return
    by_number = {entry.number: entry.hash for entry in there}
    if there:
        by_number.setdefault(there[0].number - 1, there[0].previous)
    if head.number > found.head.number:
        yield f"expected entry {head.number}, which was reported, got {found.head.number} as the last"
    elif head.number not in by_number:
        yield f"expected a head of {min(by_number)} or later, got {head.number} (what it names is dropped)"
    elif by_number[head.number] != head.hash:
        seen = by_number[head.number][:16]
        yield f"entry {head.number}: expected {head.hash[:16]}, as was reported, got {seen}"


def _fitting(fields: dict[str, Field]) -> dict[str, Field]:
    """The fields as they are read again, with texts cut so that the entry fits.

    Raises:
        ValueError: they cannot be.
    """
    for longest in (ENTRY_BYTES, *_SHORTER):
        short = {name: _short(value, longest) for name, value in fields.items() if value is not None}
        try:
            content = canonical(short)
        except (TypeError, OverflowError, msgspec.MsgspecError) as error:
            raise ValueError(f"expected text and numbers, got {error}") from error
        if len(content) <= _FIELDS_BYTES:
            return msgspec.json.decode(content, type=dict[str, Field])
    raise ValueError(f"expected fields of at most {_FIELDS_BYTES} bytes, got {len(content)}")


def _short(value: Field, longest: int) -> Field:
    if not isinstance(value, str):
        return value
    text = value.encode(errors="backslashreplace").decode()
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.jsonl"


def _make(folder: Path, disk: Disk) -> None:
    """The folder and those it is in, durably."""
    if folder.is_dir():
        return
    _make(folder.parent, disk)
    with suppress(FileExistsError):
        disk.make_folder(folder)
    disk.sync_folder(folder.parent)
