"""The inference module: frames in, detections out, and an account of every frame."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import msgspec
import structlog

from skerry.bus import Bus
from skerry.channels import ACTIVATIONS, CAMERAS, DETECTIONS, FRAMES, OFFERS
from skerry.errors import ConfigError, FrameGone
from skerry.frames import RingReader
from skerry.inbox import Inbox
from skerry.inference.accounts import Accounts
from skerry.inference.activation import Activation
from skerry.inference.drifting import Drifting
from skerry.inference.exchange import Exchange, Leg, Rim
from skerry.inference.model import Flight, Model, Result, Timing
from skerry.inference.placement import Placement
from skerry.inference.runtimes import first_line, installed, runtime_version
from skerry.inference.sampling import Sampling
from skerry.inference.settings import InferenceSettings, ModelUse
from skerry.inference.slots import SlotTable, Wanted
from skerry.messages import CameraStatus, Detections, FrameRef, ModelInUse, Offer
from skerry.models.manifest import REFERENCE
from skerry.service import Host

log = structlog.get_logger()

_IDLE_S = 0.1
"""How often the loop looks around when no frame comes."""
_TAIL_S = 0.5
"""After a camera's end and its last frame, how long a frame may still be under way."""
_FPS_OVER_S = 2.0


def run(settings: InferenceSettings, bus: Bus, host: Host) -> None:
    """Infer until `host.stopping`, then finish what waits and account for the rest."""
    import cv2  # noqa: PLC0415 - loaded by the module, not by those who import its name

    cv2.setNumThreads(1)  # small pictures, and the other cores belong to other processes
    Inference(settings, bus, host).run()


Inferred = tuple[list[Result], Timing]


@dataclass
class _Job:
    """A frame in the batch: its reference and where it lies in the input."""

    ref: FrameRef
    placement: Placement
    ms: float
    """Of its preparation."""


@dataclass
class _Airborne:
    """Frames whose session runs now, while the next ones are prepared."""

    index: int
    model: Model
    jobs: list[_Job]
    flight: Flight

    def land(self) -> Inferred:
        """Await the session and decode."""
        return self.model.land(self.flight)


@dataclass
class _Ends:
    """Cameras that said they ended: the number of the last frame, and when it was said or a frame came."""

    captured: dict[str, int] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)


class Inference:
    """State of the module. The bus's thread calls `_on_...`; all else runs on the loop's thread."""

    def __init__(self, settings: InferenceSettings, bus: Bus, host: Host) -> None:
        self._settings = settings
        self._bus = bus
        self._host = host
        self._accounts = Accounts(host.tally)
        self._inbox: Inbox[FrameRef] = Inbox(depth=1)
        self._door = threading.Lock()
        self._reader = RingReader(Path(settings.frames))
        self._ends = _Ends()
        self._live: set[str] = set()
        self._finished: deque[float] = deque(maxlen=1000)
        self._closing = False
        self._closed = False
        self._by_camera = {c: n for n, use in enumerate(settings.models) for c in use.cameras}
        self._rest = next((n for n, use in enumerate(settings.models) if not use.cameras), None)
        self._models: list[Model] = []
        self._uses = list(settings.models)
        """What serves; a model that is still to be confirmed is not in it."""
        self._slots = SlotTable(settings)
        self._offered: Wanted | None = None
        """What the exchange is for, where it is for an offer and not for desired settings."""
        self._exchange: Exchange | None = None
        self._exchanging: dict[int, str] = {}
        self._steps: SimpleQueue[Activation] = SimpleQueue()
        self._untold = threading.Event()
        """A step of an exchange that the inventory does not show yet."""
        self._gaps: set[int] = set()
        """Models that are unloaded to make room for another."""
        self._drifting = Drifting(host.telemetry, self._describe)
        self._sampling = Sampling(settings, host.state / "samples", host.telemetry)
        self._airborne: _Airborne | None = None

    def run(self) -> None:
        killed = self._accounts.recover()
        if killed:
            log.warning("frames.killed", cameras=killed)
        host = self._host
        host.fps, host.queue = self._fps, lambda: len(self._inbox)
        host.before_metrics(self._refresh)
        self._bus.subscribe(FRAMES, self._on_frame)
        self._bus.subscribe(CAMERAS, self._on_camera)
        self._load()
        if self._slots:
            self._bus.subscribe(OFFERS, self._on_offer, self._settings.module)
            self._bus.on_connect(self._tell_again)
        self._sampling.start()
        host.ready()
        while not host.stopping.is_set():
            host.beat()
            self._steer()
            self._step(_IDLE_S)
        self._drain()

    def _steer(self) -> None:
        """Take over what is desired; see to an exchange of models."""
        self._show_steps()
        wanted = self._host.remote.adjust(self._adjust)
        if self._exchange is None:
            if not wanted:
                self._take_offer()
            return
        self._exchange.turn()
        if self._offered is not None:
            self._see_to_offer(self._exchange, self._offered)
        elif not wanted:  # what it is for was taken back
            try:
                self._adjust(self._host.remote.settings)
            except ConfigError as error:
                log.error("model.exchange_back_refused", errors=error.problems)  # noqa: TRY400 - says all

    def _take_offer(self) -> None:
        """Begin to exchange a model for one that is offered."""
        wanted = self._slots.wanted(self._uses)
        if wanted is not None:
            self._offered = wanted
            self._slots.begun(wanted)
            self._exchange = self._begin({wanted.index: wanted.use})

    def _see_to_offer(self, exchange: Exchange, offered: Wanted) -> None:
        """End the exchange for an offer, once it is over."""
        if exchange.outcome is None:
            if not self._slots.still(offered):
                exchange.cancel("something else is offered")
            return
        self._exchange = self._offered = None
        served = not exchange.outcome
        if served:
            # How it was exchanged is no setting of the model's.
            before = self._uses[offered.index]
            self._uses[offered.index] = msgspec.structs.replace(before, package=offered.use.package)
        self._slots.ended(offered, served=served, final=exchange.final)
        self._untold.set()
        self._show_steps()

    def _adjust(self, desired: InferenceSettings) -> bool:
        """Take over what may change while it runs; False while models are being exchanged for it."""
        settings = self._slots.overlaid(desired)
        wanted = {n: use for n, use in enumerate(settings.models) if _another(use, self._uses[n])}
        exchange = self._exchange
        if exchange is not None:
            same = self._offered is None and _compared(exchange.uses) == _compared(wanted)
            if not same:
                exchange.cancel("something else is desired")
            if exchange.outcome is None:
                return False
            if self._offered is not None:
                self._see_to_offer(exchange, self._offered)
                return self._adjust(desired)
            self._exchange = None
            self._show_steps()  # before it is said what became of it
            for n, use in exchange.uses.items() if not exchange.outcome else ():
                self._uses[n] = use
            if same and exchange.outcome:
                raise ConfigError([f"modules.{settings.module}.{error}" for error in exchange.outcome])
            return self._adjust(desired)
        if wanted:
            self._exchange = self._begin(wanted)
            return False
        for model, use in zip(self._models, settings.models, strict=True):
            model.adjust(use)
        self._uses = list(settings.models)
        return True

    def _begin(self, uses: dict[int, ModelUse]) -> Exchange:
        rim = Rim(
            load=self._loaded, put=self._put, gap=self._gap, wake=self._inbox.wake, tell=self._tell,
            attempts=self._host.state / "attempts.json",
        )  # fmt: skip
        exchange = Exchange([Leg(n, use, self._models[n]) for n, use in uses.items()], rim)
        exchange.start()
        return exchange

    def _put(self, index: int, model: Model) -> None:
        """Between two frames: this model from the next one on."""
        self._land()
        before, self._models[index] = self._models[index], model
        self._gaps.discard(index)
        self._host.telemetry.gauge(
            "skerry_runtime_used", 0, model=before.package.title, runtime=before.runtime
        )
        self._host.clear(f"model {before.package.title}")
        self._show_choice(model)

    def _gap(self, index: int) -> None:
        """Between two frames: no model until the next is put there."""
        self._land()
        self._gaps.add(index)

    def _tell(self, index: int, activation: Activation) -> None:
        """On any thread: a model has taken a step."""
        step, reason = activation.said[-1]
        say = log.info if step not in ("refused", "rolled_back") else log.error
        say("model.step", model=activation.title, place=index, step=step, reason=reason)
        if activation.ended:
            self._exchanging.pop(index, None)
            self._host.telemetry.count("skerry_model_exchanges_total", outcome=step)
        else:
            self._exchanging[index] = f"{activation.title}: {step}"
        self._steps.put(activation)
        self._untold.set()
        self._inbox.wake()

    def _show_steps(self) -> None:
        if not self._untold.is_set():
            return
        self._untold.clear()
        while not self._steps.empty():
            activation = self._steps.get()
            if self._offered is not None:
                self._slots.stepped(self._offered, activation)
                self._tell_slots()  # each step: they are in the updater's audit
        self._describe()

    def _loaded(self, use: ModelUse, beat: Callable[[], None] = lambda: None) -> Model:
        settings = self._settings
        cache = Path(settings.cache) if settings.cache else Path(settings.state) / "cache"
        return Model(use, cache, settings.retry_s, beat)

    def _load(self) -> None:
        for n, use in enumerate(self._settings.models):
            begin = time.monotonic()
            model = self._opened(n, use)
            self._models.append(model)
            self._show_choice(model)
            log.info(
                "model.ready", model=model.package.title, runtime=model.runtime, device=use.device,
                seconds=round(time.monotonic() - begin, 3),
            )  # fmt: skip
        self._describe()

    def _opened(self, index: int, use: ModelUse) -> Model:
        """The model to begin with; with a slot, the best one that the store has."""
        if not use.slot:
            return self._loaded(use, self._host.beat)
        self._uses[index], model = self._slots.opened(
            index, use, lambda used: self._loaded(used, self._host.beat)
        )
        return model

    def _on_offer(self, offer: Offer) -> None:
        """On the bus's thread."""
        self._slots.take(offer)
        self._inbox.wake()

    def _tell_again(self) -> None:
        """On the bus's thread: a broker that was started anew has forgotten what it retained."""
        self._untold.set()
        self._inbox.wake()

    def _describe(self) -> None:
        """Tell what is installed, and which models are in use."""
        if self._slots:
            self._tell_slots()
        models = tuple(
            ModelInUse(
                model=model.package.title, digest=model.digest, runtime=_ran_by(model, use),
                cameras=use.cameras, exchange=self._exchanging.get(n, ""),
                drift=self._drifts(n, model),
            )
            for n, (model, use) in enumerate(zip(self._models, self._settings.models, strict=True))
        )  # fmt: skip
        self._host.remote.describe(_runtimes(), models)

    def _tell_slots(self) -> None:
        """Tell the updater what serves, and what became of what it offered."""
        titles = {n: model.package.title for n, model in enumerate(self._models)}
        drift = {n: self._drifts(n, model) for n, model in enumerate(self._models)}
        failing = {n: model.trouble for n, model in enumerate(self._models)}
        watched = {n for n, model in enumerate(self._models) if self._drifting.settled(model, self._sees(n))}
        message = self._slots.message(self._settings.module, titles, drift, failing, watched)
        self._bus.publish(ACTIVATIONS, message, self._settings.module)

    def _drifts(self, index: int, model: Model) -> tuple[str, ...]:
        return self._drifting.of(model, self._sees(index))

    def _sees(self, index: int) -> Callable[[str], bool]:
        return lambda camera: self._model_of(camera) == index

    def _show_choice(self, model: Model) -> None:
        telemetry, title = self._host.telemetry, model.package.title
        telemetry.gauge("skerry_runtime_used", 1, model=title, runtime=model.runtime)
        for m in model.choice.measurements if model.choice is not None else ():
            if not m.error and m.ms:
                telemetry.gauge("skerry_runtime_ms", m.ms, model=title, runtime=m.title)
        if model.choice is not None:
            ms = {m.title: m.error or m.ms for m in model.choice.measurements}
            log.info(
                "runtime.chosen", model=title, runtime=model.runtime, form=model.package.form, ms=ms
            )  # fmt: skip

    def _model_of(self, camera: str) -> int | None:
        return self._by_camera.get(camera, self._rest)

    def _on_frame(self, ref: FrameRef) -> None:
        """On the bus's thread."""
        with self._door:
            if self._closed or self._model_of(ref.camera) is None or not self._accounts.arrived(ref):
                return
            self._ends.at[ref.camera] = time.monotonic()
            if self._closing:
                self._accounts.dropped(ref.camera, "stopping")
                return
            displaced = self._inbox.put(ref, key=ref.camera, keep=ref.keep)
            if displaced is not None:
                self._accounts.dropped(displaced.camera, "superseded")

    def _on_camera(self, status: CameraStatus) -> None:
        """On the bus's thread."""
        camera = status.camera
        if self._model_of(camera) is None:
            return
        if status.state in ("ended", "stopped"):
            self._live.discard(camera)
            self._ends.at[camera] = time.monotonic()
            self._ends.captured[camera] = status.captured
        else:
            self._live.add(camera)
            self._ends.captured.pop(camera, None)

    def _step(self, wait_s: float) -> None:
        """Take what waits, at most one batch, and settle cameras that ended."""
        ref = self._inbox.get(0 if self._airborne else wait_s)
        if ref is None:
            self._land()
        else:
            self._infer(ref)
        self._settle(_TAIL_S)

    def _settle(self, tail_s: float) -> None:
        now = time.monotonic()
        for camera, captured in list(self._ends.captured.items()):
            if now - self._ends.at[camera] < tail_s:
                continue
            # A new state of the camera may have come meanwhile: only what was read above is settled.
            if self._ends.captured.get(camera) == captured:
                self._ends.captured.pop(camera, None)
            lost = self._accounts.ended(camera, captured)
            if lost:
                log.info("frames.not_received", camera=camera, frames=lost)

    def _infer(self, ref: FrameRef) -> None:
        """Prepare a frame and run the session on it.

        The result of a live frame is awaited at once. Frames that their source keeps overlap: while the
        session runs on one, the one before is decoded and sent and the one after is prepared. That gives
        up latency for throughput, so live frames do not.
        """
        index = self._model_of(ref.camera)
        assert index is not None, "frames of other cameras are not taken"
        if index in self._gaps:
            self._accounts.dropped(ref.camera, "exchange")
            return
        model = self._models[index]
        begin = time.perf_counter()
        jobs: list[_Job] = []
        for taken in self._batch(ref, index, model):
            self._prepare(taken, index, jobs)
        if not jobs:
            return
        self._host.telemetry.latency("preprocess").add((time.perf_counter() - begin) * 1000)
        placements = [job.placement for job in jobs]
        if not ref.keep:
            self._land()
            self._finish(index, model, jobs, lambda: model.infer(placements))
            return
        before = self._airborne
        if before is not None:
            before.flight.wait()
        self._airborne = _Airborne(index, model, jobs, model.launch(placements))
        if before is not None:
            self._finish(before.index, before.model, before.jobs, before.land)

    def _land(self) -> None:
        """Await what is in the air."""
        landing, self._airborne = self._airborne, None
        if landing is not None:
            self._finish(landing.index, landing.model, landing.jobs, landing.land)

    def _finish(self, index: int, model: Model, jobs: list[_Job], infer: Callable[[], Inferred]) -> None:
        """Get the results, account for them and send them."""
        try:
            results, timing = infer()
        except Exception as error:
            log.exception("inference.crashed", model=model.package.title)
            reason = f"internal: {type(error).__name__}: {first_line(error)}"
            results, timing = [Result(reason=reason)] * len(jobs), Timing()
        self._host.telemetry.latency("session").add(timing.session)
        self._host.telemetry.latency("decode").add(timing.decode)
        ms = (timing.session + timing.decode) / len(jobs)
        for job, result in zip(jobs, results, strict=True):
            self._publish(job.ref, result, model, timing)
            if self._exchange is not None:
                self._exchange.note(index, job.ref, result, job.ms + ms)
        if self._exchange is None or not self._exchange.watched(index):
            self._judge(model, results)

    def _batch(self, ref: FrameRef, index: int, model: Model) -> list[FrameRef]:
        """This frame and, where the model takes several, those of other cameras that come in time."""
        refs = [ref]
        until = time.monotonic() + model.deadline_s
        while len(refs) < model.batch and (left := until - time.monotonic()) > 0:
            other = self._inbox.get(left)
            if other is None:
                break
            if self._model_of(other.camera) != index:
                self._infer(other)
                break
            refs.append(other)
        return refs

    def _prepare(self, ref: FrameRef, index: int, jobs: list[_Job]) -> None:
        """From the frame store into the batch, or account for why not."""
        model = self._models[index]
        begin = time.perf_counter()
        try:
            with self._reader.frame(ref) as pixels:
                placement = model.prepare(pixels, len(jobs))
                ms = (time.perf_counter() - begin) * 1000
                self._drifting.look(ref, pixels, model)
                if self._exchange is not None:
                    self._exchange.offer(index, ref, pixels)
        except FrameGone as error:
            log.debug("frame.dropped", camera=ref.camera, number=ref.number, reason=str(error))
            self._accounts.dropped(ref.camera, "frame_gone")
            return
        except Exception as error:
            log.exception("preprocess.failed", camera=ref.camera, number=ref.number)
            self._land()  # results leave in the order of the frames
            reason = f"preprocess: {type(error).__name__}: {first_line(error)}"
            self._publish(ref, Result(reason=reason), model, Timing())
            return
        jobs.append(_Job(ref, placement, ms))

    def _publish(self, ref: FrameRef, result: Result, model: Model, timing: Timing) -> None:
        """Count, then send: a result lost between the two is a jump in `sequence`, never a repeated one."""
        camera = ref.camera
        sequence = self._accounts.resolved(camera, "failed" if result.reason else "inferred")
        now = time.monotonic_ns()
        message = Detections(
            camera=camera, number=ref.number, sequence=sequence, status="failed" if result.reason else "ok",
            reason=result.reason, time=ref.time, captured_ns=ref.captured_ns, media_ns=ref.media_ns,
            inferred_ns=now, session_ms=round(timing.session, 3), width=ref.width, height=ref.height,
            model=model.package.title, objects=result.objects, trace=ref.trace,
        )  # fmt: skip
        if not self._bus.publish(DETECTIONS, message, camera):
            self._host.telemetry.count("skerry_results_unsent_total", camera=camera)
        self._drifting.judge(ref, result, model)
        index = self._model_of(camera)
        if index is not None:
            self._sampling.note(index, ref, result, model, self._drifting.at(camera, model))
        self._finished.append(time.monotonic())
        latency = (time.monotonic_ns() - ref.captured_ns) / 1e6
        self._host.telemetry.latency("capture_to_detection").add(latency)

    def _judge(self, model: Model, results: list[Result]) -> None:
        """Degraded or well again."""
        about = f"model {model.package.title}"
        was_failing, trouble = model.failing, model.trouble
        model.note(results, time.monotonic())
        if model.trouble != trouble:
            self._untold.set()
        if model.failing:
            self._host.fault(about, next(r.reason for r in results if r.reason))
        elif was_failing:
            self._host.clear(about)

    def _drain(self) -> None:
        """Finish what waits; hear how far the cameras came, where they stop with us; account for the rest."""
        self._sampling.stop(0.1 * self._settings.grace_s)
        if self._exchange is not None:
            self._exchange.stop()
        begin = time.monotonic()
        finish_by, hear_by = begin + 0.6 * self._settings.grace_s, begin + 0.3 * self._settings.grace_s
        while time.monotonic() < finish_by:
            ref = self._inbox.get(0.01)
            if ref is not None:
                self._infer(ref)
                continue
            self._land()
            if not self._live or time.monotonic() > hear_by:
                break
        self._land()
        with self._door:  # no frame is half way in
            self._closing = True
        while (ref := self._inbox.get(0)) is not None:
            self._accounts.dropped(ref.camera, "stopping")
        tail_s = min(_TAIL_S, 0.2 * self._settings.grace_s)
        while self._ends.captured and time.monotonic() < begin + 0.9 * self._settings.grace_s:
            self._settle(tail_s)
            time.sleep(0.01)
        self._settle(0)
        with self._door:
            self._closed = True

    def _fps(self) -> float:
        since = time.monotonic() - _FPS_OVER_S
        return sum(t > since for t in list(self._finished)) / _FPS_OVER_S

    def _refresh(self) -> None:
        """Ledger terms as metrics."""
        for camera, term, n in self._accounts.terms():
            if term in ("inferred", "failed"):
                self._host.telemetry.gauge("skerry_frames_total", n, camera=camera, outcome=term)
            elif term.startswith("dropped/"):
                reason = term.removeprefix("dropped/")
                self._host.telemetry.gauge("skerry_frames_dropped_total", n, camera=camera, reason=reason)


def _another(use: ModelUse, now: ModelUse) -> bool:
    """Whether it takes another session."""
    return _session(use) != _session(now)


def _session(use: ModelUse) -> tuple[object, ...]:
    """What a session is made of."""
    return use.package, use.runtime, use.precision, use.threads


def _ran_by(model: Model, use: ModelUse) -> str:
    """What runs a model, on what, and which form of it."""
    form = model.package.form
    return f"{model.runtime}/{use.device}" + (f" {form}" if form != REFERENCE else "")


def _compared(uses: Mapping[int, ModelUse]) -> dict[int, ModelUse]:
    """What an exchange depends on."""
    return {n: msgspec.structs.replace(use, score_threshold=None) for n, use in uses.items()}


@cache
def _runtimes() -> dict[str, str]:
    """Version of each runtime that is installed; none is imported for it."""
    found = {}
    for name in installed():
        distribution, _, version = runtime_version(name).partition(" ")
        found[name] = version if distribution == name else f"{version} ({distribution})"
    return found
