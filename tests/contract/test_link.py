"""What every link does: a file, an MQTT broker (paho-mqtt 1.6.1 and 2.x), and one in memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import paho.mqtt
import pytest

import needs
from events import event, events
from oracle import Oracle
from skerry.broker import BrokerProcess
from skerry.channels import Channel
from skerry.errors import LinkDown
from skerry.messages import Event
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.links import Link
from skerry.uplink.links.file import FileLink
from skerry.uplink.links.memory import MemoryLink
from skerry.uplink.links.mqtt import MqttLink

FAR = Channel(
    name="far", address="skerry/{site}/far/{lane}", payload=Event, qos=1, retain=False, doc="Of tests only.",
    max_bytes=1 << 20,
)  # fmt: skip
WANTED_PAHO = os.environ.get("SKERRY_TEST_PAHO")


class World(Protocol):
    """A far end, links to it, and what can happen to them."""

    repeats: bool
    """Whether the far end shows what came twice."""

    def link(self) -> Link: ...

    def arrived(self) -> list[Event]: ...

    def cut(self) -> None:
        """Take the far end away."""

    def restore(self) -> None: ...


class MemoryWorld:
    repeats = True

    def __init__(self) -> None:
        self._link = MemoryLink()

    def link(self) -> Link:
        return self._link

    def arrived(self) -> list[Event]:
        return self._link.arrived

    def cut(self) -> None:
        self._link.down = True

    def restore(self) -> None:
        self._link.down = False


class FileWorld:
    repeats = False

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._path = folder / "far" / "events.jsonl"
        self._patch = patch

    def link(self) -> Link:
        return FileLink(self._path)

    def arrived(self) -> list[Event]:
        return [msgspec.json.decode(line, type=Event) for line in self._path.read_bytes().splitlines()]

    def cut(self) -> None:
        def fail(_file: int) -> None:
            raise OSError(5, "Input/output error")

        self._patch.setattr("os.fdatasync", fail)

    def restore(self) -> None:
        self._patch.undo()


class MqttWorld:
    repeats = True

    def __init__(self, broker: BrokerProcess) -> None:
        self._broker = broker
        self._got: list[Event] = []
        self._bus = MqttBus(BusSettings(port=broker.port), "here", "far-end")
        self._bus.subscribe(FAR, self._got.append)
        self._bus.connect()
        eventually(lambda: self._bus.connected)

    def link(self) -> Link:
        settings = given.MqttLink(host="127.0.0.1", port=self._broker.port, timeout_s=2.0)
        return MqttLink(settings, "here", "link", threading.Event())

    def arrived(self) -> list[Event]:
        return self._got

    def cut(self) -> None:
        os.kill(self._broker.pid, signal.SIGKILL)
        eventually(lambda: self._broker.poll() is not None and not self._bus.connected)

    def restore(self) -> None:
        self._broker.start()
        eventually(lambda: self._bus.connected)

    def close(self) -> None:
        self._bus.close()


@pytest.fixture(params=["memory", "file", pytest.param("mqtt", marks=needs.mosquitto)])
def world(request, tmp_path, monkeypatch) -> Iterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
    elif request.param == "file":
        yield FileWorld(tmp_path, monkeypatch)
    else:
        with BrokerProcess(tmp_path / "broker", kind="mosquitto") as broker:
            far = MqttWorld(broker)
            yield far
            far.close()


@pytest.fixture
def link(world) -> Iterator[Link]:
    link = world.link()
    link.open()
    yield link
    link.close()


def test_the_wanted_client_is_under_test() -> None:
    assert paho.mqtt.__version__.startswith(WANTED_PAHO or "2.")


def test_what_was_sent_is_there_in_order(world, link) -> None:
    oracle = Oracle()
    oracle.send(events(1, 250))
    for first in range(1, 250, 50):
        link.send(events(first, first + 49))
    eventually(lambda: len(world.arrived()) == 250)
    oracle.check_complete(world.arrived(), {("/skerry/test/decision", "e1"): 250}, repeats=False)


def test_content_is_unchanged(world, link) -> None:
    odd = msgspec.structs.replace(
        event(1),
        subject='Tür/ü\u2028\n"',
        data={"deep": [{"a": [1, 2.5, None, True]}], "text": "\u0000\\n" * 50},
    )
    link.send([odd, event(2, size=100_000)])
    eventually(lambda: len(world.arrived()) == 2)
    assert list(world.arrived()) == [odd, event(2, size=100_000)]


def test_repeats_can_be_told(world, link) -> None:
    oracle = Oracle()
    oracle.send(events(1, 30))
    link.send(events(1, 20))
    link.send(events(11, 30))
    eventually(lambda: world.arrived()[-1].seq == 30)
    assert len(oracle.check_far_end(world.arrived(), repeats=world.repeats)) == 30


def test_epochs_and_sources_are_apart(world, link) -> None:
    link.send([*events(1, 2), *events(1, 2, epoch="e2"), *events(1, 2, source="/b")])
    eventually(lambda: len(world.arrived()) == 6)


def test_sending_before_opening_or_after_closing_is_refused(world) -> None:
    link = world.link()
    with pytest.raises(LinkDown):
        link.send(events(1, 1))
    link.open()
    link.close()
    with pytest.raises(LinkDown):
        link.send(events(1, 1))


def test_a_far_end_that_is_away_is_said_to_be(world) -> None:
    link = world.link()
    world.cut()
    with pytest.raises(LinkDown):
        link.open()
    world.restore()
    link.open()
    link.send(events(1, 1))
    eventually(lambda: world.arrived())
    link.close()


def test_a_far_end_that_goes_away_costs_nothing(world, link) -> None:
    oracle = Oracle()
    oracle.send(events(1, 30))
    link.send(events(1, 10))
    eventually(lambda: len(world.arrived()) == 10)
    world.cut()
    with pytest.raises(LinkDown):
        link.send(events(11, 20))
    link.close()
    world.restore()
    link.open()
    link.send(events(11, 20))
    link.send(events(21, 30))
    eventually(lambda: world.arrived()[-1].seq == 30)
    assert len(oracle.check_far_end(world.arrived(), repeats=world.repeats)) == 30


def test_a_link_made_anew_goes_on(world) -> None:
    """As after a kill: nothing is left of the first one."""
    oracle = Oracle()
    oracle.send(events(1, 30))
    for first in (1, 6, 16):
        link = world.link()
        link.open()
        link.send(events(first, first + 14))
        link.close()
    eventually(lambda: world.arrived()[-1].seq == 30)
    assert len(oracle.check_far_end(world.arrived(), repeats=world.repeats)) == 30


def test_closing_is_quick_harmless_and_may_be_repeated(world) -> None:
    link = world.link()
    link.close()
    link.open()
    began = time.monotonic()
    link.close()
    link.close()
    assert time.monotonic() - began < 5
    link.open()
    link.open()
    link.send(events(1, 1))
    link.close()


@pytest.mark.skipif(WANTED_PAHO is not None, reason="this is that run")
@needs.mosquitto
@needs.paho1
def test_everything_above_holds_on_paho_1_6_1() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-q", "-k", "mqtt or client", "-p", "no:cacheprovider"],
        env={**os.environ, "PYTHONPATH": str(needs.PAHO1), "SKERRY_TEST_PAHO": "1.6.1"},
        cwd=needs.ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
