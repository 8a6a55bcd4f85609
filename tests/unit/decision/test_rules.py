from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.decision.settings import (
    AbsenceRule,
    CountRule,
    DwellRule,
    LineRule,
    MotionRule,
    PresenceRule,
    RateRule,
    Where,
    ZoneRule,
)
from unit.decision.scenes import Told, every, play, thing, watch

MIDDLE = ((0.3, 0.0), (0.7, 0.0), (0.7, 1.0), (0.3, 1.0))
GATE = ((0.5, 0.0), (0.5, 1.0))
frames = st.lists(st.floats(0.01, 0.9), min_size=5, max_size=80)
examples = settings(max_examples=60, deadline=None)


def instants(steps: list[float]) -> list[float]:
    now, found = 0.0, []
    for step in steps:
        found.append(now)
        now += step
    return found


def types(told: list[Told]) -> list[str]:
    return [t.type for t in told]


# presence


def test_presence_starts_after_its_on_delay_and_ends_after_its_off_delay() -> None:
    rule = PresenceRule(name="p", camera="belt", on_delay_s=0.5, off_delay_s=1.0)
    told = play(watch(rule, lost_s=0.05), every(0.1, 6.0), lambda t: [thing(0.5)] if 1.0 <= t <= 3.0 else [])
    assert [(t.type, pytest.approx(t.at_s)) for t in told] == [
        ("presence.started", 1.5),
        ("presence.ended", 4.1),
    ]
    assert told[1].data["lasted_s"] == pytest.approx(2.1)
    assert told[0].data["label"] == "nut"


@examples
@given(frames, st.floats(0.1, 3.0))
def test_presence_never_starts_early_and_starts_with_the_first_result_that_may(
    steps: list[float], on_s: float
) -> None:
    times = instants(steps)
    rule = PresenceRule(name="p", camera="belt", on_delay_s=on_s)
    told = play(watch(rule), times, lambda _: [thing(0.5)])
    due = [t for t in times if t >= on_s - 1e-6]
    assert [t.at_s for t in told] == due[:1]


def test_presence_does_not_end_while_results_fail() -> None:
    rule = PresenceRule(name="p", camera="belt", on_delay_s=0.0, off_delay_s=1.0)
    told = play(watch(rule), every(0.1, 60.0), lambda t: [thing(0.5)] if t < 2.0 else None)
    assert types(told) == ["presence.started"]


def test_presence_outside_the_zone_or_of_another_label_is_none() -> None:
    base = {"camera": "belt", "on_delay_s": 0.0}
    rules = (
        PresenceRule(name="zone", zone=MIDDLE, **base),
        PresenceRule(name="label", labels=("bolt",), **base),
        PresenceRule(name="score", min_score=0.95, **base),
        PresenceRule(name="here", labels=("nut",), **base),
    )
    told = play(watch(*rules), every(0.1, 2.0), lambda _: [thing(0.1)])
    assert len(told) == 1
    assert told[0].data["track"] == 1


def test_presence_starts_only_with_a_result_that_shows_the_object() -> None:
    rule = PresenceRule(name="p", camera="belt", on_delay_s=0.5)
    told = play(
        watch(rule, lost_s=2.0), every(0.1, 2.0), lambda t: [thing(0.5)] if t < 0.25 or t > 1.35 else []
    )
    assert [t.at_s for t in told] == [pytest.approx(1.4)]


@examples
@given(frames, st.integers(0, 2**32))
def test_presence_per_track_tells_each_object_once(steps: list[float], seed: int) -> None:
    rng = random.Random(seed)
    rule = PresenceRule(name="p", camera="belt", per="track", on_delay_s=0.2)
    times = instants([min(s, 0.3) for s in steps])
    spots = (0.1, 0.5, 0.9)
    told = play(watch(rule), times, lambda _: [thing(x) for x in spots if rng.random() < 0.9])
    tracks = [t.data["track"] for t in told]
    assert len(tracks) == len(set(tracks))
    assert all(t.at_s >= 0.2 - 1e-6 for t in told)


def test_an_object_is_told_of_only_by_a_result_that_shows_it() -> None:
    rule = PresenceRule(name="p", camera="belt", per="track", on_delay_s=0.5)
    told = play(
        watch(rule, lost_s=2.0), every(0.1, 2.0), lambda t: [thing(0.5)] if t < 0.25 or t > 1.35 else []
    )
    assert [t.at_s for t in told] == [pytest.approx(1.4)]


def test_a_defective_object_is_told_once_when_its_mean_says_so() -> None:
    rule = PresenceRule(
        name="defect", camera="belt", per="track", on_delay_s=0.3, where=Where(attribute="defect", above=0.5)
    )
    rng = random.Random(5)

    def scene(t: float) -> list[object]:
        x = 0.1 + 0.1 * t
        return [thing(x, defect=rng.gauss(0.8, 0.3)), thing(x, 0.8, defect=rng.gauss(0.2, 0.3))]

    told = play(watch(rule), every(1 / 15, 6.0), scene)
    assert types(told) == ["presence.started"]
    assert told[0].data["track"] == 1
    assert told[0].data["attributes"]["defect"] > 0.5


def test_an_attribute_means_nothing_before_its_evidence() -> None:
    rule = PresenceRule(
        name="defect", camera="belt", per="track", on_delay_s=0.0,
        where=Where(attribute="defect", above=0.5, evidence_s=1.0),
    )  # fmt: skip
    told = play(watch(rule), every(0.1, 3.0), lambda _: [thing(0.5, defect=0.9)])
    assert [t.at_s for t in told] == [pytest.approx(1.0)]


# count


def test_a_count_is_exceeded_after_the_on_delay_and_normal_after_the_off_delay() -> None:
    rule = CountRule(name="n", camera="belt", above=2, on_delay_s=0.5, off_delay_s=0.3)

    def scene(t: float) -> list[object]:
        return [thing(x) for x in (0.1, 0.4, 0.7)[: 3 if 1.0 <= t < 3.0 else 2]]

    told = play(watch(rule, lost_s=0.05), every(0.1, 5.0), scene)
    assert [(t.type, pytest.approx(t.at_s)) for t in told] == [("count.exceeded", 1.5), ("count.normal", 3.3)]
    assert told[0].data["count"] == 3
    assert told[0].data["labels"] == {"nut": 3}
    assert (told[0].data["active"], told[1].data["active"]) == (True, False)


@examples
@given(st.lists(st.integers(0, 8), min_size=5, max_size=60), st.integers(0, 3), st.integers(2, 6))
def test_a_count_tells_high_and_low_alternately_and_only_across_its_hysteresis(
    counts: list[int], hysteresis: int, bound: int
) -> None:
    rule = CountRule(
        name="n",
        camera="belt",
        above=bound,
        hysteresis=min(hysteresis, bound),
        on_delay_s=0.0,
        off_delay_s=0.0,
    )
    scene = [[thing(0.05 + 0.1 * n) for n in range(count)] for count in counts]
    told = play(watch(rule, lost_s=0.01), every(0.1, (len(counts) - 1) / 10), lambda t: scene[round(t * 10)])
    assert types(told) == ["count.exceeded", "count.normal"] * (len(told) // 2) + ["count.exceeded"] * (
        len(told) % 2
    )
    for one in told:
        if one.type == "count.exceeded":
            assert one.data["count"] > bound
        else:
            assert one.data["count"] <= bound - min(hysteresis, bound)


@examples
@given(st.lists(st.integers(0, 8), min_size=5, max_size=60), st.integers(1, 7), st.integers(0, 2))
def test_too_few_is_too_many_seen_from_the_other_side(counts: list[int], bound: int, hysteresis: int) -> None:
    def changes(shown: list[int], rule: CountRule) -> list[float]:
        scene = [[thing(0.05 + 0.1 * n) for n in range(count)] for count in shown]
        watched = watch(rule, lost_s=1e-3)
        return [
            t.at_s for t in play(watched, every(0.1, (len(shown) - 1) / 10), lambda t: scene[round(t * 10)])
        ]

    base = {"name": "n", "camera": "belt", "hysteresis": hysteresis, "off_delay_s": 0.0, "on_delay_s": 0.0}
    steady = [n for n in counts for _ in range(2)]  # an unseen track coasts for one result
    low = changes(steady, CountRule(below=bound, **base))
    high = changes([8 - n for n in steady], CountRule(above=8 - bound, **base))
    assert len(low) == len(high)


def test_a_ghost_that_no_result_shows_makes_no_count_too_high() -> None:
    rule = CountRule(name="n", camera="belt", above=2, on_delay_s=0.3)

    def scene(t: float) -> list[object]:
        return [thing(0.1), thing(0.4), *([thing(0.7)] if t < 0.15 else [])]

    assert not play(watch(rule, lost_s=3.0), every(0.1, 3.0), scene)


def test_a_count_moves_nowhere_while_results_fail() -> None:
    rule = CountRule(name="n", camera="belt", below=1, on_delay_s=1.0)
    told = play(watch(rule), every(0.1, 30.0), lambda t: [thing(0.5)] if t < 1 else None)
    assert not told


# zone and dwell


def test_an_object_enters_and_leaves_a_zone_once_with_the_time_it_stayed() -> None:
    rule = ZoneRule(name="z", camera="belt", zone=MIDDLE, on_delay_s=0.2, off_delay_s=0.2)
    told = play(watch(rule), every(0.1, 9.0), lambda t: [thing(0.05 + 0.1 * t)])
    assert types(told) == ["zone.entered", "zone.left"]
    assert told[0].at_s == pytest.approx(2.7, abs=0.11)
    assert told[1].data["stayed_s"] == pytest.approx(4.0, abs=0.11)
    assert told[1].data["how"] == "left"


def test_an_object_that_is_lost_in_a_zone_has_left_it() -> None:
    rule = ZoneRule(name="z", camera="belt", zone=MIDDLE, report="left")
    told = play(watch(rule, lost_s=1.0), every(0.1, 5.0), lambda t: [thing(0.5)] if t <= 2.0 else [])
    assert [(t.type, t.data["how"], t.data["stayed_s"]) for t in told] == [
        ("zone.left", "lost", pytest.approx(2.0))
    ]


@examples
@given(st.integers(0, 2**32), st.floats(0.0, 0.7), st.floats(0.5, 4.0))
def test_dropped_frames_do_not_change_a_dwell_beyond_the_gap(seed: int, drop: float, longer_s: float) -> None:
    rng = random.Random(seed)
    rule = DwellRule(name="d", camera="belt", zone=MIDDLE, longer_s=longer_s)
    times = [t for t in every(1 / 15, 9.0) if rng.random() >= drop]
    gap = max(b - a for a, b in itertools.pairwise(times))
    if gap > 0.9:
        return  # the track may end
    told = play(watch(rule), times, lambda t: [thing(0.5 if 1.0 <= t <= 6.0 else 0.15)])
    assert types(told) == ["dwell.exceeded", "dwell.ended"]
    assert longer_s - 1e-6 <= told[0].at_s - 1.0 <= longer_s + 2 * gap + 0.07
    assert told[1].data["dwell_s"] == pytest.approx(5.0, abs=2 * gap + 0.07)


def test_a_dwell_does_not_depend_on_the_frame_rate() -> None:
    for fps in (3, 15, 60):
        rule = DwellRule(name="d", camera="belt", zone=MIDDLE, longer_s=2.0)
        told = play(watch(rule), every(1 / fps, 5.0), lambda _: [thing(0.5)])
        assert [t.at_s for t in told] == [pytest.approx(2.0, abs=1 / fps)]


def test_a_dwell_goes_on_through_failed_results() -> None:
    rule = DwellRule(name="d", camera="belt", zone=MIDDLE, longer_s=3.0)
    told = play(watch(rule), every(0.1, 5.0), lambda t: None if 1.0 < t < 2.5 else [thing(0.5)])
    assert [t.at_s for t in told] == [pytest.approx(3.0)]


def test_no_dwell_is_told_on_a_failed_result() -> None:
    rule = DwellRule(name="d", camera="belt", zone=MIDDLE, longer_s=3.0)
    assert not play(watch(rule), every(0.1, 20.0), lambda t: [thing(0.5)] if t < 2.0 else None)


# line


@examples
@given(st.integers(0, 2**32), st.floats(0.0, 0.003), st.sampled_from([1, -1]))
def test_a_crossing_counts_once_whatever_the_jitter(seed: int, jitter: float, way: int) -> None:
    rng = random.Random(seed)
    rule = LineRule(name="l", camera="belt", line=GATE, margin=0.01)

    def scene(t: float) -> list[object]:  # it waits for two seconds exactly on the line
        along = min(0.1 * t, 0.3) + max(0.0, 0.1 * (t - 5.0))
        return [thing(0.5 + way * (along - 0.3) + rng.gauss(0.0, jitter), 0.5 + rng.gauss(0.0, jitter))]

    told = play(watch(rule), every(1 / 15, 8.0), scene)
    assert types(told) == ["line.crossed"]
    assert told[0].data["direction"] == ("forward" if way > 0 else "backward")


@examples
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_each_of_several_crossings_counts_in_its_direction(seed: int, crossings: int) -> None:
    rng = random.Random(seed)
    rule = LineRule(name="l", camera="belt", line=GATE)
    way = [0.4]
    for n in range(crossings):
        target = 0.6 if n % 2 == 0 else 0.4
        while abs(way[-1] - target) > 1e-9:
            step = rng.uniform(0.01, 0.04)
            way.append(min(way[-1] + step, target) if target > way[-1] else max(way[-1] - step, target))
    told = play(watch(rule), every(0.1, (len(way) - 1) / 10), lambda t: [thing(way[round(t * 10)])])
    assert [t.data["direction"] for t in told] == (["forward", "backward"] * crossings)[:crossings]


def test_totals_run_by_direction_and_label() -> None:
    rule = LineRule(name="l", camera="belt", line=GATE, direction="forward")

    def scene(t: float) -> list[object]:
        return [
            thing(0.1 + 0.2 * t, 0.2), thing(0.0 + 0.2 * t, 0.5, "bolt"),
            thing(-0.1 + 0.2 * t, 0.8), thing(0.9 - 0.2 * t, 0.65),
        ]  # fmt: skip

    told = play(
        watch(rule), every(0.1, 4.0), lambda t: [s for s in scene(t) if s.box[2] > 0 and s.box[0] < s.box[2]]
    )
    assert [t.data["label"] for t in told] == ["nut", "bolt", "nut"]
    assert told[-1].data["totals"] == {"nut": 2, "bolt": 1}
    assert told[-1].data["total"] == 3


def test_an_object_counted_once_is_not_counted_again() -> None:
    rule = LineRule(name="l", camera="belt", line=GATE, once=True)
    told = play(watch(rule), every(0.1, 12.0), lambda t: [thing(0.5 + 0.1 * math.cos(2 * t))])
    assert sorted(t.data["direction"] for t in told) == ["backward", "forward"]


def test_a_way_around_the_line_is_no_crossing() -> None:
    rule = LineRule(name="l", camera="belt", line=((0.5, 0.0), (0.5, 0.4)))
    assert not play(watch(rule), every(0.1, 4.0), lambda t: [thing(0.2 + 0.15 * t, 0.7)])


def test_a_crossing_before_the_track_was_believed_counts_once_it_is() -> None:
    rule = LineRule(name="l", camera="belt", line=GATE)
    told = play(watch(rule, confirm_s=1.0), every(0.1, 3.0), lambda t: [thing(0.45 + 0.15 * t)])
    assert [t.at_s for t in told] == [pytest.approx(1.0)]


def test_an_expected_position_is_no_crossing() -> None:
    rule = LineRule(name="l", camera="belt", line=GATE)
    told = play(
        watch(rule, lost_s=5.0), every(0.1, 3.0), lambda t: [thing(0.3 + 0.15 * t)] if t < 1.2 else []
    )
    assert not told


def test_a_crossing_behind_a_cover_counts_when_the_object_is_seen_again() -> None:
    rule = LineRule(name="l", camera="belt", line=GATE)
    told = play(
        watch(rule, lost_s=1.5), every(0.1, 3.0), lambda t: [] if 1.0 < t < 1.9 else [thing(0.3 + 0.15 * t)]
    )
    assert [t.at_s for t in told] == [pytest.approx(1.9)]


def test_only_so_many_labels_have_a_total_of_their_own() -> None:
    rule = LineRule(name="l", camera="belt", line=GATE)
    watched = watch(rule)
    for n in range(70):
        play(
            watched,
            every(0.1, 2 * n + 1.0, 2.0 * n),
            lambda t, n=n: [thing(0.3 + 0.4 * (t - 2 * n), label=f"k{n}")],
        )
        play(watched, [2 * n + 1.1, 2 * n + 1.9], lambda _: [])
    totals = watched.saved("l")
    assert len(totals) == 51
    assert totals["forward/other"] == 20


# absence


def test_absence_starts_after_its_time_of_good_results_only() -> None:
    rule = AbsenceRule(name="a", camera="belt", after_s=2.0)
    told = play(watch(rule), every(0.1, 9.0), lambda t: None if 1.0 <= t < 6.0 else [])
    assert [(t.type, pytest.approx(t.at_s)) for t in told] == [("absence.started", 7.0)]


def test_results_that_fail_every_other_time_let_absence_come_in_half_the_speed() -> None:
    rule = AbsenceRule(name="a", camera="belt", after_s=2.0)
    told = play(watch(rule), every(0.1, 9.0), lambda t: None if round(t * 10) % 2 else [])
    assert [t.at_s for t in told] == [pytest.approx(4.0, abs=0.21)]


def test_absence_ends_with_the_object_that_comes() -> None:
    rule = AbsenceRule(name="a", camera="belt", after_s=1.0, off_delay_s=0.2)
    told = play(watch(rule), every(0.1, 5.0), lambda t: [thing(0.5, label="bolt")] if t >= 3.0 else [])
    assert types(told) == ["absence.started", "absence.ended"]
    assert told[1].data["label"] == "bolt"
    assert told[1].at_s == pytest.approx(3.2)


@examples
@given(frames, st.integers(0, 2**32))
def test_absence_is_presence_turned_around(steps: list[float], seed: int) -> None:
    rng = random.Random(seed)
    times = instants([min(s, 0.5) for s in steps])
    there = {t: t < 0.9 or rng.random() < 0.5 for t in times}
    absent = AbsenceRule(name="a", camera="belt", after_s=0.7, off_delay_s=0.3)
    present = PresenceRule(name="p", camera="belt", on_delay_s=0.3, off_delay_s=0.7)

    def scene(t: float) -> list[object]:
        return [thing(0.5)] if there[t] else []

    absences = [t.at_s for t in play(watch(absent), times, scene)]
    presences = [t.at_s for t in play(watch(present), times, scene)]
    assert absences == presences[1:]


# motion


def belt(t: float) -> list[object]:
    """Three objects that move except from 4 to 8 s."""
    moved = 0.08 * (t - min(max(t - 4.0, 0.0), 4.0))
    return [thing(x + moved, y) for x, y in ((0.05, 0.2), (0.15, 0.5), (0.25, 0.8))]


@pytest.mark.parametrize("fps", [4, 15, 30])
def test_a_stopped_belt_is_told_and_so_is_its_going_on(fps: int) -> None:
    rule = MotionRule(name="m", camera="belt", on_delay_s=1.0, off_delay_s=0.5, over_s=0.5)
    told = play(watch(rule), every(1 / fps, 11.0), belt)
    assert types(told) == ["motion.stopped", "motion.resumed"]
    assert 5.0 <= told[0].at_s <= 5.5 + 2 / fps
    assert 8.5 <= told[1].at_s <= 9.0 + 2 / fps
    assert told[0].data["of"] == "objects"


def test_jitter_is_no_motion() -> None:
    rng = random.Random(2)
    rule = MotionRule(name="m", camera="belt")
    told = play(
        watch(rule), every(1 / 15, 20.0),
        lambda _: [thing(x + rng.gauss(0, 0.003), 0.5 + rng.gauss(0, 0.003)) for x in (0.2, 0.5, 0.8)],
    )  # fmt: skip
    assert types(told) == ["motion.stopped"]


def test_an_empty_belt_is_stopped_only_where_the_rule_says_so() -> None:
    unknown = MotionRule(name="u", camera="belt")
    stopped = MotionRule(name="s", camera="belt", empty="stopped")
    told = play(watch(unknown, stopped), every(0.1, 5.0), lambda _: [])
    assert [(t.type, t.data["of"], t.data["speed"]) for t in told] == [("motion.stopped", "nothing", None)]


def test_failed_results_do_not_stop_the_belt() -> None:
    rule = MotionRule(name="m", camera="belt", empty="stopped")
    assert not play(watch(rule), every(0.1, 20.0), lambda t: belt(t) if t < 3.0 else None)


def test_objects_that_go_opposite_ways_move() -> None:
    rule = MotionRule(name="m", camera="belt")
    told = play(
        watch(rule), every(0.1, 6.0), lambda t: [thing(0.1 + 0.1 * t, 0.2), thing(0.9 - 0.1 * t, 0.8)]
    )
    assert not told


# rate


def test_a_rate_too_high_is_told_before_the_window_is_full_and_too_low_only_after() -> None:
    high = RateRule(name="h", camera="belt", line=GATE, above=20, window_s=10.0)
    low = RateRule(name="l", camera="belt", line=GATE, below=20, window_s=10.0)

    def scene(t: float) -> list[object]:  # one crossing a second, for 8 seconds
        return [thing(x, size=0.05) for n in range(8) if 0.1 < (x := 0.5 + 0.2 * (t - n - 0.5)) < 0.9]

    told = play(watch(high, low), every(0.1, 30.0), scene)
    assert [(t.type, t.data["bound"]) for t in told] == [
        ("rate.high", "above"),
        ("rate.normal", "above"),
        ("rate.low", "below"),
    ]
    assert told[0].at_s == pytest.approx(3.6, abs=0.2)
    assert told[0].data["per_minute"] == 24.0
    assert 13.0 < told[1].at_s < 15.0
    assert 13.0 < told[2].at_s < 17.0


def test_arrivals_count_once_an_object() -> None:
    rule = RateRule(name="r", camera="belt", above=2, window_s=60.0)
    assert not play(watch(rule), every(0.1, 30.0), lambda _: [thing(0.2), thing(0.8)])


def test_time_without_good_results_is_no_low_rate() -> None:
    rule = RateRule(name="r", camera="belt", below=1, window_s=5.0)
    assert not play(watch(rule), every(0.1, 60.0), lambda t: [] if t < 4.0 else None)


# restarts


@pytest.mark.parametrize(
    ("rule", "ends"),
    [
        (PresenceRule(name="r", camera="belt"), "presence.ended"),
        (CountRule(name="r", camera="belt", above=0), "count.normal"),
        (MotionRule(name="r", camera="belt", slower=10.0), None),
    ],
)
def test_a_rule_that_was_active_before_a_restart_is_not_told_again_but_its_end_is(
    rule: PresenceRule, ends: str | None
) -> None:
    first = watch(rule)
    told = play(first, every(0.1, 3.0), lambda _: [thing(0.5)])
    assert len(told) == 1
    for restored in (lambda w: w.restore("r", first.saved("r")), lambda w: w.recall(
        {"camera": "belt", "rule": "r"} | told[0].data
    )):  # fmt: skip
        second = watch(rule)
        restored(second)
        again = play(second, every(0.1, 6.0), lambda t: [thing(0.5)] if t < 2.0 else [])
        assert types(again) == ([ends] if ends else [])


def test_totals_go_on_after_a_restart() -> None:
    rule = LineRule(name="l", camera="belt", line=GATE)
    first = watch(rule)
    told = play(first, every(0.1, 3.0), lambda t: [thing(0.3 + 0.2 * t)])
    second, third = watch(rule), watch(rule)
    second.restore("l", first.saved("l"))
    third.recall({"camera": "belt", "rule": "l"} | told[0].data)
    for later in (second, third):
        assert play(later, every(0.1, 3.0), lambda t: [thing(0.3 + 0.2 * t)])[0].data["totals"] == {"nut": 2}


@pytest.mark.parametrize(
    "data", [{}, {"rule": 3}, {"rule": "l", "camera": "belt", "totals": 7, "direction": []}]
)
def test_recalling_nonsense_changes_nothing(data: dict[str, object]) -> None:
    watched = watch(LineRule(name="l", camera="belt", line=GATE))
    watched.recall(data)
    assert watched.saved("l") == {}
