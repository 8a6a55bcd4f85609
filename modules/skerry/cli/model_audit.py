"""`skerry model audit`: whether an audit log is whole, what it tells, and what it proves of what serves."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from skerry.audit import Entry, Head, Report, read
from skerry.errors import PackageError, Unavailable
from skerry.models import layout, oci, provenance, trail
from skerry.models.layout import Layout, is_layout
from skerry.models.package import digest as digest_of
from skerry.models.slots import package_folder, read_slots
from skerry.models.trail import Evidence, Trail


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `skerry model audit`."""
    parser = commands.add_parser(
        "audit",
        help="what was done with models on a device, and whether that can be believed",
        description="Verify an updater's audit log and tell what it says. With the model store, or a "
        "package, follow each package from its calibration set to the slot that serves, and name the link "
        "that is missing. Exit code 65 if anything does not fit.",
        epilog="example: skerry model audit /var/lib/skerry/updater/audit --store /var/lib/skerry/models "
        "--head 418:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the log")
    parser.add_argument(
        "--head", type=_head, default=None, metavar="N:HASH",
        help="where it ended once, as the updater reported: without it, a missing end is not noticed",
    )  # fmt: skip
    parser.add_argument("--store", type=Path, default=None, metavar="STORE", help="the device's model store")
    parser.add_argument(
        "--package", type=Path, default=None, metavar="PACKAGE", help="a package's folder, or an image layout"
    )
    parser.add_argument("--digest", metavar="HEX", help="which package of a layout with several")
    parser.add_argument("--last", type=_count, default=None, metavar="N", help="show the last N entries only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge and tell; returns the exit code.

    Raises:
        Unavailable: something cannot be read.
        PackageError: the package that was named is none.
    """
    report, entries = read(arguments.folder, arguments.head)
    trails = list(_trails(arguments, entries))
    good = not report.problems and all(each.whole for each in trails)
    shown = entries if arguments.last is None else entries[len(entries) - arguments.last :]
    if arguments.json:
        print(json.dumps(_plain(arguments, report, shown, trails, good=good)))
    else:
        _print(arguments, report, shown, trails)
    return 0 if good else PackageError.exit_code


def _trails(arguments: argparse.Namespace, entries: tuple[Entry, ...]) -> Iterator[Trail]:
    named = None if arguments.package is None else _named(arguments.package, arguments.digest)
    if arguments.store is None:
        if named is not None:
            yield Trail("", named.digest, (*trail.of_package(named), *trail.of_log(entries, named.digest)))
        return
    slots = {name: read_slots(arguments.store, name) for name in _slots(arguments.store)}
    used = [(name, s) for name, s in slots.items() if named is None or s.current == named.digest]
    if named is not None and not used:
        links = [*trail.of_package(named), *trail.of_log(entries, named.digest)]
        links.append(trail.Link("slot", "missing", "it is current in no slot of the store"))
        yield Trail("", named.digest, tuple(links))
    for name, found in used:
        digest = found.current or ""
        if not digest:
            continue
        evidence = named or _stored(arguments.store, digest)
        yield Trail(name, digest, (*trail.of_package(evidence), *trail.of_log(entries, digest, name, found)))


def _slots(store: Path) -> list[str]:
    folder = store / "slots"
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise Unavailable(f"{folder}: expected the slots of a model store, got {error.strerror}") from error


def _stored(store: Path, digest: str) -> Evidence:
    """A package in a store, every hash compared."""
    folder, blobs = package_folder(store, digest), store / "blobs" / "sha256"
    where = f"package {digest[:16]}"
    try:
        listing = oci.read_listing(_read(blobs / digest, oci.MANIFEST_BYTES), digest, where)
        config = oci.read_config(_read(blobs / listing.config.digest, oci.CONFIG_BYTES), listing, where)
        problems = layout.check_folder(folder, listing, digest_of)
    except (OSError, Unavailable, PackageError) as error:
        return Evidence(digest, where, {}, None, (str(error),))
    files = {each.title: each.blob.digest for each in listing.files}
    content = (
        _read(folder / provenance.PROVENANCE, provenance.MOST_BYTES)
        if provenance.PROVENANCE in files
        else None
    )
    return Evidence(digest, config.title, files, content, tuple(problems))


def _named(there: Path, digest: str | None) -> Evidence:
    """A package in a layout, or in a folder, which has the digest that it would have in one."""
    if not is_layout(there):
        with tempfile.TemporaryDirectory(prefix="skerry-") as room:
            epoch = 0
            path = there / provenance.PROVENANCE
            if path.is_file():
                content = _read(path, provenance.MOST_BYTES)
                epoch = provenance.read(content, str(path)).definition.external_parameters.security_epoch
            out = Path(room) / "layout"
            return _listed(out, layout.pack(there, out, security_epoch=epoch))
    return _listed(there, layout.verify(there, layout.select(there, digest).hexadecimal))


def _listed(there: Path, packed: layout.Packed) -> Evidence:
    blobs = {each.title: each.blob for each in packed.listing.files}
    content = None
    if blob := blobs.get(provenance.PROVENANCE):
        content = b"".join(Layout(there).blob(blob))
    files = {title: each.digest for title, each in blobs.items()}
    return Evidence(packed.listing.digest, packed.config.title, files, content)


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _plain(
    arguments: argparse.Namespace,
    report: Report,
    entries: tuple[Entry, ...],
    trails: list[Trail],
    *,
    good: bool,
) -> dict[str, Any]:
    return {
        "folder": str(arguments.folder),
        "good": good,
        "head": str(report.head),
        "first": report.first,
        "entries": report.entries,
        "unfinished": report.unfinished,
        "problems": list(report.problems),
        "log": [msgspec.to_builtins(each) for each in entries],
        "trails": [
            {
                "slot": t.slot,
                "digest": t.digest,
                "whole": t.whole,
                "links": [link._asdict() for link in t.links],
            }
            for t in trails
        ],
    }


def _print(
    arguments: argparse.Namespace, report: Report, entries: tuple[Entry, ...], trails: list[Trail]
) -> None:
    if entries:
        print(f"{'number':>6}  {'time':24}  {'slot':10} {'model':16} {'what':20} reason")
    for each in entries:
        fields = each.fields
        model = "@".join(str(fields[n]) for n in ("model", "version") if n in fields)
        model = model or str(fields.get("digest", ""))[:16]
        what = f"{each.what} {fields['step']}" if "step" in fields else each.what
        slot = str(fields.get("slot", ""))
        row = f"{each.number:6}  {each.at:24}  {slot:10} {model:16} {what:20} {_reason(each)}"
        print(_visible(row.rstrip()))
    for found in trails:
        print(f"\n{found.slot or 'package'} {found.digest[:16]}")
        for link in found.links:
            print(_visible(f"  {link.name:12} {link.state:8} {link.text}"))
    print(f"\nhead       {report.head}")
    if report.unfinished:
        print(f"unfinished {report.unfinished} bytes after it, of an entry that was being written")
    for problem in report.problems:
        print(_visible(f"wrong      {problem}"))
    end = "and with the head that was named" if arguments.head else "its end with nothing (--head does)"
    verdict = "it does not fit" if report.problems else "each follows the one before"
    print(f"log        {report.entries} entries from {report.first} on: {verdict}; compared in itself, {end}")


def _reason(entry: Entry) -> str:
    """The reason, and what else it tells."""
    shown = {"slot", "model", "version", "digest", "step", "reason"}
    rest = [f"{name} {value}" for name, value in entry.fields.items() if name not in shown]
    return ", ".join(filter(None, [str(entry.fields.get("reason", "")), *rest]))


def _visible(text: str) -> str:
    """On one line, and nothing in it that a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def _head(text: str) -> Head:
    try:
        return Head.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)
