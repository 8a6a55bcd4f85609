"""Whether the far end is tried: closed while it answers, open while it is left alone, half-open to probe."""

from __future__ import annotations

from typing import Literal

from skerry.uplink.backoff import Backoff

State = Literal["closed", "half-open", "open"]
STATES: tuple[State, ...] = ("closed", "half-open", "open")


class Circuit:
    """Opens at the first failure; after a wait that grows, one batch is the probe. Pure.

    Source: Nygard: Release It!, 2nd edition, section 5.2 (Circuit Breaker).

    Args:
        backoff: how long it stays open.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._until = 0.0
        self.failures = 0

    def state(self, now: float) -> State:
        """The state at a monotonic time in seconds."""
        if not self.failures:
            return "closed"
        return "open" if now < self._until else "half-open"

    def wait_s(self, now: float) -> float:
        """Seconds until the far end may be tried; 0 when it may be now."""
        return max(self._until - now, 0.0) if self.failures else 0.0

    def failed(self, now: float) -> float:
        """Note a failure; the seconds that it stays open."""
        self.failures += 1
        wait = self._backoff.failed()
        self._until = now + wait
        return wait

    def hurry(self, until: float) -> None:
        """Try again no later than this: there is not much time left."""
        self._until = min(self._until, until)

    def succeeded(self) -> bool:
        """Note that the far end has confirmed something; whether that is news."""
        news = self.failures > 0
        self.failures = 0
        self._backoff.succeeded()
        return news
