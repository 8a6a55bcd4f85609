"""Desired states and commands through the uplink: a platform, modules on a bus in memory, and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skerry.buffer.settings import BufferSettings
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import DESIRED, STATUS
from skerry.messages import Desired, Status
from skerry.remote import Remote
from skerry.service import Host
from skerry.settings import parse
from skerry.testing import eventually
from skerry.uplink.downlink import Downlink, Request
from skerry.uplink.links.memory import MemoryLink
from skerry.uplink.settings import UplinkSettings
from skerry.uplink.steering import Steering


class Desk:
    """Takes commands, and carries none out."""

    def __init__(self) -> None:
        self.taken: list[Request] = []
        self.closed = False

    def take(self, request: Request) -> None:
        self.taken.append(request)

    def step(self, now: float) -> None:
        del now

    def close(self) -> None:
        self.closed = True


class Buffer:
    """A buffer module as far as its settings go."""

    def __init__(self, folder: Path, broker: MemoryBroker) -> None:
        folder.mkdir(exist_ok=True)
        settings = parse(BufferSettings, {"site": "test", "module": "buffer", "state": str(folder)}, "test")
        self.host = Host(settings, "buffer", MemoryBus(broker))
        self.now = settings
        self.refuse = False
        self.remote: Remote = self.host.remote
        self.remote.start()

    def turn(self) -> None:
        self.remote.adjust(self._take)

    def _take(self, settings: BufferSettings) -> None:
        self.now = settings

    def close(self) -> None:
        self.remote.stop()
        self.host.tally.close()


class World:
    """A platform, an uplink's steering, and a buffer."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.broker = MemoryBroker()
        self.outside = MemoryBus(self.broker)
        self.link = MemoryLink(steered=True)
        self.downlink = Downlink()
        self.desk = Desk()
        self.audit: list[dict[str, Any]] = []
        self.desired: list[Desired] = []
        self.outside.subscribe(DESIRED, self.desired.append, "buffer")
        given = {
            "site": "test", "module": "uplink", "state": str(folder / "uplink"),
            "link": {"kind": "file", "path": "unused"},
        }  # fmt: skip
        self.settings = parse(UplinkSettings, {**given, **changes}, "test")
        self.buffer = Buffer(folder / "buffer", self.broker)
        self._start()

    def _start(self) -> None:
        self.host = Host(self.settings, "uplink", MemoryBus(self.broker))
        self.steering = Steering(
            self.settings, self.host.bus, self.host, link=self.link, downlink=self.downlink,
            commands=self.desk, audit=lambda **about: self.audit.append(about),
        )  # fmt: skip
        self.host.remote.start()
        self.steering.start()
        self.link.open()
        self.steering.link_is(True)

    def restart(self) -> None:
        self.stop()
        self.desired.clear()
        self._start()

    def stop(self) -> None:
        self.steering.stop()
        self.host.remote.stop()
        self.host.tally.close()

    def close(self) -> None:
        self.stop()
        self.buffer.close()

    def desire(self, version: int, modules: Any, source: str = "twin") -> None:
        self.downlink.propose(source, str(version), {"modules": modules})

    def told(self, *keys: str) -> Any:
        """What the last report says."""
        found: Any = self.link.reports[-1] if self.link.reports else {}
        for key in keys:
            found = found.get(key, {})
        return found

    def state(self, version: str, state: str) -> bool:
        self.buffer.turn()
        return bool(self.told("desired", "version") == version and self.told("desired", "state") == state)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("skerry.uplink.steering._REPORT_EVERY_S", 0.02)
    monkeypatch.setattr("skerry.uplink.steering._AGAIN_S", 0.1)
    monkeypatch.setattr("skerry.uplink.steering._SETTLED_S", 0.5)
    monkeypatch.setattr("skerry.uplink.steering._FILE_EVERY_S", 0.02)
    made = World(tmp_path)
    yield made
    made.close()


def test_a_desired_state_reaches_the_module_and_is_reported_back(world: World) -> None:
    world.desire(1, {"buffer": {"backlog_s": 42}})
    eventually(lambda: world.state("twin/1", "applied"))
    assert world.buffer.now.backlog_s == 42


def test_a_refused_one_never_reaches_a_module_and_says_why(world: World) -> None:
    world.desire(1, {"buffer": {"backlog_s": 42}})
    eventually(lambda: world.state("twin/1", "applied"))
    world.desire(2, {"buffer": {"backlog_s": -3}})
    eventually(lambda: world.state("twin/2", "refused"))
    assert world.told("desired", "errors") == ["modules.buffer.backlog_s: expected a number above 0, got -3"]
    assert world.told("desired", "counts") == "twin/1"
    assert world.buffer.now.backlog_s == 42
    assert {m.version for m in world.desired} == {"twin/1"}
    assert "desired: twin/2 refused" in world.host.condition[1]
    assert [(a["version"], a["state"]) for a in world.audit][-1] == ("twin/2", "refused")


def test_a_thousand_states_at_once_end_with_the_last(world: World) -> None:
    for version in range(1, 1001):
        world.desire(version, {"buffer": {"backlog_s": version}})
    eventually(lambda: world.state("twin/1000", "applied"))
    assert world.buffer.now.backlog_s == 1000
    assert len(world.desired) < 200


def test_what_counts_outlives_a_restart_with_nobody_there(world: World) -> None:
    world.desire(1, {"buffer": {"backlog_s": 42}})
    eventually(lambda: world.state("twin/1", "applied"))
    world.restart()
    eventually(lambda: world.desired)
    assert world.desired[-1].patch == {"backlog_s": 42}


def test_a_torn_memory_is_none(world: World) -> None:
    world.desire(1, {"buffer": {"backlog_s": 42}})
    eventually(lambda: world.state("twin/1", "applied"))
    world.stop()
    (world.folder / "uplink" / "site-desired.json").write_bytes(b'{"current": {"versi')
    world._start()
    world.desire(2, {"buffer": {"backlog_s": 43}})
    eventually(lambda: world.state("twin/2", "applied"))


def test_a_report_that_was_not_confirmed_is_told_again(world: World) -> None:
    world.link.deaf = True
    world.desire(1, {"buffer": {"backlog_s": 42}})
    eventually(lambda: world.host.telemetry.values().get("skerry_reports_failed_total", 0) > 0)
    world.link.deaf = False
    eventually(lambda: world.state("twin/1", "applied"))


def test_a_new_connection_is_told_everything_again(world: World) -> None:
    eventually(lambda: world.link.reports)
    world.steering.link_is(False)
    before = len(world.link.reports)
    world.steering.link_is(True)
    eventually(lambda: len(world.link.reports) > before)


def test_the_report_says_what_the_site_is_made_of(world: World) -> None:
    status = Status(module="capture", kind="capture", state="degraded", reason="gate: no camera", version="1")
    world.outside.publish(STATUS, status, "capture")
    eventually(lambda: world.told("modules", "capture"))
    assert world.told("modules", "capture") == {
        "kind": "capture", "state": "degraded", "version": "1", "reason": "gate: no camera",
    }  # fmt: skip
    eventually(lambda: world.told("device", "cores"))
    assert world.told("site") == "test"


def test_commands_are_handed_on(world: World) -> None:
    world.downlink.request("ping", b"", lambda *_: None)
    eventually(lambda: [r.name for r in world.desk.taken] == ["ping"])


def test_stopping_closes_the_commands(world: World) -> None:
    world.steering.stop()
    eventually(lambda: world.desk.closed)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path, world: World) -> None:
    file = tmp_path / "desired.json"
    world.stop()
    world.settings = msgspec.structs.replace(
        world.settings, remote=msgspec.structs.replace(world.settings.remote, desired="file", file=str(file))
    )
    world._start()
    for backlog in (3, 4):
        file.write_text(json.dumps({"version": backlog, "modules": {"buffer": {"backlog_s": backlog}}}))
        eventually(lambda backlog=backlog: world.state(f"file/{backlog}", "applied"))
        assert world.buffer.now.backlog_s == backlog
    world.desire(9, {"buffer": {"backlog_s": 9}})  # of the link: the file was chosen
    file.write_text("{")
    eventually(lambda: world.told("desired", "state") == "refused")
    assert 'file: $: expected a mapping, got "not JSON' in world.told("desired", "errors")[0]
    assert world.buffer.now.backlog_s == 4
    file.unlink()
    eventually(lambda: (world.buffer.turn(), world.buffer.now.backlog_s == 10.0)[1])  # as deployed


def test_where_nothing_may_be_desired_an_earlier_state_counts_no_more(world: World) -> None:
    world.desire(1, {"buffer": {"backlog_s": 42}})
    eventually(lambda: world.state("twin/1", "applied"))
    world.stop()
    remote = msgspec.structs.replace(world.settings.remote, desired="none")
    world.settings = msgspec.structs.replace(world.settings, remote=remote)
    world._start()
    world.desire(2, {"buffer": {"backlog_s": 43}})
    eventually(lambda: (world.buffer.turn(), world.buffer.now.backlog_s == 10.0)[1])
