"""Every target, and what any of them would say of a site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from skerry.deploy import compose, greengrass, iotedge, k3s
from skerry.deploy.deployment import Deployment, Finding, Renderer
from skerry.deploy.devices import DEVICES
from skerry.deploy.model_findings import source_findings, source_hosts
from skerry.deploy.site import Site, Target

TARGETS: dict[Target, Renderer] = {
    "compose": compose.RENDERER,
    "k3s": k3s.RENDERER,
    "iotedge": iotedge.RENDERER,
    "greengrass": greengrass.RENDERER,
}


_REGISTRY = r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
"""Source: distribution/reference, the grammar of image references."""


def findings(deployment: Deployment) -> list[Finding]:
    """What is wrong with a site on a platform, errors first."""
    found = [
        *_devices(deployment), *_twice(deployment.site), *_hosts(deployment), *_logins(deployment.site),
        *_images(deployment), *source_findings(deployment),
        *TARGETS[deployment.target].findings(deployment),
    ]  # fmt: skip
    return sorted(found, key=lambda finding: finding.level != "error")


def _devices(deployment: Deployment) -> Iterator[Finding]:
    """What the class of the device does not have."""
    name = deployment.site.device
    if not name:
        return
    if name not in DEVICES:
        yield Finding(where="$.device", text=f"expected one of {', '.join(DEVICES)}, got {name!r}")
        return
    device = DEVICES[name]
    taken = sum(container.memory_mb for container in deployment.containers)
    if taken > device.free_mb:
        each = ", ".join(f"{c.name} {c.memory_mb}" for c in deployment.containers)
        yield Finding(
            where="$.resources",
            text=f"expected at most the {device.free_mb} MiB that {name} has for modules, got {taken} "
            f"({each}; less memory_mb, or smaller or fewer frames)",
        )
    for container in deployment.containers:
        if container.cpus is not None and container.cpus > device.cores:
            yield Finding(
                where=f"$.resources.{container.kind}.cpus",
                text=f"expected at most the {device.cores} cores of {name}, got {container.cpus:g}",
            )
    for n, model in enumerate(deployment.site.models):
        needed = {"cuda": "nvidia", "tensorrt": "nvidia", "gpu": "intel-gpu", "npu": "intel-npu"}.get(
            model.device
        )
        if needed is not None and needed not in device.accelerators:
            has = ", ".join(device.accelerators) or "none"
            yield Finding(
                where=f"$.models[{n}].device",
                text=f"expected an accelerator that {name} has ({has}), got {model.device} ({needed})",
            )


def _twice(site: Site) -> Iterator[Finding]:
    """A camera's device can be opened once."""
    seen: dict[str, int] = {}
    for n, camera in enumerate(site.cameras):
        device = getattr(camera.source, "device", "")
        if device and device in seen:
            yield Finding(
                where=f"$.cameras[{n}].source.device",
                text=f"expected a device that nobody else opens, cameras[{seen[device]}] has {device}",
            )
        elif device:
            seen[device] = n


def _hosts(deployment: Deployment) -> Iterator[Finding]:
    """Addresses that mean the container itself."""
    site = deployment.site
    said = {"$.bus.host": site.bus.host, f"{deployment.link_path}.host": getattr(site.link, "host", "")}
    addresses = {f"{deployment.link_path}.url": getattr(site.link, "url", "")}
    addresses |= {
        f"$.cameras[{n}].source.url": getattr(c.source, "url", "") for n, c in enumerate(site.cameras)
    }
    said |= {where: urlsplit(url).hostname or "" for where, url in addresses.items()}
    said |= dict(source_hosts(site))
    for where, host in said.items():
        if host == "localhost" or host.startswith("127.") or host == "::1":
            yield Finding(
                where=where,
                text=f"expected a host that a container reaches, got {host} (which is the container itself)",
            )


def _logins(site: Site) -> Iterator[Finding]:
    """A password in an address would stand in what is rendered."""
    for n, camera in enumerate(site.cameras):
        if urlsplit(getattr(camera.source, "url", "")).password:
            yield Finding(
                where=f"$.cameras[{n}].source.url",
                text="expected an address without a password, got one with it (user and password_file)",
            )


def _images(deployment: Deployment) -> Iterator[Finding]:
    """Names that are none, or mean another image tomorrow."""
    images = deployment.images
    if images.registry and not re.fullmatch(_REGISTRY, images.registry.rstrip("/")):
        yield Finding(
            where="--registry",
            text=f"expected host[:port][/path] in lower case and without https://, got {images.registry!r}",
        )
    if not re.fullmatch(_TAG, images.tag):
        yield Finding(
            where="--tag",
            text=f"expected letters, digits, _, . and -, at most 128 and no . or - first, got {images.tag!r}",
        )
        return
    if images.tag == "latest":
        yield Finding(
            where="--tag", text="expected a version, got latest (nobody could say what runs, or go back)"
        )
        return
    loose = sorted({c.image for c in deployment.containers} - deployment.images.digests.keys())
    if loose:
        yield Finding(
            where="--images", level="warning",
            text=f"expected a digest for each image, {', '.join(loose)} have none (a tag can be moved; "
            "scripts/build-images --push --report FILE, then --images FILE)",
        )  # fmt: skip
