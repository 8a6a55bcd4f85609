"""How late it is at least, on a device whose clock may say anything.

Every timestamp and every root says when it was signed. The latest such time, and how long the device has run
since, is a floor under the real time: it needs no battery, network or honest clock, and never comes from
a clock.
"""

from __future__ import annotations

import msgspec


class Running(msgspec.Struct, frozen=True):
    """How long this boot has lasted: `clock.boot_id()` and `time.monotonic()`."""

    boot: str
    seconds: float


class Floor(msgspec.Struct, frozen=True):
    """It was at least `utc_s` when the device had run for `running.seconds` in that boot."""

    utc_s: float
    """POSIX time in seconds."""
    running: Running | None = None


def raised(floor: Floor, utc_s: float) -> Floor:
    """The floor, after something was seen that was signed at `utc_s`."""
    return Floor(max(floor.utc_s, utc_s), floor.running)


def later(floor: Floor, running: Running | None) -> Floor:
    """The floor now: the device has run since it was noted, in this boot or in another one.

    Args:
        floor: as noted.
        running: now; None where nobody counts.
    """
    if running is None:
        return floor
    before = floor.running
    if before is None:
        return Floor(floor.utc_s, running)
    since = running.seconds - (before.seconds if before.boot == running.boot else 0.0)
    return Floor(floor.utc_s + max(since, 0.0), running)


def reference(floor: Floor, now: float, clock_trusted: bool) -> float:
    """What expiry is judged by: the larger of the floor and a clock that can be believed, in POSIX seconds.

    A clock before the floor is wrong, whatever the kernel holds of it; one that is not disciplined may be
    years ahead.
    """
    return max(floor.utc_s, now) if clock_trusted else floor.utc_s
