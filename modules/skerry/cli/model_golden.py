"""Golden pictures: what a package sees, kept in the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec

from skerry import durable
from skerry.cli.bench_inference import open_model
from skerry.errors import ConfigError, PackageError
from skerry.inference.golden import mismatches
from skerry.inference.preprocess import Pixels
from skerry.inference.runtimes import installed
from skerry.inference.settings import ModelUse
from skerry.messages import Detection
from skerry.models import judging
from skerry.models.manifest import Golden, GoldenPicture, Sighting, Variant
from skerry.models.package import MANIFEST, Package, load

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}


def make(folder: Path, images: Sequence[Path]) -> dict[str, Any]:
    """Write pictures and what the package sees in them into it, in place of those it may have.

    Args:
        folder: of the package.
        images: files, or folders of files.

    Raises:
        ConfigError: a picture cannot be read, or there are none, or too many.
        PackageError: two installed runtimes do not see the same, so no device could be held to it.
    """
    package = load(folder)
    names = installed()
    if not names:
        raise ConfigError("model golden: no runtime is installed (pip install 'skerry[inference]')")
    first, *others = [(name, open_model(folder, name)) for name in names]
    read = [(path, _read(path)) for path in _files(images)]
    kept = [_picture(pixels, first[1](pixels)) for _, pixels in read]
    golden = Golden(pictures=tuple(picture for picture, _ in kept))
    threshold = package.manifest.decoder.score_threshold
    for name, look in others:
        for (path, pixels), picture in zip(read, golden.pictures, strict=True):
            found = mismatches(picture.objects, look(pixels), golden, threshold)
            if found:
                raise PackageError(f"{path}: {name} does not see what {first[0]} sees: {found[0]}")
    variants = {
        variant.name: _of_variant(package, variant, golden, [pixels for _, pixels in read])
        for variant in package.manifest.variants
    }
    _keep(folder, golden, variants, {picture.file: content for picture, content in kept})
    load(folder)
    return {
        "package": package.title,
        "runtimes": list(names),
        "pictures": [
            {"file": picture.file, "objects": len(picture.objects), "from": str(path)}
            for (path, _), picture in zip(read, golden.pictures, strict=True)
        ],
    }


def _files(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in images:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [each for each in inside if not path.is_dir() or each.suffix.lower() in _SUFFIXES]
    if not 1 <= len(files) <= 32:
        raise ConfigError(f"model golden: expected 1 to 32 pictures, got {len(files)}")
    return files


def _read(path: Path) -> Pixels:
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ConfigError(f"{path}: expected a picture (PNG, JPEG or BMP)")
    return pixels.astype("uint8", copy=False)


def _picture(pixels: Pixels, seen: Sequence[Detection]) -> tuple[GoldenPicture, bytes]:
    """A PNG, named by its content so that one of an earlier manifest is never another picture."""
    content = cv2.imencode(".png", pixels)[1].tobytes()
    sha256 = hashlib.sha256(content).hexdigest()
    objects = tuple(
        Sighting(label=each.label, score=each.score, box=each.box, attributes=each.attributes)
        for each in seen
    )
    return GoldenPicture(file=f"golden-{sha256[:12]}.png", sha256=sha256, objects=objects), content


def _of_variant(
    package: Package, variant: Variant, golden: Golden, pictures: Sequence[Pixels]
) -> Golden | None:
    """What a variant sees in the pictures; None where it is held to the reference's numbers.

    Raises:
        PackageError: two runtimes that may load it do not see the same.
    """
    if variant.precision == "fp32":
        return None
    seen = {}
    for name in installed():
        if variant.name in package.forms_for(name):
            with judging.opened(name, package, form=variant.name) as model:
                model.adjust(ModelUse(package=str(package.folder)))
                seen[name] = [judging.sightings(model, pixels) for pixels in pictures]
    if not seen:
        raise ConfigError(f"model golden: {variant.name}: expected a runtime that loads it, found none")
    its, told = judging.agreed(golden.pictures, seen, package.manifest.decoder.score_threshold)
    if told:
        raise PackageError(f"{variant.name}: {told}")
    return its


def _keep(
    folder: Path, golden: Golden, variants: Mapping[str, Golden | None], files: Mapping[str, bytes]
) -> None:
    """Write the pictures, then the manifest that names them; those it names no longer are removed."""
    path = folder / MANIFEST
    raw = json.loads(path.read_bytes())
    goldens = [raw.get("golden"), *(variant.get("golden") for variant in raw.get("variants", ()))]
    before = {picture["file"] for its in goldens if its for picture in its.get("pictures", ())}
    for name, content in files.items():
        durable.replace(folder / name, content, 0o644)
    raw["golden"] = msgspec.to_builtins(golden)
    for variant in raw.get("variants", ()):
        variant["golden"] = msgspec.to_builtins(variants[variant["name"]])
    durable.replace(path, json.dumps(raw, indent=2).encode() + b"\n", 0o644)
    for name in before - files.keys():
        (folder / name).unlink(missing_ok=True)
