"""Models exchanged under load: an inference module of its own, cameras on the belt, two versions in turn.

This process is capture and operator: it writes rendered frames into the frame store at the cameras' times,
desires the other version as soon as one is confirmed, and looks at what comes back. The same is measured
first without any exchange.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2

from skerry.broker import BrokerProcess
from skerry.channels import DESIRED, DETECTIONS, FRAMES, METRICS, REPORTED, STATUS
from skerry.children import end, spawn
from skerry.cli.bench_bus import quiet
from skerry.cli.model_golden import make as make_golden
from skerry.clock import utc
from skerry.desired import digest
from skerry.errors import Unavailable
from skerry.frames import RingWriter
from skerry.inference.preprocess import Pixels
from skerry.ledger import read_tally
from skerry.messages import Desired, Detections, FrameRef, Metrics, Reported, Status
from skerry.models.package import MANIFEST
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings

CAMERAS = ("north", "south")
FPS = 15
_PICTURES = 45
_GOLDEN = 4
_EXCHANGE = {"shadow_frames": 15, "probation_s": 0.5}
_LONGEST_S = 60.0
_SITE, _MODULE = "bench", "inference"
_ROOT = Path(__file__).resolve().parents[3]


def run(*, package: Path | None = None, swaps: int = 50, runtime: str = "onnxruntime") -> dict[str, Any]:
    """Exchange two versions of a package, one for the other.

    Args:
        package: of the model; the demo's.
        swaps: how often.
        runtime: what runs it.

    Returns:
        Results without and with exchanges: how long and how many frames apart two results of one camera
        are, the same at the change of the version, seconds from desired to applied, CPU and memory.
    """
    pictures = _rendered()
    with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir=_shared()) as folder, quiet():
        work = Path(folder)
        versions = _versions(package or _ROOT / "models" / "parts", work, pictures[:_GOLDEN])
        (work / "frames").mkdir()
        with BrokerProcess(work / "broker") as broker, _inference(work, broker.port, versions[0], runtime):
            desk = _Desk(broker.port, work / "frames", pictures)
            try:
                desk.wait_until_ready()
                calm_s = min(0.6 * swaps, 30.0)
                calm = desk.watch(calm_s)
                took: list[float] = []
                swapped = desk.watch_while(lambda: took.extend(desk.swap(versions, swaps)))
            finally:
                desk.close()
        terms = read_tally(work / "state" / "tally")
    return {
        "cameras": len(CAMERAS), "fps": FPS, "runtime": runtime, "swaps": swaps,
        "without": calm, "with": swapped,
        "desired_to_applied_s": {
            "median": round(statistics.median(took), 2), "max": round(max(took), 2),
            "of_it_probation": _EXCHANGE["probation_s"],
        },
        "frames_failed": sum(n for name, n in terms.items() if name.endswith("/failed")),
        "frames_dropped": _dropped(terms),
        "ledger_balanced": all(_balance(terms, camera) == 0 for camera in CAMERAS),
    }  # fmt: skip


def _dropped(terms: dict[str, int]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, n in sorted(terms.items()):
        if "/dropped/" in name:
            found[name.partition("/dropped/")[2]] += n
    return dict(found)


def _balance(terms: dict[str, int], camera: str) -> int:
    mine = {k.removeprefix(f"{camera}/"): n for k, n in terms.items() if k.startswith(f"{camera}/")}
    return mine.pop("received", 0) + mine.pop("base", 0) - sum(mine.values())


def _shared() -> str | None:
    """Frames belong into memory."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - made with a random name


def _rendered() -> list[Pixels]:
    from skerry.capture.scene import Scene  # noqa: PLC0415 - only where a scene is drawn

    scene = Scene(seed=1)
    return [scene.render(n / FPS) for n in range(_PICTURES)]


def _versions(package: Path, work: Path, pictures: Sequence[Pixels]) -> tuple[Path, Path]:
    """The package with golden pictures, and the same as another version."""
    images = work / "images"
    images.mkdir()
    for n, pixels in enumerate(pictures):
        cv2.imwrite(str(images / f"{n}.png"), pixels)
    first, second = work / "first", work / "second"
    shutil.copytree(package, first)
    make_golden(first, [images])
    shutil.copytree(first, second)
    manifest = json.loads((second / MANIFEST).read_bytes())
    manifest["version"] += "-next"
    (second / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return first, second


class _Desk:
    """Capture and operator: publishes frames at their times, desires versions, and times what comes back."""

    def __init__(self, port: int, frames: Path, pictures: Sequence[Pixels]) -> None:
        self._bus = MqttBus(BusSettings(port=port), _SITE, "desk")
        self._pictures = pictures
        self._rings = {
            camera: RingWriter.create(frames, camera, slots=16, slot_bytes=pictures[0].nbytes)
            for camera in CAMERAS
        }
        self._results: dict[str, list[Detections]] = defaultdict(list)
        self._metrics: list[Metrics] = []
        self._reports: dict[str, Reported] = {}
        self._reported = threading.Condition()
        self._ready = threading.Event()
        self._stopped = threading.Event()
        self._desired = 0
        self._bus.subscribe(DETECTIONS, lambda message: self._results[message.camera].append(message))
        self._bus.subscribe(METRICS, self._metrics.append, _MODULE)
        self._bus.subscribe(REPORTED, self._on_reported, _MODULE)
        self._bus.subscribe(STATUS, self._on_status, _MODULE)
        self._bus.connect()
        self._thread = threading.Thread(target=self._shoot, daemon=True)

    def wait_until_ready(self) -> None:
        if not self._ready.wait(30):
            raise Unavailable("bench: the inference module was not ready within 30 s")
        self._thread.start()
        time.sleep(2.0)  # its caches are warm

    def watch(self, seconds: float) -> dict[str, Any]:
        """What came in this time."""
        return self.watch_while(lambda: time.sleep(seconds))

    def watch_while(self, act: Any) -> dict[str, Any]:
        """What came while `act` ran."""
        first = self._newest_metrics()
        from_ns = time.monotonic_ns()
        act()
        until_ns = time.monotonic_ns()
        last = self._newest_metrics()
        return _figures(self._results, from_ns, until_ns, first, last)

    def swap(self, versions: Sequence[Path], times: int) -> Iterator[float]:
        """Seconds that each exchange took."""
        for n in range(times):
            self._desired += 1
            patch = {"models": {"0": {"package": str(versions[(n + 1) % 2])}}}
            message = Desired(module=_MODULE, version=str(self._desired), digest=digest(patch), patch=patch)
            begin = time.monotonic()
            self._bus.publish(DESIRED, message, _MODULE)
            report = self._told(message.version)
            if report is None or report.state != "applied":
                raise Unavailable(f"bench: {'no answer' if report is None else '; '.join(report.errors)}")
            yield time.monotonic() - begin

    def _told(self, version: str) -> Reported | None:
        with self._reported:
            self._reported.wait_for(lambda: version in self._reports, _LONGEST_S)
            return self._reports.get(version)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(5)
        self._bus.close()
        for ring in self._rings.values():
            ring.close()

    def _newest_metrics(self) -> Metrics:
        known = len(self._metrics)
        deadline = time.monotonic() + 10
        while len(self._metrics) == known:
            if time.monotonic() > deadline:
                raise Unavailable("bench: the inference module says no metrics any more")
            time.sleep(0.01)
        return self._metrics[-1]

    def _shoot(self) -> None:
        begin = time.monotonic()
        number = 0
        while not self._stopped.is_set():
            for place, camera in enumerate(CAMERAS):
                due = begin + (number + place / len(CAMERAS)) / FPS
                time.sleep(max(due - time.monotonic(), 0))
                self._publish(camera, number)
            number += 1

    def _publish(self, camera: str, number: int) -> None:
        pixels = self._pictures[number % len(self._pictures)]
        slot, generation = self._rings[camera].write(pixels)
        now = time.monotonic_ns()
        ref = FrameRef(
            camera=camera, number=number + 1, time=utc(), captured_ns=now, media_ns=now,
            ring=self._rings[camera].name, slot=slot, generation=generation,
            width=pixels.shape[1], height=pixels.shape[0],
        )  # fmt: skip
        self._bus.publish(FRAMES, ref, camera)

    def _on_reported(self, report: Reported) -> None:
        with self._reported:
            self._reports[report.version] = report
            self._reported.notify_all()

    def _on_status(self, status: Status) -> None:
        if status.state == "ready":
            self._ready.set()


def _figures(
    results: dict[str, list[Detections]], from_ns: int, until_ns: int, first: Metrics, last: Metrics
) -> dict[str, Any]:
    unheard = 0
    """Results that were sent, and did not come to this busy process."""
    gaps: list[float] = []
    jumps: list[int] = []
    at_switch: list[tuple[int, float]] = []
    for seen in results.values():
        mine = [result for result in seen if from_ns <= result.inferred_ns < until_ns]
        for before, after in pairwise(mine):
            if after.sequence != before.sequence + 1:
                unheard += after.sequence - before.sequence - 1
                continue
            apart, ms = after.number - before.number, (after.inferred_ns - before.inferred_ns) / 1e6
            gaps.append(ms)
            jumps.append(apart)
            if before.model != after.model:
                at_switch.append((apart, ms))
    gaps.sort()
    found: dict[str, Any] = {
        "seconds": round((until_ns - from_ns) / 1e9, 1),
        "results": len(gaps),
        "frames_without_result": sum(jumps) - len(jumps),
        "longest_gap_frames": max(jumps),
        "results_not_heard_here": unheard,
        "gap_ms": {
            "p50": round(gaps[len(gaps) // 2], 1),
            "p99": round(gaps[int(len(gaps) * 0.99)], 1),
            "max": round(gaps[-1], 1),
        },
        "cpu_cores": round((last.cpu_s - first.cpu_s) / (last.uptime_s - first.uptime_s), 3),
        "rss_mb": [first.rss_mb, last.rss_mb],
    }
    if at_switch:
        found["at_the_switch"] = {
            "changes": len(at_switch),
            "longest_gap_frames": max(apart for apart, _ in at_switch),
            "median_ms": round(statistics.median(ms for _, ms in at_switch), 1),
            "max_ms": round(max(ms for _, ms in at_switch), 1),
        }
    return found


@contextmanager
def _inference(work: Path, port: int, package: Path, runtime: str) -> Iterator[subprocess.Popen[bytes]]:
    settings = {
        "site": _SITE, "module": _MODULE, "state": str(work / "state"), "bus": {"port": port},
        "frames": str(work / "frames"),
        "models": [{"package": str(package), "runtime": runtime, "exchange": _EXCHANGE}],
    }  # fmt: skip
    with (work / "inference.log").open("wb") as log:
        child = spawn(
            [sys.executable, "-m", "skerry.inference"],
            {**os.environ, "SKERRY_SETTINGS": json.dumps(settings)},
            stdout=log.fileno(),
            stderr=log.fileno(),
        )
    try:
        yield child
    finally:
        end(child, 5.0)
