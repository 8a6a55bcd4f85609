"""What an MQTT link may be told, and what is refused with a reason."""

from typing import Any

import msgspec
import pytest

from skerry.uplink.settings import HomeAssistant, MqttLink


def read(**keys: Any) -> MqttLink:
    return msgspec.convert({"kind": "mqtt", "host": "far", **keys}, MqttLink)


def test_everything_that_is_documented_is_taken() -> None:
    link = read(
        format="plain", topic="plant/{site}/{camera}/{rule}/{lane}/{type}", retain_last=True,
        state_topic="state/{camera}/{rule}", home_assistant={"discovery_prefix": "ha/disc"}, remote_topic="",
    )  # fmt: skip
    assert link.home_assistant == HomeAssistant(discovery_prefix="ha/disc")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"topic": "a/{x}"}, r"topic: expected only \{site\}, \{lane\}, \{type\}, \{camera\} and \{rule\}"),
        ({"topic": "a/#"}, "topic: expected no wildcard"),
        ({"topic": "a/{site"}, "topic: expected a template"),
        ({"format": "batch", "topic": "a/{type}"}, "a batch holds events of several rules"),
        ({"format": "batch", "topic": "a/{camera}"}, "a batch holds events of several rules"),
        ({"format": "plain", "compression": "gzip"}, "compression: expected none"),
        ({"state_topic": "a/{camera}"}, r"state_topic: expected \{camera\}, \{rule\}"),
        ({"state_topic": "a/{camera}/{rule}/{lane}"}, r"state_topic: expected \{camera\}, \{rule\}"),
        ({"home_assistant": {}}, "retain_last: expected true with home_assistant"),
        ({"retain_last": True, "home_assistant": {"discovery_prefix": "a/+"}}, "discovery_prefix"),
        ({"retain_last": True, "home_assistant": {"availability_topic": "{lane}"}}, "availability_topic"),
        ({"remote_topic": "a/{lane}"}, r"remote_topic: expected only \{site\}"),
        ({"remote_topic": "a/+"}, "expected no wildcard"),
    ],
)
def test_what_cannot_work_is_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=reason):
        read(**keys)
