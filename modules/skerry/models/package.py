"""A model package on disk, verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from skerry.errors import ConfigError, PackageError
from skerry.models.manifest import (
    REFERENCE,
    Artifact,
    Golden,
    Manifest,
    Variant,
    files_of,
    misfits,
    name_of,
    runtimes_of,
)
from skerry.settings import parse

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Package:
    """A package whose parts are proven to belong together.

    Attributes:
        folder: where it is.
        manifest: what it says of itself.
        labels: names of the classes, in the model's order.
        form: which of its forms `model` and `manifest.artifact` are: `REFERENCE`, or a variant's name.
    """

    folder: Path
    manifest: Manifest
    labels: tuple[str, ...]
    form: str = REFERENCE

    @property
    def model(self) -> Path:
        """The model file; its content had the manifest's sha256 when it was loaded."""
        return self.folder / self.manifest.artifact.file

    @property
    def title(self) -> str:
        """name@version."""
        return f"{self.manifest.name}@{self.manifest.version}"

    def using(self, form: str) -> Package:
        """The same package with a variant in the place of the reference, and its golden pictures.

        Args:
            form: name of a variant, or `REFERENCE`; of a package as it was loaded.

        Raises:
            PackageError: there is no such variant.
        """
        if form == self.form:
            return self
        variant = next((v for v in self.manifest.variants if v.name == form), None)
        if variant is None or self.form != REFERENCE:
            there = ", ".join(v.name for v in self.manifest.variants) or "none"
            raise PackageError(f"{self.folder}: expected one of its variants ({there}), got {form}")
        artifact = Artifact(
            file=variant.file, sha256=variant.sha256, format=variant.format,
            precision=variant.precision, weights=variant.weights,
        )  # fmt: skip
        golden = variant.golden or self.manifest.golden
        manifest = msgspec.structs.replace(self.manifest, artifact=artifact, golden=golden)
        return replace(self, manifest=manifest, form=form)

    def forms_for(self, runtime: str, precision: str = "auto") -> tuple[str, ...]:
        """Names of the forms that a runtime may load, those with most bits first, then as they are listed.

        Args:
            runtime: its name.
            precision: only those of this one; `auto`: any.
        """
        bits = ("fp32", "fp16", "int8")
        fit = [
            form
            for form in self.manifest.forms
            if runtime in runtimes_of(form) and precision in ("auto", form.precision)
        ]
        return tuple(name_of(form) for form in sorted(fit, key=lambda form: bits.index(form.precision)))


def load(folder: Path, digest_of: Callable[[Path], str] | None = None, *, only: str | None = None) -> Package:
    """Read and verify a package.

    Args:
        folder: of the package.
        digest_of: sha256 of a file, where the caller knows it already; `digest` otherwise.
        only: name of the form whose files are verified; None: all of them. Pictures and labels always are.

    Returns:
        The package with its reference, whatever was verified.

    Raises:
        PackageError: with every problem found, one a line.
    """
    digest_of = digest_of or digest
    manifest = read_manifest(folder)
    found: list[str] = []
    labels = _labels(folder / manifest.labels, found)
    if labels:
        found += [f"{folder / MANIFEST}: {text}" for text in misfits(manifest, len(labels))]
    for form in manifest.forms:
        if only in (None, name_of(form)):
            what = f"variant {form.name}" if isinstance(form, Variant) else "the model"
            for file in files_of(form):
                _verify(folder / file.file, file.sha256, what, digest_of, found)
    pictures: dict[tuple[str, str], None] = {}
    for where, golden in _goldens(manifest):
        pictures |= dict.fromkeys((picture.file, picture.sha256) for picture in golden.pictures)
        found += [f"{folder / MANIFEST}: {where}{text}" for text in _strange(golden, labels, manifest.labels)]
    for name, sha256 in pictures:
        _verify(folder / name, sha256, "a golden picture", digest_of, found)
    if found:
        raise PackageError("\n".join(found))
    return Package(folder, manifest, labels)


def _goldens(manifest: Manifest) -> list[tuple[str, Golden]]:
    """Where it says so, and what a form answers."""
    all_of_them = [("golden", manifest.golden)]
    all_of_them += [(f"variants[{n}].golden", each.golden) for n, each in enumerate(manifest.variants)]
    return [(where, golden) for where, golden in all_of_them if golden is not None]


def _strange(golden: Golden, labels: tuple[str, ...], file: str) -> list[str]:
    """Labels in golden pictures that the model does not have."""
    found = []
    for n, picture in enumerate(golden.pictures):
        strange = sorted({seen.label for seen in picture.objects} - set(labels))
        if labels and strange:
            found.append(f".pictures[{n}]: expected labels of {file}, got {', '.join(strange)}")
    return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, parsed; nothing else is looked at.

    Raises:
        PackageError: with every problem found, one a line.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise PackageError(
            f"{path}: expected a model package, got {error.strerror} (name its folder)"
        ) from error
    except ValueError as error:
        raise PackageError(f"{path}: expected JSON ({error})") from error
    try:
        return parse(Manifest, raw, str(path))
    except ConfigError as error:
        raise PackageError("\n".join(error.problems)) from error


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_labels(text: str) -> tuple[str, ...]:
    """One label a line; empty lines at the end are not labels."""
    return tuple(line.strip() for line in text.rstrip().splitlines())


def _labels(path: Path, found: list[str]) -> tuple[str, ...]:
    try:
        labels = parse_labels(path.read_text(encoding="utf-8"))
    except OSError as error:
        found.append(f"{path}: expected one label a line, got {error.strerror} (add the file)")
        return ()
    except UnicodeDecodeError:
        found.append(f"{path}: expected UTF-8 text")
        return ()
    if not labels:
        found.append(f"{path}: expected one label a line, got an empty file")
    for n, label in enumerate(labels, 1):
        if not label:
            found.append(f"{path}: line {n}: expected a label, got an empty line")
        elif label in labels[: n - 1]:
            found.append(f"{path}: line {n}: expected each label once, got {label!r} again")
    return labels


def _verify(path: Path, sha256: str, what: str, digest_of: Callable[[Path], str], found: list[str]) -> None:
    try:
        seen = digest_of(path)
    except OSError as error:
        found.append(f"{path}: expected {what}, got {error.strerror} (add the file)")
        return
    if seen != sha256:
        found.append(
            f"{path}: expected sha256 {sha256[:16]}..., got {seen[:16]}... "
            "(the file is not the one that was packaged: import it again)"
        )
