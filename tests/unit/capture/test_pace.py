"""Which frames are taken, and what time they are given."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.capture.pace import Limit, LiveClock, RealTime, Retry
from skerry.capture.settings import Backoff

S = 1_000_000_000
MS = 1_000_000


def taken(limit: Limit, times: list[int]) -> list[int]:
    return [t for t in times if limit.takes(t)]


def test_no_limit_takes_every_frame():
    assert taken(Limit(None), [0, 1, 2, 1, 0]) == [0, 1, 2, 1, 0]


@pytest.mark.parametrize(("source", "limit"), [(30, 15), (30, 10), (30, 7), (25, 10), (15, 10), (60, 1)])
def test_limit_keeps_the_mean_rate_and_is_even(source, limit):
    times = [round(n * S / source) for n in range(source * 60)]
    kept = taken(Limit(limit), times)
    assert len(kept) == pytest.approx(limit * 60, abs=2)
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert max(gaps) <= S / limit + S / source
    assert min(gaps[1:]) >= S / limit - S / source


def test_limit_equal_to_the_rate_loses_nothing_to_jitter():
    chance = random.Random(1)
    times = [round(n * S / 10 + chance.uniform(-15, 15) * MS) for n in range(600)]
    assert len(taken(Limit(10), times)) == 600


def test_limit_does_not_catch_up_after_a_gap():
    times = [0, 100 * MS, 10 * S, 10 * S + 33 * MS, 10 * S + 66 * MS, 10 * S + 101 * MS]
    assert taken(Limit(10), times) == [0, 100 * MS, 10 * S, 10 * S + 101 * MS]


def test_limit_goes_on_when_the_media_begins_again():
    limit = Limit(10)
    assert taken(limit, [100 * S, 100 * S + 100 * MS]) == [100 * S, 100 * S + 100 * MS]
    assert taken(limit, [0, 33 * MS, 100 * MS]) == [0, 100 * MS]


def test_file_is_followed_by_the_monotonic_clock():
    pace = RealTime(500 * MS)
    assert pace.lead_ns(0, 7 * S) == 0
    assert pace.lead_ns(100 * MS, 7 * S + 20 * MS) == 80 * MS
    assert pace.lead_ns(200 * MS, 7 * S + 250 * MS) == 0


def test_late_frames_are_skipped_until_the_file_is_current():
    pace = RealTime(500 * MS)
    pace.lead_ns(0, 0)
    assert pace.lead_ns(100 * MS, 900 * MS) is None
    assert pace.lead_ns(200 * MS, 901 * MS) is None
    assert pace.lead_ns(500 * MS, 902 * MS) == 0
    assert pace.lead_ns(1000 * MS, 903 * MS) == 97 * MS


def test_a_machine_that_is_too_slow_for_a_file_still_captures_some_of_it():
    pace, now, captured = RealTime(500 * MS), 0, 0
    for n in range(1000):  # decoding takes twice as long as the film
        now += 200 * MS
        media = n * 100 * MS
        if pace.lead_ns(media, now) is not None:
            captured += 1
    assert captured >= 1000 // 16


def test_live_time_keeps_the_streams_spacing_and_begins_now():
    clock = LiveClock()
    jitter = [0, 12, 3, 9, 1]
    media = [clock.of(n * 100 * MS, 50 * S + n * 100 * MS + j * MS).media_ns for n, j in enumerate(jitter)]
    assert media[0] == 50 * S
    assert all(abs(b - a - 100 * MS) < 0.2 * MS for a, b in itertools.pairwise(media))


def test_lag_is_what_a_frame_is_later_than_usual():
    clock = LiveClock()
    for n in range(10):
        assert clock.of(n * 100 * MS, S + n * 100 * MS).lag_ns == 0
    assert clock.of(10 * 100 * MS, S + 10 * 100 * MS + 700 * MS).lag_ns == 700 * MS


def test_a_camera_whose_clock_drifts_is_never_late_and_stays_near_the_monotonic_clock():
    clock = LiveClock()
    for n in range(0, 100_000, 5):  # 100 ppm slow, for nearly three hours
        now = round(n * 100 * MS * 1.0001)
        moment = clock.of(n * 100 * MS, S + now)
        assert moment.lag_ns < 5 * MS
        assert abs(moment.media_ns - (S + now)) < 50 * MS


def test_reconnect_goes_on_in_time():
    clock = LiveClock()
    before = clock.of(900 * S, 5 * S).media_ns
    clock.restart()
    after = clock.of(0, 8 * S).media_ns
    assert (before, after) == (5 * S, 8 * S)


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(-(10**18), 10**18)), st.integers(0, 10**10))))
def test_live_time_rises_whatever_the_stream_says(steps):
    clock, now, last = LiveClock(), 0, -1
    for raw, pause in steps:
        now += pause
        moment = clock.of(raw, now)
        assert moment.media_ns > last
        assert moment.lag_ns >= 0
        last = moment.media_ns


def test_retries_grow_to_their_bound_with_jitter_and_start_again_after_success():
    retry = Retry(Backoff(first_s=1, factor=2, longest_s=8), random.Random(1))
    waits = [retry.wait_s() for _ in range(2000)]
    assert all(full / 2 <= wait <= full for wait, full in zip(waits, [1, 2, 4, 8] + [8] * 1996, strict=True))
    assert len(set(waits)) > 1900
    retry.succeeded()
    assert retry.wait_s() <= 1


class TestChangedLimit:
    def test_the_next_frame_is_a_whole_step_of_the_new_limit_after_the_last_one_taken(self):
        limit = Limit(10)
        assert taken(limit, [0, 50 * MS, 100 * MS]) == [0, 100 * MS]
        limit.change(2)
        assert taken(limit, range(150 * MS, 1200 * MS, 50 * MS)) == [500 * MS, 1000 * MS]  # a fifth early
        limit.change(20)
        assert taken(limit, range(1050 * MS, 1300 * MS, 50 * MS)) == [1150 * MS, 1200 * MS, 1250 * MS]

    def test_without_a_limit_every_frame_is_taken_and_with_one_again_none_too_early(self):
        limit = Limit(1)
        assert taken(limit, [0, 500 * MS]) == [0]
        limit.change(None)
        assert taken(limit, [600 * MS, 700 * MS]) == [600 * MS, 700 * MS]
        limit.change(1)
        assert taken(limit, [800 * MS, 1400 * MS, 1700 * MS]) == [1700 * MS]

    def test_the_same_limit_again_changes_nothing(self):
        limit, same = Limit(10), Limit(10)
        times = range(0, 3 * S, 33 * MS)
        kept = []
        for time in times:
            same.change(10)
            kept += taken(same, [time])
        assert kept == taken(limit, times)

    def test_a_flood_of_changes_takes_no_more_than_the_highest_limit_allows(self):
        limit, kept = Limit(5), []
        for n, time in enumerate(range(0, 20 * S, 20 * MS)):
            limit.change((1, 2, 5)[n % 3])
            kept += taken(limit, [time])
        assert 20 <= len(kept) <= 101
