"""`skerry model readiness`: what packages have that are to be released, and where they run."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from skerry import durable
from skerry.deploy.devices import DEVICES
from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.models import layout
from skerry.models.benching import readiness, statement
from skerry.models.benching.readiness import Check, Facts, Place, Signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skerry.trust.packages import TrustedPackage

_DOCUMENT_BYTES = 4 * 1024 * 1024


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `skerry model readiness`."""
    parser = commands.add_parser(
        "readiness",
        help="what is missing before packages are released, and where each runs",
        description="Verify every package of a layout or a signed repository, list what each has of what a "
        "release should have, and which classes of devices and runtimes it fits. Markdown, or JSON.",
        epilog="example: skerry model readiness repository --root root.json --out readiness.md --require",
    )
    parser.add_argument(
        "packages", type=Path, metavar="PACKAGES", help="a repository, a layout, or a package's folder"
    )
    parser.add_argument(
        "--root", type=Path, default=None, metavar="FILE",
        help="the root that devices were given (default: the repository's own first one)",
    )  # fmt: skip
    parser.add_argument(
        "--class", action="append", default=[], metavar="NAME", dest="classes",
        help="a class that attestations are wanted for; may be repeated (default: those a package is for)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write the page here")
    parser.add_argument("--require", action="store_true", help="exit with 65 when anything is missing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """List; returns the exit code.

    Raises:
        ConfigError: a class is unknown.
        PackageError: a package is bad; or, with --require, something is missing.
        Unavailable: the page cannot be written, or a file not be read.
    """
    strange = [name for name in arguments.classes if name not in DEVICES]
    if strange:
        raise ConfigError(f"--class: expected one of {', '.join(DEVICES)}, got {', '.join(strange)}")
    with tempfile.TemporaryDirectory(prefix="skerry-") as room:
        every = _facts(arguments.packages, arguments.root, Path(room))
    if not every:
        raise PackageError(f"{arguments.packages}: expected packages, got none")
    lists: dict[str, tuple[Check, ...]] = {}
    digests: dict[str, str] = {}
    places: list[Place] = []
    for facts in every:
        title = facts.title if facts.title not in lists else f"{facts.title} {facts.digest[7:15]}"
        lists[title] = readiness.checklist(facts, _wanted(facts, arguments.classes))
        digests[title] = facts.digest
        places += readiness.matrix(facts, DEVICES)
    page = readiness.page(lists, places, digests)
    if arguments.out is not None:
        try:
            durable.replace(arguments.out, page.encode(), 0o644)
        except OSError as error:
            raise Unavailable(f"{arguments.out}: {error.strerror}") from error
    if arguments.json:
        print(json.dumps(_report(lists, digests, places)))
    elif arguments.out is None:
        print(page, end="")
    else:
        for title, checks in lists.items():
            missing = [check.name for check in checks if check.state != "yes"]
            print(f"{title}: {'ready' if not missing else 'not ready: ' + ', '.join(missing)}")
        print(arguments.out)
    if arguments.require:
        found = [
            f"{title}: {check.name}: {check.found}"
            for title, checks in lists.items()
            for check in checks
            if check.state != "yes"
        ]
        if found:
            raise PackageError("\n".join(found))
    return 0


def _wanted(facts: Facts, asked: Sequence[str]) -> tuple[str, ...]:
    """Classes that a package should be attested for."""
    if asked:
        return tuple(asked)
    if facts.signed is None:
        return ()
    return facts.signed.classes or tuple(a.device_class for a in facts.signed.attestations)


def _report(
    lists: dict[str, tuple[Check, ...]], digests: dict[str, str], places: list[Place]
) -> dict[str, Any]:
    return {
        "packages": [
            {
                "title": title,
                "digest": digests[title],
                "ready": readiness.ready(checks),
                "checks": msgspec.to_builtins(checks),
            }
            for title, checks in lists.items()
        ],
        "matrix": msgspec.to_builtins(places),
    }


def _facts(there: Path, root: Path | None, room: Path) -> list[Facts]:
    """What is known of every package, sorted by title."""
    if not layout.is_layout(there):
        layout.pack(there, room / "layout")
        there = room / "layout"
    signed = _signed(there, root, room)
    try:
        digests = [entry.hexadecimal for entry in layout.Layout(there).entries()]
    except OSError as error:
        raise Unavailable(f"{error.filename or there}: {error.strerror}") from error
    found = [_of(there, digest, signed) for digest in dict.fromkeys(digests)]
    return sorted(found, key=lambda facts: (facts.title, facts.digest))


def _of(there: Path, hexadecimal: str, signed: dict[str, TrustedPackage] | Signed | None) -> Facts:
    """One package, every hash compared."""
    packed = layout.verify(there, hexadecimal)
    read = layout.Layout(there)
    documents = {
        file.title: b"".join(read.blob(file.blob))
        for file in packed.listing.files
        if file.title in readiness.DOCUMENTS and file.blob.size <= _DOCUMENT_BYTES
    }
    digest = f"sha256:{hexadecimal}"
    trusted = signed.get(digest) if isinstance(signed, dict) else None
    if trusted is not None:
        said: Signed | None = Signed(_keys(there), True, trusted.classes, trusted.attestations)
    elif isinstance(signed, dict):
        said = Signed("in the repository, but not listed by those who sign", False)
    else:
        said = signed
    return Facts(
        title=packed.config.title,
        digest=digest,
        manifest=packed.config.manifest,
        files={file.title: file.blob.digest for file in packed.listing.files},
        documents=documents,
        signed=said,
        statements=_statements(read, trusted) if trusted is not None else {},
    )


def _statements(read: layout.Layout, package: TrustedPackage) -> dict[str, statement.Predicate]:
    """Of a package's attestations, those whose statements are there and are what was signed."""
    found = {}
    for attested in package.attestations:
        try:
            raw = read.document(
                "/".join((*layout.BLOBS, attested.statement.removeprefix("sha256:"))), statement.MOST_BYTES
            )
            made = statement.read(raw, attested.statement[:23])
        except (OSError, PackageError):
            continue  # the checklist says that it is not there
        if statement.summary(made, raw) == attested and made.digest == package.digest:
            found[attested.statement] = made.predicate
    return found


def _signed(there: Path, root: Path | None, room: Path) -> dict[str, TrustedPackage] | Signed | None:
    """Packages by digest that a new device takes; why it takes none; None where nobody signed anything."""
    first = there / "metadata" / "1.root.json"
    if root is None and not first.exists():
        return None
    try:
        device: Any = import_module("skerry.trust.device")
        sources: Any = import_module("skerry.trust.sources")
        untrusted: Any = import_module("skerry.trust.refusals").Untrusted
    except ModuleNotFoundError as error:
        raise Unavailable(f"model readiness needs {error.name} (pip install 'skerry[updater]')") from error
    path = root or first
    try:
        trust = device.Trust(room / "state", path.read_bytes())
        packages = trust.refresh(sources.Folder(there), time.time(), clock_trusted=True)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    except (untrusted, Unavailable) as error:
        return Signed(f"refused: {error}", good=False)
    return {package.digest: package for package in packages}


def _keys(there: Path) -> str:
    """How many keys signed the list of packages, and until when that is good."""
    repository: Any = import_module("skerry.models.signing.repository").Repository(there)
    role = repository.root.roles["targets"]
    ends = min(
        each.signed.expires for each in (repository.targets, repository.snapshot, repository.timestamp)
    )
    return f"{role.threshold} of {len(role.keyids)} keys, as the root wants it; good until {ends:%Y-%m-%d}"
