"""Which pixels of a source picture are captured, and how large."""

from __future__ import annotations

import numpy as np
import pytest

from skerry.capture.feed import place
from skerry.capture.geometry import Geometry, known_size, mask_points
from skerry.capture.settings import Camera, SyntheticSource


def camera(**options) -> Camera:
    return Camera(name="gate", source=SyntheticSource(), **options)


def captured(pixels: np.ndarray, upright: int = 0, **options) -> np.ndarray:
    geometry = Geometry.of(camera(**options), pixels.shape[1], pixels.shape[0], upright)
    out = np.full(geometry.shape, 77, np.uint8)
    place(pixels, out, geometry)
    return out


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (60, 100, 3), np.uint8)


def test_picture_is_captured_as_it_is_when_nothing_is_asked(pixels):
    assert (captured(pixels) == pixels).all()


def test_region_of_interest_is_cut(pixels):
    assert (captured(pixels, roi=(0.1, 0.5, 0.6, 1.0)) == pixels[30:60, 10:60]).all()


@pytest.mark.parametrize(("degrees", "turns"), [(90, -1), (180, 2), (270, 1)])
def test_rotation_is_clockwise(pixels, degrees, turns):
    assert (captured(pixels, rotate=degrees) == np.rot90(pixels, turns)).all()


def test_region_is_meant_in_the_picture_as_delivered_and_turned_afterwards(pixels):
    turned = captured(pixels, roi=(0.0, 0.0, 0.5, 1.0), rotate=90)
    assert (turned == np.rot90(pixels[:, :50], -1)).all()


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"width": 50}, (30, 50)),
        ({"height": 30}, (30, 50)),
        ({"width": 64, "height": 64}, (64, 64)),
        ({"width": 30, "rotate": 90}, (50, 30)),
        ({"height": 200, "rotate": 270}, (200, 120)),
        ({"width": 50, "roi": (0, 0, 0.5, 1)}, (60, 50)),
    ],
)
def test_size_is_of_the_captured_picture_and_one_side_keeps_the_aspect(pixels, options, shape):
    assert captured(pixels, **options).shape == (*shape, 3)


def test_what_a_phone_filmed_upright_is_captured_upright(pixels):
    assert (captured(pixels, upright=90) == np.rot90(pixels, -1)).all()
    assert (captured(pixels, upright=90, rotate=270) == pixels).all()


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_region_is_meant_in_the_upright_picture(pixels, degrees, turns):
    upright = np.rot90(pixels, turns)
    height, width = upright.shape[:2]
    want = upright[: height // 2, : width // 5]
    assert (captured(pixels, upright=degrees, roi=(0.0, 0.0, 0.2, 0.5)) == want).all()


@pytest.mark.parametrize("roi", [(0.999, 0.999, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0), (0.5, 0.5, 0.5001, 0.5001)])
def test_region_is_never_empty(pixels, roi):
    assert captured(pixels, roi=roi).size > 0


def test_masks_are_fractions_of_the_captured_picture():
    masked = camera(masks=(((0.0, 0.0), (0.5, 0.0), (0.5, 1.0)),))
    assert mask_points(masked, 200, 100) == [[(0, 0), (100, 0), (100, 100)]]


def test_size_is_known_in_advance_where_the_settings_say_it():
    assert known_size(camera()) == (640, 480)
    assert known_size(camera(rotate=90, width=240)) == (240, 320)
