"""What Azure IoT Edge would refuse of a site, or take and then not do.

Source: Azure IoT Hub, "Quotas and throttling", "Understand and use device twins"; Azure IoT Edge, "Properties
of the IoT Edge agent and IoT Edge hub module twins"; Docker Engine, names of containers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from skerry.deploy.deployment import Deployment, Finding
from skerry.deploy.iotedge_manifest import agent, modules, through_edge_hub
from skerry.deploy.iotedge_options import RENDER_GID
from skerry.uplink.settings import AzureLink, FileLink, GreengrassLink

MOST_MODULES = 50
"""Of a device, with edgeAgent and edgeHub."""
TWIN_BYTES = 32 * 1024
"""Of what is desired of a module, and of what it reports: the agent reports all that is desired of it."""
_REPORTED_BYTES = 600
"""What the agent adds of each module, about: state, times, the image's digest."""
_OWN = ("edgeAgent", "edgeHub")
_CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_SAID_AT = {
    "broker": "$.cameras", "capture": "$.cameras", "inference": "$.models", "decision": "$.rules",
    "buffer": "$.buffer", "uplink": "$.link", "updater": "$.updater",
}  # fmt: skip
"""Where in a site file most of what a module is told is from."""


def findings(deployment: Deployment) -> list[Finding]:
    """What is wrong with a site on IoT Edge."""
    return [
        *_names(deployment), *_link(deployment), *_size(deployment), *_devices(deployment),
        *_registry(deployment),
    ]  # fmt: skip


def twin_bytes(value: Any) -> int:
    """What a value counts for in a twin: texts and keys by their length, numbers 8, Booleans 4."""
    match value:
        case dict():
            return sum(twin_bytes(key) + twin_bytes(each) for key, each in value.items())
        case str():
            return len(value.encode())
        case bool():
            return 4
        case _:
            return 8


def _names(deployment: Deployment) -> Iterator[Finding]:
    """Modules become containers of their name, beside those of IoT Edge."""
    for container in deployment.containers:
        where = f"$.captures.{container.name}"
        if container.name.lower() in (own.lower() for own in _OWN):
            yield Finding(
                where=where,
                text=f"expected another name than IoT Edge's own {', '.join(_OWN)}, got {container.name!r}",
            )
        elif not _CONTAINER_NAME.fullmatch(container.name):
            yield Finding(
                where=where,
                text="expected two characters or more, a letter or digit first (the container is called so), "
                f"got {container.name!r}",
            )
    all_of_them = len(deployment.containers) + len(_OWN)
    if all_of_them > MOST_MODULES:
        yield Finding(
            where="$.captures",
            text=f"expected at most {MOST_MODULES} modules with IoT Edge's own, got {all_of_them} (put "
            "several cameras into one module)",
        )


def _link(deployment: Deployment) -> Iterator[Finding]:
    link = deployment.site.link
    where = deployment.link_path
    match link:
        case GreengrassLink():
            yield Finding(where=f"{where}.kind", text="expected azure or another link, got greengrass (there "
                          "is no nucleus on IoT Edge)")  # fmt: skip
        case FileLink():
            yield Finding(
                where=f"{where}.kind", level="warning",
                text="expected azure, or another link that leaves the device, got file (events stay in a "
                "volume there)",
            )  # fmt: skip
        case AzureLink() if not through_edge_hub(deployment):
            kind = link.identity.__struct_config__.tag
            yield Finding(
                where=f"{where}.identity.kind", level="warning",
                text=f"expected auto, got {kind} (a module of IoT Edge has an identity of its own; with "
                "another one it passes edgeHub and its routes by, and its twin is not the module's)",
            )  # fmt: skip
        case _:
            pass


def _size(deployment: Deployment) -> Iterator[Finding]:
    """The agent has everything in its twin."""
    made = modules(deployment, "amd64")
    size = twin_bytes(agent(made))
    reported = size + _REPORTED_BYTES * (len(made) + len(_OWN))
    if reported <= TWIN_BYTES:
        return
    kinds = {container.name: container.kind for container in deployment.containers}
    sizes = {name: twin_bytes(module) for name, module in made.items()}
    largest = max(sizes, key=sizes.__getitem__)
    each = ", ".join(f"{name} {n}" for name, n in sorted(sizes.items(), key=lambda item: -item[1]))
    if size > TWIN_BYTES:
        yield Finding(
            where=_SAID_AT[kinds[largest]],
            text=f"expected at most {TWIN_BYTES} bytes in the twin of edgeAgent, got {size} ({each}; make "
            "two sites of it)",
        )
    else:
        yield Finding(
            where=_SAID_AT[kinds[largest]], level="warning",
            text=f"expected at most {TWIN_BYTES} bytes for edgeAgent to report, got about {reported} "
            f"({each}; the modules run, but the hub would not be told of their state)",
        )  # fmt: skip


def _devices(deployment: Deployment) -> Iterator[Finding]:
    """A group has the number that the device gave it, and the manifest is written before anybody knows it."""
    if not any("render" in container.groups for container in deployment.containers):
        return
    for n, model in enumerate(deployment.site.models):
        if model.device in ("gpu", "npu"):
            yield Finding(
                where=f"$.models[{n}].device", level="warning",
                text=f"expected {RENDER_GID} as the number of the device's group render, as on Debian 12 "
                "(ask getent group render there, and put another into GroupAdd)",
            )  # fmt: skip


def _registry(deployment: Deployment) -> Iterator[Finding]:
    if not deployment.images.registry:
        yield Finding(
            where="--registry", level="warning",
            text="expected a registry that the devices reach, got none (so nothing is pulled: bring the "
            "images to each device with docker load)",
        )  # fmt: skip
