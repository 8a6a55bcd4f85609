"""The renderings that stand in the repository, for reading and for deploying: what they are made from."""

from __future__ import annotations

from pathlib import Path

from skerry.deploy.deployment import deployment
from skerry.deploy.site import Target, load_site
from skerry.deploy.targets import TARGETS

FOLDERS: dict[Target, str] = {
    "iotedge": "deployment-manifests", "greengrass": "greengrass-components", "k3s": "k3s",
}  # fmt: skip
"""Where the renderings for a target are; its README there is written by hand."""
SITES = ("demo", "line")
"""The site files that are rendered: what `make demo` runs, and one with a real camera."""


def renderings(root: Path) -> dict[str, str]:
    """Every committed file by its path below the repository, with its content.

    Args:
        root: the repository's folder.
    """
    found: dict[str, str] = {}
    for target, folder in FOLDERS.items():
        if target not in TARGETS:
            continue
        for name in SITES:
            its = deployment(load_site(root / "sites" / f"{name}.yaml", here=False), target)
            files = TARGETS[target].render(its)
            found |= {f"{folder}/{name}/{path}": text for path, text in files.items()}
    return found
