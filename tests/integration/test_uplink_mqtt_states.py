"""What an MQTT link leaves at the broker: flat events, the last state of each rule, Home Assistant's view."""

import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import needs
from payloads import Payloads
from records import record
from rule_events import crossing, presence, rule_record
from skerry.broker import BrokerProcess
from skerry.errors import LinkDown, Rejected
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.links.mqtt import MqttLink

pytestmark = needs.mosquitto


def link_to(port: int, state: Path | None = None, site: str = "here", **options: Any) -> MqttLink:
    settings = given.MqttLink(**{"host": "127.0.0.1", "port": port, "timeout_s": 5.0, **options})
    return MqttLink(settings, site, f"link-{site}", threading.Event(), state=state)


@pytest.fixture
def site() -> str:
    """Unlike that of any other test at the same broker."""
    return f"s{uuid.uuid4().hex[:8]}"


@contextmanager
def seen(port: int, topic: str) -> Iterator[Payloads]:
    far = Payloads(port, topic)
    far.start()
    try:
        yield far
    finally:
        far.stop()


def retained(port: int, topic: str, count: int) -> dict[str, Any]:
    """What a subscriber that comes now is told at once, by topic."""
    with seen(port, topic) as far:
        eventually(lambda: len(set(far.topics)) >= count)
        return {
            topic: msgspec.json.decode(raw) if raw[:1] == b"{" else raw
            for topic, raw in zip(far.topics, far.got, strict=False)
        }


def test_an_event_is_one_flat_message(shared_broker: BrokerProcess, site: str) -> None:
    with seen(shared_broker.port, f"plant/{site}/#") as far:
        link = link_to(
            shared_broker.port, site=site, format="plain", topic="plant/{site}/{camera}/{rule}/{type}"
        )
        link.open()
        link.send([crossing(1, "forward", {"person": 2}), presence(2, True, rule="p/4")])
        eventually(lambda: len(far.got) == 2)
        link.close()
    assert far.topics == [
        f"plant/{site}/gate/crowd/skerry.line.crossed",
        f"plant/{site}/gate/p_4/skerry.presence.started",
    ]
    first = msgspec.json.decode(far.got[0])
    assert (first["id"], first["total"], first["totals_person"]) == ("e1-1", 2, 2)


def test_what_cannot_be_made_flat_is_rejected(shared_broker: BrokerProcess, site: str) -> None:
    link = link_to(shared_broker.port, site=site, format="plain")
    link.open()
    odd = record(1)
    odd = type(odd)(odd.raw.replace(b'"data":{', b'"data":[').replace(b"}}", b"]}"), odd.envelope)
    with pytest.raises(Rejected, match="e1-1: expected an event"):
        link.send([odd])
    link.send([record(2)])
    link.close()


@pytest.mark.parametrize("form", ["event", "batch", "plain"])
def test_the_last_state_of_each_rule_is_there_for_who_comes_later(
    shared_broker: BrokerProcess, site: str, form: str
) -> None:
    link = link_to(shared_broker.port, site=site, format=form, retain_last=True)
    link.open()
    link.send(
        [presence(1, True), presence(2, False), crossing(3, "forward", {"dog": 4}, rule="line"), record(4)]
    )
    found = retained(shared_broker.port, f"skerry/{site}/state/#", 2)
    link.close()
    assert {topic: said["state"] for topic, said in found.items()} == {
        f"skerry/{site}/state/gate/crowd": "off", f"skerry/{site}/state/gate/line": 4,
    }  # fmt: skip


def test_a_batch_is_confirmed_with_its_states(tmp_path: Path, site: str) -> None:
    with BrokerProcess(tmp_path, kind="mosquitto") as frozen:
        link = link_to(frozen.port, site=site, retain_last=True, timeout_s=20.0)
        link.open()
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            cost = link.start([presence(1, True)])
            assert cost.messages == 2
            (waiting,) = link._under_way
            assert len(waiting) == 2
            assert not link.finish(0.1)
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        eventually(lambda: link.finish(0.1))
        link.close()


def test_what_is_sent_again_does_not_take_a_state_back(
    shared_broker: BrokerProcess, site: str, tmp_path: Path
) -> None:
    with seen(shared_broker.port, f"skerry/{site}/state/#") as far:
        for _ in range(2):  # the second is a new process
            link = link_to(shared_broker.port, tmp_path, site, retain_last=True)
            link.open()
            link.send([presence(1, True)])
            link.send([presence(2, False)])
            link.send([presence(1, True)])
            link.close()
        link = link_to(shared_broker.port, tmp_path, site, retain_last=True)
        link.open()
        link.send([presence(3, True)])
        eventually(lambda: far.got and b"e1-3" in far.got[-1])
        link.close()
    numbers = [int(msgspec.json.decode(raw)["id"].rpartition("-")[2]) for raw in far.got]
    assert numbers == sorted(numbers)
    assert set(numbers) == {1, 2, 3}


def test_a_broker_that_has_forgotten_is_told_again(tmp_path: Path, site: str) -> None:
    """Without a store of its own Mosquitto forgets with each restart."""
    with BrokerProcess(tmp_path / "broker", kind="mosquitto") as broker:
        link = link_to(broker.port, tmp_path, site, retain_last=True)
        link.open()
        link.send([presence(1, True)])
        os.kill(broker.pid, signal.SIGKILL)
        eventually(lambda: broker.poll() is not None)
        with pytest.raises(LinkDown):
            link.send([record(2)])
        broker.start()
        link.open()
        found = retained(broker.port, f"skerry/{site}/state/#", 1)
        link.send([record(2)])
        link.close()
    assert [said["state"] for said in found.values()] == ["on"]


def test_a_state_too_large_for_the_far_end_is_cut_to_what_matters(
    shared_broker: BrokerProcess, site: str
) -> None:
    link = link_to(
        shared_broker.port, site=site, retain_last=True, max_payload_bytes=4096, format="batch",
        compression="gzip",
    )  # fmt: skip
    link.open()
    link.send([rule_record(1, "count", "exceeded", active=True, note="x" * 8000)])
    (said,) = retained(shared_broker.port, f"skerry/{site}/state/#", 1).values()
    link.close()
    assert (said["state"], said["rule"], "note" in said) == ("on", "crowd", False)


class TestHomeAssistant:
    @pytest.fixture
    def prefix(self, site: str) -> str:
        return f"ha-{site}"

    @pytest.fixture
    def options(self, prefix: str) -> dict[str, Any]:
        return {"retain_last": True, "home_assistant": given.HomeAssistant(discovery_prefix=prefix)}

    def test_each_rule_is_told_of_when_it_is_first_seen(
        self, shared_broker: BrokerProcess, site: str, prefix: str, options: dict[str, Any]
    ) -> None:
        link = link_to(shared_broker.port, site=site, **options)
        link.open()
        with seen(shared_broker.port, f"{prefix}/#") as far:
            link.send([presence(1, True)])
            eventually(lambda: len(far.got) == 1)
            link.send([presence(2, False), crossing(3, "forward", {"person": 1}, rule="line")])
            eventually(lambda: len(far.got) == 3)
            link.send([presence(4, True), rule_record(5, "zone", "entered", rule="zone", track=4)])
            eventually(lambda: len(far.got) == 4)
        assert [topic.split("/")[1] for topic in far.topics] == ["binary_sensor", "sensor", "sensor", "event"]
        config = msgspec.json.decode(far.got[0])
        assert config["state_topic"] == f"skerry/{site}/state/gate/crowd"
        assert config["availability_topic"] == f"skerry/{site}/availability"
        assert msgspec.json.decode(far.got[3])["state_topic"] == f"skerry/{site}/far/event"
        assert len(retained(shared_broker.port, f"{prefix}/#", 4)) == 4
        link.close()

    def test_all_is_told_again_after_a_reconnect_and_when_home_assistant_is_born(
        self, shared_broker: BrokerProcess, site: str, prefix: str, options: dict[str, Any], tmp_path: Path
    ) -> None:
        first = link_to(shared_broker.port, tmp_path, site, **options)
        first.open()
        first.send([presence(1, True)])
        first.close()
        with seen(shared_broker.port, f"{prefix}/+/+/+/config") as far:
            eventually(lambda: len(far.got) == 1)  # retained
            link = link_to(shared_broker.port, tmp_path, site, **options)
            link.open()
            eventually(lambda: len(far.got) == 2)
            eventually(lambda: not link._asking)
            publish(shared_broker.port, f"{prefix}/status", b"offline")
            publish(shared_broker.port, f"{prefix}/status", b"online")
            eventually(lambda: len(far.got) == 3)
            for _ in range(20):  # a storm of births is answered once
                publish(shared_broker.port, f"{prefix}/status", b"online")
            link.send([presence(2, False)])
            link.close()
        assert len(far.got) == 3
        assert len(set(far.got)) == 1

    def test_who_is_gone_is_unavailable(
        self, shared_broker: BrokerProcess, site: str, options: dict[str, Any]
    ) -> None:
        with seen(shared_broker.port, f"skerry/{site}/availability") as far:
            link = link_to(shared_broker.port, site=site, **options)
            link.open()
            eventually(lambda: far.got == [b"online"])
            link.close()
            eventually(lambda: far.got[-1] == b"offline")
            link.open()
            eventually(lambda: far.got[-1] == b"online")
            assert link._client is not None
            link._client.socket().shutdown(2)  # as when the process is killed
            eventually(lambda: far.got[-1] == b"offline")
            link.close()
        assert retained(shared_broker.port, f"skerry/{site}/availability", 1) == {
            f"skerry/{site}/availability": b"offline"
        }


def publish(port: int, topic: str, payload: bytes, *, retain: bool = False) -> None:
    """Send one message, and return when the broker has it."""
    import paho.mqtt.publish as once

    once.single(topic, payload, qos=1, retain=retain, hostname="127.0.0.1", port=port)
