"""Samples: what is left in a picture, and a folder that is bounded in bytes and in age."""

import errno
import json
from itertools import product
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from skerry import durable
from skerry.clock import utc
from skerry.inference.samples import About, Shelf, encoded, shown, suggestions
from skerry.messages import Detection

WIDTH, HEIGHT = 320, 240
BOLT = Detection("bolt", 0.7, (0.1, 0.1, 0.3, 0.3))
PERSON = Detection("person", 0.9, (0.25, 0.25, 0.5, 0.9))
WHOLE = Detection("good", 0.9, (0.0, 0.0, 1.0, 1.0))
FORMS = ("crop", "blur", "full")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Every pixel tells something: noise."""
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def inside(box: tuple[float, float, float, float]) -> tuple[slice, slice]:
    x1, y1, x2, y2 = box
    return slice(round(y1 * HEIGHT), round(y2 * HEIGHT)), slice(round(x1 * WIDTH), round(x2 * WIDTH))


def told(out: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Where the picture can be told from what is left: noise is not hit by chance in three channels."""
    return (out == picture).all(axis=-1)


def test_a_crop_has_the_objects_and_the_mean_colour_in_the_place_of_all_else(picture):
    seen = shown(picture, [BOLT], "crop")
    assert seen is not None
    assert told(seen.pixels, picture)[inside(BOLT.box)].all()
    x1, y1, x2, y2 = BOLT.box
    rest = np.ones((HEIGHT, WIDTH), bool)
    rest[inside((x1 - 0.03, y1 - 0.03, x2 + 0.03, y2 + 0.03))] = False
    assert (seen.pixels[rest] == np.round(picture.mean(axis=(0, 1)))).all()


def test_nothing_is_kept_of_a_crop_without_objects(picture):
    assert shown(picture, [], "crop") is None
    assert shown(picture, [PERSON], "crop", conceal=("person",)) is None


def test_what_a_classifier_says_of_the_whole_picture_shows_none_of_it(picture):
    assert shown(picture, [WHOLE], "crop") is None
    blurred = shown(picture, [WHOLE], "blur")
    assert blurred is not None
    assert told(blurred.pixels, picture).mean() < 0.01
    assert blurred.objects == ()


def test_around_the_objects_of_a_blurred_picture_no_details_are_left(picture):
    seen = shown(picture, [BOLT], "blur")
    assert seen is not None
    assert told(seen.pixels, picture)[inside(BOLT.box)].all()
    assert told(seen.pixels, picture)[HEIGHT // 2 :].mean() < 0.01
    # What is left there is what a picture of 32 x 24 tells.
    small = cv2.resize(picture, (32, 24), interpolation=cv2.INTER_AREA)
    again = cv2.resize(seen.pixels, (32, 24), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - again)[13:].max() <= 60


@pytest.mark.parametrize("privacy", FORMS)
def test_a_camera_with_blurred_snapshots_has_details_in_no_form(picture, privacy):
    seen = shown(picture, [BOLT, PERSON], privacy, details=False)
    assert seen is not None
    assert told(seen.pixels, picture).mean() < 0.01


@pytest.mark.parametrize(("privacy", "order"), [*product(FORMS, ((0, 1), (1, 0)))])
def test_a_label_to_conceal_is_in_no_form_even_where_it_overlaps(picture, privacy, order):
    objects = [(BOLT, PERSON)[n] for n in order]
    seen = shown(picture, objects, privacy, conceal=("person",))
    assert seen is not None
    assert told(seen.pixels, picture)[inside(PERSON.box)].mean() < 0.01
    assert (seen.objects, seen.concealed) == ((BOLT,), 1)


def test_a_full_picture_is_the_picture_and_the_frame_is_left_as_it_was(picture):
    before = picture.copy()
    seen = shown(picture, [WHOLE], "full")
    assert seen is not None
    assert (seen.pixels == picture).all()
    assert seen.objects == (WHOLE,)
    for privacy in FORMS:
        shown(picture, [BOLT], privacy, details=False, conceal=("bolt",))
    assert (picture == before).all()


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (1, 1, 1, 1), (-1, -1, 3, 3), (0.5, 0.5, 0.2, 0.2)])
def test_odd_boxes_and_grey_pictures_are_no_failure(picture, box):
    for pixels, privacy in product((picture, picture[..., 0], picture[:1, :1]), FORMS):
        seen = shown(pixels, [Detection("bolt", 0.5, box)], privacy)
        if seen is not None:
            assert seen.pixels.shape == pixels.shape
            assert encoded(seen.pixels)[:2] == b"\xff\xd8"


def test_suggestions_have_boxes_in_pixels_as_coco_has_them():
    (found,) = suggestions([BOLT], WIDTH, HEIGHT)
    assert found.bbox == (32.0, 24.0, 64.0, 48.0)


# The folder


def about(number: int, erase_after: float = 1000.0, camera: str = "gate") -> About:
    return About(
        camera=camera, time=utc(0.0), number=number, model="parts@1.0.0", digest="d" * 64, labels=("bolt",),
        trigger="drift", why="drift: brightness", privacy="crop", details=True, width=8, height=6, objects=(),
        concealed=0, kept_at=utc(0.0), erase_after=utc(erase_after),
    )  # fmt: skip


SIZE = len(msgspec.json.encode(about(1))) + 1000
MANY = 10 * SIZE


def fill(shelf: Shelf, numbers: range, most_bytes: int = MANY, **said: float) -> None:
    for n in numbers:
        shelf.keep(f"{n:04}", about(n % 10, **said), bytes(1000), most_bytes=most_bytes)


def numbers_in(shelf: Shelf) -> list[str]:
    return [each.name for each in shelf.kept()]


def test_the_oldest_samples_go_where_there_are_too_many_bytes(tmp_path):
    shelf = Shelf(tmp_path / "samples")
    fill(shelf, range(25))
    assert numbers_in(shelf) == [f"{n:04}" for n in range(15, 25)]
    there = sum(path.stat().st_size for path in shelf.folder.iterdir())
    assert there == sum(each.size for each in shelf.kept()) <= MANY
    with pytest.raises(OSError, match="expected at most 900 bytes"):
        shelf.keep("big", about(1), bytes(1000), most_bytes=900)
    assert len(numbers_in(shelf)) == 10


def test_samples_go_when_their_time_has_come_whatever_the_settings_are_then(tmp_path):
    fill(Shelf(tmp_path), range(2), erase_after=100.0)
    fill(Shelf(tmp_path), range(2, 4), erase_after=200.0)
    shelf = Shelf(tmp_path)
    shelf.sweep(utc(99.0))
    assert len(numbers_in(shelf)) == 4
    shelf.sweep(utc(100.0))
    assert numbers_in(shelf) == ["0002", "0003"]
    shelf.sweep(utc(10_000.0))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_whole_sample_is_swept_away(tmp_path):
    shelf = Shelf(tmp_path)
    fill(shelf, range(1))
    (tmp_path / "half.jpg").write_bytes(b"a picture of which nobody knows how old it is")
    (tmp_path / "other.json").write_text(json.dumps({"schema": 1}))
    (tmp_path / "other.jpg.new").write_bytes(b"cut off")
    (tmp_path / "deep").mkdir()
    shelf.sweep(utc(0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.jpg", "0000.json", "deep"]


@pytest.mark.parametrize("at", [1, 2])
def test_a_disk_that_is_full_leaves_nothing_of_a_sample(tmp_path, monkeypatch, at):
    shelf = Shelf(tmp_path)
    fill(shelf, range(1))
    calls: list[Path] = []
    real = durable.replace

    def fails(path: Path, content: bytes) -> None:
        calls.append(path)
        real(path, content)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        fill(shelf, range(1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.jpg", "0000.json"]


def test_samples_leave_room_on_the_disk_for_everything_else(tmp_path):
    shelf = Shelf(tmp_path, free=lambda _: 64 * 1024 * 1024)
    with pytest.raises(OSError, match="No space"):
        fill(shelf, range(1))
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_on_the_device_may_look(tmp_path):
    shelf = Shelf(tmp_path / "samples")
    fill(shelf, range(1))
    assert shelf.folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in shelf.folder.iterdir())
