"""`skerry render`: a site as the files that a platform's own tools take."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from skerry import __version__
from skerry.deploy.compose import BUS_FOLDER, CERTIFICATES_FOLDER, COMPOSE_FILE, Images, render
from skerry.deploy.contained import Mount, contained, place
from skerry.deploy.plan import plan
from skerry.deploy.site import load_site
from skerry.errors import Unavailable


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Add the parser of `skerry render`, and return it."""
    parser = commands.add_parser(
        "render",
        help="a site as the files of a platform",
        description="Check a site file and write what its containers are made from: for compose the compose "
        "file, the broker's configuration and the model packages. Secrets are never copied: the command says "
        "which files to bring. The same site gives the same files.",
        epilog="example: skerry render compose sites/demo.yaml --out build/demo",
    )
    parser.add_argument("target", choices=("compose",), metavar="{compose}", help="which platform")
    parser.add_argument("site", type=Path, metavar="SITE", help="the site file, YAML")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files")
    parser.add_argument(
        "--registry", default="", metavar="R", help="where the images are, e.g. registry.example/site"
    )
    parser.add_argument("--tag", default=__version__, help="of the images (default %(default)s)")
    parser.add_argument(
        "--secure", action="store_true",
        help="a bus with TLS: everybody has a certificate (skerry certs) and may only say what is theirs",
    )  # fmt: skip
    parser.set_defaults(func=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the files; returns the exit code.

    Raises:
        ConfigError: the site file is wrong.
        Unavailable: a file cannot be written.
    """
    named = load_site(arguments.site, dict(arguments.arguments), here=False)
    site, mounts = contained(named)
    the_plan = plan(site, place(site, secure=arguments.secure))
    images = Images(registry=arguments.registry, tag=arguments.tag)
    out: Path = arguments.out
    try:
        for name, text in render(the_plan, mounts, images).items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for mount in mounts:
            if mount.role == "models":
                _copy(mount, out)
    except OSError as error:
        raise Unavailable(f"{error.filename or out}: {error.strerror or error}") from error
    print(f"{out / COMPOSE_FILE}: {len(the_plan.parts)} modules, with the broker in {out / BUS_FOLDER}")
    for mount in mounts:
        if mount.role != "models":
            print(f"{out / mount.role / mount.name}: put {mount.outside} there")
    if arguments.secure:
        print(f"{out / CERTIFICATES_FOLDER}: skerry certs {arguments.site} --out {out / CERTIFICATES_FOLDER}")
    return 0


def _copy(mount: Mount, out: Path) -> None:
    """Put a model package beside the compose file, in place of what is there."""
    there = out / mount.role / mount.name
    if there.resolve() == Path(mount.outside).resolve():
        return
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(mount.outside, there)
