"""`skerry model sign oms` and `skerry model verify --oms`: a signature that other people's tools take."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from skerry import durable
from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.models import layout
from skerry.models import package as packages
from skerry.models.layout import is_layout


def add_sign(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `skerry model sign oms`."""
    oms = actions.add_parser(
        "oms",
        help="sign a package for tools that know the OpenSSF's model signatures",
        description="Write a detached signature of a package as the OpenSSF's model-signing tool does with a "
        "key, which it verifies, too. Devices do not go by it: they want a signed repository.",
        epilog="example: (umask 077; openssl ecparam -name prime256v1 -genkey -noout -out oms.key); "
        "skerry model sign oms build/parts --key oms.key --out build/parts.sig",
    )
    oms.add_argument(
        "package", type=Path, metavar="PACKAGE", help="folder of the package, or an image layout with it"
    )
    oms.add_argument("--key", type=Path, required=True, metavar="FILE", help="EC private key, PEM")
    oms.add_argument("--out", type=Path, required=True, metavar="FILE", help="signature to write")
    oms.add_argument("--digest", metavar="HEX", help="which package of a layout with several")
    oms.add_argument(
        "--passphrase-file", type=Path, default=None, metavar="FILE", dest="passphrase",
        help="its first line opens the key",
    )  # fmt: skip
    oms.add_argument("--json", action="store_true", help="print one JSON object")
    oms.set_defaults(func=_sign)


def add_verify(verify: argparse.ArgumentParser) -> None:
    """Add the options with which `skerry model verify` verifies such a signature."""
    verify.add_argument(
        "--oms", type=Path, default=None, metavar="FILE",
        help="in the place of --root: verify this signature of a package or layout",
    )  # fmt: skip
    verify.add_argument(
        "--public-key", type=Path, default=None, metavar="FILE", help="with --oms: whose it is"
    )
    verify.add_argument("--digest", metavar="HEX", help="with --oms: which package of a layout with several")


def verify(arguments: argparse.Namespace) -> int:
    """Verify a signature; returns the exit code.

    Raises:
        ConfigError: options or key are wrong.
        PackageError: it does not hold.
    """
    if arguments.public_key is None:
        raise ConfigError("model verify --oms: expected --public-key FILE, got none")
    oms = _module("oms")
    key = oms.read_public(arguments.public_key)
    title, files = _files(arguments.repository, arguments.digest)
    content = _content(arguments.oms, oms.MOST_BYTES)
    name = oms.verify(content, files, key, str(arguments.oms))
    report = {"package": title, "signed_as": name, "files": len(files), "signature": str(arguments.oms)}
    text = f"{title}: {len(files)} files, each as {arguments.public_key} has signed it"
    print(json.dumps(report) if arguments.json else text)
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    oms, keys = _module("oms"), _module("keys")
    key = oms.read_private(arguments.key, keys.read_passphrase(arguments.passphrase))
    title, files = _files(arguments.package, arguments.digest)
    inside = arguments.package.resolve() in arguments.out.resolve().parents
    if inside and not is_layout(arguments.package):
        raise ConfigError(
            f"{arguments.out}: expected a file outside the package, whose files are what is signed"
        )
    try:
        durable.replace(arguments.out, oms.sign(files, title, key), 0o644)
    except OSError as error:
        raise Unavailable(f"{error.filename or arguments.out}: {error.strerror}") from error
    report = {"package": title, "files": len(files), "signature": str(arguments.out)}
    text = f"{title}: {len(files)} files signed -> {arguments.out}"
    print(json.dumps(report) if arguments.json else text)
    return 0


def _files(there: Path, digest: str | None) -> tuple[str, dict[str, str]]:
    """Name@version of a package, and the sha256 of each of its files."""
    try:
        if is_layout(there):
            packed = layout.verify(there, layout.select(there, digest).hexadecimal)
            return packed.config.title, {f.title: f.blob.digest for f in packed.listing.files}
        package = packages.load(there)
        return package.title, {title: packages.digest(there / title) for title in layout.file_titles(there)}
    except OSError as error:
        raise Unavailable(f"{error.filename or there}: {error.strerror}") from error


def _content(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    if len(content) > most:
        raise PackageError(f"{path}: expected at most {most} bytes, got more")
    return content


def _module(name: str) -> Any:
    try:
        return import_module(f"skerry.models.signing.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError("expected cryptography, got none (pip install 'skerry[updater,cli]')") from error
