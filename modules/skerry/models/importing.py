"""Make a package of a foreign ONNX file.

Build side only: needs the extra `models`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx

from skerry.errors import ConfigError
from skerry.models import fold as folding
from skerry.models.manifest import Input, Manifest, encode
from skerry.models.package import MANIFEST, Package, digest, load
from skerry.models.short import Short, full_input, full_manifest

FeedsOf = Callable[[Input], list[folding.Feeds]]
"""Makes inputs to compare on; given from outside, because it needs the pre-processing."""


@dataclass(frozen=True)
class Imported:
    """A new package and how it came about."""

    package: Package
    folded: folding.Folded


def import_model(
    path: Path, short: Short, labels: tuple[str, ...], feeds_of: FeedsOf, out: Path, *, force: bool = False
) -> Imported:
    """Clean up the graph, prove it unchanged, and write the package.

    Args:
        path: the ONNX file.
        short: what it does not say of itself.
        labels: names of the classes, in the model's order.
        feeds_of: inputs to compare on.
        out: folder to make.
        force: replace a package that is there.

    Raises:
        PackageError: the model is not what it should be.
        ConfigError: `out` is taken.
    """
    _check_free(out, force)
    model = folding.read_model(path)
    graph = folding.graph_input(model, str(path))
    spec = full_input(short.input, graph, str(path))
    shape = (None if spec.batch > 1 else 1, *spec.shape[1:])
    folded = folding.fold(model, shape, feeds_of(spec))
    named = msgspec.structs.replace(short, name=short.name or path.stem)
    package = _write(out, named, spec, folded, labels)
    return Imported(package, folded)


def write_original(imported: Imported, path: Path, out: Path) -> Package:
    """The same package with the file as it came, to compare with."""
    out.mkdir(parents=True)
    manifest = imported.package.manifest
    shutil.copyfile(path, out / manifest.artifact.file)
    artifact = msgspec.structs.replace(manifest.artifact, sha256=digest(path))
    _write_texts(out, msgspec.structs.replace(manifest, artifact=artifact), imported.package.labels)
    return load(out)


def _check_free(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not (out / MANIFEST).exists():
        if any(out.iterdir()):
            raise ConfigError(f"{out}: expected a new folder, got one with other files (choose another)")
    elif not force:
        raise ConfigError(f"{out}: expected a new folder, got a package (add --force to replace it)")


def _write(out: Path, short: Short, spec: Input, folded: folding.Folded, labels: tuple[str, ...]) -> Package:
    """Write beside `out` and move it there as a whole, so that a half package never has its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        new = Path(folder) / "package"
        new.mkdir()
        (new / "model.onnx").write_bytes(folded.content)
        sha256 = digest(new / "model.onnx")
        manifest = full_manifest(short, spec, folded.outputs, labels, sha256)
        _write_texts(new, manifest, labels)
        load(new)
        if out.exists():
            out.rename(Path(folder) / "old")
        new.rename(out)
    return load(out)


def _write_texts(out: Path, manifest: Manifest, labels: tuple[str, ...]) -> None:
    (out / manifest.labels).write_text("\n".join(labels) + "\n", encoding="utf-8")
    (out / MANIFEST).write_bytes(encode(manifest))


def operators(path: Path) -> dict[str, int]:
    """Operator to number of nodes, the most frequent first."""
    return dict(folding.ops(onnx.load(path, load_external_data=False)).most_common())
