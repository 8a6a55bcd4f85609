"""Capture time as rules and tracker count it: what a result speaks for, and on- and off-delays."""

from __future__ import annotations

_ROUNDING_S = 1e-6
"""Sums of frame intervals that make up a delay exactly must not miss it by a rounding error."""


class KnownTime:
    """Seconds of which results say something.

    A good result speaks for the time until the next result, for `hold_s` at most. A failed one speaks
    for nothing, so the time after it is unknown: it moves no delay.
    """

    __slots__ = ("_good", "_hold_s", "_last_s", "seconds")

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._last_s: float | None = None
        self._good = False
        self.seconds = 0.0

    def hold(self, hold_s: float) -> None:
        """Let results speak for another time from now on."""
        self._hold_s = hold_s

    def step(self, now_s: float, good: bool) -> float:
        """Take a result of capture time `now_s`; returns the known seconds since the one before."""
        passed = 0.0
        if self._good and self._last_s is not None:
            passed = min(max(now_s - self._last_s, 0.0), self._hold_s)
        self._last_s, self._good = now_s, good
        self.seconds += passed
        return passed


class Delay:
    """A condition that must hold for a while before it is taken as true, and fail for a while as false.

    Source: IEC 61131-3, function blocks TON and TOF.
    """

    __slots__ = ("_off_s", "_on_s", "active", "since")

    def __init__(self, on_s: float, off_s: float) -> None:
        self._on_s, self._off_s = on_s, off_s
        self.active = False
        self.since: float | None = None
        """When the condition began to differ from `active`, on the clock of `step`; None when it agrees."""

    def step(self, clock_s: float, condition: bool, ripe: bool = True) -> bool:
        """Take the condition at `clock_s`; returns whether `active` has just changed.

        A change waits for a `ripe` moment, however long the delay has been over.
        """
        if condition == self.active:
            self.since = None
            return False
        if self.since is None:
            self.since = clock_s
        if not ripe or not reached(clock_s - self.since, self._off_s if self.active else self._on_s):
            return False
        self.active, self.since = condition, None
        return True


def reached(passed_s: float, delay_s: float) -> bool:
    """Whether a delay is over."""
    return passed_s >= delay_s - _ROUNDING_S
