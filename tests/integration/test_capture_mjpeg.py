"""Motion JPEG cameras that drop the connection, freeze, die and come back."""

from __future__ import annotations

import pytest

from capture_site import Site, gate
from mjpeg_server import MjpegCamera
from skerry.capture.module import run
from skerry.testing import eventually, running

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def site(tmp_path) -> Site:
    site = Site(tmp_path)
    site.numbers = True
    return site


def source(camera: MjpegCamera) -> dict:
    return {"kind": "mjpeg", "url": camera.url, "timeout_s": 1}


def assert_dense(site: Site) -> None:
    assert [ref.number for ref in site.refs] == list(range(1, len(site.refs) + 1))
    assert all(b.media_ns > a.media_ns for a, b in zip(site.refs, site.refs[1:], strict=False))


def test_camera_that_drops_the_connection_is_opened_again(site):
    with MjpegCamera() as camera, running(run, site.settings(gate(source(camera))), site.bus):
        eventually(lambda: len(site.refs) > 5, 30)
        camera.dropped.set()
        eventually(lambda: camera.connections == 2 and site.state() == "live", 30)
        seen = len(site.refs)
        eventually(lambda: len(site.refs) > seen + 5, 30)
        assert site.states() == ["starting", "live", "degraded", "live"]
    assert_dense(site)


def test_waits_begin_small_again_once_a_camera_has_delivered(site):
    backoff = {"first_s": 0.05, "factor": 10, "longest_s": 1000}  # the fourth wait in a row takes 25 s
    with (
        MjpegCamera() as camera,
        running(run, site.settings(gate(source(camera), backoff=backoff)), site.bus),
    ):
        for connection in range(1, 7):
            eventually(lambda n=connection: camera.connections == n and site.state() == "live", 20)
            camera.dropped.set()


def test_camera_that_freezes_is_degraded_and_live_again_when_it_goes_on(site):
    with MjpegCamera() as camera, running(run, site.settings(gate(source(camera), stall_s=0.5)), site.bus):
        eventually(lambda: len(site.refs) > 5, 30)
        camera.frozen.set()
        eventually(lambda: site.state() == "degraded", 30)
        camera.frozen.clear()
        eventually(lambda: site.state() == "live", 30)
    assert_dense(site)


def test_camera_that_delivers_no_picture_is_degraded(site):
    with MjpegCamera() as camera:
        camera.garbage.set()
        settings = site.settings(gate(source(camera), stall_s=0.5))
        with running(run, settings, site.bus) as host:
            eventually(lambda: site.state() == "degraded", 30)
            assert site.last().reason
            camera.garbage.clear()
            eventually(lambda: site.state() == "live", 30)
            skipped = host.telemetry.values()["skerry_source_skipped_total{camera=gate,reason=corrupt}"]
            assert skipped > 0
    assert_dense(site)


def test_camera_that_answers_and_sends_nothing_is_degraded(site):
    with MjpegCamera() as camera:
        camera.frozen.set()
        with running(run, site.settings(gate(source(camera))), site.bus):
            eventually(lambda: site.state() == "degraded", 30)
            assert site.last().reason
            camera.frozen.clear()
            eventually(lambda: site.state() == "live", 30)
    assert_dense(site)


def test_camera_that_dies_and_comes_back_on_the_same_port_is_live_again(site):
    camera = MjpegCamera()
    with running(run, site.settings(gate(source(camera))), site.bus):
        eventually(lambda: len(site.refs) > 5, 30)
        camera.close()
        eventually(lambda: site.state() == "degraded", 30)
        with MjpegCamera(port=camera.port):
            eventually(lambda: site.state() == "live", 30)
    assert_dense(site)


def test_a_dead_camera_does_not_hold_up_the_end(site):
    with MjpegCamera() as camera:
        camera.frozen.set()
        with running(run, site.settings(gate(source(camera)), grace_s=1.0), site.bus):
            eventually(lambda: camera.connections == 1, 30)
        # `running` has seen the module end within its grace
    assert site.last().state == "stopped"
    assert list(site.frames.iterdir()) == []
