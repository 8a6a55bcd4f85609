from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skerry.inference.decoders import BadOutput, decode, suppress
from skerry.inference.placement import Placement, place
from skerry.messages import Detection
from skerry.models.manifest import Manifest
from skerry.settings import parse
from tiny_models import manifest

WHOLE = place(100, 100, 100, 100, "stretch")
TWO = ("cat", "dog")


def _decode(
    decoder: dict[str, Any],
    outputs: dict[str, Any],
    labels: tuple[str, ...] = TWO,
    at: Placement = WHOLE,
) -> tuple[Detection, ...]:
    arrays = {name: np.array(value, np.float32) for name, value in outputs.items()}
    shapes = [{"name": name, "shape": list(a.shape)} for name, a in arrays.items()]
    raw = manifest(decoder=decoder, outputs=shapes, input={"name": "x", "width": 100, "height": 100})
    return decode(arrays, parse(Manifest, raw, "test"), labels, at)


def test_parts_multiplies_objectness_and_names_attributes() -> None:
    rows = [[0.5, 0.5, 0.2, 0.4, 0.9, 0.2, 0.8, 0.7], [0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.4, 0.0]]
    found = _decode({"kind": "parts", "score_threshold": 0.3}, {"o": [rows]})
    assert found == (Detection("dog", 0.72, (0.4, 0.3, 0.6, 0.7), {"defect": 0.7}),)


def test_parts_takes_as_many_attributes_as_it_has_names() -> None:
    rows = [[0.5, 0.5, 0.2, 0.2, 1, 1, 0, 0.25, 0.5]]
    found = _decode({"kind": "parts", "attributes": ["defect", "upside_down"]}, {"o": [rows]})
    assert found[0].attributes == {"defect": 0.25, "upside_down": 0.5}
    assert _decode({"kind": "parts", "attributes": []}, {"o": [[rows[0][:7]]]})[0].attributes == {}


def test_yolov5_boxes_are_pixels_of_the_input() -> None:
    found = _decode({"kind": "yolov5"}, {"o": [[[50, 40, 20, 10, 0.8, 0.9, 0.1]]]})
    assert found == (Detection("cat", 0.72, (0.4, 0.35, 0.6, 0.45)),)


def test_yolov8_has_its_rows_as_columns_and_no_objectness() -> None:
    columns = np.array([[50, 40, 20, 10, 0.1, 0.9], [10, 10, 10, 10, 0.2, 0.1]], np.float32).T[None]
    found = _decode({"kind": "yolov8"}, {"o": columns})
    assert found == (Detection("dog", 0.9, (0.4, 0.35, 0.6, 0.45)),)


def test_fastestdet_offsets_are_relative_to_their_cell() -> None:
    cells = np.zeros((1, 7, 4, 5), np.float32)
    cells[0, :, 2, 3] = [0.5, np.arctanh(0.5), 0.0, 0.0, np.log(0.25 / 0.75), 0.1, 0.8]
    found = _decode({"kind": "fastestdet"}, {"o": cells})
    (one,) = found
    assert one.label == "dog"
    assert one.score == pytest.approx(0.5**0.6 * 0.8**0.4, abs=1e-4)
    # centre x (3 + 0.5) / 5 = 0.7, y 2 / 4 = 0.5; width sigmoid(0) = 0.5, height 0.25
    assert one.box == pytest.approx((0.45, 0.375, 0.95, 0.625), abs=1e-5)


def test_ultraface_skips_the_background() -> None:
    outputs = {
        "scores": [[[0.1, 0.9], [0.95, 0.05]]],
        "boxes": [[[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.6, 0.6]]],
    }
    assert _decode({"kind": "ultraface"}, outputs, ("face",)) == (
        Detection("face", 0.9, (0.1, 0.2, 0.3, 0.4)),
    )


def test_ssd_rows_end_at_a_negative_image() -> None:
    rows = [
        [0, 2, 0.9, 0.1, 0.2, 0.3, 0.4],
        [0, 0, 0.9, 0.1, 0.2, 0.3, 0.4],  # background
        [-1, 0, 0, 0, 0, 0, 0],
        [0, 1, 0.9, 0.5, 0.5, 0.7, 0.7],
    ]
    assert _decode({"kind": "ssd"}, {"o": [[rows]]}) == (Detection("dog", 0.9, (0.1, 0.2, 0.3, 0.4)),)


def test_ssd_rows_without_background_count_from_0() -> None:
    rows = [[0, 0, 0.9, 0.2, 0.1, 0.4, 0.3]]
    found = _decode({"kind": "ssd", "background": False, "order": "yxyx"}, {"o": rows})
    assert found == (Detection("cat", 0.9, (0.1, 0.2, 0.3, 0.4)),)


def test_ssd_class_without_a_label_is_a_failure() -> None:
    with pytest.raises(BadOutput, match="class: expected one of 2, got 4"):
        _decode({"kind": "ssd"}, {"o": [[0, 5, 0.9, 0.1, 0.2, 0.3, 0.4]]})


def test_ssd_pairs_are_two_outputs() -> None:
    outputs = {"conf": [[[0.1, 0.2, 0.7], [0.9, 0.05, 0.05]]], "loc": [[[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]]}
    found = _decode({"kind": "ssd", "form": "pairs", "scores": "conf", "boxes": "loc"}, outputs)
    assert found == (Detection("dog", 0.7, (0.1, 0.2, 0.3, 0.4)),)


def test_classification_is_one_object_over_the_whole_frame() -> None:
    found = _decode({"kind": "classification"}, {"o": [[0.0, np.log(3)]]})
    assert found == (Detection("dog", 0.75, (0, 0, 1, 1)),)
    assert _decode({"kind": "classification", "score_threshold": 0.8}, {"o": [[0.0, np.log(3)]]}) == ()
    assert _decode({"kind": "classification", "activation": "none"}, {"o": [[0.6, 0.4]]})[0].label == "cat"
    assert _decode({"kind": "classification", "activation": "sigmoid"}, {"o": [[0, 1000]]})[0].score == 1
    assert _decode({"kind": "classification", "background": True}, {"o": [[9, 0, 0]]}) == ()


def test_a_frame_without_objects_is_an_empty_result() -> None:
    assert _decode({"kind": "yolov5"}, {"o": np.zeros((1, 3, 7))}) == ()
    assert _decode({"kind": "yolov5"}, {"o": np.zeros((1, 0, 7))}) == ()
    assert _decode({"kind": "fastestdet"}, {"o": np.zeros((1, 7, 2, 2))}) == ()


def test_boxes_leave_the_letterbox() -> None:
    at = place(200, 100, 100, 100, "letterbox")  # the frame fills y 25 to 75
    found = _decode({"kind": "yolov5"}, {"o": [[[50, 50, 50, 25, 1, 1, 0]]]}, at=at)
    assert found[0].box == (0.25, 0.25, 0.75, 0.75)


def test_a_box_outside_the_frame_is_no_object() -> None:
    at = place(200, 100, 100, 100, "letterbox")
    assert _decode({"kind": "yolov5"}, {"o": [[[50, 10, 10, 10, 1, 1, 0]]]}, at=at) == ()


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_a_number_that_is_not_finite_is_a_failure_not_an_empty_result(value: float, said: str) -> None:
    with pytest.raises(BadOutput, match=f"output 'o': expected finite numbers, got {said}"):
        _decode({"kind": "yolov5"}, {"o": [[[50, 50, 50, value, 0, 1, 0]]]})


def test_an_output_of_another_shape_is_a_failure() -> None:
    raw = manifest(decoder={"kind": "yolov5"}, outputs=[{"name": "o", "shape": [1, 3, 7]}])
    one = parse(Manifest, raw, "test")
    with pytest.raises(BadOutput, match=r"expected shape \[1, 3, 7\], got \[1, 2, 7\]"):
        decode({"o": np.zeros((1, 2, 7), np.float32)}, one, TWO, WHOLE)
    with pytest.raises(BadOutput, match="output 'o': expected it, got p"):
        decode({"p": np.zeros((1, 3, 7), np.float32)}, one, TWO, WHOLE)


def test_objects_come_best_first_and_at_most_as_many_as_asked() -> None:
    rows = [[10 * n + 5, 50, 4, 4, 1, 0.5 + n / 100, 0] for n in range(8)]
    found = _decode({"kind": "yolov5", "max_objects": 3}, {"o": [rows]})
    assert [d.score for d in found] == [0.57, 0.56, 0.55]


def test_objects_of_different_classes_may_overlap() -> None:
    rows = [[50, 50, 20, 20, 1, 0.9, 0], [50, 50, 20, 20, 1, 0, 0.8], [51, 50, 20, 20, 1, 0.7, 0]]
    assert [d.label for d in _decode({"kind": "yolov5"}, {"o": [rows]})] == ["cat", "dog"]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """In float64, one pair at a time."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def _brute_force(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float, limit: int
) -> list[int]:
    """The definition: go through the boxes by score, keep what overlaps nothing kept of its class."""
    kept: list[int] = []
    for n in sorted(range(len(scores)), key=lambda k: (-scores[k], k)):
        if all(classes[k] != classes[n] or _iou(boxes[k], boxes[n]) <= iou for k in kept):
            kept.append(n)
    return kept[:limit]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), count=st.integers(0, 25), limit=st.integers(1, 30))
def test_suppression_is_what_brute_force_finds(data: st.DataObject, count: int, limit: int) -> None:
    # Corners on a grid of 1/16 are exact in float32, and the threshold is no ratio of such areas.
    grid = hnp.arrays(np.int64, (count, 4), elements=st.integers(0, 12))
    corner = data.draw(grid)
    boxes = (
        np.concatenate([corner[:, :2], corner[:, :2] + corner[:, 2:] % 5 + 1], axis=1).astype(np.float32) / 16
    )
    scores = data.draw(hnp.arrays(np.float32, count, elements=st.sampled_from([0.25, 0.5, 0.625, 0.75, 1.0])))
    classes = data.draw(hnp.arrays(np.intp, count, elements=st.integers(0, 2)))
    kept = suppress(boxes, scores, classes, 0.41421356, limit)
    assert kept.tolist() == _brute_force(boxes, scores, classes, 0.41421356, limit)


@pytest.mark.parametrize("limit", [1, 300, 2000])
def test_suppression_of_thousands_is_what_brute_force_finds(limit: int) -> None:
    """More than one block of boxes."""
    rng = np.random.default_rng(3)
    corner = rng.integers(0, 60, (1200, 2))
    boxes = np.concatenate([corner, corner + rng.integers(4, 12, (1200, 2))], axis=1).astype(np.float32) / 64
    scores = rng.integers(0, 50, 1200).astype(np.float32) / 50
    classes = rng.integers(0, 3, 1200)
    kept = suppress(boxes, scores, classes, 0.41421356, limit)
    assert kept.tolist() == _brute_force(boxes, scores, classes, 0.41421356, limit)


@settings(max_examples=100, deadline=None)
@given(
    rows=hnp.arrays(np.float32, (12, 7), elements=st.floats(-1e6, 1e6, width=32)),
    kind=st.sampled_from(["yolov5", "parts", "ssd"]),
)
def test_whatever_finite_numbers_come_the_message_is_valid(rows: np.ndarray, kind: str) -> None:
    labels = TWO if kind != "parts" else ("one",)
    try:
        found = _decode({"kind": kind, "score_threshold": 0}, {"o": rows[None]}, labels)
    except BadOutput as error:
        assert str(error).startswith("class: ")  # noqa: PT017 - the only reason that finite numbers can have
        return
    for one in found:
        assert 0 <= one.score <= 1
        x1, y1, x2, y2 = one.box
        assert 0 <= x1 < x2 <= 1
        assert 0 <= y1 < y2 <= 1
