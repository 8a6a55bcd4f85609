"""The twins of a deployment for Azure IoT Edge: of its agent, its hub and our modules.

Source: Azure IoT Edge, "Properties of the IoT Edge agent and IoT Edge hub module twins", "Declare routes",
"Understand IoT Edge automatic deployments"; schema version 1.1 of both twins.
"""

from __future__ import annotations

import json
from typing import Any

from skerry.deploy.containers import Container
from skerry.deploy.deployment import Deployment
from skerry.deploy.iotedge_options import Architecture, environment, limits, options, settings, shown
from skerry.messages import LANES
from skerry.uplink.settings import AzureLink, EdgeIdentity

RUNTIME = "1.6.1"
"""Of IoT Edge's own modules: the release of long-term support at this time, by its full number."""
REGISTRY = "mcr.microsoft.com"
SCHEMA_VERSION = "1.1"
"""Of both twins: the first with the order of starting and with priorities, and no preview of anything."""
DAY_S = 86_400
TIME_TO_LIVE_S = {"alarm": 7 * DAY_S, "event": 7 * DAY_S, "telemetry": DAY_S, "bulk": DAY_S}
"""How long edgeHub keeps what the cloud has not taken: longer than the outage that a lane is to outlast."""
CREDENTIALS = (
    "CONTAINER_REGISTRY_ADDRESS",
    "CONTAINER_REGISTRY_USERNAME",
    "CONTAINER_REGISTRY_PASSWORD",
)
"""What a template leaves to the file .env beside it, by the names that IoT Edge's tools use."""
_DEFAULT_TIME_TO_LIVE_S = 7200
"""Of edgeHub, for the routes of others."""
_AGENT_MB, _HUB_MB = 256, 512

Json = dict[str, Any]


def full(deployment: Deployment, architecture: Architecture) -> Json:
    """A manifest with everything: the only one that a device needs."""
    made = agent(modules(deployment, architecture))
    return _manifest(made, _hub(routes(deployment)), twins(deployment))


def base() -> Json:
    """A manifest with nothing but IoT Edge itself, for devices that get the rest in layers."""
    return _manifest(agent({}), _hub({}), {})


def layered(deployment: Deployment, architecture: Architecture) -> Json:
    """A manifest without IoT Edge itself, laid over one that has it."""
    made = modules(deployment, architecture)
    content = {"$edgeAgent": {f"properties.desired.modules.{name}": module for name, module in made.items()}}
    if ways := routes(deployment):
        content["$edgeHub"] = {f"properties.desired.routes.{name}": route for name, route in ways.items()}
    content |= {name: {"properties.desired": desired} for name, desired in twins(deployment).items()}
    return {"modulesContent": content}


def template(deployment: Deployment, architecture: Architecture) -> Json:
    """For IoT Edge's development tools: options as objects, and a registry's credentials as variables."""
    made = full(deployment, architecture)
    desired = made["modulesContent"]["$edgeAgent"]["properties.desired"]
    address, user, password = (f"${name}" for name in CREDENTIALS)
    desired["runtime"]["settings"]["registryCredentials"] = {
        "site": {"address": address, "username": user, "password": password}
    }
    for module in [*desired["systemModules"].values(), *desired["modules"].values()]:
        image, *pieces = module["settings"].values()
        module["settings"] = {"image": image, "createOptions": json.loads("".join(pieces))}
    return {"$schema-template": "3.0.0", **made}


def modules(deployment: Deployment, architecture: Architecture) -> dict[str, Json]:
    """The modules by their name, in the order of starting: who is sent to before who sends.

    The agent starts them in that order and waits for nobody to be well.
    """
    return {
        container.name: _module(deployment, container, order, architecture)
        for order, container in enumerate(deployment.containers, start=1)
    }


def agent(made: dict[str, Json]) -> Json:
    """What is desired of edgeAgent."""
    return {
        "schemaVersion": SCHEMA_VERSION,
        "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25"}},
        "systemModules": {
            "edgeAgent": {
                "type": "docker",
                "env": {
                    # All images are there before the first module stops.
                    "ModuleUpdateMode": {"value": "WaitForAllPulls"},
                    "SendRuntimeQualityTelemetry": {"value": "false"},
                    **_STORAGE,
                },
                "settings": _system("agent", _AGENT_MB),
            },
            "edgeHub": {
                "type": "docker",
                "status": "running",
                "restartPolicy": "always",
                "startupOrder": 0,
                "env": _STORAGE,
                "settings": _system("hub", _HUB_MB),
            },
        },
        "modules": made,
    }


def routes(deployment: Deployment) -> dict[str, Json]:
    """A route to the cloud for each lane, the first lane first; none where edgeHub is passed by.

    edgeHub confirms what no route takes, and drops it.
    """
    link = deployment.site.link
    if not isinstance(link, AzureLink) or not through_edge_hub(deployment):
        return {}
    [uplink] = deployment.of("uplink")
    source = f"FROM /messages/modules/{uplink.name}"
    if link.outputs is False:
        whole = {"route": f"{source}/* INTO $upstream", "priority": 0, "timeToLiveSecs": 7 * DAY_S}
        return {"skerry": whole}
    return {
        f"skerry-{lane}": {
            "route": f"{source}/outputs/{lane} INTO $upstream",
            "priority": priority,
            "timeToLiveSecs": TIME_TO_LIVE_S[lane],
        }
        for priority, lane in enumerate(LANES)
    }


def twins(deployment: Deployment) -> dict[str, Json]:
    """What is desired of our modules: a version alone, which is told back as soon as it counts."""
    if not through_edge_hub(deployment) or deployment.site.remote.desired != "link":
        return {}
    return {container.name: {"version": deployment.site.version} for container in deployment.of("uplink")}


def through_edge_hub(deployment: Deployment) -> bool:
    """Whether the uplink is to edgeHub what a module is."""
    link = deployment.site.link
    return isinstance(link, AzureLink) and isinstance(link.identity, EdgeIdentity)


def _manifest(its_agent: Json, hub: Json, desired: dict[str, Json]) -> Json:
    content = {"$edgeAgent": its_agent, "$edgeHub": hub, **desired}
    return {"modulesContent": {name: {"properties.desired": twin} for name, twin in content.items()}}


def _hub(ways: dict[str, Json]) -> Json:
    """What is desired of edgeHub."""
    return {
        "schemaVersion": SCHEMA_VERSION,
        "routes": ways,
        "storeAndForwardConfiguration": {"timeToLiveSecs": _DEFAULT_TIME_TO_LIVE_S},
    }


_STORAGE = {"StorageFolder": {"value": "/iotedge/storage"}}


def _system(name: str, memory_mb: int) -> dict[str, str]:
    """One of IoT Edge's own. What edgeHub has confirmed is nowhere else, so it outlives its container."""
    volume = {"Type": "volume", "Source": f"iotedge-{name}", "Target": "/iotedge/storage"}
    host = {**limits(memory_mb), "Mounts": [volume]}
    return settings(f"{REGISTRY}/azureiotedge-{name}:{RUNTIME}", {"HostConfig": host})


def _module(deployment: Deployment, container: Container, order: int, architecture: Architecture) -> Json:
    # The agent takes a tag or a digest, and calls both together "not in the right format".
    image = deployment.images.reference(container.image, tag_and_digest=False)
    env = shown(environment(container))
    return {
        # Not the site's: a module whose version is another one is created anew, whatever else is the same.
        "version": deployment.images.tag,
        "type": "docker",
        "status": "running",
        "restartPolicy": "always",
        # Without a registry the images were brought to the device.
        "imagePullPolicy": "on-create" if deployment.images.registry else "never",
        "startupOrder": order,
        **({"env": env} if env else {}),
        "settings": settings(image, options(container, deployment.plan.site, architecture)),
    }
