"""Snapshots: only as much of a picture as the camera's setting allows, and never more than fits."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.capture import snapshot
from skerry.capture.settings import Camera
from skerry.commands import MOST_ANSWER_BYTES, Snapshot
from skerry.errors import SkerryError
from skerry.frames import RingWriter
from skerry.messages import FrameRef
from skerry.remote import Refused
from skerry.settings import parse

SCENE = {"kind": "synthetic"}


class Still:
    """A camera whose frames the test writes."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.camera = parse(Camera, {"name": "gate", "source": SCENE, **options}, "test")
        self.newest: FrameRef | None = None
        self.state = "live"
        self.ring = RingWriter.create(folder, "gate", 6, 1920 * 1080 * 3)
        self._number = 0

    def write(self, pixels: np.ndarray) -> None:
        slot, generation = self.ring.write(pixels)
        self._number += 1
        self.newest = FrameRef(
            camera="gate", number=self._number, time="2026-01-01T00:00:00.000Z", captured_ns=1, media_ns=0,
            ring=self.ring.name, slot=slot, generation=generation, width=pixels.shape[1],
            height=pixels.shape[0], keep=False,
        )  # fmt: skip


@pytest.fixture
def cameras(tmp_path: Path) -> Iterator[Any]:
    made: list[Still] = []

    def make(**options: Any) -> Still:
        made.append(Still(tmp_path, **options))
        return made[-1]

    yield make
    for still in made:
        still.ring.close()


def shot(camera: Still, width: int = 640) -> dict[str, Any]:
    return snapshot.answer(Snapshot(camera="gate", width=width), [camera], camera.ring.path.parent)


def seen(answer: dict[str, Any]) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(answer["image"]), np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape[:2] == (answer["height"], answer["width"])
    return pixels


def checks(width: int, height: int, size: int) -> np.ndarray:
    """A chequered picture."""
    y, x = np.mgrid[:height, :width]
    return np.repeat((((x // size + y // size) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def test_the_newest_picture_is_answered_with_its_time_and_size(cameras):
    camera = cameras(snapshots="allowed")
    camera.write(np.zeros((120, 160, 3), np.uint8))
    camera.write(np.full((120, 160, 3), 200, np.uint8))
    answer = shot(camera)
    assert (answer["camera"], answer["number"], answer["time"]) == ("gate", 2, "2026-01-01T00:00:00.000Z")
    assert (answer["width"], answer["height"], answer["blurred"], answer["state"]) == (
        160,
        120,
        False,
        "live",
    )
    assert abs(int(seen(answer).mean()) - 200) <= 2


@pytest.mark.parametrize(("asked", "got"), [(64, 64), (640, 640), (1920, 800)])
def test_picture_is_as_wide_as_was_asked_for_but_no_wider_than_it_is(cameras, asked, got):
    camera = cameras(snapshots="allowed")
    camera.write(np.full((600, 800, 3), 90, np.uint8))
    answer = shot(camera, asked)
    assert (answer["width"], answer["height"]) == (got, got * 600 // 800)


def test_picture_that_is_too_large_is_made_smaller_until_it_fits(cameras):
    camera = cameras(snapshots="allowed")
    camera.write(noise(1920, 1080))
    answer = shot(camera, 1920)
    assert len(answer["image"]) <= MOST_ANSWER_BYTES - 1024
    assert 200 <= answer["width"] < 1920
    assert abs(answer["width"] / answer["height"] - 1920 / 1080) < 0.05


def test_picture_that_fits_at_no_size_is_an_error():
    with pytest.raises(SkerryError, match="expected a picture of at most 50 bytes"):
        snapshot.picture(noise(64, 64), 64, 50, blurred=False)


def test_never_is_answered_with_403_and_the_setting(cameras):
    camera = cameras()
    camera.write(noise(160, 120))
    with pytest.raises(Refused, match="`snapshots` is never") as refused:
        shot(camera)
    assert refused.value.status == 403


def test_camera_without_a_picture_yet_is_answered_with_503(cameras):
    camera = cameras(snapshots="allowed")
    camera.state = "starting"
    with pytest.raises(Refused, match="has no picture yet, it is starting") as refused:
        shot(camera)
    assert refused.value.status == 503


def test_picture_whose_ring_is_gone_is_answered_with_503(cameras):
    camera = cameras(snapshots="allowed")
    camera.write(noise(160, 120))
    camera.ring.path.unlink()
    with pytest.raises(Refused, match="gone before it was copied") as refused:
        shot(camera)
    assert refused.value.status == 503


def test_unknown_camera_is_answered_with_404(cameras):
    camera = cameras(snapshots="allowed")
    with pytest.raises(Refused, match="expected one of gate, got 'gaet'") as refused:
        snapshot.answer(Snapshot(camera="gaet"), [camera], camera.ring.path.parent)
    assert refused.value.status == 404


def test_frame_that_is_written_over_is_never_seen_torn(cameras):
    camera = cameras(snapshots="allowed")
    camera.write(np.zeros((120, 160, 3), np.uint8))
    first = camera.newest
    for _ in range(6):
        camera.write(np.full((120, 160, 3), 255, np.uint8))
    last, tries = camera.newest, []

    class Late:
        """Hands out a reference that is too old, the first time."""

        def __init__(self) -> None:
            self.camera = camera.camera
            self.state = "live"

        @property
        def newest(self) -> FrameRef | None:
            tries.append(1)
            return first if len(tries) == 1 else last

    answer = snapshot.answer(Snapshot(camera="gate"), [Late()], camera.ring.path.parent)
    assert (answer["number"], len(tries)) == (7, 2)
    assert seen(answer).min() > 250


SQUARE = [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]]


@pytest.mark.parametrize("setting", ["masks", "more_masks"])
@pytest.mark.parametrize("allowed", ["allowed", "blurred"])
def test_masks_that_were_set_after_the_frame_are_painted_too(cameras, setting, allowed):
    camera = cameras(snapshots=allowed, **{setting: [SQUARE]})
    camera.write(np.full((480, 640, 3), 255, np.uint8))
    pixels = seen(shot(camera))
    assert pixels[:, 370:].max() < 30
    assert pixels[:, :270].min() > 220


def test_snapshot_leaves_the_frame_itself_as_it_is(cameras):
    camera = cameras(snapshots="allowed", masks=[SQUARE])
    camera.write(np.full((480, 640, 3), 255, np.uint8))
    shot(camera)
    start = camera.ring._layout.offset(0)
    assert camera.ring._bytes[start : start + 480 * 640 * 3].min() == 255


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1080, 1920), (1920, 120), (64, 1024)])
def test_blurred_picture_has_no_more_than_32_pixels_worth_of_detail(cameras, width, height):
    """A chequered picture of twice as many fields is grey."""
    camera = cameras(snapshots="blurred")
    cell = max(width, height) // 64
    smooth = np.full((height, width, 3), 127, np.uint8)
    detailed = smooth.astype(np.int16)
    y, x = np.mgrid[:height, :width]
    detailed += np.where((x // cell + y // cell) % 2 == 0, 100, -100)[..., None]
    camera.write(smooth)
    plain = shot(camera, 320)
    camera.write(np.clip(detailed, 0, 255).astype(np.uint8))
    answer = shot(camera, 320)
    assert answer["blurred"]
    assert np.abs(seen(plain).astype(int) - seen(answer).astype(int)).max() <= 6


@given(st.integers(16, 400), st.integers(16, 400), st.integers(64, 400), st.booleans())
def test_any_size_is_answered(width, height, asked, blurred):
    made = snapshot.picture(np.zeros((height, width, 3), np.uint8), asked, 90_000, blurred=blurred)
    assert made.width <= min(asked, width)
    assert made.height >= 1
