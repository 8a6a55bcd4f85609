"""The wall clock jumps by years while buffer, uplink and producer run; monotonic time does not."""

import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from msgspec import UNSET

import needs
from clocks import YEAR_S, WallClock
from oracle import check_dense
from skerry.channels import OUTBOUND
from skerry.messages import Event
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from suite import SITE, Lines, Suite

pytestmark = [needs.mosquitto, needs.compiler, pytest.mark.timeout(120)]


def error_s(event: Event) -> float:
    """How far the event's time is from when it was decided, by the machine's own clocks."""
    truth = time.time() - (time.monotonic() - event.monotonic / 1e9)
    return abs(datetime.fromisoformat(event.time).timestamp() - truth)


def test_jumps_of_years_change_neither_order_nor_delivery_nor_timers(
    tmp_path: Path, clock: WallClock
) -> None:
    with Suite(tmp_path, environment=clock.environment) as suite:
        suite.wait_for(lambda: suite.delivered() > 50)
        for years in (10, -30, 50, -40.5):
            clock.jump(years * YEAR_S)
            before = suite.delivered()
            suite.kill("broker")  # reconnecting, repeating and backing off all need a timer
            suite.wait_for(
                lambda n=before: suite.delivered() > n + 150, 10, f"it goes on after a jump of {years} years"
            )
        account = suite.settle()
        assert account.delivered == account.sent == account.accepted
        assert account.repeats == 0
        check_dense(Lines(tmp_path / "far.jsonl").fresh())


def test_a_silent_uplink_is_sent_to_again_although_the_clock_went_back_by_years(
    tmp_path: Path, clock: WallClock
) -> None:
    with Suite(tmp_path, environment=clock.environment) as suite:
        suite.wait_for(lambda: suite.delivered() > 50)
        bus = MqttBus(BusSettings(port=suite.broker.port), SITE, "listener")
        firsts: Counter[tuple[str, int]] = Counter()
        try:
            bus.subscribe(OUTBOUND, lambda m: firsts.update([(m.store, m.first)]), "uplink")
            bus.connect()
            suite.wait_for(lambda: len(firsts) > 10)
            uplink = suite.process("uplink")
            uplink.suspend()
            time.sleep(0.2)
            clock.jump(-30 * YEAR_S)
            firsts.clear()
            suite.wait_for(
                lambda: any(n >= 2 for n in firsts.values()), why="it is sent again after resend_s"
            )
            uplink.resume()
        finally:
            bus.close()
        assert suite.settle().delivered == len(suite.oracle.sent)


def test_times_are_marked_while_the_clock_is_wrong_and_corrected_once_it_is_right(
    tmp_path: Path, clock: WallClock
) -> None:
    clock.set(-20 * YEAR_S)  # a board without a battery
    clock.synchronise(False)
    with Suite(tmp_path, environment=clock.environment) as suite:
        suite.wait_for(lambda: suite.delivered() > 50, why="events leave although the time is unknown")
        suite.hold("uplink")
        accepted = suite.tally()["accepted"]
        suite.wait_for(lambda: suite.tally()["accepted"] > accepted + 200)
        before = suite.delivered()
        clock.set(0)
        clock.synchronise(True)
        accepted = suite.tally()["accepted"]
        suite.wait_for(lambda: suite.tally()["accepted"] > accepted + 500)
        time.sleep(1.5)  # the clock is looked at every second or so
        suite.release("uplink")
        account = suite.settle()
        assert account.delivered == account.sent == account.accepted
    arrived = list(Lines(tmp_path / "far.jsonl").fresh())
    check_dense(arrived)
    for event in arrived[:before]:
        assert event.timequality == "unsynchronised", event
        assert error_s(event) > YEAR_S
    late = arrived[before:]
    for event in late:
        assert event.timequality in {UNSET, "corrected"}, event
        assert error_s(event) < 2.0, event
    assert {event.timequality for event in late} == {UNSET, "corrected"}
    assert all("2" in str(event.recordedtime) for event in late if event.timequality == "corrected")
