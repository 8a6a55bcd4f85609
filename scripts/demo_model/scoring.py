"""How good a detector is: matching by overlap, average precision, the decision on defects.

Pure functions on arrays. Boxes are (cx, cy, w, h) in fractions. A set's detections are one array per
picture, (k, 6): cx, cy, w, h, score, p_defect, and beside it (k,) the index of the kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demo_model.samples import SHOWN, WHOLE

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

KIND_COUNT = 3
MATCH = 0.5
"""Overlap from which a detection counts as of a part."""


@dataclass(frozen=True)
class Found:
    """What was detected in one picture: boxes (k, 4), scores (k,), kinds (k,), defects (k,)."""

    boxes: Floats
    scores: Floats
    kinds: Ints
    defects: Floats


@dataclass(frozen=True)
class DefectFigures:
    """The decision "defective" at a threshold, over parts that are visible enough to be judged."""

    average_precision: float
    precision: float
    recall: float
    true_positives: int
    false_positives: int
    missed: int


def overlap(one: Floats, many: Floats) -> Floats:
    """(k,) intersection over union of a box (4,) with boxes (k, 4)."""
    low = np.maximum(one[:2] - one[2:4] / 2.0, many[:, :2] - many[:, 2:4] / 2.0)
    high = np.minimum(one[:2] + one[2:4] / 2.0, many[:, :2] + many[:, 2:4] / 2.0)
    shared = np.prod(np.clip(high - low, 0.0, None), axis=1)
    union = one[2] * one[3] + many[:, 2] * many[:, 3] - shared
    return np.asarray(shared / np.maximum(union, 1e-9), np.float32)


def decode(rows: Floats, threshold: float, iou_threshold: float) -> Found:
    """What one picture's output (cells, 9) says: score = objectness * best kind, then NMS within a kind."""
    kinds = rows[:, 5:8].argmax(axis=1)
    scores = rows[:, 4] * rows[:, 5:8].max(axis=1)
    order = np.flatnonzero(scores >= threshold)
    order = order[np.argsort(-scores[order], kind="stable")]
    kept: list[int] = []
    for index in order:
        rivals = [k for k in kept if kinds[k] == kinds[index]]
        if not rivals or overlap(rows[index, :4], rows[rivals, :4]).max() <= iou_threshold:
            kept.append(int(index))
    picked = np.asarray(kept, np.int64)
    return Found(rows[picked, :4], scores[picked], kinds[picked], rows[picked, 8])


def average_precision(scores: Floats, correct: npt.NDArray[np.bool_], wanted: int) -> float:
    """Area under the all-point interpolated precision-recall curve, 0 to 1.

    Args:
        scores: (k,) of all detections.
        correct: (k,) whether each found a part of its own.
        wanted: number of parts there were; NaN is returned for 0.

    Source: Everingham et al., The PASCAL VOC Challenge (2010), section 4.2, with every recall level.
    """
    if wanted == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(correct[order])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / wanted
    ceiling = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(np.concatenate([[0.0], recall]))
    return float((steps * ceiling).sum())


def kind_precision(found: list[Found], truth: Floats, kind: int) -> float:
    """AP at overlap 0.5 of one kind over a set; parts hardly visible neither count nor hurt."""
    scores, correct, wanted = [], [], 0
    for one, rows in zip(found, truth, strict=True):
        parts = rows[rows[:, 4] == kind]
        mine = one.kinds == kind
        hits = match(one.boxes[mine], one.scores[mine], parts)
        keep = (hits < 0) | (parts[hits, 6] >= SHOWN) if len(parts) else np.ones(len(hits), np.bool_)
        scores.append(one.scores[mine][keep])
        correct.append(hits[keep] >= 0)
        wanted += int((parts[:, 6] >= SHOWN).sum())
    return average_precision(np.concatenate(scores), np.concatenate(correct), wanted)


def match(boxes: Floats, scores: Floats, parts: Floats) -> Ints:
    """(k,) the index of the part that each detection finds, -1 for none; a part is found once.

    Higher scores choose first, and each takes the free part that it overlaps most, from MATCH on.
    """
    hits = np.full(len(boxes), -1, np.int64)
    free = np.ones(len(parts), np.bool_)
    for index in np.argsort(-scores, kind="stable"):
        if not free.any():
            break
        shared = np.where(free, overlap(boxes[index], parts[:, :4]), -1.0)
        best = int(shared.argmax())
        if shared[best] >= MATCH:
            hits[index], free[best] = best, False
    return hits


def confusion(found: list[Found], truth: Floats, threshold: float) -> Ints:
    """(kinds + 1, kinds + 1) counts: rows the true kind or "nothing", columns the found one or "missed"."""
    table = np.zeros((KIND_COUNT + 1, KIND_COUNT + 1), np.int64)
    for one, rows in zip(found, truth, strict=True):
        parts = rows[~np.isnan(rows[:, 4])]
        sure = one.scores >= threshold
        hits = match(one.boxes[sure], one.scores[sure], parts)
        for kind, hit in zip(one.kinds[sure], hits, strict=True):
            if hit < 0:
                table[KIND_COUNT, kind] += 1
            elif parts[hit, 6] >= SHOWN:
                table[int(parts[hit, 4]), kind] += 1
        for index in np.flatnonzero(parts[:, 6] >= SHOWN):
            if index not in hits:
                table[int(parts[index, 4]), KIND_COUNT] += 1
    return table


def defect_figures(
    found: list[Found], truth: Floats, threshold: float, defect_threshold: float
) -> DefectFigures:
    """The decision on defects: a detection is "defective" where p_defect reaches `defect_threshold`.

    A defective part of which less than WHOLE is visible is left out, whatever is said of it.
    """
    scores, correct, wanted = [], [], 0
    for one, rows in zip(found, truth, strict=True):
        parts = rows[~np.isnan(rows[:, 4])]
        sure = one.scores >= threshold
        hits = match(one.boxes[sure], one.scores[sure], parts)
        for p_defect, hit in zip(one.defects[sure], hits, strict=True):
            if hit >= 0 and (parts[hit, 6] < SHOWN or (parts[hit, 5] > 0 and parts[hit, 6] < WHOLE)):
                continue
            scores.append(float(p_defect))
            correct.append(bool(hit >= 0 and parts[hit, 5] > 0))
        wanted += int(((parts[:, 5] > 0) & (parts[:, 6] >= WHOLE)).sum())
    p, right = np.asarray(scores, np.float32), np.asarray(correct, np.bool_)
    said = p >= defect_threshold
    true_positives, false_positives = int((said & right).sum()), int((said & ~right).sum())
    return DefectFigures(
        average_precision=average_precision(p, right, wanted),
        precision=true_positives / max(true_positives + false_positives, 1),
        recall=true_positives / max(wanted, 1),
        true_positives=true_positives,
        false_positives=false_positives,
        missed=wanted - true_positives,
    )
