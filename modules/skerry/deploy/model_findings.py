"""What a device's updater would refuse of a site, or never get, as far as it can be said before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from skerry.deploy.deployment import Deployment, Finding
from skerry.deploy.site import Site
from skerry.errors import PackageError
from skerry.inference.settings import InferenceSettings
from skerry.models.package import load as load_package
from skerry.updater.settings import FolderSourceSettings, SourceSettings, UpdaterSettings

_FOLDER = re.compile(r"/[A-Za-z0-9._@+ -][A-Za-z0-9._/@+ -]*")
"""What a folder of the device may be called: `:` and `,` mean something else where an engine is told of."""


def source_hosts(site: Site) -> Iterator[tuple[str, str]]:
    """Where in the site a source of models is named, and its host."""
    for where, source in _sources(site):
        if not isinstance(source, FolderSourceSettings):
            yield f"{where}.url", urlsplit(source.url).hostname or ""


def source_findings(deployment: Deployment) -> Iterator[Finding]:
    """Folders that an engine would read another way."""
    for mount in deployment.mounts:
        if mount.role == "sources" and not _FOLDER.fullmatch(mount.outside):
            for where in deployment.where(mount):
                yield Finding(
                    where=where,
                    text="expected a folder of letters, digits, spaces and ._/@+-, below /, got "
                    f"{mount.outside!r}",
                )


def files_findings(deployment: Deployment) -> Iterator[Finding]:
    """What the files say that are on this machine: the root metadata, and the packages of the site."""
    for settings in (container.settings for container in deployment.containers):
        if isinstance(settings, UpdaterSettings):
            yield from _root(deployment, settings.root)
        if isinstance(settings, InferenceSettings):
            yield from _memory(deployment, settings)


def _sources(site: Site) -> Iterator[tuple[str, SourceSettings]]:
    sources = site.updater.sources if site.updater is not None else ()
    yield from ((f"$.updater.sources[{n}]", source) for n, source in enumerate(sources))


def _root(deployment: Deployment, inside: str) -> Iterator[Finding]:
    """Without it the updater does not start."""
    [mount] = (m for m in deployment.mounts if m.inside == inside)
    path = Path(mount.outside)
    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or "an error").lower()
        yield Finding(
            where="$.updater.root", level="warning",
            text=f"expected root metadata in {path}, got {reason} (bring it to where the rendering says)",
        )  # fmt: skip
        return
    try:
        from skerry.trust.workflow import anchor  # noqa: PLC0415 - the extra `updater` may not be here

        anchor(raw, path.name)
    except ImportError:
        return
    except PackageError as error:
        yield Finding(where="$.updater.root", text=f"expected root metadata in {path}: {error}")


def _memory(deployment: Deployment, settings: InferenceSettings) -> Iterator[Finding]:
    """Whether a model and the one that follows it fit, where packages say what they take."""
    taken: dict[int, int] = {}
    outside = {mount.inside: mount.outside for mount in deployment.mounts}
    for n, model in enumerate(settings.models):
        budget = load_package(Path(outside[model.package])).manifest.budget
        if budget.memory_mb is not None:
            taken[n] = budget.memory_mb
    both = [n for n, m in enumerate(settings.models) if m.slot and m.exchange.memory == "keep" and n in taken]
    if not both:
        return
    [bound] = (c.memory_mb for c in deployment.of("inference"))
    # One is exchanged at a time.
    largest = max(both, key=taken.__getitem__)
    wanted = sum(taken.values()) + taken[largest]
    if wanted > bound:
        yield Finding(
            where=f"$.models[{largest}].exchange.memory", level="warning",
            text=f"expected unload, or more than the {bound} MiB that inference may take, got keep (its "
            f"models, and this one twice, want {wanted} MiB by their packages' budgets)",
        )  # fmt: skip
