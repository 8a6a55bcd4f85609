"""A model package on disk, verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from skerry.errors import ConfigError, PackageError
from skerry.models.manifest import Manifest, misfits
from skerry.settings import parse

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Package:
    """A package whose parts are proven to belong together.

    Attributes:
        folder: where it is.
        manifest: what it says of itself.
        labels: names of the classes, in the model's order.
    """

    folder: Path
    manifest: Manifest
    labels: tuple[str, ...]

    @property
    def model(self) -> Path:
        """The model file; its content had the manifest's sha256 when it was loaded."""
        return self.folder / self.manifest.artifact.file

    @property
    def title(self) -> str:
        """name@version."""
        return f"{self.manifest.name}@{self.manifest.version}"


def load(folder: Path, digest_of: Callable[[Path], str] | None = None) -> Package:
    """Read and verify a package.

    Args:
        folder: of the package.
        digest_of: sha256 of a file, where the caller knows it already; `digest` otherwise.

    Raises:
        PackageError: with every problem found, one a line.
    """
    manifest = read_manifest(folder)
    found: list[str] = []
    labels = _labels(folder / manifest.labels, found)
    if labels:
        found += [f"{folder / MANIFEST}: {text}" for text in misfits(manifest, len(labels))]
    _verify(
        folder / manifest.artifact.file, manifest.artifact.sha256, "the model", digest_of or digest, found
    )
    for n, picture in enumerate(manifest.golden.pictures if manifest.golden is not None else ()):
        _verify(folder / picture.file, picture.sha256, "a golden picture", digest_of or digest, found)
        strange = sorted({seen.label for seen in picture.objects} - set(labels))
        if labels and strange:
            found.append(
                f"{folder / MANIFEST}: golden.pictures[{n}]: expected labels of {manifest.labels}, "
                f"got {', '.join(strange)}"
            )
    if found:
        raise PackageError("\n".join(found))
    return Package(folder, manifest, labels)


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
