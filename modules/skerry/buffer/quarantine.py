"""Where records are kept that the far end will never take as they are: with the reason, out of the way.

One JSON line an entry in `quarantine.jsonl`, durable before the record leaves its lane. A full file becomes
`quarantine.1.jsonl`, in the place of the one before. An entry that was sent again stays, and a line after
it says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from skerry.buffer.disk import Disk
from skerry.messages import Lane

NAME = "quarantine.jsonl"
REQUESTS = "retry-*.json"

log = structlog.get_logger()


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One record that was put aside."""

    id: str
    """Of the event."""
    time: str
    """When it was put here, UTC."""
    lane: Lane
    chain: str
    offset: int
    reason: str
    event: msgspec.Raw
    """As it was accepted; null where it could not be read."""


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """Says of an entry that it was sent again."""

    retried: str
    """Id of the entry's event."""
    time: str
    again: str
    """Id of the event that it became."""


class Request(msgspec.Struct, frozen=True):
    """An operator's wish, as a file `retry-NAME.json` beside the quarantine."""

    ids: tuple[str, ...] = ()
    """Empty: all of them."""


class Listed(NamedTuple):
    """An entry, and what became of it."""

    entry: Entry
    again: str
    """Id of the event that repeated it, or ""."""


class Quarantine:
    """The file of one store. Not thread-safe.

    Args:
        folder: of the store.
        disk: the file system.
        max_bytes: when it is larger, a new one is begun.
    """

    def __init__(self, folder: Path, disk: Disk, max_bytes: int) -> None:
        self._path = folder / NAME
        self._disk = disk
        self._max_bytes = max_bytes
        self._file = -1
        self._size = 0
        self._known: set[tuple[Lane, str]] = set()  # (lane, id of the event)

    def add(self, entry: Entry) -> bool:
        """Keep a record durably; False when it is there already (a repeat after a kill).

        Raises:
            OSError: it is not kept.
        """
        self._open()
        if (entry.lane, entry.id) in self._known:
            return False
        self._append(entry)
        self._known.add((entry.lane, entry.id))
        return True

    def retried(self, id_: str, again: str, time: str) -> None:
        """Note that an entry was sent again.

        Raises:
            OSError: it may not be noted.
        """
        self._open()
        self._append(Retried(retried=id_, again=again, time=time))

    def wanted(self, request: Request) -> list[Entry]:
        """The entries that an operator wants to be sent again, and that were not yet."""
        found = {x.entry.id: x for x in entries(self._path.parent)}
        open_ = [x.entry for x in found.values() if not x.again and bytes(x.entry.event) != b"null"]
        return [entry for entry in open_ if not request.ids or entry.id in request.ids]

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            self._disk.close(self._file)
            self._file = -1

    def _append(self, line: Entry | Retried) -> None:
        content = msgspec.json.encode(line) + b"\n"
        if self._size and self._size + len(content) > self._max_bytes:
            self._rotate()
        try:
            self._disk.write(self._file, content, self._size)
            self._disk.sync(self._file)
        except OSError:
            self.close()  # what is behind the last whole line is cut off when it is opened again
            raise
        self._size += len(content)

    def _open(self) -> None:
        if self._file >= 0:
            return
        new = not self._path.exists()
        file = self._disk.create(self._path) if new else self._disk.open(self._path)
        try:
            if new:
                self._disk.sync_folder(self._path.parent)
            whole = 0
            with self._path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        whole += len(line)
            self._disk.truncate(file, whole)
            self._disk.sync(file)
        except BaseException:
            self._disk.close(file)
            raise
        self._known = {(x.entry.lane, x.entry.id) for x in entries(self._path.parent)}
        self._file, self._size = file, whole

    def _rotate(self) -> None:
        self.close()
        log.warning("quarantine.rotated", path=str(self._path))
        self._disk.rename(self._path, _old(self._path))
        self._disk.sync_folder(self._path.parent)
        self._open()


def entries(folder: Path) -> list[Listed]:
    """Everything in a store's quarantine, oldest first; read-only."""
    found: dict[tuple[Lane, str], Entry] = {}
    again: dict[str, str] = {}
    path = folder / NAME
    for line in _lines(_old(path), path):
        try:
            item = msgspec.json.decode(line, type=_Line)
            if item.retried:
                again[item.retried] = item.again
            else:
                entry = msgspec.json.decode(line, type=Entry)
                found[entry.lane, entry.id] = entry
        except msgspec.DecodeError:
            continue  # torn by a power cut, or not ours
    return [Listed(entry, again.get(entry.id, "")) for entry in found.values()]


def ask(folder: Path, ids: tuple[str, ...], name: str) -> None:
    """Leave an operator's wish for the buffer that has, or will have, the store open.

    Raises:
        OSError: it could not be left.
    """
    disk = Disk()
    path = folder / f"retry-{name}.json"
    disk.close(disk.write_file(path, msgspec.json.encode(Request(ids))))


def requests(folder: Path) -> Iterator[tuple[Path, Request]]:
    """What operators want, oldest first; what cannot be read wants nothing."""
    for path in sorted(folder.glob(REQUESTS)):
        try:
            yield path, msgspec.json.decode(path.read_bytes(), type=Request)
        except (OSError, msgspec.DecodeError) as error:
            log.warning("quarantine.request_unreadable", path=path.name, error=str(error))
            yield path, Request(("",))


class _Line(msgspec.Struct, frozen=True):
    retried: str = ""
    again: str = ""


def _old(path: Path) -> Path:
    return path.with_suffix(f".1{path.suffix}")


def _lines(*paths: Path) -> Iterator[bytes]:
    for path in paths:
        try:
            with path.open("rb") as lines:
                yield from lines
        except FileNotFoundError:
            continue
