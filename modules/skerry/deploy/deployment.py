"""A site on one platform: everything that a target's files are made from. `deployment` is pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from skerry.deploy.contained import BUS_HOST, Mount, contained, place
from skerry.deploy.containers import Container, containers
from skerry.deploy.images import Images
from skerry.deploy.plan import Plan, plan
from skerry.deploy.site import Site, Target


class Finding(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Something in a site that a platform will not take, or that its operator should know."""

    where: str
    """The path in the site file, e.g. `$.cameras[0].name`; of the command line, e.g. `--tag`."""
    text: str
    """What is wrong, and what to do: the wanted value before the one seen."""
    level: Literal["error", "warning"] = "error"


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A site on one platform."""

    target: Target
    site: Site
    """As its containers see it: files are below `/models`, `/inputs`, `/run/secrets` and `/sources`."""
    plan: Plan
    containers: tuple[Container, ...]
    """In the order of starting: the broker first, then who is sent to before who sends."""
    mounts: tuple[Mount, ...]
    """Every file of the machine that the site names."""
    images: Images
    secure: bool
    """Whether everybody on the bus has a certificate, and may only say what is theirs."""

    @property
    def broker(self) -> Container | None:
        """The broker that comes with the site, unless the site names one."""
        return next((c for c in self.containers if c.kind == "broker"), None)

    @property
    def brought(self) -> tuple[Mount, ...]:
        """Files that somebody has to bring; sources of models come and go by themselves."""
        return tuple(mount for mount in self.mounts if mount.role != "sources")

    @property
    def sources_told(self) -> list[str]:
        """Lines that say where on the device models come from."""
        return [
            f"on the device {mount.outside}: where models come from; it need not be there yet"
            for mount in self.mounts
            if mount.role == "sources"
        ]

    def of(self, kind: str) -> tuple[Container, ...]:
        """The containers of one kind."""
        return tuple(c for c in self.containers if c.kind == kind)

    @property
    def link_path(self) -> str:
        """Where the site file says the link of this target."""
        return f"$.targets.{self.target}.link" if self.target in self.site.targets else "$.link"

    def where(self, mount: Mount) -> list[str]:
        """The paths in the site file that name a file of the machine."""
        link = self.link_path
        paths = _paths(msgspec.to_builtins(self.site), mount.inside, "$")
        # The link of this target stands where the site's own is, and what other targets say is not looked at.
        return [
            link + p.removeprefix("$.link") if p.startswith("$.link") else p
            for p in paths
            if not p.startswith("$.targets")
        ]

    def head(self) -> str:
        """What a generated file says that it came from, without the sign of a comment."""
        made = f"Written by skerry render {self.target} from the site {self.site.site}"
        return f"{made}; change that and render again."


class Renderer(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line knows of a target."""

    render: Callable[[Deployment], dict[str, str]]
    """The files, by their path beside each other. Pure, and the same for the same deployment."""
    findings: Callable[[Deployment], list[Finding]]
    """What this platform would refuse, or take and then not do."""
    copies: Callable[[Mount], str]
    """Where beside the files a model package is copied to, as a folder; empty: nowhere."""
    told: Callable[[Deployment], list[str]]
    """Lines that say what is left to do with the files."""


def _paths(raw: Any, text: str, path: str) -> Iterator[str]:
    """Where in plain data a text stands."""
    match raw:
        case str():
            if raw == text:
                yield path
        case dict():
            for key, value in raw.items():
                yield from _paths(value, text, f"{path}.{key}")
        case list() | tuple():
            for n, value in enumerate(raw):
                yield from _paths(value, text, f"{path}[{n}]")


def deployment(
    site: Site, target: Target, *, secure: bool = True, images: Images | None = None
) -> Deployment:
    """Put a site on a platform.

    Args:
        site: as `load_site(..., here=False)` gives it.
        target: which platform; the site may have another link there.
        secure: whether the broker that comes with the site wants a certificate of everybody.
        images: which to name; None: this version's, in no registry.
    """
    said = site.targets.get(target)
    if said is not None:
        site = msgspec.structs.replace(site, link=said.link)
    # A pod sees no folder of its node.
    inside, mounts = contained(site, sealed=target == "k3s")
    where = place(inside, secure=secure)
    if target == "k3s":
        # They are in one pod, since only there can they share memory, and a pod has one address.
        where = msgspec.structs.replace(where, http_shared=("capture", "inference"))
    the_plan = plan(inside, where)
    return Deployment(
        target=target, site=inside, plan=the_plan, containers=containers(the_plan, mounts, site.resources),
        mounts=mounts, images=images or Images(), secure=secure and where.bus.host == BUS_HOST,
    )  # fmt: skip
