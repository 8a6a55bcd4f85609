"""`skerry check`: every error of a site file at once, for this machine or for a platform."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Iterator
from pathlib import Path

from skerry.cli.render import add_options, read_deployment, refuse
from skerry.deploy.acl import identities
from skerry.deploy.deployment import Deployment, Finding
from skerry.deploy.devices import DEVICES
from skerry.deploy.model_findings import files_findings
from skerry.deploy.site import Site, load_site
from skerry.deploy.targets import TARGETS


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Add the parser of `skerry check`, and return it."""
    classes = "\n".join(f"  {name:16}{device.about}" for name, device in DEVICES.items())
    parser = commands.add_parser(
        "check",
        help="every error of a site file at once",
        description="Check a site file with the modules' own types, its cameras, packages, labels and rules; "
        "with --target, besides, what that platform would refuse, or take and then not do. Prints every "
        "error, or what the site amounts to; exit code 78 if there is any error.",
        epilog=f"classes of devices, for `device:` in a site file:\n{classes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("site", type=Path, metavar="SITE", help="the site file, YAML")
    parser.add_argument(
        "--target", choices=(*TARGETS, "all"), default=None,
        help="a platform, or all of them; files that the site names need not be on this machine then",
    )  # fmt: skip
    parser.add_argument(
        "--secrets", type=Path, default=None, metavar="DIR",
        help="with --target: look whether this folder has every secret that the site names, as render tells",
    )  # fmt: skip
    parser.add_argument(
        "--certificates", type=Path, default=None, metavar="DIR",
        help="with --target: look whether this folder of `skerry certs` has good ones for everybody",
    )  # fmt: skip
    add_options(parser)
    parser.set_defaults(func=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Check; returns the exit code.

    Raises:
        ConfigError: with every error.
    """
    if arguments.target is None:
        _print(arguments.site, load_site(arguments.site, dict(arguments.arguments)))
        return 0
    for target in TARGETS if arguments.target == "all" else (arguments.target,):
        its = read_deployment(arguments, target)
        refuse(
            its,
            arguments.site,
            [
                *_secrets(its, arguments.secrets),
                *_certificates(its, arguments.certificates),
                *files_findings(its),
            ],
        )
        TARGETS[target].render(its)
        _print(arguments.site, its.site, target)
    return 0


def _secrets(its: Deployment, folder: Path | None) -> Iterator[Finding]:
    """Secrets that are not in their folder, or are empty."""
    if folder is None:
        return
    for mount in its.mounts:
        if mount.role != "secrets":
            continue
        path = folder / mount.name
        try:
            missing = "" if path.stat().st_size else "an empty file"
        except OSError as error:
            missing = error.strerror or "an error"
        for where in its.where(mount) if missing else ():
            yield Finding(where=where, text=f"expected a secret in {path}, got {missing.lower()}")


def _certificates(its: Deployment, folder: Path | None) -> Iterator[Finding]:
    """What is wrong with the certificates of a secure bus."""
    if folder is None or not its.secure:
        return
    from skerry.deploy.keyring import Keyring  # noqa: PLC0415 - needs cryptography

    for text in Keyring(folder, dt.datetime.now(dt.UTC)).problems(identities(its.plan)):
        yield Finding(where="--certificates", text=text)


def _print(path: Path, site: Site, target: str = "") -> None:
    print(f"{path}: no errors{f' on {target}' if target else ''}")
    print(f"  cameras  {', '.join(f'{c.name} ({c.source.__struct_config__.tag})' for c in site.cameras)}")
    print(f"  models   {', '.join(Path(m.package).name for m in site.models)}")
    print(f"  rules    {', '.join(f'{r.name} ({r.__struct_config__.tag})' for r in site.rules) or 'none'}")
    print(f"  link     {site.link.__struct_config__.tag}")
