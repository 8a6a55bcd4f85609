"""RTSP against a real server, which is killed, frozen and restarted."""

from __future__ import annotations

import itertools
import time

import pytest

import needs
from capture_site import Site, gate
from rtsp_camera import RtspCamera
from skerry.capture.module import run
from skerry.testing import eventually, running

BELT = {"name": "belt", "source": {"kind": "synthetic", "width": 160, "height": 120, "fps": 10}}

pytestmark = [pytest.mark.needs_rtsp, needs.rtsp, pytest.mark.timeout(180)]


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(tmp_path)


def source(camera: RtspCamera) -> dict:
    return {"kind": "rtsp", "url": camera.url, "timeout_s": 2}


def assert_dense(site: Site) -> None:
    assert [ref.number for ref in site.refs] == list(range(1, len(site.refs) + 1))
    assert all(b.media_ns > a.media_ns for a, b in itertools.pairwise(site.refs))


def test_frames_come_live_with_the_streams_own_spacing(site):
    with RtspCamera() as camera, running(run, site.settings(gate(source(camera))), site.bus) as host:
        eventually(lambda: len(site.refs) >= 45, 60)
        assert host.condition == ("ready", "")
    assert_dense(site)
    assert (site.refs[0].width, site.refs[0].height) == (320, 240)
    steps = [(b.media_ns - a.media_ns) / 1e6 for a, b in itertools.pairwise(site.refs[5:])]
    assert sorted(steps)[len(steps) // 2] == pytest.approx(1000 / 15, abs=2)
    assert all(abs(ref.media_ns - ref.captured_ns) < 5e9 for ref in site.refs)


def test_server_killed_and_restarted_on_the_same_port(site):
    camera = RtspCamera()
    with running(run, site.settings(gate(source(camera)), BELT), site.bus) as host:
        eventually(lambda: len(site.of()) > 10, 60)
        camera.kill()
        eventually(lambda: site.state() == "degraded", 60)
        assert "camera gate" in host.condition[1]
        belt = len(site.of("belt"))
        eventually(lambda: len(site.of("belt")) > belt + 5)
        eventually(lambda: "Connection refused" in site.last().reason, 60)
        with RtspCamera(camera.port):
            eventually(lambda: site.state() == "live", 60)
            seen = len(site.of())
            eventually(lambda: len(site.of()) > seen + 10, 60)
            assert host.condition == ("ready", "")
    site.refs = site.of()
    assert_dense(site)
    assert site.states("belt") == ["starting", "live", "stopped"]


def test_frozen_server_is_a_stall_that_is_noticed(site):
    camera = RtspCamera()
    with camera, running(run, site.settings(gate(source(camera), stall_s=1)), site.bus) as host:
        eventually(lambda: len(site.refs) > 10, 60)
        camera.freeze()
        frozen = time.monotonic()
        eventually(lambda: site.state() == "degraded", 60)
        assert time.monotonic() - frozen >= 0.5
        assert "in time" in site.last().reason or "got none" in site.last().reason
        camera.thaw()
        eventually(lambda: site.state() == "live", 60)
        seen = len(site.refs)
        eventually(lambda: len(site.refs) > seen + 10, 60)
        assert host.condition == ("ready", "")
    assert_dense(site)


def test_frozen_server_does_not_hold_up_the_end(site):
    camera = RtspCamera()
    with camera:
        with running(run, site.settings(gate(source(camera)), grace_s=1.0), site.bus):
            eventually(lambda: len(site.refs) > 3, 60)
            camera.freeze()
        assert site.last().state == "stopped"
        assert list(site.frames.iterdir()) == []


@needs.data
def test_a_real_film_over_rtsp_is_captured(site):
    film = needs.DATA / "one-by-one-person-detection.mp4"
    with RtspCamera(0, "--file", str(film)) as camera:
        with running(run, site.settings(gate(source(camera))), site.bus):
            eventually(lambda: len(site.refs) > 20, 60)
        assert (site.refs[0].width, site.refs[0].height) == (768, 432)
        assert site.refs[0].media_ns == site.refs[0].captured_ns
    assert_dense(site)


def test_unreachable_server_is_degraded_with_the_reason_and_no_password(site, tmp_path):
    (tmp_path / "password").write_text("secret")
    login = {"user": "me", "password_file": str(tmp_path / "password")}
    unreachable = {"kind": "rtsp", "url": "rtsp://127.0.0.1:1/cam", **login}
    with running(run, site.settings(gate(unreachable)), site.bus):
        eventually(lambda: site.state() == "degraded", 60)
    assert "rtsp://127.0.0.1:1/cam: Connection refused" in [s.reason for s in site.said]
    assert not any("secret" in s.reason for s in site.said)
