"""Keeps pictures for somebody to label, beside the loop that infers: that never waits for it.

The loop only says which frame; a thread takes it out of the frame store while it is there still, takes away
what is not to be seen, and writes it. Whatever goes wrong with that is counted, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from queue import Empty, Full, Queue
from typing import NamedTuple

import numpy as np
import structlog

from skerry.clock import utc
from skerry.errors import FrameGone
from skerry.frames import RingReader
from skerry.inference.model import Model, Result
from skerry.inference.samples import About, Shelf, encoded, shown, suggestions
from skerry.inference.settings import InferenceSettings, SamplesSettings, Why
from skerry.messages import FrameRef
from skerry.telemetry import Telemetry

log = structlog.get_logger()

_WAITING = 4
"""Frames that the thread has not come to yet; the frame store does not hold many more."""
_SWEEP_S = 300.0
"""Between two looks for what is too old."""


class _Job(NamedTuple):
    ref: FrameRef
    result: Result
    model: Model
    settings: SamplesSettings
    trigger: Why
    why: str


class Sampling:
    """The samples of all cameras. `note`, `start` and `stop` are the loop's.

    Args:
        settings: of the module.
        folder: of the samples.
        telemetry: gets `skerry_samples_total`, `skerry_samples_dropped_total`, `skerry_samples_kept`,
            `skerry_samples_bytes`.
        shelf: in place of the folder's own.
        wall: POSIX time now.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        folder: Path,
        telemetry: Telemetry,
        *,
        shelf: Shelf | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wanted = {n: use.samples for n, use in enumerate(settings.models) if use.samples is not None}
        self._by_camera = {c: n for n, use in enumerate(settings.models) for c in use.cameras or ("",)}
        self._allowed = settings.snapshots
        self._shelf = shelf or Shelf(folder)
        self._telemetry = telemetry
        self._wall = wall
        self._reader = RingReader(Path(settings.frames))
        self._most_bytes = sum(each.keep_bytes for each in self._wanted.values())
        self._next: dict[tuple[str, str], float] = {}
        """Camera and reason to when the next sample may be taken, monotonic seconds."""
        self._queue: Queue[_Job | None] = Queue(_WAITING)
        self._open = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)
        for n in self._wanted:
            self._say_forbidden(settings.models[n].cameras)

    def start(self) -> None:
        """Begin; without samples that are wanted or there, nothing does."""
        if self._wanted or self._shelf.folder.is_dir():
            self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End; what waits is left, and what is under way finished if it does not take long."""
        self._stopping = True
        with suppress(Full):  # it looks at `_stopping` after each
            self._queue.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def note(self, index: int, ref: FrameRef, result: Result, model: Model, drifts: Sequence[str]) -> None:
        """A frame has its result: have it kept, if there is a reason to, and it is time.

        Args:
            index: of the model.
            ref: the frame.
            result: what was found in it.
            model: that looked.
            drifts: signals of its camera that drift.
        """
        settings = self._wanted.get(index)
        if settings is None or result.reason or ref.camera not in self._allowed or not self._open.is_set():
            return
        now = time.monotonic()
        for trigger, why in _reasons(settings, result, model, drifts):
            if self._due(ref.camera, trigger, now):
                self._next[ref.camera, trigger] = now + 3600.0 / settings.per_hour
                try:
                    self._queue.put_nowait(_Job(ref, result, model, settings, trigger, why))
                except Full:
                    self._dropped(ref.camera, "busy")
                return

    def _due(self, camera: str, trigger: Why, now: float) -> bool:
        return now >= self._next.get((camera, trigger), 0.0)

    # On the thread

    def _run(self) -> None:
        self._tidy()
        self._take_forbidden()
        self._space_out()
        self._open.set()
        swept = time.monotonic()
        while not self._stopping:
            try:
                job = self._queue.get(timeout=_SWEEP_S)
            except Empty:
                job = None
            if job is not None and not self._stopping:
                self._take(job)
            if time.monotonic() - swept >= _SWEEP_S:
                self._tidy()
                swept = time.monotonic()

    def _take(self, job: _Job) -> None:
        camera = job.ref.camera
        try:
            reason = self._keep(job)
        except FrameGone:
            reason = "frame_gone"
        except OSError as error:
            # As rare as samples are, so it does not flood the log.
            log.warning("sample.not_kept", camera=camera, error=error.strerror or str(error))
            reason = "disk"
        except Exception:
            log.exception("sample.failed", camera=camera)
            reason = "failed"
        if reason:
            self._dropped(camera, reason)
            return
        self._telemetry.count("skerry_samples_total", camera=camera, reason=job.trigger)
        self._count()

    def _keep(self, job: _Job) -> str:
        """Keep a sample; why there is none, empty where there is one."""
        ref, settings = job.ref, job.settings
        with self._reader.frame(ref) as pixels:
            copy = np.array(pixels)
        details = self._allowed[ref.camera] == "allowed"
        seen = shown(copy, job.result.objects, settings.privacy, details=details, conceal=settings.conceal)
        if seen is None:
            return "nothing_to_show"
        now = self._wall()
        about = About(
            camera=ref.camera, time=ref.time, number=ref.number, model=job.model.package.title,
            digest=job.model.digest, labels=job.model.package.labels, trigger=job.trigger, why=job.why,
            privacy=settings.privacy, details=details, width=ref.width, height=ref.height,
            objects=suggestions(seen.objects, ref.width, ref.height), concealed=seen.concealed,
            kept_at=utc(now), erase_after=utc(now + settings.keep_s),
        )  # fmt: skip
        name = f"{utc(now).replace(':', '').replace('.', '-')}-{ref.camera}-{ref.number}"
        self._shelf.sweep(utc(now))
        went = self._shelf.keep(name, about, encoded(seen.pixels), most_bytes=self._most_bytes)
        log.info(
            "sample.kept", camera=ref.camera, file=name, why=job.why, privacy=settings.privacy, went=went
        )
        return ""

    def _tidy(self) -> None:
        try:
            self._shelf.sweep(utc(self._wall()))
        except OSError as error:
            log.warning("samples.not_swept", path=str(self._shelf.folder), error=error.strerror)
        self._count()

    def _take_forbidden(self) -> None:
        """What a camera does not allow any more goes."""
        try:
            for each in self._shelf.kept():
                allowed = self._allowed.get(each.about.camera)
                if allowed is None or (allowed == "blurred" and each.about.details):
                    self._shelf.erase(each.name)
        except OSError as error:
            log.warning("samples.not_swept", path=str(self._shelf.folder), error=error.strerror)
        self._count()

    def _space_out(self) -> None:
        """A process that is started again and again takes no more samples than one that lives."""
        try:
            there = self._shelf.kept()
        except OSError:
            return  # it was said when it was swept
        for each in there:
            settings = self._of_camera(each.about.camera)
            if settings is None:
                continue
            every_s = 3600.0 / settings.per_hour
            ago = self._wall() - datetime.fromisoformat(each.about.kept_at).timestamp()
            left = min(max(every_s - ago, 0.0), every_s)
            self._next[each.about.camera, each.about.trigger] = time.monotonic() + left

    def _of_camera(self, camera: str) -> SamplesSettings | None:
        named = self._by_camera.get(camera, self._by_camera.get(""))
        return None if named is None else self._wanted.get(named)

    def _count(self) -> None:
        try:
            there = self._shelf.kept()
        except OSError:
            return
        self._telemetry.gauge("skerry_samples_kept", len(there))
        self._telemetry.gauge("skerry_samples_bytes", sum(each.size for each in there))

    def _dropped(self, camera: str, reason: str) -> None:
        self._telemetry.count("skerry_samples_dropped_total", camera=camera, reason=reason)

    def _say_forbidden(self, cameras: Sequence[str]) -> None:
        for camera in cameras:
            if camera not in self._allowed:
                log.info("samples.forbidden", camera=camera, reason="its setting `snapshots` is never")


def _reasons(
    settings: SamplesSettings, result: Result, model: Model, drifts: Sequence[str]
) -> Iterator[tuple[Why, str]]:
    """Why a frame is to be kept: the setting that says so, and in words."""
    if "drift" in settings.when and drifts:
        yield "drift", f"drift: {', '.join(drifts)}"
    if "low_score" in settings.when and result.objects:
        limit = settings.low_score
        if limit is None:
            limit = (model.package.manifest.decoder.score_threshold + 1) / 2
        least = min(result.objects, key=lambda each: each.score)
        if least.score < limit:
            yield "low_score", f"{least.label} with a score of {least.score:.2f}, below {limit:.2f}"
