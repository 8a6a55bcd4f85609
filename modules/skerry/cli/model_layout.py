"""`skerry model pack`, `skerry model unpack`, and `skerry model inspect` of a layout."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from skerry.errors import Unavailable
from skerry.models import layout
from skerry.models.layout import Packed


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `pack` and `unpack`; each sets `func`, which returns the exit code."""
    pack = commands.add_parser(
        "pack",
        help="put a package into an OCI image layout",
        description="Put a package folder into an OCI image layout, as it is fetched over HTTP or from a "
        "stick. The same folder gives the same digest everywhere.",
        epilog="example: skerry model pack models/parts --out build/layout",
    )
    pack.add_argument("package", type=Path, metavar="PACKAGE", help="folder of the package")
    pack.add_argument("--out", type=Path, required=True, metavar="LAYOUT", help="layout to make or add to")
    pack.add_argument(
        "--security-epoch", type=_epoch, default=0, metavar="N",
        help="0 or more; devices refuse to go back to a package with a lower one (default 0)",
    )  # fmt: skip
    pack.add_argument("--json", action="store_true", help="print one JSON object")
    pack.set_defaults(func=_pack)
    unpack = commands.add_parser(
        "unpack",
        help="make a package folder of one in an OCI image layout",
        description="Verify a package in an OCI image layout and write it as a folder.",
        epilog="example: skerry model unpack build/layout --out build/parts",
    )
    unpack.add_argument("layout", type=Path, metavar="LAYOUT", help="folder of the layout")
    unpack.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the package")
    add_digest(unpack)
    unpack.add_argument("--force", action="store_true", help="replace the package that is there")
    unpack.add_argument("--json", action="store_true", help="print one JSON object")
    unpack.set_defaults(func=_unpack)


def add_digest(parser: argparse.ArgumentParser) -> None:
    """The option that names one of several packages."""
    parser.add_argument(
        "--digest", metavar="HEX", help="which package of a layout with several; its first digits will do"
    )


def inspect(arguments: argparse.Namespace) -> int:
    """Verify every package of a layout, or one, and say what it is; returns the exit code."""
    there: Path = arguments.package
    if arguments.digest is None:
        with _on_disk(there):
            digests = [e.hexadecimal for e in layout.Layout(there).entries()]
    else:
        digests = [layout.select(there, arguments.digest).hexadecimal]
    reports = [_describe(layout.verify(there, digest)) for digest in digests]
    if arguments.json:
        print(json.dumps({"layout": str(there), "packages": reports}))
        return 0
    print(f"{'layout':10} {there}: {len(reports)} package{'s' * (len(reports) != 1)}, every hash compared")
    for report in reports:
        print()
        _print(report)
    return 0


def _pack(arguments: argparse.Namespace) -> int:
    with _on_disk(arguments.out):
        packed = layout.pack(arguments.package, arguments.out, security_epoch=arguments.security_epoch)
    report = {**_describe(packed), "layout": str(arguments.out)}
    if arguments.json:
        print(json.dumps(report))
    else:
        print(f"{packed.config.title} -> {arguments.out}")
        _print(report)
    return 0


def _unpack(arguments: argparse.Namespace) -> int:
    with _on_disk(arguments.out):
        package = layout.unpack(
            arguments.layout, arguments.out, digest=arguments.digest, force=arguments.force
        )
    report = {"package": str(package.folder), "title": package.title}
    print(json.dumps(report) if arguments.json else f"{package.title} -> {package.folder}")
    return 0


def _describe(packed: Packed) -> dict[str, Any]:
    listing, config = packed.listing, packed.config
    return {
        "title": config.title,
        "digest": f"sha256:{listing.digest}",
        "manifest_bytes": listing.size,
        "security_epoch": config.security_epoch,
        "bytes": listing.total,
        "files": {f.title: {"sha256": f.blob.digest, "bytes": f.blob.size} for f in listing.files},
    }


def _print(report: dict[str, Any]) -> None:
    rows = [
        ("package", report["title"]),
        ("digest", report["digest"]),
        ("epoch", report["security_epoch"]),
        ("size", f"{report['bytes'] / 1000:.0f} kB"),
        *(
            ("file", f"{each['bytes']:>10} B  {each['sha256'][:16]}  {title}")
            for title, each in report["files"].items()
        ),
    ]
    for name, text in rows:
        print(f"{name:10} {text}")


class _on_disk:  # noqa: N801 - a context manager reads as a word
    """Errors of the disk, as the command line tells them."""

    def __init__(self, where: Path) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise Unavailable(f"{error.filename or self._where}: {error.strerror}") from error


def _epoch(text: str) -> int:
    if not text.isdecimal() or int(text) > 1 << 31:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {1 << 31}, got {text!r}")
    return int(text)
