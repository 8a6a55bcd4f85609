"""`skerry deploy`: a site put on an engine or a cluster, and kept as its file says."""

from __future__ import annotations

import argparse
import datetime as dt
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from skerry.cli.render import add_options
from skerry.deploy.acl import BROKER
from skerry.deploy.contained import BUS_HOST
from skerry.errors import Unavailable

MISSING = "deploy: expected the extra deploy, got no {name} (pip install 'skerry[deploy]')"
CODES = "exit codes of --diff: 0 nothing to do, 1 there are changes; without it, as of every command"


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> list[argparse.ArgumentParser]:
    """Add the parsers of `skerry deploy`, and return those that take a site."""
    from skerry.cli import deploy_docker, deploy_k3s  # noqa: PLC0415 - they take what is below

    parser = commands.add_parser(
        "deploy",
        help="put a site on a Docker engine or a k3s cluster, and keep it as its file says",
        description="Look at what is there, show the differences, and make them: a second run does nothing.",
    )
    where = parser.add_subparsers(title="where", metavar="{docker,k3s}", required=True)
    return [deploy_docker.add_parser(where), deploy_k3s.add_parser(where)]


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every place takes."""
    parser.add_argument("site", type=Path, metavar="SITE", help="the site file, YAML")
    parser.add_argument(
        "--certificates", type=Path, default=None, metavar="DIR",
        help="folder of `skerry certs`: who may say what on the bus",
    )  # fmt: skip
    parser.add_argument(
        "--diff", "--dry-run", action="store_true", dest="diff",
        help="print what would change, and change nothing",
    )  # fmt: skip
    parser.add_argument(
        "--wait", type=_seconds, default=180.0, metavar="S",
        help="how long to wait until everything is healthy, s; 0: do not (default %(default)g)",
    )  # fmt: skip
    parser.add_argument("--remove", action="store_true", help="take the site away again")
    parser.add_argument(
        "--state", action="store_true",
        help="with --remove: what was not delivered, a file link's events, and models that came go too",
    )  # fmt: skip
    parser.add_argument(
        "--secrets", type=Path, default=None, metavar="DIR",
        help="folder of the secrets, by the names that `skerry render` tells (default: docker where the site "
        "file says, k3s on the cluster already)",
    )  # fmt: skip
    add_options(parser)


def certificate_problems(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """What is wrong with the certificates of these.

    Raises:
        Unavailable: the folder cannot be read, or `cryptography` is not installed.
    """
    try:
        from skerry.deploy.keyring import Keyring  # noqa: PLC0415 - needs cryptography
    except ImportError as error:
        raise Unavailable("deploy: expected cryptography, got nothing (pip install 'skerry[cli]')") from error
    hosts = (BUS_HOST,) if BROKER in names else ()
    for text in Keyring(folder, dt.datetime.now(dt.UTC)).problems(names, hosts):
        yield f"--certificates: {folder}/{text}"


def say(text: str) -> None:
    """Tell a step, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"expected seconds from 0 to 86400, got {text!r}")
    return value
