"""Capture's settings, and what a site checker says of them before anything runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from skerry.capture.check import camera_problems
from skerry.capture.settings import Camera, is_fast, is_live, safe_url, url_with_login
from skerry.settings import parse, problems

FILE = {"kind": "file", "path": "/nowhere/film.mp4"}


def camera(source: dict, **options) -> Camera:
    return parse(Camera, {"name": "gate", "source": source, **options}, "test")


@pytest.mark.parametrize(
    "source",
    [
        FILE,
        {"kind": "rtsp", "url": "rtsp://10.0.0.7:554/stream1", "user": "me", "password_file": "/run/pw"},
        {"kind": "rtsp", "url": "rtsps://camera.local/stream"},
        {"kind": "v4l2", "device": "/dev/video0", "width": 1280, "height": 720, "fps": 30},
        {"kind": "mjpeg", "url": "http://10.0.0.8/video.mjpg", "timeout_s": 3},
        {"kind": "images", "folder": "pictures", "fps": 5, "loop": True, "pace": "fast"},
        {"kind": "synthetic", "scene": "belt", "seed": 7, "seconds": 20},
    ],
)
def test_every_kind_of_source_parses(source):
    assert camera(source).source.__struct_config__.tag == source["kind"]


@pytest.mark.parametrize(
    ("change", "path", "text"),
    [
        ({"source": {"kind": "rtsp", "url": "http://x/"}}, "$.source.url", "expected text that matches"),
        ({"source": {"kind": "rtsp", "url": "rtsp:///x"}}, "$.source.url", "expected text that matches"),
        ({"source": {"kind": "mjpeg", "url": "rtsp://x/"}}, "$.source.url", "expected text that matches"),
        ({"source": {"kind": "rtps", "url": "rtsp://x/"}}, "$.source.kind", "did you mean 'rtsp'?"),
        ({"source": {"kind": "file", "path": ""}}, "$.source.path", "expected"),
        ({"source": {"kind": "file"}}, "$.source.path", "got nothing"),
        ({"source": {**FILE, "pase": "fast"}}, "$.source.pase", "did you mean 'pace'?"),
        ({"source": {"kind": "v4l2", "device": "video0"}}, "$.source.device", "expected"),
        ({"fps": 0}, "$.fps", "expected a number above 0"),
        ({"fps": -5}, "$.fps", "expected a number above 0"),
        ({"width": 5}, "$.width", "expected a whole number from 16"),
        ({"rotate": 45}, "$.rotate", "expected one of 0, 90, 180, 270, got 45"),
        ({"roi": [0, 0, 1.2, 1]}, "$.roi[2]", "from 0 to 1"),
        ({"roi": [0, 0, 1]}, "$.roi", "expected a list of 4"),
        ({"masks": [[[0, 0], [1, 1]]]}, "$.masks[0]", "expected at least 3"),
        ({"masks": [[[0, 0], [1, 1], [2, 0]]]}, "$.masks[0][2][0]", "from 0 to 1"),
        ({"stall_s": 0}, "$.stall_s", "above 0"),
        ({"name": "two words"}, "$.name", "expected a name"),
        ({"backoff": {"factor": 0.5}}, "$.backoff.factor", "1"),
    ],
)
def test_wrong_setting_names_its_path(change, path, text):
    found = problems(Camera, {"name": "gate", "source": FILE, **change})
    assert [p for p, _ in found] == [path]
    assert text in found[0][1]


def test_all_wrong_settings_are_named_at_once():
    raw = {"name": "gate", "source": {"kind": "file"}, "fps": -1, "rotate": 1, "color": "red"}
    assert {p for p, _ in problems(Camera, raw)} == {"$.source.path", "$.fps", "$.rotate", "$.color"}


def test_missing_file_is_a_problem_with_its_path():
    ((path, text),) = camera_problems(camera(FILE), "$.cameras[3]")
    assert path == "$.cameras[3].source.path"
    assert text == "expected a video file, found nothing at /nowhere/film.mp4"


def test_empty_file_is_a_problem(tmp_path):
    (tmp_path / "film.mp4").touch()
    found = camera_problems(camera({"kind": "file", "path": str(tmp_path / "film.mp4")}), "$")
    assert "got an empty one" in found[0][1]


def test_folder_as_a_file_and_file_as_a_folder_are_problems(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"x")
    assert camera_problems(camera({"kind": "file", "path": str(tmp_path)}), "$")
    assert camera_problems(camera({"kind": "images", "folder": str(tmp_path / "film.mp4")}), "$")


def test_folder_without_pictures_is_a_problem_and_with_one_is_none(tmp_path):
    source = {"kind": "images", "folder": str(tmp_path)}
    assert "found none" in camera_problems(camera(source), "$")[0][1]
    (tmp_path / "a.PNG").touch()
    assert camera_problems(camera(source), "$") == []


def test_missing_device_and_password_file_are_problems():
    assert camera_problems(camera({"kind": "v4l2", "device": "/dev/video99"}), "$")[0][0] == "$.source.device"
    login = {"kind": "rtsp", "url": "rtsp://x/y", "user": "u", "password_file": "/nowhere"}
    assert camera_problems(camera(login), "$")[0][0] == "$.source.password_file"


def test_region_without_area_and_mask_without_area_are_problems(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"x")
    source = {"kind": "file", "path": str(tmp_path / "film.mp4")}
    bent = camera(source, roi=[0.5, 0, 0.5, 1], masks=[[[0, 0], [0, 0], [1, 1]]])
    assert [path for path, _ in camera_problems(bent, "$")] == ["$.roi", "$.masks[0]"]


def test_only_files_wait_for_results_and_only_cameras_are_live():
    assert is_fast(camera({**FILE, "pace": "fast"}).source)
    assert not is_fast(camera(FILE).source)
    assert not is_live(camera(FILE).source)
    assert is_live(camera({"kind": "rtsp", "url": "rtsp://x/y"}).source)


def test_passwords_never_reach_a_message():
    url = url_with_login("rtsp://camera:554/a?b=c", "me@home", "p:w/d@#")
    assert url == "rtsp://me%40home:p%3Aw%2Fd%40%23@camera:554/a?b=c"
    assert safe_url(url) == "rtsp://camera:554/a?b=c"
    assert safe_url("http://u:p@h/x") == "http://h/x"


def test_settings_and_checks_load_neither_opencv_nor_ffmpeg_nor_numpy():
    code = (
        "import sys, skerry.capture.settings, skerry.capture.check\n"
        "sys.exit(str({'cv2', 'av', 'numpy'} & set(sys.modules) or 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or done.stderr.strip() == "0", done.stderr
