"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Exponential, with full jitter: many sites that lost one far end do not come back in step.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Args:
        first_s: the longest wait after the first failure.
        last_s: the longest wait ever.
        draw: uniform in [0, 1).
    """

    def __init__(self, first_s: float, last_s: float, draw: Callable[[], float]) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._draw = draw
        self.failures = 0

    def failed(self) -> float:
        """Note a failure; the seconds to wait now."""
        longest = min(self._first_s * 2.0 ** min(self.failures, 60), self._last_s)
        self.failures += 1
        return longest * self._draw()

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = 0
