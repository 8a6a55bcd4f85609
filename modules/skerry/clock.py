"""Time, read at the rim and passed inwards as numbers."""

from __future__ import annotations

import ctypes
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


def synchronised() -> bool:
    """Whether the kernel's clock is disciplined (NTP, PTP, GPS): the wall time can be believed.

    False, too, where the kernel will not say.

    Source: adjtimex(2): `status` without STA_UNSYNC, and no TIME_ERROR.
    """
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: read only
    try:
        state = ctypes.CDLL(None).adjtimex(buffer)
    except (OSError, AttributeError):
        return False
    status = int.from_bytes(buffer.raw[_STATUS_AT : _STATUS_AT + 4], "little")
    return state not in {-1, _TIME_ERROR} and not status & _STA_UNSYNC


_TIMEX_BYTES = 256
"""More than `struct timex` takes (208 on 64-bit Linux)."""
_STATUS_AT = 5 * ctypes.sizeof(ctypes.c_long)
"""modes, offset, freq, maxerror and esterror come first, each in the space of a long."""
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5
