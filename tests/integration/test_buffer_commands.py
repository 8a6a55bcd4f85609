"""`skerry buffer` beside a buffer at work: it sees what is there, and a refused event is sent again."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import needs
from bus_process import ModuleProcess, given
from events import submission
from skerry.broker import BrokerProcess
from skerry.channels import ACCEPTED, EVENTS, OUTBOUND, RECEIPTS
from skerry.messages import Accepted, Event, Outbound, Receipt, Refusal
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.testing import eventually

pytestmark = [needs.mosquitto, pytest.mark.timeout(120)]


class FarEnd:
    """Confirms everything but what it refuses, as an uplink would; nothing while it is away."""

    def __init__(self, bus: MqttBus) -> None:
        self._bus = bus
        self.away = False
        self.refuses: set[str] = set()
        self.got: list[Event] = []
        self._refused: dict[str, dict[int, str]] = {}
        bus.subscribe(OUTBOUND, self._on_batch)

    def _on_batch(self, batch: Outbound) -> None:
        if self.away:
            return
        refused = self._refused.setdefault(batch.store, {})
        for offset, raw in enumerate(batch.events, batch.first):
            event = msgspec.json.decode(raw, type=Event)
            if event.id in self.refuses:
                refused[offset] = "no such device"
            elif event.id not in {e.id for e in self.got}:
                self.got.append(event)
        said = tuple(Refusal(offset, why) for offset, why in refused.items() if offset > batch.base)
        self._bus.publish(RECEIPTS, Receipt(store=batch.store, upto=batch.last, refused=said), "uplink")


class World:
    """A broker, a buffer process and a far end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = BrokerProcess(folder / "broker", kind="mosquitto")
        self.broker.start()
        self.bus = MqttBus(BusSettings(port=self.broker.port), "plant", "outside")
        self.far = FarEnd(self.bus)
        self.accepted = 0
        self.bus.subscribe(ACCEPTED, self._on_accepted, "decision")
        self.bus.connect()
        settings = given("buffer", folder, self.broker.port, "plant", resend_s=0.3)
        self.buffer = ModuleProcess("buffer", settings, folder / "buffer.log")
        self.buffer.start()

    def _on_accepted(self, message: Accepted) -> None:
        self.accepted = max(self.accepted, message.seq)

    def submit(self, first: int, last: int) -> None:
        def accepted() -> bool:
            self.bus.publish(EVENTS, submission(first, last), "decision")
            return self.accepted >= last

        eventually(accepted, within_s=20)

    def close(self) -> None:
        self.buffer.stop()
        self.bus.close()
        self.broker.stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.close()


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "skerry", "buffer", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def status(world: World) -> Any:
    done = command("status", "--json", world.folder / "buffer")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_live_buffer_is_seen_and_exported_while_the_far_end_is_away(world: World) -> None:
    world.far.away = True
    world.submit(1, 100)
    found = status(world)
    assert world.buffer.child is not None
    assert (found["open_by"], found["closed"]) == (world.buffer.child.pid, False)
    assert "skerry.buffer" in found["command"]
    assert (found["accepted"], found["waiting"], found["delivered"]) == (100, 100, 0)
    assert 0 <= found["lanes"]["event"]["oldest_age_s"] < 60
    path = world.folder / "x.jsonl"
    assert command("export", "--out", path, world.folder / "buffer").returncode == 0
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == list(range(1, 101))
    world.far.away = False
    eventually(lambda: len(world.far.got) == 100, within_s=30)
    eventually(lambda: status(world)["waiting"] == 0, within_s=20)
    assert world.buffer.alive


def test_a_refused_event_is_listed_and_sent_again_by_a_live_buffer(world: World) -> None:
    world.far.refuses = {"e1-2", "e1-4"}
    world.submit(1, 5)
    eventually(lambda: status(world)["quarantined"] == 2, within_s=30)
    assert status(world)["evicted"] == {"quarantined": 2}
    listed = [
        json.loads(line)
        for line in command("quarantine", "--json", world.folder / "buffer").stdout.splitlines()
    ]
    assert [(entry["id"], entry["reason"]) for entry in listed] == [
        ("e1-2", "no such device"), ("e1-4", "no such device")
    ]  # fmt: skip
    done = command("retry", "--wait", "20", world.folder / "buffer", "e1-2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("e1-2: sent again as ")
    again = done.stdout.split()[-1]
    eventually(lambda: any(e.id == again and e.retryof == "e1-2" for e in world.far.got), within_s=20)
    assert status(world)["quarantined"] == 1
    wrong = command("retry", world.folder / "buffer", "e1-2")
    assert (wrong.returncode, wrong.stderr) == (78, f"e1-2: was sent again as {again}\n")


def test_a_wish_left_with_a_stopped_buffer_is_done_when_it_starts(world: World) -> None:
    world.far.refuses = {"e1-3"}
    world.submit(1, 5)
    eventually(lambda: status(world)["quarantined"] == 1, within_s=30)
    assert world.buffer.stop() == 0
    found = status(world)
    assert (found["open_by"], found["closed"]) == (None, True)
    done = command("retry", "--all", world.folder / "buffer")
    assert "it is done when one starts" in done.stdout
    world.buffer.start()
    eventually(lambda: any(e.retryof == "e1-3" for e in world.far.got), within_s=30)
    found = status(world)
    assert (found["quarantined"], found["retries_pending"]) == (0, 0)
