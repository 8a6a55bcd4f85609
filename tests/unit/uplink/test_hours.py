"""Hours of lanes: over midnight, in their own zone, and not at all by a clock that nobody set."""

from datetime import UTC, datetime

import pytest

from skerry.errors import ConfigError
from skerry.messages import Lane
from skerry.settings import parse
from skerry.uplink.hours import Hours, span, zone
from skerry.uplink.settings import Sending


def at(text: str, day: int = 2, month: int = 1) -> float:
    hour, minute = map(int, text.split(":"))
    return datetime(2026, month, day, hour, minute, tzinfo=UTC).timestamp()


def held(spans: list[str], moment: float, zone_name: str = "UTC", *, synchronised: bool = True) -> bool:
    return "bulk" in Hours({"bulk": spans}, zone(zone_name)).held(moment, synchronised)


@pytest.mark.parametrize(
    ("spans", "open_at", "held_at"),
    [
        (["09:00-17:00"], ["09:00", "12:30", "16:59"], ["08:59", "17:00", "23:00"]),
        (["22:00-06:00"], ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
        (["20:00-24:00"], ["20:00", "23:59"], ["00:00", "19:59"]),
        (["01:00-02:00", "03:00-04:00"], ["01:30", "03:30"], ["02:30", "04:00"]),
    ],
)
def test_a_lane_is_sent_within_its_hours(spans: list[str], open_at: list[str], held_at: list[str]) -> None:
    assert not any(held(spans, at(t)) for t in open_at)
    assert all(held(spans, at(t)) for t in held_at)


def test_hours_are_those_of_the_site() -> None:
    assert not held(["22:00-06:00"], at("21:30"), "Europe/Oslo")
    assert held(["22:00-06:00"], at("21:30", month=1), "UTC")
    assert not held(["22:00-06:00"], at("20:30", month=7), "Europe/Oslo")  # summer time


def test_a_clock_that_nobody_set_holds_nothing() -> None:
    assert not held(["22:00-06:00"], at("12:00"), synchronised=False)


def test_lanes_without_hours_are_never_held() -> None:
    hours = Hours({"bulk": ["22:00-06:00"], "telemetry": ["09:00-10:00"]}, zone("UTC"))
    assert hours.held(at("12:00"), True) == {"bulk", "telemetry"}
    assert not Hours({}, zone("UTC"))


@pytest.mark.parametrize("text", ["22-06", "24:00-06:00", "22:60-06:00", "22:00-24:01", "", "9:00-10:00"])
def test_what_is_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected hours like 22:00-06:00, got"):
        span(text)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"schedules": {"bulk": ["22:00"]}},
            "schedules.bulk[0]: expected hours like 22:00-06:00, got '22:00'",
        ),
        ({"schedules": {"bulk": []}}, "schedules.bulk: expected hours like 22:00-06:00, got an empty list"),
        (
            {"schedules": {"bulk": ["06:00-06:00"]}},
            "schedules.bulk[0]: expected an end that is not the beginning, got '06:00-06:00'",
        ),
        (
            {"schedules": {"alarm": ["22:00-06:00"]}},
            "schedules.alarm: expected no hours: an alarm is sent at once, always",
        ),
        ({"timezone": "Mars/Olympus"}, "timezone: expected a name like Europe/Oslo, got 'Mars/Olympus'"),
        (
            {"timezone": "../../etc/passwd"},
            "timezone: expected a name like Europe/Oslo, got '../../etc/passwd'",
        ),
    ],
)
def test_wrong_hours_are_named(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Sending, given, "site")
    assert caught.value.problems[0].startswith(f"site: $: {problem}")


def test_only_lanes_have_hours() -> None:
    lane: Lane = "bulk"
    assert parse(Sending, {"schedules": {lane: ["22:00-06:00"]}}, "site").schedules == {
        lane: ("22:00-06:00",)
    }
    with pytest.raises(ConfigError, match="expected one of alarm, bulk, event, telemetry"):
        parse(Sending, {"schedules": {"night": ["22:00-06:00"]}}, "site")
