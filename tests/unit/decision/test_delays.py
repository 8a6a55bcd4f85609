from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from skerry.decision.delays import Delay, KnownTime, reached

intervals = st.lists(st.floats(0.001, 2.0), min_size=1, max_size=60)


def test_a_good_result_speaks_for_the_time_until_the_next() -> None:
    known = KnownTime(hold_s=1.0)
    assert [known.step(t, good=True) for t in (0.0, 0.25, 1.0)] == [0.0, 0.25, 0.75]
    assert known.seconds == 1.0


def test_a_result_speaks_for_no_longer_than_it_holds() -> None:
    known = KnownTime(hold_s=1.0)
    known.step(0.0, good=True)
    assert known.step(60.0, good=True) == 1.0


def test_the_time_after_a_failed_result_is_unknown() -> None:
    known = KnownTime(hold_s=1.0)
    for t, good in ((0.0, True), (0.5, False), (1.0, False), (1.5, True), (2.0, True)):
        known.step(t, good)
    assert known.seconds == 0.5 + 0.5


def test_time_that_runs_backwards_counts_nothing() -> None:
    known = KnownTime(hold_s=1.0)
    known.step(5.0, good=True)
    assert known.step(4.0, good=True) == 0.0


@given(intervals, st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.integers(0, 2**32))
def test_a_change_needs_its_delay_without_interruption(
    steps: list[float], on_s: float, off_s: float, seed: int
) -> None:
    rng, delay, now = random.Random(seed), Delay(on_s, off_s), 0.0
    history: list[tuple[float, bool]] = []
    for step in steps:
        now += step
        before, condition = delay.active, rng.random() < 0.7
        history.append((now, condition))
        changed = delay.step(now, condition)
        assert changed == (delay.active != before)
        if changed:
            assert delay.active == condition
            since = min(t for n, (t, _) in enumerate(history) if all(c == condition for _, c in history[n:]))
            assert reached(now - since, on_s if condition else off_s)


@given(intervals, st.floats(0.0, 3.0))
def test_a_change_comes_with_the_first_result_after_its_delay(steps: list[float], on_s: float) -> None:
    delay, now, first = Delay(on_s, 0.0), 0.0, None
    for step in steps:
        now += step
        first = now if first is None else first
        delay.step(now, True)
        assert delay.active == reached(now - first, on_s)


def test_an_unripe_moment_brings_no_change_but_the_delay_goes_on() -> None:
    delay = Delay(1.0, 1.0)
    assert not delay.step(0.0, True)
    assert not delay.step(1.5, True, ripe=False)
    assert delay.step(1.6, True)


def test_frame_intervals_that_add_up_to_the_delay_reach_it() -> None:
    delay, now = Delay(1.0, 0.0), 0.0
    for _ in range(15):
        delay.step(now, True)
        now += 1 / 15
    assert delay.step(now, True)
