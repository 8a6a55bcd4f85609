"""Whether the far end is tried: closed while it answers, open while it is left alone, half-open to probe."""

from __future__ import annotations

import math
from typing import Literal

from skerry.uplink.backoff import Backoff

State = Literal["closed", "half-open", "open"]
STATES: tuple[State, ...] = ("closed", "half-open", "open")


class Circuit:
    """Opens at the first failure; after a wait that grows, one batch is the probe. Pure.

    Source: Nygard: Release It!, 2nd edition, section 5.2 (Circuit Breaker).

    Args:
        backoff: how long it stays open.
        longest_asked_s: the longest wait that the far end may ask for.
    """

    def __init__(self, backoff: Backoff, longest_asked_s: float = math.inf) -> None:
        self._backoff = backoff
        self._longest_asked_s = longest_asked_s
        self._until = 0.0
        self._asked_until = 0.0
        self.failures = 0

    def go_by(self, backoff: Backoff, longest_asked_s: float) -> None:
        """Wait otherwise from the next failure on."""
        self._backoff, self._longest_asked_s = backoff, longest_asked_s

    def state(self, now: float) -> State:
        """The state at a monotonic time in seconds."""
        if not self.failures:
            return "closed"
        return "open" if now < self._until else "half-open"

    def wait_s(self, now: float) -> float:
        """Seconds until the far end may be tried; 0 when it may be now."""
        return max(self._until - now, 0.0) if self.failures else 0.0

    def failed(self, now: float, asked_s: float = 0.0) -> float:
        """Note a failure; the seconds that it stays open.

        Args:
            now: monotonic time, in seconds.
            asked_s: how long the far end asks to be left alone. The backoff comes on top: a far end tells
                all its sites the same, and they would come back in step.
        """
        self.failures += 1
        asked_s = min(asked_s, self._longest_asked_s)
        wait = asked_s + self._backoff.failed()
        self._until, self._asked_until = now + wait, now + asked_s
        return wait

    def hurry(self, until: float) -> None:
        """Try again no later than this, but no sooner than was asked for: there is not much time left."""
        self._until = min(self._until, max(until, self._asked_until))

    def succeeded(self) -> bool:
        """Note that the far end has confirmed something; whether that is news."""
        news = self.failures > 0
        self.failures = 0
        self._backoff.succeeded()
        return news
