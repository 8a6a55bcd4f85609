"""`skerry deploy docker`: a site on a Docker engine, near or far."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skerry.cli.deploy import CODES, MISSING, add_common, certificate_problems, say
from skerry.cli.render import read_deployment, refuse
from skerry.deploy.archive import Entry, content_name, entries
from skerry.deploy.contained import Mount
from skerry.deploy.deployment import Deployment
from skerry.deploy.engine import (
    Changes,
    Copy,
    Options,
    changes,
    copies,
    lines,
    missing_images,
    removal,
    wanted,
)
from skerry.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from skerry.deploy.docker_engine import Engine


def add_parser(where: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the parser of `skerry deploy docker`, and return it."""
    parser = where.add_parser(
        "docker",
        help="a Docker engine, of this machine or the one in DOCKER_HOST",
        description="Run a site on a Docker engine, as the compose file of `skerry render compose` would, "
        "without files on its machine: what modules read is copied into volumes. What did not change goes on "
        "running; what did is stopped in the order of the flow and made anew.",
        epilog=f"{CODES}\nexample: skerry deploy docker sites/demo.yaml --certificates certs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser)
    parser.add_argument(
        "--inputs", type=Path, default=None, metavar="DIR",
        help="folder of the videos and pictures (default: where the site file says)",
    )  # fmt: skip
    parser.add_argument(
        "--bind", action="append", default=[], metavar="ROLE/NAME=PATH", type=_bind,
        help="mount this path of the engine's machine in place of a copy, e.g. "
        "inputs/belt.mp4=/data/belt.mp4; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--render-gid", type=int, default=105, metavar="N",
        help="number of the group render on the engine's machine, for Intel GPUs and NPUs (default "
        "%(default)s)",
    )  # fmt: skip
    parser.set_defaults(func=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Bring an engine to what the site says; returns the exit code.

    Raises:
        ConfigError: the site file, or what belongs to it, is wrong.
        Unavailable: the engine does not answer or refuses, an image is missing, or a module stays ill.
    """
    its = read_deployment(arguments, "compose")
    if arguments.remove:
        return _remove(its, arguments)
    if arguments.state:
        raise ConfigError("--state: expected it with --remove, got it alone")
    refuse(its, arguments.site)
    options = Options(binds=dict(arguments.bind), render_gid=arguments.render_gid)
    files = _files(its, copies(its, options), arguments)
    try:
        contents = {copy: content_name(found, its.plan.site) for copy, found in files.items()}
    except OSError as error:
        raise Unavailable(f"{error.filename}: {error.strerror}") from error
    want = wanted(its, contents, options)
    engine = _engine()
    try:
        there = engine.look([container.image for container in want.containers])
        found = changes(want, there)
        _print(found)
        missing = missing_images(want, there)
        if missing:
            raise Unavailable("\n".join(missing))
        if arguments.diff:
            return int(bool(found))
        if found:
            engine.apply(found, want, files, say)
        if arguments.wait:
            from skerry.deploy.docker_engine import wait  # noqa: PLC0415 - it is there, `_engine` has seen it

            wait(lambda: engine.health(want), say, seconds=arguments.wait)
    finally:
        engine.close()
    return 0


def _remove(its: Deployment, arguments: argparse.Namespace) -> int:
    engine = _engine()
    try:
        found = removal(its.plan.site, engine.look([]), state=arguments.state)
        _print(found)
        if arguments.diff:
            return int(bool(found))
        engine.remove(found, say)
    finally:
        engine.close()
    return 0


def _engine() -> Engine:
    try:
        from skerry.deploy.docker_engine import connect  # noqa: PLC0415 - the one command that needs it
    except ImportError as error:
        raise Unavailable(MISSING.format(name=error.name)) from error
    return connect()


def _files(its: Deployment, needed: Sequence[Copy], arguments: argparse.Namespace) -> dict[Copy, list[Entry]]:
    """What goes into each volume.

    Raises:
        ConfigError: with everything that is not there.
    """
    problems = list(_identity_problems(its, arguments.certificates))
    found: dict[Copy, list[Entry]] = {}
    mounts = {(mount.role, mount.name): mount for mount in its.mounts}
    for copy in needed:
        its_files = found.setdefault(copy, [])
        for name in copy.names:
            if copy.content == "broker":
                its_files.append(Entry(name=name, content=_broker_file(its, name)))
                continue
            if copy.content == "certificates":
                path, where = (arguments.certificates or Path()) / copy.owner / name, ["--certificates"]
                if problems:
                    continue
            else:
                mount = mounts[copy.content, name]
                path, where = _brought(mount, arguments), its.where(mount)
            try:
                its_files += entries(name, path, private=copy.private)
            except OSError as error:
                reason = (error.strerror or "an error").lower()
                problems += [
                    f"{arguments.site.name}: {at}: expected {copy.content}/{name} in {path}, got {reason}"
                    for at in where
                ]
    if problems:
        raise ConfigError(problems)
    return found


def _brought(mount: Mount, arguments: argparse.Namespace) -> Path:
    folder: Path | None = {"secrets": arguments.secrets, "inputs": arguments.inputs}.get(mount.role)
    return Path(mount.outside) if folder is None else folder / mount.name


def _broker_file(its: Deployment, name: str) -> bytes:
    assert its.broker is not None  # it is the one that has files
    return its.broker.files[name].encode()


def _identity_problems(its: Deployment, folder: Path | None) -> Iterator[str]:
    """What is wrong with the certificates of those who need one."""
    if not its.secure:
        return
    if folder is None:
        yield "--certificates: expected a folder of `skerry certs SITE --out DIR`, got none (or --plain-bus)"
        return
    yield from certificate_problems(folder, [c.name for c in its.containers if c.identity])


def _print(found: Changes) -> None:
    for line in lines(found):
        print(line)
    if not found:
        print("nothing to do")


def _bind(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path.startswith("/"):
        raise argparse.ArgumentTypeError(f"expected ROLE/NAME=PATH with a whole path, got {text!r}")
    return name, path
