"""What the Azure link says: bodies, ids, properties and sizes, as the hub has them."""

import msgspec
import pytest

from events import event
from records import of, record, records
from skerry.batches import decode
from skerry.errors import ConfigError, Rejected
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.record import Record


def seen(seq: int, **data: str) -> Record:
    return of(msgspec.structs.replace(event(seq), data={"seq": seq, **data}))


def only(hub):
    eventually(lambda: hub.messages)
    return hub.messages[0]


def test_a_message_says_what_routes_ask_for(hub, connect) -> None:
    link = connect(hub)
    link.open()
    link.send([seen(1, camera="gate", rule="line", severity="info"), seen(2, camera="yard", rule="line")])
    message = only(hub)
    assert message.device == "gate"
    assert message.properties == {
        "$.mid": message.properties["$.mid"],
        "$.cid": "e1-1",
        "$.ct": "application/json",
        "$.ce": "utf-8",
        "iothub-creation-time-utc": "2026-03-01T12:00:00.000Z",
        "site": "here",
        "lane": "event",
        "events": "2",
        "schema": "cloudevents-batch/1.0",
        "type": "io.skerry.count",
        "camera": "gate,yard",
        "rule": "line",
        "severity": "info",
    }
    assert len(decode(message.payload)) == 2


def test_the_id_of_a_message_is_that_of_its_events(hub, connect) -> None:
    for batch in (records(1, 5), records(1, 5), records(1, 6)):
        link = connect(hub)
        link.open()
        link.send(batch)
        link.close()
    eventually(lambda: len(hub.messages) == 3)
    first, second, third = (message.properties["$.mid"] for message in hub.messages)
    assert first == second != third
    assert len(first) == 32


def test_properties_stay_small_whatever_a_batch_holds(hub, connect) -> None:
    link = connect(hub)
    link.open()
    link.send([seen(n, camera=f"camera-{n}") for n in range(1, 100)] + [seen(100, camera="x" * 3000)])
    assert only(hub).properties["camera"] == ",".join(f"camera-{n}" for n in range(1, 9))


def test_what_the_hub_does_not_take_in_a_property_is_replaced(hub, connect) -> None:
    link = connect(hub)
    link.open()
    link.send([of(msgspec.structs.replace(event(1), type="tür auf\n&x=1", id="e 1/ü"))])
    assert only(hub).properties["type"] == "t_r_auf_&x=1"
    assert only(hub).properties["$.cid"] == "e_1/_"


def test_the_time_of_a_clock_that_nobody_set_is_not_said(hub, connect) -> None:
    link = connect(hub)
    link.open()
    link.send([of(msgspec.structs.replace(event(1), timequality="unsynchronised"))])
    assert "iothub-creation-time-utc" not in only(hub).properties


def test_data_of_any_shape_costs_only_its_properties(hub, connect) -> None:
    link = connect(hub)
    link.open()
    link.send([of(msgspec.structs.replace(event(1), data={"camera": ["gate"], "rule": "line"}))])
    assert {"camera", "rule"}.isdisjoint(only(hub).properties)


@pytest.mark.parametrize(
    ("format_", "content", "says"),
    [
        ("event", "application/json", "application/json"),
        ("event", "cloudevents", "application/cloudevents+json"),
        ("batch", "cloudevents", "application/cloudevents-batch+json"),
    ],
)
def test_the_content_type_is_as_asked_for(hub, connect, format_, content, says) -> None:
    link = connect(hub, format=format_, content_type=content)
    link.open()
    link.send(records(1, 3))
    eventually(lambda: len(hub.arrived) == 3)
    assert len(hub.messages) == (3 if format_ == "event" else 1)
    assert {message.properties["$.ct"] for message in hub.messages} == {says}


def test_each_lane_goes_to_the_output_of_its_name(hub, connect, tmp_path) -> None:
    file = hub.connection_string(tmp_path, ModuleId="uplink", GatewayHostName=hub.host)
    by = given.ConnectionStringIdentity(connection_string_file=str(file))
    link = connect(hub, by, outputs=True)
    link.open()
    link.send([record(1, lane="alarm")])
    link.send([record(2, lane="bulk")])
    eventually(lambda: len(hub.messages) == 2)
    assert [(m.device, m.properties["$.on"]) for m in hub.messages] == [
        ("gate/uplink", "alarm"), ("gate/uplink", "bulk"),
    ]  # fmt: skip


def test_a_device_has_no_outputs(hub, connect, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"link\.outputs: expected the identity of a module"):
        connect(hub, outputs=True)


def test_more_than_the_hub_takes_is_refused_here(hub, connect) -> None:
    link = connect(hub)
    link.open()
    with pytest.raises(Rejected, match="expected at most 253952 bytes"):
        link.send([record(1, size=260_000)])
    link.send([record(2)])
    eventually(lambda: hub.messages)
    assert [e.seq for e in hub.arrived] == [2]


def test_the_largest_batch_that_the_uplink_makes_fits(hub, connect) -> None:
    link = connect(hub)
    link.open()
    size, batch = 0, []
    for n in range(1, 10_000):
        item = seen(n, camera=f"{'c' * 56}-{n}", rule=f"{'r' * 56}-{n}", pad="p" * 400)
        if size + len(item.raw) + 1 > link.max_bytes:
            break
        size, batch = size + len(item.raw) + 1, [*batch, item]
    link.send(batch)
    message = only(hub)
    properties = sum(len(name) + len(value) for name, value in message.properties.items())
    assert 240_000 < len(message.payload) + properties <= 262_144
