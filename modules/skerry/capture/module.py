"""Capture: every camera of this module on a thread of its own, and one loop that watches them."""

from __future__ import annotations

import time
from pathlib import Path

from skerry.bus import Bus
from skerry.capture import snapshot
from skerry.capture.camera import CameraWorker
from skerry.capture.feed import open_feed
from skerry.capture.geometry import known_size
from skerry.capture.settings import Camera, CaptureSettings, is_fast
from skerry.capture.window import Consumers, Window
from skerry.channels import DETECTIONS, STATUS
from skerry.commands import Snapshot
from skerry.errors import ConfigError
from skerry.frames import available_bytes, prepare, remove_stale, ring_bytes, too_small
from skerry.messages import Detections
from skerry.service import Host

_TICK_S = 0.1
_ANNOUNCE_S = 1.0
_START_S = 10.0


def run(settings: CaptureSettings, bus: Bus, host: Host) -> None:
    """Capture until told to stop.

    Raises:
        ConfigError: the frame store cannot be written or is too small; two cameras have one name.
    """
    check_names(settings)
    check_space(settings)
    consumers = Consumers(settings.consumer_wait_s)
    workers = [_worker(settings, camera, bus, host, consumers) for camera in settings.cameras]
    if any(worker.window is not None for worker in workers):
        bus.subscribe(STATUS, consumers.note)
    _report(host, workers)
    folder = Path(settings.frames)
    host.remote.answer("snapshot", Snapshot, lambda asked: snapshot.answer(asked, workers, folder))
    for worker in workers:
        worker.announce()
        worker.start()
    try:
        _watch(host, workers)
    finally:
        _stop(settings, workers)


def _watch(host: Host, workers: list[CameraWorker]) -> None:
    def adjust(settings: CaptureSettings) -> None:
        cameras = {camera.name: camera for camera in settings.cameras}
        for worker in workers:
            worker.adjust(cameras[worker.name])

    began = announced = time.monotonic()
    is_ready = False
    while not host.stopping.wait(_TICK_S):
        host.beat()
        host.remote.adjust(adjust)
        now = time.monotonic()
        for worker in workers:
            worker.watch(now)
        if not is_ready and (now - began > _START_S or all(worker.state != "starting" for worker in workers)):
            is_ready = True
            host.ready()
        if now - announced >= _ANNOUNCE_S:
            announced = now
            for worker in workers:
                worker.announce()


def _stop(settings: CaptureSettings, workers: list[CameraWorker]) -> None:
    deadline = time.monotonic() + 0.7 * settings.grace_s
    for worker in workers:
        worker.end()
    for worker in workers:
        worker.stop(max(deadline - time.monotonic(), 0.05))


def _worker(
    settings: CaptureSettings, camera: Camera, bus: Bus, host: Host, consumers: Consumers
) -> CameraWorker:
    window: Window | None = None
    if is_fast(camera.source):
        window = Window(settings.fast_window, settings.fast_wait_s)
        resolved = window.resolved

        def note(detections: Detections) -> None:
            resolved(detections.number)

        bus.subscribe(DETECTIONS, note, camera.name)
    worker = CameraWorker(
        camera, settings, bus, host,
        open_feed=lambda: open_feed(camera.source, worker.camera.stall_s), window=window, consumers=consumers,
    )  # fmt: skip
    return worker


def _report(host: Host, workers: list[CameraWorker]) -> None:
    """Show the ledger's term and the rates with the metrics."""

    def refresh() -> None:
        for worker in workers:
            labels = {"camera": worker.name}
            host.telemetry.gauge("skerry_frames_captured_total", worker.captured, **labels)
            host.telemetry.gauge("skerry_camera_fps", round(worker.fps, 2), **labels)
            host.telemetry.gauge("skerry_camera_live", float(worker.state == "live"), **labels)

    host.before_metrics(refresh)
    host.fps = lambda: sum(worker.fps for worker in workers)
    host.queue = lambda: sum(len(worker.window) for worker in workers if worker.window is not None)


def check_names(settings: CaptureSettings) -> None:
    """Refuse two cameras of one name: their frames could not be told apart.

    Raises:
        ConfigError: there are such.
    """
    names = [camera.name for camera in settings.cameras]
    again = [
        f"$.cameras[{n}].name: expected a name of its own, got {name!r} again"
        for n, name in enumerate(names)
        if name in names[:n]
    ]
    if again:
        raise ConfigError(again)


def check_space(settings: CaptureSettings) -> None:
    """Make sure of the frame store before anything is opened.

    Counts the cameras whose size the settings say; the others are sure only once they deliver.

    Raises:
        ConfigError: it cannot be written, or those cameras do not fit.
    """
    folder = Path(settings.frames)
    prepare(folder)
    remove_stale(folder)
    sizes = [known_size(camera) for camera in settings.cameras]
    wanted = sum(ring_bytes(settings.slots, size[0] * size[1] * 3) for size in sizes if size is not None)
    available = available_bytes(folder)
    if wanted > available:
        raise too_small(folder, wanted, available)
