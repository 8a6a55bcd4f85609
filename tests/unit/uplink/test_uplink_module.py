"""The uplink on a bus in memory: order, receipts only for what is confirmed, refusals, outages."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authority import Authority
from events import event, events
from oracle import Oracle
from records import outbound
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import DELIVERED, DESIRED, OUTBOUND, RECEIPTS
from skerry.clock import boot_id
from skerry.desired import digest
from skerry.messages import Delivered, Desired, Event, Lane, Outbound, Receipt
from skerry.service import Host
from skerry.settings import parse
from skerry.testing import eventually, running
from skerry.uplink.downlink import Downlink
from skerry.uplink.links.memory import MemoryLink
from skerry.uplink.module import run
from skerry.uplink.settings import UplinkSettings


class World:
    """A buffer, an uplink and a far end."""

    def __init__(self, folder: Path, link: MemoryLink | None = None, **changes: object) -> None:
        self.broker = MemoryBroker()
        self.outside = MemoryBus(self.broker)
        self.inside = MemoryBus(self.broker)
        self.link = link or MemoryLink()
        self.folder = folder
        self.downlink = Downlink()
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
        ready = partial(run, connect=self._connect)
        with running(ready, self.settings, self.inside, "uplink") as host:
            eventually(lambda: host.condition[0] in ("ready", "degraded"))
            yield host

    def _connect(self, _settings: UplinkSettings, _stop: threading.Event, downlink: Downlink) -> MemoryLink:
        self.downlink = downlink
        return self.link

    def send(self, first: int, last: int, **more: Any) -> None:
        self.send_events(first, events(first, last), **more)

    def send_events(self, first: int, content: Sequence[Event], **more: Any) -> None:
        self.outside.publish(OUTBOUND, outbound(first, list(content), **more), "uplink")

    def send_lane(self, lane: Lane, first: int, last: int, *, size: int = 0, **more: Any) -> None:
        """Records of a lane, whose store and epoch have its name."""
        content = [event(n, lane=lane, epoch=lane, size=size) for n in range(first, last + 1)]
        self.send_events(first, content, store=lane, lane=lane, **more)

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
        shown = [msgspec.json.decode(e, type=Event).seq for m in world.delivered for e in m.events]
        assert shown == [1, 2, 3]


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


def refused(world: World, store: str = "s") -> dict[int, str]:
    return {r.offset: r.reason for x in world.receipts if x.store == store for r in x.refused}


@pytest.mark.parametrize(("window", "late"), [(4, False), (1, False), (1, True)])
def test_a_refused_event_is_reported_and_the_others_arrive_in_order(
    tmp_path: Path, window: int, late: bool
) -> None:
    link = MemoryLink(refuse=lambda e: "too large" if e.seq in (3, 7) else "", window=window, late=late)
    world = World(tmp_path, link)
    with world.up() as host:
        world.send(1, 5)
        world.send(6, 9)
        eventually(lambda: world.upto() == 9)
        assert host.tally["confirmed"] == 7
        assert host.telemetry.values()["skerry_events_refused_total"] == 2
        assert "refuses events, last: memory: e1-7: too large" in host.condition[1]
    assert [e.seq for e in link.arrived] == [1, 2, 4, 5, 6, 8, 9]
    assert refused(world) == {3: "memory: e1-3: too large", 7: "memory: e1-7: too large"}


def test_a_refusal_is_repeated_until_the_buffer_has_taken_note(tmp_path: Path) -> None:
    world = World(tmp_path, MemoryLink(refuse=lambda e: "no" if e.seq == 2 else ""))
    with world.up():
        world.send(1, 3)
        eventually(lambda: world.upto() == 3)
        world.send(4, 4)
        eventually(lambda: world.upto() == 4)
        assert [r.offset for r in world.receipts[-1].refused] == [2]
        world.send(1, 4)  # the receipt was lost
        eventually(lambda: len([r for r in world.receipts if r.upto == 4]) == 2)
        assert [r.offset for r in world.receipts[-1].refused] == [2]
        world.send(5, 5, base=4)
        eventually(lambda: world.upto() == 5)
        assert world.receipts[-1].refused == ()


def test_no_receipt_passes_a_refused_event_without_naming_it(tmp_path: Path) -> None:
    world = World(tmp_path, MemoryLink(refuse=lambda e: "no" if e.seq % 5 == 0 else ""))
    with world.up():
        for first in range(1, 100, 10):
            world.send(first, first + 9)
        eventually(lambda: world.upto() == 100)
    for receipt in world.receipts:
        assert {r.offset for r in receipt.refused} == set(range(5, receipt.upto + 1, 5))


def test_a_far_end_that_refuses_everything_stops_its_lane_and_no_other(tmp_path: Path) -> None:
    link_window = 4
    world = World(tmp_path, MemoryLink(refuse=lambda e: "no" if e.lane == "bulk" else "", window=link_window))
    with world.up() as host:
        for first in range(1, 200, 20):
            world.send_lane("bulk", first, first + 19)
        eventually(lambda: world.upto("bulk") >= 64)
        world.send_lane("event", 1, 5)
        eventually(lambda: world.upto("event") == 5)
        host.refresh()
        assert host.telemetry.values()["skerry_lane_held{lane=bulk,reason=refusals}"] == 1
        assert world.upto("bulk") <= 64 + link_window
        world.send_lane("bulk", 201, 210, base=64)  # the buffer has taken note
        eventually(lambda: world.upto("bulk") >= 128)


def test_what_is_no_event_is_refused_and_keeps_nobody_waiting(world: World) -> None:
    odd = [b"null", b"[1]", b'"text"', b'{"id":"x"}', b"3.5", b"{}"]
    with world.up():
        good = [msgspec.json.encode(e) for e in events(1, 2)]
        raws = tuple(msgspec.Raw(r) for r in [good[0], *odd, good[1]])
        message = Outbound(store="s", lane="event", first=1, last=len(raws), events=raws)
        world.outside.publish(OUTBOUND, message, "uplink")
        eventually(lambda: world.upto() == len(raws))
    assert [e.seq for e in world.link.arrived] == [1, 2]
    assert sorted(refused(world)) == [2, 3, 4, 5, 6, 7]
    assert all(reason.startswith("not an event: ") for reason in refused(world).values())


def test_a_message_that_contradicts_itself_is_dropped(world: World) -> None:
    with world.up() as host:
        world.send_events(1, events(1, 2), last=9)  # only a gap stands for many
        world.send_events(1, events(1, 1), last=5)
        world.send_events(5, events(1, 1), last=2)
        world.send_events(1, events(1, 1))
        world.send_events(2, events(2, 2), lane="bulk")  # a store is of one lane
        eventually(lambda: dropped(host) == 4)
        eventually(lambda: world.upto() == 1)
    assert [e.seq for e in world.link.arrived] == [1]


def gap(seq: int) -> Event:
    return msgspec.structs.replace(event(seq, epoch="chain"), type="skerry.gap")


def test_a_gap_record_stands_for_all_that_it_spans(world: World) -> None:
    with world.up():
        world.send(1, 3)
        world.send_events(4, [gap(4)], last=50)
        world.send(51, 52)
        eventually(lambda: world.upto() == 52)
        world.send_events(40, [gap(40)], last=60)  # it grew, and begins among what is confirmed
        eventually(lambda: world.upto() == 60)
    assert [e.id for e in world.link.arrived] == [
        "e1-1", "e1-2", "e1-3", "chain-4", "e1-51", "e1-52", "chain-40",
    ]  # fmt: skip


def test_an_outage_in_the_middle_of_a_search_for_the_refused_one_loses_nothing(tmp_path: Path) -> None:
    link = MemoryLink(refuse=lambda e: "no" if e.seq == 5 else "")
    world = World(tmp_path, link)
    with world.up():
        link.forgetful = 3
        world.send(1, 8)
        eventually(lambda: world.upto() == 8)
    assert [e.seq for e in link.received] == [1, 2, 3, 4, 6, 7, 8]


def dropped(host: Host) -> float:
    return sum(n for name, n in host.telemetry.values().items() if name.startswith("skerry_batches_dropped"))


def test_more_than_memory_may_hold_is_dropped_and_taken_when_it_comes_again(tmp_path: Path) -> None:
    world = World(tmp_path, inbox_bytes=64 * 1024)
    world.link.down = True
    with world.up() as host:
        for first in range(1, 101):
            world.send_events(first, [event(first, size=3000)])
        eventually(lambda: dropped(host) > 20)
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


def test_stopping_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    link = MemoryLink(window=2)
    world = World(tmp_path, link, grace_s=8.0)
    link.slow = True
    with world.up() as host:
        world.send(1, 300)
        eventually(lambda: link.arrived)
        host.stopping.set()
        time.sleep(0.8)  # longer than it waits for something new
        assert world.receipts == []
        link.slow = False
        eventually(lambda: world.upto() == 300)


def test_stopping_does_not_wait_for_a_lane_outside_its_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.uplink.module.synchronised", lambda: True)
    monkeypatch.setattr("time.time", lambda: 1_772_366_400.0)  # 12:00 UTC
    world = World(tmp_path, grace_s=8.0, sending={"schedules": {"bulk": ["22:00-06:00"]}})
    with world.up() as host:
        world.send_lane("bulk", 1, 5)
        eventually(lambda: host.queue() == 5)
        began = time.monotonic()
        host.stopping.set()
    assert time.monotonic() - began < 4


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


def test_several_batches_are_under_way_and_receipted_in_order(tmp_path: Path) -> None:
    link = MemoryLink(window=8)
    world = World(tmp_path, link)
    link.slow = True
    with world.up():
        for first in range(1, 1000, 100):
            world.send(first, first + 99)
        eventually(lambda: link.most == 7)
        assert world.receipts == []
        link.slow = False
        eventually(lambda: world.upto() == 1000)
    assert [r.upto for r in world.receipts] == sorted({r.upto for r in world.receipts})
    assert [e.seq for e in link.arrived] == list(range(1, 1001))


def test_after_an_outage_all_that_was_under_way_is_sent_again_in_order(tmp_path: Path) -> None:
    link = MemoryLink(window=8)
    world = World(tmp_path, link)
    link.slow = True
    with world.up() as host:
        for first in range(1, 500, 100):
            world.send(first, first + 99)
        eventually(lambda: len(link.arrived) == 500)
        link.down = True
        eventually(lambda: host.condition[0] == "degraded")
        link.down = link.slow = False
        eventually(lambda: world.upto() == 500)
    assert [e.seq for e in link.arrived] == [*range(1, 501), *range(1, 501)]


def test_an_alarm_overtakes_a_window_full_of_bulk(tmp_path: Path) -> None:
    link = MemoryLink(window=4)
    world = World(tmp_path, link)
    link.slow = True
    with world.up():
        for first in range(1, 1000, 100):
            world.send_lane("bulk", first, first + 99, backlog=True)
        eventually(lambda: link.most == 3)
        world.send_lane("alarm", 1, 1)
        eventually(lambda: link.arrived[-1].lane == "alarm")
        link.slow = False
        eventually(lambda: world.upto("bulk") == 1000 and world.upto("alarm") == 1)
    assert [e.lane for e in link.arrived].index("alarm") == 300


def test_an_inbox_full_of_bulk_has_room_for_an_alarm(tmp_path: Path) -> None:
    world = World(tmp_path, inbox_bytes=64 * 1024)
    world.link.down = True
    with world.up() as host:
        for first in range(1, 51):
            world.send_lane("bulk", first, first, size=3000)
        eventually(lambda: dropped(host) > 20)
        world.send_lane("alarm", 1, 1)
        world.link.down = False
        eventually(lambda: world.upto("alarm") == 1)


def test_live_and_backlog_share_the_pipe(tmp_path: Path) -> None:
    link = MemoryLink(window=1)
    world = World(tmp_path, link, sending={"live_share": 0.25, "batch_events": 10})
    link.down = True
    with world.up() as host:
        for first in range(1, 401, 100):
            world.send_lane("event", first, first + 99)
            world.send_lane("telemetry", first, first + 99, backlog=True)
        eventually(lambda: host.condition[0] == "degraded")
        link.down = False
        eventually(lambda: world.upto("event") == world.upto("telemetry") == 400)
    first_half = [e.lane for e in link.received[:400]]
    assert 90 <= first_half.count("event") <= 110
    for lane in ("event", "telemetry"):
        assert [e.seq for e in link.received if e.lane == lane] == list(range(1, 401))


def test_a_lane_outside_its_hours_waits_and_holds_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon, night = 1_772_366_400.0, 1_772_406_000.0  # 12:00 and 23:00 UTC
    monkeypatch.setattr("skerry.uplink.module.synchronised", lambda: True)
    now = [noon]
    monkeypatch.setattr("time.time", lambda: now[0])
    world = World(tmp_path, sending={"schedules": {"bulk": ["22:00-06:00"]}})
    with world.up() as host:
        world.send_lane("bulk", 1, 5)
        world.send_lane("event", 1, 5)
        eventually(lambda: world.upto("event") == 5)
        host.refresh()
        assert host.telemetry.values()["skerry_lane_held{lane=bulk,reason=hours}"] == 1
        assert world.upto("bulk") == 0
        now[0] = night
        eventually(lambda: world.upto("bulk") == 5)


def test_hours_do_not_hold_a_lane_by_a_clock_that_nobody_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.uplink.module.synchronised", lambda: False)
    monkeypatch.setattr("time.time", lambda: 0.0)
    world = World(tmp_path, sending={"schedules": {"bulk": ["22:00-06:00"]}})
    with world.up():
        world.send_lane("bulk", 1, 5)
        eventually(lambda: world.upto("bulk") == 5)


def test_a_link_keeps_to_its_limit_and_an_alarm_goes_ahead_of_it(tmp_path: Path) -> None:
    world = World(tmp_path, sending={"limits": {"messages_per_s": 2}})
    with world.up():
        for first in range(1, 6):
            world.send_lane("bulk", first * 100 - 99, first * 100, backlog=True)
        eventually(lambda: world.upto("bulk") >= 100)
        world.send_lane("alarm", 1, 1)
        eventually(lambda: world.upto("alarm") == 1)
        assert world.upto("bulk") < 500


def test_stopping_does_not_wait_for_a_limit(tmp_path: Path) -> None:
    world = World(tmp_path, sending={"limits": {"bytes_per_s": 10}})
    with world.up() as host:
        for first in range(1, 6):
            world.send(first * 100 - 99, first * 100)
        eventually(lambda: world.upto() >= 100)
        began = time.monotonic()
        host.stopping.set()
    assert time.monotonic() - began < 5


def test_the_circuit_is_shown(tmp_path: Path) -> None:
    def state(host: Host) -> str:
        host.refresh()
        values = host.telemetry.values()
        return next(s for s in ("closed", "half-open", "open") if values[f"skerry_link_circuit{{state={s}}}"])

    world = World(tmp_path, backoff={"first_s": 60, "last_s": 60})
    world.link.down = True
    with world.up() as host:
        assert state(host) == "closed"
        world.send(1, 1)
        eventually(lambda: host.condition[0] == "degraded")
        assert "(open, next try in " in host.condition[1]
        assert state(host) == "open"
        # Any part of 60 s, to a tenth: the jitter may well choose next to nothing.
        assert 0 <= host.telemetry.values()["skerry_link_retry_s"] <= 60


def test_after_an_outage_one_batch_is_the_probe(tmp_path: Path) -> None:
    link = MemoryLink(window=8)
    world = World(tmp_path, link)
    link.down = True
    with world.up() as host:
        for first in range(1, 500, 100):
            world.send(first, first + 99)
        eventually(lambda: host.condition[0] == "degraded")
        link.slow = True
        link.down = False
        eventually(lambda: link.arrived)
        assert not link.finish(0.01)
        assert link.most == 1
        assert "half-open" in host.condition[1]
        link.slow = False
        eventually(lambda: world.upto() == 500)
        eventually(lambda: host.condition == ("ready", ""))


def test_a_refusal_that_is_long_past_is_no_fault_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.uplink.module._REFUSALS_S", 0.3)
    world = World(tmp_path, MemoryLink(refuse=lambda e: "no" if e.seq == 1 else ""))
    with world.up() as host:
        world.send(1, 2)
        eventually(lambda: "refused: the far end refuses events" in host.condition[1])
        eventually(lambda: host.condition == ("ready", ""))


def test_screens_are_shown_the_newest_of_what_nobody_could_read(world: World) -> None:
    with world.up():
        for first in range(1, 2000, 100):
            world.send(first, first + 99)
        eventually(lambda: world.upto() == 2000, 30)
    shown = [msgspec.json.decode(e, type=Event).seq for m in world.delivered for e in m.events]
    assert 50 <= len(shown) < 1000
    assert shown == sorted(set(shown))


# Steered


def settings_of(world: World, **changes: Any) -> Desired:
    patch = {"sending": changes}
    return Desired(module="uplink", version="twin/1", digest=digest(patch), patch=patch)


def test_a_steered_link_is_opened_with_nothing_to_send_and_kept_open(tmp_path: Path) -> None:
    world = World(tmp_path, MemoryLink(steered=True))
    with world.up() as host:
        eventually(lambda: world.link.opened == 1)
        world.link.down = True
        eventually(lambda: "link" in host.condition[1])
        world.link.down = False
        eventually(lambda: world.link.opened == 2)
        eventually(lambda: host.condition == ("ready", ""))


def test_an_idle_link_that_nothing_comes_down_is_left_closed(world: World) -> None:
    with world.up():
        world.send(1, 1)
        eventually(lambda: world.upto() == 1)
    assert world.link.opened == 1


def test_limits_change_while_it_runs_and_nothing_is_lost(tmp_path: Path) -> None:
    oracle = Oracle()
    oracle.send(events(1, 300))
    world = World(tmp_path, MemoryLink(steered=True), sending={"limits": {"messages_per_s": 5}})
    with world.up():
        for first in range(1, 300, 10):
            world.send(first, first + 9)
        eventually(lambda: world.upto() > 0)
        world.outside.publish(DESIRED, settings_of(world, limits={"messages_per_s": 5000}), "uplink")
        eventually(lambda: world.upto() == 300)
    oracle.check_complete(world.link.arrived, {("/skerry/test/decision", "e1"): 300}, repeats=False)


def test_hours_change_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry.uplink.module.synchronised", lambda: True)
    now = time.gmtime().tm_hour
    closed = {"bulk": [f"{(now + 5) % 24:02}:00-{(now + 6) % 24:02}:00"]}
    world = World(tmp_path, sending={"schedules": closed})
    with world.up():
        world.send_lane("bulk", 1, 3)
        world.send_lane("event", 1, 3)
        eventually(lambda: world.upto("event") == 3)
        assert world.upto("bulk") == 0
        world.outside.publish(DESIRED, settings_of(world, schedules={"bulk": None}), "uplink")
        eventually(lambda: world.upto("bulk") == 3)


def test_flushing_sends_what_the_hours_hold(tmp_path: Path) -> None:
    link = MemoryLink(steered=True)
    world = World(tmp_path, link, backoff={"first_s": 60, "last_s": 60})
    link.down = True
    replies: list[int] = []
    with world.up() as host:
        world.send(1, 3)
        eventually(lambda: host.condition[0] == "degraded")
        link.down = False
        world.downlink.request("flush", b'{"wait_s": 30}', lambda status, _: replies.append(status))
        eventually(lambda: world.upto() == 3)
        eventually(lambda: replies == [200])


def test_a_command_storm_disturbs_no_delivery(tmp_path: Path) -> None:
    world = World(tmp_path, MemoryLink(steered=True))
    replies: list[int] = []
    with world.up():
        for n in range(300):
            world.send(10 * n + 1, 10 * n + 10)
            for _ in range(10):
                world.downlink.request("ping", b"", lambda status, _: replies.append(status))
        eventually(lambda: world.upto() == 3000)
        eventually(lambda: len(replies) == 3000)
    assert set(replies) <= {200, 429}


def test_a_certificate_that_the_link_got_for_itself_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.uplink.module.synchronised", lambda: True)
    authority = Authority(tmp_path / "keys")
    certificate, _ = authority.issue("device", days=(-20, 3))

    class Provisioned(MemoryLink):
        @property
        def certificates(self) -> Sequence[Path]:
            return (certificate,)

    with World(tmp_path / "state", Provisioned()).up() as host:
        eventually(lambda: "credentials" in host.condition[1])
        assert "device.pem" in host.condition[1]
