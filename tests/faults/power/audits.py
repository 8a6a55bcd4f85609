"""The audit log under the recorder: after any cut it is whole, and what was promised is in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from audit_life import check, live
from skerry.disk import Disk


class Audits:
    """A fact is {"head": text}, of the log's last entry."""

    options = "noauto_da_alloc"  # the log must not need it

    def __init__(self) -> None:
        self.head = ""
        self.disk = Disk()
        structlog.configure(processors=[_nothing])

    def note(self, fact: Any) -> None:
        self.head = fact["head"]

    def work(self, folder: Path, promise: Callable[[object], None], draw: random.Random) -> None:
        live(folder / "log", self.disk, lambda head: promise({"head": head}))

    def check(self, folder: Path, draw: random.Random, ahead: Any) -> int:
        check(folder / "log", self.head)
        return 0


class Careless(Audits):
    """Forgets to flush entries."""

    def __init__(self) -> None:
        super().__init__()
        self.disk.sync = lambda _file: None  # type: ignore[method-assign]  # the point of it


def _nothing(_logger: object, _name: str, _event: object) -> Any:
    raise structlog.DropEvent
