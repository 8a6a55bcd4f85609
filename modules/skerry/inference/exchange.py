"""The exchange of models that serve: on a thread of its own, up to the moment between two frames.

The thread loads, checks and compares; the module's loop only hands it frames, and does what it asks for
between two of them. Several models that are desired together are exchanged together, or none of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import structlog

from skerry import durable
from skerry.errors import PackageError, SkerryError
from skerry.inference.activation import Activation, Attempts, Memory, Watch, key, median_at_most
from skerry.inference.agreement import compare
from skerry.inference.golden import differences
from skerry.inference.measure import picture
from skerry.inference.model import Model, Result
from skerry.inference.preprocess import Pixels
from skerry.inference.runtimes import SessionFailed, first_line
from skerry.inference.settings import ModelUse
from skerry.messages import FrameRef
from skerry.models import package as packages
from skerry.models.manifest import Parts
from skerry.models.package import Package
from skerry.service import rss_mb

log = structlog.get_logger()

_RUNS, _FEWEST_RUNS, _RUNS_S = 30, 5, 5.0
"""Of which the latency is taken; fewer where they take longer."""
_POLL_S = 0.1
_PROVING = ("compatible", "unloaded", "golden", "budget")
"""Steps that are ahead of a model while it is proved."""


@dataclass(frozen=True)
class Rim:
    """What the module does for an exchange.

    Attributes:
        load: makes a model; see `Model`.
        put: on the loop, lets a model serve from the next frame on.
        gap: on the loop, drops a model's frames from now on.
        wake: any thread: have the loop look around.
        tell: any thread: a step was taken.
        attempts: file that remembers what failed here.
    """

    load: Callable[[ModelUse], Model]
    put: Callable[[int, Model], None]
    gap: Callable[[int], None]
    wake: Callable[[], None]
    tell: Callable[[int, Activation], None]
    attempts: Path


@dataclass
class Leg:
    """One model of an exchange.

    Attributes:
        index: its place in the settings.
        use: what is to serve.
        old: the model that serves until then.
        new: the model that is to serve, once it is loaded.
        watch: what is known of it on live frames.
        limit_ms: of a frame, by the package's budget and the site's.
        memory: that the process may take with it.
    """

    index: int
    use: ModelUse
    old: Model
    new: Model | None = None
    key: str = ""
    limit_ms: float | None = None
    memory: Memory = field(default_factory=Memory)
    activation: Activation = field(init=False)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.activation = Activation(title=self.use.package, unloads=self.use.exchange.memory == "unload")
        self.watch = Watch(None, 0.0)


class _Unfit(Exception):  # noqa: N818 - a reason
    """A model is not to serve.

    Args:
        leg: which.
        reason: why.
        lasting: the model has shown it: it is remembered, so that it is not tried again.
        final: it would be so again; by default, if it is lasting.
    """

    def __init__(self, leg: Leg, reason: str, *, lasting: bool = True, final: bool | None = None) -> None:
        super().__init__(reason)
        self.leg, self.reason, self.lasting = leg, reason, lasting
        self.final = lasting if final is None else final


class _TakenBack(Exception):  # noqa: N818 - nobody's fault
    """The exchange is not wanted any more."""


class _Stopped(Exception):  # noqa: N818 - nobody's fault
    """The module stops; what serves goes on to the end."""


class Exchange:
    """Models on their way to serving. `offer`, `note`, `turn`, `cancel` and `stop` are the loop's.

    Attributes:
        uses: what is exchanged: place in the settings, and what is to serve there.
        outcome: None while it is under way; then why it was refused, empty where all of it serves.
        final: it was refused, and would be again.
    """

    def __init__(self, legs: Sequence[Leg], rim: Rim) -> None:
        self._legs = {leg.index: leg for leg in legs}
        self._rim = rim
        self.uses = {leg.index: leg.use for leg in legs}
        self.outcome: tuple[str, ...] | None = None
        self.final = False
        self._acts: SimpleQueue[tuple[Callable[[], None], threading.Event]] = SimpleQueue()
        self._changed = threading.Condition()
        self._cancelled = ""
        self._confirmed = False
        self._over = threading.Event()
        self._wanted: frozenset[int] = frozenset()
        """Models of which the next frame is to be shown to the other one."""
        self._turn_of: int | None = None
        self._held: tuple[FrameRef, Pixels] | None = None
        self._pair: tuple[Leg, Pixels, Result] | None = None
        self._disk = threading.Lock()
        self._attempts = durable.load(rim.attempts, Attempts) or Attempts()
        self._prove_by = time.monotonic() + max(leg.use.exchange.prove_s for leg in legs)
        self._proving = True
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    # On the loop

    def turn(self) -> None:
        """Between two frames: do what the thread waits for; see to its time."""
        while True:
            try:
                act, done = self._acts.get_nowait()
            except Empty:
                break
            act()
            done.set()
        if self._proving and time.monotonic() > self._prove_by:
            self._proving = False
            # Nothing ends a thread that hangs in a runtime; it is left to itself, and does no harm any more.
            self._thread = threading.Thread(target=self._give_up, name="exchange-undone", daemon=True)
            self._thread.start()

    def offer(self, index: int, ref: FrameRef, pixels: Pixels) -> None:
        """A frame that a model of the exchange may be shown, besides the one that serves."""
        if index in self._wanted and self._held is None:
            self._held = ref, np.array(pixels)

    def note(self, index: int, ref: FrameRef, result: Result, ms: float) -> None:
        """What the model that serves has said of a frame."""
        leg = self._legs.get(index)
        if leg is None:
            return
        with self._changed:
            if leg.activation.step == "probation":
                leg.watch.note(result.reason, ms)
                if leg.watch.objection:
                    self._changed.notify_all()
            if self._held is None or self._held[0].camera != ref.camera or self._held[0].number > ref.number:
                return
            held, self._held = self._held, None
            if held[0] is ref and index in self._wanted:
                self._pair, self._wanted = (leg, held[1], result), frozenset()
                self._changed.notify_all()

    def watched(self, index: int) -> bool:
        """Whether what this model does is judged here, and not mended."""
        leg = self._legs.get(index)
        return leg is not None and leg.activation.step in ("switched", "probation")

    def cancel(self, why: str) -> None:
        """Go back to what was before, as soon as it can be; in vain where all of it was confirmed already."""
        with self._changed:
            if not self._confirmed:
                self._cancelled = self._cancelled or why
            self._changed.notify_all()

    def stop(self) -> None:
        """The module stops: nobody is there for the thread any more. Nothing was found out."""
        self._over.set()
        self.cancel("stopping")
        self._forget({leg.key: None for leg in self._legs.values() if leg.key})

    # On the thread

    def _run(self) -> None:
        legs = list(self._legs.values())
        try:
            self._exchange(legs)
            errors: tuple[str, ...] = ()
        except _Stopped:
            return
        except _TakenBack:
            errors = self._undone(legs, f"taken back: {self._cancelled}")
        except _Unfit as unfit:
            errors = self._undone(legs, _about(unfit.leg, unfit.reason), unfit)
        except Exception as error:
            log.exception("model.exchange_failed")
            errors = self._undone(legs, f"internal: {type(error).__name__}: {first_line(error)}")
        if threading.current_thread() is self._thread and not self._over.is_set():
            for leg in legs:
                loser, leg.new = leg.new if errors else leg.old, None
                if loser is not None:
                    loser.close()
            self._end(errors)

    def _give_up(self) -> None:
        """In the place of a thread that hangs."""
        legs = list(self._legs.values())
        leg = next((leg for leg in legs if leg.activation.next in _PROVING), legs[0])
        unfit = _Unfit(leg, f"no end of its checks within {leg.use.exchange.prove_s:g} s")
        self._end(self._undone(legs, _about(leg, unfit.reason), unfit))

    def _end(self, errors: tuple[str, ...]) -> None:
        self._legs.clear()
        self.outcome = errors
        self._rim.wake()

    def _exchange(self, legs: Sequence[Leg]) -> None:
        for leg in legs:
            self._prove(leg)
        self._proving = False
        staying = [leg for leg in legs if not leg.activation.unloads]
        self._look_on(staying)
        if staying:
            self._between_frames(lambda: self._switch(staying))
        self._probation(legs)
        with self._changed:
            self._check()
            self._confirmed = True
        for leg in legs:
            self._passed(leg, str(leg.watch))
        self._forget({leg.key: "" for leg in legs})

    def _prove(self, leg: Leg) -> None:
        """Everything that can be known without a live frame."""
        package = self._compatible(leg)
        if leg.activation.unloads:
            self._between_frames(lambda: self._rim.gap(leg.index))
            leg.old.unload()
            self._passed(leg, "there is no memory for both")
        before = rss_mb()
        budget_mb = package.manifest.budget.memory_mb
        leg.memory = Memory(
            most_mb=None if budget_mb is None else before + budget_mb,
            mb_per_1000=leg.use.exchange.growth_mb_per_1000,
        )
        new = self._loaded(leg)
        self._check()
        leg.new = new
        if new.digest != leg.activation.digest:
            raise _Unfit(leg, "the package was changed while it was loaded", lasting=False)
        golden = new.package.manifest.golden  # a form of its own may have pictures of its own
        found = differences(new.package, lambda pixels: self._shown(leg, new, pixels)[0]) or self._odd(
            leg, new
        )
        if found:
            raise _Unfit(leg, "; ".join(found[:3]))
        self._passed(leg, f"{len(golden.pictures)} pictures" if golden is not None else "it has no pictures")
        self._check()
        self._passed(leg, self._within_budget(leg, package, rss_mb() - before))
        leg.new.adjust(leg.use)
        if leg.activation.unloads:
            self._between_frames(lambda: self._switch([leg]))

    def _compatible(self, leg: Leg) -> Package:
        use = leg.use
        try:
            package = packages.load(Path(use.package).resolve())
        except PackageError as error:
            raise _Unfit(leg, first_line(error), lasting=False) from error
        digest = packages.digest(package.folder / packages.MANIFEST)
        runtime = use.runtime if use.precision == "auto" else f"{use.runtime}:{use.precision}"
        leg.key = key(digest, runtime, use.device, use.threads)
        leg.activation = msgspec.structs.replace(leg.activation, title=package.title, digest=digest)
        objection = self._attempts.objection(leg.key, digest, use.exchange.force)
        missing = _missing(use, package, leg.old.package)
        if objection or missing:
            leg_key, leg.key = leg.key, ""  # it is not tried, so there is nothing to remember of it
            log.info("model.not_tried", model=package.title, key=leg_key)
            raise _Unfit(leg, objection or missing, lasting=False, final=True)
        try:
            self._keep(self._attempts.begun(leg.key))
        except OSError as error:
            # One that may end the process, again and again, is not tried where nobody would know of it.
            text = f"{self._rim.attempts}: cannot keep that it is tried: {error.strerror} (make room)"
            raise _Unfit(leg, text, lasting=False) from error
        self._passed(leg, f"{len(package.labels)} labels, input {package.manifest.input.shape}")
        return package

    def _loaded(self, leg: Leg) -> Model:
        plain = msgspec.structs.replace(leg.use, score_threshold=None)
        try:
            return self._rim.load(plain)
        except SkerryError as error:
            raise _Unfit(leg, first_line(error), lasting=False) from error
        except SessionFailed as error:
            raise _Unfit(leg, f"session: {error}") from error

    def _odd(self, leg: Leg, model: Model) -> list[str]:
        """What a model cannot make of pictures that are nothing special."""
        plain = (np.full((96, 128, 3), grey, np.uint8) for grey in (0, 128, 255))
        seen = [self._shown(leg, model, pixels)[0] for pixels in (picture(640, 480), *plain)]
        return [f"on a test picture: {result.reason}" for result in seen if result.reason]

    def _within_budget(self, leg: Leg, package: Package, grown_mb: float) -> str:
        """Why the model may go on.

        Raises:
            _Unfit: it costs too much.
        """
        assert leg.new is not None, "it was loaded"
        budget = package.manifest.budget
        if budget.memory_mb is not None and grown_mb > budget.memory_mb:
            raise _Unfit(leg, f"expected at most {budget.memory_mb} MB of memory, got {grown_mb:.0f}")
        limits = [ms for ms in (budget.latency_ms, leg.use.exchange.latency_ms) if ms is not None]
        leg.limit_ms = min(limits, default=None)
        took = median_at_most(self._times(leg, leg.new))
        if leg.limit_ms is not None and took > leg.limit_ms:
            raise _Unfit(leg, f"expected at most {leg.limit_ms:g} ms a frame, got {took:.1f}")
        return f"{took:.1f} ms a frame, {grown_mb:.0f} MB"

    def _times(self, leg: Leg, model: Model) -> list[float]:
        """Milliseconds of some frames, one by one."""
        frame = picture(640, 480)
        self._shown(leg, model, frame)
        times: list[float] = []
        until = time.monotonic() + _RUNS_S
        while len(times) < _FEWEST_RUNS or (len(times) < _RUNS and time.monotonic() < until):
            times.append(self._shown(leg, model, frame)[1])
        return times

    def _look_on(self, legs: Sequence[Leg]) -> None:
        """The shadow: the new models see live frames, and what they say is compared and not sent."""
        for leg in legs:
            leg.watch = Watch(None, leg.use.exchange.least_agreement, leg.memory)
        until = time.monotonic() + max((leg.use.exchange.shadow_s for leg in legs), default=0)
        while waiting := [leg for leg in legs if leg.watch.results < leg.use.exchange.shadow_frames]:
            left = until - time.monotonic()
            if left <= 0:
                break
            pair = self._next(min(left, _POLL_S), waiting)
            if pair is None:
                continue
            leg, pixels, serving = pair
            seen, ms = self._shown(leg, leg.new, pixels)
            leg.watch.note(seen.reason, ms)
            leg.watch.weighed(rss_mb())
            if not seen.reason and not serving.reason:
                leg.watch.compared(compare(serving.objects, seen.objects))
            if leg.watch.objection:
                raise _Unfit(leg, leg.watch.objection)
        for leg in legs:
            self._passed(leg, str(leg.watch))

    def _probation(self, legs: Sequence[Leg]) -> None:
        """The new models serve, and the old ones look on."""
        for leg in legs:
            leg.watch = Watch(leg.limit_ms, leg.use.exchange.least_agreement, leg.memory)
            self._passed(leg, f"for {leg.use.exchange.probation_s:g} s")
        until = time.monotonic() + max(leg.use.exchange.probation_s for leg in legs)
        both = [leg for leg in legs if not leg.activation.unloads]
        while (left := until - time.monotonic()) > 0:
            pair = self._next(min(left, _POLL_S), both)
            self._judge(legs)
            if pair is None:
                continue
            leg, pixels, serving = pair
            seen, _ = self._shown(leg, leg.old, pixels)
            if not seen.reason and not serving.reason:
                leg.watch.compared(compare(serving.objects, seen.objects))
            self._judge(legs)
        self._judge(legs)

    def _judge(self, legs: Sequence[Leg]) -> None:
        mb = rss_mb()
        with self._changed:  # the loop adds to what is watched
            for leg in legs:
                leg.watch.weighed(mb)
            found = [(leg, leg.watch.objection) for leg in legs]
        for leg, objection in found:
            if objection:
                raise _Unfit(leg, objection)

    def _next(self, timeout_s: float, legs: Sequence[Leg]) -> tuple[Leg, Pixels, Result] | None:
        """A frame of one of these, in turn, with what the model that serves said; None: none in time."""
        with self._changed:
            others = frozenset(leg.index for leg in legs if leg.index != self._turn_of)
            self._wanted = others or frozenset(leg.index for leg in legs)
            self._changed.wait_for(
                lambda: (
                    self._pair or self._cancelled or any(leg.watch.objection for leg in self._legs.values())
                ),
                timeout_s,
            )
            pair, self._pair, self._wanted = self._pair, None, frozenset()
            self._turn_of = None if pair is None else pair[0].index
        self._check()
        return pair

    def _shown(self, leg: Leg, model: Model | None, pixels: Pixels) -> tuple[Result, float]:
        """What a model says that only looks on, and the milliseconds; then it rests, to keep to its share."""
        assert model is not None, "it was loaded"
        begin = time.perf_counter()
        seen = model.look(pixels)
        spent = time.perf_counter() - begin
        rest = spent * model.threads / leg.use.exchange.shadow_share - spent
        if leg.activation.serving == "none":
            rest = 0.0  # nobody is to be spared
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or leg.watch.objection, max(rest, 0))
        self._check()
        return seen, spent * 1000

    def _switch(self, legs: Sequence[Leg]) -> None:
        """On the loop."""
        for leg in legs:
            assert leg.new is not None, "it was loaded"
            self._rim.put(leg.index, leg.new)
            self._step(leg, "between two frames")

    def _put_back(self, legs: Sequence[Leg]) -> None:
        """On the loop."""
        for leg in legs:
            self._rim.put(leg.index, leg.old)

    def _undone(self, legs: Sequence[Leg], reason: str, unfit: _Unfit | None = None) -> tuple[str, ...]:
        """Have the old models serve as before; why."""
        self.final = unfit is not None and unfit.final
        gone = [leg for leg in legs if leg.activation.unloads and leg.activation.serving != "old"]
        back = [leg for leg in legs if leg.activation.serving == "new" and leg not in gone]
        try:
            if back:
                self._between_frames(lambda: self._put_back(back), checked=False)
            for leg in gone:
                self._load_again(leg)
        except _Stopped:
            log.info("model.exchange_stopped", reason=reason)
        mine = unfit.leg if unfit is not None and unfit.lasting else None
        self._forget({leg.key: unfit.reason if unfit and leg is mine else None for leg in legs if leg.key})
        for leg in legs:
            if not leg.activation.ended:
                own = unfit.reason if unfit is not None and leg is unfit.leg else reason
                leg.activation = leg.activation.failed(own)
                self._rim.tell(leg.index, leg.activation)
        return (reason,)

    def _load_again(self, leg: Leg) -> None:
        """The old model, where it was unloaded; while it cannot be, its results are failures."""
        self._between_frames(lambda: self._rim.gap(leg.index), checked=False)
        if leg.new is not None:
            leg.new.unload()
        try:
            leg.old.reload()
        except SkerryError as error:
            log.warning("session.lost", model=leg.old.package.title, error=first_line(error))
        self._between_frames(lambda: self._rim.put(leg.index, leg.old), checked=False)

    def _passed(self, leg: Leg, reason: str) -> None:
        if threading.current_thread() is not self._thread:
            raise _Stopped
        self._step(leg, reason)

    def _step(self, leg: Leg, reason: str) -> None:
        leg.activation = leg.activation.passed(reason)
        self._rim.tell(leg.index, leg.activation)

    def _check(self) -> None:
        if self._over.is_set() or threading.current_thread() is not self._thread:
            raise _Stopped
        if self._cancelled:
            raise _TakenBack

    def _between_frames(self, act: Callable[[], None], *, checked: bool = True) -> None:
        """Have the loop do something between two frames, and wait until it has.

        Args:
            act: what.
            checked: not if the exchange was taken back meanwhile.
        """
        if checked:
            self._check()
        done = threading.Event()
        self._acts.put((act, done))
        self._rim.wake()
        while not done.wait(_POLL_S):
            if self._over.is_set() or threading.current_thread() is not self._thread:
                raise _Stopped

    def _forget(self, ended: dict[str, str | None]) -> None:
        """Tries that ended, each with why it failed; see `Attempts.ended`."""
        with self._disk:
            attempts = self._attempts
        for name, reason in ended.items():
            attempts = attempts.ended(name, reason)
        try:
            self._keep(attempts)
        except OSError as error:
            log.error(  # noqa: TRY400 - the path and the reason say all
                "model.attempts_not_kept", path=str(self._rim.attempts), error=error.strerror
            )

    def _keep(self, attempts: Attempts) -> None:
        with self._disk:
            if attempts != self._attempts:
                self._attempts = attempts
                durable.replace(self._rim.attempts, msgspec.json.encode(attempts))


def _about(leg: Leg, reason: str) -> str:
    return f"models.{leg.index}.package: {leg.activation.title}: {reason}"


def _missing(use: ModelUse, new: Package, old: Package) -> str:
    """What a package lacks that the site needs; empty where it has all of it."""
    wanted = old.labels if use.exchange.labels is None else use.exchange.labels
    lacks = [label for label in wanted if label not in new.labels]
    if lacks:
        return f"expected the labels {', '.join(wanted)}, got none that is {' or '.join(lacks)}"
    if use.exchange.labels is None and isinstance(old.manifest.decoder, Parts):
        decoder = new.manifest.decoder
        has = decoder.attributes if isinstance(decoder, Parts) else ()
        lacks = [name for name in old.manifest.decoder.attributes if name not in has]
        if lacks:
            return f"expected the attributes {', '.join(lacks)}, got {', '.join(has) or 'none'}"
    return ""
