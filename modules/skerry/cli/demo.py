"""`skerry demo`: the bundled site, with what a newcomer should see."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from rich.console import Console

from skerry.capture.settings import SyntheticSource
from skerry.cli.run import Options, report, run_site
from skerry.deploy.site import Site, load_site
from skerry.errors import Unavailable

_FRESH = ("state", "logs", "broker", "events.jsonl", "summary.json", "contact-sheet.jpg", "clip.mp4")


def run(*, seconds: float, seed: int | None, as_json: bool, out: Path | None, pictures: bool) -> int:
    """Run the demo in a fresh output folder; returns the exit code."""
    out = out or Path("skerry-out/demo")
    _clear(out)
    site = load_site(bundled("demo.yaml"))
    if seed is not None:
        site = with_seed(site, seed)
    options = Options(out=out, seconds=seconds, json=as_json, pictures=pictures)
    console = Console(stderr=as_json)
    return report(run_site(site, options, console), options, console)


def _clear(out: Path) -> None:
    """Remove what an earlier demo left, and only that.

    Raises:
        Unavailable: there are such names in a folder that no run of ours has made.
    """
    left = [out / name for name in _FRESH if (out / name).exists()]
    if left and not (out / "state" / "lock").exists():
        raise Unavailable(f"{left[0]}: not from an earlier demo, left alone (choose another --out)")
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def with_seed(site: Site, seed: int) -> Site:
    """The same site before another belt."""
    replace = msgspec.structs.replace
    cameras = tuple(
        replace(c, source=replace(c.source, seed=seed)) if isinstance(c.source, SyntheticSource) else c
        for c in site.cameras
    )
    return replace(site, cameras=cameras)


def bundled(name: str) -> Path:
    """A site file that comes with the project's checkout.

    Raises:
        Unavailable: this is an installation without a checkout.
    """
    path = Path(__file__).resolve().parents[3] / "sites" / name
    if not path.exists():
        raise Unavailable(f"{path}: the bundled site is part of the checkout (run from a clone)")
    return path
