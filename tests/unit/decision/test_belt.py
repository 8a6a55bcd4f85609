"""A belt of parts, an erring detector, and the demo's rules: what is found against what was there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from skerry.decision.settings import CountRule, LineRule, MotionRule, PresenceRule, TrackerSettings, Where
from skerry.decision.watch import Watch
from skerry.messages import Detection
from unit.decision.scenes import Belt, Part, Told, every, play

UNTIL_S = 40.0
BEGIN_S = 1.0
"""What crosses earlier was there when the film began, and its label rests on a few results."""
LINE = 0.6
RULES = (
    LineRule(name="count", camera="belt", line=((LINE, 0.0), (LINE, 1.0)), direction="forward"),
    PresenceRule(
        name="defect", camera="belt", per="track", on_delay_s=0.3, where=Where(attribute="defect", above=0.5),
        zone=((0.4, 0.0), (1.0, 0.0), (1.0, 1.0), (0.4, 1.0)),
    ),
    MotionRule(name="stopped", camera="belt"),
    CountRule(name="crowd", camera="belt", above=20, zone=((0.3, 0.0), (0.7, 0.0), (0.7, 1.0), (0.3, 1.0))),
)  # fmt: skip


def show(belt: Belt, times: Sequence[float], failed: Sequence[tuple[float, float]] = ()) -> list[Told]:
    def scene(t: float) -> list[Detection] | None:
        return None if any(start < t < end for start, end in failed) else belt.detect(t)

    return play(Watch(RULES, "belt", TrackerSettings()), times, scene)


def labels(parts: Sequence[Part]) -> Counter[str]:
    return Counter(part.label for part in parts)


def check(belt: Belt, told: Sequence[Told], slack_s: float = 0.0) -> None:
    """Every crossing once with its label; every defective part once; two stops; nothing else."""
    counted = Counter(t.data["label"] for t in told if t.type == "line.crossed" and t.at_s > BEGIN_S)
    surely = labels(belt.crossed(LINE, BEGIN_S, UNTIL_S - 0.3))
    perhaps = labels(belt.crossed(LINE, BEGIN_S - 0.3, UNTIL_S))  # the ends of the film may cut one
    assert surely <= counted <= perhaps
    defects = [t for t in told if t.data.get("attributes")]
    found = Counter(_part(belt, t) for t in defects)
    want = {p.number for p in belt.crossed(0.45 + slack_s * belt.speed, 0.0, UNTIL_S - 0.8) if p.defective}
    assert want <= set(found)
    assert all(belt.parts[number].defective and n == 1 for number, n in found.items())
    assert [t.type for t in told if t.type.startswith("motion")] == ["motion.stopped", "motion.resumed"] * 2
    assert not [t for t in told if t.type.startswith("count")]


def _part(belt: Belt, told: Told) -> int:
    x1, y1, x2, y2 = told.data["box"]
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return min(belt.truth(told.at_s), key=lambda one: abs(one[1] - x) + abs(one[0].y - y))[0].number


@pytest.mark.parametrize("seed", range(8))
def test_every_part_counts_once_and_every_defect_is_told_once(seed: int) -> None:
    belt = Belt(seed)
    check(belt, show(belt, every(1 / 15, UNTIL_S)))


@pytest.mark.parametrize("seed", range(4))
def test_a_third_of_the_frames_dropped_changes_nothing(seed: int) -> None:
    belt, rng = Belt(seed), random.Random(seed)
    check(belt, show(belt, [t for t in every(1 / 15, UNTIL_S) if rng.random() > 0.33]), slack_s=0.3)


@pytest.mark.parametrize("seed", range(4))
def test_failed_results_for_most_of_a_second_change_nothing(seed: int) -> None:
    belt = Belt(seed)
    failed = [(5.0, 5.7), (14.0, 14.8), (20.0, 20.6), (33.0, 33.8)]
    check(belt, show(belt, every(1 / 15, UNTIL_S), failed), slack_s=1.0)


def test_a_detector_that_says_nothing_is_told_nothing_of() -> None:
    belt = Belt(1, miss=1.0, clutter=0.3)
    assert not show(belt, every(1 / 15, UNTIL_S))
