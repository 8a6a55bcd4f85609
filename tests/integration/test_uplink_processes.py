"""Buffer and uplink as processes on Mosquitto, killed at random moments under load.

What was accepted is at the far end, unchanged, in order; in a file exactly once, at a broker at least
once, and exactly once for who drops repeats (`skerry.receiver`).
"""

import json
import os
import random
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import needs
from bus_process import ModuleProcess, given
from oracle import Oracle, check_ledger
from producer import Producer
from skerry.broker import BrokerProcess
from skerry.channels import METRICS, STATUS, Channel
from skerry.ledger import read_tally
from skerry.messages import Event, Metrics, Status
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.testing import eventually

pytestmark = [needs.mosquitto, pytest.mark.timeout(180)]

FAR = Channel(
    name="far", address="skerry/{site}/far/{lane}", payload=Event, qos=1, retain=False, doc="Of tests only."
)
QUICK = {"backoff": {"first_s": 0.05, "last_s": 0.2}}


class Suite:
    """A broker, a buffer, an uplink and a producer."""

    def __init__(self, folder: Path, link: dict[str, object]) -> None:
        self.folder = folder
        self.broker = BrokerProcess(folder / "broker", kind="mosquitto")
        self.broker.start()
        port = self.broker.port
        self.oracle = Oracle()
        self.bus = MqttBus(BusSettings(port=port), "t", "producer")
        self.metrics: dict[str, Metrics] = {}
        self.status: dict[str, Status] = {}
        self.bus.subscribe(METRICS, lambda m: self.metrics.update({m.module: m}))
        self.bus.subscribe(STATUS, lambda s: self.status.update({s.module: s}))
        self.bus.connect()
        self.producer = Producer(self.bus, self.oracle)
        buffer = given("buffer", folder, port, "t", resend_s=0.5)
        uplink = given("uplink", folder, port, "t", link=link, **QUICK)
        self.modules = {
            "buffer": ModuleProcess("buffer", buffer, folder / "buffer.log"),
            "uplink": ModuleProcess("uplink", uplink, folder / "uplink.log"),
        }
        for module in self.modules.values():
            module.start()

    def close(self) -> None:
        self.producer.stop()
        for module in self.modules.values():
            module.stop()
        self.bus.close()
        self.broker.stop()

    def tally(self, kind: str = "buffer") -> dict[str, int]:
        return read_tally(self.folder / kind / "tally")

    def balance(self) -> None:
        tally = self.tally()
        evicted = {k: v for k, v in tally.items() if k.startswith("evicted/")}
        check_ledger(tally["accepted"], tally["delivered"], tally["waiting"], evicted)


@pytest.fixture
def far_file(tmp_path: Path) -> Iterator[tuple[Suite, Path]]:
    path = tmp_path / "far" / "events.jsonl"
    suite = Suite(tmp_path, {"kind": "file", "path": str(path)})
    yield suite, path
    suite.close()


def arrived(path: Path) -> list[Event]:
    return [msgspec.json.decode(line, type=Event) for line in path.read_bytes().splitlines()]


def test_killed_ten_times_everything_accepted_is_in_the_file_exactly_once(
    far_file: tuple[Suite, Path],
) -> None:
    suite, path = far_file
    draw = random.Random(1)
    for n in range(10):
        suite.producer.make(400)
        time.sleep(draw.uniform(0.1, 0.6))  # the moment of the kill is what is random here
        victim = ("buffer", "uplink", "buffer", "uplink", "broker")[n % 5]
        if victim == "broker":
            os.kill(suite.broker.pid, signal.SIGKILL)
            eventually(lambda: suite.broker.poll() is not None)
            suite.broker.start()
        else:
            suite.modules[victim].kill()
            suite.modules[victim].start()
    suite.producer.make(100)
    eventually(lambda: suite.producer.accepted == suite.producer.made == 4100, 60)
    eventually(lambda: suite.tally()["waiting"] == 0, 60)
    suite.oracle.check_complete(arrived(path), suite.producer.marks, repeats=False)
    assert suite.tally()["accepted"] == suite.tally()["delivered"] == 4100
    suite.balance()


def test_stopping_drains_and_exits_with_zero(far_file: tuple[Suite, Path]) -> None:
    suite, path = far_file
    suite.producer.make(500)
    eventually(lambda: suite.producer.accepted == 500, 30)
    assert suite.modules["buffer"].stop() == 0
    assert suite.modules["uplink"].stop() == 0
    suite.oracle.check_complete(arrived(path), suite.producer.marks, repeats=False)
    assert suite.tally()["waiting"] == 0
    suite.balance()


def test_an_uplink_away_for_long_loses_nothing(far_file: tuple[Suite, Path]) -> None:
    suite, path = far_file
    suite.modules["uplink"].kill()
    for _ in range(20):
        suite.producer.make(200)
    eventually(lambda: suite.producer.accepted == 4000, 60)
    suite.modules["buffer"].kill()
    suite.modules["buffer"].start()
    suite.modules["uplink"].start()
    eventually(lambda: path.exists() and len(path.read_bytes().splitlines()) == 4000, 60)
    suite.oracle.check_complete(arrived(path), suite.producer.marks, repeats=False)


def test_memory_stays_within_its_budget_under_load(far_file: tuple[Suite, Path]) -> None:
    suite, _ = far_file
    suite.modules["uplink"].kill()
    for _ in range(20):
        suite.producer.make(500)
    eventually(lambda: suite.producer.accepted == 10_000, 60)
    suite.modules["uplink"].start()
    eventually(lambda: suite.tally()["waiting"] == 0, 60)
    eventually(lambda: {"buffer", "uplink"} <= set(suite.metrics))
    for kind in ("buffer", "uplink"):
        suite.metrics.clear()
        eventually(lambda k=kind: k in suite.metrics)
        assert suite.metrics[kind].rss_mb <= 40, f"{kind}: {suite.metrics[kind].rss_mb} MB"


def test_a_second_buffer_on_the_same_folder_ends_with_a_clear_error(far_file: tuple[Suite, Path]) -> None:
    suite, _ = far_file
    eventually(lambda: suite.status.get("buffer") and suite.status["buffer"].state == "ready", 30)
    settings = {**suite.modules["buffer"].settings, "module": "buffer-2"}
    second = ModuleProcess("buffer", settings, suite.folder / "second.log")
    second.start()
    assert second.child is not None
    assert second.child.wait(20) == 69
    assert "the store is open in another process" in (suite.folder / "second.log").read_text()


def test_wrong_settings_end_with_every_error_and_78(tmp_path: Path) -> None:
    settings = given("uplink", tmp_path, 1, "t", link={"kind": "mqtt", "port": 0}, bakoff={})
    module = ModuleProcess("uplink", settings, tmp_path / "log")
    module.start()
    assert module.child is not None
    assert module.child.wait(20) == 78
    text = (tmp_path / "log").read_text()
    assert "$.link.host: expected text, got nothing (add it)" in text
    assert "$.bakoff: unknown key (did you mean 'backoff'?)" in text


def test_a_broker_as_far_end_killed_again_and_again_gets_everything(tmp_path: Path) -> None:
    """A broker forgets what its subscriber had not read, so the far end here listens all the time."""
    with BrokerProcess(tmp_path / "far", kind="mosquitto") as far:
        got: list[Event] = []
        listener = MqttBus(BusSettings(port=far.port), "t", "listener")
        listener.subscribe(FAR, got.append)
        listener.connect()
        eventually(lambda: listener.connected)
        suite = Suite(tmp_path, {"kind": "mqtt", "host": "127.0.0.1", "port": far.port, "timeout_s": 3})
        try:
            for n in range(6):
                suite.producer.make(100)
                time.sleep(0.3)
                if n % 2:
                    suite.modules["uplink"].kill()
                    suite.modules["uplink"].start()
                else:
                    os.kill(far.pid, signal.SIGSTOP)
                    time.sleep(0.3)
                    os.kill(far.pid, signal.SIGCONT)
            eventually(lambda: suite.producer.accepted == 600, 60)
            eventually(lambda: suite.tally()["waiting"] == 0, 60)
            eventually(lambda: len({e.seq for e in got}) == 600, 30)
            suite.oracle.check_complete(got, suite.producer.marks, repeats=True)
            suite.balance()
        finally:
            suite.close()
            listener.close()


def test_a_frozen_far_end_is_noticed_and_stopping_is_prompt(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "far", kind="mosquitto") as far:
        suite = Suite(tmp_path, {"kind": "mqtt", "host": "127.0.0.1", "port": far.port, "timeout_s": 1})
        try:
            suite.producer.make(10)
            eventually(lambda: suite.tally().get("delivered") == 10, 30)
            os.kill(far.pid, signal.SIGSTOP)
            suite.producer.make(10)
            eventually(lambda: suite.status["uplink"].state == "degraded", 30)
            assert "did not c" in suite.status["uplink"].reason  # confirm, or connect
            began = time.monotonic()
            assert suite.modules["uplink"].stop() == 0
            assert time.monotonic() - began < 6
            assert suite.tally()["delivered"] == 10
        finally:
            os.kill(far.pid, signal.SIGCONT)
            suite.close()


def test_metrics_and_health_are_served(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "broker", kind="mosquitto") as broker:
        settings = given("buffer", tmp_path, broker.port, "t", http_port=0)
        module = ModuleProcess("buffer", settings, tmp_path / "log")
        module.start()
        try:

            def listening() -> int:
                for line in (tmp_path / "log").read_text().splitlines():
                    entry = json.loads(line)
                    if entry["event"] == "http.listening":
                        return int(entry["port"])
                return 0

            eventually(listening, 20)
            url = f"http://127.0.0.1:{listening()}"

            def scraped() -> str:
                return urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()

            for name in ("accepted_total", "delivered_total"):
                eventually(lambda n=name: f'skerry_events_{n}{{module="buffer"}} 0.0' in scraped())
                eventually(lambda: 'skerry_events_waiting{lane="alarm",module="buffer"} 0.0' in scraped())
        finally:
            assert module.stop() == 0
