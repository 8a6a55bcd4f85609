"""The far end is a file: one CloudEvent a line, durable, each of them once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from skerry.errors import LinkDown
from skerry.receiver import Watermarks
from skerry.uplink.journal import Journal
from skerry.uplink.links import Cost, Link
from skerry.uplink.record import Record

log = structlog.get_logger()


class _Name(msgspec.Struct, frozen=True, gc=False):
    """What tells a repeat; the rest of a line is not looked at."""

    source: str
    epoch: str
    seq: int


class FileLink(Link):
    """Appends to a file. It is its own far end, so it drops what the file has already.

    One flush of the disk confirms every batch that was started before it.

    Args:
        path: the file; made if missing, with its folder.
    """

    def __init__(self, path: Path) -> None:
        self.window = 64
        self._journal = Journal(path)
        self._seen = Watermarks()
        self._open = False
        self._under_way = 0
        self._durable = 0  # of those under way

    def open(self) -> None:
        self._under_way = self._durable = 0
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

    def start(self, batch: Sequence[Record]) -> Cost:
        self._check()
        fresh = self._seen.fresh
        lines = [r.raw for r in batch if fresh((e := r.envelope).source, e.epoch, e.seq)]
        try:
            size = self._journal.write(lines) if lines else 0
        except OSError as error:
            self.close()
            raise self._down(error) from error
        self._under_way += 1
        return Cost(1, size)

    def finish(self, timeout_s: float = math.inf) -> bool:  # noqa: ARG002 - a disk is not waited for in parts
        self._check()
        if not self._under_way:
            return False
        if not self._durable:
            try:
                self._journal.sync()
            except OSError as error:
                self.close()
                raise self._down(error) from error
            self._durable = self._under_way
        self._durable -= 1
        self._under_way -= 1
        return True

    def close(self) -> None:
        self._open = False
        self._journal.close()

    def _check(self) -> None:
        if not self._open:
            raise LinkDown(f"{self._journal.path}: the link is closed (open it first)")

    def _down(self, error: OSError) -> LinkDown:
        return LinkDown(
            f"{self._journal.path}: cannot write: {error.strerror or error} (make room, or check it)"
        )
