"""Every camera's watch for drift: what it finds is a metric, a line in the log, and part of the report."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from skerry.inference import drift
from skerry.inference.model import Model, Result
from skerry.messages import FrameRef
from skerry.telemetry import Telemetry

log = structlog.get_logger()


class Drifting:
    """The watches of all cameras. Not thread-safe.

    Args:
        telemetry: gets `skerry_drift_distance` and `skerry_drift` for each camera and signal.
        changed: called when a signal began or ceased to drift.
    """

    def __init__(self, telemetry: Telemetry, changed: Callable[[], None]) -> None:
        self._telemetry = telemetry
        self._changed = changed
        self._watches: dict[str, tuple[str, drift.Watch]] = {}
        """Camera to the digest of the model that it is for, and its watch."""
        self._looks: dict[str, tuple[int, tuple[float, float]]] = {}
        """Camera to the number of the frame that was measured last, and what it looks like."""

    def look(self, ref: FrameRef, pixels: drift.Pixels, model: Model) -> None:
        """Measure a frame, if it is one to sample; to be called while its pixels are there."""
        watch = self._watch(ref.camera, model)
        if watch is not None and watch.due(ref.media_ns):
            self._looks[ref.camera] = ref.number, drift.picture(pixels)

    def judge(self, ref: FrameRef, result: Result, model: Model) -> None:
        """Take in what was found in a frame, if it was measured."""
        number, looks = self._looks.get(ref.camera, (0, (0.0, 0.0)))
        watch = self._watch(ref.camera, model)
        if watch is None or number != ref.number or result.reason:
            return
        before, was_settled = watch.drifted, watch.settled
        for verdict in watch.take(drift.sampled(looks, result.objects, model.package.labels)):
            labels = {"camera": ref.camera, "signal": verdict.signal}
            self._telemetry.gauge("skerry_drift_distance", round(verdict.distance, 4), **labels)
            self._telemetry.gauge("skerry_drift_limit", verdict.furthest, **labels)
            self._telemetry.gauge("skerry_drift", float(verdict.drifted), **labels)
        if watch.drifted != before or watch.settled != was_settled:
            for name in sorted(set(watch.drifted) - set(before)):
                log.warning("drift.found", camera=ref.camera, signal=name, model=model.package.title)
            for name in sorted(set(before) - set(watch.drifted)):
                log.info("drift.over", camera=ref.camera, signal=name, model=model.package.title)
            self._changed()

    def of(self, model: Model, cameras: Callable[[str], bool]) -> tuple[str, ...]:
        """What drifts in the eyes of a model, as `CAMERA: SIGNAL`.

        Args:
            model: that serves.
            cameras: whether it serves for this one; another may have the same package.
        """
        return tuple(
            f"{camera}: {name}"
            for camera, (digest, watch) in sorted(self._watches.items())
            if digest == model.digest and cameras(camera)
            for name in watch.drifted
        )

    def settled(self, model: Model, cameras: Callable[[str], bool]) -> bool:
        """Whether `of` says something if it is empty: all cameras were looked at for long enough."""
        found = [
            watch.settled
            for camera, (digest, watch) in self._watches.items()
            if digest == model.digest and cameras(camera)
        ]
        return bool(found) and all(found)

    def at(self, camera: str, model: Model) -> tuple[str, ...]:
        """Signals of a camera that drift in the eyes of its model."""
        digest, watch = self._watches.get(camera, ("", None))
        return watch.drifted if watch is not None and digest == model.digest else ()

    def _watch(self, camera: str, model: Model) -> drift.Watch | None:
        """The camera's watch; another one when the camera has another model."""
        held = self._watches.get(camera)
        if held is not None and held[0] == model.digest:
            return held[1]
        baseline = model.package.manifest.baseline
        for name in held[1].drifted if held is not None else ():
            # What another model's baseline said is over with that model.
            self._telemetry.gauge("skerry_drift", 0.0, camera=camera, signal=name)
        if baseline is None:
            self._watches.pop(camera, None)
            return None
        watch = drift.Watch(baseline, model.package.labels)
        self._watches[camera] = model.digest, watch
        return watch
