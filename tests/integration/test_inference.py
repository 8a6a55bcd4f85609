"""The inference module over the bus in memory and a real frame store."""

import json
from pathlib import Path

import numpy as np
import pytest

from inference_site import Site
from skerry.bus import MemoryBus
from skerry.errors import ConfigError, PackageError
from skerry.inference.module import run
from skerry.service import Host
from skerry.testing import eventually, running
from tiny_models import bright_model, moody_model, write_package


@pytest.fixture
def site(tmp_path: Path) -> Site:
    write_package(tmp_path / "package", moody_model())
    return Site(tmp_path)


def test_a_frame_becomes_detections(site: Site) -> None:
    camera = site.camera()
    with site.running():
        ref = camera.shoot(0.6)
        eventually(lambda: site.results)
    (result,) = site.results
    assert (result.camera, result.number, result.sequence, result.status) == ("gate", 1, 1, "ok")
    assert (result.time, result.captured_ns, result.media_ns) == (ref.time, 1, 7)
    assert (result.width, result.height, result.model, result.trace) == (16, 12, "tiny@1.0", "00-a-b-01")
    assert result.session_ms > 0
    assert result.inferred_ns > 1
    (one,) = result.objects
    assert (one.label, one.score) == ("bolt", pytest.approx(0.6, abs=1e-4))
    assert one.box == (0.375, 0.25, 0.625, 0.75)
    assert one.attributes == {"defect": 0.25}
    assert site.terms() == {"received": 1, "inferred": 1}


def test_numbers_that_are_not_finite_are_a_failed_result(site: Site) -> None:
    camera = site.camera()
    with site.running():
        camera.shoot(0.1)
        eventually(lambda: site.results)
    (result,) = site.results
    assert (result.status, result.reason) == ("failed", "output 'out': expected finite numbers, got NaN")
    assert result.objects == ()
    assert site.terms() == {"received": 1, "failed": 1}


def test_a_model_that_cannot_run_is_a_failed_result(site: Site) -> None:
    camera = site.camera()
    with site.running():
        camera.shoot(0.9)
        eventually(lambda: site.results)
        camera.shoot(0.5)
        eventually(lambda: len(site.results) == 2)
    assert site.results[0].status == "failed"
    assert site.results[0].reason.startswith("session: ")
    assert "Gather" in site.results[0].reason
    assert (site.results[1].status, site.results[1].sequence) == ("ok", 2)


def test_repeated_failure_degrades_recreates_the_session_and_recovers(site: Site) -> None:
    camera = site.camera()
    with site.running() as host:
        for _ in range(2):
            camera.shoot(0.9)
        eventually(lambda: len(site.results) == 2)
        assert host.condition[0] == "ready"
        model = site.path / "package" / "model.onnx"
        good = model.read_bytes()
        model.write_bytes(b"no model at all")
        camera.shoot(0.9)
        eventually(lambda: host.condition[0] == "degraded")
        assert "model tiny@1.0: session: " in host.condition[1]
        # It made the session anew from a file that is no model: now there is none.
        eventually(lambda: camera.shoot(0.5) and site.results[-1].reason == "session: not loaded")
        model.write_bytes(good)
        eventually(lambda: camera.shoot(0.5) and site.results[-1].status == "ok")
        eventually(lambda: host.condition == ("ready", ""))
    terms = site.terms()
    assert terms["received"] == camera.number == terms["inferred"] + terms["failed"]
    assert [r.sequence for r in site.results] == list(range(1, camera.number + 1))


def test_a_frame_that_was_overwritten_is_counted_as_gone(site: Site) -> None:
    camera = site.camera()
    with site.running():
        old = camera.capture()
        for _ in range(8):
            camera.capture()
        camera.publish(old)
        camera.shoot()
        eventually(lambda: site.results)
    assert site.terms() == {"received": 10, "inferred": 1, "dropped/frame_gone": 1, "dropped/not_received": 8}


def test_a_picture_that_cannot_be_prepared_is_a_failed_result(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skerry.inference import preprocess

    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(preprocess.Preprocessor, "_resize", broken)
    camera = site.camera()
    with site.running():
        camera.shoot()
        eventually(lambda: site.results)
    assert site.results[0].reason == "preprocess: RuntimeError: no memory"
    assert site.terms() == {"received": 1, "failed": 1}


def test_results_leave_in_the_order_of_the_frames(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one fails while the session still runs on the one before."""
    from skerry.inference import preprocess

    camera = site.camera()
    whole = preprocess.Preprocessor._resize

    def picky(self: preprocess.Preprocessor, pixels: np.ndarray, canvas: np.ndarray) -> None:
        if pixels.max() == 255:
            raise RuntimeError("too bright")
        whole(self, pixels, canvas)

    monkeypatch.setattr(preprocess.Preprocessor, "_resize", picky)
    with site.running():
        for brightness in (0.5, 1.0, 0.5, 0.1, 0.9, 0.5):
            camera.shoot(brightness)
        eventually(lambda: len(site.results) == 6)
    assert [r.number for r in site.results] == [r.sequence for r in site.results] == [1, 2, 3, 4, 5, 6]
    assert [r.status for r in site.results] == ["ok", "failed", "ok", "failed", "failed", "ok"]


def test_a_live_frame_is_answered_before_the_next_one_comes(site: Site) -> None:
    camera = site.camera()
    with site.running():
        for n in range(1, 4):
            camera.shoot(keep=False)
            eventually(lambda n=n: len(site.results) == n)


def test_a_fault_of_the_decoder_is_a_failed_result(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from skerry.inference import model

    def broken(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(model, "decode", broken)
    camera = site.camera()
    with site.running():
        camera.shoot()
        eventually(lambda: site.results)
    assert site.results[0].reason == "internal: KeyError: 'surprise'"


def test_a_newer_frame_supersedes_a_waiting_one_unless_it_must_be_kept(site: Site) -> None:
    camera, hall = site.camera(), site.camera("hall")
    settings = site.settings()
    host = Host(settings, "inference", site.bus)
    # Before the loop runs, all of these wait.
    from skerry.inference.module import Inference

    inference = Inference(settings, site.bus, host)
    for _ in range(5):
        inference._on_frame(camera.capture(keep=False))
        inference._on_frame(hall.capture(keep=True))
    host.tally.close()
    assert site.terms("gate") == {"received": 5, "dropped/superseded": 4}
    assert site.terms("hall") == {"received": 5}


def test_frames_in_the_hands_of_a_killed_module_are_counted_when_it_starts_again(site: Site) -> None:
    camera = site.camera(number=10)
    settings = site.settings()
    killed = Host(settings, "inference", site.bus)
    killed.tally.set(
        {"gate/received": 10, "gate/inferred": 6, "gate/failed": 1, "gate/dropped/superseded": 1}
    )
    killed.tally.close()
    with site.running():
        camera.number += 3  # captured while nobody listened
        camera.shoot()
        eventually(lambda: site.results)
    assert site.results[0].sequence == 8
    assert site.terms() == {
        "received": 14, "inferred": 7, "failed": 1,
        "dropped/superseded": 1, "dropped/killed": 2, "dropped/restart": 3,
    }  # fmt: skip


def test_a_camera_may_have_any_name(site: Site) -> None:
    """Also one that means something to a log."""
    killed = Host(site.settings(), "inference", site.bus)
    killed.tally.set({"event/received": 1})
    killed.tally.close()
    camera = site.camera("event", number=1)
    with site.running():
        camera.shoot()
        eventually(lambda: site.results)
    assert site.terms("event") == {"received": 2, "inferred": 1, "dropped/killed": 1}


def test_the_tail_that_never_came_is_counted_when_the_camera_ends(site: Site) -> None:
    camera = site.camera()
    with site.running() as host:
        camera.shoot()
        eventually(lambda: site.results)
        camera.say("ended", captured=4)
        eventually(lambda: host.tally["gate/dropped/not_received"] == 3)
        camera.number = 4
        camera.say("live")
        camera.shoot()
        eventually(lambda: len(site.results) == 2)
    assert site.terms() == {"received": 5, "inferred": 2, "dropped/not_received": 3}


def test_a_camera_that_goes_on_in_time_has_no_tail(site: Site) -> None:
    camera = site.camera()
    with site.running():
        camera.shoot()
        camera.say("ended", captured=3)
        camera.shoot()
        camera.shoot()
        eventually(lambda: len(site.results) == 3)
    assert site.terms() == {"received": 3, "inferred": 3}


def test_stopping_finishes_what_waits_and_accounts_for_the_tail(site: Site) -> None:
    camera = site.camera()
    with site.running() as host:
        host.stopping.set()
        for _ in range(4):
            camera.shoot()
        camera.say("stopped", captured=6)
    terms = site.terms()
    assert terms["received"] == 6
    assert terms["received"] == sum(n for term, n in terms.items() if term != "received")
    assert terms["dropped/not_received"] == 2
    assert len(site.results) == terms.get("inferred", 0)


def test_results_that_found_no_broker_are_counted_and_show_as_a_jump(site: Site) -> None:
    camera = site.camera()
    with site.running() as host:
        bus = host.bus
        assert isinstance(bus, MemoryBus)
        publish = bus.publish
        bus.publish = lambda *_: False  # type: ignore[method-assign] # frames still come, results cannot leave
        camera.shoot()
        eventually(lambda: host.tally["gate/inferred"] == 1)
        unsent = "skerry_results_unsent_total{camera=gate}"
        eventually(lambda: host.telemetry.values().get(unsent) == 1)
        bus.publish = publish  # type: ignore[method-assign]
        camera.shoot()
        eventually(lambda: site.results)
    assert [r.sequence for r in site.results] == [2]
    assert site.terms() == {"received": 2, "inferred": 2}


def test_each_camera_has_its_model_and_others_are_left_alone(site: Site) -> None:
    write_package(site.path / "other", moody_model(), name="other")
    gate, hall, yard = site.camera("gate"), site.camera("hall"), site.camera("yard")
    with site.running(
        {"package": str(site.path / "package"), "cameras": ["gate"], "runtime": "onnxruntime"},
        {"package": str(site.path / "other"), "cameras": ["hall"], "runtime": "onnxruntime"},
    ):
        for camera in (yard, gate, hall):
            camera.shoot()
        eventually(lambda: len(site.results) == 2)
    assert {(r.camera, r.model) for r in site.results} == {("gate", "tiny@1.0"), ("hall", "other@1.0")}
    assert site.terms("yard") == {}


def test_frames_of_several_cameras_share_a_run_where_the_settings_say_so(site: Site) -> None:
    spec = {"name": "x", "width": 8, "height": 6, "scale": [255], "batch": 4}
    write_package(site.path / "batched", bright_model("n"), input=spec)
    cameras = [site.camera(name) for name in ("a", "b", "c")]
    use = {
        "package": str(site.path / "batched"), "runtime": "onnxruntime",
        "batch": {"max": 3, "deadline_ms": 1000},
    }  # fmt: skip
    with site.running(use):
        for n, camera in enumerate(cameras):
            camera.shoot(0.2 + 0.3 * n)
        eventually(lambda: len(site.results) == 3)
    scores = {r.camera: r.objects[0].score for r in site.results}
    assert scores == {"a": pytest.approx(0.2, abs=0.003), "b": pytest.approx(0.5, abs=0.003),
                      "c": pytest.approx(0.8, abs=0.003)}  # fmt: skip
    assert len({r.session_ms for r in site.results}) == 1, "one run of the session for all three"


def test_a_batch_is_not_waited_for_beyond_its_deadline(site: Site) -> None:
    spec = {"name": "x", "width": 8, "height": 6, "scale": [255], "batch": 4}
    write_package(site.path / "batched", bright_model("n"), input=spec)
    use = {
        "package": str(site.path / "batched"),
        "runtime": "onnxruntime",
        "batch": {"max": 4, "deadline_ms": 1},
    }
    camera = site.camera()
    with site.running(use):
        camera.shoot()
        eventually(lambda: site.results)
    assert site.terms() == {"received": 1, "inferred": 1}


def test_the_threshold_of_the_settings_wins(site: Site) -> None:
    camera = site.camera()
    use = {"package": str(site.path / "package"), "runtime": "onnxruntime", "score_threshold": 0.7}
    with site.running(use):
        camera.shoot(0.6)
        eventually(lambda: site.results)
    assert site.results[0].objects == ()


def test_metrics_show_every_term_and_the_runtimes_that_were_measured(site: Site) -> None:
    camera = site.camera()
    with site.running({"package": str(site.path / "package")}) as host:
        camera.number = 3
        camera.shoot(0.5)
        camera.shoot(0.1)
        eventually(lambda: len(site.results) == 2)
        host.refresh()
        values = host.telemetry.values()
        assert values["skerry_frames_total{camera=gate,outcome=inferred}"] == 1
        assert values["skerry_frames_total{camera=gate,outcome=failed}"] == 1
        assert values["skerry_frames_dropped_total{camera=gate,reason=restart}"] == 3
        used = [k for k in values if k.startswith("skerry_runtime_used{")]
        assert len(used) == 1
        assert host.fps() > 0
        latencies = host.telemetry.quantiles()
        assert {"capture_to_detection", "preprocess", "session", "decode"} <= set(latencies)
    remembered = json.loads((site.path / "state" / "cache" / "runtimes.json").read_text())
    ((_, choice),) = remembered.items()
    assert f"runtime={choice['runtime']}" in used[0]


def test_grey_cameras_are_inferred_too(site: Site) -> None:
    camera = site.camera()
    slot, generation = camera.ring.write(np.full((12, 16), 128, np.uint8))
    with site.running():
        grey = {"format": "gray8", "slot": slot, "generation": generation}
        camera.publish(camera.capture(**grey))
        eventually(lambda: site.results)
    assert site.results[0].objects[0].score == pytest.approx(128 / 255, abs=1e-3)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "labels.txt"])
def test_a_package_that_lacks_a_file_stops_the_module_with_65(site: Site, name: str) -> None:
    (site.path / "package" / name).unlink()
    with pytest.raises(PackageError, match=name) as caught, running(run, site.settings(), site.bus):
        pass
    assert caught.value.exit_code == 65


def test_a_device_that_is_not_installed_stops_the_module_with_78(site: Site) -> None:
    use = {"package": str(site.path / "package"), "runtime": "onnxruntime", "device": "cuda"}
    with (
        pytest.raises(ConfigError, match="pip install onnxruntime-gpu"),
        running(run, site.settings(use), site.bus),
    ):
        pass
