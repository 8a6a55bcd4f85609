"""Where records wait that the far end will never take as they are: kept with the reason, out of the way."""

from __future__ import annotations

from pathlib import Path

import msgspec

from skerry.messages import Event
from skerry.receiver import Watermarks
from skerry.uplink.journal import Journal


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file."""

    time: str
    """When it was put here, UTC."""
    reason: str
    store: str
    offset: int
    event: Event


class Quarantine:
    """One JSON line a record, bounded: a full file becomes the old one and replaces the one before.

    Args:
        path: the file.
        max_bytes: when it is larger, a new one is begun.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._journal = Journal(path)
        self._seen = Watermarks()
        self._open = False

    @property
    def old(self) -> Path:
        """Where a full file goes."""
        return self._path.with_suffix(f".1{self._path.suffix}")

    def add(self, entry: Quarantined) -> bool:
        """Keep a record durably; False when it is there already (a repeat after a kill).

        Raises:
            OSError: it is not kept.
        """
        event = entry.event
        if not self._open:
            self._load()
        if self._seen.repeated(event.source, event.epoch, event.seq):
            return False
        line = msgspec.json.encode(entry)
        if self._journal.size and self._journal.size + len(line) > self._max_bytes:
            self._rotate()
        try:
            self._journal.append([line])
        except OSError:
            self._open = False
            raise
        self._seen.fresh(event.source, event.epoch, event.seq)
        return True

    def close(self) -> None:
        """Close the file."""
        self._journal.close()
        self._open = False

    def _load(self) -> None:
        for line in self._journal.open():
            try:
                event = msgspec.json.decode(line, type=Quarantined).event
            except msgspec.DecodeError:
                continue  # not ours, and in nobody's way
            self._seen.fresh(event.source, event.epoch, event.seq)
        self._open = True

    def _rotate(self) -> None:
        self._journal.close()
        self._path.replace(self.old)
        self._journal = Journal(self._path)
        for _ in self._journal.open():
            continue
