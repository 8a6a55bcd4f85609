"""How many frames come, and what one costs: what a model may take so that it keeps up with its cameras."""

from __future__ import annotations

import statistics
import threading
from collections import defaultdict, deque

_OVER_S = 5.0
_FEWEST = 10
_FULL = 0.95
"""Share of the time that may be spent on frames; the rest is the loop's."""
_NOISE = 3.0
"""Differences that are none: the same model, measured twice on a machine with much else to do, was up to 2.1
times as slow as itself, though the best of many runs was taken."""


class Pace:
    """Frames of each model; they are inferred one after the other, on one thread. Thread-safe.

    Only frames that may be dropped count: a source that waits for its results sets no pace.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=1000))
        self._took: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=101))

    def came(self, model: int, now: float) -> None:
        """A frame for a model came, at this monotonic time in seconds."""
        with self._lock:
            self._came[model].append(now)

    def took(self, model: int, ms: float) -> None:
        """A frame was pre-processed, inferred and decoded in so many milliseconds."""
        with self._lock:
            self._took[model].append(ms)

    def changed(self, model: int) -> None:
        """It is another model now, whose times are not known."""
        with self._lock:
            self._took.pop(model, None)

    def limit_ms(self, model: int, now: float) -> float | None:
        """What a frame may take with another model at its best, so that it keeps up as this one does.

        The model that serves is the measure, at its best too: both have run on this machine, with whatever
        else runs on it.

        Returns:
            None where nothing is known, or the model that serves does not keep up itself.

        Args:
            model: which.
            now: monotonic, in seconds.
        """
        with self._lock:
            rates = {n: rate for n in self._came if (rate := self._rate(n, now))}
            if model not in rates or any(len(self._took[n]) < _FEWEST for n in rates):
                return None
            spent = {n: rate * statistics.median(self._took[n]) / 1000 for n, rate in rates.items()}
            best = min(self._took[model])
        room = _FULL - sum(spent.values())
        return None if room < 0 else best * max(1 + room / spent[model], _NOISE)

    def _rate(self, model: int, now: float) -> float:
        """Frames a second; 0 where there are too few."""
        recent = [t for t in self._came[model] if now - t < _OVER_S]
        if len(recent) < _FEWEST or recent[-1] <= recent[0]:
            return 0.0
        return (len(recent) - 1) / (recent[-1] - recent[0])
