"""The figures in the model card are what they claim to be: checked on cases worked out by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "modules"), str(ROOT / "scripts")]

from demo_model import scoring  # noqa: E402


def floats(*values: object) -> np.ndarray:
    return np.array(values, np.float32)


def test_average_precision_of_a_perfect_ranking_is_one() -> None:
    assert scoring.average_precision(floats(0.9, 0.8), np.array([True, True]), 2) == 1.0


def test_average_precision_takes_the_best_precision_at_or_beyond_each_recall() -> None:
    scores = floats(0.9, 0.8, 0.7, 0.6)
    correct = np.array([True, False, True, False])

    # Recall 1/3 at precision 1, recall 2/3 at precision 2/3, recall 1 never reached.
    assert scoring.average_precision(scores, correct, 3) == pytest.approx(1 / 3 + 2 / 9)


def test_average_precision_does_not_depend_on_the_order_given() -> None:
    scores = floats(0.6, 0.9, 0.7, 0.8)
    correct = np.array([False, True, True, False])

    assert scoring.average_precision(scores, correct, 3) == pytest.approx(1 / 3 + 2 / 9)


def test_average_precision_without_anything_to_find_is_not_a_number() -> None:
    assert math.isnan(scoring.average_precision(floats(0.5), np.array([False]), 0))


def test_overlap_of_shifted_boxes_is_the_share_of_their_union() -> None:
    one, other = floats(0.5, 0.5, 0.2, 0.2), floats([0.6, 0.5, 0.2, 0.2])

    assert scoring.overlap(one, other)[0] == pytest.approx(1 / 3)


def test_a_part_is_found_once_by_the_surest_detection() -> None:
    boxes = floats([0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2])
    parts = floats([0.5, 0.5, 0.2, 0.2, 0, 0, 1])

    assert scoring.match(boxes, floats(0.6, 0.9), parts).tolist() == [-1, 0]


def test_decoding_thins_overlapping_boxes_of_one_kind_only() -> None:
    bolt, again = [0.5, 0.5, 0.2, 0.2, 0.9, 0.9, 0, 0, 0.1], [0.5, 0.5, 0.2, 0.2, 0.8, 0.9, 0, 0, 0.1]
    nut = [0.5, 0.5, 0.2, 0.2, 0.7, 0, 0.9, 0, 0.2]
    faint = [0.1, 0.1, 0.2, 0.2, 0.1, 0.9, 0, 0, 0.1]
    found = scoring.decode(floats(bolt, again, nut, faint), 0.3, 0.5)

    assert found.kinds.tolist() == [0, 1]
    assert found.scores == pytest.approx([0.81, 0.63])
    assert found.defects == pytest.approx([0.1, 0.2])


def test_a_part_hardly_visible_neither_counts_nor_hurts() -> None:
    truth = floats([[0.5, 0.5, 0.2, 0.2, 0, 0, 1], [0.02, 0.5, 0.04, 0.2, 0, 0, 0.1]])
    boxes = floats([0.5, 0.5, 0.2, 0.2], [0.02, 0.5, 0.04, 0.2])
    found = scoring.Found(boxes, floats(0.9, 0.95), np.array([0, 0]), floats(0, 0))

    assert scoring.kind_precision([found], truth, 0) == 1.0


def test_confusion_counts_wrong_kinds_misses_and_inventions() -> None:
    truth = floats([[0.2, 0.2, 0.2, 0.2, 0, 0, 1], [0.7, 0.7, 0.2, 0.2, 2, 0, 1]])
    boxes = floats([0.2, 0.2, 0.2, 0.2], [0.4, 0.8, 0.1, 0.1])
    found = scoring.Found(boxes, floats(0.9, 0.9), np.array([1, 2]), floats(0, 0))
    table = scoring.confusion([found], truth, 0.5)

    assert table[0, 1] == 1
    assert table[2, 3] == 1
    assert table[3, 2] == 1
    assert table.sum() == 3


def test_a_defect_is_judged_only_where_the_part_is_whole() -> None:
    truth = floats([[0.2, 0.2, 0.2, 0.2, 0, 1, 1], [0.7, 0.7, 0.2, 0.2, 2, 1, 0.5]])
    boxes = floats([0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2])
    found = scoring.Found(boxes, floats(0.9, 0.9), np.array([0, 2]), floats(0.8, 0.9))
    figures = scoring.defect_figures([found], truth, 0.5, 0.5)

    assert (figures.true_positives, figures.false_positives, figures.missed) == (1, 0, 0)
    assert figures.average_precision == 1.0
