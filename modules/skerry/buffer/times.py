"""When things happened, although the wall clock may have been wrong: it is compared with the monotonic one.

Order never depends on any of this.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec
import structlog
from msgspec import UNSET

from skerry.buffer.blocks import Stamp
from skerry.buffer.disk import Disk
from skerry.clock import utc
from skerry.messages import Event

TOLERANCE_NS = 2_000_000_000
"""How far an event's time may be from that of its decision: exposure, inference and the bus come between."""
_DRIFT_NS = 100_000_000
"""A synchronised clock that has moved against the monotonic one by more than this is noted anew."""
_BOOTS = 16

log = structlog.get_logger()


class Anchor(msgspec.Struct, frozen=True, array_like=True):
    """One moment of a boot at which the wall clock could be believed."""

    boot: str
    mono_ns: int
    wall_ns: int


class Anchors:
    """What monotonic times of this boot and of some before it mean, on disk.

    Args:
        path: the file.
        disk: the file system.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._by_boot: dict[str, Anchor] = {}
        try:
            found = msgspec.json.decode(path.read_bytes(), type=list[Anchor])
        except (OSError, msgspec.DecodeError):
            found = []  # missing, or damaged: those boots stay uncorrected
        for anchor in found:
            self._by_boot[anchor.boot] = anchor

    def note(self, stamp: Stamp) -> None:
        """Take in a reading of the clocks."""
        if not stamp.synchronised:
            return
        known = self._by_boot.get(stamp.boot)
        if known is not None and abs(_offset(known) - (stamp.wall_ns - stamp.mono_ns)) < _DRIFT_NS:
            return
        self._by_boot.pop(stamp.boot, None)
        self._by_boot[stamp.boot] = Anchor(stamp.boot, stamp.mono_ns, stamp.wall_ns)
        kept = list(self._by_boot.values())[-_BOOTS:]
        self._by_boot = {a.boot: a for a in kept}
        try:
            self._disk.close(self._disk.write_file(self._path, msgspec.json.encode(kept)))
        except OSError as error:
            log.warning("clock.anchor_not_saved", error=error.strerror)

    def wall_ns(self, boot: str, mono_ns: int) -> int | None:
        """POSIX time in nanoseconds of a monotonic time; None where the clock was never synchronised."""
        anchor = self._by_boot.get(boot)
        return None if anchor is None else mono_ns + _offset(anchor)


def wants_correction(event: Event, stamp: Stamp) -> bool:
    """Whether an event's time disagrees with the clocks at its commit, or cannot be compared with them."""
    if not stamp.synchronised or event.bootid != stamp.boot:
        return True
    decided_ns = stamp.wall_ns - (stamp.mono_ns - event.monotonic)
    return not _near(event.time, decided_ns)


class _Times(msgspec.Struct, frozen=True):
    """What of an event is needed to judge its time."""

    time: str
    bootid: str
    monotonic: int


_times = msgspec.json.Decoder(_Times)
_event = msgspec.json.Decoder(Event)
_DOUBTFUL = b',"timequality":"unsynchronised"}'


def corrected(payload: bytes, anchors: Anchors) -> bytes:
    """An encoded event; its time reckoned from the monotonic clock if it was wrong, or marked as doubtful.

    Raises:
        msgspec.DecodeError: it is no event.
    """
    times = _times.decode(payload)
    decided_ns = anchors.wall_ns(times.bootid, times.monotonic)
    if decided_ns is None:
        if payload.endswith(b"}") and b'"timequality"' not in payload:
            return payload[:-1] + _DOUBTFUL
        event = msgspec.structs.replace(_event.decode(payload), timequality="unsynchronised")
        return msgspec.json.encode(event)
    if _near(times.time, decided_ns):
        return payload
    event = _event.decode(payload)
    recorded = event.time if event.recordedtime is UNSET else event.recordedtime
    event = msgspec.structs.replace(
        event, time=_utc(decided_ns), timequality="corrected", recordedtime=recorded
    )
    return msgspec.json.encode(event)


def _near(time: str, wall_ns: int) -> bool:
    try:
        seconds = datetime.fromisoformat(time).timestamp()
    except ValueError:
        return False
    return abs(seconds * 1e9 - wall_ns) <= TOLERANCE_NS


def _utc(wall_ns: int) -> str:
    """RFC 3339; what no calendar holds becomes its nearest end."""
    return utc(min(max(wall_ns / 1e9, 0.0), 253_402_300_799.0))


def _offset(anchor: Anchor) -> int:
    return anchor.wall_ns - anchor.mono_ns
