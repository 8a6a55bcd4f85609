"""What a module counts and how long things take: one source for /metrics, the bus and the screen."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator

from skerry.messages import Quantiles

Labels = tuple[tuple[str, str], ...]

_GROWTH = 1.02
_LOG = math.log(_GROWTH)
_BOUNDS_MS = (1, 2, 5, 10, 15, 20, 33, 50, 67, 100, 133, 200, 500, 1000, 2000, 5000, 10000, 60000)


class Latency:
    """A histogram of durations with relative error below 1 %, in constant memory.

    Buckets grow by 2 %, from 1 microsecond to 1 day (about 1,500 at most). Thread-safe.

    Source: Masson, Rim, Lee: DDSketch, VLDB 2019, section 2.
    """

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._lock = threading.Lock()
        self.count = 0
        self.sum_ms = 0.0
        self.max_ms = 0.0

    def add(self, ms: float) -> None:
        """Record one duration, in milliseconds; negative ones count as 0."""
        ms = min(max(ms, 0.001), 86_400_000.0)
        with self._lock:
            self._buckets[math.ceil(math.log(ms) / _LOG)] += 1
            self.count += 1
            self.sum_ms += ms
            self.max_ms = max(self.max_ms, ms)

    def quantile(self, q: float) -> float:
        """The `q`-quantile in milliseconds, 0 when nothing was recorded."""
        with self._lock:
            return self._quantile(q)

    def _quantile(self, q: float) -> float:
        rank, seen = q * (self.count - 1), 0
        for index in sorted(self._buckets):
            seen += self._buckets[index]
            if seen > rank:
                return float(min(_GROWTH**index * 2 / (1 + _GROWTH), self.max_ms))
        return 0.0

    def quantiles(self) -> Quantiles:
        """p50, p95, p99 and the maximum, rounded to microseconds."""
        with self._lock:
            p50, p95, p99 = (round(self._quantile(q), 3) for q in (0.5, 0.95, 0.99))
            return Quantiles(count=self.count, p50=p50, p95=p95, p99=p99, max=round(self.max_ms, 3))

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound in seconds, count at or below it), as Prometheus wants a histogram."""
        with self._lock:
            rows = [(str(b / 1000), float(self._upto(b))) for b in _BOUNDS_MS]
            return [*rows, ("+Inf", float(self.count))]

    def _upto(self, ms: float) -> int:
        edge = math.floor(math.log(ms) / _LOG + 1e-9)
        return sum(n for index, n in self._buckets.items() if index <= edge)


class Telemetry:
    """Counters, gauges and latencies of one module, by name and labels. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, Labels], float] = {}
        self._latencies: dict[tuple[str, Labels], Latency] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter; its name ends in `_total`."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a value that can go up and down (or a total that is counted elsewhere)."""
        with self._lock:
            self._values[name, tuple(sorted(labels.items()))] = value

    def latency(self, name: str, **labels: str) -> Latency:
        """The histogram of this name and labels, made at first use."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            return self._latencies.setdefault(key, Latency())

    def values(self) -> dict[str, float]:
        """`name{label=value,...}` to value, for the bus."""
        with self._lock:
            return {_flat(name, labels): value for (name, labels), value in self._values.items()}

    def quantiles(self) -> dict[str, Quantiles]:
        """`name{label=value,...}` to quantiles, for the bus."""
        with self._lock:
            items = list(self._latencies.items())
        return {_flat(name, labels): latency.quantiles() for (name, labels), latency in items}

    def rows(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """(name, labels, value) of every counter and gauge."""
        with self._lock:
            items = list(self._values.items())
        for (name, labels), value in items:
            yield name, dict(labels), value

    def histograms(self) -> Iterator[tuple[str, dict[str, str], Latency]]:
        """(name, labels, latency) of every histogram."""
        with self._lock:
            items = list(self._latencies.items())
        for (name, labels), latency in items:
            yield name, dict(labels), latency


def _flat(name: str, labels: Labels) -> str:
    return f"{name}{{{','.join(f'{k}={v}' for k, v in labels)}}}" if labels else name
