"""The site file: all that an integrator writes, parsed once, with every error at once.

Paths of inputs (video, package) are relative to the site file; the path of a `file` link is relative
to the output folder. `${name}` stands for an argument given with `--set name=value`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta

from skerry.buffer.seal import Seal, read_key
from skerry.buffer.settings import LaneSettings
from skerry.capture.check import cameras_problems
from skerry.capture.settings import Camera
from skerry.decision.check import rule_problems
from skerry.decision.settings import Rule, TrackerSettings
from skerry.errors import ConfigError, PackageError
from skerry.inference.settings import ModelUse
from skerry.messages import Lane, Name
from skerry.models.package import Package
from skerry.models.package import load as load_package
from skerry.settings import BusSettings, Positive, Problem, Settings, convert, problems
from skerry.updater.settings import FetchSettings, SlotSettings, SourceSettings, StoreSettings
from skerry.uplink.settings import FileLink, Link, RemoteSettings, Sending

__all__ = [
    "INPUTS",
    "Argument",
    "ContainerKind",
    "Resources",
    "Site",
    "SiteBus",
    "Target",
    "TargetSettings",
    "load_site",
]


class Argument(Settings, frozen=True, kw_only=True):
    """A value that the site file leaves open, given with `--set NAME=VALUE`."""

    help: str = ""
    kind: Literal["path", "text"] = "path"
    """A `path` given on the command line is relative to the current folder."""
    default: str | None = None
    """Used when nothing is given; a path is then relative to the site file."""


class SiteBus(BusSettings, frozen=True, kw_only=True):
    """The broker: one that `skerry run` starts, or the one at `host`."""

    host: str = ""
    """Empty: `skerry run` starts a broker on the loopback interface."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """0: any free port for our own broker, 1883 for one that is named."""
    broker: Literal["auto", "mosquitto", "amqtt"] = "auto"
    """Which to start; `auto` takes Mosquitto where it is installed."""


class FrameStoreSettings(Settings, frozen=True, kw_only=True):
    """Where pixels wait."""

    folder: str = ""
    """A tmpfs folder; empty: one of this run's own under /dev/shm."""
    slots: Annotated[int, Meta(ge=6, le=64)] = 8
    """Frames that can wait per camera."""


class SiteBuffer(Settings, frozen=True, kw_only=True):
    """How much the buffer may keep, and how. `BufferSettings` says what each is."""

    bytes: Annotated[int, Meta(ge=32 * 1024 * 1024)] = 256 * 1024 * 1024
    """`limit_bytes` of the module: bound of the bytes on disk."""
    lanes: dict[Lane, LaneSettings] = msgspec.field(default_factory=dict)
    compression: Literal["none", "zstd"] = "none"
    key_file: str = ""
    old_key_files: tuple[str, ...] = ()
    clock: Literal["kernel", "trusted"] = "kernel"
    linger_ms: Annotated[float, Meta(ge=0, le=1000)] = 5.0
    backlog_s: Positive = 10.0
    quarantine_bytes: Annotated[int, Meta(ge=64 * 1024)] = 16 * 1024 * 1024


class SiteUpdater(Settings, frozen=True, kw_only=True):
    """How models come to this site and are exchanged. `UpdaterSettings` says what each is."""

    root: Annotated[str, Meta(min_length=1)]
    """Root metadata of whoever signs for the models: `skerry model sign init` writes it."""
    slots: dict[Name, SlotSettings]
    """What is to serve in each slot that the models name."""
    sources: tuple[SourceSettings, ...] = ()
    require_attestation: bool = False
    check_s: Annotated[float, Meta(ge=1)] = 300.0
    scrub_s: Positive = 86_400.0
    fetch: FetchSettings = FetchSettings()
    room: StoreSettings = StoreSettings()
    audit_bytes: Annotated[int, Meta(ge=64 * 1024)] = 4 * 1024 * 1024


Target = Literal["compose", "iotedge", "greengrass", "k3s"]
"""A platform that a site can be rendered for."""
ContainerKind = Literal["broker", "capture", "inference", "decision", "buffer", "uplink", "updater"]


class Resources(Settings, frozen=True, kw_only=True):
    """What one module may take of its device, where it runs in a container."""

    memory_mb: Annotated[int, Meta(ge=16)] | None = None
    """Bound of its memory, MiB, without the frames, which come on top; null: the built-in one."""
    cpus: Annotated[float, Meta(ge=0.05, le=256)] | None = None
    """Bound of the processor time that it takes, in cores; null: none."""


class TargetSettings(Settings, frozen=True, kw_only=True):
    """What differs on one platform."""

    link: Link
    """The way out there, in place of the site's own."""


class Site(Settings, frozen=True, kw_only=True):
    """A site: cameras, models, rules, and the way out."""

    site: Name
    version: Annotated[str, Meta(pattern=r"^\d{1,6}\.\d{1,6}\.\d{1,6}$(?!\n)")] = "1.0.0"
    """Of this file: raise it with each change that goes to a fleet, Greengrass takes a version once."""
    device: str = ""
    """The class of the device that it is for (`skerry check --help` lists them); empty: not said."""
    resources: dict[ContainerKind, Resources] = msgspec.field(default_factory=dict)
    """Bounds of a kind of module, where the built-in ones do not fit."""
    targets: dict[Target, TargetSettings] = msgspec.field(default_factory=dict)
    """What differs on a platform."""
    arguments: dict[str, Argument] = msgspec.field(default_factory=dict)
    cameras: Annotated[tuple[Camera, ...], Meta(min_length=1)]
    models: Annotated[tuple[ModelUse, ...], Meta(min_length=1)]
    rules: tuple[Rule, ...] = ()
    tracker: TrackerSettings = TrackerSettings()
    captures: dict[str, tuple[Name, ...]] = msgspec.field(default_factory=dict)
    """Several capture modules: name of the module to the cameras it opens. Default: one for all."""
    frames: FrameStoreSettings = FrameStoreSettings()
    buffer: SiteBuffer = SiteBuffer()
    link: Link = FileLink(path="events.jsonl")
    uplink: Sending = Sending()
    """How records are sent over the link: limits, hours, shares."""
    remote: RemoteSettings = RemoteSettings()
    """What may be set and asked from outside, over the link or with a file."""
    updater: SiteUpdater | None = None
    """How models come here while the site runs; null: each model is the folder that it names."""
    bus: SiteBus = SiteBus()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load_site(path: Path, arguments: Mapping[str, str] | None = None, *, here: bool = True) -> Site:
    """Read, complete and check a site file.

    Args:
        path: the YAML file.
        arguments: what `--set` gave.
        here: whether the site will run on this machine. If not, cameras, videos, keys and passwords need not
            be there; model packages must be, because rules name their labels.

    Raises:
        ConfigError: with every problem: syntax, types, unknown keys, names, labels, files.
    """
    raw = _read_yaml(path)
    base = path.resolve().parent
    found, raw = _fill_arguments(raw, dict(arguments or {}), base)
    found += problems(Site, raw)
    if not found:
        site = _absolute(convert(Site, raw, path.name), base)
        found += cross_problems(site, here=here)
        if not found:
            return site
    raise ConfigError([f"{path.name}: {where}: {text}" for where, text in found])


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the site file: {reason}") from error
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "$"
        raise ConfigError(f"{path.name}: {where}: expected YAML, got {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: $: expected YAML, got {error}") from error


def _fill_arguments(raw: Any, given: dict[str, str], base: Path) -> tuple[list[Problem], Any]:
    """Put arguments in the place of `${name}`; a problem for each that is unknown or missing."""
    declared = raw.get("arguments", {}) if isinstance(raw, dict) else {}
    found = problems(dict[str, Argument], declared, "$.arguments")
    if found:
        return [], raw  # the type check reports them
    specs = msgspec.convert(declared, dict[str, Argument])
    found = [
        (f"--set {name}", f"unknown argument (known: {', '.join(sorted(specs)) or 'none'})")
        for name in given
        if name not in specs
    ]
    values: dict[str, str] = {}
    for name, spec in specs.items():
        if name in given:
            values[name] = str(Path(given[name]).resolve()) if spec.kind == "path" else given[name]
        elif spec.default is not None:
            values[name] = str(base / spec.default) if spec.kind == "path" else spec.default
        else:
            found.append((f"$.arguments.{name}", f"expected --set {name}=VALUE, got nothing ({spec.help})"))
            values[name] = "missing"
    body = {k: v for k, v in raw.items() if k != "arguments"} if isinstance(raw, dict) else raw
    unknown: list[Problem] = []
    filled = _substitute(body, values, "$", unknown)
    return found + unknown, filled


def _substitute(raw: Any, values: Mapping[str, str], path: str, unknown: list[Problem]) -> Any:
    if isinstance(raw, dict):
        return {k: _substitute(v, values, f"{path}.{k}", unknown) for k, v in raw.items()}
    if isinstance(raw, list):
        return [_substitute(v, values, f"{path}[{n}]", unknown) for n, v in enumerate(raw)]
    if not isinstance(raw, str):
        return raw

    if not _is_text(raw):
        unknown.append((path, "expected text, got half of a surrogate pair (write the character itself)"))
        return ""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in values:
            unknown.append(
                (path, f"expected a declared argument, got ${{{name}}} (declare it under arguments)")
            )
        return values.get(name, "")

    return re.sub(r"\$\{(\w+)\}", value, raw)


def _is_text(raw: str) -> bool:
    """Whether it can be written in UTF-8: YAML lets a half of a pair through."""
    return not any("\ud800" <= character <= "\udfff" for character in raw)


INPUTS = frozenset(
    {
        "path", "folder", "package", "password_file", "ca", "certificate", "key", "key_file", "old_key_files",
        "token_file", "header_files", "connection_string_file", "claim_certificate", "claim_key", "file",
        "root",
    }
)  # fmt: skip
"""Settings that name a file or folder which is read."""


def _absolute(site: Site, base: Path) -> Site:
    """Resolve the paths of inputs against the site file's folder."""
    replace = msgspec.structs.replace
    return replace(
        site,
        cameras=tuple(replace(c, source=_resolved(c.source, base)) for c in site.cameras),
        models=tuple(_resolved(m, base) for m in site.models),
        buffer=_resolved(site.buffer, base),
        remote=_resolved(site.remote, base),
        bus=_resolved(site.bus, base),
        updater=_resolved_updater(site.updater, base),
        link=_resolved_link(site.link, base),
        targets={name: replace(t, link=_resolved_link(t.link, base)) for name, t in site.targets.items()},
    )


def _resolved_updater(updater: SiteUpdater | None, base: Path) -> SiteUpdater | None:
    if updater is None:
        return None
    sources = tuple(_resolved(source, base) for source in updater.sources)
    return msgspec.structs.replace(_resolved(updater, base), sources=sources)


def _resolved_link(link: Link, base: Path) -> Link:
    """A link's files, but for the one that is its far end: that is below the output folder."""
    return link if isinstance(link, FileLink) else _resolved(link, base)


S = TypeVar("S", bound=Settings)


def _resolved(settings: S, base: Path) -> S:
    """The same settings with every input's path absolute."""
    changes: dict[str, Any] = {}
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if name in INPUTS and isinstance(value, str) and value:
            changes[name] = str(base / value)
        elif name in INPUTS and isinstance(value, tuple):
            changes[name] = tuple(str(base / path) for path in value)
        elif name in INPUTS and isinstance(value, dict):
            changes[name] = {key: str(base / path) for key, path in value.items()}
        elif isinstance(value, Settings):
            changes[name] = _resolved(value, base)
    return msgspec.structs.replace(settings, **changes)


def cross_problems(site: Site, *, here: bool = True) -> list[Problem]:
    """What types cannot see: names, references, labels, and files if it will run `here`."""
    found = list(_name_problems(site))
    found += cameras_problems(site.cameras, "$.cameras", here=here)
    packages, package_problems = _packages(site)
    labels = {name: package.labels for name, package in packages.items()}
    attributes = {name: getattr(p.manifest.decoder, "attributes", ()) for name, p in packages.items()}
    found += package_problems
    found += _sample_problems(site)
    found += _limit_problems(site.buffer)
    found += [*_seal_problems(site.buffer), *_root_problems(site)] if here else ()
    found += rule_problems(site.rules, [c.name for c in site.cameras], labels, "$.rules", attributes)
    return found


def _name_problems(site: Site) -> Iterator[Problem]:
    names = [c.name for c in site.cameras]
    owners: dict[str, str] = {}
    for module, cameras in site.captures.items():
        for n, name in enumerate(cameras):
            if name not in names:
                yield f"$.captures.{module}[{n}]", f"no camera {name!r} (one of {', '.join(names)})"
            elif name in owners:
                yield f"$.captures.{module}[{n}]", f"{name!r} is opened by {owners[name]} already"
            owners.setdefault(name, module)
    if site.captures:
        for name in dict.fromkeys(names):
            if name not in owners:
                yield "$.captures", f"expected every camera to be opened, {name!r} is not"
    yield from _model_problems(site, names)
    yield from _slot_problems(site)


def _model_problems(site: Site, names: list[str]) -> Iterator[Problem]:
    served: dict[str, int] = {}
    for n, model in enumerate(site.models):
        for k, name in enumerate(model.cameras):
            if name not in names:
                yield f"$.models[{n}].cameras[{k}]", f"no camera {name!r} (one of {', '.join(names)})"
            elif name in served:
                yield (
                    f"$.models[{n}].cameras[{k}]",
                    f"{name!r} has model {served[name]} already (one a camera)",
                )
            served.setdefault(name, n)
    rest = [n for n, model in enumerate(site.models) if not model.cameras]
    if len(rest) > 1:
        yield (
            f"$.models[{rest[1]}].cameras",
            f"expected cameras here, models[{rest[0]}] takes the rest already",
        )
    if not rest:
        for name in dict.fromkeys(names):
            if name not in served:
                yield "$.models", f"expected a model for every camera, {name!r} has none"


def _slot_problems(site: Site) -> Iterator[Problem]:
    """Slots that only one side knows."""
    known = site.updater.slots if site.updater is not None else {}
    named: dict[str, int] = {}
    for n, model in enumerate(site.models):
        if model.slot and site.updater is None:
            yield (
                f"$.models[{n}].slot",
                f"expected an updater for it, got none (describe slot {model.slot} in $.updater)",
            )
        elif model.slot and model.slot not in known:
            yield (
                f"$.models[{n}].slot",
                f"no slot {model.slot!r} in $.updater.slots (one of {', '.join(known)})",
            )
        if model.slot and model.slot in named:
            yield f"$.models[{n}].slot", f"{model.slot!r} is the slot of models[{named[model.slot]}] already"
        named.setdefault(model.slot, n)
    if site.updater is not None and not known:
        yield "$.updater.slots", "expected at least one slot, got none"
    for name in known:
        if name not in named:
            yield (
                f"$.updater.slots.{name}",
                f"expected a model with this slot, got none (models[].slot: {name})",
            )


def _seal_problems(buffer: SiteBuffer) -> Iterator[Problem]:
    """Keys that are none, and what is not installed."""
    files = {"key_file": buffer.key_file} if buffer.key_file else {}
    files |= {f"old_key_files[{n}]": path for n, path in enumerate(buffer.old_key_files)}
    keys = []
    for where, path in files.items():
        try:
            keys.append(read_key(path))
        except ConfigError as error:
            yield f"$.buffer.{where}", str(error).removeprefix("key_file: ")
    try:
        Seal(compress=buffer.compression == "zstd", old_keys=keys)
    except ConfigError as error:
        where, _, text = str(error).partition(": ")
        yield f"$.buffer.{where}", text


def _sample_problems(site: Site) -> Iterator[Problem]:
    """Samples of cameras that allow none, each of them."""
    allowed = {camera.name: camera.snapshots for camera in site.cameras}
    named = {name for model in site.models for name in model.cameras}
    for n, model in enumerate(site.models):
        cameras = model.cameras or tuple(name for name in allowed if name not in named)
        if model.samples is not None and all(allowed.get(c, "never") == "never" for c in cameras):
            wanted = "expected a camera whose snapshots are blurred or allowed"
            yield f"$.models[{n}].samples", f"{wanted}, got never for {', '.join(cameras)} (set it there)"


def _root_problems(site: Site) -> Iterator[Problem]:
    """Root metadata that is not there: without it the updater does not start."""
    if site.updater is None:
        return
    try:
        Path(site.updater.root).read_bytes()
    except OSError as error:
        text = "expected root metadata (skerry model sign init writes it)"
        yield "$.updater.root", f"{text}, got {(error.strerror or 'an error').lower()}: {site.updater.root}"


def _limit_problems(buffer: SiteBuffer) -> Iterator[Problem]:
    """Limits that mean nothing."""
    for lane, settings in buffer.lanes.items():
        if settings.limit_bytes > buffer.bytes:
            yield (
                f"$.buffer.lanes.{lane}.limit_bytes",
                f"expected at most the {buffer.bytes} of $.buffer.bytes, got {settings.limit_bytes}",
            )


def _packages(site: Site) -> tuple[dict[str, Package], list[Problem]]:
    """Each camera's model package; a problem for each package that cannot be read."""
    packages: dict[str, Package] = {}
    found: list[Problem] = []
    named = {name for model in site.models for name in model.cameras}
    for n, model in enumerate(site.models):
        try:
            package = load_package(Path(model.package))
        except (ConfigError, PackageError) as error:
            found += [(f"$.models[{n}].package", line) for line in str(error).splitlines()]
            continue
        for name in model.cameras or [c.name for c in site.cameras if c.name not in named]:
            packages[name] = package
    return packages, found
