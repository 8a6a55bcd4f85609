"""Token buckets: never beyond the rate, in debt for what is larger, an alarm ahead of its time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import ConfigError
from skerry.settings import parse
from skerry.uplink.limits import PRESETS, Bounds, Bucket, Limits, Meter


def test_without_a_rate_nothing_waits() -> None:
    bucket = Bucket(math.inf, 0)
    bucket.pay(1e12, 0)
    assert bucket.wait_s(0) == 0
    assert bucket.whole(0) == math.inf


def test_a_debt_is_waited_for() -> None:
    bucket = Bucket(100, now=0)
    bucket.pay(100, 0)
    assert bucket.wait_s(0) == pytest.approx(1.0)
    assert bucket.wait_s(0.5) == pytest.approx(0.5)
    assert bucket.wait_s(1.001) == 0


def test_an_alarm_may_be_ahead_of_its_time_but_not_without_end() -> None:
    meter = Meter(Bounds(messages_per_s=100), 0)
    alarms = 0
    while not meter.wait_s(0, alarm=True):
        meter.pay(1, 100, 0)
        alarms += 1
    assert 90 <= alarms <= 110
    assert meter.wait_s(0, alarm=False) == pytest.approx(1.0, abs=0.1)


def test_whichever_limit_is_narrower_counts() -> None:
    meter = Meter(Bounds(messages_per_s=1000, bytes_per_s=1000), 0)
    meter.pay(1, 1000, 0)
    assert meter.wait_s(0, alarm=False) == pytest.approx(1.0)


def test_there_is_always_room_for_one_message() -> None:
    bucket = Bucket(0.1, 0)
    assert bucket.whole(0) == 1
    assert bucket.wait_s(0) == 0


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away() -> None:
    bucket = Bucket(10, now=100)
    bucket.pay(10, 100)
    assert bucket.wait_s(50) == pytest.approx(1.0)
    assert bucket.wait_s(100) == pytest.approx(1.0)


@given(
    st.floats(1, 10_000),
    st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 5)), min_size=1, max_size=200),
)
def test_in_no_second_is_more_sent_than_the_rate_and_one_payment(
    rate: float, attempts: list[tuple[float, int]]
) -> None:
    bucket, now, sent = Bucket(rate, 0), 0.0, []
    for pause, amount in attempts:
        now += pause
        now += bucket.wait_s(now)
        if bucket.wait_s(now) == 0:
            bucket.pay(amount, now)
            sent.append((now, amount))
    for begin, _ in sent:
        inside = [amount for at, amount in sent if begin <= at < begin + 1]
        assert sum(inside) <= rate + max(inside) + 1e-6


def test_what_is_given_wins_over_the_preset() -> None:
    assert Limits().all == Bounds()
    aws = Limits(preset="aws-iot-core", messages_per_s=20).all
    assert aws == Bounds(
        messages_per_s=20, bytes_per_s=512 * 1024, message_bytes=128 * 1024, unacked_messages=100
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_asked_for(preset: str) -> None:
    assert parse(Limits, {"preset": preset}, "site").all == PRESETS[preset]


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ConfigError, match=r"expected one of aws-iot-core, .*, got \"aws\""):
        parse(Limits, {"preset": "aws"}, "site")
