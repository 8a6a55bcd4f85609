"""What a component may ask of the nucleus: the least that the uplink's link settings need.

Source: AWS IoT Greengrass developer guide, Authorize components to perform IPC operations; docs/aws.md.
"""

from __future__ import annotations

from typing import Any

from skerry.messages import LANES
from skerry.uplink.settings import GreengrassLink

_MQTT, _LOCAL = "aws.greengrass.ipc.mqttproxy", "aws.greengrass.ipc.pubsub"
_SHADOW = "aws.greengrass.ShadowManager"


def topics_of(link: GreengrassLink, site: str) -> tuple[str, ...]:
    """Where batches go, one for each lane unless the template has no lane in it."""
    return tuple(dict.fromkeys(link.topic.format(site=site, lane=lane) for lane in LANES))


def remote_of(link: GreengrassLink, site: str) -> str:
    """The start of the topics of commands and of the reported state; empty: none."""
    return link.remote_topic.format(site=site)


def wants_shadow(link: GreengrassLink) -> bool:
    """Whether a shadow holds the desired or the reported state."""
    return "shadow" in (link.desired, link.reported)


def access_control(link: GreengrassLink, site: str, component: str) -> dict[str, Any]:
    """The `accessControl` of the uplink's component; its own configuration needs none.

    Args:
        link: of the uplink.
        site: put into the topics.
        component: name of the component, which the names of policies begin with.
    """
    found: dict[str, dict[str, Any]] = {}

    def allow(service: str, about: str, operations: list[str], resources: list[str]) -> None:
        if not resources:
            return
        policies = found.setdefault(service, {})
        short = {_MQTT: "mqttproxy", _LOCAL: "pubsub", _SHADOW: "shadow"}[service]
        policies[f"{component}:{short}:{len(policies) + 1}"] = {
            "policyDescription": about,
            "operations": [f"aws.greengrass#{operation}" for operation in operations],
            "resources": resources,
        }

    remote = remote_of(link, site)
    topics = list(topics_of(link, site))
    from_cloud = bool(remote) and "iot-core" in link.commands
    from_device = bool(remote) and "local" in link.commands
    told = [f"{remote}/reported"] if link.reported == "topic" else []
    answers = [f"{remote}/responses"]
    echoes = topics if link.confirm == "echo" else []
    allow(
        _MQTT, "batches, the reported state, answers", ["PublishToIoTCore"],
        [*topics, *told, *(answers if from_cloud else [])],
    )  # fmt: skip
    requests = [f"{remote}/requests/+"] if from_cloud else []
    allow(_MQTT, "commands, and the echo of batches", ["SubscribeToIoTCore"], [*requests, *echoes])
    if from_device:
        allow(_LOCAL, "commands of other components", ["SubscribeToTopic"], [f"{remote}/requests/*"])
        allow(_LOCAL, "their answers", ["PublishToTopic"], answers)
    if wants_shadow(link):
        thing = link.thing or "{iot:thingName}"
        shadow = f"$aws/things/{thing}/shadow/name/{link.shadow}"
        update = ["UpdateThingShadow"] if link.reported == "shadow" else []
        allow(_SHADOW, "the site's shadow", ["GetThingShadow", *update], [shadow])
        about = "changes of the shadow"
        changes = [f"{shadow}/update/documents", f"{shadow}/delete/accepted"]
        allow(_LOCAL, about, ["SubscribeToTopic"], changes)
    return found
