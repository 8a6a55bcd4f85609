"""How good a form of a package is on labelled pictures, on one runtime. Build side only."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from skerry.errors import ConfigError, PackageError
from skerry.inference.golden import mismatches
from skerry.inference.model import Model
from skerry.inference.preprocess import Pixels, Preprocessor
from skerry.inference.settings import ModelUse
from skerry.messages import Detection
from skerry.models import evaluation
from skerry.models.datasets import Dataset, Labelled
from skerry.models.evaluation import Found
from skerry.models.manifest import REFERENCE, Golden, GoldenPicture, Input, Sighting
from skerry.models.package import Package

_NEAR_ZERO = 0.001
"""Score from which detections are ranked."""
_CLOSE = ((0.02, 0.01), (0.05, 0.02), (0.1, 0.05))
"""Tolerances of score and box that golden pictures may have."""


@contextmanager
def opened(
    runtime: str, package: Package, *, form: str = REFERENCE, device: str = "cpu", threads: int | None = None
) -> Iterator[Model]:
    """A form of a package, loaded, reporting objects with scores near 0 too.

    Raises:
        PackageError: the runtime cannot load the model.
    """
    use = ModelUse(
        package=str(package.folder), runtime=runtime, device=device,  # type: ignore[arg-type] # names that were checked
        threads=threads, score_threshold=_NEAR_ZERO,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as cache:
        model = Model(use, Path(cache), 1.0, form=form)
        try:
            yield model
        finally:
            model.close()


def evaluated(
    runtime: str,
    package: Package,
    dataset: Dataset,
    *,
    form: str = REFERENCE,
    device: str = "cpu",
    threshold: float | None = None,
) -> dict[str, Any]:
    """The figures of a package on one runtime, as plain data.

    Args:
        runtime: which.
        package: the package.
        dataset: labelled pictures.
        form: of the package.
        device: of the runtime.
        threshold: operating score; None: the package's.

    Raises:
        ConfigError: a picture is none.
        PackageError: the runtime cannot load the model, or the model fails.
    """
    with opened(runtime, package, form=form, device=device) as model:
        return figures(model, package, dataset, threshold)


def figures(
    model: Model, package: Package, dataset: Dataset, threshold: float | None = None
) -> dict[str, Any]:
    """The same of a model that is open.

    Raises:
        ConfigError: a picture is none.
        PackageError: the model fails.
    """
    if threshold is None:
        threshold = package.manifest.decoder.score_threshold
    took: list[tuple[float, float]] = []
    seen = [
        _seen(model, picture, f"{n} of {len(dataset.pictures)}", took)
        for n, picture in enumerate(dataset.pictures, 1)
    ]
    ms, cpu_ms = (round(statistics.median(each), 2) for each in zip(*took, strict=True))
    if package.manifest.decoder.__struct_config__.tag == "classification":
        pairs = [
            (picture.truths[0].label, max(found, key=lambda f: f.score).label if found else "")
            for picture, found in zip(dataset.pictures, seen, strict=True)
            if picture.truths
        ]
        return {"pictures": len(pairs), "top1": evaluation.top1(pairs), "ms": ms, "cpu_ms": cpu_ms}
    both = [(picture.truths, found) for picture, found in zip(dataset.pictures, seen, strict=True)]
    whole = evaluation.evaluate(both, package.labels, threshold)
    raw: dict[str, Any] = msgspec.to_builtins(whole)
    return {**raw, "ms": ms, "cpu_ms": cpu_ms}


def agreed(
    pictures: Sequence[GoldenPicture],
    seen: Mapping[str, Sequence[Sequence[Sighting]]],
    threshold: float,
) -> tuple[Golden, str]:
    """What a form answers in golden pictures, and with which tolerance others answer it too.

    Args:
        pictures: whose objects are replaced.
        seen: by who looked, what they see in each; the first is kept.
        threshold: the package's score threshold.

    Returns:
        With the narrowest tolerance that holds, and who differs where none does.
    """
    (_, kept), *others = seen.items()
    told = ""
    golden = Golden(
        pictures=tuple(
            msgspec.structs.replace(picture, objects=tuple(objects))
            for picture, objects in zip(pictures, kept, strict=True)
        )
    )
    for score, box in _CLOSE:
        golden = msgspec.structs.replace(golden, score_tolerance=score, box_tolerance=box)
        told = next(
            (
                f"{who}: {picture.file}: {found[0]}"
                for who, its in others
                for picture, objects in zip(golden.pictures, its, strict=True)
                if (found := mismatches(picture.objects, [_as_seen(o) for o in objects], golden, threshold))
            ),
            "",
        )
        if not told:
            break
    return golden, told


def sightings(model: Model, pixels: Pixels) -> tuple[Sighting, ...]:
    """What a model sees in a picture.

    Raises:
        PackageError: it fails.
    """
    result = model.look(pixels)
    if result.reason:
        raise PackageError(f"the model fails: {result.reason}")
    return tuple(
        Sighting(label=o.label, score=o.score, box=o.box, attributes=o.attributes) for o in result.objects
    )


def _as_seen(one: Sighting) -> Detection:
    return Detection(label=one.label, score=one.score, box=one.box, attributes=one.attributes)


def read_picture(path: Path) -> Pixels:
    """A picture, BGR.

    Raises:
        ConfigError: it is none.
    """
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ConfigError(f"{path}: expected a picture, got something else")
    return pixels.astype(np.uint8, copy=False)


def feed(spec: Input, path: Path) -> dict[str, Any]:
    """One input of a model, made of a picture as a device makes it.

    Raises:
        ConfigError: it is no picture.
    """
    prepare = Preprocessor(spec)
    prepare(read_picture(path))
    return {spec.name: prepare.tensor}


def _seen(model: Model, picture: Labelled, which: str, took: list[tuple[float, float]]) -> list[Found]:
    """What the model finds in one picture.

    The milliseconds from pixels to objects, by the clock and of all cores, are added to `took`.
    """
    pixels = read_picture(picture.path)
    begin, cpu = time.perf_counter(), time.process_time()
    result = model.look(pixels)
    took.append(((time.perf_counter() - begin) * 1000, (time.process_time() - cpu) * 1000))
    if result.reason:
        raise PackageError(f"{picture.path}: the model fails: {result.reason}")
    if sys.stderr.isatty():
        print(f"{which} pictures", end="\r", file=sys.stderr)
    return [Found(o.label, o.score, o.box) for o in result.objects]
