"""The uplink on a bus in memory: order, receipts only for what is confirmed, refusals, outages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest

from events import event, events
from oracle import Oracle
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import DELIVERED, OUTBOUND, RECEIPTS
from skerry.clock import boot_id
from skerry.messages import Delivered, Event, Outbound, Receipt
from skerry.service import Host
from skerry.settings import parse
from skerry.testing import eventually, running
from skerry.uplink.links.memory import MemoryLink
from skerry.uplink.module import run
from skerry.uplink.quarantine import Quarantined
from skerry.uplink.settings import UplinkSettings


class World:
    """A buffer, an uplink and a far end."""

    def __init__(self, folder: Path, link: MemoryLink | None = None, **changes: object) -> None:
        self.broker = MemoryBroker()
        self.outside = MemoryBus(self.broker)
        self.inside = MemoryBus(self.broker)
        self.link = link or MemoryLink()
        self.folder = folder
        given = {
            "site": "test", "module": "uplink", "state": str(folder), "grace_s": 1.0,
            "link": {"kind": "file", "path": "unused"}, "backoff": {"first_s": 0.01, "last_s": 0.05},
        }  # fmt: skip
        self.settings = parse(UplinkSettings, {**given, **changes}, "test")
        self.receipts: list[Receipt] = []
        self.delivered: list[Delivered] = []
        self.outside.subscribe(RECEIPTS, self.receipts.append)
        self.outside.subscribe(DELIVERED, self.delivered.append)

    @contextlib.contextmanager
    def up(self) -> Iterator[Host]:
        """The uplink runs."""
        ready = partial(run, connect=lambda _settings, _stop: self.link)
        with running(ready, self.settings, self.inside, "uplink") as host:
            eventually(lambda: host.condition[0] in ("ready", "degraded"))
            yield host

    def send(self, first: int, last: int, *, base: int = 0, store: str = "s") -> None:
        self.send_events(first, events(first, last), base=base, store=store)

    def send_events(self, first: int, content: Sequence[Event], *, base: int = 0, store: str = "s") -> None:
        message = Outbound(store=store, first=first, base=base, events=tuple(content))
        self.outside.publish(OUTBOUND, message, "uplink")

    def upto(self, store: str = "s") -> int:
        return max((r.upto for r in self.receipts if r.store == store), default=0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_batches_arrive_in_order_and_are_receipted(world: World) -> None:
    oracle = Oracle()
    oracle.send(events(1, 100))
    with world.up() as host:
        for first in range(1, 100, 10):
            world.send(first, first + 9)
        eventually(lambda: world.upto() == 100)
        assert host.tally["confirmed"] == 100
    oracle.check_complete(world.link.arrived, {("/skerry/test/decision", "e1"): 100}, repeats=False)


def test_delivered_events_are_shown(world: World) -> None:
    with world.up():
        world.send(1, 3)
        eventually(lambda: world.delivered)
        assert [e.seq for e in world.delivered[0].events] == [1, 2, 3]


def test_nothing_is_receipted_that_the_far_end_did_not_confirm(world: World) -> None:
    world.link.down = True
    with world.up() as host:
        world.send(1, 3)
        eventually(lambda: host.condition[0] == "degraded")
        assert "link: memory: the far end is down" in host.condition[1]
        assert world.receipts == []
        world.link.down = False
        eventually(lambda: world.upto() == 3)
        eventually(lambda: host.condition == ("ready", ""))
    assert [e.seq for e in world.link.arrived] == [1, 2, 3]


def test_what_was_taken_but_not_confirmed_is_sent_again(world: World) -> None:
    world.link.forgetful = 2
    with world.up():
        world.send(1, 3)
        eventually(lambda: world.upto() == 3)
    assert [e.seq for e in world.link.arrived] == [1, 2, 3] * 3
    assert [e.seq for e in world.link.received] == [1, 2, 3]
    assert world.link.opened == 3


def test_repeated_batches_are_receipted_and_not_sent_again(world: World) -> None:
    with world.up():
        world.send(1, 5)
        eventually(lambda: world.upto() == 5)
        told = len(world.receipts)
        world.send(1, 5)
        eventually(lambda: len(world.receipts) > told)
        world.send(3, 8)
        eventually(lambda: world.upto() == 8)
    assert [e.seq for e in world.link.arrived] == list(range(1, 9))


def test_a_batch_behind_a_lost_one_waits(world: World) -> None:
    with world.up() as host:
        world.send(4, 6)
        eventually(lambda: host.telemetry.values().get("skerry_batches_dropped_total{reason=jump}") == 1)
        assert world.link.arrived == []
        world.send(1, 3)
        world.send(4, 6)
        eventually(lambda: world.upto() == 6)
    assert [e.seq for e in world.link.arrived] == list(range(1, 7))


def test_evicted_records_are_not_waited_for(world: World) -> None:
    with world.up():
        world.send(1, 3)
        world.send(10, 12, base=9)
        eventually(lambda: world.upto() == 12)
    assert [e.seq for e in world.link.arrived] == [1, 2, 3, 10, 11, 12]


def test_a_new_store_begins_at_its_own_offsets(world: World) -> None:
    with world.up():
        world.send(1, 5)
        world.send(1, 2, store="t")
        eventually(lambda: (world.upto(), world.upto("t")) == (5, 2))


def test_a_refused_event_is_set_aside_and_the_others_arrive(tmp_path: Path) -> None:
    world = World(tmp_path, MemoryLink(refuse=lambda e: "too large" if e.seq in (3, 7) else ""))
    with world.up() as host:
        world.send(1, 5)
        world.send(6, 9)
        eventually(lambda: world.upto() == 9)
        assert (host.tally["confirmed"], host.tally["quarantined"]) == (7, 2)
        assert host.telemetry.values()["skerry_events_quarantined_total"] == 2
        assert "refuses events, last: memory: e1-7: too large" in host.condition[1]
    assert [e.seq for e in world.link.arrived] == [1, 2, 4, 5, 6, 8, 9]
    kept = [
        msgspec.json.decode(x, type=Quarantined)
        for x in (tmp_path / "quarantine.jsonl").read_bytes().splitlines()
    ]
    assert [(k.offset, k.event.seq, k.reason) for k in kept] == [
        (3, 3, "memory: e1-3: too large"), (7, 7, "memory: e1-7: too large"),
    ]  # fmt: skip


def test_without_room_for_the_quarantine_nothing_is_receipted(tmp_path: Path) -> None:
    world = World(tmp_path, MemoryLink(refuse=lambda e: "no" if e.seq == 2 else ""))
    blocker = tmp_path / "quarantine.jsonl"
    blocker.mkdir(parents=True)
    with world.up() as host:
        world.send(1, 3)
        eventually(lambda: "quarantine: cannot write" in host.condition[1])
        assert world.upto() == 1
        blocker.rmdir()
        eventually(lambda: world.upto() == 3)


def test_an_outage_in_the_middle_of_a_search_for_the_refused_one_loses_nothing(tmp_path: Path) -> None:
    link = MemoryLink(refuse=lambda e: "no" if e.seq == 5 else "")
    world = World(tmp_path, link)
    with world.up():
        link.forgetful = 3
        world.send(1, 8)
        eventually(lambda: world.upto() == 8)
    assert [e.seq for e in link.received] == [1, 2, 3, 4, 6, 7, 8]


def test_more_than_memory_may_hold_is_dropped_and_taken_when_it_comes_again(tmp_path: Path) -> None:
    world = World(tmp_path, inbox_bytes=64 * 1024)
    world.link.down = True
    with world.up() as host:
        for first in range(1, 101):
            world.send_events(first, [event(first, size=3000)])
        eventually(lambda: host.telemetry.values().get("skerry_batches_dropped_total{reason=full}", 0) > 50)
        world.link.down = False
        eventually(lambda: world.upto() > 10)
        while world.upto() < 100:
            first = world.upto() + 1
            world.send_events(first, [event(first, size=3000)])
            eventually(lambda n=first: world.upto() >= n)
    assert [e.seq for e in world.link.received] == list(range(1, 101))


def test_latency_counts_only_within_one_boot(world: World) -> None:
    with world.up() as host:
        world.send_events(1, [event(1)])
        world.send_events(2, [event(2, bootid=boot_id(), monotonic=time.monotonic_ns())])
        eventually(lambda: world.upto() == 2)
        assert host.telemetry.quantiles()["event_to_delivered"].count == 1


def test_stopping_sends_what_waits(world: World) -> None:
    with world.up() as host:
        host.stopping.set()
        world.send(1, 3)
        eventually(lambda: world.upto() == 3)


def test_stopping_during_an_outage_is_prompt(world: World) -> None:
    world.link.down = True
    with world.up() as host:
        world.send(1, 3)
        eventually(lambda: host.condition[0] == "degraded")
        began = time.monotonic()
        host.stopping.set()
    assert time.monotonic() - began < 5
    assert world.receipts == []


def test_malformed_batches_stop_nothing(world: World) -> None:
    with world.up():
        for payload in (
            b"",
            b"{}",
            b"\xff",
            b'{"store":"s","first":0,"events":[]}',
            b"[" * 100_000,
            b"x" * 5_000_000,
        ):
            world.broker.publish("skerry/test/outbound/uplink", payload)
        world.send(1, 1)
        eventually(lambda: world.upto() == 1)


def test_a_link_that_opens_slowly_does_not_stall_the_loop(tmp_path: Path) -> None:
    class Slow(MemoryLink):
        def open(self) -> None:
            time.sleep(0.8)
            super().open()

    world = World(tmp_path, Slow(), watchdog_s=0.5)
    with world.up() as host:
        world.send(1, 1)
        alive = []
        eventually(lambda: alive.append(host.alive) or world.upto() == 1)
        assert all(alive)
