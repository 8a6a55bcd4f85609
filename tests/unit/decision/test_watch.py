from __future__ import annotations

from skerry.decision.settings import AbsenceRule, DwellRule, LineRule, PresenceRule
from unit.decision.scenes import S, every, play, thing, watch

GATE = ((0.5, 0.0), (0.5, 1.0))


def test_a_watch_takes_only_the_rules_of_its_camera() -> None:
    rules = (LineRule(name="a", camera="belt", line=GATE), LineRule(name="b", camera="gate", line=GATE))
    assert list(watch(*rules).machines) == ["a"]


def test_a_stream_that_begins_anew_ends_its_tracks_and_goes_on() -> None:
    watched = watch(
        LineRule(name="l", camera="belt", line=GATE), DwellRule(name="d", camera="belt", longer_s=3.0)
    )
    play(watched, every(0.1, 2.0), lambda t: [thing(0.3)])
    told = play(watched, every(0.1, 2.0), lambda t: [thing(0.35)])  # as if it had moved while time went back
    assert watched.restarts == 1
    assert not told
    assert [t.id for t in watched.tracker.tracks] == [2]


def test_a_stream_that_begins_anew_does_not_end_a_presence_at_once() -> None:
    watched = watch(PresenceRule(name="p", camera="belt", off_delay_s=1.0))
    play(watched, every(0.1, 100.0, 99.0), lambda t: [thing(0.5)])
    told = play(watched, every(0.1, 3.0), lambda t: [thing(0.5)])
    assert not told


def test_a_leap_in_time_counts_for_no_longer_than_a_result_holds() -> None:
    watched = watch(AbsenceRule(name="a", camera="belt", after_s=5.0))
    assert not play(watched, [0.0, 3600.0, 3601.0], lambda t: [])


def test_time_may_begin_anywhere() -> None:
    for start in (-5 * S, 0, 10**18):
        watched = watch(PresenceRule(name="p", camera="belt", on_delay_s=1.0))
        found = [watched.step(start + n * S // 10, "ok", [thing(0.5)]) for n in range(20)]
        assert [n for n, f in enumerate(found) if f] == [10]
