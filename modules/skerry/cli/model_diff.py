"""`skerry model diff`: what differs between two packages, and who would notice."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from skerry.models.comparison import Change, Comparison

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - what add_subparsers returns has no public name


def add_command(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Register `diff`; it sets `func`, which returns the exit code."""
    diff = commands.add_parser(
        "diff",
        help="what differs between two packages, and who would notice",
        description="Compare two packages, each a folder, an image layout with one package, or "
        "LAYOUT#NAME@VERSION. B is looked at as what comes in the place of A: what a device would do, and "
        "what rules would see. Exit code 0, whatever differs.",
        epilog="example: skerry model diff build/layout#parts@1.0.0 build/layout#parts@1.1.0",
    )
    diff.add_argument("a", metavar="A", help="the package that serves")
    diff.add_argument("b", metavar="B", help="the one that comes in its place")
    diff.add_argument("--json", action="store_true", help="print one JSON object")
    diff.set_defaults(func=_diff)


def _diff(arguments: argparse.Namespace) -> int:
    comparing = import_module("skerry.models.comparison")
    found: Comparison = comparing.compare(comparing.load(arguments.a), comparing.load(arguments.b))
    if arguments.json:
        print(json.dumps({**msgspec.to_builtins(found), "refused": found.refused}))
    else:
        _print(found)
    return 0


def _print(found: Comparison) -> None:
    for side, about in (("A", found.a), ("B", found.b)):
        digest = f"  {about['digest'][:23]}" if about["digest"] else ""
        print(f"{side}  {about['title']}  {about['bytes'] / 1000:.0f} kB{digest}  ({about['where']})")
    if found.same:
        print("the same, byte for byte")
        return
    _table("fields", [(c.what, _text(c.a), _text(c.b)) for c in found.fields])
    labels = found.labels
    _table(
        "labels",
        [(f"+ {label}", "", "") for label in labels.added]
        + [(f"- {label}", "", "") for label in labels.removed]
        + [(f"~ {each.label}", f"at {each.a}", f"at {each.b}") for each in labels.moved],
    )
    _table("forms", [_form(c) for c in found.forms])
    _table("files", [(c.what, _file(c.a), _file(c.b)) for c in found.files])
    _table("golden pictures", [(c.what, _text(c.a), _expected(c)) for c in found.golden])
    _table(
        "measured alike",
        [(f"{s.form} {s.metric}, {s.runtime} {s.isa}", f"{s.a:.4f}", f"{s.b:.4f}  {s.b - s.a:+.4f}")
         for s in found.scores],
    )  # fmt: skip
    print("\nwhere B comes in the place of A")
    for notice in found.notices:
        print(f"  {notice.what}")
        print(f"    a device {notice.device}")
        print(f"    rules: {notice.rules}")
    if not found.notices:
        print("  nobody would notice but by its answers: a device proves it, and compares it with A")
    print(f"  -> a device {'refuses B' if found.refused else 'tries B'}")


def _table(title: str, rows: list[tuple[str, str, str]]) -> None:
    if not rows:
        return
    print(f"\n{title}")
    first, second = (max(len(row[n]) for row in rows) for n in (0, 1))
    for what, a, b in rows:
        print(f"  {what:{first}}  {a:{second}}  {'->' if a or b else '  '}  {b}".rstrip())


def _form(change: Change) -> tuple[str, str, str]:
    def said(form: Any) -> str:
        return "-" if form is None else f"{form['format']} {form['precision']} {form['sha256'][:12]}"

    return change.what, said(change.a), said(change.b)


def _file(said: Any) -> str:
    return "-" if said is None else f"{said['bytes']} B {said['sha256'][:12]}"


def _expected(change: Change) -> str:
    return f"{_text(change.b)}{', others' if change.a == change.b else ''}"


def _text(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
