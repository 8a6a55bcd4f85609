"""The far end is a file: one CloudEvent a line, durable, each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from skerry.errors import LinkDown
from skerry.messages import Event
from skerry.receiver import Watermarks
from skerry.uplink.journal import Journal

log = structlog.get_logger()


class _Name(msgspec.Struct, frozen=True):
    """What tells a repeat; the rest of a line is not looked at."""

    source: str
    epoch: str
    seq: int


class FileLink:
    """Appends to a file. It is its own far end, so it drops what the file has already.

    Args:
        path: the file; made if missing, with its folder.
    """

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._seen = Watermarks()
        self._open = False

    def open(self) -> None:
        decoder = msgspec.json.Decoder(_Name)
        self._seen = Watermarks()
        foreign = 0
        try:
            for line in self._journal.open():
                try:
                    name = decoder.decode(line)
                except msgspec.DecodeError:
                    foreign += 1
                else:
                    self._seen.fresh(name.source, name.epoch, name.seq)
        except OSError as error:
            raise self._down(error) from error
        if foreign:
            log.warning("file.lines_not_read", path=str(self._journal.path), lines=foreign)
        self._open = True

    def send(self, batch: Sequence[Event]) -> None:
        if not self._open:
            raise LinkDown(f"{self._journal.path}: the link is closed (open it first)")
        seen = Watermarks(self._seen.seen)
        fresh = [e for e in batch if seen.fresh(e.source, e.epoch, e.seq)]
        try:
            self._journal.append([msgspec.json.encode(e) for e in fresh])
        except OSError as error:
            self._open = False
            raise self._down(error) from error
        self._seen = seen

    def close(self) -> None:
        self._open = False
        self._journal.close()

    def _down(self, error: OSError) -> LinkDown:
        return LinkDown(
            f"{self._journal.path}: cannot write: {error.strerror or error} (make room, or check it)"
        )
