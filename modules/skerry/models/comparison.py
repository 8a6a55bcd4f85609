"""Two packages side by side: what differs, and who would notice. Reading is at the end, the rest is pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from skerry.errors import ConfigError, PackageError
from skerry.models import layout, oci
from skerry.models import package as packages
from skerry.models.building.record import RECORD, BuildRecord
from skerry.models.layout import Layout
from skerry.models.manifest import READERS, Golden, Manifest, Parts, name_of, runtimes_of
from skerry.models.oci import Blob
from skerry.settings import parse_json
from skerry.trust.packages import order

_APART = frozenset({"golden", "baseline", "variants", "artifact", "name", "version"})
"""Fields of a manifest that are compared in their own way."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        where: as it was named.
        manifest: what it says of itself.
        labels: in the model's order.
        files: content by path.
        digest: of a packed one, 64 hexadecimal digits; empty of a folder.
        security_epoch: of a packed one; None of a folder.
        record: of its build, where it has one.
    """

    where: str
    manifest: Manifest
    labels: tuple[str, ...]
    files: Mapping[str, Blob]
    digest: str = ""
    security_epoch: int | None = None
    record: BuildRecord | None = None

    @property
    def title(self) -> str:
        """name@version."""
        return f"{self.manifest.name}@{self.manifest.version}"


class Change(msgspec.Struct, frozen=True):
    """Something that is one thing in the one and another in the other; null where it is not there."""

    what: str
    a: Any
    b: Any


class Notice(msgspec.Struct, frozen=True):
    """Who notices a difference where B comes in the place of A.

    Attributes:
        what: differs.
        device: what a device does, with the settings that it comes with.
        rules: what rules and whoever reads events see.
        refused: the device does not take it.
    """

    what: str
    device: str
    rules: str
    refused: bool = False


class Moved(msgspec.Struct, frozen=True):
    """A label at another place, counted from 0."""

    label: str
    a: int
    b: int


class Labels(msgspec.Struct, frozen=True):
    added: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[Moved, ...]


class Score(msgspec.Struct, frozen=True):
    """A figure that both have, measured alike."""

    form: str
    runtime: str
    isa: str
    metric: str
    a: float
    b: float


class Comparison(msgspec.Struct, frozen=True):
    """All of it."""

    a: dict[str, Any]
    b: dict[str, Any]
    same: bool
    """Every file of the one is in the other, byte for byte, and no other."""
    fields: tuple[Change, ...]
    labels: Labels
    files: tuple[Change, ...]
    """Each with sha256 and bytes."""
    golden: tuple[Change, ...]
    """Pictures, with how many objects are to be seen, or that the expectations differ."""
    forms: tuple[Change, ...]
    """The artifact and its variants: format, precision and runtimes."""
    scores: tuple[Score, ...]
    notices: tuple[Notice, ...]

    @property
    def refused(self) -> bool:
        """Whether a device that serves A does not take B."""
        return any(notice.refused for notice in self.notices)


def compare(a: Side, b: Side) -> Comparison:
    """B, as what comes in the place of A."""
    labels = compare_labels(a.labels, b.labels)
    fields = tuple(_fields(_flat(a.manifest), _flat(b.manifest)))
    golden = tuple(_golden(a.manifest.golden, b.manifest.golden))
    return Comparison(
        a=_head(a), b=_head(b), same=dict(a.files) == dict(b.files), fields=fields, labels=labels,
        files=tuple(_files(a.files, b.files)), golden=golden,
        forms=tuple(_fields(_forms(a.manifest), _forms(b.manifest))),
        scores=tuple(_scores(a, b)), notices=tuple(_notices(a, b, labels, {c.what for c in fields})),
    )  # fmt: skip


def compare_labels(a: Sequence[str], b: Sequence[str]) -> Labels:
    """What came, went, and stands elsewhere. What only shifted because others went counts as moved too."""
    return Labels(
        tuple(label for label in b if label not in a),
        tuple(label for label in a if label not in b),
        tuple(
            Moved(label, a.index(label), n)
            for n, label in enumerate(b)
            if label in a and a.index(label) != n
        ),
    )  # fmt: skip


def _head(side: Side) -> dict[str, Any]:
    return {
        "where": side.where,
        "title": side.title,
        "digest": f"sha256:{side.digest}" if side.digest else None,
        "security_epoch": side.security_epoch,
        "bytes": sum(blob.size for blob in side.files.values()),
    }


def _flat(manifest: Manifest) -> dict[str, Any]:
    """Fields by their paths; lists are values."""
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{path}.{name}" if path else name)
        else:
            found[path] = value

    raw = msgspec.to_builtins(manifest)
    walk({name: value for name, value in raw.items() if name not in _APART}, "")
    found["baseline"] = None if manifest.baseline is None else f"{manifest.baseline.windows} windows"
    return found


def _fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            yield Change(name, a.get(name), b.get(name))


def _forms(manifest: Manifest) -> dict[str, Any]:
    return {
        name_of(form): {
            "format": form.format, "precision": form.precision, "runtimes": list(runtimes_of(form)),
            "sha256": form.sha256,
        }
        for form in manifest.forms
    }  # fmt: skip


def _files(a: Mapping[str, Blob], b: Mapping[str, Blob]) -> Iterator[Change]:
    def said(blob: Blob | None) -> Any:
        return None if blob is None else {"sha256": blob.digest, "bytes": blob.size}

    for title in sorted(a.keys() | b.keys()):
        if a.get(title) != b.get(title):
            yield Change(title, said(a.get(title)), said(b.get(title)))


def _golden(a: Golden | None, b: Golden | None) -> Iterator[Change]:
    one = {p.file: p for p in a.pictures} if a is not None else {}
    other = {p.file: p for p in b.pictures} if b is not None else {}
    for file in sorted(one.keys() | other.keys()):
        if one.get(file) != other.get(file):
            yield Change(
                file,
                f"{len(one[file].objects)} objects" if file in one else None,
                f"{len(other[file].objects)} objects" if file in other else None,
            )
    for field in ("score_tolerance", "box_tolerance"):
        if a is not None and b is not None and getattr(a, field) != getattr(b, field):
            yield Change(field, getattr(a, field), getattr(b, field))


def _measured(side: Side) -> dict[tuple[str, str, str, str], float]:
    """Figures by form, runtime, instruction set and metric."""
    found: dict[tuple[str, str, str, str], float] = {
        (variant.name, each.runtime, each.isa, each.metric): each.value
        for variant in side.manifest.variants
        for each in variant.measured
    }
    for artifact in side.record.artifacts if side.record is not None else ():
        for figure in artifact.figures:
            found[artifact.name, figure.runtime, figure.isa, figure.metric] = figure.value
    return found


def _scores(a: Side, b: Side) -> Iterator[Score]:
    one, other = _measured(a), _measured(b)
    for key in sorted(one.keys() & other.keys()):
        yield Score(*key, one[key], other[key])


def _notices(a: Side, b: Side, labels: Labels, fields: set[str]) -> Iterator[Notice]:
    yield from _of_names(a, b)
    yield from _of_labels(a, b, labels)
    attributes = _attributes(a), _attributes(b)
    if lost := [name for name in attributes[0] if name not in attributes[1]]:
        yield Notice(
            f"attributes lost: {', '.join(lost)}",
            "refuses it, unless its site names the labels it needs (exchange.labels)",
            "rules that ask for them see none", refused=True,
        )  # fmt: skip
    if a.manifest.golden is not None and b.manifest.golden is None:
        yield Notice(
            "golden pictures are gone", "takes it, and only compares the outputs of its runtimes", "nothing"
        )
    if a.manifest.baseline is not None and b.manifest.baseline is None:
        yield Notice("the baseline is gone", "takes it, and watches no drift any more", "nothing")
    if moved := sorted(fields & {"decoder.score_threshold", "decoder.iou_threshold", "decoder.max_objects"}):
        yield Notice(
            f"{', '.join(moved)} differ", "takes it, if it still agrees with the one that serves",
            "more objects, or fewer",
        )  # fmt: skip
    if formats := {f.format for f in a.manifest.forms} - {f.format for f in b.manifest.forms}:
        gone = ", ".join(sorted(formats))
        runtimes = ", ".join(sorted({r for each in formats for r in READERS[each]}))
        yield Notice(f"no form in {gone} any more", f"takes another form ({runtimes} read {gone})", "nothing")
    if any(name.startswith("budget.") for name in fields):
        yield Notice("the budget differs", "refuses it where it takes more than B says", "nothing")


def _of_names(a: Side, b: Side) -> Iterator[Notice]:
    if a.manifest.name != b.manifest.name:
        yield Notice(
            f"another model: {a.manifest.name}, {b.manifest.name}",
            "refuses it: a slot is for packages of one name", "nothing", refused=True,
        )  # fmt: skip
    elif a.manifest.version == b.manifest.version and dict(a.files) != dict(b.files):
        yield Notice(
            f"two contents of version {a.manifest.version}",
            "goes by the digest; layouts, registries and signed repositories refuse the second", "nothing",
        )  # fmt: skip
    elif _older(b.manifest.version, a.manifest.version):
        yield Notice(
            f"older: {b.manifest.version} after {a.manifest.version}",
            "refuses it, unless its site asks for that version", "nothing", refused=True,
        )  # fmt: skip
    epochs = a.security_epoch, b.security_epoch
    if epochs[0] is not None and epochs[1] is not None and epochs[1] < epochs[0]:
        yield Notice(
            f"security epoch {epochs[1]} after {epochs[0]}",
            "refuses it, once A was confirmed, whoever asks", "nothing", refused=True,
        )  # fmt: skip
    elif epochs[0] is not None and epochs[1] is not None and epochs[1] > epochs[0]:
        yield Notice(
            f"security epoch {epochs[1]} after {epochs[0]}",
            "takes it, and once it is confirmed never goes back to A", "nothing",
        )  # fmt: skip


def _of_labels(a: Side, b: Side, labels: Labels) -> Iterator[Notice]:
    if labels.removed:
        yield Notice(
            f"labels removed: {', '.join(labels.removed)}",
            "refuses it, unless its site says which labels it needs (exchange.labels), and not these",
            "rules that name them see nothing (skerry check says which)", refused=True,
        )  # fmt: skip
    if labels.added:
        yield Notice(
            f"labels added: {', '.join(labels.added)}", "takes it", "new labels, that no rule names yet"
        )
    if labels.moved and a.manifest.artifact.sha256 == b.manifest.artifact.sha256:
        yield Notice(
            f"labels moved: {_moved(labels)}, and the weights are the same",
            "refuses it: its golden pictures, if they are older, and the frames on which it is compared with "
            "A show other labels",
            "every object would have another's name", refused=True,
        )  # fmt: skip
    elif labels.moved:
        yield Notice(
            f"labels moved: {_moved(labels)}",
            "takes it, if the weights moved along: if not, it does not agree with A on live frames",
            "nothing: they go by name, not by number",
        )  # fmt: skip


def _moved(labels: Labels) -> str:
    shown = [f"{each.label} {each.a} -> {each.b}" for each in labels.moved[:6]]
    return ", ".join(shown) + (f" and {len(labels.moved) - 6} more" if len(labels.moved) > 6 else "")


def _attributes(side: Side) -> tuple[str, ...]:
    decoder = side.manifest.decoder
    return tuple(decoder.attributes) if isinstance(decoder, Parts) else ()


def _older(one: str, other: str) -> bool:
    """By semantic versions; of anything else nobody can say."""
    try:
        msgspec.convert([one, other], list[oci.Semver])
    except msgspec.ValidationError:
        return False
    return order(one) < order(other)


# Reading


def load(text: str) -> Side:
    """A package by where it is: its folder, a layout with one package, or `LAYOUT#NAME@VERSION`.

    After `#` may also stand the first digits of a digest.

    Raises:
        PackageError: it is damaged, or not there.
        ConfigError: there is no such folder.
    """
    place, mark, wanted = text.partition("#")
    folder = Path(place)
    if not folder.is_dir():
        raise ConfigError(f"{place}: expected a package's folder or an image layout, got nothing there")
    if layout.is_layout(folder):
        return _packed(folder, text, _digest(folder, wanted) if mark else None)
    if mark:
        raise ConfigError(f"{text}: expected an image layout before #, got a folder")
    package = packages.load(folder)
    files = {
        str(path.relative_to(folder)): Blob(packages.digest(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    raw = folder.joinpath(RECORD).read_bytes() if RECORD in files else None
    return Side(text, package.manifest, package.labels, files, record=_record(raw, f"{folder}/{RECORD}"))


def _digest(folder: Path, wanted: str) -> str:
    if "@" not in wanted:
        return wanted
    name = wanted.replace("@", "-", 1)
    try:
        entries = Layout(folder).entries()
    except OSError as error:
        raise PackageError(f"{folder}: expected an image layout, got {error.strerror}") from error
    found = [entry.hexadecimal for entry in entries if entry.name == name]
    if len(found) != 1:
        there = ", ".join(entry.name[:80] for entry in entries) or "none"
        raise PackageError(f"{folder}: expected one package {wanted}, got {len(found)} (there: {there})")
    return found[0]


def _packed(folder: Path, where: str, digest: str | None) -> Side:
    packed = layout.verify(folder, digest)
    files = {file.title: file.blob for file in packed.listing.files}
    manifest = packed.config.manifest

    def content(title: str) -> bytes:
        return b"".join(Layout(folder).blob(files[title]))

    try:
        labels = packages.parse_labels(content(manifest.labels).decode())
    except UnicodeDecodeError as error:
        raise PackageError(f"{folder}: {manifest.labels}: expected UTF-8 text") from error
    raw = content(RECORD) if RECORD in files else None
    return Side(
        where, manifest, labels, files, packed.listing.digest, packed.config.security_epoch,
        _record(raw, f"{folder}: {RECORD}"),
    )  # fmt: skip


def _record(raw: bytes | None, where: str) -> BuildRecord | None:
    try:
        return None if raw is None else parse_json(BuildRecord, raw, where)
    except ConfigError as error:
        raise PackageError("\n".join(error.problems)) from error
