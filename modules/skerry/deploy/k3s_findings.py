"""What Kubernetes would refuse of a site, or take and then not do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from skerry.capture.settings import MjpegSource, RtspSource, V4l2Source
from skerry.deploy.deployment import Deployment, Finding
from skerry.deploy.k3s_network import link_ends
from skerry.deploy.k3s_pods import camera_resource, namespace, package_image
from skerry.deploy.model_findings import source_hosts
from skerry.uplink.settings import AzureLink, EdgeIdentity, GreengrassLink, MqttLink

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
"""RFC 1123, section 2.1, as Kubernetes takes it."""
_LABEL_CHARS = 63
_MODULE_CHARS = 40
"""Of a module's name: `certificates-NAME` and `NAME-state` are names of volumes, which are labels too."""
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
"""A key of a Secret."""
_IMAGE = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
"""A part of an image's name, as scripts/build-images takes it."""
_VERSION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""The value of a label."""
_VARIABLE_BYTES = 131_071
"""What Linux takes of one variable, with its name: MAX_ARG_STRLEN of execve(2)."""
_CONFIG_MAP_BYTES = 1024 * 1024


def findings(deployment: Deployment) -> list[Finding]:
    """Everything that is wrong with a site on Kubernetes."""
    return [
        *_names(deployment), *_packages(deployment), *_images(deployment), *_link(deployment),
        *_hosts(deployment), *_cameras(deployment), *_keys(deployment), *_sizes(deployment),
    ]  # fmt: skip


def _names(deployment: Deployment) -> Iterator[Finding]:
    site = deployment.plan.site
    if not _LABEL.fullmatch(site) or len(namespace(deployment)) > _LABEL_CHARS:
        room = _LABEL_CHARS - len("skerry-")
        yield Finding(
            where="$.site",
            text=f"expected at most {room} lower-case letters, digits and -, got {site!r} (it names "
            "a namespace)",
        )
    for name in deployment.site.captures:
        if not _LABEL.fullmatch(name) or len(name) > _MODULE_CHARS:
            yield Finding(
                where=f"$.captures.{name}",
                text=f"expected at most {_MODULE_CHARS} lower-case letters, digits and -, got {name!r} "
                "(it names a container)",
            )
    taken = Counter(container.name for container in deployment.containers)
    for name in deployment.site.captures:
        if taken[name] > 1:
            yield Finding(
                where=f"$.captures.{name}", text=f"expected a name that nobody else has, got {name!r}"
            )


def _packages(deployment: Deployment) -> Iterator[Finding]:
    """A package comes as an image of its folder's name."""
    for mount in (m for m in deployment.mounts if m.role == "models"):
        folder = Path(mount.outside).name
        where = deployment.where(mount)[0]
        if not _IMAGE.fullmatch(mount.name):
            yield Finding(
                where=where,
                text="expected a folder whose name can be part of an image's (a-z, 0-9, and - between), "
                f"got {folder!r}",
            )
        elif mount.name != folder:
            yield Finding(
                where=where,
                text=f"expected a folder unlike those of other packages, got another {folder!r} (rename it: "
                "an image has its name)",
            )


def _images(deployment: Deployment) -> Iterator[Finding]:
    images = deployment.images
    if not _VERSION.fullmatch(images.tag):
        yield Finding(
            where="--tag", text=f"expected at most 63 letters, digits, -, _ and ., got {images.tag!r}"
        )
    packages = [package_image(m) for m in deployment.mounts if m.role == "models"]
    loose = sorted(set(packages) - images.digests.keys())
    if loose and images.digests:
        yield Finding(
            where="--images", level="warning",
            text=f"expected a digest for each image, {', '.join(loose)} have none (scripts/build-images "
            "--package)",
        )  # fmt: skip
    if not images.registry:
        yield Finding(
            where="--registry", level="warning",
            text="expected a registry, got none (each node needs the images imported: k3s/README.md)",
        )  # fmt: skip


def _link(deployment: Deployment) -> Iterator[Finding]:
    where = deployment.link_path
    match deployment.site.link:
        case GreengrassLink():
            yield Finding(
                where=f"{where}.kind",
                text="expected a link that needs no nucleus (aws, azure, mqtt, http, file), got greengrass",
            )
        case AzureLink(identity=EdgeIdentity()):
            yield Finding(
                where=f"{where}.identity",
                text="expected connection-string, x509, dps-key or dps-x509, got auto (there is no IoT Edge)",
            )
        case MqttLink(user=user, password_file="") if user:
            yield Finding(
                where=f"{where}.password_file", level="warning",
                text=f"expected a file with the password of {user!r}, got nothing",
            )  # fmt: skip
        case _:
            pass


def _hosts(deployment: Deployment) -> Iterator[Finding]:
    """A pod asks the cluster's DNS for names."""
    for where, host in _far(deployment):
        if host.endswith(".local"):
            yield Finding(
                where=where, level="warning",
                text=f"expected an address, or a name that the cluster's DNS knows, got {host} (mDNS ends at "
                "the node)",
            )  # fmt: skip


def _far(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """Every host that the site names, with its path."""
    site = deployment.site
    for n, camera in enumerate(site.cameras):
        if isinstance(camera.source, RtspSource | MjpegSource):
            yield f"$.cameras[{n}].source.url", urlsplit(camera.source.url).hostname or ""
    for host, _ in link_ends(site.link):
        yield deployment.link_path, host
    yield from source_hosts(site)
    yield "$.bus.host", site.bus.host


def _cameras(deployment: Deployment) -> Iterator[Finding]:
    for n, camera in enumerate(deployment.site.cameras):
        where = f"$.cameras[{n}].source"
        match camera.source:
            case V4l2Source(device=device):
                yield Finding(
                    where=f"{where}.device", level="warning",
                    text=f"expected a device plugin that gives {device} as {camera_resource(device)}, and "
                    "cannot see one from here (k3s/README.md, a camera of the node)",
                )  # fmt: skip
            case RtspSource(user=user, password_file="") | MjpegSource(user=user, password_file="") if user:
                yield Finding(
                    where=f"{where}.password_file", level="warning",
                    text=f"expected a file with the password of {user!r}, got nothing",
                )  # fmt: skip
            case _:
                pass
    resources = [
        (n, camera_resource(c.source.device))
        for n, c in enumerate(deployment.site.cameras)
        if isinstance(c.source, V4l2Source)
    ]
    for n, name in resources:
        if len(name.partition("/")[2]) > _LABEL_CHARS:
            yield Finding(
                where=f"$.cameras[{n}].source.device",
                text=f"expected a path of at most {_LABEL_CHARS} characters behind /dev/, got {name!r} (make "
                "a shorter link with udev)",
            )


def _keys(deployment: Deployment) -> Iterator[Finding]:
    for mount in deployment.mounts:
        if mount.role == "secrets" and not _KEY.fullmatch(mount.name):
            yield Finding(
                where=deployment.where(mount)[0],
                text="expected a file whose name can be a key (letters, digits, -, _ and .), "
                f"got {mount.name!r}",
            )


def _sizes(deployment: Deployment) -> Iterator[Finding]:
    for container in deployment.containers:
        for name, value in container.environment.items():
            taken = len(f"{name}={value}".encode())
            if taken > _VARIABLE_BYTES:
                yield Finding(
                    where="$",
                    text=f"expected at most {_VARIABLE_BYTES} bytes of settings for {container.name}, got "
                    f"{taken} (fewer rules, zones or masks)",
                )
        taken = sum(len(text.encode()) for text in container.files.values())
        if taken > _CONFIG_MAP_BYTES:
            yield Finding(
                where="$.cameras",
                text=f"expected at most {_CONFIG_MAP_BYTES} bytes of the broker's rules, got {taken} (make "
                "it several sites)",
            )
