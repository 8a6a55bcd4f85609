"""Time, read at the rim and passed inwards as numbers."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path


def utc(seconds: float | None = None) -> str:
    """RFC 3339 in UTC with milliseconds, of now or of a POSIX time in seconds."""
    moment = datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def boot_id() -> str:
    """Identity of this boot: monotonic times compare only within it.

    Source: proc(5), /proc/sys/kernel/random/boot_id.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
