"""A plan as a compose file, for a gateway that has Docker and no orchestrator.

`render` is pure and gives the same text for the same site. Each module is a service that can do nothing but
its work: not root, a root file system that is read-only, no capabilities, bounds of memory and processes, and
the private network; only who needs a camera or the cloud is in another one besides.

Source: the Compose Specification, https://github.com/compose-spec/compose-spec/blob/main/spec.md
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from skerry import __version__
from skerry.broker import MOSQUITTO_LIMITS
from skerry.capture.settings import (
    Camera,
    CaptureSettings,
    MjpegSource,
    RtspSource,
    SyntheticSource,
    V4l2Source,
)
from skerry.deploy.acl import ACL_FILE, BROKER, CONFIGURATION_FILE, acl, broker_configuration
from skerry.deploy.contained import BUS_CERTIFICATES, BUS_HOST, FRAMES, OUTPUT, STATE, USER, Mount, mounts_of
from skerry.deploy.plan import Part, Plan
from skerry.healthcheck import MQTT_PORT
from skerry.inference.settings import InferenceSettings
from skerry.uplink.settings import AzureLink, FileLink, UplinkSettings

COMPOSE_FILE = "compose.yaml"
BUS_FOLDER = "broker"
"""The broker's folder beside the compose file: its configuration, and its access rules where it is secure."""
CERTIFICATES_FOLDER = "certificates"
"""Where a secured site's certificates are, a folder for each identity: what `skerry certs` makes."""

_MIB = 1024 * 1024
_MEMORY_MB = {"capture": 384, "inference": 768, "decision": 192, "buffer": 256, "uplink": 192, "broker": 192}
"""Bounds of memory, MiB, about twice what the demo takes; capture's frames come on top of its own."""
_PIDS = {"capture": 256, "inference": 256}
"""Bounds of processes and threads, where 64 are too few: decoders and runtimes have a thread a core."""
_UNKNOWN_PIXELS = 1920 * 1080
"""Size of a picture that only the camera knows."""
_ID = f"{USER}:{USER}"


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """Which images a rendering names."""

    registry: str = ""
    """Put before their names, e.g. `registry.example/site`."""
    tag: str = __version__
    digests: dict[str, str] = msgspec.field(default_factory=dict)
    """`sha256:...` by name of the image, e.g. of `buffer`; an image with a digest is never another one."""

    def reference(self, name: str) -> str:
        """How an engine is told of an image."""
        prefix = f"{self.registry.rstrip('/')}/" if self.registry else ""
        digest = f"@{self.digests[name]}" if name in self.digests else ""
        return f"{prefix}skerry-{name}:{self.tag}{digest}"


def image_of(part: Part) -> str:
    """The image that a module needs for what it is told, by its name without `skerry-`."""
    match part.settings:
        case UplinkSettings(link=AzureLink()):
            return "uplink-azure"
        case InferenceSettings(models=models):
            if any(m.device in ("cuda", "tensorrt") for m in models):
                return "inference-gpu"
            if any(m.runtime == "openvino" or m.device in ("gpu", "npu", "openvino") for m in models):
                return "inference-openvino"
            return "inference-cpu"
        case _:
            return part.kind


def frame_bytes(settings: CaptureSettings) -> int:
    """Room that the frames of a capture module need, bytes.

    Twice the rings: one that a killed process left stays until its readers have let go of it. A picture whose
    size only the camera knows counts as 1920x1080; set the camera's `width` and `height` for larger ones.
    """
    rings = sum(
        settings.slots * _pages(3 * _pixels(camera)) + _pages(64 * settings.slots)
        for camera in settings.cameras
    )
    return 2 * rings


def render(plan: Plan, mounts: tuple[Mount, ...] = (), images: Images | None = None) -> dict[str, str]:
    """The files of a site for compose, by their path beside each other.

    Args:
        plan: made for `contained.place`.
        mounts: files of the machine that the site names, as `contained.contained` gives them.
        images: which to name; None: this version's, in no registry.
    """
    images = images or Images()
    ours = plan.parts[0].settings.bus.host == BUS_HOST
    services = {BUS_HOST: _bus(plan, images)} if ours else {}
    # Each starts when the next in the flow is there. Compose stops them the other way round, so nothing is
    # on its way when the next one stops.
    before = BUS_HOST if ours else ""
    for part in reversed(plan.parts):
        services[part.module] = _service(part, mounts, images, before)
        before = part.module
    outside = any("outside" in service["networks"] for service in services.values())
    document = {
        "name": f"skerry-{plan.site.lower()}",
        "services": services,
        "networks": {"site": {"internal": True}, **({"outside": {}} if outside else {})},
        "volumes": dict(_volumes(plan)),
    }
    files = {COMPOSE_FILE: _head(plan) + _yaml(document)}
    return files | (dict(_bus_files(plan)) if ours else {})


def _head(plan: Plan) -> str:
    return f"# Written by skerry render compose from the site {plan.site}; change that and render again.\n"


def _service(part: Part, mounts: tuple[Mount, ...], images: Images, before: str) -> dict[str, Any]:
    """One module."""
    settings = part.settings
    service = _confined(part.kind, images.reference(image_of(part)), _memory_mb(part))
    # A $ is compose's own; doubled it is ours.
    service["environment"] = {"SKERRY_SETTINGS": part.settings_json.replace("$", "$$")}
    service["networks"] = ["site", *(["outside"] if _goes_out(part) else [])]
    service["volumes"] = [
        f"{part.module}-state:{STATE}",
        *_folders(part),
        *(f"./{m.role}/{m.name}:{m.inside}:ro" for m in mounts_of(part, mounts)),
    ]
    if settings.bus.tls is not None and settings.bus.tls.ca.startswith(BUS_CERTIFICATES):
        service["volumes"].append(f"./{CERTIFICATES_FOLDER}/{part.module}:{BUS_CERTIFICATES}:ro")
    service |= _devices(part)
    service["healthcheck"] = _healthcheck(["python3", "-m", "skerry.healthcheck", str(settings.http_port)])
    # The module's own bound comes first: it ends itself a second after its grace.
    service["stop_grace_period"] = f"{math.ceil(settings.grace_s) + 3}s"
    if before:
        service["depends_on"] = {before: {"condition": "service_started"}}
    return service


def _bus(plan: Plan, images: Images) -> dict[str, Any]:
    """The broker."""
    service = _confined("broker", images.reference("broker"), _MEMORY_MB["broker"])
    service["networks"] = ["site"]
    service["volumes"] = [f"./{BUS_FOLDER}:/etc/skerry:ro"]
    if _secured(plan):
        service["volumes"].append(f"./{CERTIFICATES_FOLDER}/{BROKER}:{BUS_CERTIFICATES}:ro")
    command = [
        "python3",
        "/opt/skerry/healthcheck.py",
        "--mqtt",
        str(_ASKED_PORT if _secured(plan) else MQTT_PORT),
    ]
    service["healthcheck"] = _healthcheck(command)
    service["stop_grace_period"] = "5s"
    return service


_ASKED_PORT = 1880
"""Where a secured broker answers its own health check: loopback of its container, and nobody is let in."""


def _bus_files(plan: Plan) -> Iterator[tuple[str, str]]:
    """What is in the broker's folder."""
    if not _secured(plan):
        text = f"listener {MQTT_PORT}\nallow_anonymous true\n{MOSQUITTO_LIMITS}"
        yield f"{BUS_FOLDER}/{CONFIGURATION_FILE}", _head(plan) + text
        return
    text = broker_configuration(BUS_CERTIFICATES, port=plan.parts[0].settings.bus.port)
    # Access rules are generated and not secret, so they stand beside the configuration.
    text = text.replace(f"acl_file {BUS_CERTIFICATES}/{ACL_FILE}", f"acl_file /etc/skerry/{ACL_FILE}")
    yield f"{BUS_FOLDER}/{CONFIGURATION_FILE}", text + f"listener {_ASKED_PORT} 127.0.0.1\n"
    yield f"{BUS_FOLDER}/{ACL_FILE}", acl(plan)


def _secured(plan: Plan) -> bool:
    return plan.parts[0].settings.bus.tls is not None


def _confined(kind: str, image: str, memory_mb: int) -> dict[str, Any]:
    """What holds for every service."""
    return {
        "image": image,
        "restart": "unless-stopped",
        "user": _ID,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "mem_limit": f"{memory_mb}m",
        "memswap_limit": f"{memory_mb}m",
        "pids_limit": _PIDS.get(kind, 64),
        "tmpfs": ["/tmp:size=16m,mode=1777,noexec,nosuid,nodev"],  # noqa: S108 - the container's own, 16 MB
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
    }


def _healthcheck(command: list[str]) -> dict[str, Any]:
    return {
        "test": ["CMD", *command], "interval": "15s", "timeout": "5s", "retries": 3, "start_period": "60s",
    }  # fmt: skip


def _folders(part: Part) -> Iterator[str]:
    """Volumes that modules share."""
    if part.kind == "capture":
        yield f"frames:{FRAMES}"
    elif part.kind == "inference":
        yield f"frames:{FRAMES}:ro"
    if isinstance(part.settings, UplinkSettings) and isinstance(part.settings.link, FileLink):
        yield f"output:{OUTPUT}"


def _volumes(plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every volume: what must survive, and the frames in memory."""
    for part in plan.parts:
        yield f"{part.module}-state", {}
        if f"output:{OUTPUT}" in _folders(part):
            yield "output", {}
    room = sum(
        frame_bytes(part.settings) for part in plan.parts if isinstance(part.settings, CaptureSettings)
    )
    options = f"size={_mib(room)}m,mode=0750,uid={USER},gid={USER},nosuid,nodev,noexec"
    yield "frames", {"driver": "local", "driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": options}}


def _memory_mb(part: Part) -> int:
    """Bound of a module's memory, MiB. A page of the frame store is capture's, which wrote it first."""
    frames = _mib(frame_bytes(part.settings)) if isinstance(part.settings, CaptureSettings) else 0
    return _MEMORY_MB[part.kind] + frames


def _goes_out(part: Part) -> bool:
    """Whether a module talks to anything but the site: a camera on the network, or the cloud."""
    match part.settings:
        case CaptureSettings(cameras=cameras):
            away = any(isinstance(camera.source, RtspSource | MjpegSource) for camera in cameras)
        case UplinkSettings(link=link):
            away = not isinstance(link, FileLink)
        case _:
            away = False
    return away or part.settings.bus.host != BUS_HOST


def _devices(part: Part) -> dict[str, Any]:
    """Devices of the machine that a module opens, and the groups that may."""
    match part.settings:
        case CaptureSettings(cameras=cameras):
            found = dict.fromkeys(c.source.device for c in cameras if isinstance(c.source, V4l2Source))
            return {"devices": [f"{d}:{d}" for d in found], "group_add": ["video"]} if found else {}
        case InferenceSettings(models=models):
            return _accelerators({m.device for m in models})
        case _:
            return {}


def _accelerators(devices: set[str]) -> dict[str, Any]:
    """What a graphics or neural processor needs; the number of the group `render` is the machine's own."""
    if devices & {"cuda", "tensorrt"}:
        reserved = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        return {"deploy": {"resources": {"reservations": {"devices": [reserved]}}}}
    paths = [path for device, path in (("gpu", "/dev/dri"), ("npu", "/dev/accel")) if device in devices]
    return {"devices": [f"{p}:{p}" for p in paths], "group_add": ["${RENDER_GID:-105}"]} if paths else {}


def _pixels(camera: Camera) -> int:
    """Pixels of a picture at most."""
    source = camera.source
    if camera.width and camera.height:
        return camera.width * camera.height
    if isinstance(source, SyntheticSource) or (
        isinstance(source, V4l2Source) and source.width and source.height
    ):
        return (source.width or 0) * (source.height or 0)
    return _UNKNOWN_PIXELS


def _pages(n: int) -> int:
    return math.ceil(n / 4096) * 4096


def _mib(n: int) -> int:
    return math.ceil(n / _MIB)


class _Plain(yaml.SafeDumper):
    """Blocks, in the order given, no line broken, nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class's signature
        return True


def _yaml(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, width=sys.maxsize, allow_unicode=True)
