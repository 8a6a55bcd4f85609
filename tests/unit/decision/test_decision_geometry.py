from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from skerry.decision.geometry import Area, Line, area, crosses_itself, iou

unit = st.floats(0.0, 1.0)
points = st.tuples(unit, unit)


def star(seed: int, corners: int) -> list[tuple[float, float]]:
    """A simple polygon around the middle of the picture."""
    rng = random.Random(seed)
    angles = sorted(rng.uniform(0.0, 2 * math.pi) for _ in range(corners))
    reach = [rng.uniform(0.1, 0.5) for _ in range(corners)]
    return [(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for a, r in zip(angles, reach, strict=True)]


@given(points)
def test_a_rectangle_holds_what_its_sides_say(point: tuple[float, float]) -> None:
    inside = Area([(0.2, 0.3), (0.6, 0.3), (0.6, 0.8), (0.2, 0.8)]).holds(*point)
    assert inside == (0.2 <= point[0] < 0.6 and 0.3 <= point[1] < 0.8)


@given(points, st.integers(0, 500), st.integers(3, 9), st.integers(0, 8))
def test_an_area_does_not_depend_on_its_first_corner(
    point: tuple[float, float], seed: int, corners: int, turn: int
) -> None:
    shape = star(seed, corners)
    turned = shape[turn % corners :] + shape[: turn % corners]
    assert Area(shape).holds(*point) == Area(turned).holds(*point)


@given(points)
def test_areas_that_tile_the_picture_hold_each_point_once(point: tuple[float, float]) -> None:
    assume(point[0] < 1.0)
    assume(point[1] < 1.0)
    assume(all(v == 0.0 or v > 1e-9 for v in point))  # nearer to an edge, rounding decides
    corners = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    tiles = [Area([a, b, (0.4, 0.6)]) for a, b in zip(corners, [*corners[1:], corners[0]], strict=True)]
    assert sum(tile.holds(*point) for tile in tiles) == 1


def test_a_concave_area_leaves_its_bay_out() -> None:
    bay = Area([(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.5, 0.2), (0.1, 0.9)])
    assert bay.holds(0.2, 0.5)
    assert bay.holds(0.8, 0.5)
    assert not bay.holds(0.5, 0.6)


def test_the_left_hand_of_a_line_drawn_downwards_is_the_right_of_the_picture() -> None:
    line = Line((0.5, 0.0), (0.5, 1.0))
    assert line.side(0.7, 0.5) == pytest.approx(0.2)
    assert line.side(0.3, 0.5) == pytest.approx(-0.2)


def test_a_way_around_the_end_of_a_line_does_not_meet_it() -> None:
    line = Line((0.5, 0.4), (0.5, 0.6))
    assert line.meets((0.4, 0.5), (0.6, 0.5))
    assert not line.meets((0.4, 0.7), (0.6, 0.7))


@given(points, points, points, points)
def test_overlap_is_symmetric_and_at_most_one(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]
) -> None:
    one = (min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]) + 0.01, max(a[1], b[1]) + 0.01)
    two = (min(c[0], d[0]), min(c[1], d[1]), max(c[0], d[0]) + 0.01, max(c[1], d[1]) + 0.01)
    assert iou(one, two) == pytest.approx(iou(two, one))
    assert 0.0 <= iou(one, two) <= 1.0 + 1e-9
    assert iou(one, one) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "corners",
    [
        [(0, 0), (1, 1), (1, 0), (0, 1)],  # a bow tie
        [(0, 0), (1, 0), (0.5, 0), (0.5, 1)],  # an edge folds back
        [(0, 0), (1, 0), (1, 1), (0.5, 0), (0, 1)],  # a corner touches an edge
        [(0, 0), (0, 0), (1, 1)],  # a corner twice
    ],
)
def test_a_polygon_that_meets_itself_is_seen(corners: list[tuple[float, float]]) -> None:
    assert crosses_itself(corners)


@given(st.integers(0, 500), st.integers(4, 9))
def test_a_simple_polygon_does_not_cross_itself(seed: int, corners: int) -> None:
    shape = star(seed, corners)
    angles = sorted(math.atan2(y - 0.5, x - 0.5) for x, y in shape)
    gaps = [b - a for a, b in itertools.pairwise(angles)]
    assume(min(gaps) > 0.05)  # so that neighbours do not coincide
    assume(max(*gaps, 2 * math.pi - sum(gaps)) < 3.0)  # so that the middle is inside
    assert not crosses_itself(shape)
    assert area(shape) > 0.0


def test_boxes_too_small_for_an_area_do_not_overlap() -> None:
    speck = (0.0, 0.0, 1e-258, 1e-121)
    assert iou(speck, speck) == 0.0
