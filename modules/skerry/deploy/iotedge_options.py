"""What Azure IoT Edge is told of one container: its environment, and the engine's options for creating it.

`createOptions` are the body of the engine's `POST /containers/create`; the agent of IoT Edge adds the image,
the environment, a label, its network and the module's socket, and hands the rest on as it is.

Source: Docker Engine API 1.41, ContainerCreate; Azure/iotedge, edge-agent, DockerConfig.cs (chunks),
edgelet-docker, runtime.rs (`create`, `merge_env`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from skerry.broker_entry import CONFIGURATION, MADE, RULES
from skerry.deploy.acl import ACL_FILE, CONFIGURATION_FILE
from skerry.deploy.contained import BUS_CERTIFICATES, USER, Mount
from skerry.deploy.containers import (
    BROKER_FILES,
    LOG_BYTES,
    LOG_FILES,
    TMP_MB,
    Container,
    Volume,
    mib,
    source_bind,
    tmpfs_options,
)

Architecture = Literal["amd64", "arm64v8"]
"""As IoT Edge's own files are named."""

CHUNK = 512
"""Characters of `createOptions` in one property, as the agent cuts them: it joins createOptions,
createOptions01, ... up to 99."""
LONGEST_TEXT = 4096
"""Bytes of a text in a twin. Source: Azure IoT Hub, device twins, "Tags and properties format"."""
DEVICE_FOLDER = "/var/lib/skerry"
"""On the device: below it a folder for each site, which an operator fills."""
RENDER_GID = 105
"""Of the group `render` of a Debian 12; the container's own list of groups has no such name."""

_MIB = 1024 * 1024
_S = 1_000_000_000
"""A second in the engine's nanoseconds."""


def settings(image: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The `settings` of a module: its image, and the options as text in chunks."""
    text = json.dumps(options, separators=(",", ":"), ensure_ascii=False)
    pieces = [text[n : n + CHUNK] for n in range(0, len(text), CHUNK)]
    names = ["createOptions", *(f"createOptions{n:02d}" for n in range(1, len(pieces)))]
    return {"image": image, **dict(zip(names, pieces, strict=True))}


def environment(container: Container) -> dict[str, str]:
    """All that a container is told."""
    told = dict(container.environment)
    for name, variable in ((CONFIGURATION_FILE, CONFIGURATION), (ACL_FILE, RULES)):
        if name in container.files:
            told[variable] = _bare(container.files[name]).replace(f"{BROKER_FILES}/", f"{MADE}/")
    return told


def shown(told: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The part of it that a module's `env` can hold, where the portal shows it."""
    return {name: {"value": text} for name, text in told.items() if _fits(text)}


def options(container: Container, site: str, architecture: Architecture) -> dict[str, Any]:
    """The engine's options for creating a container.

    Args:
        container: which.
        site: its name, for the names of volumes and the device's folder.
        architecture: of the device; NVIDIA's boards want the runtime of that name.
    """
    # What `env` cannot hold is cut into chunks here.
    rest = [f"{name}={text}" for name, text in environment(container).items() if not _fits(text)]
    nvidia = "nvidia" in container.accelerators
    if nvidia and architecture == "arm64v8":
        rest += ["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]
    host = {
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        **limits(container.memory_mb),
        **({"NanoCpus": round(container.cpus * _S)} if container.cpus else {}),
        "PidsLimit": container.pids,
        "Tmpfs": {"/tmp": f"size={TMP_MB}m,mode=1777,noexec,nosuid,nodev"},  # noqa: S108 - the container's own
        "Mounts": list(_mounts(container, site)),
        **_sources(container),
        **_devices(container),
        **(_nvidia(architecture) if nvidia else {}),
    }
    return {
        "User": f"{USER}:{USER}",
        **({"Env": rest} if rest else {}),
        "StopTimeout": container.stop_s,
        "Healthcheck": {
            "Test": ["CMD", *container.health],
            "Interval": 15 * _S, "Timeout": 5 * _S, "Retries": 3, "StartPeriod": 60 * _S,
        },
        "HostConfig": host,
    }  # fmt: skip


def limits(memory_mb: int) -> dict[str, Any]:
    """Bounds that every container has, IoT Edge's own too: of memory, without swap, and of its log."""
    return {
        "Memory": memory_mb * _MIB,
        "MemorySwap": memory_mb * _MIB,
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": f"{LOG_BYTES // 1_000_000}m", "max-file": str(LOG_FILES)},
        },
    }


def folder_of(site: str, mount: Mount) -> str:
    """Where on the device a file or folder is that the site names."""
    return f"{DEVICE_FOLDER}/{site}/{mount.role}/{mount.name}"


def _bare(text: str) -> str:
    """Without comments and empty lines: there is little room in a twin."""
    return "".join(f"{line}\n" for line in text.splitlines() if line and not line.startswith("#"))


def _fits(text: str) -> bool:
    """Whether a twin's property can hold it. A line break is not lost there, but nobody promises it."""
    return len(text.encode()) <= LONGEST_TEXT and text.isprintable()


def _mounts(container: Container, site: str) -> Iterator[dict[str, Any]]:
    for volume in container.volumes:
        yield _volume(volume, site)
    for mount in container.mounts:
        if mount.role != "sources":
            yield _bind(folder_of(site, mount), mount.inside)
    if container.identity:
        yield _bind(f"{DEVICE_FOLDER}/{site}/certificates/{container.name}", BUS_CERTIFICATES)


def _bind(source: str, target: str) -> dict[str, Any]:
    """Something of the device, to read.

    Where it is missing, the engine says so; for one of `Binds` it would make an empty folder, root's.
    """
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": True}


def _sources(container: Container) -> dict[str, list[str]]:
    """Folders of the device that models come from. The engine makes those of `Binds` that are missing."""
    found = [source_bind(mount, mount.outside) for mount in container.mounts if mount.role == "sources"]
    return {"Binds": found} if found else {}


def _volume(volume: Volume, site: str) -> dict[str, Any]:
    name = f"skerry-{site}-{volume.name}"
    if volume.kind != "frames":
        read_only = {"ReadOnly": True} if volume.read_only else {}
        return {"Type": "volume", "Source": name, "Target": volume.inside, **read_only}
    # The engine never changes a volume that is there: another size is another volume.
    driver = {"type": "tmpfs", "device": "tmpfs", "o": tmpfs_options(volume)}
    return {
        "Type": "volume",
        "Source": f"{name}-{mib(volume.bytes)}m",
        "Target": volume.inside,
        **({"ReadOnly": True} if volume.read_only else {}),
        "VolumeOptions": {"NoCopy": True, "DriverConfig": {"Name": "local", "Options": driver}},
    }


def _devices(container: Container) -> dict[str, Any]:
    if not container.devices:
        return {}
    numbers = {"render": str(RENDER_GID)}
    return {
        "Devices": [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}
            for path in container.devices
        ],
        "GroupAdd": [numbers.get(group, group) for group in container.groups],
    }


def _nvidia(architecture: Architecture) -> dict[str, Any]:
    """One GPU. Capabilities are a list of lists: one of these, all of those."""
    if architecture == "arm64v8":
        return {"Runtime": "nvidia"}
    return {"DeviceRequests": [{"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}]}
