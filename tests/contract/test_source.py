"""What every source promises, over all that need no hardware."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from footage import SIZE, number_of, write_images, write_video
from mjpeg_server import MjpegCamera
from needs import rtsp as needs_rtsp
from rtsp_camera import RtspCamera
from skerry.capture.feed import Feed, NoFrames, Picture, Unreachable, open_feed
from skerry.capture.geometry import Geometry
from skerry.capture.settings import (
    Camera,
    FileSource,
    ImagesSource,
    MjpegSource,
    RtspSource,
    Source,
    SyntheticSource,
    V4l2Source,
)
from skerry.capture.video import Target, VideoFeed
from skerry.errors import Unavailable

COUNT = 12
"""Frames of the sources that end."""


ENDING = ["mp4", "mp4-fast", "mkv", "images", "synthetic"]
NUMBERED = ["mp4", "mp4-fast", "mkv", "images", "mjpeg"]
"""Their pictures carry their number."""

ending = pytest.mark.parametrize("case", ENDING, indirect=True)
numbered = pytest.mark.parametrize("case", NUMBERED, indirect=True)


@dataclass
class Case:
    source: Source


@pytest.fixture(scope="session")
def footage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    write_video(folder / "film.mp4", COUNT)
    write_video(folder / "film.mkv", COUNT)
    write_images(folder / "images", COUNT)
    return folder


@pytest.fixture(params=ENDING + NUMBERED[-1:] + [pytest.param("rtsp", marks=needs_rtsp)])
def case(request, footage) -> Iterator[Case]:
    match request.param:
        case "mp4" | "mkv" as kind:
            yield Case(FileSource(path=str(footage / f"film.{kind}")))
        case "mp4-fast":
            yield Case(FileSource(path=str(footage / "film.mp4"), pace="fast"))
        case "images":
            yield Case(ImagesSource(folder=str(footage / "images")))
        case "synthetic":
            yield Case(SyntheticSource(fps=10, seconds=COUNT / 10, width=SIZE[0], height=SIZE[1]))
        case "mjpeg":
            with MjpegCamera(fps=50) as camera:
                yield Case(MjpegSource(url=camera.url))
        case "rtsp":
            with RtspCamera() as camera:
                yield Case(RtspSource(url=camera.url))


@pytest.fixture
def feed(case) -> Iterator[Feed]:
    opened = open_feed(case.source, stall_s=10)
    yield opened
    opened.close()


def pixels_of(picture: Picture, **options) -> np.ndarray:
    """What is captured of a picture; every byte of `out` must be written."""
    camera = Camera(name="x", source=SyntheticSource(), **options)
    geometry = Geometry.of(camera, picture.width, picture.height, picture.upright)
    one, other = np.full(geometry.shape, 77, np.uint8), np.full(geometry.shape, 178, np.uint8)
    picture.into(one, geometry)
    picture.into(other, geometry)
    assert (one == other).all(), "not every pixel was written"
    return one


def read(feed: Feed, count: int) -> list[Picture]:
    pictures = list(itertools.islice(iter(feed.read, None), count))
    assert len(pictures) == count
    return pictures


def test_pictures_have_the_sources_size(feed):
    for picture in read(feed, 3):
        assert (picture.width, picture.height) == SIZE
        assert pixels_of(picture).shape == (SIZE[1], SIZE[0], 3)


@numbered
def test_frames_come_in_order_and_none_is_left_out(feed):
    numbers = [number_of(pixels_of(picture)) for picture in read(feed, COUNT)]
    assert numbers == list(range(COUNT))


@numbered
def test_colours_are_blue_green_red(feed):
    lower = pixels_of(read(feed, 1)[0])[SIZE[1] * 3 // 4]
    for channel in range(3):
        colour = lower[channel * SIZE[0] // 3 + SIZE[0] // 6].astype(int)
        want = [0, 0, 0]
        want[channel] = 220
        assert np.abs(colour - want).max() < 25, f"channel {channel}: {colour}"


def test_media_time_rises(feed):
    times = [picture.media_ns for picture in read(feed, 10)]
    if None in times:
        assert set(times) == {None}  # a stream without timestamps never has one
        return
    assert all(b > a for a, b in itertools.pairwise(times))


@ending
def test_media_time_is_the_streams_own(feed):
    assert [p.media_ns for p in read(feed, COUNT)] == [n * 100_000_000 for n in range(COUNT)]


@ending
def test_a_source_that_ends_says_so_and_goes_on_saying_it(feed):
    read(feed, COUNT)
    assert feed.read() is None
    assert feed.read() is None
    assert (feed.corrupt, feed.note) == (0, "")


def test_region_rotation_and_size_mean_the_same_for_every_source(feed):
    picture = read(feed, 3)[-1]
    picture.load()
    plain = pixels_of(picture)
    got = pixels_of(picture, roi=(0.25, 0.0, 1.0, 0.5), rotate=90, width=60)
    cut = plain[: SIZE[1] // 2, SIZE[0] // 4 :]
    want = np.rot90(cv2.resize(cut, (120, 60), interpolation=cv2.INTER_AREA), -1)
    assert got.shape == want.shape == (120, 60, 3)
    assert np.abs(got.astype(int) - want).mean() < 6


def test_region_alone_takes_the_very_pixels(feed):
    picture = read(feed, 3)[-1]
    picture.load()
    plain, cut = pixels_of(picture), pixels_of(picture, roi=(0.25, 0.25, 0.75, 0.75))
    h, w = SIZE[1] // 4, SIZE[0] // 4
    # at the edge chroma is interpolated from other neighbours
    assert np.abs(cut[2:-2, 2:-2].astype(int) - plain[h + 2 : 3 * h - 2, w + 2 : 3 * w - 2]).max() <= 3


@numbered
def test_pictures_stay_valid_while_later_ones_are_read(feed):
    pictures = read(feed, 6)
    assert [number_of(pixels_of(p)) for p in pictures] == list(range(6))


def test_closing_twice_is_harmless(feed):
    read(feed, 1)
    feed.close()
    feed.close()


def test_interrupt_from_another_thread_is_harmless(feed):
    read(feed, 1)
    feed.interrupt()


@pytest.mark.parametrize("kind", ["film.mp4", "images"])
def test_a_looped_source_begins_again_and_its_time_goes_on(footage, kind):
    path = str(footage / kind)
    source = FileSource(path=path, loop=True) if "." in kind else ImagesSource(folder=path, loop=True)
    feed = open_feed(source, 5)
    pictures = read(feed, 3 * COUNT)
    assert [p.media_ns for p in pictures] == [n * 100_000_000 for n in range(3 * COUNT)]
    assert number_of(pixels_of(pictures[COUNT])) == 0
    feed.close()


MISSING = [
    FileSource(path="/nowhere/film.mp4"),
    FileSource(path="rtsp://127.0.0.1:1/not-a-path"),
    FileSource(path="http://127.0.0.1:1/not-a-path"),
    ImagesSource(folder="/nowhere"),
    RtspSource(url="rtsp://me:secret@127.0.0.1:1/cam"),
    MjpegSource(url="http://me:secret@127.0.0.1:1/video"),
    MjpegSource(url="http://127.0.0.1:1/video", user="me", password_file="/nowhere/password"),
    V4l2Source(device="/dev/video99"),
    V4l2Source(device="/dev/null"),
    V4l2Source(device="/dev/shm"),
]


@pytest.mark.parametrize("source", MISSING, ids=lambda s: s.__struct_config__.tag)
def test_what_is_not_there_is_unreachable_and_said_without_secrets(source):
    with pytest.raises(Unreachable) as caught:
        open_feed(source, 1)
    assert "secret" not in str(caught.value)
    assert ": " in str(caught.value)


def test_file_without_a_frame_says_so(tmp_path, footage):
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_text("this is no video\n" * 1000)
    for path in (empty, text):
        with pytest.raises(NoFrames, match=str(path)):
            open_feed(FileSource(path=str(path)), 1)


def test_video_whose_pictures_cannot_be_decoded_has_no_frames(tmp_path):
    path = write_video(tmp_path / "film.mkv", COUNT)
    content = bytearray(path.read_bytes())
    start = content.index(b"\x1f\x43\xb6\x75")  # the first Matroska cluster: headers before it stay whole
    content[start + 64 : -64] = bytes(len(content) - start - 128)
    path.write_bytes(content)
    feed = open_feed(FileSource(path=str(path), loop=True), 1)
    with pytest.raises(NoFrames):
        feed.read()
    feed.close()


def test_damage_in_the_middle_is_counted_and_decoding_goes_on(tmp_path):
    path = write_video(tmp_path / "film.mp4", 100)
    content = bytearray(path.read_bytes())
    media = content.index(b"mdat")
    first = media + (len(content) - media) * 2 // 5
    content[first : first + len(content) // 10] = np.random.default_rng(3).bytes(len(content) // 10)
    path.write_bytes(content)
    feed = open_feed(FileSource(path=str(path)), 1)
    times = [p.media_ns for p in iter(feed.read, None)]
    assert feed.corrupt > 0
    assert 50 < len(times) < 100
    assert times[-1] == 99 * 100_000_000
    feed.close()


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
def test_file_that_was_cut_off_ends_and_says_where(tmp_path, kind):
    path = write_video(tmp_path / f"film.{kind}", 100)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    feed = open_feed(FileSource(path=str(path)), 1)
    frames = sum(1 for _ in iter(feed.read, None))
    assert 10 < frames < 90
    assert "expected 10.0 s of video, it ends at" in feed.note
    feed.close()


def test_file_that_lost_its_index_is_none(tmp_path):
    path = write_video(tmp_path / "film.mp4", 100, faststart=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NoFrames, match="none that FFmpeg can read"):
        open_feed(FileSource(path=str(path)), 1)


def test_damaged_images_are_left_out_and_counted(tmp_path):
    folder = write_images(tmp_path, 4)
    (folder / "0001.png").write_bytes(b"no picture")
    (folder / "0002.png").write_bytes(b"")
    feed = open_feed(ImagesSource(folder=str(folder)), 1)
    assert [number_of(pixels_of(p)) for p in iter(feed.read, None)] == [0, 3]
    assert feed.corrupt == 2


def test_folder_of_damaged_images_has_no_frames_even_when_looped(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    feed = open_feed(ImagesSource(folder=str(tmp_path), loop=True), 1)
    with pytest.raises(NoFrames):
        feed.read()


def test_folder_without_images_has_no_frames(tmp_path):
    with pytest.raises(NoFrames):
        open_feed(ImagesSource(folder=str(tmp_path)), 1)


def test_film_that_a_phone_took_upright_is_upright(tmp_path):
    path = write_video(tmp_path / "film.mp4", 3)
    content = path.read_bytes()
    matrix = content.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2: version 0 has 40 bytes before it
    unity, quarter = 0x10000, [0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000]
    assert content[matrix : matrix + 4] == unity.to_bytes(4, "big")
    turned = b"".join(word.to_bytes(4, "big") for word in quarter)
    path.write_bytes(content[:matrix] + turned + content[matrix + 36 :])
    feed = open_feed(FileSource(path=str(path)), 1)
    picture = read(feed, 2)[-1]
    assert picture.upright == 90
    got = pixels_of(picture)
    assert got.shape == (SIZE[0], SIZE[1], 3)
    assert number_of(np.rot90(got, 1)) == 1
    feed.close()


def test_the_same_scene_is_drawn_every_time():
    source = SyntheticSource(seed=3, fps=5, seconds=1, width=160, height=120)
    first, second = open_feed(source, 1), open_feed(source, 1)
    for _ in range(5):
        one, other = first.read(), second.read()
        assert one is not None
        assert other is not None
        assert (pixels_of(one) == pixels_of(other)).all()
    assert first.read() is None


@pytest.mark.timeout(60)
def test_a_silent_camera_ends_the_read_in_time():
    with MjpegCamera(fps=50) as camera:
        feed = open_feed(MjpegSource(url=camera.url, timeout_s=1), stall_s=1)
        read(feed, 2)
        camera.frozen.set()
        began = time.monotonic()
        with pytest.raises(Unavailable, match="none in time"):
            read(feed, 1000)
        assert time.monotonic() - began < 30
        feed.close()


def test_login_reaches_the_camera_and_a_wrong_one_is_refused(tmp_path):
    (tmp_path / "password").write_text("p@ss:w/rd\n")
    (tmp_path / "wrong").write_text("other\n")
    with MjpegCamera(login="me:p@ss:w/rd") as camera:
        feed = open_feed(MjpegSource(url=camera.url, user="me", password_file=str(tmp_path / "password")), 5)
        read(feed, 1)
        feed.close()
        with pytest.raises(Unreachable, match=r"401|[Uu]nauthori"):
            open_feed(MjpegSource(url=camera.url, user="me", password_file=str(tmp_path / "wrong")), 5)


def test_live_decoding_holds_no_frame_back(tmp_path):
    path = write_video(tmp_path / "film.mp4", 20, bframes=0)
    feed = VideoFeed(Target(url=f"file:{path}", name="film", live=True, threads="SLICE"))
    taken, packets = 0, feed._packets

    def counted():
        nonlocal taken
        for packet in packets():
            taken += 1
            yield packet

    feed._packets = counted
    for n in range(1, 11):
        read(feed, 1)
        assert taken == n
    feed.close()


@needs_rtsp
def test_rtsp_login_reaches_the_camera_and_a_wrong_one_is_refused(tmp_path):
    (tmp_path / "password").write_text("p@ss:w/rd\n")
    with RtspCamera(0, "--login", "me:p@ss:w/rd") as camera:
        feed = open_feed(RtspSource(url=camera.url, user="me", password_file=str(tmp_path / "password")), 5)
        read(feed, 1)
        feed.close()
        with pytest.raises(Unreachable):
            open_feed(RtspSource(url=camera.url), 5)
