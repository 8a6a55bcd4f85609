"""A deployment as a compose file, for a gateway that has Docker and no orchestrator.

Source: the Compose Specification, https://github.com/compose-spec/compose-spec/blob/main/spec.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from skerry.deploy.contained import BUS_CERTIFICATES, USER, Mount
from skerry.deploy.containers import (
    BROKER_FILES,
    LOG_BYTES,
    LOG_FILES,
    TMP_MB,
    Container,
    Volume,
    source_bind,
    tmpfs_options,
)
from skerry.deploy.deployment import Deployment, Finding, Renderer
from skerry.deploy.plain_yaml import dump

COMPOSE_FILE = "compose.yaml"
BUS_FOLDER = "broker"
"""The broker's folder beside the compose file: its configuration, and its access rules where it is secure."""
CERTIFICATES_FOLDER = "certificates"
"""Where a secured site's certificates are, a folder for each identity: what `skerry certs` makes."""


def render(deployment: Deployment) -> dict[str, str]:
    """The files of a site for compose, by their path beside each other."""
    services: dict[str, Any] = {}
    # Each starts when the next in the flow is there. Compose stops them the other way round.
    before = ""
    for container in deployment.containers:
        services[container.name] = _service(container, deployment, before)
        before = container.name
    outside = any(container.outside for container in deployment.containers)
    volumes = {v.name: v for c in deployment.containers for v in c.volumes}
    document = {
        "name": f"skerry-{deployment.plan.site.lower()}",
        "services": services,
        "networks": {"site": {"internal": True}, **({"outside": {}} if outside else {})},
        "volumes": {name: _volume(volume) for name, volume in volumes.items()},
    }
    head = f"# {deployment.head()}\n"
    files = {COMPOSE_FILE: head + dump(document)}
    if deployment.broker is not None:
        files |= {f"{BUS_FOLDER}/{name}": text for name, text in deployment.broker.files.items()}
    return files


def findings(deployment: Deployment) -> list[Finding]:
    """Compose takes whatever a site can say."""
    del deployment
    return []


def _copies(mount: Mount) -> str:
    return f"{mount.role}/{mount.name}" if mount.role == "models" else ""


def _told(deployment: Deployment) -> list[str]:
    said = [f"{m.role}/{m.name}: put {m.outside} there" for m in deployment.brought if not _copies(m)]
    said += deployment.sources_told
    if deployment.secure:
        said.append(f"{CERTIFICATES_FOLDER}: skerry certs SITE --out {CERTIFICATES_FOLDER}")
    return [*said, "docker compose up -d"]


def _service(container: Container, deployment: Deployment, before: str) -> dict[str, Any]:
    service = {
        "image": deployment.images.reference(container.image),
        "restart": "unless-stopped",
        "user": f"{USER}:{USER}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "mem_limit": f"{container.memory_mb}m",
        "memswap_limit": f"{container.memory_mb}m",
        **({"cpus": container.cpus} if container.cpus else {}),
        "pids_limit": container.pids,
        "tmpfs": [f"/tmp:size={TMP_MB}m,mode=1777,noexec,nosuid,nodev"],  # noqa: S108 - the container's own
        "logging": {
            "driver": "json-file",
            "options": {"max-size": f"{LOG_BYTES // 1_000_000}m", "max-file": str(LOG_FILES)},
        },
        # A $ is compose's own; doubled it is ours.
        "environment": {key: value.replace("$", "$$") for key, value in container.environment.items()},
        "networks": ["site", *(["outside"] if container.outside else [])],
        "volumes": list(_mounted(container)),
        **_devices(container),
        "healthcheck": {
            "test": ["CMD", *container.health],
            "interval": "15s", "timeout": "5s", "retries": 3, "start_period": "60s",
        },
        "stop_grace_period": f"{container.stop_s}s",
        **({"depends_on": {before: {"condition": "service_started"}}} if before else {}),
    }  # fmt: skip
    return {key: value for key, value in service.items() if value not in ({}, [])}


def _mounted(container: Container) -> Iterator[str]:
    for volume in container.volumes:
        yield f"{volume.name}:{volume.inside}{':ro' if volume.read_only else ''}"
    for mount in container.mounts:
        if mount.role == "sources":
            # A $ is compose's own here too.
            yield source_bind(mount, mount.outside).replace("$", "$$")
            continue
        yield f"./{mount.role}/{mount.name}:{mount.inside}:ro"
    if container.files:
        yield f"./{BUS_FOLDER}:{BROKER_FILES}:ro"
    if container.identity:
        yield f"./{CERTIFICATES_FOLDER}/{container.name}:{BUS_CERTIFICATES}:ro"


def _volume(volume: Volume) -> dict[str, Any]:
    if volume.kind != "frames":
        return {}
    options = {"type": "tmpfs", "device": "tmpfs", "o": tmpfs_options(volume)}
    return {"driver": "local", "driver_opts": options}


def _devices(container: Container) -> dict[str, Any]:
    """Devices of the machine, and the groups that may; the number of `render` is the machine's own."""
    found: dict[str, Any] = {}
    if "nvidia" in container.accelerators:
        reserved = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        found["deploy"] = {"resources": {"reservations": {"devices": [reserved]}}}
    if container.devices:
        numbers = {"render": "${RENDER_GID:-105}"}
        found["devices"] = [f"{path}:{path}" for path in container.devices]
        found["group_add"] = [numbers.get(group, group) for group in container.groups]
    return found


RENDERER = Renderer(render=render, findings=findings, copies=_copies, told=_told)
