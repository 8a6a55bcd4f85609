"""Small worlds for tests of tracker and rules: objects that move, and what a detector would say of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from skerry.decision.rules import Finding
from skerry.decision.settings import Rule, TrackerSettings
from skerry.decision.watch import Watch
from skerry.messages import Detection

S = 1_000_000_000


def thing(
    x: float,
    y: float = 0.5,
    label: str = "nut",
    *,
    size: float = 0.1,
    score: float = 0.9,
    **attributes: float,
) -> Detection:
    """A detection around a centre, clipped to the picture."""
    box = (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
    return Detection(label, score, tuple(min(max(v, 0.0), 1.0) for v in box), attributes)


def watch(*rules: Rule, **tracker: float) -> Watch:
    """A watch of camera `belt`; tracks are believed at once unless told otherwise."""
    return Watch(rules, "belt", TrackerSettings(**({"confirm_s": 0.0} | tracker)))


@dataclass
class Told:
    """What was found, and when."""

    at_s: float
    type: str
    data: dict[str, object] = field(default_factory=dict)


def play(
    watched: Watch,
    times: Iterable[float],
    scene: Callable[[float], Sequence[Detection] | None],
) -> list[Told]:
    """Show a scene at some times; where the scene is None, the result failed."""
    told = []
    for t in times:
        objects = scene(t)
        status = "failed" if objects is None else "ok"
        found: list[Finding] = watched.step(round(t * S), status, objects or ())
        told += [Told(t, f.type, f.data) for f in found]
    return told


def every(step_s: float, until_s: float, since_s: float = 0.0) -> list[float]:
    """Times from `since_s` to `until_s`, both included."""
    return [since_s + n * step_s for n in range(round((until_s - since_s) / step_s) + 1)]


@dataclass
class Part:
    """A part on a belt: where its centre is at time 0, and what it is."""

    number: int
    x: float
    y: float
    label: str
    defective: bool


class Belt:
    """Parts that share one velocity, with stops, and a detector that errs.

    Args:
        seed: for the layout and for the detector's errors.
        jitter: standard deviation of a box's sides, fractions.
        miss: share of parts that a result misses.
        flicker: share of wrong labels.
        double: share of parts with a second, weaker box of another label.
        clutter: share of results with a box where nothing is.
    """

    def __init__(
        self, seed: int, *, jitter: float = 0.003, miss: float = 0.03, flicker: float = 0.05,
        double: float = 0.04, clutter: float = 0.03, speed: float = 0.16,
    ) -> None:  # fmt: skip
        rng = random.Random(seed)
        self.rng = random.Random(seed + 1000)
        self.jitter, self.miss, self.flicker = jitter, miss, flicker
        self.double, self.clutter, self.speed = double, clutter, speed
        self.stops = [(8.0, 11.0), (25.0, 29.0)]
        self.parts = []
        x = 0.9
        for number in range(60):
            self.parts.append(
                Part(
                    number,
                    x,
                    rng.uniform(0.15, 0.85),
                    rng.choice(["bolt", "nut", "washer"]),
                    rng.random() < 0.2,
                )
            )
            x -= rng.uniform(0.06, 0.2)

    def moved(self, t: float) -> float:
        """How far the belt has come at `t`, stops excluded."""
        stood = sum(min(max(t - start, 0.0), end - start) for start, end in self.stops)
        return self.speed * (t - stood)

    def truth(self, t: float) -> list[tuple[Part, float]]:
        """The parts in the picture and the x of their centre."""
        here = ((part, part.x + self.moved(t)) for part in self.parts)
        return [(part, x) for part, x in here if -0.03 < x < 1.03]

    def crossed(self, x: float, since_s: float, until_s: float) -> list[Part]:
        """The parts whose centre passes `x` in the time."""
        before, after = self.moved(since_s), self.moved(until_s)
        return [part for part in self.parts if part.x + before < x <= part.x + after]

    def detect(self, t: float) -> list[Detection]:
        """What the detector says at `t`."""
        rng, found = self.rng, []
        for part, x in self.truth(t):
            if rng.random() < self.miss:
                continue
            label = part.label if rng.random() >= self.flicker else rng.choice(["bolt", "nut", "washer"])
            defect = min(max(rng.gauss(0.85 if part.defective else 0.12, 0.15), 0.0), 1.0)
            found.append(self._shaken(x, part.y, label, rng.uniform(0.5, 0.95), defect))
            if rng.random() < self.double:
                other = rng.choice([k for k in ("bolt", "nut", "washer") if k != label])
                found.append(self._shaken(x, part.y, other, rng.uniform(0.3, 0.5), defect))
        if rng.random() < self.clutter:
            found.append(self._shaken(rng.random(), rng.random(), "nut", 0.4, 0.9))
        return found

    def _shaken(self, x: float, y: float, label: str, score: float, defect: float) -> Detection:
        half = 0.045
        sides = (x - half, y - half, x + half, y + half)
        box = tuple(min(max(v + self.rng.gauss(0.0, self.jitter), 0.0), 1.0) for v in sides)
        return Detection(label, score, box, {"defect": defect})
