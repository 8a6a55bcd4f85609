"""What a model's outputs mean: pure functions from arrays to objects.

Each kind of decoder turns outputs into `Candidates` in fractions of the input. What follows is the
same for all: class-wise non-maximum suppression, undoing the letterbox, clipping, names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry.inference.placement import Placement
from skerry.messages import Detection
from skerry.models import manifest as m

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
Outputs = Mapping[str, Floats]
"""Name to array; the first dimension is one frame."""

_BLOCK = 128
"""Boxes compared with one another at once, in `suppress`."""


class BadOutput(Exception):  # noqa: N818 - a reason, said in `Detections.reason`
    """The outputs are not what the package says; the message is the reason."""


@dataclass(frozen=True)
class Candidates:
    """What a decoder found, in any order, N of them.

    Attributes:
        boxes: (N, 4) x1, y1, x2, y2 as fractions of the input, not clipped.
        scores: (N,) 0 to 1.
        classes: (N,) index into the labels.
        attributes: (N, A) in the order of the decoder's names.
    """

    boxes: Floats
    scores: Floats
    classes: Indices
    attributes: Floats


def decode(
    outputs: Outputs, manifest: m.Manifest, labels: Sequence[str], placement: Placement
) -> tuple[Detection, ...]:
    """The objects in one frame, the best first.

    Args:
        outputs: of one frame, as the manifest names them.
        manifest: says what they mean.
        labels: names of the classes.
        placement: where the frame was in the input.

    Raises:
        BadOutput: a shape is not the manifest's, or a number is not finite.
    """
    check(outputs, manifest.outputs)
    decoder = manifest.decoder
    if isinstance(decoder, m.Classification):
        return classification(outputs, decoder, labels)
    found = _DECODERS[type(decoder)](outputs, decoder, manifest.input)
    if found.classes.size and not 0 <= found.classes.max() < len(labels):
        raise BadOutput(f"class: expected one of {len(labels)}, got {found.classes.max()}")
    best = suppress(found.boxes, found.scores, found.classes, decoder.iou_threshold, decoder.max_objects)
    boxes = placement.to_frame(found.boxes[best])
    names = decoder.attributes if isinstance(decoder, m.Parts) else ()
    return objects(boxes, found, best, labels, names)


def check(outputs: Outputs, wanted: Sequence[m.Output]) -> None:
    """Shapes as the manifest says, and finite numbers only.

    Raises:
        BadOutput: where not.
    """
    for output in wanted:
        array = outputs.get(output.name)
        if array is None:
            raise BadOutput(f"output {output.name!r}: expected it, got {', '.join(outputs)}")
        fits = len(array.shape) == len(output.shape) and all(
            want in (0, have) for want, have in zip(output.shape, array.shape, strict=True)
        )
        if not fits:
            raise BadOutput(
                f"output {output.name!r}: expected shape {list(output.shape)}, got {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise BadOutput(f"output {output.name!r}: expected finite numbers, got {_odd(array)}")


def suppress(boxes: Floats, scores: Floats, classes: Indices, iou: float, limit: int) -> Indices:
    """Class-wise greedy non-maximum suppression.

    Of equal scores the one that comes first wins, so the result does not depend on the machine. Goes
    through blocks of the best boxes and stops at `limit`, so memory and time stay bounded.

    Args:
        boxes: (N, 4) x1, y1, x2, y2.
        scores: (N,).
        classes: (N,).
        iou: boxes of one class that overlap an already kept one by more are dropped.
        limit: how many to keep.

    Returns:
        Indices of those kept, the best first.

    Source: Neubeck and Van Gool, Efficient Non-Maximum Suppression, ICPR 2006, section 2.
    """
    order = np.argsort(-scores, kind="stable")
    columns = np.ascontiguousarray(boxes.T)
    kept: list[int] = []
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        beaten = np.logical_or.reduce(_overlaps(columns, classes, np.array(kept, np.intp), block, iou))
        beats = _overlaps(columns, classes, block, block, iou)
        for n, index in enumerate(block.tolist()):
            if beaten[n]:
                continue
            kept.append(index)
            if len(kept) == limit:
                return np.array(kept, np.intp)
            beaten |= beats[n]
    return np.array(kept, np.intp)


def _overlaps(
    columns: Floats, classes: Indices, these: Indices, those: Indices, iou: float
) -> npt.NDArray[np.bool_]:
    """(these, those) whether two boxes are of one class and overlap by more than `iou`.

    Args:
        columns: (4, N) x1, y1, x2, y2. One coordinate at a time is several times as fast as all four.
        classes: (N,).
        these: indices of the rows.
        those: indices of the columns.
        iou: 0 to 1.
    """
    a, b = columns[:, these, None], columns[:, None, those]
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    common = np.maximum(width, 0) * np.maximum(height, 0)
    areas = np.maximum(columns[2] - columns[0], 0) * np.maximum(columns[3] - columns[1], 0)
    union = areas[these][:, None] + areas[those] - common
    over: npt.NDArray[np.bool_] = (common > iou * union) & (classes[these][:, None] == classes[those])
    return over


def objects(
    boxes: Floats, found: Candidates, best: Indices, labels: Sequence[str], names: Sequence[str]
) -> tuple[Detection, ...]:
    """Arrays to messages: boxes to 5 digits (a twentieth of a pixel in 4K), scores to 4."""
    rows = zip(
        np.round(boxes.astype(np.float64), 5).tolist(),
        np.round(np.clip(found.scores[best], 0, 1).astype(np.float64), 4).tolist(),
        found.classes[best].tolist(),
        np.round(found.attributes[best].astype(np.float64), 4).tolist(),
        strict=True,
    )
    return tuple(
        Detection(labels[c], score, (x1, y1, x2, y2), dict(zip(names, extra, strict=True)))
        for (x1, y1, x2, y2), score, c, extra in rows
        if x2 > x1 and y2 > y1
    )


def parts(outputs: Outputs, decoder: m.Parts, _: m.Input) -> Candidates:
    """See `manifest.Parts`."""
    rows = _only(outputs)[0]
    last = rows.shape[1] - len(decoder.attributes)
    return _pick(
        rows[:, 5:last] * rows[:, 4:5], corners(rows[:, :4]), decoder.score_threshold, rows[:, last:]
    )


def yolov5(outputs: Outputs, decoder: m.YoloV5, spec: m.Input) -> Candidates:
    """See `manifest.YoloV5`."""
    rows = _only(outputs)[0]
    return _pick(rows[:, 5:] * rows[:, 4:5], _pixels(rows[:, :4], spec), decoder.score_threshold)


def yolov8(outputs: Outputs, decoder: m.YoloV8, spec: m.Input) -> Candidates:
    """See `manifest.YoloV8`."""
    rows = _only(outputs)[0].T
    return _pick(rows[:, 4:], _pixels(rows[:, :4], spec), decoder.score_threshold)


def fastestdet(outputs: Outputs, decoder: m.FastestDet, _: m.Input) -> Candidates:
    """See `manifest.FastestDet`."""
    cells = _only(outputs)[0]
    _, height, width = cells.shape
    objectness = np.maximum(cells[0], 0) ** 0.6
    scores = objectness * np.maximum(cells[5:].max(axis=0), 0) ** 0.4
    rows, columns = np.nonzero(scores >= decoder.score_threshold)
    at = cells[:, rows, columns]
    boxes = np.empty((len(rows), 4), np.float32)
    boxes[:, 0] = (np.tanh(at[1]) + columns) / width
    boxes[:, 1] = (np.tanh(at[2]) + rows) / height
    boxes[:, 2:] = (1 / (1 + np.exp(-np.clip(at[3:5], -80, 80)))).T
    return Candidates(
        corners(boxes),
        scores[rows, columns].astype(np.float32),
        at[5:].argmax(axis=0),
        np.empty((len(rows), 0), np.float32),
    )


def ultraface(outputs: Outputs, decoder: m.UltraFace, _: m.Input) -> Candidates:
    """See `manifest.UltraFace`."""
    return _pick(outputs[decoder.scores][0, :, 1:], outputs[decoder.boxes][0], decoder.score_threshold)


def ssd(outputs: Outputs, decoder: m.Ssd, _: m.Input) -> Candidates:
    """See `manifest.Ssd`."""
    if decoder.form == "pairs":
        boxes, scores = outputs[decoder.boxes][0], outputs[decoder.scores][0]
        first = int(decoder.background)
        return _pick(scores[:, first:], _order(boxes, decoder), decoder.score_threshold)
    rows = _only(outputs).reshape(-1, 7)
    ended = np.nonzero(rows[:, 0] < 0)[0]
    rows = rows[: ended[0]] if ended.size else rows
    rows = rows[(rows[:, 2] >= decoder.score_threshold) & (rows[:, 1] >= decoder.background)]
    classes = rows[:, 1].astype(np.intp) - decoder.background
    return Candidates(_order(rows[:, 3:], decoder), rows[:, 2], classes, np.empty((len(rows), 0), np.float32))


def classification(
    outputs: Outputs, decoder: m.Classification, labels: Sequence[str]
) -> tuple[Detection, ...]:
    """The best label as one object, the whole frame. See `manifest.Classification`."""
    values = _only(outputs)[0].astype(np.float64)
    if decoder.activation == "softmax":
        values = np.exp(values - values.max())
        values /= values.sum()
    elif decoder.activation == "sigmoid":
        values = 1 / (1 + np.exp(-np.clip(values, -80, 80)))
    best = int(values.argmax())
    score = round(float(np.clip(values[best], 0, 1)), 4)
    label = best - decoder.background
    if label < 0 or score < decoder.score_threshold:
        return ()
    return (Detection(labels[label], score, (0.0, 0.0, 1.0, 1.0)),)


def corners(boxes: Floats) -> Floats:
    """(N, 4) cx, cy, w, h as x1, y1, x2, y2."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


_DECODERS: dict[type, Callable[[Outputs, Any, m.Input], Candidates]] = {
    m.Parts: parts,
    m.YoloV5: yolov5,
    m.YoloV8: yolov8,
    m.FastestDet: fastestdet,
    m.UltraFace: ultraface,
    m.Ssd: ssd,
}


def _pick(scores: Floats, boxes: Floats, threshold: float, attributes: Floats | None = None) -> Candidates:
    """The best class of each row, where it reaches the threshold."""
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    rows = np.nonzero(best >= threshold)[0]
    extra = np.empty((len(rows), 0), np.float32) if attributes is None else attributes[rows]
    return Candidates(boxes[rows], best[rows], classes[rows], extra)


def _pixels(boxes: Floats, spec: m.Input) -> Floats:
    """cx, cy, w, h in input pixels as corners in fractions."""
    size: Floats = np.array((spec.width, spec.height, spec.width, spec.height), np.float32)
    return corners(boxes / size)


def _order(boxes: Floats, decoder: m.Ssd) -> Floats:
    return boxes if decoder.order == "xyxy" else boxes[:, [1, 0, 3, 2]]


def _only(outputs: Outputs) -> Floats:
    return next(iter(outputs.values()))


def _odd(array: Floats) -> str:
    return "NaN" if np.isnan(array).any() else "infinity"
