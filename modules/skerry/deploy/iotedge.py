"""A site as the files of Azure IoT Edge: manifests for its hub, and what rolls them out.

Source: Azure IoT Edge, "Understand IoT Edge automatic deployments", "Monitor IoT Edge deployments"; Azure IoT
Hub, "Query language for device and module twins".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from skerry.deploy.contained import Mount
from skerry.deploy.deployment import Deployment, Renderer
from skerry.deploy.devices import DEVICES
from skerry.deploy.iotedge_findings import findings
from skerry.deploy.iotedge_manifest import CREDENTIALS, base, full, layered, template, twins
from skerry.deploy.iotedge_options import DEVICE_FOLDER, Architecture

DEPLOYMENT, LAYERED, TEMPLATE = "deployment", "layered", "deployment.template"
BASE_FILE, RINGS_FILE, METRICS_FILE, VARIABLES_FILE = "base.json", "rings.json", "metrics.json", "env.example"
DEVICE = "device"
"""The folder beside the files whose content is brought to each device."""
RINGS = (("canary", ("0",)), ("early", ("0", "1")), ("all", ()))
"""Name of a step of a rollout, and the rings that have it then; none: every device of the site."""


def render(deployment: Deployment) -> dict[str, str]:
    """The files of a site for IoT Edge, by their path beside each other.

    Where they differ between architectures, there is one for each: `deployment.amd64.json`.
    """
    files = {BASE_FILE: _text(base())}
    for name, make in ((DEPLOYMENT, full), (LAYERED, layered), (TEMPLATE, template)):
        made = {each: _text(make(deployment, each)) for each in architectures(deployment)}
        if len(set(made.values())) == 1:
            files[f"{name}.json"] = next(iter(made.values()))
        else:
            files |= {f"{name}.{each}.json": text for each, text in made.items()}
    files[RINGS_FILE] = _text(_rings(deployment))
    files[METRICS_FILE] = _text({"queries": dict(_metrics(deployment))})
    files[VARIABLES_FILE] = _variables(deployment)
    return files


def architectures(deployment: Deployment) -> tuple[Architecture, ...]:
    """Those that the site can run on: that of its class of device, or all (Intel's are in PCs)."""
    device = DEVICES.get(deployment.site.device)
    if device is not None:
        return ("arm64v8",) if device.architecture == "arm64" else ("amd64",)
    intel = any(name.startswith("intel") for c in deployment.containers for name in c.accelerators)
    return ("amd64",) if intel else ("amd64", "arm64v8")


def deployment_id(deployment: Deployment) -> str:
    """What a deployment of this version is called in the hub, which takes lower case and no dots."""
    return f"skerry-{deployment.plan.site}-{deployment.site.version}".lower().replace(".", "-")


def _rings(deployment: Deployment) -> dict[str, Any]:
    """Steps of a rollout: the condition of one deployment, wider each time."""
    site, version = deployment.plan.site, deployment.site.version

    def condition(rings: tuple[str, ...]) -> str:
        some = f" AND tags.skerry.ring IN [{', '.join(map(repr, rings))}]" if rings else ""
        return f"tags.skerry.site = '{site}'{some}"

    return {
        "deploymentId": deployment_id(deployment),
        "labels": {"site": site, "version": version, "images": deployment.images.tag},
        "rings": [{"name": name, "targetCondition": condition(rings)} for name, rings in RINGS],
    }


def _metrics(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """Queries that count the devices which are as the deployment wants them, by their name."""
    reported = "properties.reported"

    def where(module: str, *conditions: str) -> str:
        said = " AND ".join([f"moduleId = '{module}'", *(f"{reported}.{c}" for c in conditions)])
        return f"SELECT deviceId FROM devices.modules WHERE {said}"  # noqa: S608 - of names that are checked

    names = [container.name for container in deployment.containers]
    yield "running", where("$edgeAgent", *(f"modules.{_key(n)}.runtimeStatus = 'running'" for n in names))
    for name, desired in twins(deployment).items():
        version = f"desired.version = 'twin/{desired['version']}'"
        yield "applied", where(name, version, "desired.state = 'applied'")
        parts = [part.module for part in deployment.plan.parts]
        yield "ready", where(name, *(f"modules.{_key(n)}.state = 'ready'" for n in parts))


def _key(name: str) -> str:
    """A name in a query: in double brackets with anything but letters and digits in it."""
    return name if re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name) else f"[[{name}]]"


def _variables(deployment: Deployment) -> str:
    told = f"Copy it to .env beside {TEMPLATE}.json, fill it in, and keep that to yourself."
    lines = "".join(f"{name}=\n" for name in CREDENTIALS)
    return f"# {deployment.head()}\n# {told}\n{lines}"


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _copies(mount: Mount) -> str:
    return f"{DEVICE}/{mount.role}/{mount.name}" if mount.role == "models" else ""


def _told(deployment: Deployment) -> list[str]:
    said = [
        f"{DEVICE}/{m.role}/{m.name}: put {m.outside} there" for m in deployment.brought if not _copies(m)
    ]
    said += deployment.sources_told
    if deployment.secure:
        said.append(f"{DEVICE}/certificates: skerry certs SITE --out certificates, without its authority/")
    said.append(f"{DEVICE} becomes {DEVICE_FOLDER}/{deployment.plan.site} on the device, owned by user 10001")
    first = next(name for name in render(deployment) if name.startswith(f"{DEPLOYMENT}."))
    return [*said, f"az iot edge set-modules --hub-name HUB --device-id DEVICE --content {first}"]


RENDERER = Renderer(render=render, findings=findings, copies=_copies, told=_told)
