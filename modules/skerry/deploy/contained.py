"""A site as its containers see it: which files of the machine are mounted, and where.

A site names files by where they are on the machine that reads the site file. In a container they are below
`/models`, `/inputs` and `/run/secrets`, and each module gets those that its own settings name. A folder that
models come from is the device's own, and below `/sources`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import msgspec

from skerry.deploy.plan import Part, Place
from skerry.deploy.site import INPUTS, Site, SiteUpdater
from skerry.healthcheck import HTTP_PORT
from skerry.settings import BusSettings, Settings

Role = Literal["models", "inputs", "secrets", "sources"]
"""What a file is, and the folder beside the rendered files that has it. A secret is never copied there, and a
source is nowhere but on the device, where a stick or a share comes and goes."""

FOLDERS: dict[Role, str] = {
    "models": "/models", "inputs": "/inputs", "secrets": "/run/secrets", "sources": "/sources",
}  # fmt: skip
STATE, FRAMES, OUTPUT = "/var/lib/skerry", "/frames", "/output"
STORE = "/var/lib/skerry-models"
"""The model store, which the updater writes and inference reads."""
BUS_CERTIFICATES = "/run/certificates"
"""A module's own `ca.crt`, `tls.crt` and `tls.key`."""
BUS_HOST = "broker"
"""What the broker is called where the site names none, and what its certificate says."""
USER = 10001
"""Who everything runs as; the images own their writable folders to it."""

S = TypeVar("S", bound=Settings)


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder of the machine that containers read."""

    role: Role
    name: str
    """Its name in the role's folder, unlike that of every other."""
    outside: str
    """Where it is on the machine that renders; of a source: on the device."""

    @property
    def inside(self) -> str:
        """Where containers see it."""
        return f"{FOLDERS[self.role]}/{self.name}"


def place(site: Site, *, secure: bool) -> Place:
    """Where a site's processes run when each is in a container.

    Args:
        site: may name a broker of its own.
        secure: whether the broker that comes with the site wants a certificate of everybody.
    """
    if site.bus.host:
        named = {name: getattr(site.bus, name) for name in BusSettings.__struct_fields__}
        bus = BusSettings(**{**named, "port": site.bus.port or (8883 if site.bus.tls else 1883)})
    else:
        bus = BusSettings(host=BUS_HOST, port=8883 if secure else 1883)
    return Place(
        state=STATE, frames=FRAMES, output=OUTPUT, store=STORE, bus=bus, http_port=HTTP_PORT,
        http_host="0.0.0.0",  # noqa: S104 - a container's own network, where no port is published
        certificates=BUS_CERTIFICATES if secure and not site.bus.host else "",
    )  # fmt: skip


def contained(site: Site, *, sealed: bool = False) -> tuple[Site, tuple[Mount, ...]]:
    """The same site with the paths that its containers see, and what has to be mounted for that.

    Args:
        site: as its file says.
        sealed: whether containers see no folder of the device, as pods do: what models come from is an input
            then, and the root of trust, without which nobody starts, comes as secrets do.
    """
    found: dict[tuple[Role, str], Mount] = {}

    def moved(path: str, role: Role) -> str:
        if (role, path) not in found:
            taken = {mount.name for mount in found.values() if mount.role == role}
            found[role, path] = Mount(role=role, name=_free(Path(path).name, taken), outside=path)
        return found[role, path].inside

    replace = msgspec.structs.replace
    changed = replace(
        site,
        models=tuple(replace(m, package=moved(m.package, "models")) for m in site.models),
        cameras=tuple(replace(c, source=_moved(c.source, moved, _source_role)) for c in site.cameras),
        buffer=_moved(site.buffer, moved, _secret),
        link=site.link if site.link.__struct_config__.tag == "file" else _moved(site.link, moved, _secret),
        bus=_moved(site.bus, moved, _secret),
        # The file of desired settings is an operator's, like a video, and no secret.
        remote=_moved(site.remote, moved, _input),
        updater=None if site.updater is None else _updater(site.updater, moved, sealed=sealed),
    )
    return changed, tuple(found.values())


def mounts_of(part: Part, mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Those that a module's own settings name."""
    named = set(_texts(msgspec.to_builtins(part.settings)))
    return tuple(mount for mount in mounts if mount.inside in named)


def _updater(updater: SiteUpdater, moved: Any, *, sealed: bool) -> SiteUpdater:
    """Who signs for models is no secret, and what sources say of logins is."""

    def role(name: str) -> Role:
        if name == "path":
            return "inputs" if sealed else "sources"
        return "inputs" if name == "root" and not sealed else "secrets"

    sources = tuple(_moved(source, moved, role) for source in updater.sources)
    return msgspec.structs.replace(_moved(updater, moved, role), sources=sources)


def _free(name: str, taken: set[str]) -> str:
    """The name, or with a number where another file has it already."""
    if name not in taken:
        return name
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    return next(free for n in range(2, len(taken) + 3) if (free := f"{stem}-{n}{suffix}") not in taken)


def _source_role(name: str) -> Role:
    return "inputs" if name in ("path", "folder") else "secrets"


def _secret(_: str) -> Role:
    return "secrets"


def _input(_: str) -> Role:
    return "inputs"


def _moved(settings: S, moved: Any, role: Any) -> S:
    """The same settings with the path of every file that is read as `moved` says."""
    changes: dict[str, Any] = {}
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            changes[name] = _moved(value, moved, role)
        elif name not in INPUTS:
            continue
        elif isinstance(value, str) and value:
            changes[name] = moved(value, role(name))
        elif isinstance(value, tuple):
            changes[name] = tuple(moved(path, role(name)) for path in value)
        elif isinstance(value, dict):
            changes[name] = {key: moved(path, role(name)) for key, path in value.items()}
    return msgspec.structs.replace(settings, **changes)


def _texts(raw: Any) -> Iterator[str]:
    """Every text in plain data."""
    match raw:
        case str():
            yield raw
        case dict():
            for value in raw.values():
                yield from _texts(value)
        case list() | tuple():
            for value in raw:
                yield from _texts(value)
