"""The whole uplink with an HTTP far end: refusals, waits that are asked for, rotation, stopping."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events import event, events
from http_far_end import HttpFarEnd, Say
from oracle import Oracle
from records import outbound
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import OUTBOUND, RECEIPTS
from skerry.messages import Receipt
from skerry.service import Host
from skerry.settings import parse
from skerry.testing import eventually, running
from skerry.uplink.module import run
from skerry.uplink.settings import UplinkSettings


class World:
    """A buffer, an uplink and an HTTP far end."""

    def __init__(self, folder: Path, far: HttpFarEnd) -> None:
        broker = MemoryBroker()
        self.far = far
        self.outside, self.inside = MemoryBus(broker), MemoryBus(broker)
        self.folder = folder
        self.receipts: list[Receipt] = []
        self.outside.subscribe(RECEIPTS, self.receipts.append)

    @contextlib.contextmanager
    def up(self, *, grace_s: float = 4.0, **link: Any) -> Iterator[Host]:
        """The uplink runs."""
        url = f"http://127.0.0.1:{self.far.port}/in"
        given = {
            "site": "test", "module": "uplink", "state": str(self.folder), "grace_s": grace_s,
            "backoff": {"first_s": 0.01, "last_s": 0.05},
            "link": {"kind": "http", "url": url, "format": "batch", **link},
        }  # fmt: skip
        with running(run, parse(UplinkSettings, given, "test"), self.inside, "uplink") as host:
            eventually(lambda: host.condition[0] in ("ready", "degraded"))
            yield host

    def send(self, first: int, last: int) -> None:
        self.outside.publish(OUTBOUND, outbound(first, list(events(first, last))), "uplink")

    @property
    def upto(self) -> int:
        return max((r.upto for r in self.receipts), default=0)

    @property
    def refused(self) -> dict[int, str]:
        return {r.offset: r.reason for receipt in self.receipts for r in receipt.refused}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with HttpFarEnd() as far:
        yield World(tmp_path, far)


def check(world: World, last: int, *, without: tuple[int, ...] = ()) -> None:
    """Everything is there, first in its turn."""
    seqs = list(dict.fromkeys(e.seq for e in world.far.arrived))
    assert seqs == [n for n in range(1, last + 1) if n not in without]
    assert {e.seq: e for e in world.far.arrived} == {n: event(n) for n in seqs}


@pytest.mark.parametrize("form", ["event", "batch"])
def test_what_is_refused_keeps_nobody_waiting(world: World, form: str) -> None:
    world.far.refuse = lambda e: 422 if e.seq in (4, 17) else 0
    with world.up(format=form) as host:
        for first in (1, 11, 21):
            world.send(first, first + 9)
        eventually(lambda: world.upto == 30)
        assert host.condition[0] == "degraded"
    assert set(world.refused) == {4, 17}
    assert all("refused with 422: not such a one" in reason for reason in world.refused.values())
    check(world, 30, without=(4, 17))


def test_a_batch_that_is_too_large_for_the_far_end_is_sent_one_by_one(world: World) -> None:
    world.far.most_bytes = 1000
    with world.up():
        world.send(1, 20)
        eventually(lambda: world.upto == 20)
    assert world.refused == {}
    check(world, 20)


def test_credentials_that_ran_out_put_nothing_into_quarantine(world: World, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one")
    world.far.token = "one"
    with world.up(token_file=str(token)) as host:
        world.send(1, 10)
        eventually(lambda: world.upto == 10)
        world.far.token = "two"
        world.send(11, 20)
        eventually(lambda: "the credentials are refused with 401" in host.condition[1])
        assert world.upto == 10
        token.with_name("new").write_text("two")
        token.with_name("new").replace(token)
        eventually(lambda: world.upto == 20)
        eventually(lambda: host.condition == ("ready", ""))
    assert world.refused == {}
    check(world, 20)


def test_a_far_end_that_asks_for_patience_is_left_alone(world: World) -> None:
    world.far.said.append(Say(429, (("Retry-After", "1"),)))
    with world.up() as host:
        began = time.monotonic()
        world.send(1, 10)
        eventually(lambda: "asks to be left alone for 1 s" in host.condition[1])
        assert len(world.far.seen) == 1
        eventually(lambda: world.upto == 10)
        assert time.monotonic() - began >= 1
    assert len(world.far.seen) == 2
    check(world, 10)


def test_stopping_does_not_wait_for_a_frozen_far_end_nor_for_the_time_it_asked_for(world: World) -> None:
    world.far.said.append(Say(503, (("Retry-After", "200"),)))
    with world.up(grace_s=0.5) as host:
        world.send(1, 10)
        eventually(lambda: "for 200 s" in host.condition[1])
    world.far.frozen.set()
    with world.up(grace_s=0.5, timeout_s=300):
        world.send(1, 10)
        eventually(lambda: len(world.far.seen) == 2)
    world.far.frozen.clear()
    with world.up():
        world.send(1, 10)
        eventually(lambda: world.upto == 10)
    check(world, 10)


def test_outages_of_every_kind_lose_nothing(world: World) -> None:
    oracle = Oracle()
    oracle.send(events(1, 300))
    far = world.far
    with world.up(timeout_s=1.0, compression="zstd"):
        for n, first in enumerate(range(1, 301, 10)):
            match n % 6:
                case 0:
                    far.said.append(Say(503))
                case 1:
                    far.said.append(Say(0, take=True))
                case 2:
                    far.said.append(Say(200, body=b"x", take=True, torn=True))
                case 3:
                    far.hang_up()
                case 4:
                    far.reset += 1
                case 5:
                    far.stop()
                    far.start()
            world.send(first, first + 9)
            eventually(lambda: world.upto == first + 9)  # noqa: B023 - called at once
    assert len(oracle.check_far_end(far.arrived, repeats=True)) == 300
    assert world.refused == {}
