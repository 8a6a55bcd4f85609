"""Inference keeps pictures for labelling: if the site says so, of cameras that allow it, never in its way."""

import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import pytest

from inference_site import Site
from skerry.errors import ConfigError
from skerry.inference import sampling
from skerry.inference.drift import Sample, baseline
from skerry.inference.samples import Kept, Shelf
from skerry.inference.settings import InferenceSettings
from skerry.settings import parse
from skerry.testing import eventually
from tiny_models import BOX, LABELS, bright_model, write_package

LOW = {"when": ["low_score"], "low_score": 0.6, "per_hour": 3600}
ALLOWED = {"snapshots": {"gate": "allowed"}}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A model that sees one object whose score is the brightness, from 0.1 on."""
    write_package(tmp_path / "package", bright_model())
    path = tmp_path / "package" / "manifest.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["decoder"]["score_threshold"] = 0.1
    path.write_text(json.dumps(raw), encoding="utf-8")
    return Site(tmp_path)


def use(site: Site, samples: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    said = {"samples": samples} if samples is not None else {}
    return {"package": str(site.path / "package"), "runtime": "onnxruntime", **said, **changes}


def kept(site: Site) -> tuple[Kept, ...]:
    return Shelf(site.path / "state" / "samples").kept()


def counted(host: Any, name: str) -> dict[str, float]:
    return {k: v for k, v in host.telemetry.values().items() if k.startswith(name)}


def shoot(site: Site, camera: Any, *greys: float) -> None:
    for grey in greys:
        before = len(site.results)
        camera.shoot(grey)
        eventually(lambda before=before: len(site.results) > before)


def shoot_until(site: Site, camera: Any, grey: float, fact: Callable[[], object]) -> None:
    def shot() -> object:
        shoot(site, camera, grey)
        return fact()

    eventually(shot)


def test_by_default_nothing_is_kept(site: Site) -> None:
    camera = site.camera()
    with site.running(use(site, None), **ALLOWED) as host:
        shoot(site, camera, 0.3, 0.4, 0.5)
        assert counted(host, "skerry_samples") == {}
    assert not (site.path / "state" / "samples").exists()


def test_a_doubtful_object_is_kept_as_a_crop_with_what_the_model_saw(site: Site) -> None:
    camera = site.camera()
    with site.running(use(site, LOW), **ALLOWED) as host:
        shoot(site, camera, 0.9)
        shoot_until(site, camera, 0.4, lambda: kept(site))
        eventually(lambda: counted(host, "skerry_samples_kept") == {"skerry_samples_kept": len(kept(site))})
        assert (
            counted(host, "skerry_samples_total")["skerry_samples_total{camera=gate,reason=low_score}"] >= 1
        )
    about = kept(site)[0].about
    assert about.number > 1, "the first frame is beyond doubt"
    assert (about.camera, about.trigger, about.privacy) == ("gate", "low_score", "crop")
    assert about.why == "bolt with a score of 0.40, below 0.60"
    (seen,) = about.objects
    cx, cy, w, h = BOX
    wanted = ((cx - w / 2) * 16, (cy - h / 2) * 12, w * 16, h * 12)
    assert seen.label == "bolt"
    assert seen.bbox == pytest.approx(wanted, abs=0.06)
    pixels = cv2.imread(str(Shelf(site.path / "state" / "samples").picture(kept(site)[0].name)))
    assert pixels.shape == (12, 16, 3)


def test_while_a_camera_drifts_its_pictures_are_kept_and_no_other_cameras(site: Site) -> None:
    its = baseline([Sample({"brightness": [128.0]})] * 400, len(LABELS), every_s=1, window=20, in_a_row=1)
    path = site.path / "package" / "manifest.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**raw, "baseline": msgspec.to_builtins(its)}), encoding="utf-8")
    cameras = {"gate": 0.5, "ramp": 0.2}
    drifting = {"when": ["drift"], "per_hour": 3600, "privacy": "blur"}
    shown = [(site.camera(name), grey) for name, grey in cameras.items()]
    with site.running(use(site, drifting), snapshots=dict.fromkeys(cameras, "allowed")):
        for n in range(20):
            assert kept(site) == (), "nothing before the end of the window, which the last frame is"
            for camera, grey in shown:
                camera.shoot(grey, media_ns=n * 10**9)
            eventually(lambda n=n: len(site.results) == 2 * n + 2)
        eventually(lambda: [camera.shoot(grey) for camera, grey in shown] and kept(site))
    assert {each.about.camera for each in kept(site)} == {"ramp"}
    assert {each.about.why for each in kept(site)} == {"drift: brightness"}


@pytest.mark.parametrize("snapshots", [{}, {"ramp": "allowed"}])
def test_a_camera_whose_snapshots_are_never_has_no_samples(site: Site, snapshots: dict[str, str]) -> None:
    gate, ramp = site.camera("gate"), site.camera("ramp")
    with site.running(use(site, LOW | {"privacy": "full"}), snapshots=snapshots):
        if snapshots:
            shoot(site, gate, 0.3)
            shoot_until(site, ramp, 0.3, lambda: kept(site))
        shoot(site, gate, 0.3, 0.3, 0.3)
    assert {each.about.camera for each in kept(site)} == set(snapshots)


def test_a_camera_whose_snapshots_are_blurred_has_samples_without_details(site: Site) -> None:
    camera = site.camera()
    with site.running(use(site, LOW | {"privacy": "full"}), snapshots={"gate": "blurred"}):
        shoot_until(site, camera, 0.3, lambda: kept(site))
    assert kept(site)[0].about.details is False


def test_no_more_are_kept_than_the_rate_says_and_a_restart_makes_no_difference(site: Site) -> None:
    camera = site.camera()
    for _ in range(2):
        with site.running(use(site, LOW | {"per_hour": 6}), **ALLOWED):
            if not kept(site):
                shoot_until(site, camera, 0.3, lambda: kept(site))
            shoot(site, camera, *[0.3] * 10)
    assert len(kept(site)) == 1


def test_samples_of_another_life_go_when_their_time_has_come(site: Site) -> None:
    camera = site.camera()
    with site.running(use(site, LOW | {"keep_s": 0.001}), **ALLOWED) as host:
        shoot_until(site, camera, 0.3, lambda: counted(host, "skerry_samples_total"))
    assert kept(site)
    with site.running(use(site, None), **ALLOWED):
        eventually(lambda: not kept(site))


@pytest.mark.parametrize(("snapshots", "stay"), [({"gate": "allowed"}, 1), ({"gate": "blurred"}, 0), ({}, 0)])
def test_what_a_camera_does_not_allow_any_more_goes_at_the_start(
    site: Site, snapshots: dict[str, str], stay: int
) -> None:
    camera = site.camera()
    with site.running(use(site, LOW | {"per_hour": 1}), **ALLOWED):
        shoot_until(site, camera, 0.3, lambda: kept(site))
    with site.running(use(site, None), snapshots=snapshots) as host:
        name = "skerry_samples_kept"
        eventually(lambda: counted(host, name) == {name: stay})
        assert len(kept(site)) == stay


def fails(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def odd(*_: Any, **__: Any) -> Any:
    raise RuntimeError("odd")


@pytest.mark.parametrize(("how", "reason"), [(fails, "disk"), (odd, "failed")])
def test_a_disk_that_is_full_costs_samples_and_no_result(site: Site, monkeypatch, how, reason) -> None:
    monkeypatch.setattr(Shelf, "keep", how)
    camera = site.camera()
    with site.running(use(site, LOW), **ALLOWED) as host:
        name = f"skerry_samples_dropped_total{{camera=gate,reason={reason}}}"
        shoot_until(site, camera, 0.3, lambda: counted(host, name))
        assert host.condition[0] == "ready"
    assert site.terms()["inferred"] == len(site.results)


def test_the_loop_does_not_wait_for_the_disk(site: Site, monkeypatch) -> None:
    go_on = threading.Event()
    real = Shelf.sweep

    def waits(self: Shelf, now: str) -> Any:
        if threading.current_thread().name == "samples" and self.kept():
            go_on.wait(10)
        return real(self, now)

    monkeypatch.setattr(Shelf, "sweep", waits)
    monkeypatch.setattr(sampling, "_WAITING", 1)
    camera = site.camera()
    with site.running(use(site, LOW), **ALLOWED) as host:
        monkeypatch.setattr(sampling.Sampling, "_due", lambda *_: True)
        name = "skerry_samples_dropped_total{camera=gate,reason=busy}"
        shoot_until(site, camera, 0.3, lambda: counted(host, name))
        go_on.set()
    assert all(result.status == "ok" for result in site.results)


@pytest.mark.parametrize(
    "wrong", [{"when": []}, {"when": ["always"]}, {"privacy": "none"}, {"per_hour": 0}, {"keep_s": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    raw = {"site": "s", "module": "inference", "state": "/s", "frames": "/f", "models": [{"package": "p"}]}
    raw["models"][0]["samples"] = {"when": ["drift"]} | wrong  # type: ignore[index]  # a list of dicts
    with pytest.raises(ConfigError, match="samples"):
        parse(InferenceSettings, raw, "test")
