"""The buffer on a bus in memory: acceptance, repetition, receipts, hostile messages."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from events import event, events, submission
from oracle import Oracle, check_ledger
from skerry.buffer.disk import Disk
from skerry.buffer.module import run
from skerry.buffer.quarantine import ask, entries
from skerry.buffer.settings import BufferSettings
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import ACCEPTED, EVENTS, OUTBOUND, RECEIPTS, STATUS
from skerry.clock import utc
from skerry.errors import ConfigError
from skerry.messages import Accepted, Event, Gap, Outbound, Receipt, Refusal, Status, Submission
from skerry.service import Host
from skerry.settings import parse
from skerry.testing import eventually, running


class World:
    """A producer, a far end and a buffer between them."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.broker = MemoryBroker()
        self.outside = MemoryBus(self.broker)
        self.inside = MemoryBus(self.broker)
        given = {"site": "test", "module": "buffer", "state": str(folder), "linger_ms": 0, "grace_s": 1.0}
        self.settings = parse(BufferSettings, {**given, **changes}, "test")
        self.accepted: list[Accepted] = []
        self.outbound: list[Outbound] = []
        self.outside.subscribe(ACCEPTED, self.accepted.append)
        self.outside.subscribe(OUTBOUND, self.outbound.append)

    @contextlib.contextmanager
    def up(self) -> Iterator[Host]:
        """The buffer runs."""
        with running(run, self.settings, self.inside, "buffer") as host:
            eventually(lambda: host.condition[0] == "ready")
            yield host

    def submit(self, message: Submission) -> None:
        self.outside.publish(EVENTS, message, message.producer)

    def watermark(self, producer: str = "decision", epoch: str = "e1") -> int:
        """What the producer was told last."""
        told = [a.seq for a in self.accepted if (a.producer, a.epoch) == (producer, epoch)]
        return told[-1] if told else 0

    def receipt(self, upto: int, store: str | None = None) -> None:
        eventually(lambda: self.outbound)
        self.outside.publish(RECEIPTS, Receipt(store=store or self.outbound[-1].store, upto=upto), "uplink")

    def sent(self) -> set[int]:
        """Seq of every event that went out."""
        return {e.seq for e in self.arrived() if e.type != "skerry.gap"}

    def arrived(self, lane: str = "") -> list[Event]:
        """Every event that went out, of one lane or of all."""
        return [
            msgspec.json.decode(raw, type=Event)
            for batch in self.outbound
            for raw in batch.events
            if lane in ("", batch.lane)
        ]

    def gaps(self) -> list[Gap]:
        """Every different gap record that went out."""
        found = {e.id: msgspec.convert(e.data, Gap) for e in self.arrived() if e.type == "skerry.gap"}
        return list(found.values())

    def receipt_all(self) -> None:
        """Confirm everything that is sent from now on."""
        self.outside.subscribe(OUTBOUND, lambda batch: self.receipt(batch.last, batch.store))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def count(host: Host, name: str) -> float:
    return sum(v for k, v in host.telemetry.values().items() if k.partition("{")[0] == name)


def test_events_are_accepted_sent_out_and_forgotten_after_the_receipt(world: World) -> None:
    oracle = Oracle()
    with world.up() as host:
        oracle.send(events(1, 250))
        for first in range(1, 250, 50):
            world.submit(submission(first, first + 49, oldest=1))
        eventually(lambda: world.watermark() == 250)
        eventually(lambda: world.outbound)
        while host.tally["delivered"] < 250:
            last = world.outbound[-1]
            world.receipt(last.last)
            eventually(lambda b=last: host.tally["delivered"] == 250 or world.outbound[-1] is not b)
        assert (host.tally["accepted"], host.tally["waiting"]) == (250, 0)
    oracle.check_complete(world.arrived(), {("/skerry/test/decision", "e1"): 250}, repeats=True)


def test_what_is_on_its_way_is_bounded(tmp_path: Path) -> None:
    world = World(tmp_path, batch_records=10, window_batches=2)
    with world.up():
        world.submit(submission(1, 100))
        eventually(lambda: world.watermark() == 100)
        eventually(lambda: len(world.sent()) >= 20)
        assert len(world.sent()) == 20
        world.receipt(10)
        eventually(lambda: len(world.sent()) == 30)


def test_a_batch_is_bounded_in_bytes(tmp_path: Path) -> None:
    world = World(tmp_path, batch_bytes=1024)
    with world.up():
        world.submit(submission(1, 20))
        eventually(lambda: world.outbound)
        assert all(len(b.events) <= 1024 // 250 for b in world.outbound)


def test_repeats_are_dropped_and_answered(world: World) -> None:
    with world.up() as host:
        world.submit(submission(1, 10))
        eventually(lambda: world.watermark() == 10)
        told = len(world.accepted)
        world.submit(submission(3, 8, oldest=3))
        eventually(lambda: len(world.accepted) > told)
        assert world.watermark() == 10
        assert count(host, "skerry_events_repeated_total") == 6
        assert host.tally["accepted"] == 10


def test_a_jump_is_refused_until_the_producer_goes_back(world: World) -> None:
    with world.up() as host:
        world.submit(submission(1, 3))
        eventually(lambda: world.watermark() == 3)
        told = len(world.accepted)
        world.submit(submission(6, 8, oldest=1))
        eventually(lambda: len(world.accepted) > told)
        assert world.watermark() == 3
        world.submit(submission(4, 8, oldest=1))
        eventually(lambda: world.watermark() == 8)
        assert host.tally["accepted"] == 8


def test_events_that_the_producer_lost_are_told_as_a_gap_in_their_place(world: World) -> None:
    with world.up() as host:
        world.submit(submission(1, 3))
        world.submit(submission(10, 12, oldest=10))
        eventually(lambda: world.watermark() == 12)
        assert count(host, "skerry_events_never_submitted_total") == 6
        assert (host.tally["accepted"], host.tally["stated"]) == (7, 1)
        eventually(lambda: 12 in world.sent())
        (gap,) = world.gaps()
        assert (gap.reason, gap.count, gap.lane) == ("never_submitted", 6, "event")
        assert [(r.producer, r.epoch, r.first, r.last) for r in gap.ranges] == [("decision", "e1", 4, 9)]
        assert [e.type for e in world.arrived()].index("skerry.gap") == 3, "it is not in its place"


def test_producers_and_epochs_have_watermarks_of_their_own(world: World) -> None:
    with world.up():
        world.submit(submission(1, 3))
        world.submit(submission(1, 5, producer="other"))
        world.submit(submission(1, 2, epoch="e2"))
        eventually(lambda: world.watermark(epoch="e2") == 2)
        assert (world.watermark(), world.watermark("other")) == (3, 5)


def test_an_alarm_is_committed_without_waiting(tmp_path: Path) -> None:
    world = World(tmp_path, linger_ms=1000, resend_s=100)
    with world.up():
        alarm = event(1, lane="alarm")
        world.submit(Submission(producer="decision", epoch="e1", oldest=1, events=(alarm,)))
        eventually(lambda: world.watermark() == 1, within_s=0.9)


def test_watermarks_are_told_again_after_a_reconnect(world: World) -> None:
    with world.up():
        world.submit(submission(1, 3))
        eventually(lambda: world.watermark() == 3)
        world.accepted.clear()
        world.inside.disconnect()
        world.inside.reconnect()
        eventually(lambda: world.watermark() == 3)


def test_unconfirmed_records_are_sent_again(tmp_path: Path) -> None:
    world = World(tmp_path, resend_s=0.05)
    with world.up():
        world.submit(submission(1, 3))
        eventually(lambda: len(world.outbound) >= 3)
        assert {b.first for b in world.outbound} == {1}


def test_an_uplink_that_begins_is_sent_everything_again(tmp_path: Path) -> None:
    world = World(tmp_path, resend_s=1000)
    with world.up():
        world.submit(submission(1, 3))
        eventually(lambda: len(world.outbound) == 1)
        for state, pid, sent in (("starting", 7, 1), ("ready", 7, 2), ("degraded", 7, 2), ("ready", 8, 3)):
            status = Status(module="uplink", kind="uplink", state=state, pid=pid)  # type: ignore[arg-type]
            world.outside.publish(STATUS, status, "uplink")
            eventually(lambda n=sent: len(world.outbound) == n)


def test_statuses_of_others_change_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, resend_s=1000)
    with world.up():
        world.submit(submission(1, 3))
        eventually(lambda: len(world.outbound) == 1)
        world.outside.publish(STATUS, Status(module="x", kind="capture", state="ready", pid=9), "x")
        world.submit(submission(4, 4, oldest=1))
        eventually(lambda: len(world.outbound) == 2)
        assert world.outbound[-1].first == 4


@pytest.mark.parametrize(("upto", "store"), [(2, "another"), (99, None), (2**60, None), (0, None)])
def test_receipts_that_cannot_be_are_ignored(world: World, upto: int, store: str | None) -> None:
    with world.up() as host:
        world.submit(submission(1, 3))
        eventually(lambda: world.outbound)
        world.receipt(upto, store)
        world.receipt(1)
        eventually(lambda: host.tally["delivered"] == 1)
        assert host.tally["waiting"] == 2


def test_a_restart_goes_on_from_the_cursor(world: World) -> None:
    with world.up() as host:
        world.submit(submission(1, 30))
        eventually(lambda: world.sent() == set(range(1, 31)))
        world.receipt(12)
        eventually(lambda: host.tally["delivered"] == 12)
    world.outbound.clear()
    with world.up() as host:
        eventually(lambda: world.outbound)
        assert world.outbound[0].first == 13
        assert world.outbound[0].base == 12
        check_ledger(host.tally["accepted"], host.tally["delivered"], host.tally["waiting"], {})


@pytest.mark.parametrize("reason", ["epoch", "seq", "id", "oldest", "source", "lane"])
def test_inconsistent_submissions_are_counted_and_dropped(world: World, reason: str) -> None:
    one, two = events(1, 2)
    bad = {
        "epoch": Submission(producer="p", epoch="else", oldest=1, events=(one,)),
        "seq": Submission(producer="p", epoch="e1", oldest=1, events=(two, one)),
        "id": Submission(producer="p", epoch="e1", oldest=1, events=(msgspec.structs.replace(one, id="x"),)),
        "lane": Submission(
            producer="p", epoch="e1", oldest=1, events=(one, msgspec.structs.replace(two, lane="bulk"))
        ),
        "oldest": Submission(producer="p", epoch="e1", oldest=5, events=(one,)),
        "source": Submission(
            producer="p", epoch="e1", oldest=1, events=(one, msgspec.structs.replace(two, source="/other"))
        ),
    }[reason]
    with world.up() as host:
        world.submit(bad)
        world.submit(submission(1, 1))
        eventually(lambda: world.watermark() == 1)
        assert host.telemetry.values()[f"skerry_submissions_refused_total{{reason={reason}}}"] == 1
        assert world.watermark("p") == 0


def test_malformed_payloads_on_every_topic_stop_nothing(world: World) -> None:
    with world.up():
        for topic in ("events/p", "receipts/uplink", "status/x"):
            for payload in (
                b"",
                b"{",
                b"\xff\xfe",
                b"[]",
                b'{"seq": -1}',
                b"null",
                b"[" * 100_000,
                b"x" * 5_000_000,
            ):
                world.broker.publish(f"skerry/test/{topic}", payload)
        world.submit(submission(1, 1))
        eventually(lambda: world.watermark() == 1)


def test_more_than_memory_may_hold_is_refused_and_accepted_later(tmp_path: Path) -> None:
    world = World(tmp_path, inbox_bytes=64 * 1024, linger_ms=200, max_batch=10_000)
    with world.up() as host:
        for first in range(1, 2001, 100):
            world.submit(submission(first, first + 99, oldest=1))
        eventually(lambda: count(host, "skerry_submissions_refused_total") > 0)
        eventually(lambda: world.watermark() > 0)

        def moved(known: int) -> bool:
            world.submit(submission(known + 1, min(known + 100, 2000), oldest=1))
            return world.watermark() > known

        while (known := world.watermark()) < 2000:
            eventually(lambda n=known: moved(n))
        assert host.tally["accepted"] == 2000


def test_a_full_disk_degrades_the_module_and_room_heals_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = Disk.write, [True]

    def limited(self: Disk, file: int, content: bytes, at: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, file, content, at)

    with world.up() as host:
        monkeypatch.setattr(Disk, "write", limited)
        world.submit(submission(1, 5))
        eventually(lambda: host.condition[0] == "degraded")
        assert "the disk is full" in host.condition[1]
        assert world.watermark() == 0
        full[0] = False
        world.submit(submission(1, 5))
        eventually(lambda: world.watermark() == 5)
        eventually(lambda: host.condition == ("ready", ""))


def test_stopping_waits_for_the_far_end(world: World) -> None:
    world.outside.publish(STATUS, Status(module="uplink", kind="uplink", state="ready", pid=7), "uplink")

    def far_end(batch: Outbound) -> None:
        world.receipt(batch.last, batch.store)

    with world.up() as host:
        world.submit(submission(1, 1000))
        eventually(lambda: world.watermark() == 1000)
        world.outside.subscribe(OUTBOUND, far_end)
        world.receipt(100)
        host.stopping.set()
        eventually(lambda: host.tally["waiting"] == 0)


def test_stopping_commits_what_has_come_in(tmp_path: Path) -> None:
    world = World(tmp_path, linger_ms=300)
    with world.up() as host:
        world.submit(submission(1, 7))
        host.stopping.set()
        eventually(lambda: world.watermark() == 7)


def test_records_too_large_for_the_bus_go_to_quarantine_and_are_told(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("skerry.buffer.module._ENVELOPE", OUTBOUND.max_bytes - 5000)
    with world.up() as host:
        world.receipt_all()
        large = event(2, size=6000)
        world.submit(
            Submission(producer="decision", epoch="e1", oldest=1, events=(event(1), large, event(3)))
        )
        eventually(lambda: host.tally["accepted"] == 3 and host.tally["waiting"] == 0)
        check_ledger(3, host.tally["delivered"], 0, {"quarantined": 1}, lost=1)
        eventually(lambda: world.gaps())
        assert [(g.reason, g.detail, g.count) for g in world.gaps()] == [
            ("quarantined", "too large for the bus", 1)
        ]
        (listed,) = entries(tmp_path / "log")
        assert (listed.entry.id, listed.entry.offset) == ("e1-2", 2)


def refuse(world: World, batch: Outbound, offset: int) -> None:
    """The far end takes a batch, but for one record."""
    refused = (Refusal(offset, "no such device"),) if batch.first <= offset <= batch.last else ()
    message = Receipt(store=batch.store, upto=batch.last, refused=refused)
    world.outside.publish(RECEIPTS, message, "uplink")


def test_what_the_far_end_refuses_is_kept_told_and_sent_again_on_demand(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    first: list[str] = []

    def far_end(batch: Outbound) -> None:
        if not first:
            first.append(batch.store)
            refuse(world, batch, 2)
        else:
            world.receipt(batch.last, batch.store)

    with world.up() as host:
        world.outside.subscribe(OUTBOUND, far_end)
        world.submit(submission(1, 3))
        eventually(lambda: host.tally["evicted/quarantined"] == 1)
        eventually(lambda: world.gaps())
        (gap,) = world.gaps()
        assert (gap.reason, gap.detail, gap.count) == ("quarantined", "no such device", 1)
        assert [(r.epoch, r.first, r.last) for r in gap.ranges] == [("e1", 2, 2)]
        (listed,) = entries(folder)
        assert (listed.entry.reason, listed.again) == ("no such device", "")
        ask(folder, ("e1-2", "unknown"), "1")
        eventually(lambda: any(e.retryof == "e1-2" for e in world.arrived()), within_s=10)
        again = next(e for e in world.arrived() if e.retryof == "e1-2")
        assert again.data == event(2).data
        assert again.epoch != "e1"
        eventually(lambda: host.tally["waiting"] == 0 and not list(folder.glob("retry-*")))
        assert entries(folder)[0].again == again.id
        counts = host.tally.snapshot()
        check_ledger(counts["accepted"], counts["delivered"], 0, {"quarantined": 1}, lost=1)
        assert (counts["accepted"], counts["stated"]) == (5, 2)
        ask(folder, (), "2")  # what was sent again is not sent a third time
        eventually(lambda: not list(folder.glob("retry-*")), within_s=10)
        assert host.tally["stated"] == 2


def test_a_gap_record_that_is_refused_is_not_told_of(world: World) -> None:
    def far_end(batch: Outbound) -> None:
        refused = tuple(Refusal(n, "never") for n in range(batch.first, batch.last + 1))
        receipt = Receipt(store=batch.store, upto=batch.last, refused=refused)
        world.outside.publish(RECEIPTS, receipt, "uplink")

    with world.up() as host:
        world.outside.subscribe(OUTBOUND, far_end)
        world.submit(submission(1, 3))
        eventually(lambda: host.tally["evicted/quarantined"] == 6)  # three events, and their gap records
        eventually(lambda: host.tally["waiting"] == 0)
        assert host.tally["accepted"] == 6


def test_an_alarm_does_not_wait_for_a_backlog(tmp_path: Path) -> None:
    world = World(tmp_path, batch_records=10, window_batches=1, resend_s=100)
    with world.up():
        for first in range(1, 1000, 100):
            world.submit(submission(first, first + 99, oldest=1, epoch="e1", lane="bulk"))
        eventually(lambda: world.watermark() == 1000)
        eventually(lambda: len(world.arrived("bulk")) == 10)
        world.submit(submission(1, 1, epoch="a1", lane="alarm"))
        eventually(lambda: world.arrived("alarm"))
        assert len(world.arrived("bulk")) == 10


def test_what_has_waited_for_long_is_marked_as_backlog(tmp_path: Path) -> None:
    world = World(tmp_path, batch_records=1, window_batches=1, backlog_s=0.3, resend_s=100)
    with world.up():
        world.submit(submission(1, 2))
        eventually(lambda: world.outbound)
        assert not world.outbound[0].backlog
        threading.Event().wait(0.4)
        world.receipt(1)
        eventually(lambda: len(world.outbound) == 2)
        assert world.outbound[1].backlog


def test_times_are_corrected_once_the_clock_is_synchronised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [False]
    monkeypatch.setattr("skerry.buffer.module.synchronised", lambda: known[0])
    world = World(tmp_path, resend_s=0.2)
    with world.up() as host:
        now_ns = time.monotonic_ns()
        wrong = event(1, bootid=host.boot, monotonic=now_ns)  # it says March
        right = msgspec.structs.replace(event(2, bootid=host.boot, monotonic=now_ns), time=utc())
        world.submit(Submission(producer="decision", epoch="e1", oldest=1, events=(wrong, right)))
        eventually(lambda: world.outbound)
        assert [e.timequality for e in world.arrived()[:2]] == ["unsynchronised", "unsynchronised"]
        known[0] = True
        eventually(lambda: world.arrived()[-1].timequality is UNSET, within_s=10)
        one, two = world.arrived()[-2:]
        assert (one.timequality, one.recordedtime) == ("corrected", wrong.time)
        decided = datetime.fromisoformat(one.time).timestamp()
        assert abs(decided - time.time()) < 60
        assert (two.time, two.timequality, two.recordedtime) == (right.time, UNSET, UNSET)


def test_a_message_is_settled_with_the_broker_only_after_its_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go = threading.Event(), threading.Event()
    sync = Disk.sync

    def slow(self: Disk, file: int) -> None:
        entered.set()
        go.wait(5)
        sync(self, file)

    with world.up():
        monkeypatch.setattr(Disk, "sync", slow)
        world.submit(submission(1, 3))
        entered.wait(5)
        assert world.inside.unsettled == 1
        go.set()
        eventually(lambda: world.inside.unsettled == 0)
        eventually(lambda: world.watermark() == 3)


def test_metrics_hold_every_term_of_the_ledger(world: World) -> None:
    with world.up() as host:
        world.submit(submission(1, 9))
        eventually(lambda: world.watermark() == 9)
        world.receipt(4)
        eventually(lambda: host.tally["delivered"] == 4)
        host.refresh()
        values = host.telemetry.values()
        assert values["skerry_events_accepted_total"] == 9
        assert values["skerry_events_delivered_total"] == 4
        assert values["skerry_events_waiting{lane=event}"] == 5
        assert values["skerry_buffer_bytes"] > 0
        assert host.telemetry.quantiles()["commit"].count >= 1


def test_wrong_settings_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            BufferSettings, {"site": "s", "module": "b", "state": "/x", "limit_bytes": 5, "linger": 1}, "site"
        )
    assert caught.value.problems == (
        "site: $.linger: unknown key (did you mean 'linger_ms'?)",
        "site: $.limit_bytes: expected a whole number 33554432 or more, got 5",
    )
