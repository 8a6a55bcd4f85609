"""Rules and tracker changed between two results."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.decision.rules import Finding
from skerry.decision.settings import (
    AbsenceRule,
    CountRule,
    DwellRule,
    LineRule,
    MotionRule,
    PresenceRule,
    RateRule,
    Rule,
    TrackerSettings,
    Where,
    ZoneRule,
)
from skerry.decision.watch import Watch
from unit.decision.scenes import S, every, play, thing

GATE = ((0.5, 0.0), (0.5, 1.0))
HERE = PresenceRule(name="here", camera="belt", on_delay_s=0.0, off_delay_s=0.5)
LINE = LineRule(name="line", camera="belt", line=GATE)
PLAIN = TrackerSettings(confirm_s=0.0)


def watch(*rules: Rule, **tracker: float) -> Watch:
    return Watch(rules, "belt", TrackerSettings(**({"confirm_s": 0.0} | tracker)))


def adjust(watched: Watch, *rules: Rule, tracker: TrackerSettings | None = None) -> list[Finding]:
    return watched.adjust(rules, tracker or watched.tracker.settings, lambda _: None)


def types(found: list[Finding]) -> list[str]:
    return [f.type for f in found]


def to_and_fro(t: float) -> list[object]:
    """A part that crosses the line every second."""
    return [thing(0.5 + 0.2 * math.cos(math.pi * t))]


class TestUnchanged:
    def test_a_rule_that_is_the_same_goes_on_in_the_middle_of_a_delay(self):
        slow = msgspec.structs.replace(HERE, on_delay_s=1.0)
        told = []
        watched = watch(slow)
        for t in every(0.1, 2.0):
            told += play(watched, [t], lambda t: [thing(0.5)])
            assert adjust(watched, slow, msgspec.structs.replace(LINE, margin=0.01 + t / 100)) == []
        assert [(one.type, one.at_s) for one in told] == [("presence.started", pytest.approx(1.0))]

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, 3), min_size=30, max_size=30))
    def test_whatever_happens_to_others_a_rule_that_stays_says_the_same(self, changes):
        others: list[list[Rule]] = [[], [LINE], [msgspec.structs.replace(LINE, once=True)],
                                    [DwellRule(name="dwell", camera="belt", longer_s=0.2)]]  # fmt: skip
        steady, changed = watch(HERE, LINE), watch(HERE, *others[1])
        said: list[list[str]] = [[], []]
        for n, choice in enumerate(changes):
            scene = [thing(0.1 + 0.02 * n)] if n % 11 < 7 else []
            for watched, heard in zip((steady, changed), said, strict=True):
                found = watched.step(n * S // 4, "ok", scene)
                heard += [str((n, f.type, f.data)) for f in found if f.rule.name == "here"]
            adjust(changed, HERE, *others[choice])
        assert said[0] == said[1] != []

    def test_tracks_go_on_whatever_changes(self):
        watched = watch(HERE)
        play(watched, every(0.1, 1.0), lambda t: [thing(0.3 + t / 10)])
        (track,) = watched.tracker.tracks
        adjust(watched, LINE, tracker=TrackerSettings(confirm_s=0.0, lost_s=7.0, min_iou=0.2))
        play(watched, every(0.1, 2.0, 1.1), lambda t: [thing(0.3 + t / 10)])
        assert watched.tracker.tracks == [track]

    def test_the_order_of_the_rules_is_nobodys_state(self):
        watched = watch(HERE, LINE)
        play(watched, every(0.1, 0.5), lambda t: [thing(0.5)])
        assert adjust(watched, LINE, HERE) == []
        assert list(watched.machines) == ["line", "here"]
        assert watched.machines["here"].saved() == {"active": 1}


class TestChanged:
    def test_totals_go_on(self):
        watched = watch(LINE)
        play(watched, every(0.1, 4.0), to_and_fro)
        before = watched.saved("line")
        assert sum(before.values()) == 4
        adjust(watched, msgspec.structs.replace(LINE, severity="critical", lane="alarm"))
        assert watched.saved("line") == before
        told = play(watched, every(0.1, 6.9, 4.1), to_and_fro)
        assert [one.data["total"] for one in told] == [3, 3, 4]

    def test_what_is_active_goes_on_and_ends_by_the_new_rule(self):
        watched = watch(HERE)
        play(watched, every(0.1, 0.5), lambda t: [thing(0.5)])
        elsewhere = msgspec.structs.replace(HERE, zone=((0.8, 0.8), (1.0, 0.8), (1.0, 1.0)), off_delay_s=1.0)
        assert adjust(watched, elsewhere) == []
        told = play(watched, every(0.1, 2.0, 0.6), lambda t: [thing(0.5)])
        assert [(one.type, one.at_s) for one in told] == [("presence.ended", pytest.approx(1.6))]

    def test_in_another_lane_what_is_active_ends_in_its_own_and_begins_anew(self):
        watched = watch(HERE)
        play(watched, every(0.1, 0.5), lambda t: [thing(0.5)])
        alarm = msgspec.structs.replace(HERE, lane="alarm")
        (ended,) = adjust(watched, alarm)
        assert (ended.type, ended.rule.lane) == ("presence.ended", "event")
        assert ended.data == {"active": False, "how": "changed"}
        assert [one.type for one in play(watched, [0.6], lambda t: [thing(0.5)])] == ["presence.started"]

    def test_another_kind_of_the_same_name_ends_what_was_active_and_takes_nothing_over(self):
        watched = watch(HERE)
        play(watched, every(0.1, 0.5), lambda t: [thing(0.5)])
        assert types(adjust(watched, MotionRule(name="here", camera="belt"))) == ["presence.ended"]
        assert watched.saved("here") == {"active": 0}

    def test_a_bound_that_is_taken_away_is_normal_again_and_the_other_goes_on(self):
        many = CountRule(name="many", camera="belt", above=0, below=5, on_delay_s=0.0)
        watched = watch(many)
        told = play(watched, every(0.1, 0.3), lambda t: [thing(0.5)])
        assert [one.type for one in told] == ["count.exceeded", "count.short"]
        (ended,) = adjust(watched, msgspec.structs.replace(many, above=None))
        assert (ended.type, ended.data["bound"], ended.data["limit"]) == ("count.normal", "above", 0)
        assert watched.saved("many") == {"high": 0, "low": 1}

    def test_stays_end_and_a_new_stay_begins_under_the_new_rule(self):
        dwell = DwellRule(name="dwell", camera="belt", longer_s=1.0)
        watched = watch(dwell)
        told = play(watched, every(0.1, 1.5), lambda t: [thing(0.5)])
        assert [one.type for one in told] == ["dwell.exceeded"]
        (ended,) = adjust(watched, msgspec.structs.replace(dwell, longer_s=2.0))
        assert (ended.type, ended.data["how"], ended.data["track"]) == ("dwell.ended", "changed", 1)
        assert ended.data["dwell_s"] == pytest.approx(1.5)
        told = play(watched, every(0.1, 4.5, 1.6), lambda t: [thing(0.5)])
        assert [(one.type, one.at_s) for one in told] == [("dwell.exceeded", pytest.approx(3.6))]

    def test_a_new_attribute_is_kept_from_now_on(self):
        watched = watch(HERE)
        play(watched, every(0.1, 1.0), lambda t: [thing(0.5, defect=0.9)])
        assert watched.tracker.tracks[0].attribute("defect") is None
        defect = Where(attribute="defect", above=0.5, evidence_s=0.2)
        bad = PresenceRule(name="bad", camera="belt", per="track", where=defect, on_delay_s=0.2)
        adjust(watched, HERE, bad)
        told = play(watched, every(0.1, 2.0, 1.1), lambda t: [thing(0.5, defect=0.9)])
        assert [one.type for one in told] == ["presence.started"]


class TestRemoved:
    @pytest.mark.parametrize(
        ("rule", "scene", "began", "ended"),
        [
            (HERE, [thing(0.5)], "presence.started", "presence.ended"),
            (AbsenceRule(name="x", camera="belt", after_s=0.5), [], "absence.started", "absence.ended"),
            (
                MotionRule(name="x", camera="belt", over_s=0.3, on_delay_s=0.1),
                [thing(0.5)],
                "motion.stopped",
                "motion.resumed",
            ),
            (
                CountRule(name="x", camera="belt", below=2, on_delay_s=0.1),
                [thing(0.5)],
                "count.short",
                "count.normal",
            ),
            (
                RateRule(name="x", camera="belt", above=0, window_s=60),
                [thing(0.5)],
                "rate.high",
                "rate.normal",
            ),
            (
                ZoneRule(name="x", camera="belt", on_delay_s=0.1),
                [thing(0.5)],
                "zone.entered",
                "zone.left",
            ),
            (DwellRule(name="x", camera="belt", longer_s=0.5), [thing(0.5)], "dwell.exceeded", "dwell.ended"),
        ],
    )
    @pytest.mark.parametrize("off", [False, True])
    def test_what_a_rule_had_begun_ends_with_it_once(self, rule, scene, began, ended, off):
        watched = watch(rule)
        told = play(watched, every(0.1, 1.5), lambda t: scene)
        assert [one.type for one in told] == [began]
        after = [msgspec.structs.replace(rule, enabled=False)] if off else []
        (last,) = adjust(watched, *after)
        assert (last.type, last.data["how"], last.rule) == (ended, "removed", rule)
        assert adjust(watched, *after) == []
        assert not play(watched, every(0.1, 3.0, 1.6), lambda t: scene)

    @pytest.mark.parametrize(
        "rule",
        [
            HERE, LINE, PresenceRule(name="x", camera="belt", per="track"),
            ZoneRule(name="x", camera="belt", report="entered"), CountRule(name="x", camera="belt", above=9),
            DwellRule(name="x", camera="belt", longer_s=99), RateRule(name="x", camera="belt", above=99),
        ],
    )  # fmt: skip
    def test_a_rule_that_had_begun_nothing_ends_silently(self, rule):
        watched = watch(rule)
        play(watched, every(0.1, 3.0), lambda t: [thing(0.5)] if t < 1.0 else [])
        assert adjust(watched) == []

    def test_one_that_comes_back_begins_anew_from_what_was_saved(self):
        watched = watch(HERE, LINE)
        play(watched, every(0.1, 4.0), to_and_fro)
        totals = watched.saved("line")
        adjust(watched)
        assert watched.machines == {}

        def restore(name: str) -> None:
            watched.restore(name, totals if name == "line" else {})

        assert watched.adjust([HERE, LINE], PLAIN, restore) == []
        assert watched.saved("line") == totals
        assert watched.saved("here") == {"active": 0}

    def test_a_rule_of_another_camera_is_not_taken_and_one_that_moves_there_ends_here(self):
        watched = watch(HERE)
        play(watched, every(0.1, 0.5), lambda t: [thing(0.5)])
        assert types(adjust(watched, msgspec.structs.replace(HERE, camera="gate"))) == ["presence.ended"]
        assert watched.machines == {}


def test_a_rule_that_is_not_enabled_is_not_there_from_the_start():
    assert watch(msgspec.structs.replace(HERE, enabled=False)).machines == {}


def test_what_results_speak_for_changes_for_rules_that_stay():
    watched = watch(AbsenceRule(name="a", camera="belt", after_s=5.0), hold_s=1.0)
    rule = watched.machines["a"].rule
    assert not play(watched, [0.0, 10.0], lambda t: [])  # 1 s of it is known
    adjust(watched, rule, tracker=TrackerSettings(confirm_s=0.0, hold_s=20.0))
    assert [one.type for one in play(watched, [20.0], lambda t: [])] == ["absence.started"]
