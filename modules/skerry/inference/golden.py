"""Whether a model answers as its package says: golden pictures, through the whole way of a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from skerry.inference.model import Result
from skerry.inference.preprocess import Pixels
from skerry.messages import Detection
from skerry.models.manifest import Golden, Sighting
from skerry.models.package import Package

Look = Callable[[Pixels], Result]
"""A model as a function from a picture to what it says of it."""

_MOST = 5
"""Differences that are told of one picture."""


def differences(package: Package, look: Look) -> list[str]:
    """Where a model does not answer as its package says; empty where it does, or nothing is said.

    Args:
        package: with its pictures.
        look: the model, with the package's own score threshold.
    """
    golden = package.manifest.golden
    found: list[str] = []
    for picture in golden.pictures if golden is not None else ():
        assert golden is not None, "it has the pictures"
        pixels = cv2.imread(str(package.folder / picture.file), cv2.IMREAD_COLOR)
        if pixels is None:
            found.append(f"{picture.file}: expected a picture, got something else")
            continue
        result = look(pixels.astype(np.uint8, copy=False))
        texts = (
            [result.reason]
            if result.reason
            else mismatches(picture.objects, result.objects, golden, package.manifest.decoder.score_threshold)
        )
        found += [f"{picture.file}: {text}" for text in texts[:_MOST]]
    return found


def mismatches(
    expected: Sequence[Sighting], seen: Sequence[Detection], golden: Golden, threshold: float
) -> list[str]:
    """How what a model sees in one picture differs from what it should; empty within the tolerances.

    An object so close to the threshold that the tolerance may move it across may be there or not.
    """
    sure = threshold + golden.score_tolerance
    left = list(seen)
    found: list[str] = []
    for wanted in expected:
        near = [each for each in left if _same(wanted, each, golden)]
        if near:
            left.remove(min(near, key=lambda each: _apart(wanted.box, each.box)))
        elif wanted.score >= sure:
            found.append(f"expected {_show(wanted)}, got {_nearest(wanted, left)}")
    found += [f"expected no more objects, got {_show(each)}" for each in left if each.score >= sure]
    return found


def _same(wanted: Sighting, seen: Detection, golden: Golden) -> bool:
    return (
        wanted.label == seen.label
        and _apart(wanted.box, seen.box) <= golden.box_tolerance
        and abs(wanted.score - seen.score) <= golden.score_tolerance
        and wanted.attributes.keys() == seen.attributes.keys()
        and all(
            abs(value - seen.attributes[name]) <= golden.score_tolerance
            for name, value in wanted.attributes.items()
        )
    )


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _nearest(wanted: Sighting, seen: Sequence[Detection]) -> str:
    best = min(seen, key=lambda each: _apart(wanted.box, each.box), default=None)
    return "nothing" if best is None else _show(best)


def _show(one: Sighting | Detection) -> str:
    box = ", ".join(f"{side:.3f}" for side in one.box)
    more = "".join(f", {name} {value:.2f}" for name, value in one.attributes.items())
    return f"{one.label} {one.score:.2f} at [{box}]{more}"
