"""How many may come: some at once, the rest at an even pace."""

from __future__ import annotations


class Bucket:
    """A token bucket. Pure: time comes as an argument.

    Args:
        per_min: tokens that come in a minute.
        most: tokens that it holds, 1 or more.
        now: monotonic seconds.

    Source: ITU-T Recommendation I.371, annex A: the continuous-state leaky bucket.
    """

    def __init__(self, per_min: float, most: float, now: float) -> None:
        self._per_s = per_min / 60
        self._most = max(most, 1.0)
        self._tokens = self._most
        self._at = now

    def take(self, now: float) -> float:
        """Take one; 0 when there was one, else how long to wait for it, in seconds."""
        self._tokens = min(self._most, self._tokens + max(now - self._at, 0.0) * self._per_s)
        self._at = max(now, self._at)
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._per_s
