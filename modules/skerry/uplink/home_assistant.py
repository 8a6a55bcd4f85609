"""What Home Assistant is told of rules, so that they are its entities: MQTT discovery. Pure.

Source: Home Assistant documentation, MQTT, "MQTT discovery" and the pages of binary_sensor, sensor and event.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

from skerry import __version__
from skerry.messages import NAME

_LONGEST_NAME = 64
ONLINE, OFFLINE = b"online", b"offline"
_ORIGIN = {"name": "Skerry", "sw_version": __version__}
_CLASSES = {"presence": "occupancy"}
_EVENT_TYPES = {"zone": ["entered", "left"], "presence": ["started"]}
"""What a rule says that is not on or off."""


class Topics(NamedTuple):
    """Where Home Assistant finds what it is told."""

    prefix: str
    """Of discovery."""
    availability: str
    state: str
    """Of the rule, retained."""
    events: str
    """Of the rule's events, one a message; "" where there are batches."""
    nested: bool
    """Whether those are CloudEvents, with the rule's own data in `data`."""


class Config(NamedTuple):
    """One retained message of discovery."""

    topic: str
    payload: dict[str, Any]


def configs(site: str, said: dict[str, Any], topics: Topics) -> list[Config]:
    """The entities of a rule, by its last state; none where its names are not as ours are.

    Args:
        site: the name.
        said: the rule's last state.
        topics: where to find it.
    """
    camera, rule, state = said["camera"], said["rule"], said["state"]
    if not all(re.search(NAME, str(name)) and len(str(name)) <= _LONGEST_NAME for name in (camera, rule)):
        return []  # it would become part of a template
    common = {
        "availability_topic": topics.availability,
        "device": {
            "identifiers": [_id(site, camera)],
            "name": f"{site} {camera}",
            "manufacturer": "Skerry",
            "model": "camera",
            "sw_version": __version__,
        },
        "origin": _ORIGIN,
        "qos": 1,
    }
    one = _Rule(site, str(camera), str(rule), topics, common)
    if said.get("kind") == "line":
        return [one.total(way) for way in ("forward", "backward")]
    if state in ("on", "off"):
        return [one.switch(str(said.get("kind")))]
    types = _EVENT_TYPES.get(str(said.get("kind")))
    return [one.event(types)] if types and topics.events else []


class _Rule(NamedTuple):
    site: str
    camera: str
    rule: str
    topics: Topics
    common: dict[str, Any]

    def switch(self, kind: str) -> Config:
        more = {"device_class": _CLASSES[kind]} if kind in _CLASSES else {}
        return self._config(
            "binary_sensor",
            "",
            state_topic=self.topics.state,
            value_template="{{ value_json.state }}",
            payload_on="on",
            payload_off="off",
            json_attributes_topic=self.topics.state,
            **more,
        )

    def total(self, way: str) -> Config:
        return self._config(
            "sensor",
            way,
            state_topic=self.topics.state,
            value_template=f"{{{{ value_json.{way} }}}}",
            state_class="total_increasing",
            json_attributes_topic=self.topics.state,
        )

    def event(self, types: list[str]) -> Config:
        """Many rules share a topic: what is of another becomes nothing, which is ignored."""
        data = "value_json.data" if self.topics.nested else "value_json"
        template = (
            f"{{% if {data}.camera == '{self.camera}' and {data}.rule == '{self.rule}' %}}"
            "{{ {'event_type': value_json.type.split('.')[-1], "
            f"'label': {data}.label | default(none), 'time': value_json.time}} | tojson }}}}"
            "{% endif %}"
        )
        return self._config(
            "event", "", state_topic=self.topics.events, value_template=template, event_types=types
        )

    def _config(self, component: str, part: str, **own: Any) -> Config:
        number = _id(self.site, self.camera, self.rule, part)
        name = f"{self.rule} {part}".strip()
        shown = "_".join(filter(None, (self.camera, self.rule, part, number[-8:])))
        topic = f"{self.topics.prefix}/{component}/skerry_{self.site}/{shown}/config"
        return Config(topic, {"name": name, "unique_id": number, **own, **self.common})


def _id(*names: object) -> str:
    """An identity that no other names have."""
    return f"skerry_{hashlib.sha256('/'.join(map(str, names)).encode()).hexdigest()[:16]}"
