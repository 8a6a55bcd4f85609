"""The decision module on a bus in memory, with a buffer that tests play."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import ACCEPTED, DETECTIONS, EVENTS, Channel
from skerry.decision.delivery import WINDOW
from skerry.decision.module import run
from skerry.decision.settings import (
    DecisionSettings,
    LineRule,
    PresenceRule,
    Rule,
    TrackerSettings,
    Where,
)
from skerry.errors import ConfigError
from skerry.ledger import read_tally
from skerry.messages import Accepted, Detection, Detections, Event, Submission
from skerry.service import Host
from skerry.testing import eventually, running

S = 1_000_000_000
LINE = LineRule(name="count", camera="belt", line=((0.5, 0.0), (0.5, 1.0)))
HERE = PresenceRule(
    name="here", camera="belt", on_delay_s=0.0, off_delay_s=0.3, lane="alarm", severity="critical"
)

ALARM = PresenceRule(
    name="person", camera="belt", labels=("person",), on_delay_s=0.0, off_delay_s=0.0, lane="alarm"
)


def made(folder: Path, *rules: Rule, **changes: Any) -> DecisionSettings:
    return DecisionSettings(
        **{
            "site": "test", "module": "decision", "state": str(folder), "cameras": ("belt",), "rules": rules,
            "tracker": TrackerSettings(confirm_s=0.0, lost_s=0.25), "resend_s": 0.2, "grace_s": 2.0,
        } | changes,
    )  # fmt: skip


def result(sequence: int, x: float | None = 0.5, **changes: Any) -> Detections:
    """The `sequence`th result of a film at 10 fps, with one nut, or nothing."""
    box = () if x is None else (Detection("nut", 0.9, (x - 0.05, 0.4, x + 0.05, 0.5), {"defect": 0.9}),)
    return Detections(
        **{
            "camera": "belt", "number": sequence, "sequence": sequence, "status": "ok",
            "time": "2026-01-01T00:00:00Z", "captured_ns": 5 * S, "media_ns": sequence * S // 10,
            "inferred_ns": 5 * S, "width": 640, "height": 480, "objects": box,
        } | changes,
    )  # fmt: skip


def kept_of(far: Far, lane: str, count: int) -> bool:
    return sum(e.lane == lane for e in far.kept) == count


def evaluated(host: Host, sequence: int) -> bool:
    return host.tally["belt/sequence"] == sequence


def person(sequence: int) -> Detections:
    return result(sequence, objects=(Detection("person", 0.9, (0.1, 0.1, 0.2, 0.2)),))


class Far:
    """The rest of the site: inference and the buffer, played by the test."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.bus = MemoryBus(broker)
        self.submissions: list[Submission] = []
        self.marks: dict[str, int] = {}
        self.kept: list[Event] = []
        self.accepting = False
        self.blocked: set[str] = set()
        """Lanes of which nothing is kept."""
        self.bus.subscribe(EVENTS, self._take)

    def _take(self, submission: Submission) -> None:
        self.submissions.append(submission)
        if self.accepting and submission.events[0].lane not in self.blocked:
            self.keep(submission)

    def keep(self, submission: Submission) -> None:
        """Do as the buffer does: keep what is new, in order, and say how far it is."""
        mark = self.marks.get(submission.epoch, submission.oldest - 1)
        for event in submission.events:
            if event.seq == mark + 1:
                self.kept.append(event)
                mark = event.seq
        self.marks[submission.epoch] = mark
        self.accept(submission.epoch, mark)

    def accept(self, epoch: str, seq: int, producer: str = "decision") -> None:
        self.bus.publish(ACCEPTED, Accepted(producer=producer, epoch=epoch, seq=seq), "decision")

    def show(self, *results: Detections) -> None:
        for one in results:
            self.bus.publish(DETECTIONS, one, "belt")

    @property
    def seen(self) -> list[Event]:
        """Every event that came, once."""
        return list({event.id: event for s in self.submissions for event in s.events}.values())


class FullBus(MemoryBus):
    """A bus that takes no events, as one that waits for a slow broker."""

    full = True

    def publish(self, channel: Channel[Any], message: Any, key: str = "") -> bool:
        return not (self.full and channel is EVENTS) and super().publish(channel, message, key)


@contextmanager
def decision(
    settings: DecisionSettings, broker: MemoryBroker, bus: MemoryBus | None = None
) -> Iterator[tuple[Host, MemoryBus]]:
    bus = bus or MemoryBus(broker)
    with running(run, settings, bus, "decision") as host:
        eventually(lambda: host.condition[0] != "starting")
        yield host, bus


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def far(broker: MemoryBroker) -> Far:
    return Far(broker)


def crossings(count: int, first: int = 1) -> list[Detections]:
    """Results in which one part after another crosses the line: `count` events, four results each."""
    found, sequence = [], first
    for _ in range(count):
        for x in (0.46, 0.54, None, None):
            found.append(result(sequence, x, media_ns=sequence * S // 5))
            sequence += 1
    return found


def test_a_crossing_becomes_an_event_that_says_where_when_and_what(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    far.accepting = True
    with decision(made(tmp_path, LINE), broker) as (host, _):
        far.show(*crossings(1))
        eventually(lambda: far.kept)
        event = far.kept[0]
        assert event.type == "skerry.line.crossed"
        assert event.source == "skerry/test/decision"
        assert event.subject == "belt/count"
        assert event.id == f"{event.epoch}-1"
        assert event.time == "2026-01-01T00:00:00Z"
        assert event.bootid == host.boot
        assert event.data == {
            "camera": "belt", "rule": "count", "kind": "line", "severity": "info", "frame": 2,
            "captured_ns": 5 * S, "media_ns": 2 * S // 5, "label": "nut", "track": 1, "score": 0.9,
            "box": [0.49, 0.4, 0.59, 0.5], "direction": "forward", "totals": {"nut": 1}, "total": 1,
        }  # fmt: skip
        eventually(lambda: host.tally["unaccepted"] == 0)
        assert host.telemetry.latency("event_to_accepted").count == 1
        assert host.telemetry.latency("capture_to_event").count == 1
        assert host.telemetry.latency("evaluate").count == 4


def test_an_event_has_the_lane_and_severity_of_its_rule(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    with decision(made(tmp_path, HERE), broker):
        far.show(result(1))
        eventually(lambda: far.seen)
    assert (far.seen[0].lane, far.seen[0].data["severity"]) == ("alarm", "critical")


def test_events_are_repeated_with_the_same_names_until_they_are_accepted(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    with decision(made(tmp_path, LINE), broker) as (host, _):
        far.show(*crossings(5))
        eventually(lambda: len(far.submissions) > 12)
        again = far.submissions[-1]
        assert [e.seq for e in again.events] == [1, 2, 3, 4, 5]
        assert len(far.seen) == 5
        far.accept(again.epoch, 3)
        eventually(lambda: far.submissions[-1].oldest == 4)
        assert [e.seq for e in far.submissions[-1].events] == [4, 5]
        far.accept(again.epoch, 5)
        eventually(lambda: host.tally["unaccepted"] == 0)
    assert host.tally.snapshot().items() >= {"decided": 5, "unaccepted": 0}.items()


def test_a_connection_that_comes_back_brings_what_waits(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    with decision(made(tmp_path, LINE, resend_s=60.0), broker) as (host, bus):
        far.show(*crossings(1))
        eventually(lambda: far.submissions)
        bus.disconnect()
        heard = len(far.submissions)
        bus.reconnect()
        eventually(lambda: len(far.submissions) > heard)
        assert [e.seq for e in far.submissions[-1].events] == [1]
        assert host.tally["decided"] == 1


def test_what_was_not_accepted_is_there_after_a_restart_and_numbers_go_on(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    settings = made(tmp_path, LINE, grace_s=0.6)
    with decision(settings, broker):
        far.show(*crossings(3))
        eventually(lambda: len(far.seen) == 3)
    far.submissions.clear()
    far.accepting = True
    with decision(settings, broker) as (host, _):
        eventually(lambda: len(far.kept) == 3)
        far.show(*crossings(2, first=13))
        eventually(lambda: len(far.kept) == 5)
        assert [e.seq for e in far.kept] == [1, 2, 3, 4, 5]
        assert len({e.epoch for e in far.kept}) == 1
        assert [e.data["total"] for e in far.kept] == [1, 2, 3, 4, 5]
        assert len({e.data["track"] for e in far.kept}) == 5
        eventually(lambda: host.tally["unaccepted"] == 0)
    assert read_tally(tmp_path / "tally").items() >= {"decided": 5, "belt/evaluated": 20}.items()


def test_stopping_evaluates_what_waits_and_stays_for_acceptance(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    far.accepting = True
    with decision(made(tmp_path, LINE, queue=1000), broker):
        far.show(*crossings(100))
    tally = read_tally(tmp_path / "tally")
    assert tally.items() >= {"belt/evaluated": 400, "decided": 100, "unaccepted": 0}.items()
    assert len(far.kept) == 100


def test_results_that_never_came_are_counted_also_over_a_restart(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    settings = made(tmp_path)
    with decision(settings, broker):
        far.show(result(3), result(4), result(9))
    with decision(settings, broker):
        far.show(result(12))
    tally = read_tally(tmp_path / "tally")
    assert tally.items() >= {"belt/evaluated": 4, "belt/unseen": 8, "belt/sequence": 12}.items()


def test_inference_that_lost_its_state_is_counted_from_the_beginning(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    with decision(made(tmp_path), broker) as (host, _):
        far.show(result(1), result(2), result(3, media_ns=0))
        far.show(result(2, media_ns=S), result(3, media_ns=2 * S))
        eventually(lambda: host.tally["belt/evaluated"] == 5)
        assert host.tally["belt/unseen"] == 1
        assert host.tally["belt/sequence"] == 3


def test_a_result_that_comes_twice_is_evaluated_once(tmp_path: Path, broker: MemoryBroker, far: Far) -> None:
    with decision(made(tmp_path), broker) as (host, _):
        far.show(result(1), result(1), result(2))
        eventually(lambda: host.tally["belt/sequence"] == 2)
        assert host.tally["belt/evaluated"] == 2
        assert host.telemetry.values()["skerry_messages_ignored_total{reason=repeated}"] == 1


def test_results_that_a_full_queue_displaced_are_counted_with_their_reason(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    with decision(made(tmp_path, queue=2), broker) as (host, _):
        far.show(*(result(n, x=None) for n in range(1, 3001)))
        eventually(lambda: host.tally["belt/sequence"] == 3000)
        eventually(lambda: host.tally["belt/unseen/queue_full"] == host.tally["belt/unseen"])
        host.refresh()
        values = host.telemetry.values()
    counts = read_tally(tmp_path / "tally")
    unseen = counts.get("belt/unseen", 0)
    assert counts["belt/evaluated"] + unseen == 3000
    assert unseen > 0
    assert values["skerry_results_unseen_total{camera=belt,reason=queue_full}"] == unseen
    assert values["skerry_results_evaluated_total{camera=belt}"] == counts["belt/evaluated"]


def test_a_failed_result_is_not_an_empty_one(tmp_path: Path, broker: MemoryBroker, far: Far) -> None:
    with decision(made(tmp_path, HERE, queue=100), broker) as (host, _):
        far.show(result(1), result(2))
        far.show(*(result(n, None, status="failed", reason="session") for n in range(3, 60)))
        eventually(lambda: host.tally["belt/evaluated"] == 59)
        assert [e.type for e in far.seen] == ["skerry.presence.started"]
        far.show(*(result(n, None) for n in range(60, 70)))
        eventually(lambda: len(far.seen) == 2)
        assert far.seen[1].type == "skerry.presence.ended"
        assert host.tally["belt/failed"] == 57


def test_a_presence_that_ended_while_the_module_was_away_is_told_to_have_ended(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    far.accepting = True
    settings = made(tmp_path, HERE)
    with decision(settings, broker):
        far.show(result(1))
    with decision(settings, broker):
        far.show(*(result(n, None) for n in range(50, 60)))
    assert [e.type for e in far.kept] == ["skerry.presence.started", "skerry.presence.ended"]


def test_state_that_a_kill_kept_from_the_tally_comes_from_the_events(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    settings = made(tmp_path, HERE, LINE, grace_s=0.6)
    with decision(settings, broker):
        far.show(*crossings(2))
        eventually(lambda: sum(e.data["kind"] == "line" for e in far.seen) == 2)
    (tmp_path / "tally").unlink()
    started = sum(e.type.endswith("started") for e in far.seen) - sum(
        e.type.endswith("ended") for e in far.seen
    )
    far.accepting = True
    with decision(settings, broker) as (host, _):
        assert host.tally["decided"] == len(far.seen)
        far.show(*crossings(1, first=9), *(result(n, None) for n in range(20, 40)))
        eventually(lambda: host.tally["belt/sequence"] == 39)
        eventually(lambda: host.tally["unaccepted"] == 0)
    events = [e.type for e in far.kept if e.data["kind"] == "presence"]
    assert started in (0, 1)
    assert events == ["skerry.presence.started", "skerry.presence.ended"] * (len(events) // 2)
    assert [e.data["total"] for e in far.kept if e.data["kind"] == "line"] == [1, 2, 3]


def test_a_full_outbox_refuses_says_so_and_recovers(tmp_path: Path, broker: MemoryBroker, far: Far) -> None:
    with decision(made(tmp_path, LINE, outbox_events=2), broker) as (host, _):
        far.show(*crossings(5))
        eventually(lambda: host.tally["decided"] == 5)
        assert host.tally["refused"] == 3
        assert host.condition[0] == "degraded"
        assert "outbox of lane event: full with 2 events" in host.condition[1]
        far.accept(far.seen[0].epoch, 2)
        eventually(lambda: host.condition[0] == "ready")
        far.accepting = True
        far.show(*crossings(1, first=21))
        eventually(lambda: len(far.kept) == 1)
        assert far.kept[0].seq == 3
    counts = read_tally(tmp_path / "tally")
    assert counts["decided"] - counts["refused"] == 3


def test_an_alarm_does_not_wait_for_lower_lanes_that_are_not_accepted(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    lines = [msgspec.structs.replace(LINE, name=f"line-{n}") for n in range(10)]
    with decision(made(tmp_path, *lines, ALARM, queue=1000, resend_s=60.0), broker) as (host, _):
        far.show(*crossings(60))
        eventually(lambda: host.tally["decided"] == 600)
        assert len(far.seen) == WINDOW
        far.show(person(241))
        eventually(lambda: len(far.seen) > WINDOW)
        alarm = far.seen[-1]
        assert (alarm.lane, alarm.seq) == ("alarm", 1)
        assert alarm.epoch != far.seen[0].epoch
        assert host.tally["unaccepted"] == 601
        far.accept(alarm.epoch, 1)
        eventually(lambda: host.tally["unaccepted"] == 600)
        assert len(far.seen) == WINDOW + 1, "an alarm's acceptance moves no other window"


def test_higher_lanes_are_sent_first_and_every_message_is_of_one_lane(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    bulk = msgspec.structs.replace(LINE, name="bulk", lane="bulk")
    bus = FullBus(broker)
    with decision(made(tmp_path, bulk, LINE, ALARM, resend_s=60.0), broker, bus) as (host, _):
        far.show(*crossings(3), person(20))
        eventually(lambda: host.tally["unaccepted"] == 7)
        bus.full = False
        for _ in range(2):  # for the first time, and again
            eventually(lambda: len(far.seen) == 7)
            lanes = [{e.lane for e in s.events} for s in far.submissions]
            assert lanes == [{"alarm"}, {"event"}, {"bulk"}]
            far.submissions.clear()
            bus.disconnect()
            bus.reconnect()


def test_a_lane_that_the_buffer_does_not_take_fills_alone(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    settings = made(tmp_path, LINE, ALARM, outbox_events=2, resend_s=0.05, grace_s=0.6)
    with decision(settings, broker) as (host, _):
        far.blocked = {"event"}
        far.accepting = True
        far.show(*crossings(5))
        eventually(lambda: host.tally["refused"] == 3)
        for n in range(5):
            far.show(person(50 + 10 * n), *(result(51 + 10 * n + m, None) for m in range(6)))
            eventually(partial(kept_of, far, "alarm", 2 * n + 2))
            eventually(lambda: host.tally["unaccepted/alarm"] == 0)
        eventually(lambda: "acceptance of lane event" in host.condition[1])
        assert "outbox of lane event: full with 2 events" in host.condition[1]
        assert "lane alarm" not in host.condition[1]
        host.refresh()
        values = host.telemetry.values()
        assert values["skerry_outbox_refused_total{lane=event}"] == values["skerry_events_refused_total"] == 3
        assert values["skerry_outbox_events{lane=event}"] == values["skerry_events_unaccepted"] == 2
        assert values["skerry_outbox_refused_total{lane=alarm}"] == 0
        far.blocked = set()
        eventually(lambda: host.tally["unaccepted"] == 0)
        eventually(lambda: host.condition[0] == "ready")
    counts = read_tally(tmp_path / "tally")
    assert counts.items() >= {"decided": 15, "refused": 3, "decided/alarm": 10, "decided/event": 5}.items()
    assert len(far.kept) == 12
    assert len({e.id for e in far.kept}) == 12


def test_watermarks_of_one_lane_displace_none_of_another(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    """They come while the module is busy publishing, and its queue has room for one."""
    alarm = msgspec.structs.replace(ALARM, off_delay_s=60.0)  # says no more than one thing
    with decision(made(tmp_path, LINE, alarm, queue=1, resend_s=60.0), broker) as (host, _):
        far.show(person(1))
        eventually(lambda: far.seen)

        def answer(submission: Submission) -> None:
            far.accept(far.seen[0].epoch, 1)
            for _ in range(5):
                far.accept(submission.epoch, submission.events[-1].seq)

        far.bus.subscribe(EVENTS, answer)
        for one in crossings(1, first=2):
            far.show(one)
            eventually(partial(evaluated, host, one.sequence))
        eventually(lambda: host.tally["decided/event"] == 1)
        eventually(lambda: host.tally["unaccepted"] == 0)


def test_what_waits_in_a_lane_that_no_rule_has_any_more_is_delivered(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    with decision(made(tmp_path, LINE, grace_s=0.6), broker):
        far.show(*crossings(2))
        eventually(lambda: len(far.seen) == 2)
    far.accepting = True
    moved = msgspec.structs.replace(LINE, lane="alarm")
    with decision(made(tmp_path, moved), broker) as (host, _):
        eventually(lambda: len(far.kept) == 2)
        far.show(*crossings(1, first=9))
        eventually(lambda: len(far.kept) == 3)
        assert [(e.lane, e.data["total"]) for e in far.kept] == [("event", 1), ("event", 2), ("alarm", 3)]
        eventually(lambda: host.tally["unaccepted"] == 0)
        assert host.tally["decided"] == 3


def test_a_lost_journal_of_one_lane_changes_no_count(tmp_path: Path, broker: MemoryBroker, far: Far) -> None:
    far.accepting = True
    settings = made(tmp_path, LINE, ALARM)
    with decision(settings, broker):
        far.show(*crossings(3), person(20))
        eventually(lambda: len(far.kept) == 4)
    (tmp_path / "outbox-event" / "journal").unlink()
    with decision(settings, broker) as (host, _):
        assert host.tally.snapshot().items() >= {"decided": 4, "decided/event": 3, "unaccepted": 0}.items()


def test_a_buffer_that_is_silent_is_a_fault_until_it_speaks(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    with decision(made(tmp_path, LINE, resend_s=0.05), broker) as (host, _):
        far.show(*crossings(1))
        eventually(lambda: host.condition[0] == "degraded")
        far.accept(far.seen[0].epoch, 1)
        eventually(lambda: host.condition[0] == "ready")


def hostile(rng: random.Random) -> list[tuple[str, bytes]]:
    """Messages that no honest module sends: (topic, payload)."""
    belt, mine = DETECTIONS.topic("test", "belt"), ACCEPTED.topic("test", "decision")
    sound = msgspec.json.decode(msgspec.json.encode(result(5)))
    box = {"label": "nut", "score": 1, "box": [0, 0, 1, 1]}
    odd: list[Any] = [
        sound | {"camera": "other"}, sound | {"camera": "../x"}, sound | {"sequence": 10**30},
        sound | {"sequence": 2**62}, sound | {"number": 2**63}, sound | {"media_ns": -(10**400)},
        sound | {"media_ns": 2**62 + 1}, sound | {"captured_ns": 10**40}, sound | {"sequence": 0},
        sound | {"time": "x" * 10_000}, sound | {"trace": "\u2028" * 10}, sound | {"status": "maybe"},
        sound | {"objects": [box | {"box": [1, 1, 0, 0]}]},
        sound | {"objects": [box | {"box": [-1e308, 0, 1e308, 1]}]},
        sound | {"objects": [box | {"score": 2}]}, sound | {"objects": [box | {"label": "n" * 10_000}]},
        sound | {"objects": [box | {"attributes": {f"a{n}": 1e308 for n in range(500)}}]},
        sound | {"objects": [box] * 3000}, sound | {"objects": "none"}, {}, [], None, 7, "text",
    ]  # fmt: skip
    marks: list[Any] = [
        {"producer": "decision", "epoch": "no such epoch", "seq": 1},
        {"producer": "decision", "epoch": "", "seq": 10**30}, {"producer": "uplink", "epoch": "e", "seq": 1},
        {"producer": "decision", "epoch": "x" * 9999, "seq": 0},
        {"producer": "decision", "seq": -1, "epoch": "e"}, [], {},
    ]  # fmt: skip
    found = [(belt, msgspec.json.encode(_small(o))) for o in odd] + [
        (mine, msgspec.json.encode(_small(m))) for m in marks
    ]
    found += [(topic, rng.randbytes(n)) for topic in (belt, mine) for n in (0, 1, 40, 5000)]
    found += [(belt, b"[" * 100_000), (belt, b"x" * 300_000), (belt, b'{"camera": "belt"')]
    found.append((belt, msgspec.json.encode(sound).replace(b'"nut"', b'"\\ud800"')))
    found.append((belt, msgspec.json.encode(sound).replace(b"5000000000", b"9" * 500)))
    return found


def _small(raw: Any) -> Any:
    """Whole numbers too long for the encoder as raw JSON."""
    if isinstance(raw, dict):
        return {k: _small(v) for k, v in raw.items()}
    if isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) >= 2**63:
        return msgspec.Raw(str(raw).encode())
    return raw


def test_hostile_messages_are_counted_and_stop_nothing(
    tmp_path: Path, broker: MemoryBroker, far: Far
) -> None:
    rng = random.Random(1)
    far.accepting = True
    presence = PresenceRule(
        name="defect",
        camera="belt",
        per="track",
        on_delay_s=0.0,
        where=Where(attribute="defect", above=0.1, evidence_s=0),
    )
    with decision(made(tmp_path, LINE, HERE, presence), broker) as (host, bus):
        messages = hostile(rng)
        for number, (topic, payload) in enumerate(messages):
            broker.publish(topic, payload)
            far.show(result(10 * number + 10))
        last = 10 * len(messages)
        eventually(lambda: host.tally["belt/sequence"] == last)
        far.show(*crossings(2, first=last + 1))
        eventually(lambda: sum(e.data["kind"] == "line" for e in far.kept) >= 2)
        assert bus.rejected["malformed"] > 10
        assert bus.rejected["oversized"] >= 1
        assert bus.rejected["handler_failed"] == 0
        values = host.telemetry.values()
        for reason in ("implausible", "watermark", "wrong_camera", "wrong_producer"):
            assert values[f"skerry_messages_ignored_total{{reason={reason}}}"] >= 1
        eventually(lambda: host.tally["unaccepted"] == 0)
    assert not [s for s, n in Counter(e.id for e in far.kept).items() if n > 1]


def test_labels_from_outside_cannot_fill_the_tally(tmp_path: Path, broker: MemoryBroker, far: Far) -> None:
    rules = [LineRule(name=f"line-{n}", camera="belt", line=((0.5, 0.0), (0.5, 1.0))) for n in range(12)]
    with decision(made(tmp_path, *rules, queue=10_000), broker) as (host, _):
        for n, one in enumerate(crossings(80)):
            objects = tuple(Detection(f"{n // 4:063}x", d.score, d.box) for d in one.objects)
            far.show(msgspec.structs.replace(one, objects=objects))
        eventually(lambda: host.tally["belt/sequence"] == 320)
        assert host.tally["decided"] == 12 * 80
    assert sum(name.startswith("rule/") for name in read_tally(tmp_path / "tally")) <= 300


def test_rules_that_cannot_work_stop_the_start_with_all_their_problems(tmp_path: Path) -> None:
    rules = (LINE, LineRule(name="count", camera="roof", line=((0.1, 0.1), (0.1, 0.1))))
    with pytest.raises(ConfigError) as caught, running(run, made(tmp_path, *rules), MemoryBus()):
        pass
    assert len(caught.value.problems) == 3
    assert caught.value.problems[0].startswith("settings: $.rules[1].name: expected a unique name")


def test_two_cameras_are_judged_apart(tmp_path: Path, broker: MemoryBroker, far: Far) -> None:
    other = LineRule(name="other", camera="gate", line=((0.5, 0.0), (0.5, 1.0)))
    with decision(made(tmp_path, LINE, other, cameras=("belt", "gate")), broker) as (host, _):
        for one in crossings(2):
            far.bus.publish(DETECTIONS, one, "belt")
            far.bus.publish(DETECTIONS, msgspec.structs.replace(one, camera="gate"), "gate")
        eventually(lambda: host.tally["belt/evaluated"] == host.tally["gate/evaluated"] == 8)
        eventually(lambda: len(far.seen) == 4)
    assert Counter(e.subject for e in far.seen) == {"belt/count": 2, "gate/other": 2}
