"""`skerry render`: a site as the files that a platform's own tools take."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from skerry import __version__
from skerry.deploy.deployment import Deployment, Finding, deployment
from skerry.deploy.images import Images
from skerry.deploy.site import load_site
from skerry.deploy.targets import TARGETS, findings
from skerry.errors import ConfigError, Unavailable


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Add the parser of `skerry render`, and return it."""
    parser = commands.add_parser(
        "render",
        help="a site as the files of a platform",
        description="Check a site file and write what its platform deploys. Secrets are never copied: the "
        "command says which files to bring. The same site gives the same files.",
        epilog="example: skerry render compose sites/demo.yaml --out build/demo",
    )
    parser.add_argument("target", choices=tuple(TARGETS), metavar=_choices(), help="which platform")
    parser.add_argument("site", type=Path, metavar="SITE", help="the site file, YAML")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files")
    add_options(parser)
    parser.set_defaults(func=run)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which images, and which bus: for every command that puts a site on a platform."""
    parser.add_argument(
        "--registry", default="", metavar="R", help="where the images are, e.g. registry.example/site"
    )
    parser.add_argument("--tag", default=__version__, help="of the images (default %(default)s)")
    parser.add_argument(
        "--images", type=Path, default=None, metavar="FILE",
        help="digests of the images: a report of scripts/build-images, or a JSON object of digests by name",
    )  # fmt: skip
    parser.add_argument(
        "--plain-bus", action="store_true",
        help="no TLS between the modules: who is in their network may say anything (for a first try)",
    )  # fmt: skip


def read_deployment(arguments: argparse.Namespace, target: str) -> Deployment:
    """The site that the arguments name, on a target, checked with the modules' own types.

    Raises:
        ConfigError: the site file or the file of digests is wrong.
    """
    site = load_site(arguments.site, dict(arguments.arguments), here=False)
    digests = _digests(arguments.images) if arguments.images else {}
    images = Images(registry=arguments.registry, tag=arguments.tag, digests=digests)
    return deployment(site, target, secure=not arguments.plain_bus, images=images)  # type: ignore[arg-type]  # argparse has checked it


def run(arguments: argparse.Namespace) -> int:
    """Write the files; returns the exit code.

    Raises:
        ConfigError: the site file is wrong, or nothing that this platform takes.
        Unavailable: a file cannot be written.
    """
    its = read_deployment(arguments, arguments.target)
    refuse(its, arguments.site)
    out: Path = arguments.out
    files = TARGETS[its.target].render(its)
    try:
        for name, text in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for mount in its.mounts:
            folder = TARGETS[its.target].copies(mount)
            if folder:
                _copy(Path(mount.outside), out / folder)
    except OSError as error:
        raise Unavailable(f"{error.filename or out}: {error.strerror or error}") from error
    print(f"{out}: {len(files)} files, {len(its.containers)} containers")
    for line in TARGETS[its.target].told(its):
        print(f"  {line.replace('SITE', str(arguments.site))}")
    return 0


def refuse(its: Deployment, site: Path, more: Sequence[Finding] = ()) -> None:
    """Say what is wrong with a deployment: warnings on standard error.

    Args:
        its: the deployment.
        site: the site file, for messages.
        more: what else was found.

    Raises:
        ConfigError: with every error.
    """
    found = [*findings(its), *more]
    errors = [f"{site.name}: {f.where}: {f.text}" for f in found if f.level == "error"]
    if errors:
        raise ConfigError(errors)
    for finding in found:
        print(f"{site.name}: {finding.where}: {finding.text} (warning)", file=sys.stderr)


def _choices() -> str:
    return "{" + ",".join(TARGETS) + "}"


def _digests(path: Path) -> dict[str, str]:
    """Digests by name of the image, from either form."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = {row["name"]: row["digest"] for row in raw if row["digest"]} if isinstance(raw, list) else raw
        good = all(isinstance(v, str) and v.startswith("sha256:") and len(v) == 71 for v in found.values())
    except OSError as error:
        raise ConfigError(f"--images: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--images: expected JSON with digests by name, got {path} ({error})") from error
    if not good:
        raise ConfigError(f"--images: expected digests like sha256:... of 64 digits, got others in {path}")
    return dict(found)


def _copy(package: Path, there: Path) -> None:
    """Put a model package in place of what is there."""
    if there.resolve() == package.resolve():
        return
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(package, there)
