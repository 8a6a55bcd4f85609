"""A plan as containers in neutral terms: what each runs, sees and may take. Every target is made from these.

Each container can do nothing but its work: not root, a root file system that is read-only, no capabilities,
bounds of memory and processes, and the network of the site; only who needs a camera on the network, the
cloud or a source of models reaches anything else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from skerry.broker import MOSQUITTO_LIMITS
from skerry.capture.settings import (
    Camera,
    CaptureSettings,
    MjpegSource,
    RtspSource,
    SyntheticSource,
    V4l2Source,
)
from skerry.deploy.acl import ACL_FILE, BROKER, CONFIGURATION_FILE, GENERATED, acl, broker_configuration
from skerry.deploy.contained import (
    BUS_CERTIFICATES,
    BUS_HOST,
    FRAMES,
    OUTPUT,
    STATE,
    STORE,
    USER,
    Mount,
    mounts_of,
)
from skerry.deploy.images import image_of
from skerry.deploy.plan import Part, Plan
from skerry.deploy.site import ContainerKind, Resources
from skerry.healthcheck import MQTT_PORT
from skerry.inference.settings import InferenceSettings
from skerry.settings import ModuleSettings, compact
from skerry.updater.settings import FolderSourceSettings, UpdaterSettings
from skerry.uplink.settings import FileLink, UplinkSettings

Accelerator = Literal["nvidia", "intel-gpu", "intel-npu"]

BROKER_FILES = "/etc/skerry"
"""Where the broker's configuration is, and its access rules where it is secure."""
TMP_MB = 16
"""Of /tmp, in memory, the only other place that a container can write to."""
LOG_BYTES, LOG_FILES = 10_000_000, 3
"""What an engine keeps of a container's log: a file of so many bytes, and so many files."""

_MIB = 1024 * 1024
_MEMORY_MB: dict[str, int] = {
    "capture": 384, "inference": 768, "decision": 192, "buffer": 256, "uplink": 192, "broker": 192,
    "updater": 192,
}  # fmt: skip
"""Bounds of memory, MiB, about twice what the demo takes; capture's frames come on top of its own."""
_PIDS = {"capture": 256, "inference": 256}
"""Bounds of processes and threads, where 64 are too few: decoders and runtimes have a thread a core."""
_UNKNOWN_PIXELS = 1920 * 1080
"""Size of a picture that only the camera knows."""
STORE_VOLUME = "model-store"
"""Name of the volume that updater and inference share."""
_ASKED_PORT = 1880
"""Where a secured broker answers its own health check: loopback of its container, and nobody is let in."""


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that outlives a container's run, as one container has it."""

    kind: Literal["state", "frames", "output", "store"]
    """`state` is one module's own; `frames` are in memory and shared; `output` holds a file link's events;
    `store` is the model store, which one writes and others read."""
    name: str
    """Unlike that of every other of the site."""
    inside: str
    """Where the container sees it."""
    read_only: bool = False
    bytes: int = 0
    """Of `frames`: how much has to fit."""


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """One process and all that it is given."""

    name: str
    """Of the module's instance, or `broker`; what others reach it by."""
    kind: ContainerKind
    image: str
    """Name of the image, as `Images.reference` takes it."""
    settings: ModuleSettings | None = None
    """What goes into `SKERRY_SETTINGS`, as JSON; None: the broker, which has `files`."""
    files: dict[str, str] = msgspec.field(default_factory=dict)
    """Of the broker: what must be in `BROKER_FILES`, by name. No secrets."""
    volumes: tuple[Volume, ...] = ()
    mounts: tuple[Mount, ...] = ()
    """Files of the machine that it reads."""
    identity: bool = False
    """Whether it reads its own `ca.crt`, `tls.crt` and `tls.key` in `BUS_CERTIFICATES`."""
    devices: tuple[str, ...] = ()
    """Of the machine, by path; the container sees each at the same one."""
    groups: tuple[str, ...] = ()
    """Groups of the machine that may open the devices: `video`, `render`."""
    accelerators: tuple[Accelerator, ...] = ()
    memory_mb: int
    """Bound of memory, MiB, with the frames that it writes and without swap."""
    cpus: float | None = None
    """Bound of processor time, in cores."""
    pids: int = 64
    """Bound of processes and threads."""
    health: tuple[str, ...]
    """The command that ends with 0 while it is well."""
    port: int
    """Where a module serves /healthz, /readyz and /metrics; where the broker listens."""
    stop_s: int
    """How long it may take to end. A module's own bound comes first."""
    outside: bool = False
    """Whether it talks to anything but the site: a camera on the network, the cloud, a source of models."""

    @property
    def environment(self) -> dict[str, str]:
        """What it is told; no secret is ever in it."""
        if self.settings is None:
            return {}
        return {
            "SKERRY_SETTINGS": json.dumps(compact(self.settings), separators=(",", ":"), ensure_ascii=False)
        }


def containers(
    plan: Plan, mounts: tuple[Mount, ...] = (), resources: Mapping[ContainerKind, Resources] | None = None
) -> tuple[Container, ...]:
    """Every container of a site, in the order of starting: the broker, then who is sent to before who sends.

    Stopped the other way round, nothing is on its way when the next one stops.

    Args:
        plan: made for `contained.place`.
        mounts: files of the machine that the site names, as `contained.contained` gives them.
        resources: bounds that the site sets.
    """
    bounds = dict(resources or {})
    found = [_module(part, plan, mounts, bounds) for part in reversed(plan.parts)]
    if plan.parts[0].settings.bus.host == BUS_HOST:
        found.insert(0, _broker(plan, bounds))
    return tuple(found)


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


def mib(n: int) -> int:
    """Bytes as MiB, rounded up."""
    return math.ceil(n / _MIB)


def _module(
    part: Part, plan: Plan, mounts: tuple[Mount, ...], bounds: dict[ContainerKind, Resources]
) -> Container:
    settings = part.settings
    kind: ContainerKind = part.kind  # type: ignore[assignment]  # a part's kind is one of KINDS
    its = bounds.get(kind, Resources())
    frames = mib(frame_bytes(settings)) if isinstance(settings, CaptureSettings) else 0
    tls = settings.bus.tls
    port = settings.http_port or 0
    return Container(
        name=part.module, kind=kind, image=image_of(part), settings=settings,
        volumes=tuple(_volumes(part, plan)), mounts=mounts_of(part, mounts),
        identity=tls is not None and tls.ca.startswith(BUS_CERTIFICATES),
        devices=_devices(settings), groups=_groups(settings), accelerators=_accelerators(settings),
        # A page of the frame store is capture's, which wrote it first.
        memory_mb=(its.memory_mb or _MEMORY_MB[kind]) + frames, cpus=its.cpus, pids=_PIDS.get(kind, 64),
        health=("python3", "-m", "skerry.healthcheck", str(port)), port=port,
        # The module's own bound comes first: it ends itself a second after its grace.
        stop_s=math.ceil(settings.grace_s) + 3, outside=_goes_out(part),
    )  # fmt: skip


def _broker(plan: Plan, bounds: dict[ContainerKind, Resources]) -> Container:
    bus = plan.parts[0].settings.bus
    secured = bus.tls is not None
    its = bounds.get("broker", Resources())
    if secured:
        text = broker_configuration(BUS_CERTIFICATES, port=bus.port)
        # Access rules are generated and not secret, so they stand beside the configuration.
        text = text.replace(f"acl_file {BUS_CERTIFICATES}/{ACL_FILE}", f"acl_file {BROKER_FILES}/{ACL_FILE}")
        files = {CONFIGURATION_FILE: f"{text}listener {_ASKED_PORT} 127.0.0.1\n", ACL_FILE: acl(plan)}
    else:
        files = {
            CONFIGURATION_FILE: f"{GENERATED}listener {bus.port}\nallow_anonymous true\n{MOSQUITTO_LIMITS}"
        }
    asked = _ASKED_PORT if secured else MQTT_PORT
    return Container(
        name=BROKER, kind="broker", image="broker", files=files, identity=secured,
        memory_mb=its.memory_mb or _MEMORY_MB["broker"], cpus=its.cpus,
        health=("python3", "/opt/skerry/healthcheck.py", "--mqtt", str(asked)), port=bus.port, stop_s=5,
    )  # fmt: skip


def _volumes(part: Part, plan: Plan) -> Iterator[Volume]:
    yield Volume(kind="state", name=f"{part.module}-state", inside=STATE)
    if part.kind in ("capture", "inference"):
        room = sum(frame_bytes(p.settings) for p in plan.parts if isinstance(p.settings, CaptureSettings))
        yield Volume(
            kind="frames", name="frames", inside=FRAMES, read_only=part.kind == "inference", bytes=room
        )
    if isinstance(part.settings, UplinkSettings) and isinstance(part.settings.link, FileLink):
        yield Volume(kind="output", name="output", inside=OUTPUT)
    if getattr(part.settings, "store", ""):
        yield Volume(kind="store", name=STORE_VOLUME, inside=STORE, read_only=part.kind != "updater")


def tmpfs_options(volume: Volume) -> str:
    """How a volume in memory is mounted, as `mount -o` takes it."""
    return f"size={mib(volume.bytes)}m,mode=0750,uid={USER},gid={USER},nosuid,nodev,noexec"


def kept_in(volume: str) -> str:
    """What a volume or claim of this name has in it that cannot be made again."""
    store = volume == STORE_VOLUME or volume.endswith(f"-{STORE_VOLUME}")
    return "the models that came" if store else "what was not delivered"


def source_bind(mount: Mount, outside: str) -> str:
    """A folder of the device that models come from, as `docker run --volume` takes it.

    Docker makes the folder where it is missing, and what is mounted on it later, a stick, is seen inside.

    Args:
        mount: of the role `sources`.
        outside: where it is on the device.
    """
    return f"{outside}:{mount.inside}:ro,rslave"


def _goes_out(part: Part) -> bool:
    match part.settings:
        case CaptureSettings(cameras=cameras):
            away = any(isinstance(camera.source, RtspSource | MjpegSource) for camera in cameras)
        case UplinkSettings(link=link):
            away = not isinstance(link, FileLink)
        case UpdaterSettings(sources=sources):
            away = any(not isinstance(source, FolderSourceSettings) for source in sources)
        case _:
            away = False
    return away or part.settings.bus.host != BUS_HOST


def _devices(settings: ModuleSettings) -> tuple[str, ...]:
    match settings:
        case CaptureSettings(cameras=cameras):
            return tuple(dict.fromkeys(c.source.device for c in cameras if isinstance(c.source, V4l2Source)))
        case InferenceSettings():
            paths = {"intel-gpu": "/dev/dri", "intel-npu": "/dev/accel"}
            return tuple(paths[name] for name in _accelerators(settings) if name in paths)
        case _:
            return ()


def _groups(settings: ModuleSettings) -> tuple[str, ...]:
    if not _devices(settings):
        return ()
    return ("video",) if isinstance(settings, CaptureSettings) else ("render",)


def _accelerators(settings: ModuleSettings) -> tuple[Accelerator, ...]:
    if not isinstance(settings, InferenceSettings):
        return ()
    devices = {model.device for model in settings.models}
    wanted: dict[Accelerator, bool] = {
        "nvidia": bool(devices & {"cuda", "tensorrt"}), "intel-gpu": "gpu" in devices,
        "intel-npu": "npu" in devices,
    }  # fmt: skip
    return tuple(name for name, there in wanted.items() if there)


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
