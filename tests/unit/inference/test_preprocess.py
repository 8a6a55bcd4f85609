import hashlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.inference.measure import picture
from skerry.inference.placement import Placement, place
from skerry.inference.preprocess import Preprocessor
from skerry.models.manifest import Input
from skerry.settings import parse


def _spec(**changes: Any) -> Input:
    return parse(Input, {"name": "x", "width": 2, "height": 2, **changes}, "test")


def _run(pixels: np.ndarray, **changes: Any) -> np.ndarray:
    prepare = Preprocessor(_spec(**changes))
    prepare(pixels)
    return prepare.tensor


FOUR = np.array([[[10, 20, 30], [11, 21, 31]], [[12, 22, 32], [255, 0, 128]]], np.uint8)
"""2 x 2 pixels, BGR."""


def test_pixels_of_the_right_size_pass_through_unchanged() -> None:
    assert _run(FOUR).tolist() == [[[[10, 11], [12, 255]], [[20, 21], [22, 0]], [[30, 31], [32, 128]]]]


def test_rgb_reverses_the_channels_before_mean_and_scale() -> None:
    tensor = _run(FOUR, colour="rgb", mean=[30, 20, 10], scale=[2, 4, 8])
    assert tensor[0, 0].tolist() == [[0, 0.5], [1, 49]]  # red: (30 - 30) / 2, ...
    assert tensor[0, 1].tolist() == [[0, 0.25], [0.5, -5]]
    assert tensor[0, 2].tolist() == [[0, 0.125], [0.25, 30.625]]


def test_every_grey_level_is_rounded_once() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.repeat(levels[:, :, None], 3, axis=2)
    tensor = _run(pixels, width=16, height=16, mean=[123.675], scale=[58.395])
    exact = ((np.arange(256, dtype=np.float64) - 123.675) / 58.395).astype(np.float32)
    assert tensor[0, 1].reshape(-1).tobytes() == exact.tobytes()


def test_nhwc_keeps_pixels_together() -> None:
    assert _run(FOUR, layout="nhwc", dtype="uint8").tolist() == [FOUR.tolist()]
    assert np.array_equal(_run(FOUR, layout="nhwc", scale=[2]), FOUR[None] / np.float32(2))


def test_grey_frames_fill_every_channel() -> None:
    tensor = _run(FOUR[:, :, 0], colour="rgb")
    assert tensor[0].tolist() == [FOUR[:, :, 0].tolist()] * 3


def test_colour_becomes_grey_by_luma() -> None:
    """OpenCV's BT.601 in fixed point; source: OpenCV, "Color conversions", RGB to GRAY."""
    wanted = np.round(FOUR @ np.array([0.114, 0.587, 0.299]))
    assert np.abs(_run(FOUR, colour="gray")[0, 0] - wanted).max() <= 1
    assert _run(FOUR[:, :, 1], colour="gray")[0, 0].tolist() == FOUR[:, :, 1].tolist()


def test_linear_halving_is_the_mean_of_four() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, :2] = [[[0], [4]], [[8], [12]]]
    assert _run(pixels)[0, 0].tolist() == [[6, 0], [0, 0]]


def test_nearest_invents_no_value() -> None:
    tensor = _run(FOUR, width=5, height=7, interpolation="nearest")
    assert set(np.unique(tensor[0, 0])) == {10, 11, 12, 255}


def test_area_is_the_mean_of_what_a_pixel_covers() -> None:
    pixels = np.arange(36, dtype=np.uint8).reshape(6, 6, 1).repeat(3, axis=2)
    assert _run(pixels, interpolation="area")[0, 0].tolist() == [[7, 10], [25, 28]]


def test_letterbox_centres_and_pads() -> None:
    pixels = np.full((2, 4, 3), 200, np.uint8)
    prepare = Preprocessor(_spec(width=4, height=6, resize="letterbox", pad=7))
    assert prepare(pixels) == Placement(0, 2, 4, 2, 4, 6)
    assert prepare.tensor[0, 0].tolist() == [[7] * 4, [7] * 4, [200] * 4, [200] * 4, [7] * 4, [7] * 4]


def test_a_new_frame_size_leaves_nothing_of_the_old_one() -> None:
    prepare = Preprocessor(_spec(width=8, height=8, resize="letterbox", pad=0))
    prepare(np.full((8, 4, 3), 255, np.uint8))
    prepare(np.full((4, 8, 3), 255, np.uint8))
    fresh = Preprocessor(_spec(width=8, height=8, resize="letterbox", pad=0))
    fresh(np.full((4, 8, 3), 255, np.uint8))
    assert np.array_equal(prepare.tensor, fresh.tensor)


def test_frames_of_a_batch_do_not_touch_each_other() -> None:
    prepare = Preprocessor(_spec(), batch=2)
    prepare(FOUR, 1)
    assert not prepare.tensor[0].any()
    prepare(FOUR[::-1], 0)
    assert np.array_equal(prepare.tensor[1], _run(FOUR)[0])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_read_only_view_with_strides_is_enough(layout: str) -> None:
    wide = picture(40, 20)
    view = wide[2:18, 4:36]
    view.flags.writeable = False
    assert np.array_equal(
        _run(view, width=16, height=8, layout=layout), _run(view.copy(), width=16, height=8, layout=layout)
    )


def _weave(width: int, height: int) -> np.ndarray:
    """A picture by arithmetic alone, so that no random generator's version matters."""
    y, x, c = np.indices((height, width, 3))
    return ((x * 7 + y * 13 + c * 31) ^ (x * y // (c + 5))).astype(np.uint8)


GOLDEN = {
    ("stretch", "linear", "bgr"): "88e406660b2fb896",
    ("stretch", "nearest", "rgb"): "602d4c167e8a9ed9",
    ("letterbox", "linear", "rgb"): "4ebc5b6c06d08ba1",
}
"""sha256 of the tensor's bytes: exact, no tolerance.

The same with OpenCV 4.10 and 5.0, with AVX2 and IPP and without."""


@pytest.mark.parametrize(("resize", "interpolation", "colour"), GOLDEN)
def test_tensor_is_the_golden_one_to_the_bit(resize: str, interpolation: str, colour: str) -> None:
    tensor = _run(
        _weave(640, 360), width=320, height=200, resize=resize, interpolation=interpolation,
        colour=colour, mean=[104, 117, 123], scale=[58.4, 57.1, 57.4],
    )  # fmt: skip
    seen = hashlib.sha256(tensor.tobytes()).hexdigest()[:16]
    assert seen == GOLDEN[resize, interpolation, colour]


def test_linear_is_within_one_level_of_opencvs_default() -> None:
    """Models are trained with the default, so the exact variant must not be something else."""
    pixels = picture(640, 360)
    ours = _run(pixels, width=320, height=192)[0].transpose(1, 2, 0)
    assert np.abs(ours - cv2.resize(pixels, (320, 192)).astype(np.float32)).max() <= 1


@given(
    width=st.integers(1, 4000), height=st.integers(1, 4000),
    input_width=st.integers(1, 1000), input_height=st.integers(1, 1000),
)  # fmt: skip
def test_letterbox_fits_and_boxes_find_their_way_back(
    width: int, height: int, input_width: int, input_height: int
) -> None:
    at = place(width, height, input_width, input_height, "letterbox")
    assert 0 <= at.left <= at.left + at.width <= input_width
    assert 0 <= at.top <= at.top + at.height <= input_height
    assert at.width == input_width or at.height == input_height
    corners = np.array([[at.left, at.top, at.left + at.width, at.top + at.height]], np.float32)
    size = np.array([input_width, input_height] * 2, np.float32)
    assert np.allclose(at.to_frame(corners / size), [[0, 0, 1, 1]], atol=1e-3)


def test_boxes_are_clipped_to_the_frame() -> None:
    at = place(200, 100, 100, 100, "letterbox")  # the frame fills y 25 to 75
    boxes = np.array([[-0.5, 0.0, 0.5, 0.5], [0.25, 0.5, 2.0, 1.0]], np.float32)
    assert at.to_frame(boxes).tolist() == [[0, 0, 0.5, 0.5], [0.25, 0.5, 1, 1]]
