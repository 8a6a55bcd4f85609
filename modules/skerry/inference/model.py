"""A package in use: pre-processing, session and decoder, and how it gets over failures."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from skerry.errors import SkerryError
from skerry.inference.activation import Record
from skerry.inference.choose import Choice, choose
from skerry.inference.cores import default_threads, usable_cores
from skerry.inference.decoders import BadOutput, decode
from skerry.inference.placement import Placement
from skerry.inference.preprocess import Pixels, Preprocessor, Tensor
from skerry.inference.runtimes import Array, Place, Session, SessionFailed, first_line, open_session, zeros
from skerry.inference.settings import ModelUse
from skerry.messages import Detection
from skerry.models import package as packages
from skerry.models.manifest import REFERENCE
from skerry.models.package import Package

log = structlog.get_logger()

_LONGEST_RETRY_S = 30.0


@dataclass(frozen=True)
class Result:
    """What the model says of one frame; `reason` is empty when it is a result."""

    objects: tuple[Detection, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one run of the session, and of decoding all its results."""

    session: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True)
class Ran:
    """One run of a session: its outputs, or why there are none."""

    outputs: dict[str, Array] = field(default_factory=dict)
    reason: str = ""
    ms: float = 0.0


@dataclass(frozen=True)
class Flight:
    """A run that was launched and not yet landed."""

    ran: Future[Ran]
    placements: tuple[Placement, ...]

    def wait(self) -> None:
        """Return when the session has run; whatever came of it is for `land` to say."""
        wait([self.ran])


class Model:
    """One model of the module. Not thread-safe.

    Attributes:
        package: with the form that is in use in the place of its artifact.
        choice: what was measured, where there was something to choose.
        runtime: the one in use.
        digest: SHA-256 of the package's manifest, in hexadecimal.
        failures: runs that failed since the last good one.
    """

    def __init__(
        self,
        use: ModelUse,
        cache: Path,
        retry_s: float,
        beat: Callable[[], None] = lambda: None,
        *,
        form: str | None = None,
    ) -> None:
        """Load and warm up.

        Args:
            use: which package, and how.
            cache: folder for what is remembered and compiled.
            retry_s: before a failing session is made anew.
            beat: called while it takes long.
            form: of the package, on the runtime that `use` names; None: whichever is best.

        Raises:
            PackageError, ConfigError, Unavailable: see `open_session`.
        """
        # Resolved: a link that is moved to another version must not change what this session is made anew of.
        package = packages.load(Path(use.package).resolve())
        self.batch = min(use.batch.max, package.manifest.input.batch)
        self.deadline_s = use.batch.deadline_ms / 1000 if self.batch > 1 else 0.0
        self.digest = packages.digest(package.folder / packages.MANIFEST)
        threads = use.threads or default_threads(usable_cores())
        self._place = Place(use.device, threads, cache)
        self.choice = _choice(use, package, self._place, beat) if form is None else None
        self.runtime = use.runtime if self.choice is None else self.choice.runtime
        package = package.using(self.choice.form if self.choice is not None else form or REFERENCE)
        self.package = package
        self.adjust(use)
        self._inputs = tuple(Preprocessor(package.manifest.input, self.batch) for _ in range(2))
        self._turn = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="session")
        self._limit = use.failures_before_recreate
        self._retry_s = self._first_retry_s = retry_s
        self._retry_at = 0.0
        self._record = Record()
        self.failures = 0
        self._session: Session | None = open_session(self.runtime, package, self._place)
        self._session.run(zeros(self._session))

    def unload(self) -> None:
        """Give back the memory of the session; until `reload` every result is a failure."""
        self._session = None
        release()

    def reload(self) -> None:
        """Make the session again.

        Raises:
            PackageError, ConfigError, Unavailable: see `open_session`.
        """
        self._session = open_session(self.runtime, self.package, self._place)

    def close(self) -> None:
        """The model is not used any more."""
        self._thread.shutdown()
        self.unload()

    @property
    def threads(self) -> int:
        """Of one run on the CPU."""
        return self._place.threads

    def adjust(self, use: ModelUse) -> None:
        """Take over the score threshold, from the next result that is decoded on."""
        self._manifest = self.package.manifest
        if use.score_threshold is not None:
            decoder = msgspec.structs.replace(self._manifest.decoder, score_threshold=use.score_threshold)
            self._manifest = msgspec.structs.replace(self._manifest, decoder=decoder)

    def look(self, pixels: Pixels) -> Result:
        """What the model says of one picture: `prepare` and `infer`."""
        return self.infer([self.prepare(pixels)])[0][0]

    def prepare(self, pixels: Pixels, index: int = 0) -> Placement:
        """Put a frame into place `index` of the batch; see `Preprocessor`."""
        return self._inputs[self._turn](pixels, index)

    def infer(self, placements: Sequence[Placement]) -> tuple[list[Result], Timing]:
        """Run the session on the first frames of the batch; never raises for what the model does.

        Args:
            placements: of the frames that were prepared, in order.
        """
        tensor = self._inputs[self._turn].tensor[: len(placements)]
        return self._read(_run(self._session, self._manifest.input.name, tensor), placements)

    def launch(self, placements: Sequence[Placement]) -> Flight:
        """Run the session as `infer` does, on a thread of its own, and return at once.

        The next frame may be prepared meanwhile; it goes to another input. `land` comes before the next
        but one `launch`.
        """
        tensor = self._inputs[self._turn].tensor[: len(placements)]
        self._turn = 1 - self._turn
        ran = self._thread.submit(_run, self._session, self._manifest.input.name, tensor)
        return Flight(ran, tuple(placements))

    def land(self, flight: Flight) -> tuple[list[Result], Timing]:
        """Wait for the session and decode; what `infer` returns."""
        return self._read(flight.ran.result(), flight.placements)

    def _read(self, ran: Ran, placements: Sequence[Placement]) -> tuple[list[Result], Timing]:
        if ran.reason:
            return [Result(reason=ran.reason)] * len(placements), Timing(session=ran.ms)
        begin = time.perf_counter()
        results = []
        for n, placement in enumerate(placements):
            mine = ran.outputs if self.batch == 1 else {k: v[n : n + 1] for k, v in ran.outputs.items()}
            try:
                results.append(Result(decode(mine, self._manifest, self.package.labels, placement)))
            except BadOutput as error:
                results.append(Result(reason=str(error)))
        return results, Timing(ran.ms, _ms_since(begin))

    @property
    def failing(self) -> bool:
        """It failed as often in a row as the settings allow."""
        return self.failures >= self._limit

    @property
    def trouble(self) -> str:
        """Why most of its last results are failures; empty where they are not."""
        return self._record.trouble

    def note(self, results: Sequence[Result], now: float) -> None:
        """Count failures in a row; when there are too many, make the session anew, with backoff.

        Args:
            results: of one run.
            now: monotonic seconds.
        """
        self._record.note([r.reason for r in results])
        if any(not r.reason for r in results):
            self.failures = 0
            self._retry_s, self._retry_at = self._first_retry_s, 0.0
            return
        self.failures += len(results)
        if self.failing and now >= self._retry_at:
            self._recreate(now)

    def _recreate(self, now: float) -> None:
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
        self._session = None  # two at once may not fit on the device
        try:
            self._session = open_session(self.runtime, self.package, self._place)
            log.info("session.recreated", model=self.package.title, runtime=self.runtime)
        except SkerryError as error:
            log.warning("session.lost", model=self.package.title, error=first_line(error))


def _choice(use: ModelUse, package: Package, place: Place, beat: Callable[[], None]) -> Choice | None:
    """The runtime and form to use; None: the runtime that is named, with the reference.

    A named runtime takes what computes in 32 bits, where it can load that. What has fewer bits is checked on
    this CPU first.
    """
    if use.runtime == "auto":
        return choose(package, place, beat, precision=use.precision)
    forms = package.forms_for(use.runtime, use.precision)
    if forms[:1] == (REFERENCE,) or (not package.manifest.variants and use.precision == "auto"):
        return None
    exact = [v.name for v in package.manifest.variants if v.name in forms and v.precision == "fp32"]
    precision = "fp32" if exact and use.precision == "auto" else use.precision
    return choose(package, place, beat, runtime=use.runtime, precision=precision)


def release() -> None:
    """Give memory that is free back to the system; the C library keeps it otherwise.

    Source: malloc_trim(3), of the GNU C library.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _run(session: Session | None, name: str, tensor: Tensor) -> Ran:
    if session is None:
        return Ran(reason="session: not loaded")
    begin = time.perf_counter()
    try:
        outputs = session.run({name: tensor})
    except SessionFailed as error:
        return Ran(reason=f"session: {error}", ms=_ms_since(begin))
    return Ran(outputs, ms=_ms_since(begin))


def _ms_since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000
