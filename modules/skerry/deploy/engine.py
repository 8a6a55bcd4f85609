"""What a Docker engine should have for a site, and what to do about what it has. No engine is asked here.

Everything that is made has labels: whose it is, and what it was made from, so that the next run sees what
has changed. Files are in volumes whose names say what is in them: other files are another volume, and whoever
reads them is made again. So a volume is never changed under a module that runs.

Source: Docker Engine API v1.41, https://docs.docker.com/engine/api/v1.41/
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from skerry.deploy.contained import BUS_CERTIFICATES, FOLDERS, USER
from skerry.deploy.containers import (
    BROKER_FILES,
    LOG_BYTES,
    LOG_FILES,
    TMP_MB,
    Container,
    Volume,
    kept_in,
    mib,
    source_bind,
    tmpfs_options,
)
from skerry.deploy.deployment import Deployment
from skerry.errors import ConfigError
from skerry.redact import cleaned

SITE_LABEL, MODULE_LABEL, KIND_LABEL = "skerry.site", "skerry.module", "skerry.kind"
SPEC_LABEL, DIGEST_LABEL = "skerry.made-from", "skerry.digest"
DRAFT, FILLER = ".new", ".fill"
"""What a container is called that is not in its place yet, and one that was made to fill a volume."""

_MIB, _SECOND = 1024 * 1024, 1_000_000_000
_FLOW = ("capture", "inference", "decision", "buffer", "uplink", "updater", "broker")
"""Who stops before whom: nothing is on its way when the next one stops."""
_SHORT = 12
"""Digits of an image's id that are shown."""
_LONGEST = 120
"""Characters of a value in a line of differences."""

Content = Literal["models", "inputs", "secrets", "broker", "certificates"]


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """Files that containers see below one folder, and that a volume has to be filled with."""

    content: Content
    inside: str
    """The folder."""
    names: tuple[str, ...]
    """What is in it: the mounts of that role, the broker's files, or the certificate's."""
    owner: str = ""
    """Of `certificates`: whose."""

    @property
    def private(self) -> bool:
        """Whether nobody but their reader may see them."""
        return self.content in ("secrets", "certificates")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of the engine's machine."""

    binds: Mapping[str, str] = msgspec.field(default_factory=dict)
    """By `ROLE/NAME` of a mount: the path on the engine's machine that is mounted in place of a copy."""
    render_gid: int = 105
    """Number of the group `render` there, for Intel's accelerators."""


class WantedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume, and what it is for."""

    name: str
    kind: str
    """Of a `Volume`, or the content of a `Copy`."""
    options: dict[str, str] = msgspec.field(default_factory=dict)
    """Of the driver."""
    copy: Copy | None = None
    """What it is filled with."""


class WantedContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container as the engine is asked for it."""

    name: str
    module: str
    kind: str
    image: str
    config: dict[str, Any]
    """The body of `POST /containers/create`, without labels."""
    networks: tuple[str, ...]
    """Networks beside the first, which is in `config`."""
    stop_s: int

    @property
    def spec(self) -> str:
        """What it is made from, as JSON that is the same for the same."""
        return json.dumps([self.config, self.networks], sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """Of `spec`."""
        return hashlib.sha256(self.spec.encode()).hexdigest()


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of a site on an engine."""

    site: str
    networks: dict[str, bool]
    """By name, in the order of making: whether it leads nowhere."""
    volumes: tuple[WantedVolume, ...]
    containers: tuple[WantedContainer, ...]
    """In the order of starting."""


class Thing(msgspec.Struct, frozen=True, kw_only=True):
    """A container, volume or network that an engine has."""

    name: str
    id: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    state: str = ""
    """Of a container: `running`, `exited`, `created`, `restarting`, ..."""
    image: str = ""
    """Of a container: the id of its image."""


class There(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine has, of this site and of others."""

    containers: tuple[Thing, ...] = ()
    volumes: tuple[Thing, ...] = ()
    networks: tuple[Thing, ...] = ()
    images: dict[str, str] = msgspec.field(default_factory=dict)
    """Ids by reference, of those that the engine has."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one container."""

    action: Literal["create", "replace", "start", "remove"]
    name: str
    module: str
    kind: str
    old: str = ""
    """Id of the container that is there."""
    why: tuple[str, ...] = ()

    @property
    def ends(self) -> bool:
        """Whether the container that is there is stopped for it."""
        return self.action in ("replace", "remove")


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done, all of it."""

    containers: tuple[Change, ...] = ()
    new_networks: tuple[str, ...] = ()
    new_volumes: tuple[WantedVolume, ...] = ()
    old_networks: tuple[Thing, ...] = ()
    old_volumes: tuple[Thing, ...] = ()
    left_over: tuple[Thing, ...] = ()
    """Containers of a run that was cut off."""
    half_filled: tuple[str, ...] = ()
    """Volumes of such a run, by name."""
    kept: tuple[str, ...] = ()
    """Volumes that nobody of the site uses any more, with what cannot be made again."""
    same: int = 0
    """Containers that stay as they are."""

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(
            self.containers or self.new_networks or self.new_volumes or self.old_networks
            or self.old_volumes or self.left_over or self.half_filled
        )  # fmt: skip

    @property
    def stopping(self) -> tuple[Change, ...]:
        """Those that end, in the order of the flow: first who sends, then who is sent to."""
        return tuple(sorted((c for c in self.containers if c.ends), key=lambda c: (_place(c.kind), c.name)))


def project_of(site: str) -> str:
    """What everything of a site is called by, first."""
    return f"skerry-{site.lower()}"


def copies(deployment: Deployment, options: Options | None = None) -> tuple[Copy, ...]:
    """What has to be copied, each content once.

    Raises:
        ConfigError: see `_copied`.
    """
    binds = (options or Options()).binds
    found = [copy for container in deployment.containers for copy in _copied(container, binds)]
    known = {f"{mount.role}/{mount.name}" for mount in deployment.mounts}
    unknown = sorted(set(binds) - known)
    if unknown:
        raise ConfigError(
            [f"--bind: expected one of {', '.join(sorted(known)) or 'none'}, got {name}" for name in unknown]
        )
    return tuple(dict.fromkeys(found))


def wanted(deployment: Deployment, contents: Mapping[Copy, str], options: Options | None = None) -> Wanted:
    """What the engine should have. Pure.

    Args:
        deployment: of the target compose: what an engine can do is what compose can.
        contents: for each of `copies`, what `archive.content_name` says of its files.
        options: of the operator.
    """
    options = options or Options()
    project = project_of(deployment.plan.site)
    volumes: dict[str, WantedVolume] = {}
    found = []
    for container in deployment.containers:
        mounted: list[dict[str, Any]] = []
        for volume in container.volumes:
            its = _volume(volume, project)
            volumes[its.name] = its
            mounted.append(_mount(its.name, volume.inside, read_only=volume.read_only))
        for copy in _copied(container, options.binds):
            its = WantedVolume(name=_copy_name(copy, contents[copy], project), kind=copy.content, copy=copy)
            volumes[its.name] = its
            mounted.append(_mount(its.name, copy.inside, read_only=True, bare=True))
        mounted += _bound(container, options.binds)
        found.append(_container(container, deployment, mounted, options))
    outside = any(container.outside for container in deployment.containers)
    return Wanted(
        site=deployment.plan.site,
        networks={f"{project}-site": True, **({f"{project}-outside": False} if outside else {})},
        volumes=tuple(volumes.values()), containers=tuple(found),
    )  # fmt: skip


def labels_of(wanted: Wanted, container: WantedContainer) -> dict[str, str]:
    """What a container says of itself."""
    return {
        SITE_LABEL: wanted.site, MODULE_LABEL: container.module, KIND_LABEL: container.kind,
        DIGEST_LABEL: container.digest, SPEC_LABEL: container.spec,
    }  # fmt: skip


def changes(wanted: Wanted, there: There) -> Changes:
    """What to do so that the engine has what is wanted. Pure.

    Raises:
        ConfigError: a name is somebody else's.
    """
    _refuse_others(wanted, there)
    left_over, half_filled = _cut_off(wanted.site, there)
    gone = {thing.name for thing in left_over}
    containers = {
        t.name: t for t in there.containers if t.labels.get(SITE_LABEL) == wanted.site and t.name not in gone
    }
    volumes = {
        t.name: t for t in there.volumes
        if t.labels.get(SITE_LABEL) == wanted.site and t.name not in half_filled
    }  # fmt: skip
    networks = {t.name: t for t in there.networks if t.labels.get(SITE_LABEL) == wanted.site}
    to_do = [c for w in wanted.containers if (c := _change(w, containers.get(w.name), there)) is not None]
    names = {w.name for w in wanted.containers}
    to_do += [_removal(thing) for name, thing in sorted(containers.items()) if name not in names]
    unused = [
        thing for name, thing in sorted(volumes.items()) if name not in {v.name for v in wanted.volumes}
    ]
    return Changes(
        containers=tuple(to_do),
        new_networks=tuple(name for name in wanted.networks if name not in networks),
        new_volumes=tuple(v for v in wanted.volumes if v.name not in volumes),
        old_networks=tuple(t for name, t in sorted(networks.items()) if name not in wanted.networks),
        old_volumes=tuple(t for t in unused if not _precious(t)),
        left_over=left_over, half_filled=half_filled, kept=tuple(t.name for t in unused if _precious(t)),
        same=sum(name in containers for name in names) - sum(c.name in names and bool(c.old) for c in to_do),
    )  # fmt: skip


def removal(site: str, there: There, *, state: bool) -> Changes:
    """What to do so that nothing of a site is left. Pure.

    Args:
        site: its name.
        there: what the engine has.
        state: whether what was not delivered, a file link's events, and models that came go too.
    """
    mine = sorted((t for t in there.volumes if t.labels.get(SITE_LABEL) == site), key=lambda t: t.name)
    left_over, half_filled = _cut_off(site, there)
    gone = {thing.name for thing in left_over}
    return Changes(
        containers=tuple(
            _removal(t)
            for t in there.containers
            if t.labels.get(SITE_LABEL) == site and t.name not in gone
        ),
        old_networks=tuple(t for t in there.networks if t.labels.get(SITE_LABEL) == site),
        old_volumes=tuple(
            t for t in mine if (state or not _precious(t)) and t.name not in half_filled
        ),
        left_over=left_over, half_filled=half_filled,
        kept=() if state else tuple(t.name for t in mine if _precious(t)),
    )  # fmt: skip


def lines(found: Changes) -> list[str]:
    """The changes as a person reads them: `+` is made, `~` is replaced, `-` goes, `=` stays."""
    said = [f"- container {thing.name} (of a run that was cut off)" for thing in found.left_over]
    said += [f"- volume {name} (filled by half)" for name in found.half_filled]
    said += [f"+ network {name}" for name in found.new_networks]
    said += [f"+ volume {volume.name} ({volume.kind})" for volume in found.new_volumes]
    marks = {"create": "+", "replace": "~", "start": ">", "remove": "-"}
    for change in found.containers:
        said.append(f"{marks[change.action]} container {change.name}")
        said += [f"    {reason}" for reason in change.why]
    said += [f"- volume {thing.name}" for thing in found.old_volumes]
    said += [f"- network {thing.name}" for thing in found.old_networks]
    said += [f"= volume {name} stays, with {kept_in(name)}" for name in found.kept]
    if found.same:
        said.append(f"= {found.same} containers stay as they are")
    return said


def missing_images(wanted: Wanted, there: There) -> list[str]:
    """Images that the engine has not, and how to get them."""
    found = []
    for reference in dict.fromkeys(container.image for container in wanted.containers):
        if reference in there.images:
            continue
        name = reference.split("@")[0].rsplit("/", 1)[-1].rsplit(":", 1)[0].removeprefix("skerry-")
        get = f"docker pull {reference}" if "/" in reference else f'make images ARGS="--only {name}"'
        found.append(f"image {reference}: expected it on the engine, got none ({get})")
    return found


def _change(wanted: WantedContainer, thing: Thing | None, there: There) -> Change | None:
    action: Literal["create", "replace", "start"]
    if thing is None:
        action, why = "create", []
    elif why := list(_why(wanted, thing, there)):
        action = "replace"
    elif thing.state in ("created", "dead", "removing"):
        action, why = "replace", [f"state: {thing.state}"]
    elif thing.state in ("exited", "paused"):
        action, why = "start", [f"state: {thing.state}"]
    else:
        return None
    return Change(
        action=action, name=wanted.name, module=wanted.module, kind=wanted.kind,
        old=thing.id if thing is not None else "", why=tuple(why),
    )  # fmt: skip


def _why(wanted: WantedContainer, thing: Thing, there: There) -> Iterator[str]:
    """What differs between a container that is there and the one wanted."""
    if thing.labels.get(DIGEST_LABEL) != wanted.digest:
        yield from _differences(thing.labels.get(SPEC_LABEL, ""), wanted.spec)
    image = there.images.get(wanted.image, "")
    if image and thing.image != image:
        yield f"image id: {_short(thing.image)} -> {_short(image)}"


def _differences(old: str, new: str) -> list[str]:
    try:
        before = dict(_flat(json.loads(old)))
    except ValueError:
        return [f"label {SPEC_LABEL}: no longer what skerry wrote"]
    after = dict(_flat(json.loads(new)))
    found = [
        f"{key}: {_said(before.get(key))} -> {_said(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    return found or [f"label {DIGEST_LABEL}: no longer what skerry wrote"]


def _flat(raw: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its path; settings are read, mounts and networks go by what they are for."""
    match raw:
        case [dict() as config, list() as networks] if not path:
            yield from _flat(config, "container")
            yield from ((f"network {name}", "member") for name in networks)
        case dict():
            for key, value in raw.items():
                yield from _flat(value, f"{path}.{key}".removeprefix("container."))
        case list() if path == "Env":
            for name, _, value in (text.partition("=") for text in raw):
                yield from (
                    _flat(json.loads(value), "settings") if name == "SKERRY_SETTINGS" else [(name, value)]
                )
        case list() if path == "HostConfig.Mounts":
            for mount in raw:
                yield f"mount {mount['Target']}", mount["Source"]
        case list():
            for n, value in enumerate(raw):
                yield from _flat(value, f"{path}[{n}]")
        case _:
            yield path, raw


def _said(value: Any) -> str:
    if value is None:
        return "nothing"
    text = cleaned(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _short(image: str) -> str:
    return image.removeprefix("sha256:")[:_SHORT]


def _removal(thing: Thing) -> Change:
    return Change(
        action="remove", name=thing.name, old=thing.id, module=thing.labels.get(MODULE_LABEL, ""),
        kind=thing.labels.get(KIND_LABEL, ""),
    )  # fmt: skip


def _place(kind: str) -> int:
    return _FLOW.index(kind) if kind in _FLOW else len(_FLOW)


def _precious(volume: Thing) -> bool:
    """Whether it has what cannot be made again."""
    return volume.labels.get(KIND_LABEL) in ("state", "output", "store")


def _cut_off(site: str, there: There) -> tuple[tuple[Thing, ...], tuple[str, ...]]:
    """Containers and volumes of a run that did not come to its end."""
    mine = [t for t in there.containers if t.labels.get(SITE_LABEL) == site]
    fillers = [t for t in mine if t.name.endswith(FILLER)]
    known = {t.name for t in there.volumes}
    half = tuple(name for t in fillers if (name := t.name.removesuffix(FILLER)) in known)
    return (*fillers, *(t for t in mine if t.name.endswith(DRAFT))), half


def _refuse_others(wanted: Wanted, there: There) -> None:
    """What is called as ours is, and is not.

    Raises:
        ConfigError: with each.
    """
    ours = {
        "container": ({w.name for w in wanted.containers}, there.containers),
        "volume": ({v.name for v in wanted.volumes}, there.volumes),
        "network": (set(wanted.networks), there.networks),
    }
    problems = []
    for what, (names, things) in ours.items():
        for thing in things:
            whose = thing.labels.get(SITE_LABEL)
            if thing.name in names and whose != wanted.site:
                got = f"one of the site {whose}" if whose else "one that skerry did not make"
                problems.append(
                    f"{what} {thing.name}: expected none, or one of the site {wanted.site}, got {got} "
                    f"(remove or rename it)"
                )
    if problems:
        raise ConfigError(problems)


def _volume(volume: Volume, project: str) -> WantedVolume:
    if volume.kind != "frames":
        return WantedVolume(name=f"{project}-{volume.name}", kind=volume.kind)
    # An engine never changes a volume's options, so a larger one is another one.
    return WantedVolume(
        name=f"{project}-{volume.name}-{mib(volume.bytes)}m", kind=volume.kind,
        options={"type": "tmpfs", "device": "tmpfs", "o": tmpfs_options(volume)},
    )  # fmt: skip


def _copied(container: Container, binds: Mapping[str, str]) -> Iterator[Copy]:
    """The contents that a container reads.

    Raises:
        ConfigError: of one folder some files are copied and some are bound: a mount cannot be in another one
            that is read-only.
    """
    for role, folder in FOLDERS.items():
        if role == "sources":
            continue  # nothing that could be copied
        names = tuple(mount.name for mount in container.mounts if mount.role == role)
        bound = [name for name in names if f"{role}/{name}" in binds]
        if bound and len(bound) < len(names):
            left = ", ".join(f"{role}/{name}" for name in names if name not in bound)
            raise ConfigError(
                f"--bind: expected all or none of {container.name}'s {role}, got none of {left}"
            )
        if names and not bound:
            yield Copy(content=role, inside=folder, names=tuple(sorted(names)))
    if container.files:
        yield Copy(content="broker", inside=BROKER_FILES, names=tuple(sorted(container.files)))
    if container.identity:
        yield Copy(
            content="certificates", inside=BUS_CERTIFICATES, names=("ca.crt", "tls.crt", "tls.key"),
            owner=container.name,
        )  # fmt: skip


def _copy_name(copy: Copy, content: str, project: str) -> str:
    return "-".join(part for part in (project, copy.content, copy.owner, content) if part)


def _bound(container: Container, binds: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for mount in container.mounts:
        there = binds.get(f"{mount.role}/{mount.name}")
        if there is not None and mount.role != "sources":
            yield {"Type": "bind", "Source": there, "Target": mount.inside, "ReadOnly": True}


def _sources(container: Container, binds: Mapping[str, str]) -> dict[str, list[str]]:
    """Folders of the engine's machine that need not be there yet: a mount in `Mounts` would insist."""
    found = [
        source_bind(mount, binds.get(f"{mount.role}/{mount.name}", mount.outside))
        for mount in container.mounts
        if mount.role == "sources"
    ]
    return {"Binds": found} if found else {}


def _mount(name: str, inside: str, *, read_only: bool, bare: bool = False) -> dict[str, Any]:
    """A volume; `bare`: without what the image has in that folder."""
    found: dict[str, Any] = {"Type": "volume", "Source": name, "Target": inside, "ReadOnly": read_only}
    return {**found, "VolumeOptions": {"NoCopy": True}} if bare else found


def _container(
    container: Container, deployment: Deployment, mounted: list[dict[str, Any]], options: Options
) -> WantedContainer:
    project = project_of(deployment.plan.site)
    image = deployment.images.reference(container.image)
    network = f"{project}-site"
    config = {
        "Image": image,
        "User": f"{USER}:{USER}",
        "Env": [f"{key}={value}" for key, value in container.environment.items()],
        "Healthcheck": {
            "Test": ["CMD", *container.health],
            "Interval": 15 * _SECOND, "Timeout": 5 * _SECOND, "Retries": 3, "StartPeriod": 60 * _SECOND,
        },
        "StopTimeout": container.stop_s,
        "HostConfig": {
            "RestartPolicy": {"Name": "unless-stopped"},
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Memory": container.memory_mb * _MIB,
            "MemorySwap": container.memory_mb * _MIB,
            "PidsLimit": container.pids,
            **({"NanoCpus": int(container.cpus * 1e9)} if container.cpus else {}),
            "Tmpfs": {"/tmp": f"size={TMP_MB}m,mode=1777,noexec,nosuid,nodev"},  # noqa: S108 - the container's own
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": f"{LOG_BYTES // 1_000_000}m", "max-file": str(LOG_FILES)},
            },
            "Mounts": mounted,
            **_sources(container, options.binds),
            "NetworkMode": network,
            **_devices(container, options),
        },
        "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": [container.name]}}},
    }  # fmt: skip
    return WantedContainer(
        name=f"{project}-{container.name}", module=container.name, kind=container.kind, image=image,
        config=config, networks=(f"{project}-outside",) if container.outside else (),
        stop_s=container.stop_s,
    )  # fmt: skip


def _devices(container: Container, options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "nvidia" in container.accelerators:
        found["DeviceRequests"] = [{"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}]
    if container.devices:
        numbers = {"render": str(options.render_gid)}
        found["Devices"] = [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"}
            for path in container.devices
        ]
        found["GroupAdd"] = [numbers.get(group, group) for group in container.groups]
    return found
