"""How good a detector or a classifier is on labelled pictures: average precision, and errors where it is run.

Build side only. Pure: no files, no runtime; `datasets` reads labelled folders, `skerry model evaluate` runs
the model.

Source: the COCO evaluation (Lin et al., Microsoft COCO, 2014, and cocodataset.org/#detection-eval): greedy
matching by score at IoU 0.50 to 0.95, at most 100 detections a picture, precision interpolated at 101 values
of recall, crowds neither found nor missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as fractions of the picture."""

IOUS = tuple(float(x) for x in np.linspace(0.5, 0.95, 10))
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100
"""Detections of one label in a picture that count, the best ones."""


@dataclass(frozen=True)
class Truth:
    """An object that is in a picture."""

    label: str
    box: Box
    crowd: bool = False
    """Many in one box, or too hard to say: what is found there is neither right nor wrong."""


@dataclass(frozen=True)
class Found:
    """An object that a model reports."""

    label: str
    score: float
    box: Box


@dataclass(frozen=True)
class OfLabel:
    """One label's figures. Average precisions are None where no picture has the label."""

    truths: int
    ap50: float | None
    ap: float | None
    """Mean over the IoUs 0.50 to 0.95."""
    right: int
    """Detections at the operating threshold that match an object at IoU 0.5."""
    wrong: int
    """Those that match none: false positives."""
    missed: int
    """Objects that none matches: false negatives."""


@dataclass(frozen=True)
class Evaluation:
    """What came of all pictures."""

    pictures: int
    map50: float | None
    """Mean over the labels that are in the pictures."""
    map: float | None
    labels: dict[str, OfLabel]
    threshold: float
    """The score at which right, wrong and missed are counted."""


@dataclass
class _Marks:
    """What detections of one label amount to at one IoU, over all pictures."""

    scores: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)


def evaluate(
    pictures: Sequence[tuple[Sequence[Truth], Sequence[Found]]], labels: Sequence[str], threshold: float
) -> Evaluation:
    """Compare what a model found with what is there.

    Args:
        pictures: of each what is there, and what was found at a score near 0.
        labels: the model's; truths with another label are not looked at.
        threshold: the operating score, at which errors are counted.
    """
    found = {label: _of_label(pictures, label, threshold) for label in labels}
    ap50 = [its.ap50 for its in found.values() if its.ap50 is not None]
    ap = [its.ap for its in found.values() if its.ap is not None]
    return Evaluation(
        pictures=len(pictures), map50=float(np.mean(ap50)) if ap50 else None,
        map=float(np.mean(ap)) if ap else None, labels=found, threshold=threshold,
    )  # fmt: skip


def top1(pairs: Sequence[tuple[str, str]]) -> float:
    """The share of pictures whose best label is the right one.

    Args:
        pairs: of each picture the right label and the one that was found; at least one.
    """
    return sum(wanted == got for wanted, got in pairs) / len(pairs)


def _of_label(
    pictures: Sequence[tuple[Sequence[Truth], Sequence[Found]]], label: str, threshold: float
) -> OfLabel:
    marks = [_Marks() for _ in IOUS]
    truths = right = wrong = 0
    for there, found in pictures:
        mine = [truth for truth in there if truth.label == label]
        best = sorted((f for f in found if f.label == label), key=lambda f: -f.score)[:MOST]
        truths += sum(not truth.crowd for truth in mine)
        overlaps = _overlaps([f.box for f in best], mine)
        for iou, its in zip(IOUS, marks, strict=True):
            for one, hit in zip(best, _matched(overlaps, mine, iou), strict=True):
                if hit is None:
                    continue
                its.scores.append(one.score)
                its.right.append(hit)
                if iou == IOUS[0] and one.score >= threshold:
                    right += hit
                    wrong += not hit
    aps = [_average_precision(its, truths) for its in marks] if truths else None
    return OfLabel(
        truths=truths, ap50=None if aps is None else aps[0], ap=None if aps is None else float(np.mean(aps)),
        right=right, wrong=wrong, missed=truths - right,
    )  # fmt: skip


def _matched(overlaps: npt.NDArray[np.float64], truths: Sequence[Truth], iou: float) -> list[bool | None]:
    """For each detection, the best first: whether it is an object that none before was; None: not counted."""
    free = np.array([not truth.crowd for truth in truths], bool)
    crowd = ~free
    said: list[bool | None] = []
    for row in overlaps:
        candidates = np.where(free, row, -1.0)
        if candidates.size and candidates.max() >= iou:
            free[int(candidates.argmax())] = False
            said.append(True)
        elif bool(np.any(crowd & (row >= iou))):
            said.append(None)
        else:
            said.append(False)
    return said


def _overlaps(boxes: Sequence[Box], truths: Sequence[Truth]) -> npt.NDArray[np.float64]:
    """IoU of each detection with each object; of a crowd, the share of the detection that lies in it."""
    a = np.array(boxes, np.float64).reshape(-1, 1, 4)
    b = np.array([truth.box for truth in truths], np.float64).reshape(1, -1, 4)
    corner = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.clip(corner, 0, None), axis=-1)
    mine, its = _areas(a), _areas(b)
    crowd = np.array([truth.crowd for truth in truths], bool).reshape(1, -1)
    whole = np.where(crowd, mine, mine + its - shared)
    overlaps: npt.NDArray[np.float64] = shared / np.maximum(whole, 1e-12)
    return overlaps


def _areas(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    areas: npt.NDArray[np.float64] = np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1)
    return areas


def _average_precision(marks: _Marks, truths: int) -> float:
    """Area below precision over recall, where precision is the best at that recall or any higher one."""
    if not marks.scores:
        return 0.0
    order = np.argsort(-np.array(marks.scores), kind="mergesort")
    right = np.array(marks.right, np.float64)[order]
    hits = np.cumsum(right)
    recall, precision = hits / truths, hits / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.mean(np.where(at < len(precision), precision[np.minimum(at, len(precision) - 1)], 0.0)))
