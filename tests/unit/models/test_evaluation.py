"""Average precision as COCO counts it, and errors at the operating threshold."""

import numpy as np
import pytest

from skerry.models.evaluation import Found, Truth, evaluate, top1

BOX = (0.1, 0.1, 0.3, 0.3)
AWAY = (0.6, 0.6, 0.8, 0.8)


def moved(box, by: float):
    return (box[0] + by, box[1], box[2] + by, box[3])


def one(truths, found, threshold=0.5):
    return evaluate([(truths, found)], ["a"], threshold).labels["a"]


def test_everything_found_in_its_place_is_perfect():
    its = one([Truth("a", BOX)], [Found("a", 0.9, BOX)])
    assert (its.ap50, its.ap, its.right, its.wrong, its.missed) == (1.0, 1.0, 1, 0, 0)


def test_nothing_found_is_nothing():
    its = one([Truth("a", BOX)], [])
    assert (its.ap50, its.ap, its.right, its.wrong, its.missed) == (0.0, 0.0, 0, 0, 1)


def test_a_label_that_is_in_no_picture_has_no_precision_and_counts_in_no_mean():
    its = evaluate([([Truth("a", BOX)], [Found("a", 0.9, BOX), Found("b", 0.9, AWAY)])], ["a", "b"], 0.5)
    assert its.labels["b"].ap50 is None
    assert its.labels["b"].wrong == 1
    assert its.map50 == 1.0


def test_of_two_detections_of_one_object_the_second_is_wrong():
    its = one([Truth("a", BOX)], [Found("a", 0.9, BOX), Found("a", 0.8, BOX)])
    assert (its.right, its.wrong) == (1, 1)
    assert its.ap50 == 1.0, "what comes after the last object costs no precision"


def test_a_wrong_detection_before_the_right_one_halves_precision():
    its = one([Truth("a", BOX)], [Found("a", 0.9, AWAY), Found("a", 0.8, BOX)])
    assert its.ap50 == pytest.approx(0.5)


def test_half_of_the_objects_found_is_half_of_the_area():
    its = one([Truth("a", BOX), Truth("a", AWAY)], [Found("a", 0.9, BOX)])
    assert its.ap50 == pytest.approx(51 / 101)


def test_a_box_that_is_a_little_off_counts_at_low_ious_alone():
    # 0.2 wide and moved by 0.02: IoU 0.18 / 0.22 = 0.818, which is above 0.50, 0.55 ... 0.80: 7 of 10.
    its = one([Truth("a", BOX)], [Found("a", 0.9, moved(BOX, 0.02))])
    assert its.ap50 == 1.0
    assert its.ap == pytest.approx(0.7)


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong():
    crowd = Truth("a", (0.5, 0.5, 1.0, 1.0), crowd=True)
    its = one([Truth("a", BOX), crowd], [Found("a", 0.9, AWAY), Found("a", 0.8, BOX)])
    assert (its.ap50, its.truths, its.right, its.wrong, its.missed) == (1.0, 1, 1, 0, 0)


def test_errors_are_counted_at_the_operating_threshold_and_precision_at_all():
    its = one([Truth("a", BOX)], [Found("a", 0.4, BOX), Found("a", 0.3, AWAY)], threshold=0.5)
    assert (its.ap50, its.right, its.wrong, its.missed) == (1.0, 0, 0, 1)


def test_only_the_hundred_best_of_a_picture_count():
    found = [Found("a", 0.9, AWAY)] * 100 + [Found("a", 0.1, BOX)]
    assert one([Truth("a", BOX)], found).ap50 == 0.0


def test_the_best_label_is_right_or_not():
    assert top1([("a", "a"), ("b", "a"), ("b", "b"), ("a", "")]) == 0.5


def test_figures_are_those_of_pycocotools():
    """The two figures are what pycocotools 2.0 gives for these boxes."""
    random, pictures = np.random.default_rng(5), []
    for _ in range(60):
        truths, found = [], []
        for _ in range(random.integers(0, 8)):
            x, y = random.uniform(0, 800, 2)
            w, h = random.uniform(40, 200, 2)
            label, crowd = int(random.integers(1, 4)), bool(random.random() < 0.1)
            truths.append(Truth(str(label), (x, y, x + w, y + h), crowd))
            for _ in range(int(random.integers(0, 3))):
                if random.random() < 0.8:
                    dx, dy = random.normal(0, 15, 2)
                    score = float(random.random())
                    said = label if random.random() < 0.9 else int(random.integers(1, 4))
                    found.append(Found(str(said), score, (x + dx, y + dy, x + dx + w, y + dy + h)))
        for _ in range(int(random.integers(0, 4))):
            x, y = random.uniform(0, 800, 2)
            w, h = random.uniform(40, 200, 2)
            label, score = int(random.integers(1, 4)), float(random.random())
            found.append(Found(str(label), score, (x, y, x + w, y + h)))
        pictures.append((truths, found))
    its = evaluate(pictures, ["1", "2", "3"], 0.5)
    assert (its.map, its.map50) == (pytest.approx(0.0972359, abs=1e-7), pytest.approx(0.23443593, abs=1e-7))
