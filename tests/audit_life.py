"""A life of the audit log: what it promises, and what must hold after any crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.audit import LEAST_BYTES, AuditLog, Head, Stamp, entries, verify
from skerry.disk import Disk

ENTRIES = 24
"""Enough for more segments than are kept."""
_REASON = "because " * 350


def opened(folder: Path, disk: Disk) -> AuditLog:
    return AuditLog(
        folder, LEAST_BYTES, stamp=lambda: Stamp("2026-01-01T00:00:00.000Z", "boot", 1), disk=disk
    )


def live(folder: Path, disk: Disk, promise: Callable[[Any], None] = lambda _head: None) -> None:
    """Append, twice from the start; promised are heads, as they would be reported elsewhere."""
    for half in range(2):
        log = opened(folder, disk)
        for n in range(ENTRIES // 2):
            if log.append("step", step=f"{half}.{n}", reason=_REASON) is not None:
                promise(str(log.head))
        log.close()


def check(folder: Path, promised: str, *, torn: bool = True) -> None:
    """That a log opens whole, with every entry that was promised, and takes another one.

    Args:
        folder: of the log.
        promised: the last head, if any.
        torn: an entry may have been cut off.
    """
    head = Head.parse(promised) if promised else Head()
    before = verify(folder, head) if folder.is_dir() else None
    assert before is None or not before.problems or torn, before
    with opened(folder, Disk()) as log:
        assert log.fault is None, log.fault
        said = [e.what for e in entries(folder)]
        assert "damaged" not in said, "a crash is no damage"
        assert log.append("scrubbed") is not None
        report = verify(folder, head)
        assert not report.problems, report
        assert report.unfinished == 0
        assert log.head == report.head
        assert sum(p.stat().st_size for p in folder.iterdir()) <= LEAST_BYTES
