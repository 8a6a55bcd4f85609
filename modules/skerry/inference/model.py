"""A package in use: pre-processing, session and decoder, and how it gets over failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from skerry.errors import SkerryError
from skerry.inference.choose import Choice, choose
from skerry.inference.cores import default_threads, usable_cores
from skerry.inference.decoders import BadOutput, decode
from skerry.inference.placement import Placement
from skerry.inference.preprocess import Pixels, Preprocessor
from skerry.inference.runtimes import Place, Session, SessionFailed, first_line, open_session, zeros
from skerry.inference.settings import ModelUse
from skerry.messages import Detection
from skerry.models import package as packages

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


class Model:
    """One model of the module. Not thread-safe.

    Attributes:
        choice: what was measured, where the runtime was `auto`.
        runtime: the one in use.
        failures: runs that failed since the last good one.
    """

    def __init__(
        self, use: ModelUse, cache: Path, retry_s: float, beat: Callable[[], None] = lambda: None
    ) -> None:
        """Load and warm up.

        Raises:
            PackageError, ConfigError, Unavailable: see `open_session`.
        """
        package = packages.load(Path(use.package))
        self.package = package
        self.batch = min(use.batch.max, package.manifest.input.batch)
        self.deadline_s = use.batch.deadline_ms / 1000 if self.batch > 1 else 0.0
        self._manifest = package.manifest
        if use.score_threshold is not None:
            decoder = msgspec.structs.replace(package.manifest.decoder, score_threshold=use.score_threshold)
            self._manifest = msgspec.structs.replace(package.manifest, decoder=decoder)
        threads = use.threads or default_threads(usable_cores())
        self._place = Place(use.device, threads, cache)
        self.choice: Choice | None = choose(package, self._place, beat) if use.runtime == "auto" else None
        self.runtime = use.runtime if self.choice is None else self.choice.runtime
        self._prepare = Preprocessor(package.manifest.input, self.batch)
        self._limit = use.failures_before_recreate
        self._retry_s = self._first_retry_s = retry_s
        self._retry_at = 0.0
        self.failures = 0
        self._session: Session | None = open_session(self.runtime, package, self._place)
        self._session.run(zeros(self._session))

    def prepare(self, pixels: Pixels, index: int = 0) -> Placement:
        """Put a frame into place `index` of the batch; see `Preprocessor`."""
        return self._prepare(pixels, index)

    def infer(self, placements: Sequence[Placement]) -> tuple[list[Result], Timing]:
        """Run the session on the first frames of the batch; never raises for what the model does.

        Args:
            placements: of the frames that were prepared, in order.
        """
        session = self._session
        if session is None:
            return [Result(reason="session: not loaded")] * len(placements), Timing()
        spec = self._manifest.input
        begin = time.perf_counter()
        try:
            outputs = session.run({spec.name: self._prepare.tensor[: len(placements)]})
        except SessionFailed as error:
            failed = Result(reason=f"session: {error}")
            return [failed] * len(placements), Timing(session=_ms_since(begin))
        middle = time.perf_counter()
        results = []
        for n, placement in enumerate(placements):
            mine = outputs if self.batch == 1 else {k: v[n : n + 1] for k, v in outputs.items()}
            try:
                results.append(Result(decode(mine, self._manifest, self.package.labels, placement)))
            except BadOutput as error:
                results.append(Result(reason=str(error)))
        return results, Timing((middle - begin) * 1000, _ms_since(middle))

    @property
    def failing(self) -> bool:
        """It failed as often in a row as the settings allow."""
        return self.failures >= self._limit

    def note(self, results: Sequence[Result], now: float) -> None:
        """Count failures in a row; when there are too many, make the session anew, with backoff.

        Args:
            results: of one run.
            now: monotonic seconds.
        """
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


def _ms_since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000
