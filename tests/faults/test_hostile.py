"""Nonsense on every channel that buffer and uplink read, under load: it is dropped and counted, no more."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
import pytest

import needs
from events import event
from oracle import check_dense
from skerry.channels import EVENTS, METRICS, OUTBOUND, RECEIPTS, STATUS
from skerry.messages import LANES, Metrics, Outbound, Receipt
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from suite import SITE, Lines, Suite

pytestmark = [needs.mosquitto, pytest.mark.timeout(120)]
HUGE = 2**53 - 1
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**64,
    1e300,
    "",
    "\0",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": 1},
    [None] * 50,
)


def shapeless(draw: random.Random) -> Iterator[bytes]:
    """What is no message of any channel."""
    yield from (b"", b"null", b"[]", b"{}", b"\xff\xfe", b'"', b"[" * 2000, b'{"a":' * 1000, b"\0" * 100_000)
    yield json.dumps({"schema": 10**30}).encode()
    for _ in range(20):
        yield draw.randbytes(draw.randint(1, 300))


def mangled(draw: random.Random, sound: dict[str, Any]) -> Iterator[bytes]:
    """A sound message that is cut, lacks a field, or has a field of a wrong kind."""
    whole = json.dumps(sound).encode()
    for _ in range(10):
        yield whole[: draw.randrange(len(whole) - 1)]
    for field, value in sound.items():
        yield json.dumps({k: v for k, v in sound.items() if k != field}).encode()
        for wrong in draw.sample(WRONG, 6):
            if not isinstance(wrong, type(value)) or isinstance(wrong, bool):
                yield json.dumps({**sound, field: wrong}).encode()


def submissions() -> Iterator[bytes]:
    """Submissions that contradict themselves; none of their events may be kept."""
    one = event(1, source="/skerry/other", epoch="h1")
    two = event(2, source="/skerry/other", epoch="h1")
    base = {"producer": "other", "epoch": "h1", "oldest": 1}
    change = msgspec.structs.replace
    wrong = [
        (base, [one, change(two, lane="alarm")]),
        (base, [one, change(two, epoch="h2", id="h2-2")]),
        (base, [one, change(two, source="/skerry/third")]),
        (base, [one, change(two, seq=3, id="h1-3")]),
        (base, [two, one]),
        (base, [change(one, id="else")]),
        (base, [change(one, seq=HUGE + 1, id=f"h1-{HUGE + 1}")]),
        ({**base, "oldest": 2}, [one]),
        ({**base, "epoch": "h9"}, [one]),
        ({**base, "epoch": "../../x"}, [change(one, epoch="../../x", id="../../x-1")]),
        (base, [change(one, source="")]),
        (base, [change(one, source="s" * 10_000)]),
        (base, []),
    ]
    for head, found in wrong:
        yield msgspec.json.encode({**head, "events": found})
    sound = json.loads(msgspec.json.encode({**base, "events": [one]}))
    yield json.dumps(sound | {"events": [sound["events"][0] | {"data": 7}]}).encode()
    yield json.dumps(sound | {"events": [sound["events"][0] | {"lane": "urgent"}]}).encode()
    yield json.dumps(sound | {"oldest": 2**70}).encode()


def receipts(chains: dict[str, Outbound]) -> Iterator[bytes]:
    """Receipts for what was never sent."""
    yield msgspec.json.encode(Receipt(store="unknown", upto=5))
    yield msgspec.json.encode(Receipt(store="", upto=HUGE))
    for store, message in chains.items():
        yield msgspec.json.encode(Receipt(store=store, upto=message.last + 1_000_000))
        yield msgspec.json.encode(Receipt(store=store, upto=HUGE))
        yield json.dumps(
            {"schema": 1, "store": store, "upto": 0, "refused": [[2**60, "no"], [1, "no"]]}
        ).encode()
        yield json.dumps({"schema": 1, "store": store, "upto": 0, "refused": [[0, 5]]}).encode()


def outbounds(chains: dict[str, Outbound]) -> Iterator[bytes]:
    """Records that no buffer would send: spans and counts that do not fit, other lanes, far ahead."""
    for message in chains.values():
        sound = json.loads(msgspec.json.encode(message))
        far = message.last + 1_000_000
        for change in (
            {"first": far, "last": far - 1}, {"first": far, "last": far + 7}, {"first": 0}, {"last": 0},
            {"first": far, "last": far + len(sound["events"]) - 1}, {"events": []}, {"events": [1, 2]},
            {"events": ["x"] * len(sound["events"])}, {"lane": "urgent"}, {"store": 7}, {"base": -1},
        ):  # fmt: skip
            yield json.dumps({**sound, **change}).encode()
    yield json.dumps(
        {"schema": 1, "store": "s", "lane": "bulk", "first": 1, "last": 1, "events": [{}]}
    ).encode()


def statuses(draw: random.Random) -> Iterator[bytes]:
    """Uplinks that come and go, hundreds of them."""
    for n in range(300):
        state = draw.choice(("ready", "lost", "degraded", "stopped", "starting"))
        said = {"schema": 1, "module": f"up-{n % 150}", "kind": "uplink", "state": state, "pid": n}
        yield json.dumps(said).encode()


@pytest.mark.parametrize("seed", [1])
def test_nonsense_on_every_channel_changes_nothing(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    with Suite(tmp_path) as suite:
        chains: dict[str, Outbound] = {}
        metrics: dict[str, Metrics] = {}
        bus = MqttBus(BusSettings(port=suite.broker.port), SITE, "listener")
        bus.subscribe(OUTBOUND, lambda m: chains.update({m.store: m}), "uplink")
        bus.subscribe(METRICS, lambda m: metrics.update({m.module: m}))
        bus.connect()
        hostile = connected(suite.broker.port)
        try:
            suite.wait_for(lambda: len(chains) == len(LANES) and suite.delivered() > 100)
            sent = 0
            for _ in range(3):
                for topic, payload in nonsense(draw, dict(chains)):
                    hostile.publish(topic, payload, qos=1).wait_for_publish(5)
                    sent += 1
                    if sent % 100 == 0:
                        suite.look()
                before = suite.delivered()
                suite.wait_for(lambda n=before: suite.delivered() > n + 100, why="work goes on")
            account = suite.settle()
            assert account.delivered == account.sent == account.accepted
            check_dense(Lines(tmp_path / "far.jsonl").fresh())
            for kind in ("buffer", "uplink"):
                assert rejected(metrics[kind]) > 50, f"{kind} counts what it drops: {metrics[kind].counters}"
                assert suite.process(kind).memory_info().rss < 64 << 20
        finally:
            hostile.disconnect()
            hostile.loop_stop()
            bus.close()


def nonsense(draw: random.Random, chains: dict[str, Outbound]) -> Iterator[tuple[str, bytes]]:
    """(topic, payload), in a random order."""
    sound = json.loads(msgspec.json.encode(next(iter(chains.values()))))
    receipt = {"schema": 1, "store": "unknown", "upto": 1, "refused": []}
    channels = {
        EVENTS.topic(SITE, "other"): [*submissions()],
        EVENTS.topic(SITE, "decision"): [],
        RECEIPTS.topic(SITE, "uplink"): [*receipts(chains), *mangled(draw, receipt)],
        OUTBOUND.topic(SITE, "uplink"): [*outbounds(chains), *mangled(draw, sound)],
        STATUS.topic(SITE, "other"): [*statuses(draw)],
    }
    found = [(topic, p) for topic, more in channels.items() for p in (*shapeless(draw), *more)]
    draw.shuffle(found)
    yield from found


def rejected(metrics: Metrics) -> float:
    """Of all that it counts as not taken."""
    return sum(
        n
        for name, n in metrics.counters.items()
        if any(w in name for w in ("rejected", "refused", "dropped"))
    )


def connected(port: int) -> mqtt.Client:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="hostile")
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client
