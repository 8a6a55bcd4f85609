"""The last state of each rule."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from records import record
from rule_events import crossing, presence, rule_event, rule_record
from skerry.messages import Event
from skerry.uplink.last import Kept, Last, State
from skerry.uplink.plain import told
from skerry.uplink.record import Record


def after(*records: Record) -> dict[str, Any]:
    """What is said of the one rule after these."""
    last = Last()
    for one in records:
        last.take(told(one.raw))
    (state,) = last.states.values()
    return state.said


def test_a_rule_is_on_or_off() -> None:
    on, off = presence(1, True), presence(2, False)
    assert after(on)["state"] == "on"
    assert after(on, off)["state"] == "off"
    said = after(on, off)
    assert (said["camera"], said["rule"], said["kind"], said["id"]) == ("gate", "crowd", "presence", "e1-2")


@pytest.mark.parametrize("kind", ["absence", "motion", "rate"])
def test_every_rule_that_is_active_is_on(kind: str) -> None:
    assert after(rule_record(1, kind, "x", active=True))["state"] == "on"
    assert after(rule_record(1, kind, "x", active=False))["state"] == "off"


def test_a_count_is_on_while_one_of_its_bounds_is_passed() -> None:
    high = rule_record(1, "count", "exceeded", active=True, bound="above", count=9)
    low = rule_record(2, "count", "short", active=True, bound="below", count=0)
    normal = rule_record(3, "count", "normal", active=False, bound="above", count=0)
    nothing = rule_record(4, "count", "normal", active=False, bound="below", count=3)
    assert [after(high, low, normal)["state"], after(high, low, normal, nothing)["state"]] == ["on", "off"]
    assert after(high, low, normal, nothing)["count"] == 3


def test_a_dwell_is_on_while_anybody_stays() -> None:
    one, two = rule_record(1, "dwell", "exceeded", track=1), rule_record(2, "dwell", "exceeded", track=2)
    left, none = rule_record(3, "dwell", "ended", track=1), rule_record(4, "dwell", "ended", track=2)
    counts = [after(one), after(one, two), after(one, two, left), after(one, two, left, none)]
    assert [(said["state"], said["count"]) for said in counts] == [
        ("on", 1),
        ("on", 2),
        ("on", 1),
        ("off", 0),
    ]


def test_who_stayed_before_the_machine_was_started_again_is_forgotten() -> None:
    """Its end will never be told."""
    one = rule_record(1, "dwell", "exceeded", track=1)
    two = rule_record(2, "dwell", "exceeded", track=2, bootid="b2")
    assert after(one, two)["count"] == 1


def test_of_a_line_the_totals_of_both_ways_are_kept() -> None:
    said = after(
        crossing(1, "forward", {"person": 3}),
        crossing(2, "backward", {"person": 1, "car": 2}),
        crossing(3, "forward", {"person": 4}),
    )
    assert (said["state"], said["total"], said["forward"], said["backward"]) == (7, 7, 4, 3)
    assert (said["forward_person"], said["backward_person"], said["backward_car"]) == (4, 1, 2)
    assert not any(name.startswith("totals") for name in said)


def test_of_what_passes_by_the_last_is_kept() -> None:
    assert after(rule_record(1, "zone", "entered", track=4))["state"] == "entered"
    assert after(rule_record(1, "presence", "started", track=4))["state"] == "started"


def test_what_is_of_no_rule_has_no_state() -> None:
    last = Last()
    odd = msgspec.structs.replace(rule_event(1, "presence", "started", active=True), subject="elsewhere")
    for raw in (record(1).raw, msgspec.json.encode(odd)):
        assert last.take(told(raw)) is None
    assert last.states == {}


def test_what_an_operator_sends_again_is_no_state() -> None:
    again = msgspec.structs.replace(
        rule_event(9, "presence", "started", active=True, epoch="e9"), retryof="e1-1"
    )
    last = Last()
    assert last.take(told(presence(2, False).raw)) == "gate/crowd"
    assert last.take(told(msgspec.json.encode(again))) is None
    assert last.states["gate/crowd"].said["state"] == "off"


def test_an_older_one_changes_nothing_and_the_newest_is_told_again() -> None:
    last = Last()
    for seq, active, expected in (
        (1, True, True), (2, False, True), (1, True, False), (2, False, True), (3, True, True),
    ):  # fmt: skip
        assert (last.take(told(presence(seq, active).raw)) is not None) is expected
    assert last.states["gate/crowd"].said["id"] == "e1-3"


def test_an_epoch_that_was_left_does_not_come_back() -> None:
    """A new boot has a new epoch; what is sent again of the old one is old, whatever its clock says."""
    last = Last()
    last.take(told(presence(5, True, bootid="b1", monotonic=10**9).raw))
    assert last.take(told(presence(1, False, epoch="e2", bootid="b2", monotonic=5).raw))
    assert last.take(told(presence(6, True, bootid="b1", monotonic=2 * 10**9).raw)) is None
    assert last.states["gate/crowd"].said["state"] == "off"


def test_in_one_boot_the_clock_tells_epochs_apart() -> None:
    """A rule that was given another lane: its backlog in the old lane comes later, and is older."""
    last = Last()
    last.take(told(presence(1, True, epoch="alarms", lane="alarm", monotonic=500).raw))
    assert last.take(told(presence(900, False, epoch="old", monotonic=400).raw)) is None
    assert last.take(told(presence(2, False, epoch="alarms", lane="alarm", monotonic=600).raw))


def history() -> st.SearchStrategy[list[Event]]:
    """What one rule tells in its life: some boots, each with some epochs."""

    def build(lengths: list[list[int]]) -> list[Event]:
        made = []
        for boot, epochs in enumerate(lengths):
            clock = 0
            for number, length in enumerate(epochs):
                for seq in range(1, length + 1):
                    clock += 1
                    made.append(
                        rule_event(
                            seq, "dwell", "exceeded" if clock % 3 else "ended", track=clock % 4,
                            epoch=f"{boot}.{number}", bootid=f"b{boot}", monotonic=clock,
                        )
                    )  # fmt: skip
        return made

    return st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=3).map(build)


@given(history(), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.booleans()), max_size=12))
def test_whatever_is_sent_again_the_state_never_goes_back(
    events: list[Event], outages: list[tuple[int, int, bool]]
) -> None:
    """Each outage: so many go on, then so many are sent again, perhaps by a new process."""
    raws = [msgspec.json.encode(event) for event in events]
    index = {event.id: n for n, event in enumerate(events)}
    clean = Last()
    for raw in raws:
        clean.take(told(raw))
    last, at, newest = Last(), 0, -1
    for forward, back, restarted in [*outages, (len(raws), 0, False)]:
        for raw in raws[at : at + forward]:
            if (name := last.take(told(raw))) is not None:
                shown = index[str(last.states[name].said["id"])]
                assert shown >= newest
                newest = shown
        at = max(min(at + forward, len(raws)) - back, 0)
        if restarted:
            last = Last(msgspec.json.decode(msgspec.json.encode(last.states), type=dict[str, State]))
    for raw in raws[at:]:
        last.take(told(raw))
    assert last.states["gate/crowd"].said == clean.states["gate/crowd"].said


def test_rules_are_bounded() -> None:
    last = Last()
    with capture_logs() as logs:
        for n in range(600):
            last.take(told(presence(n + 1, True, rule=f"r{n}").raw))
    assert len(last.states) == 500
    assert {entry["event"] for entry in logs} == {"state.not_kept"}


def test_a_new_process_goes_on_with_what_is_known(tmp_path: Path) -> None:
    file = tmp_path / "state" / "last.json"
    first = Kept(file)
    first.last.take(told(crossing(1, "forward", {"person": 3}).raw))
    first.write()
    second = Kept(file)
    second.last.take(told(crossing(2, "backward", {"person": 1}).raw))
    assert second.last.states["gate/crowd"].said["total"] == 4
    assert second.last.take(told(crossing(1, "forward", {"person": 3}).raw)) is None
    assert second.trouble == ""


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": {"epoch": 5}}', b"[" * 100_000, b"\xff"])
def test_a_file_that_is_no_good_costs_the_states_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.json").write_bytes(content)
    with capture_logs() as logs:
        kept = Kept(tmp_path / "last.json")
    assert kept.last.states == {}
    assert [entry["event"] for entry in logs] == ["states.not_read"]


def test_a_disk_that_takes_nothing_is_said_to_be_and_stops_nothing(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "file" / "last.json")
    (tmp_path / "file").write_text("in the way")
    kept.write()
    assert "cannot write the states of rules" in kept.trouble
    (tmp_path / "file").unlink()
    kept.write()
    assert kept.trouble == ""
