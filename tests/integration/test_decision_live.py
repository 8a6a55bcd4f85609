"""Rules changed while the decision module runs: no result is lost, no event is counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.test_decision import HERE, LINE, Far, S, crossings, evaluated, made, result
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import DESIRED, REPORTED
from skerry.decision.module import run
from skerry.decision.settings import DecisionSettings
from skerry.desired import digest
from skerry.ledger import read_tally
from skerry.messages import Desired, Reported
from skerry.service import Host
from skerry.testing import eventually, running

PERSON = {"kind": "presence", "camera": "belt", "on_delay_s": 0, "off_delay_s": 0, "lane": "alarm"}


class Steered(Far):
    """The rest of the site, and whoever steers it."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.accepting = True
        self.reports: list[Reported] = []
        self.bus.subscribe(REPORTED, self.reports.append)

    def desire(self, version: str, **patch: Any) -> None:
        message = Desired(module="decision", version=version, digest=digest(patch), patch=patch)
        self.bus.publish(DESIRED, message, "decision")

    def apply(self, version: str, **patch: Any) -> Reported:
        """Have it applied."""
        self.desire(version, **patch)
        eventually(lambda: self.reports and self.reports[-1].version == version)
        assert self.reports[-1].state == "applied", self.reports[-1]
        return self.reports[-1]

    def of(self, rule: str) -> list[str]:
        return [event.type for event in self.kept if event.data["rule"] == rule]


@pytest.fixture
def far() -> Steered:
    return Steered(MemoryBroker())


@contextmanager
def decision(far: Steered, settings: DecisionSettings) -> Iterator[Host]:
    with running(run, settings, MemoryBus(far.bus.broker), "decision") as host:
        eventually(lambda: host.condition[0] != "starting")
        yield host


def show(far: Steered, host: Host, sequence: int, x: float | None = 0.5, **changes: Any) -> None:
    """Show a result and wait until it was judged."""
    far.show(result(sequence, x, **changes))
    eventually(lambda: evaluated(host, sequence))


def assert_balanced(far: Steered, folder: Path) -> None:
    """Every event came once, by every count."""
    tally = read_tally(folder / "tally")
    assert len({e.id for e in far.kept}) == len(far.kept) == tally.get("decided", 0)
    assert tally.get("unaccepted", 0) == tally.get("refused", 0) == 0


def test_a_new_rule_in_a_lane_that_was_never_used_gets_its_events_out(tmp_path, far):
    with decision(far, made(tmp_path, LINE)) as host:
        assert not (tmp_path / "outbox-alarm").exists()
        far.apply("1", rules={"person": PERSON})
        show(far, host, 1)
        eventually(lambda: far.of("person") == ["skerry.presence.started"])
        assert far.kept[0].lane == "alarm"
        eventually(lambda: host.tally["unaccepted"] == 0)
        assert list(host.tally.snapshot().items() & {("decided/alarm", 1), ("unaccepted/alarm", 0)})
    assert_balanced(far, tmp_path)


def test_a_lane_that_cannot_be_opened_is_refused_and_nothing_has_changed(tmp_path, far):
    (tmp_path / "outbox-alarm").parent.mkdir(exist_ok=True)
    with decision(far, made(tmp_path, LINE, HERE)) as host:
        (tmp_path / "outbox-bulk").write_text("in the way")
        far.desire("1", rules={"here": None, "person": {**PERSON, "lane": "bulk"}})
        eventually(lambda: far.reports)
        assert far.reports[-1].state == "refused"
        assert "outbox of lane bulk: cannot be made" in far.reports[-1].errors[0]
        show(far, host, 1)
        eventually(lambda: far.of("here") == ["skerry.presence.started"])


def test_a_rule_that_is_taken_away_while_active_says_its_end_at_once(tmp_path, far):
    with decision(far, made(tmp_path, HERE, LINE)) as host:
        show(far, host, 7)
        eventually(lambda: far.of("here") == ["skerry.presence.started"])
        far.apply("1", rules={"here": {"enabled": False}})
        eventually(lambda: len(far.of("here")) == 2)
        ended = far.kept[-1]
        assert ended.type == "skerry.presence.ended"
        assert ended.lane == "alarm"
        assert {k: ended.data[k] for k in ("how", "active", "frame", "severity")} == {
            "how": "removed", "active": False, "frame": 7, "severity": "critical",
        }  # fmt: skip
        assert host.tally["rule/here/active"] == 0
        show(far, host, 8)
        far.apply("2")
        show(far, host, 9)
        eventually(lambda: len(far.of("here")) == 3)
        assert far.of("here")[-1] == "skerry.presence.started"
    assert_balanced(far, tmp_path)


def test_a_rule_active_since_an_earlier_life_says_its_end_before_any_result(tmp_path, far):
    with decision(far, made(tmp_path, HERE)) as host:
        show(far, host, 1)
        eventually(lambda: far.kept)
    with decision(far, made(tmp_path, HERE)):
        far.apply("1", rules=None)
        eventually(lambda: len(far.of("here")) == 2)
    assert "frame" not in far.kept[-1].data
    assert_balanced(far, tmp_path)
    with decision(far, made(tmp_path, HERE)) as host:
        far.apply("2")
        assert host.tally["rule/here/active"] == 0
        assert len(far.of("here")) == 2


def test_what_was_active_goes_on_in_the_same_lane_over_a_change_and_a_restart(tmp_path, far):
    with decision(far, made(tmp_path, HERE)) as host:
        show(far, host, 1)
        far.apply("1", rules={"here": {"severity": "info"}})
        assert host.tally["rule/here/active"] == 1
        show(far, host, 2)
        assert far.of("here") == ["skerry.presence.started"]
    with decision(far, made(tmp_path, HERE)) as host:
        for sequence in range(3, 12):
            show(far, host, sequence, None)
        eventually(lambda: far.of("here") == ["skerry.presence.started", "skerry.presence.ended"])
        assert far.kept[-1].data["severity"] == "info"
    assert_balanced(far, tmp_path)


def test_totals_outlive_changes_removal_and_restarts(tmp_path, far):
    settings = made(tmp_path, LINE)

    def cross(first: int) -> None:
        far.show(*crossings(1, first))
        eventually(lambda: evaluated(host, first + 3))

    with decision(far, settings) as host:
        cross(1)
        far.apply("1", rules={"count": {"margin": 0.02}})
        cross(5)
        far.apply("2", rules={"count": None})
        cross(9)
        far.apply("3")
        cross(13)
    with decision(far, settings) as host:
        cross(17)
        eventually(lambda: len(far.kept) == 4)
    assert [event.data["total"] for event in far.kept] == [1, 2, 3, 4]
    assert_balanced(far, tmp_path)


def test_a_rule_that_moves_to_another_camera_ends_here_and_begins_there(tmp_path, far):
    with decision(far, made(tmp_path, HERE, cameras=("belt", "gate"))) as host:
        show(far, host, 1)
        far.apply("1", rules={"here": {"camera": "gate"}})
        eventually(lambda: far.of("here") == ["skerry.presence.started", "skerry.presence.ended"])
        assert host.tally["rule/here/active"] == 0
        assert [event.subject for event in far.kept] == ["belt/here"] * 2


@pytest.mark.parametrize(
    "patch",
    [
        {"rules": {"x": {**PERSON, "camera": "nowhere"}}}, {"rules": {"x": {**PERSON, "camera": "gate"}}},
        {"rules": {"count": {"line": [[0.5, 0.5], [0.5, 0.5]]}}},
        {"rules": [{**PERSON, "name": "a"}, {**PERSON, "name": "a"}]}, {"cameras": ["gate"]},
    ],
)  # fmt: skip
def test_rules_that_cannot_work_are_refused_by_the_check_of_the_process(tmp_path, patch):
    from skerry.adjuster import Adjuster
    from skerry.decision.check import settings_problems

    adjuster = Adjuster(made(tmp_path, LINE), tmp_path / "desired.json", settings_problems)
    wanted = Desired(module="decision", version="1", digest=digest(patch), patch=patch)
    assert adjuster.look_at(wanted) is None
    assert adjuster.report is not None
    assert adjuster.report.state == "refused"


def test_no_result_is_lost_and_no_event_counted_twice_under_a_flood_of_rules(tmp_path, far):
    rules = ({"margin": 0.02}, {"severity": "critical"}, {"lane": "alarm"}, {"enabled": True})
    with decision(far, made(tmp_path, LINE, HERE, queue=10_000)) as host:
        for n, one in enumerate(crossings(100)):
            far.show(one)
            far.desire(
                str(n), rules={"here": {**rules[n % 4], "off_delay_s": n % 3}}, tracker={"lost_s": 0.25}
            )
        far.apply("last")
        eventually(lambda: evaluated(host, 400))
        eventually(lambda: host.tally["unaccepted"] == 0 and len(far.kept) == host.tally["decided"])
        assert host.tally["belt/evaluated"] == 400
        assert host.tally["belt/unseen"] == 0
        assert len(far.of("count")) == 100
        assert far.kept[-1].data.get("media_ns", 0) <= 400 * S
    assert [e.data["total"] for e in far.kept if e.data["rule"] == "count"] == list(range(1, 101))
    assert_balanced(far, tmp_path)
    for lane in ("alarm", "event"):
        tally = read_tally(tmp_path / "tally")
        assert tally[f"decided/{lane}"] == sum(event.lane == lane for event in far.kept)
