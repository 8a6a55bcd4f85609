"""`skerry model push` and `pull`: packages and their signed metadata, to and from an OCI registry."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.models import references
from skerry.models.layout import is_layout
from skerry.settings import parse

if TYPE_CHECKING:
    from skerry.models.layout import Packed
    from skerry.models.pull import Pulled
    from skerry.models.push import Pushed
    from skerry.models.references import Reference
    from skerry.updater.registry import Registry

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - what add_subparsers returns has no public name

_LOGIN = ("username", "password_file", "token_file", "ca", "certificate", "key")


def add_command(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Register `push` and `pull`; each sets `func`, which returns the exit code."""
    push = commands.add_parser(
        "push",
        help="send packages to an OCI registry",
        description="Send every package of an OCI image layout to a registry, and the signed metadata of a "
        "repository along with them. What is there already is not sent again; the index that the tag leads "
        "to is exchanged last. The registry need not be trusted.",
        epilog="example: skerry model push build/repository registry.example/models/parts:latest "
        "--username boat --password-file secrets/registry",
    )
    push.add_argument("layout", type=Path, metavar="LAYOUT", help="folder of the layout or repository")
    push.add_argument(
        "target", type=_reference, metavar="REGISTRY/NAME[:TAG]", help="TAG: latest if not said"
    )
    push.add_argument("--digest", metavar="HEX", help="only this package; its first digits will do")
    push.add_argument(
        "--force", action="store_true",
        help="replace another content of a version, and newer metadata, that are there",
    )  # fmt: skip
    _add_login(push)
    push.set_defaults(func=_push)
    pull = commands.add_parser(
        "pull",
        help="fetch packages from an OCI registry",
        description="Fetch the packages that a tag or digest leads to into an OCI image layout, with signed "
        "metadata where there is some, and compare every hash. What was interrupted goes on where it ended.",
        epilog="example: skerry model pull registry.example/models/parts:parts-1.0.0 --out build/layout",
    )
    pull.add_argument(
        "source", type=_reference, metavar="REGISTRY/NAME[:TAG|@DIGEST]", help="TAG: latest if not said"
    )
    pull.add_argument("--out", type=Path, required=True, metavar="LAYOUT", help="layout to make or add to")
    _add_login(pull)
    pull.set_defaults(func=_pull)


def _add_login(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--username", default="", metavar="NAME", help="who asks, with --password-file")
    for option, text in (
        ("password", "file of the password or access token of that user"),
        ("token", "file of a token that the registry itself takes"),
    ):
        parser.add_argument(f"--{option}-file", default="", metavar="FILE", dest=f"{option}_file", help=text)
    parser.add_argument(
        "--ca", default="", metavar="FILE", help="authorities to trust (default: the system's)"
    )
    parser.add_argument("--certificate", default="", metavar="FILE", help="client certificate, with --key")
    parser.add_argument("--key", default="", metavar="FILE", help="its private key")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _reference(text: str) -> Reference:
    try:
        return references.parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _registry(reference: Reference, arguments: argparse.Namespace) -> Registry:
    settings = import_module("skerry.updater.settings")
    said = {name: getattr(arguments, name) for name in _LOGIN}
    raw = {"kind": "registry", "url": reference.url, "repository": reference.repository, **said}
    found = parse(settings.RegistrySourceSettings, raw, "options")
    made: Registry = import_module("skerry.updater.sources").registry(found, settings.FetchSettings())
    return made


def _push(arguments: argparse.Namespace) -> int:
    target: Reference = arguments.target
    if target.digest:
        raise ConfigError(f"{target}: expected a tag to push to, got a digest")
    if not is_layout(arguments.layout):
        raise PackageError(
            f"{arguments.layout}: expected an image layout, got something else (skerry model pack makes one)"
        )
    registry = _registry(target, arguments)
    with _Progress() as progress:
        done: Pushed = import_module("skerry.models.push").push(
            arguments.layout, registry, target.tag, digest=arguments.digest, force=arguments.force,
            told=progress,
        )  # fmt: skip
    report = {
        "to": str(target),
        "index": done.index,
        "packages": [{**_row(packed), "tag": tag} for tag, packed in done.packages],
        "metadata_files": done.metadata,
        "sent_bytes": done.sent,
        "there_bytes": done.there,
    }
    if arguments.json:
        print(json.dumps(report))
        return 0
    for tag, packed in done.packages:
        print(f"{packed.config.title:24} sha256:{packed.listing.digest}  :{tag}")
    signed = f"{done.metadata} files of signed metadata" if done.metadata else "no signed metadata"
    print(f"{target}: {_packages(done.packages)}, {signed}; {_amount(done.sent)} sent, "
          f"{_amount(done.there)} were there")  # fmt: skip
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    source: Reference = arguments.source
    registry = _registry(source, arguments)
    try:
        with _Progress() as progress:
            done: Pulled = import_module("skerry.models.pull").pull(
                registry, source, arguments.out, told=progress
            )
    except OSError as error:
        raise Unavailable(f"{error.filename or arguments.out}: {error.strerror}") from error
    report = {
        "from": str(source),
        "layout": str(arguments.out),
        "packages": [_row(packed) for packed in done.packages],
        "metadata_files": done.metadata,
        "received_bytes": done.received,
        "there_bytes": done.there,
    }
    if arguments.json:
        print(json.dumps(report))
        return 0
    for packed in done.packages:
        print(f"{packed.config.title:24} sha256:{packed.listing.digest}  every hash compared")
    signed = "no signed metadata"
    if done.metadata:
        signed = f"{done.metadata} files of signed metadata (skerry model verify judges them)"
    print(f"{arguments.out}: {_packages(done.packages)}, {signed}; {_amount(done.received)} received, "
          f"{_amount(done.there)} were there")  # fmt: skip
    return 0


def _row(packed: Packed) -> dict[str, Any]:
    return {
        "title": packed.config.title,
        "digest": f"sha256:{packed.listing.digest}",
        "bytes": packed.listing.total,
    }


def _packages(listed: Sequence[object]) -> str:
    return f"{len(listed)} package{'s' * (len(listed) != 1)}"


def _amount(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1_000_000 else f"{size / 1000:.0f} kB"


class _Progress:
    """What is under way, on standard error: a line that changes on a terminal, else one every few seconds."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._every_s = 0.1 if self._live else 5.0
        self._next_s = time.monotonic() + self._every_s

    def __call__(self, what: str, done: int, size: int) -> None:
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + self._every_s
        text = f"{what[:50]}: {_amount(done)} of {_amount(size)}"
        print(
            f"\r{text:79}" if self._live else text,
            end="" if self._live else "\n",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print(f"\r{'':79}\r", end="", file=sys.stderr, flush=True)
