"""What every bus does: in memory, over Mosquitto and over amqtt, on paho-mqtt 1.6.1 and 2.x."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import msgspec
import paho.mqtt
import paho.mqtt.client
import pytest
from structlog.testing import capture_logs

import needs
from mqtt_raw import Peer
from mqtt_raw import publish as publish_raw
from samples import SAMPLES, key_of, metrics
from skerry.broker import BrokerProcess
from skerry.bus import Bus, MemoryBroker, MemoryBus
from skerry.channels import ACCEPTED, CHANNELS, DETECTIONS, METRICS, STATUS, Channel
from skerry.messages import Accepted, Receipt, Status
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.testing import eventually

SETTLE = Channel(
    name="settle",
    address="skerry/{site}/settle/{key}",
    payload=Receipt,
    qos=1,
    retain=False,
    doc="Of tests only.",
)
TLS = str(needs.ROOT / "tests" / "integration" / "test_bus_tls.py")
WANTED_PAHO = os.environ.get("SKERRY_TEST_PAHO")
_sites = itertools.count(1)
manual_ack = pytest.mark.skipif(
    not hasattr(paho.mqtt.client.Client, "ack"), reason="paho-mqtt 1.6 acknowledges by itself, on arrival"
)


class World(Protocol):
    """A broker, the buses on it, and what can happen to them."""

    def bus(self, client: str) -> Bus: ...

    def raw(self, topic: str, payload: bytes, *, retain: bool = False) -> bool: ...

    def cut(self) -> None:
        """Take the broker away, as kill -9 does."""

    def restore(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.site = f"site-{next(_sites)}"
        self.broker = MemoryBroker()
        self.buses: list[MemoryBus] = []

    def bus(self, client: str) -> MemoryBus:
        self.buses.append(MemoryBus(self.broker, self.site))
        return self.buses[-1]

    def raw(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        self.broker.publish(topic, payload, retain)
        return True

    def cut(self) -> None:
        for bus in self.buses:
            bus.disconnect()

    def restore(self) -> None:
        for bus in self.buses:
            bus.reconnect()


class MqttWorld:
    def __init__(self, process: BrokerProcess) -> None:
        self.site = f"site-{next(_sites)}"
        self.process = process
        self.buses: list[MqttBus] = []

    def bus(self, client: str, **options: Any) -> MqttBus:
        bus = MqttBus(BusSettings(port=self.process.port), self.site, client, **options)
        self.buses.append(bus)
        bus.connect()
        eventually(lambda: bus.connected)
        return bus

    def raw(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        return publish_raw(self.process.port, topic.encode(), payload, retain=retain)

    def cut(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        eventually(lambda: not any(bus.connected for bus in self.buses))
        eventually(lambda: self.process.poll() is not None)

    def restore(self) -> None:
        self.process.start()
        eventually(lambda: all(bus.connected for bus in self.buses), 30)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses `world` over every bus, `mqtt` over every broker, `mosquitto` over that one."""
    mosquitto = pytest.param("mosquitto", marks=needs.mosquitto)
    if "process" in metafunc.fixturenames:
        kinds = ["memory", mosquitto, "amqtt"]
        if "mqtt" in metafunc.fixturenames:
            kinds.remove("memory")
        if "mosquitto" in metafunc.fixturenames:
            kinds.remove("amqtt")
        metafunc.parametrize("process", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
def process(request, tmp_path_factory) -> Iterator[BrokerProcess | None]:
    if request.param == "memory":
        yield None
        return
    with BrokerProcess(tmp_path_factory.mktemp("broker"), kind=request.param) as broker:
        yield broker


@pytest.fixture
def world(process) -> Iterator[Any]:
    if process is None:
        yield MemoryWorld()
        return
    if process.poll() is not None:
        process.start()  # the test before this one failed while the broker was down
    world = MqttWorld(process)
    yield world
    for bus in world.buses:
        bus.close()


@pytest.fixture
def mqtt(world) -> MqttWorld:
    return world


@pytest.fixture
def mosquitto(mqtt) -> MqttWorld:
    """For what amqtt does not do: it never hangs up on the older of two clients of one name."""
    return mqtt


def settle(bus: Bus) -> Bus:
    """Wait until the broker has seen every subscription of this bus: others publish on other connections."""
    heard: list[Any] = []
    key = f"round-{next(_sites)}"
    bus.subscribe(SETTLE, heard.append, key)

    def arrived() -> bool:
        bus.publish(SETTLE, SAMPLES["receipts"], key)
        return bool(heard)

    eventually(arrived)
    return bus


def reader(world: Any, channel: Channel[Any], handler: Any) -> Bus:
    bus = world.bus("reader")
    bus.subscribe(channel, handler)
    return settle(bus)


def topic(world: Any, channel: Channel[Any], key: str = "one") -> str:
    return channel.topic(world.site, key)


def test_the_paho_under_test_is_the_one_that_was_asked_for():
    if WANTED_PAHO is not None:
        assert paho.mqtt.__version__ == WANTED_PAHO
    else:
        assert paho.mqtt.__version__.startswith("2.")


# What is delivered


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: c.name)
def test_message_arrives_as_it_was_sent(world, channel):
    got: list[Any] = []
    reader(world, channel, got.append)
    assert world.bus("writer").publish(channel, SAMPLES[channel.name], key_of(channel))
    eventually(lambda: got)
    assert got == [SAMPLES[channel.name]]


def test_messages_of_a_topic_arrive_in_order(world):
    got: list[float] = []
    reader(world, METRICS, lambda m: got.append(m.uptime_s))
    writer = world.bus("writer")
    for n in range(500):
        assert writer.publish(METRICS, metrics(n), "one")
    eventually(lambda: len(got) == 500)
    assert got == list(range(500))


def test_two_writers_at_once_keep_their_own_order(world):
    got: dict[str, list[float]] = {"a": [], "b": []}
    reader(world, METRICS, lambda m: got[m.module].append(m.uptime_s))
    writer = world.bus("writer")

    def write(name: str) -> None:
        for n in range(200):
            assert writer.publish(METRICS, metrics(n, name), name)

    threads = [threading.Thread(target=write, args=(name,)) for name in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: all(len(numbers) == 200 for numbers in got.values()))
    assert got == {"a": list(range(200)), "b": list(range(200))}


def test_subscription_to_a_key_gets_only_that_key(world):
    got: list[str] = []
    bus = world.bus("reader")
    bus.subscribe(METRICS, lambda m: got.append(m.module), "gate")
    for key in ("hall", "gate", "gatee", "gate"):
        bus.publish(METRICS, metrics(0, key), key)
    bus.publish(METRICS, metrics(0, "end"), "gate")
    eventually(lambda: "end" in got)
    assert got == ["gate", "gate", "end"]


def test_every_handler_of_a_channel_gets_every_message(world):
    first: list[float] = []
    second: list[float] = []
    bus = world.bus("reader")
    bus.subscribe(METRICS, lambda m: first.append(m.uptime_s))
    bus.subscribe(METRICS, lambda m: second.append(m.uptime_s))
    for n in range(3):
        bus.publish(METRICS, metrics(n), "one")
    eventually(lambda: first == second == [0, 1, 2])


def test_another_site_hears_nothing(world):
    got: list[Any] = []
    bus = reader(world, METRICS, got.append)
    world.raw(METRICS.topic(f"{world.site}-not", "one"), msgspec.json.encode(metrics(1)))
    bus.publish(METRICS, metrics(2), "one")
    eventually(lambda: got)
    assert [m.uptime_s for m in got] == [2]


def test_retained_message_reaches_one_who_subscribes_later(world):
    writer = world.bus("writer")
    for seq in (1, 2):
        writer.publish(
            channel_named("accepted"), Accepted(producer="decision", epoch="e", seq=seq), "decision"
        )
    world.raw(f"skerry/{world.site}/unrelated", b"x")  # QoS 1: what was sent before has been handled
    got: list[Accepted] = []
    world.bus("late").subscribe(channel_named("accepted"), got.append)
    eventually(lambda: got)
    assert [a.seq for a in got] == [2]


def test_message_that_is_not_retained_is_not_kept(world):
    writer = world.bus("writer")
    writer.publish(METRICS, metrics(1), "one")
    writer.publish(STATUS, SAMPLES["status"], "one")
    late: list[Any] = []
    bus = world.bus("late")
    bus.subscribe(METRICS, late.append)
    bus.subscribe(STATUS, late.append)
    eventually(lambda: late)
    assert late == [SAMPLES["status"]]


# What is refused


def bad_payloads(channel: Channel[Any]) -> dict[str, bytes]:
    good = json.loads(msgspec.json.encode(SAMPLES[channel.name]))
    field = next(name for name in good if name not in ("schema", "reason"))
    return {
        "empty": b"",
        "cut short": msgspec.json.encode(SAMPLES[channel.name])[:-1],
        "not JSON": b"\xff\xfe\x00",
        "null": b"null",
        "a list": b"[]",
        "an empty object": b"{}",
        "another type": json.dumps({**good, field: {"surprise": []}}).encode(),
        "an older schema number": json.dumps({**good, "schema": 0, "specversion": "0"}).encode(),
        "deep": b"[" * 100_000,
        "deep in a field": json.dumps(good)[:-1].encode() + b',"data":' + b"[" * 50_000 + b"}",
        "not a number": json.dumps({**good, field: float("nan")}).encode(),
        "lone surrogate": json.dumps({**good, field: "\ud800"}).encode().replace(b"\\ud800", b"\xed\xa0\x80"),
        "huge": b'{"x":"' + b"a" * channel.max_bytes + b'"}',
    }


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: c.name)
def test_bad_payload_is_counted_logged_with_its_topic_and_dropped(world, channel):
    got: list[Any] = []
    bus = reader(world, channel, got.append)
    bad = bad_payloads(channel)
    with capture_logs() as logs:
        for payload in bad.values():
            assert world.raw(topic(world, channel), payload)
        eventually(lambda: sum(bus.rejected.values()) == len(bad))
    assert bus.rejected == {"malformed": len(bad) - 1, "oversized": 1}
    rejections = [entry for entry in logs if entry["event"] == "bus.rejected"]
    assert [entry["topic"] for entry in rejections] == [topic(world, channel)] * len(bad)
    assert all(len(str(entry)) < 2000 for entry in rejections)
    assert bus.publish(channel, SAMPLES[channel.name], "one")
    eventually(lambda: got)
    assert got == [SAMPLES[channel.name]]


def test_unknown_fields_are_ignored(world):
    got: list[Any] = []
    reader(world, METRICS, got.append)
    message = {**json.loads(msgspec.json.encode(metrics(1))), "from": "the future", "schema": 2}
    world.raw(topic(world, METRICS), json.dumps(message).encode())
    eventually(lambda: got)
    assert got[0].schema == 2


@pytest.mark.parametrize(
    "ending", ["", "one/two", "/", "$SYS", "ü 雪 \U0001f426", "x" * 60_000, "-", "a\tb", "..", "%2e", "{0}"]
)
def test_hostile_topic_does_no_harm(world, ending):
    got: list[Any] = []
    bus = reader(world, METRICS, got.append)
    world.raw(f"skerry/{world.site}/metrics/{ending}", b"{")
    world.raw(f"skerry/{world.site}/metrics", b"{")
    world.raw("skerry", b"{")
    bus.publish(METRICS, metrics(5), "one")
    eventually(lambda: got)
    assert got == [metrics(5)]


def test_message_larger_than_its_channel_is_not_sent(world):
    bus = world.bus("writer")
    huge = SAMPLES["status"]
    huge = msgspec.structs.replace(huge, reason="x" * STATUS.max_bytes)
    with capture_logs() as logs:
        assert bus.publish(STATUS, huge, "one") is False
    assert bus.rejected == {"oversized": 1}
    assert logs[0]["topic"] == topic(world, STATUS)


def test_wrong_type_is_a_type_error(world):
    with pytest.raises(TypeError, match="metrics: expected Metrics, got Status"):
        world.bus("writer").publish(METRICS, SAMPLES["status"], "one")


def test_handler_that_raises_is_counted_logged_and_called_again(world):
    got: list[float] = []
    bus = world.bus("reader")

    def handler(message: Any) -> None:
        got.append(message.uptime_s)
        raise RuntimeError("no")

    bus.subscribe(METRICS, handler)
    with capture_logs() as logs:
        for n in range(3):
            bus.publish(METRICS, metrics(n), "one")
        eventually(lambda: bus.rejected["handler_failed"] == 3)
    assert got == [0, 1, 2]
    assert {(e["event"], e["topic"]) for e in logs if e["log_level"] == "error"} == {
        ("bus.handler_failed", topic(world, METRICS))
    }


# What is settled by its handler


class Unsettled:
    """A handler that settles nothing; the test does."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.dones: list[Callable[[], None]] = []

    def __call__(self, message: Any, done: Callable[[], None]) -> None:
        self.got.append(message.seq)
        self.dones.append(done)

    def settle(self) -> None:
        """From another thread, latest first."""
        settling = threading.Thread(target=lambda: [done() for done in reversed(self.dones)])
        settling.start()
        settling.join(10)
        self.dones.clear()


def accepted(seq: int) -> Accepted:
    return Accepted(producer="one", epoch="e", seq=seq)


def test_unsettled_messages_hold_up_no_others(world):
    handler, others = Unsettled(), []
    bus = world.bus("reader")
    bus.subscribe_settling(ACCEPTED, handler)
    bus.subscribe(STATUS, lambda s: others.append(s.pid))
    settle(bus)
    writer = world.bus("writer")
    for n in range(1, 101):
        assert writer.publish(ACCEPTED, accepted(n), "one")
        assert writer.publish(STATUS, msgspec.structs.replace(SAMPLES["status"], pid=n), "one")
    eventually(lambda: len(handler.got) == len(others) == 100)
    assert handler.got == others == list(range(1, 101))
    handler.settle()
    for n in range(101, 201):
        assert writer.publish(ACCEPTED, accepted(n), "one")
    eventually(lambda: len(handler.got) == 200)
    assert handler.got == list(range(1, 201))
    assert bus.rejected == {}


def test_settling_again_or_after_a_reconnect_does_nothing(world):
    handler = Unsettled()
    bus = world.bus("reader")
    bus.subscribe_settling(ACCEPTED, handler)
    settle(bus)
    writer = world.bus("writer")
    for n in (1, 2):
        assert writer.publish(ACCEPTED, accepted(n), "one")
    eventually(lambda: len(handler.got) == 2)
    stale = list(handler.dones)
    stale[0]()
    stale[0]()
    world.cut()
    stale[1]()
    world.restore()
    for done in stale:
        done()
    eventually(lambda: writer.publish(ACCEPTED, accepted(3), "one"))
    eventually(lambda: handler.got[-1] == 3)
    assert bus.connected
    assert bus.rejected == {}


def test_bad_message_reaches_no_settling_handler_and_is_counted(world):
    handler = Unsettled()
    bus = world.bus("reader")
    bus.subscribe_settling(ACCEPTED, handler)
    settle(bus)
    with capture_logs():
        for payload in bad_payloads(ACCEPTED).values():
            assert world.raw(topic(world, ACCEPTED), payload)
        assert bus.publish(ACCEPTED, accepted(9), "one")
        eventually(lambda: handler.got)
    assert handler.got == [9]
    assert bus.rejected.total() == len(bad_payloads(ACCEPTED))


def test_memory_counts_what_is_unsettled():
    handler, plain = Unsettled(), []
    bus = MemoryBus()
    bus.subscribe_settling(ACCEPTED, handler)
    bus.subscribe(ACCEPTED, plain.append)
    for n in (1, 2):
        bus.publish(ACCEPTED, accepted(n), "one")
    with capture_logs():
        bus.broker.publish(ACCEPTED.topic("test", "one"), b"{")
    assert (bus.unsettled, len(plain)) == (2, 2)
    handler.dones[0]()
    handler.dones[0]()
    assert bus.unsettled == 1
    handler.settle()
    assert bus.unsettled == 0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@contextmanager
def connected_to(listener: socket.socket, *subscribe: Callable[[MqttBus], None]) -> Iterator[Peer]:
    """A bus with these subscriptions, and the broker that the test plays for it."""
    bus = MqttBus(BusSettings(port=listener.getsockname()[1]), "hall", "reader")
    for one in subscribe:
        one(bus)
    bus.connect()
    peer = Peer(listener)
    try:
        eventually(lambda: bus.connected)
        yield peer
    finally:
        peer.close()
        bus.close()


ONE = ACCEPTED.topic("hall", "one").encode()
OTHER = STATUS.topic("hall", "one").encode()
STATE = msgspec.json.encode(SAMPLES["status"])


def raw_accepted(seq: int) -> bytes:
    return msgspec.json.encode(accepted(seq))


@manual_ack
def test_puback_of_a_message_waits_until_it_is_settled_and_no_other_does(listener):
    handler = Unsettled()
    with connected_to(
        listener, lambda b: b.subscribe_settling(ACCEPTED, handler), lambda b: b.subscribe(STATUS, id)
    ) as peer:
        peer.send(ONE, raw_accepted(1), 11)
        peer.send(ONE, raw_accepted(2), 12)
        peer.send(OTHER, STATE, 13)
        assert peer.acknowledged() == 13
        assert handler.got == [1, 2]
        handler.dones[1]()
        assert peer.acknowledged() == 12
        handler.dones[1]()
        handler.dones[0]()
        assert peer.acknowledged() == 11
        peer.send(OTHER, STATE, 14)
        assert peer.acknowledged() == 14, "and none of them twice"


@manual_ack
def test_puback_waits_for_the_last_of_several_handlers(listener):
    first, second = Unsettled(), Unsettled()
    with connected_to(
        listener,
        lambda b: b.subscribe_settling(ACCEPTED, first),
        lambda b: b.subscribe(ACCEPTED, id),
        lambda b: b.subscribe_settling(ACCEPTED, second),
        lambda b: b.subscribe(STATUS, id),
    ) as peer:
        peer.send(ONE, raw_accepted(1), 11)
        eventually(lambda: second.dones)
        first.dones[0]()
        first.dones[0]()
        peer.send(OTHER, STATE, 12)
        assert peer.acknowledged() == 12
        second.settle()
        assert peer.acknowledged() == 11


def test_puback_of_what_cannot_be_handled_is_sent_at_once(listener):
    def fails(message: Any, done: Any) -> None:
        raise RuntimeError("no")

    with (
        connected_to(listener, lambda b: b.subscribe_settling(ACCEPTED, fails)) as peer,
        capture_logs(),
    ):
        for number, (where, payload) in enumerate(
            [
                (ONE, b"{"),
                (ONE, b"x" * 300_000),
                (ONE, raw_accepted(1)),
                (ONE + b"\xff", b"{}"),
                (b"else", b""),
            ],
            start=1,
        ):
            peer.send(where, payload, number)
            assert peer.acknowledged() == number


def test_settling_in_the_handler_is_settling_at_once(listener):
    with connected_to(listener, lambda b: b.subscribe_settling(ACCEPTED, lambda _, done: done())) as peer:
        for number in (1, 2, 3):
            peer.send(ONE, raw_accepted(number), number)
            assert peer.acknowledged() == number


def test_settled_after_a_reconnect_is_not_acknowledged_to_another_connection(listener):
    handler = Unsettled()
    with connected_to(
        listener, lambda b: b.subscribe_settling(ACCEPTED, handler), lambda b: b.subscribe(STATUS, id)
    ) as peer:
        peer.send(ONE, raw_accepted(1), 11)
        eventually(lambda: handler.dones)
        peer.close()
        again = Peer(listener)
        try:
            again.send(OTHER, STATE, 12)
            assert again.acknowledged() == 12
            handler.settle()
            again.send(OTHER, STATE, 13)
            assert again.acknowledged() == 13
        finally:
            again.close()


@manual_ack
@needs.mosquitto
def test_mosquitto_sends_as_many_as_it_allows_unsettled_and_goes_on_when_one_is_settled(tmp_path):
    class Narrow(BrokerProcess):
        @property
        def argv(self) -> list[str]:
            conf = self.folder / "mosquitto.conf"
            conf.write_text(conf.read_text().replace("max_inflight_messages 4000", "max_inflight_messages 2"))
            return super().argv

    handler, fence = Unsettled(), []
    with Narrow(tmp_path, kind="mosquitto") as process:
        world = MqttWorld(process)
        bus = world.bus("reader")
        bus.subscribe_settling(ACCEPTED, handler)
        bus.subscribe(METRICS, lambda m: fence.append(m.uptime_s))
        settle(bus)
        writer = world.bus("writer")
        try:
            for n in range(1, 21):
                assert writer.publish(ACCEPTED, accepted(n), "one")
            assert writer.publish(METRICS, metrics(1), "one")  # QoS 0: not held up
            eventually(lambda: fence == [1])
            held = len(handler.got)
            assert 2 <= held < 10, (
                "it does not wait for what is unsettled"
            )  # Mosquitto lets one more pass at times
            for n in range(20):
                eventually(partial(reached, handler.dones, n + 1))
                handler.dones[n]()
            assert handler.got == list(range(1, 21))
        finally:
            for used in world.buses:
                used.close()


# Threads


def test_handler_may_publish(world):
    got: list[float] = []
    bus = world.bus("both")
    bus.subscribe(METRICS, lambda m: m.uptime_s < 50 and bus.publish(METRICS, metrics(m.uptime_s + 1), "one"))
    bus.subscribe(METRICS, lambda m: got.append(m.uptime_s))
    bus.publish(METRICS, metrics(0), "one")
    eventually(lambda: len(got) == 51)
    assert sorted(got) == list(range(51))


def test_handler_and_callback_may_subscribe(world):
    got: list[Any] = []
    bus = world.bus("reader")
    bus.on_connect(lambda: bus.subscribe(METRICS, lambda m: bus.subscribe(STATUS, got.append)))
    writer = world.bus("writer")
    writer.publish(STATUS, SAMPLES["status"], "one")

    def arrived() -> bool:
        writer.publish(METRICS, metrics(1), "one")
        return bool(got)

    eventually(arrived)
    assert got[0] == SAMPLES["status"]


def test_callback_hears_its_own_message_at_once(world):
    """Subscriptions are in place when it is called."""
    got: list[float] = []
    bus = world.bus("reader")
    bus.subscribe(METRICS, lambda m: got.append(m.uptime_s))
    calls = itertools.count(1)
    bus.on_connect(lambda: bus.publish(METRICS, metrics(next(calls)), "one"))
    eventually(lambda: got == [1])
    world.cut()
    world.restore()
    eventually(lambda: got == [1, 2])


def test_callback_that_raises_does_not_stop_the_others(world):
    called: list[int] = []
    bus = world.bus("reader")
    world.cut()

    def fails() -> None:
        raise RuntimeError("no")

    bus.on_connect(fails)
    bus.on_connect(lambda: called.append(1))
    with capture_logs():
        world.restore()
        eventually(lambda: called == [1])
    assert bus.rejected["handler_failed"] == 1


# Without a broker


def test_publish_says_false_while_there_is_no_broker(world):
    bus = world.bus("writer")
    world.cut()
    assert not bus.connected
    assert [bus.publish(METRICS, metrics(1), "one"), bus.publish(STATUS, SAMPLES["status"], "one")] == [
        False,
        False,
    ]
    world.restore()
    eventually(lambda: bus.publish(METRICS, metrics(1), "one"))


def test_nothing_refused_is_sent_after_the_broker_is_back(world):
    got: list[float] = []
    bus = world.bus("both")
    bus.subscribe(METRICS, lambda m: got.append(m.uptime_s))
    world.cut()
    assert not bus.publish(METRICS, metrics(1), "one")
    world.restore()
    eventually(lambda: bus.publish(METRICS, metrics(2), "one"))
    eventually(lambda: got)
    assert got == [2]


def test_subscriptions_and_callbacks_hold_over_every_restart_of_the_broker(world):
    got: list[float] = []
    connects: list[int] = []
    writer = world.bus("writer")
    reader(world, METRICS, lambda m: got.append(m.uptime_s)).on_connect(lambda: connects.append(1))
    eventually(lambda: len(connects) == 1)
    for n in range(3):
        world.cut()
        world.restore()
        eventually(partial(reached, connects, n + 2))
        assert writer.publish(METRICS, metrics(n), "one")
        eventually(partial(reached, got, n + 1))
    assert got == [0, 1, 2]


def test_subscription_made_without_a_broker_holds_when_there_is_one(world):
    got: list[float] = []
    bus = world.bus("reader")
    world.cut()
    bus.subscribe(METRICS, lambda m: got.append(m.uptime_s))
    world.restore()
    assert bus.publish(METRICS, metrics(1), "one")
    eventually(lambda: got == [1])


def test_closed_bus_neither_sends_nor_hears(world):
    got: list[Any] = []
    closed, other = world.bus("closed"), world.bus("other")
    closed.subscribe(METRICS, got.append)
    settle(closed)
    closed.close()
    heard: list[Any] = []
    other.subscribe(METRICS, heard.append)
    settle(other)
    assert not closed.connected
    assert closed.publish(METRICS, metrics(1), "one") is False
    other.publish(METRICS, metrics(2), "one")
    eventually(lambda: heard)
    assert (got, heard) == ([], [metrics(2)])
    closed.close()


def test_what_was_handed_over_before_close_is_sent(world):
    got: list[float] = []
    reader(world, DETECTIONS, lambda m: got.append(m.number))
    writer = world.bus("writer")
    objects = SAMPLES["detections"].objects * 300
    for n in range(1, 51):
        message = msgspec.structs.replace(SAMPLES["detections"], number=n, objects=objects)
        assert writer.publish(DETECTIONS, message, "one")
    writer.close()
    eventually(lambda: len(got) == 50)
    assert got == list(range(1, 51))


# The connection itself: MQTT only


@contextmanager
def lives_and_dies(world: MqttWorld, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process with a last will on the world's broker; killed at the end."""
    code = f"""
import time
from skerry.channels import STATUS
from skerry.messages import Status
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
will = Status(module="{name}", kind="test", state="lost")
bus = MqttBus(BusSettings(port={world.process.port}), "{world.site}", "{name}", (STATUS, will))
bus.on_connect(lambda: bus.publish(STATUS, Status(module="{name}", kind="test", state="ready"), "{name}"))
bus.connect()
input()
bus.close()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()


def states(world: MqttWorld) -> list[str]:
    got: list[str] = []
    observer = world.bus("observer")
    observer.subscribe(STATUS, lambda s: got.append(s.state))
    settle(observer)
    return got


def test_broker_says_lost_of_a_process_killed_with_9(mqtt):
    got = states(mqtt)
    with lives_and_dies(mqtt, "mayfly") as child:
        eventually(lambda: got == ["ready"], 30)
        child.kill()
        eventually(lambda: got == ["ready", "lost"])
    late: list[Status] = []
    mqtt.bus("late").subscribe(STATUS, late.append)
    eventually(lambda: late)
    assert [(s.module, s.state) for s in late] == [("mayfly", "lost")]


def test_broker_does_not_say_lost_of_one_that_closed(mqtt):
    got = states(mqtt)
    with lives_and_dies(mqtt, "polite") as child:
        eventually(lambda: got == ["ready"], 30)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.wait(30) == 0
    mqtt.raw(topic(mqtt, STATUS, "end"), msgspec.json.encode(SAMPLES["status"]))
    eventually(lambda: len(got) > 1)
    assert got == ["ready", SAMPLES["status"].state]


def test_closing_in_a_flood_is_still_clean(mqtt):
    got = states(mqtt)
    will = Status(module="swimmer", kind="test", state="lost")
    swimmer = mqtt.bus("swimmer", will=(STATUS, will))
    swimmer.subscribe(DETECTIONS, lambda _: None)
    writer = mqtt.bus("writer")
    stop = threading.Event()

    def flood() -> None:
        message = msgspec.structs.replace(SAMPLES["detections"], objects=SAMPLES["detections"].objects * 300)
        while not stop.is_set():
            writer.publish(DETECTIONS, message, "one")
            stop.wait(0.01)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _ in range(5):
            swimmer.close()
            swimmer = mqtt.bus("swimmer", will=(STATUS, will))
            swimmer.subscribe(DETECTIONS, lambda _: None)
    finally:
        stop.set()
        thread.join()
    swimmer.close()
    mqtt.raw(topic(mqtt, STATUS, "end"), msgspec.json.encode(SAMPLES["status"]))
    eventually(lambda: got)
    assert got == [SAMPLES["status"].state]


def test_closing_with_unread_messages_is_still_clean(mqtt):
    """A socket that is closed with bytes in it is reset; a broker may read the reset before the goodbye."""
    got = states(mqtt)
    reader = mqtt.bus("swamped", will=(STATUS, Status(module="swamped", kind="test", state="lost")))
    entered, release = threading.Event(), threading.Event()

    def slow(_: Any) -> None:
        entered.set()
        release.wait(30)

    reader.subscribe(DETECTIONS, slow)
    settle(reader)
    heard: list[int] = []
    other = mqtt.bus("other")
    other.subscribe(DETECTIONS, lambda m: heard.append(m.number))
    settle(other)
    message = msgspec.structs.replace(SAMPLES["detections"], objects=SAMPLES["detections"].objects * 300)
    for _ in range(40):
        assert other.publish(DETECTIONS, message, "one")
    eventually(lambda: entered.is_set() and len(heard) == 40)
    closer = threading.Thread(target=reader.close)
    closer.start()
    eventually(reader._closing.is_set)
    release.set()
    closer.join()
    mqtt.raw(topic(mqtt, STATUS, "end"), msgspec.json.encode(SAMPLES["status"]))
    eventually(lambda: got)
    assert got == [SAMPLES["status"].state]


def test_everybody_who_connects_at_once_is_heard(mqtt):
    """Also who subscribes to nothing and so has no SUBACK to wait for."""
    for n in range(20):
        mqtt.raw(topic(mqtt, STATUS, f"old-{n}"), msgspec.json.encode(SAMPLES["status"]), retain=True)
    heard: set[str] = set()
    reader(mqtt, METRICS, lambda m: heard.add(m.module))
    settings = BusSettings(port=mqtt.process.port)
    buses = {f"newcomer-{n}": MqttBus(settings, mqtt.site, f"newcomer-{n}") for n in range(20)}
    mqtt.buses += buses.values()
    for n, bus in enumerate(buses.values()):
        if n % 2:
            bus.subscribe(STATUS, lambda _: None)
            bus.subscribe(DETECTIONS, lambda _: None, f"key-{n}")
        bus.connect()
    eventually(lambda: all(bus.connected for bus in buses.values()), 30)
    for name, bus in buses.items():
        assert bus.publish(METRICS, metrics(0, name), name)
    eventually(lambda: heard == set(buses), 30)


def test_newcomer_of_the_same_name_takes_over(mosquitto):
    """As after kill -9 of a machine whose old connection the broker still holds."""
    with lives_and_dies(mosquitto, "heir") as child:
        got = states(mosquitto)
        eventually(lambda: got == ["ready"], 30)
        os.kill(child.pid, signal.SIGSTOP)
        heir = mosquitto.bus("heir")
        eventually(lambda: heir.publish(METRICS, metrics(1), "one"))
        eventually(lambda: "lost" in got)


def test_two_that_live_under_one_name_are_noticed(mosquitto):
    with capture_logs() as logs:
        mosquitto.bus("twin")
        other = MqttBus(BusSettings(port=mosquitto.process.port), mosquitto.site, "twin")
        mosquitto.buses.append(other)
        other.connect()
        eventually(lambda: any(entry["event"] == "bus.contested" for entry in logs), 30)
    mosquitto.buses.pop().close()


def test_connect_returns_at_once_and_finds_a_broker_that_comes_later(mqtt):
    mqtt.cut()
    got: list[float] = []
    bus = MqttBus(BusSettings(port=mqtt.process.port), mqtt.site, "early")
    mqtt.buses.append(bus)
    bus.subscribe(METRICS, lambda m: got.append(m.uptime_s))
    began = time.monotonic()
    bus.connect()
    assert time.monotonic() - began < 5
    assert not bus.connected
    mqtt.restore()
    assert bus.publish(METRICS, metrics(1), "one")
    eventually(lambda: got == [1])


def test_frozen_broker_is_noticed_and_does_not_block(mqtt):
    bus = MqttBus(BusSettings(port=mqtt.process.port, keepalive_s=1), mqtt.site, "watchful")
    mqtt.buses.append(bus)
    bus.connect()
    eventually(lambda: bus.connected)
    message = msgspec.structs.replace(SAMPLES["detections"], objects=SAMPLES["detections"].objects * 1000)
    os.kill(mqtt.process.pid, signal.SIGSTOP)
    try:
        sent = sum(bus.publish(DETECTIONS, message, "one") for _ in range(1000))
        assert sent < 1000, "a bound on what may wait"
        eventually(lambda: not bus.connected, 20)
    finally:
        os.kill(mqtt.process.pid, signal.SIGCONT)
    eventually(lambda: bus.connected, 20)
    assert bus.publish(METRICS, metrics(1), "one")


def test_closing_while_the_broker_is_gone_or_frozen_ends(mqtt):
    gone, frozen = mqtt.bus("gone"), mqtt.bus("frozen")
    os.kill(mqtt.process.pid, signal.SIGSTOP)
    try:
        frozen.publish(STATUS, SAMPLES["status"], "one")
        frozen.close()
        eventually(lambda: not bus_threads_of(frozen))
    finally:
        os.kill(mqtt.process.pid, signal.SIGCONT)
    mqtt.cut()
    gone.close()
    eventually(lambda: not bus_threads_of(gone))
    mqtt.buses.clear()
    mqtt.restore()


def bus_threads_of(bus: MqttBus) -> bool:
    return bus._thread.is_alive()


def test_refused_topic_does_not_end_the_connection(mqtt):
    """Bytes that are no UTF-8: a broker that forwards them must not hurt, nor one that hangs up on them."""
    got: list[Any] = []
    bus = mqtt.bus("reader")
    bus.subscribe(METRICS, got.append)
    publish_raw(mqtt.process.port, f"skerry/{mqtt.site}/metrics/".encode() + b"\xff\xfe", b"{}")

    def arrived() -> bool:
        bus.publish(METRICS, metrics(1), "one")
        return bool(got)

    eventually(arrived)
    assert got[0] == metrics(1)


def test_many_threads_publish_while_the_broker_dies_and_returns(mqtt):
    """No deadlock, no exception, no bytes of one message inside another."""
    got: list[float] = []
    errors: list[BaseException] = []
    bus = mqtt.bus("busy")
    bus.subscribe(DETECTIONS, lambda m: got.append(m.number))
    message = msgspec.structs.replace(SAMPLES["detections"], objects=SAMPLES["detections"].objects * 200)
    stop = threading.Event()

    def write() -> None:
        try:
            while not stop.is_set():
                bus.publish(DETECTIONS, message, "one")
                bus.publish(STATUS, SAMPLES["status"], "one")
                stop.wait(0.002)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            eventually(partial(reached, got, len(got) + 20), 30)
            mqtt.cut()
            mqtt.restore()
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    assert bus.rejected == {}


def reached(got: Sized, count: int) -> bool:
    return len(got) >= count


def channel_named(name: str) -> Channel[Any]:
    return next(channel for channel in CHANNELS if channel.name == name)


# The other major version of the client


@pytest.mark.skipif(WANTED_PAHO is not None, reason="this is that run")
@needs.azure
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everything_above_holds_on_paho_1_6_1():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, TLS, "-q", "-k", "not memory", "-p", "no:cacheprovider"],
        env={**os.environ, "PYTHONPATH": str(needs.AZURE), "SKERRY_TEST_PAHO": "1.6.1"},
        cwd=needs.ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
