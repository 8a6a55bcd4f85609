"""The capture module on an in-memory bus, and as a process on a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import needs
from capture_site import Site, gate
from footage import SIZE, write_images, write_video
from needs import mosquitto as needs_mosquitto
from skerry.bus import MemoryBroker, MemoryBus
from skerry.capture import module
from skerry.capture.camera import CameraWorker
from skerry.capture.feed import ArrayPicture
from skerry.capture.module import run
from skerry.capture.settings import Camera
from skerry.capture.window import Consumers
from skerry.channels import FRAMES, METRICS
from skerry.errors import ConfigError, Unavailable
from skerry.frames import RingWriter
from skerry.ledger import read_tally
from skerry.service import Host
from skerry.testing import eventually, running

SCENE = {"kind": "synthetic", "width": 160, "height": 120, "fps": 30}


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="session")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "film.mp4", 60, fps=30)
    write_images(folder / "images", 20)
    return folder


def film(films: Path, **options) -> dict:
    return {"kind": "file", "path": str(films / "film.mp4"), **options}


def test_frames_are_numbered_densely_and_say_all_that_a_reader_needs(site):
    with running(run, site.settings(gate(SCENE)), site.bus) as host:
        eventually(lambda: len(site.refs) >= 10)
        eventually(lambda: host.condition == ("ready", ""))
    assert [ref.number for ref in site.refs] == list(range(1, len(site.refs) + 1))
    first = site.refs[0]
    assert (first.width, first.height, first.format, first.keep) == (160, 120, "bgr24", False)
    assert all(b.captured_ns > a.captured_ns for a, b in zip(site.refs, site.refs[1:], strict=False))
    assert [ref.media_ns for ref in site.refs[:3]] == [0, 33_333_333, 66_666_667]
    assert first.time.endswith("Z")


def test_numbers_go_on_after_a_restart(site):
    settings = site.settings(gate(SCENE))
    for _ in range(2):
        before = len(site.refs)
        with running(run, settings, site.bus):
            eventually(lambda before=before: len(site.refs) >= before + 3)
    assert [ref.number for ref in site.refs] == list(range(1, len(site.refs) + 1))
    assert read_tally(site.folder / "state" / "tally") == {"gate/captured": len(site.refs)}
    assert len({ref.ring for ref in site.refs}) == 2


def test_stopping_says_what_was_captured_and_leaves_no_file(site):
    with running(run, site.settings(gate(SCENE)), site.bus):
        eventually(lambda: len(site.refs) >= 3)
        assert len(list(site.frames.iterdir())) == 1
    assert (site.last().state, site.last().captured) == ("stopped", len(site.refs))
    assert site.states() == ["starting", "live", "stopped"]
    assert list(site.frames.iterdir()) == []


@pytest.mark.parametrize("kind", ["film.mp4", "images"])
def test_fast_source_gets_every_frame_resolved_and_ends(site, films, kind):
    site.numbers = True
    path = str(films / kind)
    source = {"kind": "file", "path": path} if "." in kind else {"kind": "images", "folder": path, "fps": 30}
    count = 60 if "." in kind else 20
    with running(run, site.settings(gate({**source, "pace": "fast"})), site.bus) as host:
        eventually(lambda: site.states() == ["starting", "live", "ended"])
        assert site.last().captured == count
        eventually(lambda: host.condition == ("ready", ""))
        host.refresh()
        assert host.telemetry.values()["skerry_frames_captured_total{camera=gate}"] == count
    assert site.shown == list(range(count))
    assert all(ref.keep for ref in site.refs)
    assert site.most_in_hand <= 4


def test_fast_source_waits_for_results_but_not_for_ever(site, films):
    site.resolve = False
    settings = site.settings(gate(film(films, pace="fast")), fast_wait_s=0.01)
    with running(run, settings, site.bus) as host:
        eventually(lambda: site.state() == "ended", 30)
        assert host.telemetry.values()["skerry_results_overdue_total{camera=gate}"] == 56
    assert len(site.refs) == 60


@pytest.mark.parametrize("last", ["inference", "decision"])
def test_fast_source_holds_its_frames_until_both_who_need_them_are_ready(site, films, last):
    settings = site.settings(gate(film(films, pace="fast")), consumer_wait_s=60)
    with running(run, settings, site.bus):
        site.say({"inference": "decision", "decision": "inference"}[last], "ready")
        site.say(last, "starting")
        eventually(lambda: site.said)
        eventually(lambda: any(t.name == "camera-gate" for t in threading.enumerate()))
        assert site.refs == []
        site.say(last, "ready")
        eventually(lambda: site.state() == "ended")
    assert len(site.refs) == 60


def test_fast_source_loses_nothing_to_a_broken_connection(site, films):
    site.numbers = True
    settings = site.settings(gate(film(films, pace="fast", loop=True)))
    with running(run, settings, site.bus) as host:
        eventually(lambda: len(site.refs) >= 5)
        site.bus.disconnect()
        eventually(lambda: host.tally["gate/captured"] - len(site.refs) <= 1)
        held = len(site.refs)
        site.bus.reconnect()
        eventually(lambda: len(site.refs) >= held + 60)
    assert [ref.number for ref in site.refs] == list(range(1, len(site.refs) + 1))
    assert site.shown == [n % 60 for n in range(len(site.refs))]


class FullBus(MemoryBus):
    """A bus whose client's own queue is full every other time."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self._attempts = 0

    def publish(self, channel, message, key="") -> bool:
        if channel is FRAMES:
            self._attempts += 1
            if self._attempts % 2:
                return False
        return super().publish(channel, message, key)


def test_fast_source_sends_a_frame_again_that_the_client_did_not_take(site, films):
    site.numbers = True
    with running(run, site.settings(gate(film(films, pace="fast"), fps=10)), FullBus(site.broker)):
        eventually(lambda: site.state() == "ended", 30)
    assert [ref.number for ref in site.refs] == list(range(1, 21))
    assert site.shown == list(range(0, 60, 3))


def test_paced_source_goes_on_without_a_connection_and_numbers_show_the_gap(site):
    with running(run, site.settings(gate(SCENE)), site.bus) as host:
        eventually(lambda: len(site.refs) >= 3)
        site.bus.disconnect()
        seen = len(site.refs)
        eventually(lambda: host.tally["gate/captured"] >= seen + 5)
        site.bus.reconnect()
        eventually(lambda: len(site.refs) > seen)
        assert site.refs[seen].number > seen + 3
        unsent = host.telemetry.values()["skerry_frames_unsent_total{camera=gate}"]
        assert unsent >= site.refs[seen].number - seen - 1


def test_file_is_played_in_real_time_by_its_own_clock(site, films):
    with running(run, site.settings(gate(film(films))), site.bus):
        eventually(lambda: site.state() == "ended", 30)
    spans = [(ref.captured_ns - site.refs[0].captured_ns, ref.media_ns) for ref in site.refs]
    assert all(captured >= media - 1_000_000 for captured, media in spans), "a frame came before its time"
    assert site.refs[-1].media_ns == round(59 / 30 * 1e9)


def test_looped_file_goes_on_in_media_time(site, films):
    source = {"kind": "images", "folder": str(films / "images"), "fps": 200, "loop": True}
    with running(run, site.settings(gate(source)), site.bus):
        eventually(lambda: len(site.refs) > 50)
    assert all(b.media_ns > a.media_ns for a, b in zip(site.refs, site.refs[1:], strict=False))


def test_fps_limit_leaves_frames_uncaptured_and_counts_them(site, films):
    with running(run, site.settings(gate(film(films, pace="fast"), fps=10)), site.bus) as host:
        eventually(lambda: site.state() == "ended")
        values = host.telemetry.values()
    assert [round(ref.media_ns / 1e8) for ref in site.refs] == list(range(20))
    assert values["skerry_source_skipped_total{camera=gate,reason=fps_limit}"] == 40
    assert [ref.number for ref in site.refs] == list(range(1, 21))


def test_masks_are_black_before_anyone_sees_the_frame(site, films):
    masks = [[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]]
    source = film(films, pace="fast")
    with running(run, site.settings(gate(source, masks=masks, width=64, height=48)), site.bus):
        eventually(lambda: site.pixels is not None)
    assert site.pixels.shape == (48, 64, 3)
    assert (site.pixels[:, :32] == 0).all()
    assert site.pixels[40, 40:].any()


def test_size_and_rotation_are_told_with_the_frame(site, films):
    options = {"roi": [0.0, 0.0, 0.5, 1.0], "rotate": 90, "height": 80}
    with running(run, site.settings(gate(film(films, pace="fast"), **options)), site.bus):
        eventually(lambda: site.refs)
    assert (site.refs[0].width, site.refs[0].height) == (120, 80)
    assert (site.last().width, site.last().height) == (120, 80)


def test_dead_camera_is_degraded_with_its_reason_and_the_others_go_on(site, films):
    cameras = [gate({"kind": "file", "path": "/nowhere/film.mp4"}), {"name": "hall", "source": SCENE}]
    with running(run, site.settings(*cameras), site.bus) as host:
        eventually(lambda: site.state("gate") == "degraded" and len(site.of("hall")) > 5)
        eventually(lambda: host.condition[0] == "degraded")
        assert host.condition[1] == "camera gate: /nowhere/film.mp4: No such file or directory"
        assert site.last("gate").reason == "/nowhere/film.mp4: No such file or directory"
        assert site.states("hall") == ["starting", "live"]


def test_file_that_appears_is_captured_and_the_fault_is_cleared(site, films):
    path = site.folder / "late.mp4"
    source = {"kind": "file", "path": str(path), "pace": "fast"}
    with running(run, site.settings(gate(source)), site.bus) as host:
        eventually(lambda: site.state() == "degraded")
        path.symlink_to(films / "film.mp4")
        eventually(lambda: site.state() == "ended")
        eventually(lambda: host.condition == ("ready", ""))
        assert host.telemetry.values()["skerry_source_reconnects_total{camera=gate}"] >= 1
    assert len(site.refs) == 60


def test_empty_video_is_degraded_with_its_reason(site):
    path = site.folder / "empty.mp4"
    path.touch()
    with running(run, site.settings(gate({"kind": "file", "path": str(path)})), site.bus):
        eventually(lambda: site.state() == "degraded")
        assert site.last().reason == f"{path}: expected a video, this is none that FFmpeg can read"


def test_film_damaged_in_the_middle_is_captured_around_the_damage(site):
    path = write_video(site.folder / "film.mp4", 100)
    content = bytearray(path.read_bytes())
    first = len(content) // 2
    content[first : first + len(content) // 10] = np.random.default_rng(3).bytes(len(content) // 10)
    path.write_bytes(content)
    source = {"kind": "file", "path": str(path), "pace": "fast"}
    with running(run, site.settings(gate(source)), site.bus) as host:
        eventually(lambda: site.state() == "ended")
        skipped = host.telemetry.values()["skerry_source_skipped_total{camera=gate,reason=corrupt}"]
    assert skipped > 0
    assert 50 < len(site.refs) < 100
    assert [ref.number for ref in site.refs] == list(range(1, len(site.refs) + 1))


def test_film_that_was_cut_off_ends_with_the_reason(site):
    path = write_video(site.folder / "film.mp4", 100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with running(run, site.settings(gate({"kind": "file", "path": str(path), "pace": "fast"})), site.bus):
        eventually(lambda: site.state() == "ended")
        assert "it ends at" in site.last().reason


def test_two_cameras_of_one_name_are_refused(site):
    with (
        pytest.raises(ConfigError, match=r"cameras\[1\].name: expected a name of its own, got 'gate' again"),
        running(run, site.settings(gate(SCENE), gate(SCENE)), site.bus),
    ):
        pass


def test_frame_store_too_small_is_refused_before_anything_is_opened(site):
    huge = {"kind": "synthetic", "width": 4096, "height": 4096}
    cameras = [{"name": f"cam{n}", "source": huge} for n in range(64)]
    settings = site.settings(*cameras, slots=64)
    with (
        pytest.raises(ConfigError, match=r"expected 20\d+ bytes free for frames, got \d+"),
        running(run, settings, site.bus),
    ):
        pass
    assert list(site.frames.iterdir()) == []


def test_ring_grows_with_the_picture(site, films):
    folder = write_images(site.folder / "images", 2)
    write_images(site.folder / "large", 1, size=(640, 480))
    (site.folder / "large" / "0000.png").rename(folder / "0002.png")
    write_images(site.folder / "small", 1, size=(80, 60))
    (site.folder / "small" / "0000.png").rename(folder / "0003.png")
    source = {"kind": "images", "folder": str(folder), "pace": "fast"}
    with running(run, site.settings(gate(source)), site.bus):
        eventually(lambda: site.state() == "ended")
        assert len(list(site.frames.iterdir())) == 1
    assert [(ref.width, ref.height) for ref in site.refs] == [SIZE, SIZE, (640, 480), (80, 60)]
    assert site.refs[0].ring != site.refs[2].ring == site.refs[3].ring


def test_rings_of_a_killed_capture_are_removed_before_any_camera_delivers(site):
    site.frames.mkdir()
    (site.frames / "old.0123456789abcdef.ring").write_bytes(bytes(8192))
    dead = {"kind": "file", "path": "/nowhere/film.mp4"}
    with running(run, site.settings(gate(dead)), site.bus):
        eventually(lambda: site.state() == "degraded")
        assert list(site.frames.iterdir()) == []


class StuckFeed:
    """A source whose read never comes back, as a hung driver's."""

    corrupt, note = 0, ""

    def __init__(self, frames: int, free: threading.Event) -> None:
        self._left = frames
        self._free = free
        self._number = 0

    def read(self) -> ArrayPicture:
        if self._left == 0:
            self._free.wait()
        self._left -= 1
        self._number += 1
        return ArrayPicture(np.zeros((120, 160, 3), np.uint8), None, 0.0)

    def interrupt(self) -> None:
        """It does not listen."""

    def close(self) -> None:
        """Nothing to close."""


@contextmanager
def watched(worker: CameraWorker) -> Iterator[None]:
    """What the module's loop does with one camera."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(0.02):
            worker.watch(module.time.monotonic())

    thread = threading.Thread(target=loop)
    worker.start()
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        worker.end()
        worker.stop(1)


def test_source_that_hangs_is_degraded_left_behind_and_opened_again(site):
    free, opened = threading.Event(), []

    def open_stuck() -> StuckFeed:
        opened.append(StuckFeed(3 if not opened else 10**9, free))
        return opened[-1]

    source = {"kind": "v4l2", "device": "/dev/video0"}
    settings = site.settings(gate(source, stall_s=0.2))
    host = Host(settings, "capture", site.bus)
    camera: Camera = settings.cameras[0]
    worker = CameraWorker(
        camera, settings, site.bus, host, open_feed=open_stuck, window=None, consumers=Consumers(0)
    )
    site.frames.mkdir()
    with watched(worker):
        eventually(lambda: "degraded" in site.states())
        assert "expected a frame every 0.2 s, got none" in [s.reason for s in site.said]
        eventually(lambda: site.state() == "live" and len(opened) == 2)
        free.set()  # the first read comes back now: nobody wants it any more
        seen = len(site.refs)
        eventually(lambda: len(site.refs) > seen + 20)
    assert [ref.number for ref in site.refs] == list(range(1, len(site.refs) + 1))
    assert host.telemetry.values()["skerry_source_stalls_total{camera=gate}"] == 1
    assert list(site.frames.iterdir()) == []
    host.tally.close()


# --- as a process --------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path) -> Iterator:
    """Starts `python -m skerry.capture`; whatever is left is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(settings: dict) -> subprocess.Popen[str]:
        environment = {**os.environ, "SKERRY_SETTINGS": json.dumps(settings)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "skerry.capture"],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate(timeout=10)


def child_settings(tmp_path: Path, port: int, **options) -> dict:
    return {
        "site": "test", "module": "capture", "bus": {"port": port}, "state": str(tmp_path / "state"),
        "frames": str(tmp_path / "frames"), "cameras": [gate(SCENE)], **options,
    }  # fmt: skip


@needs_mosquitto
def test_process_survives_kill_9_with_dense_numbers_and_no_ring_left_behind(tmp_path, process, broker):
    from skerry.mqtt import MqttBus
    from skerry.settings import BusSettings

    settings = child_settings(tmp_path, broker.port)
    bus = MqttBus(BusSettings(port=broker.port), "test", "looker")
    numbers: list[int] = []
    metrics: list[str] = []
    bus.subscribe(FRAMES, lambda ref: numbers.append(ref.number))
    bus.subscribe(METRICS, lambda m: metrics.extend(m.counters))
    bus.connect()
    for round_ in range(3):
        child = process(settings)
        seen = len(numbers)
        eventually(lambda seen=seen: len(numbers) > seen + 10, 30)
        if round_ < 2:
            child.kill()
            child.wait(10)
    eventually(lambda: "skerry_frames_captured_total{camera=gate}" in metrics, 30)
    assert len(list((tmp_path / "frames").iterdir())) == 1
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0
    assert list((tmp_path / "frames").iterdir()) == []
    bus.close()
    assert sorted(set(numbers)) == numbers
    counted = read_tally(tmp_path / "state" / "tally")["gate/captured"]
    assert 0 <= counted - len(numbers) <= 5, "at most what was in hand at each kill is missing"


def test_process_refuses_wrong_settings_with_78(tmp_path, process):
    bad = child_settings(tmp_path, 1, cameras=[gate({"kind": "rtsp", "url": "http://x/"}, fps=-1)])
    child = process(bad)
    _, text = child.communicate(timeout=30)
    assert child.returncode == 78
    assert "$.cameras[0].source.url: expected" in text
    assert "$.cameras[0].fps: expected a number above 0" in text


@needs_mosquitto
@needs.root
def test_process_on_a_tmpfs_too_small_ends_with_78_and_both_figures(tmp_path, process, shared_broker):
    folder = tmp_path / "frames"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode and not needs.FORBIDDEN:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.decode().strip()}")
    assert done.returncode == 0, done.stderr
    try:
        scene = {"kind": "synthetic", "width": 3840, "height": 2160}
        child = process(child_settings(tmp_path, shared_broker.port, cameras=[gate(scene)]))
        _, text = child.communicate(timeout=30)
        assert child.returncode == 78
        assert "expected 199069696 bytes free for frames, got 67108864" in text
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_another_capture_of_the_same_camera_is_refused_and_does_not_disturb_the_first(site):
    with running(run, site.settings(gate(SCENE)), site.bus):
        eventually(lambda: len(site.refs) > 3)
        with pytest.raises(Unavailable, match="captured by another process now"):
            RingWriter.create(site.frames, "gate", 4, 100)
        seen = len(site.refs)
        eventually(lambda: len(site.refs) > seen + 3)
    assert len({ref.ring for ref in site.refs}) == 1
