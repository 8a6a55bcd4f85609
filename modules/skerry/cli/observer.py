"""What a running site says of itself on the bus: for screens and summaries, never for accounting."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque

import msgspec

from skerry.bus import Bus
from skerry.channels import CAMERAS, DELIVERED, DETECTIONS, INVENTORY, METRICS, STATUS
from skerry.messages import (
    CameraStatus,
    Delivered,
    Detections,
    Event,
    Inventory,
    Metrics,
    Quantiles,
    Status,
    Update,
)

LATENCIES = ("capture_to_detection", "capture_to_event", "event_to_accepted", "event_to_delivered")
EXTRA_LATENCIES = ("session", "beyond_session")
"""What the model's session takes, and what a pipeline from capture to event takes beyond that."""

CONFIRMED = "skerry_events_confirmed_total"


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """What runs a model, and the median session time of each candidate in milliseconds."""

    used: str
    measured_ms: dict[str, float]


class Observer:
    """Keeps the newest status and metrics of each module and the last delivered events."""

    def __init__(self, bus: Bus, began: float, recent: int = 200) -> None:
        """Subscribe; `began` is the monotonic time, in seconds, from which `first_detection_s` counts."""
        self._lock = threading.Lock()
        self._began = began
        self.status: dict[str, Status] = {}
        self.metrics: dict[str, Metrics] = {}
        self.cameras: dict[str, CameraStatus] = {}
        self.updates: dict[str, Update] = {}
        """What the updater has made of each slot."""
        self.recent: deque[bytes] = deque(maxlen=recent)
        self._confirmed: dict[str, tuple[int, int]] = {}
        self.first_detection_s: float | None = None
        self._results: dict[str, tuple[int, int, int]] = {}
        self.peak_mb: dict[str, float] = {}
        self._ready: set[str] = set()
        bus.subscribe(STATUS, self._on_status)
        bus.subscribe(METRICS, self._on_metrics)
        bus.subscribe(CAMERAS, self._on_camera)
        bus.subscribe(DELIVERED, self._on_delivered)
        bus.subscribe(INVENTORY, self._on_inventory)
        bus.subscribe(DETECTIONS, self._on_detections)

    def ever_ready(self, module: str) -> bool:
        """Whether the module has announced itself ready at least once."""
        return module in self._ready

    def all_ended(self, cameras: list[str]) -> bool:
        """Whether every camera is a file that was read to its end."""
        return all((s := self.cameras.get(c)) is not None and s.state == "ended" for c in cameras)

    def latencies(self) -> dict[str, Quantiles]:
        """The latencies of the pipeline, from whichever module measures them."""
        found = {}
        for name in (*LATENCIES, *EXTRA_LATENCIES):
            rows = [m.latency_ms[name] for m in self.metrics.values() if name in m.latency_ms]
            found[name] = max(
                rows, key=lambda q: q.count, default=Quantiles(count=0, p50=0, p95=0, p99=0, max=0)
            )
        return found

    def last_events(self, n: int) -> list[Event]:
        """The newest `n` delivered events, oldest first."""
        with self._lock:
            newest = list(self.recent)[-n:]
        found = []
        for raw in newest:
            with contextlib.suppress(msgspec.DecodeError):  # not ours: nothing to show
                found.append(msgspec.json.decode(raw, type=Event))
        return found

    @property
    def delivered(self) -> int:
        """Events that the far end has confirmed, as the uplinks count them, also over their restarts."""
        return sum(before + now for before, now in list(self._confirmed.values()))

    def runtimes(self) -> dict[str, Runtime]:
        """The runtime of each model, and what was measured to choose it."""
        used: dict[str, str] = {}
        measured: dict[str, dict[str, float]] = {}
        for metrics in self.metrics.values():
            for name, value in metrics.counters.items():
                if found := re.fullmatch(r"skerry_runtime_(used|ms)\{model=(.+),runtime=([^,}]+)\}", name):
                    what, model, runtime = found.groups()
                    if what == "used":
                        used[model] = runtime
                    else:
                        measured.setdefault(model, {})[runtime] = value
        return {m: Runtime(used=used[m], measured_ms=measured.get(m, {})) for m in used}

    def _on_status(self, status: Status) -> None:
        self.status[status.module] = status
        if status.state in ("ready", "degraded"):
            self._ready.add(status.module)

    def _on_metrics(self, metrics: Metrics) -> None:
        self.metrics[metrics.module] = metrics
        self.peak_mb[metrics.module] = max(self.peak_mb.get(metrics.module, 0.0), metrics.rss_mb)
        if (count := metrics.counters.get(CONFIRMED)) is not None:
            before, now = self._confirmed.get(metrics.module, (0, 0))
            self._confirmed[metrics.module] = (before + now if count < now else before), int(count)

    def _on_camera(self, status: CameraStatus) -> None:
        self.cameras[status.camera] = status

    def _on_inventory(self, inventory: Inventory) -> None:
        self.updates.update({update.slot: update for update in inventory.updates})

    def _on_delivered(self, message: Delivered) -> None:
        with self._lock:
            self.recent.extend(bytes(event) for event in message.events)

    def fps(self, camera: str) -> float:
        """Results per second between the first and the last of a camera, by inference's own clock."""
        first, last, count = self._results.get(camera, (0, 0, 0))
        return round((count - 1) * 1e9 / (last - first), 2) if last > first else 0.0

    def _on_detections(self, message: Detections) -> None:
        first, _, count = self._results.get(message.camera, (message.inferred_ns, 0, 0))
        self._results[message.camera] = first, message.inferred_ns, count + 1
        if self.first_detection_s is None and message.status == "ok":
            self.first_detection_s = round(time.monotonic() - self._began, 3)
