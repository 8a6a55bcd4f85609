"""What Home Assistant is told, against the keys that its documentation names."""

import re

import pytest

from rule_events import crossing, presence, rule_record
from skerry.uplink.home_assistant import Config, Topics, configs
from skerry.uplink.last import Last
from skerry.uplink.plain import told
from skerry.uplink.record import Record

TOPICS = Topics(
    "homeassistant", "skerry/here/availability", "skerry/here/state/gate/crowd", "far/event", False
)
COMMON = {
    "name", "unique_id", "qos", "availability_topic", "device", "origin", "state_topic", "value_template",
}  # fmt: skip
KEYS = {
    "binary_sensor": COMMON | {"payload_on", "payload_off", "device_class", "json_attributes_topic"},
    "sensor": COMMON | {"state_class", "json_attributes_topic"},
    "event": COMMON | {"event_types"},
}
"""Of www.home-assistant.io/integrations/binary_sensor.mqtt, sensor.mqtt and event.mqtt."""
DEVICE = {"identifiers", "name", "manufacturer", "model", "sw_version"}
ORIGIN = {"name", "sw_version"}
CLASSES = {"occupancy"}
"""Of binary sensors, those that we use."""
TOPIC = re.compile(r"homeassistant/(binary_sensor|sensor|event)/[a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+/config")


def told_of(record: Record, topics: Topics = TOPICS, site: str = "here") -> list[Config]:
    last = Last()
    name = last.take(told(record.raw))
    assert name is not None
    return configs(site, last.states[name].said, topics)


RULES = {
    "presence": (presence(1, True), ["binary_sensor"]),
    "absence": (rule_record(1, "absence", "started", active=True), ["binary_sensor"]),
    "motion": (rule_record(1, "motion", "slow", active=True), ["binary_sensor"]),
    "count": (rule_record(1, "count", "exceeded", active=True, bound="above"), ["binary_sensor"]),
    "rate": (rule_record(1, "rate", "low", active=True, bound="below"), ["binary_sensor"]),
    "dwell": (rule_record(1, "dwell", "exceeded", track=5), ["binary_sensor"]),
    "line": (crossing(1, "forward", {"person": 1}), ["sensor", "sensor"]),
    "zone": (rule_record(1, "zone", "entered", track=5, label="person"), ["event"]),
    "presence per track": (rule_record(1, "presence", "started", track=5), ["event"]),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_an_entity_with_documented_keys(rule: str) -> None:
    record, components = RULES[rule]
    found = told_of(record)
    assert [config.topic.split("/")[1] for config in found] == components
    for topic, payload in found:
        assert TOPIC.fullmatch(topic)
        assert payload.keys() <= KEYS[topic.split("/")[1]]
        assert payload["device"].keys() <= DEVICE
        assert payload["origin"].keys() <= ORIGIN
        assert payload.get("device_class", "occupancy") in CLASSES
        assert payload["device"]["identifiers"]
        assert payload["qos"] in (0, 1, 2)
        assert not set("+#") & set(payload["availability_topic"])


def test_no_two_entities_have_one_identity() -> None:
    """Names that only look alike once they are put together."""
    names = (("a", "b_c", "d"), ("a_b", "c", "d"), ("a", "b", "c_d"), ("a", "b-c", "d"))
    found = [
        told_of(presence(1, True, camera=camera, rule=rule), site=site)[0] for site, camera, rule in names
    ]
    seen = [(config.topic, config.payload["unique_id"]) for config in found]
    assert len({topic for topic, _ in seen}) == len({number for _, number in seen}) == 4


def test_the_rules_of_a_camera_are_one_device() -> None:
    one, two, other = (
        told_of(presence(1, True, rule=rule, camera=camera))[0].payload["device"]["identifiers"]
        for rule, camera in (("a", "gate"), ("b", "gate"), ("a", "yard"))
    )
    assert one == two != other


def test_a_name_that_could_be_a_template_is_not_told_of() -> None:
    for name in ("{{ states }}", "a'b", "a b", "x" * 65, "ä"):
        assert told_of(presence(1, True, rule=name)) == []


def test_events_are_told_of_only_where_they_come_one_by_one() -> None:
    record, _ = RULES["zone"]
    assert told_of(record, TOPICS._replace(events="")) == []


def test_templates_find_what_they_should() -> None:
    """They were rendered with jinja2 once, as they are here."""
    (switch,) = told_of(presence(1, True))
    assert switch.payload["value_template"] == "{{ value_json.state }}"
    assert (switch.payload["payload_on"], switch.payload["payload_off"]) == ("on", "off")
    ways = told_of(crossing(1, "forward", {"person": 3}))
    assert [config.payload["value_template"] for config in ways] == [
        "{{ value_json.forward }}", "{{ value_json.backward }}",
    ]  # fmt: skip


@pytest.mark.parametrize(("nested", "data"), [(True, "value_json.data"), (False, "value_json")])
def test_an_event_is_picked_from_those_of_other_rules(nested: bool, data: str) -> None:
    (config,) = told_of(RULES["zone"][0], TOPICS._replace(nested=nested))
    assert config.payload["value_template"] == (
        f"{{% if {data}.camera == 'gate' and {data}.rule == 'crowd' %}}"
        "{{ {'event_type': value_json.type.split('.')[-1], "
        f"'label': {data}.label | default(none), 'time': value_json.time}} | tojson }}}}{{% endif %}}"
    )
    assert config.payload["event_types"] == ["entered", "left"]
