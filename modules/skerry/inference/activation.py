"""How a model comes to serve in the place of another: its steps, what is watched, what is remembered. Pure.

    offered -> compatible -> golden -> budget -> shadow -> switched -> probation -> confirmed

What fails up to `shadow` is `refused`; what fails after the switch is `rolled_back`.

A model that serves is never left without another until its successor is confirmed. Where memory does not
hold both, `unloaded` stands before `golden`, nothing serves from there to `switched`, and there is no shadow:
nobody is there to compare with.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeVar

import msgspec

from skerry.inference.agreement import Agreement

Step = Literal[
    "offered", "compatible", "unloaded", "golden", "budget", "shadow", "switched", "probation", "confirmed",
    "refused", "rolled_back",
]  # fmt: skip
Serving = Literal["old", "new", "none"]
V = TypeVar("V")

_KEEPING: tuple[Step, ...] = (
    "offered", "compatible", "golden", "budget", "shadow", "switched", "probation", "confirmed",
)  # fmt: skip
_UNLOADING: tuple[Step, ...] = (
    "offered", "compatible", "unloaded", "golden", "budget", "switched", "probation", "confirmed",
)  # fmt: skip
_ENDS: frozenset[Step] = frozenset(("confirmed", "refused", "rolled_back"))
_NEW: frozenset[Step] = frozenset(("switched", "probation", "confirmed"))
_NONE: frozenset[Step] = frozenset(("golden", "budget"))
"""Steps in which nothing serves, where the old model was unloaded."""

_MOST_FAILURES = 0.02
"""Share of results that may be failures."""
_FEWEST_FAILURES = 3
"""Fewer prove nothing."""
_FEWEST_OBJECTS = 10
"""Agreement on fewer proves nothing."""
_FEWEST_TIMES = 20
_WARMING = 20
"""Results in which memory may grow as it likes: caches and arenas fill."""
_FEWEST_GROWING = 40
"""Results in which memory grows; fewer prove nothing."""
_LEAST_GROWN_MB = 16.0
"""Less may be anything: an allocator's arena, another camera."""
_SLOWEST_QUARTER = 0.1
"""A leak goes on: each quarter of the time has at least this share of it. One step is none."""
_MOST_WEIGHED = 512
_REMEMBERED_RESULTS = 100
"""Of a model that serves. Before half of them fail, the session was made anew, and it was no help."""
_TRIES = 3
"""Of one version that the process may not survive."""
_REMEMBERED = 32
"""Versions that failed here; the one that was tried longest ago is forgotten first."""


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model is on its way.

    Attributes:
        title: name@version.
        digest: of the package.
        unloads: the old model goes before the new one is loaded.
        step: the last one that was passed, or the end.
        said: every step so far, with its reason.
    """

    title: str
    digest: str = ""
    unloads: bool = False
    step: Step = "offered"
    said: tuple[tuple[Step, str], ...] = ()

    @property
    def ended(self) -> bool:
        """Nothing comes after it."""
        return self.step in _ENDS

    @property
    def serving(self) -> Serving:
        """Whose results are sent."""
        if self.step in _NEW:
            return "new"
        return "none" if self.unloads and (self.step == "unloaded" or self.step in _NONE) else "old"

    @property
    def next(self) -> Step:
        """The step that comes if all goes well.

        Raises:
            ValueError: it has ended.
        """
        order = _UNLOADING if self.unloads else _KEEPING
        if self.ended:
            raise ValueError(f"activation of {self.title}: expected one that goes on, got {self.step}")
        return order[order.index(self.step) + 1]

    def passed(self, reason: str) -> Activation:
        """The next step is taken.

        Args:
            reason: why it may be.
        """
        return self._at(self.next, reason)

    def failed(self, reason: str) -> Activation:
        """It does not serve, or not any more; the old model does."""
        untouched = self.serving == "old"
        assert not self.ended, "an end is for good"
        return self._at("refused" if untouched else "rolled_back", reason)

    def _at(self, step: Step, reason: str) -> Activation:
        return msgspec.structs.replace(self, step=step, said=(*self.said, (step, reason)))


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What a process may come to with a model.

    Attributes:
        most_mb: of the whole process; None: any.
        mb_per_1000: that it may grow by, in a thousand results; None: any.
    """

    most_mb: float | None = None
    mb_per_1000: float | None = None


class Watch:
    """What a model does on live frames, held against what it may.

    Args:
        limit_ms: of the median time for a frame; None: any.
        least_agreement: with the other model, 0 to 1.
        memory: of the process.

    Attributes:
        results: seen so far.
        failures: of these; numbers that are not finite and outputs of another shape are failures.
        agreement: with the other model, on the frames that both looked at.
    """

    def __init__(
        self,
        limit_ms: float | None,
        least_agreement: float,
        memory: Memory = Memory(),  # noqa: B008 - frozen
    ) -> None:
        self._limit_ms = limit_ms
        self._least = least_agreement
        self._memory = memory
        self._weighed: list[tuple[int, float]] = []
        self._too_much = ""
        self._times: deque[float] = deque(maxlen=101)
        self._reason = ""
        self.results = self.failures = 0
        self.agreement = Agreement()

    def note(self, reason: str, ms: float) -> None:
        """A result came.

        Args:
            reason: why it is a failure, empty where it is none.
            ms: of this frame, through pre-processing, model and decoder.
        """
        self.results += 1
        if reason:
            self.failures += 1
            self._reason = reason
        else:
            self._times.append(ms)

    def compared(self, agreement: Agreement) -> None:
        """Both models looked at a frame."""
        self.agreement += agreement

    def weighed(self, mb: float) -> None:
        """The process takes so many MiB now."""
        self._weighed.append((self.results, mb))
        if len(self._weighed) > _MOST_WEIGHED:
            del self._weighed[::2]
        self._too_much = self._overweight()

    @property
    def objection(self) -> str:
        """Why the model must not serve, empty while nothing is known against it."""
        if self.failures >= _FEWEST_FAILURES and self.failures > _MOST_FAILURES * self.results:
            return f"{self.failures} of {self.results} results failed, the last with {self._reason}"
        if self._limit_ms is not None and len(self._times) >= _FEWEST_TIMES:
            median = statistics.median(self._times)
            if median > self._limit_ms:
                return f"expected at most {self._limit_ms:.1f} ms a frame, got {median:.1f}"
        share = self.agreement.share
        if share is not None and self.agreement.either >= _FEWEST_OBJECTS and share < self._least:
            return f"expected {self._least:.0%} agreement with the other model, got {self.agreement}"
        return self._too_much

    def _overweight(self) -> str:
        """What is against the memory that it takes; empty where nothing is."""
        least = min((mb for _, mb in self._weighed[-3:]), default=0.0)
        most, rate = self._memory.most_mb, self._memory.mb_per_1000
        if most is not None and len(self._weighed) >= 3 and least > most:
            return f"expected the process to take at most {most:.0f} MB, got {least:.0f}"
        grown, results = leaked(self._weighed)
        if rate is not None and grown > rate * results / 1000:
            got = f"{grown * 1000 / results:.0f} ({grown:.0f} MB in {results} results)"
            return f"expected memory to grow by at most {rate:g} MB in 1000 results, got {got}"
        return ""

    def __str__(self) -> str:
        times = f", {statistics.median(self._times):.1f} ms" if self._times else ""
        return f"{self.results} results, {self.failures} failed{times}, agreement: {self.agreement}"


class Record:
    """The last results of a model that serves.

    Attributes:
        trouble: why most of them are failures; empty where they are not.
    """

    def __init__(self) -> None:
        self._failed: deque[bool] = deque(maxlen=_REMEMBERED_RESULTS)
        self.trouble = ""

    def note(self, reasons: Sequence[str]) -> None:
        """Results came.

        Args:
            reasons: why each is a failure, empty where it is none.
        """
        self._failed.extend(map(bool, reasons))
        failed = sum(self._failed)
        if not self.trouble and failed >= _REMEMBERED_RESULTS // 2:
            last = next((reason for reason in reversed(reasons) if reason), "")
            self.trouble = f"{failed} of the last {len(self._failed)} results failed, the last with {last}"
        elif not failed:
            self.trouble = ""


class Attempts(msgspec.Struct, frozen=True, kw_only=True):
    """What was tried on this device. Kept on disk, so that a version that failed is not tried for ever.

    Attributes:
        failed: key of a version to why it failed, in order.
        open: key of a version to how often a try of it was begun and not ended: the process died.
    """

    failed: dict[str, str] = {}
    open: dict[str, int] = {}

    def objection(self, key: str, digest: str, force: str) -> str:
        """Why a version is not to be tried; empty where it may be.

        Args:
            key: of the version, see `key`.
            digest: of its package.
            force: a digest, or its first digits, that is to be tried all the same.
        """
        if force and digest.startswith(force):
            return ""
        hint = f"set exchange.force to {digest[:12]} to try it again"
        if key in self.failed:
            return f"it failed here before: {self.failed[key]} ({hint})"
        if self.open.get(key, 0) >= _TRIES:
            return f"the process ended {self.open[key]} times while it was tried ({hint})"
        return ""

    def begun(self, key: str) -> Attempts:
        """A try of it begins."""
        return Attempts(failed=self.failed, open=_last(self.open, key, self.open.get(key, 0) + 1))

    def ended(self, key: str, reason: str | None) -> Attempts:
        """A try of it ended.

        Args:
            key: of the version.
            reason: why it is not to be tried again; empty where it serves; None: neither was found out.
        """
        others = {k: n for k, n in self.open.items() if k != key}
        if reason is None:
            return Attempts(failed=self.failed, open=others)
        if reason:
            return Attempts(failed=_last(self.failed, key, reason), open=others)
        return Attempts(failed={k: r for k, r in self.failed.items() if k != key}, open=others)


def key(digest: str, runtime: str, device: str, threads: int | None) -> str:
    """What one try is about: a package may fail on one runtime and do well on another."""
    return f"{digest[:16]} {runtime}/{device}/{threads or 'default'}"


def leaked(weighed: Sequence[tuple[int, float]]) -> tuple[float, int]:
    """How much memory has leaked, and in how many results; (0, 0) where it cannot be told from anything else.

    What grows once is no leak, however much it is; what grows in each quarter of the results is one, by so
    much that it is no accident.

    Args:
        weighed: results so far, and MiB of the process, in order; results do not fall.
    """
    known = [(n, mb) for n, mb in weighed if n >= _WARMING]
    if not known or known[-1][0] - known[0][0] < _FEWEST_GROWING:
        return 0.0, 0
    first, last = known[0][0], known[-1][0]
    edges = [first + (last - first) * quarter / 4 for quarter in range(5)]
    # What is taken at an edge is what was weighed next: then a step lies in one quarter only.
    at = [next(mb for n, mb in known if n >= edge) for edge in edges[:-1]] + [known[-1][1]]
    grown = at[-1] - at[0]
    slowest = min(after - before for before, after in pairwise(at))
    if grown < _LEAST_GROWN_MB or slowest < _SLOWEST_QUARTER * grown:
        return 0.0, 0
    return grown, last - first


def median_at_most(samples: Sequence[float]) -> float:
    """Upper bound of the median with 95 % confidence, without an assumption on the distribution.

    Args:
        samples: at least 5.

    Source: Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2 (order statistics).
    """
    ordered, n = sorted(samples), len(samples)
    below = 0.0
    for k in range(n):
        below += math.comb(n, k) / 2**n
        if below >= 0.95:
            return ordered[min(k, n - 1)]
    return ordered[-1]


def _last(entries: Mapping[str, V], key: str, value: V) -> dict[str, V]:
    """With one more at the end, and the oldest left out where there are too many."""
    rest = [(k, v) for k, v in entries.items() if k != key]
    return dict([*rest, (key, value)][-_REMEMBERED:])
