"""Models exchanged while they serve, over the bus in memory and a real frame store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest

import needs
from inference_site import Camera
from integration.test_inference_live import Steered
from skerry.channels import DESIRED
from skerry.cli.model_golden import make as make_golden
from skerry.desired import digest
from skerry.messages import Desired, Reported
from skerry.models import package as packages
from skerry.service import rss_mb
from skerry.testing import eventually
from tiny_models import banded_model, bright_model, frame, grown_model, write_package

QUICK = {"shadow_frames": 3, "probation_s": 0.3}


class Exchanging(Steered):
    """A module whose models are exchanged."""

    def use(self, package: str = "package", **changes: Any) -> dict[str, Any]:
        return {"package": str(self.path / package), "runtime": "onnxruntime", "exchange": QUICK, **changes}

    def package(self, folder: str, *args: Any, version: str = "2.0", **changes: Any) -> Path:
        return write_package(self.path / folder, *args, version=version, **changes)

    def serving(self, place: int = 0) -> str:
        """What the inventory says, once it says anything."""
        eventually(lambda: self.inventories and self.inventories[-1].models)
        return self.inventories[-1].models[place].model

    def desire(self, number: str, **models: dict[str, Any]) -> None:
        """Say what is desired of each model, by its place."""
        patch = {"models": {place.removeprefix("m"): model for place, model in models.items()}}
        message = Desired(module="inference", version=number, digest=digest(patch), patch=patch)
        self.bus.publish(DESIRED, message, "inference")

    def offer(self, camera: Camera, number: str, package: str, **changes: Any) -> Reported:
        """Have a package desired in the first place; frames come until it is told what became of it."""
        self.desire(number, m0={"package": str(self.path / package), **changes})
        return self.told(camera, number)

    def told(self, camera: Camera, number: str, brightness: float = 0.5) -> Reported:
        self.shoot_until(camera, lambda: self.reports and self.reports[-1].version == number, brightness)
        return self.reports[-1]

    def shoot_until(self, camera: Camera, fact: Any, brightness: float = 0.5) -> None:
        """One frame after the other, each answered before the next."""

        def shot() -> Any:
            number = camera.shoot(brightness).number
            eventually(lambda: any(r.number == number for r in self.results if r.camera == camera.name))
            return fact()

        eventually(shot, 30)

    def step(self) -> str:
        """What is under way."""
        return (
            next((m.exchange for m in self.inventories[-1].models if m.exchange), "")
            if self.inventories
            else ""
        )


@pytest.fixture
def site(tmp_path: Path) -> Exchanging:
    write_package(tmp_path / "package", bright_model())
    return Exchanging(tmp_path)


def balanced(terms: dict[str, int]) -> bool:
    return terms["received"] + terms.get("base", 0) == sum(
        n for term, n in terms.items() if term not in ("received", "base")
    )


def golden(folder: Path) -> Path:
    pictures = folder.with_name(f"{folder.name}-pictures")
    pictures.mkdir()
    for n, brightness in enumerate((0.3, 0.7)):
        cv2.imwrite(str(pictures / f"{n}.png"), frame(brightness))
    make_golden(folder, [pictures])
    return folder


def test_a_new_version_serves_without_a_restart_and_no_frame_is_lost(site):
    golden(site.package("next"))
    camera = site.camera()
    with site.running(site.use()):
        camera.shoot(0.5)
        report = site.offer(camera, "1", "next")
        assert (report.state, report.restart, report.errors) == ("applied", (), ())
        assert site.inventories[-1].models[0].model == "tiny@2.0"
        assert site.inventories[-1].models[0].exchange == ""
        camera.shoot(0.5)
        eventually(lambda: len(site.results) == camera.number)
    models = [result.model for result in site.results]
    assert models == sorted(models), "one after the other, never back"
    assert {"tiny@1.0", "tiny@2.0"} == set(models)
    assert [result.sequence for result in site.results] == list(range(1, camera.number + 1))
    assert site.terms() == {"received": camera.number, "inferred": camera.number}


def test_what_was_confirmed_serves_after_a_restart(site):
    site.package("next")
    camera = site.camera()
    with site.running(site.use()):
        assert site.offer(camera, "1", "next").state == "applied"
    site.inventories.clear()
    with site.running(site.use()):
        assert site.serving() == "tiny@2.0"


def test_a_threshold_that_comes_with_a_package_counts_with_it(site):
    site.package("next")
    camera = site.camera()
    with site.running(site.use(exchange={**QUICK, "least_agreement": 0})):
        assert site.offer(camera, "1", "next", score_threshold=0.9).state == "applied"
        camera.shoot(0.6)
        eventually(lambda: len(site.results) == camera.number)
    assert site.results[-1].objects == ()
    assert all(bool(r.objects) == (r.model == "tiny@1.0") for r in site.results)


def _hostile(site: Exchanging, name: str) -> Path:
    if name == "missing":
        return site.path / name
    model = {
        "sees it elsewhere": bright_model(box=(0.2, 0.2, 0.2, 0.2)),
        "another shape": grown_model(),
        "NaN on a dark picture": banded_model("nan", -0.1, 0.1),
        "fails on a light picture": banded_model("fail", 0.9, 1.1),
    }.get(name, bright_model())
    budget = {"budget": {"latency_ms": 1e-6}} if name == "slow" else {}
    folder = site.package(name.replace(" ", "-"), model, **budget)
    if name == "labels moved":
        (folder / "labels.txt").write_text("nut\nbolt\nwasher\n")
    if name == "labels moved after its pictures":
        golden(folder)
        (folder / "labels.txt").write_text("washer\nnut\nbolt\n")
    if name == "a label less":
        (folder / "labels.txt").write_text("bolt\nnut\nscrew\n")
    if name == "wrong though fast":
        golden(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "model.onnx").write_bytes(bright_model(box=(0.5, 0.5, 0.3, 0.6)).SerializeToString())
        manifest["artifact"]["sha256"] = packages.digest(folder / "model.onnx")
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if name == "another file":
        (folder / "model.onnx").write_bytes(b"what is this")
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "expected a model package, got No such file"),
        ("another file", "expected sha256"),
        ("a label less", "expected the labels bolt, nut, washer, got none that is washer"),
        ("another shape", "expected shape [1, 1, 9], got [1, 2, 9]"),
        ("NaN on a dark picture", "on a test picture: output 'out': expected finite numbers, got NaN"),
        ("fails on a light picture", "on a test picture: session: "),
        ("wrong though fast", "expected bolt 0.3"),
        ("labels moved after its pictures", "expected bolt 0.30"),
        ("slow", "expected at most 1e-06 ms a frame, got"),
        ("labels moved", "agreement with the other model, got 0%"),
        ("sees it elsewhere", "agreement with the other model, got 0%"),
    ],
)
def test_a_package_that_is_no_good_is_refused_and_the_old_one_serves_on(site, name, said):
    folder = _hostile(site, name)
    camera = site.camera()
    with site.running(site.use(exchange={**QUICK, "shadow_frames": 20})) as host:
        report = site.offer(camera, "1", folder.name)
        assert report.state == "refused"
        assert report.errors[0].startswith("modules.inference.models.0.package: ")
        assert said in report.errors[0]
        camera.shoot(0.5)
        eventually(lambda: len(site.results) == camera.number)
        assert host.condition == ("ready", "")
    assert {result.model for result in site.results} == {"tiny@1.0"}
    assert site.terms() == {"received": camera.number, "inferred": camera.number}


def test_a_model_that_takes_longer_than_the_site_allows_is_refused(site):
    site.package("next")
    camera = site.camera()
    with site.running(site.use(exchange={**QUICK, "latency_ms": 1e-6})):
        report = site.offer(camera, "1", "next")
    assert report.state == "refused"
    assert "tiny@2.0: expected at most 1e-06 ms a frame, got " in report.errors[0]


@pytest.mark.parametrize("how", ["nan", "fail"])
def test_what_fails_only_on_live_frames_is_rolled_back_and_its_frames_are_stated(site, how):
    site.package("next", banded_model(how))
    camera = site.camera()
    with site.running(site.use(exchange={**QUICK, "probation_s": 60})) as host:
        site.desire("1", m0={"package": str(site.path / "next")})
        site.shoot_until(camera, lambda: "probation" in site.step())
        report = site.told(camera, "1", 0.6)
        assert report.state == "refused"
        assert "results failed, the last with " in report.errors[0]
        eventually(lambda: host.condition == ("ready", ""))
        camera.shoot(0.6)
        eventually(lambda: len(site.results) == camera.number)
    assert site.results[-1].model == "tiny@1.0"
    failed = [result for result in site.results if result.status == "failed"]
    assert 3 <= len(failed) <= 10
    assert {result.model for result in failed} == {"tiny@2.0"}
    terms = site.terms()
    assert balanced(terms)
    assert terms["failed"] == len(failed)


def test_a_version_that_failed_here_is_not_tried_again_unless_it_is_forced(site):
    folder = _hostile(site, "labels moved")
    sha = packages.digest(folder / "manifest.json")
    camera = site.camera()
    with site.running(site.use()):
        first = site.offer(camera, "1", folder.name)
        assert "agreement" in first.errors[0]
    with site.running(site.use()):
        again = site.offer(camera, "2", folder.name)
        assert again.errors[0].endswith(f"(set exchange.force to {sha[:12]} to try it again)")
        assert "it failed here before: expected 50% agreement" in again.errors[0]
        forced = {**QUICK, "force": sha[:12], "least_agreement": 0}
        assert site.offer(camera, "3", folder.name, exchange=forced).state == "applied"
        assert site.offer(camera, "4", "package", exchange=forced).state == "applied"
        assert (
            site.offer(camera, "5", folder.name, exchange={**QUICK, "least_agreement": 0}).state == "applied"
        )


def test_what_is_taken_back_on_probation_does_not_serve_any_more(site):
    site.package("next")
    camera = site.camera()
    with site.running(site.use(exchange={**QUICK, "probation_s": 60})):
        site.desire("1", m0={"package": str(site.path / "next")})
        site.shoot_until(camera, lambda: site.results[-1].model == "tiny@2.0" and "probation" in site.step())
        site.desire("2")
        assert site.told(camera, "2").state == "applied"
        site.shoot_until(camera, lambda: site.results[-1].model == "tiny@1.0" and not site.step())
        quick = {**QUICK, "probation_s": 0}
        assert site.offer(camera, "3", "next", exchange=quick).state == "applied", "it has not failed"
    assert site.terms() == {"received": camera.number, "inferred": camera.number}


def test_another_version_takes_the_place_of_one_on_its_way(site):
    site.package("next")
    site.package("last", version="3.0")
    camera = site.camera()
    with site.running(site.use(exchange={**QUICK, "probation_s": 60})):
        site.desire("1", m0={"package": str(site.path / "next")})
        site.shoot_until(camera, lambda: "probation" in site.step())
        report = site.offer(camera, "2", "last", exchange={**QUICK, "probation_s": 0})
        assert (report.version, report.state) == ("2", "applied")
        assert site.inventories[-1].models[0].model == "tiny@3.0"
    assert [report.version for report in site.reports] == ["2"]
    assert site.terms() == {"received": camera.number, "inferred": camera.number}


def test_an_exchange_leaves_other_cameras_alone(site):
    site.package("other", name="other", version="1.0")
    site.package("next", bright_model(box=(0.5, 0.5, 0.24, 0.5)))
    gate, hall, yard = site.camera("gate"), site.camera("hall"), site.camera("yard")
    uses = site.use(cameras=["gate", "yard"]), site.use("other", cameras=["hall"])
    with site.running(*uses):
        site.desire("1", m0={"package": str(site.path / "next")})

        def all_shot() -> bool:
            for camera in (gate, hall, yard):
                camera.shoot(0.5)
            eventually(lambda: len(site.results) == gate.number + hall.number + yard.number)
            return bool(site.reports)

        eventually(all_shot, 30)
        assert site.reports[-1].state == "applied"
        all_shot()
    last = {result.camera: result.model for result in site.results}
    assert last == {"gate": "tiny@2.0", "yard": "tiny@2.0", "hall": "other@1.0"}
    assert {result.model for result in site.results if result.camera == "hall"} == {"other@1.0"}
    for camera in (gate, hall, yard):
        assert site.terms(camera.name) == {"received": camera.number, "inferred": camera.number}


def test_of_two_models_that_are_desired_together_both_serve_or_none(site):
    site.package("next")
    site.package("other", name="other", version="1.0")
    site.package("bad", bright_model(box=(0.2, 0.2, 0.2, 0.2)), name="other")
    gate, hall = site.camera("gate"), site.camera("hall")
    with site.running(site.use(cameras=["gate"]), site.use("other", cameras=["hall"])):

        def told(number: str) -> Reported:
            def shot() -> bool:
                gate.shoot(0.5)
                hall.shoot(0.5)
                eventually(lambda: len(site.results) == gate.number + hall.number)
                return bool(site.reports) and site.reports[-1].version == number

            eventually(shot, 30)
            return site.reports[-1]

        strict = {**QUICK, "shadow_frames": 15}
        bad = {"package": str(site.path / "bad"), "exchange": strict}
        site.desire("1", m0={"package": str(site.path / "next")}, m1=bad)
        report = told("1")
        assert report.state == "refused"
        assert "models.1.package: other@2.0: expected 50% agreement" in report.errors[0]
        assert {result.model for result in site.results} == {"tiny@1.0", "other@1.0"}
        site.desire("2", m0={"package": str(site.path / "next")}, m1={"package": str(site.path / "next")})
        assert told("2").state == "applied"
        assert [model.model for model in site.inventories[-1].models] == ["tiny@2.0", "tiny@2.0"]


def test_where_memory_does_not_hold_both_the_gap_is_in_the_ledger(site):
    golden(site.package("next"))
    camera = site.camera()
    with site.running(site.use(exchange={**QUICK, "memory": "unload"})) as host:
        site.desire("1", m0={"package": str(site.path / "next")})

        def dropped_or_told() -> bool:
            camera.shoot(0.5)
            return bool(site.reports)

        eventually(dropped_or_told, 30)
        assert site.reports[-1].state == "applied"
        camera.shoot(0.5)
        eventually(lambda: site.results and site.results[-1].number == camera.number)
        gap = host.tally["gate/dropped/exchange"]
    assert gap == camera.number - len(site.results)
    assert gap > 0
    assert site.results[-1].model == "tiny@2.0"
    assert balanced(site.terms())


@pytest.mark.parametrize("name", ["labels moved after its pictures", "on probation"])
def test_what_was_unloaded_is_loaded_again_where_the_new_one_fails(site, name):
    folder = site.package("next", banded_model("nan")) if name == "on probation" else _hostile(site, name)
    camera = site.camera()
    with site.running(site.use(exchange={"memory": "unload", "probation_s": 60})) as host:
        site.desire("1", m0={"package": str(folder)})

        def told() -> bool:
            camera.shoot(0.6)
            return bool(site.reports)

        eventually(told, 30)
        assert site.reports[-1].state == "refused"
        number = camera.shoot(0.6).number
        eventually(lambda: site.results and site.results[-1].number == number)
        assert host.condition == ("ready", "")
    assert (site.results[-1].model, site.results[-1].status) == ("tiny@1.0", "ok")
    terms = site.terms()
    assert balanced(terms)
    assert terms["dropped/exchange"] > 0


@pytest.mark.timeout(400)
def test_fifty_exchanges_under_load_lose_no_frame_and_keep_no_memory(site):
    site.package("next")
    camera = site.camera()
    quick = {"shadow_frames": 2, "probation_s": 0}
    sizes = []
    with site.running(site.use(exchange=quick)) as host:
        for n in range(50):
            report = site.offer(camera, str(n), ("next", "package")[n % 2])
            assert report.state == "applied"
            if n % 10 == 9:
                sizes.append(rss_mb())
        outcomes = host.telemetry.values()
        assert outcomes["skerry_model_exchanges_total{outcome=confirmed}"] == 50
    numbers = [result.number for result in site.results]
    assert numbers == list(range(1, camera.number + 1)), "not one frame without a result"
    assert site.terms() == {"received": camera.number, "inferred": camera.number}
    changes = sum(a.model != b.model for a, b in zip(site.results, site.results[1:], strict=False))
    assert changes == 50
    assert sizes[-1] - sizes[0] < 20, sizes


@pytest.mark.timeout(400)
def test_after_a_kill_at_any_step_one_model_serves_and_what_kills_thrice_is_not_tried_again(tmp_path):
    write_package(tmp_path / "package", bright_model())
    write_package(tmp_path / "next", version="2.0")
    for step in ("shadow", "switched", "confirmed"):
        done = subprocess.run(
            [sys.executable, str(needs.ROOT / "tests" / "exchanged.py"), str(tmp_path), step],
            env={**os.environ, "PYTHONPATH": str(needs.ROOT / "tests")},
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        shutil.rmtree(tmp_path / "frames")
        site = Exchanging(tmp_path)
        camera = site.camera(number=site.terms()["received"])
        with site.running(site.use()):
            assert site.serving() == "tiny@1.0"
            site.shoot_until(camera, lambda: True)
            assert {result.model for result in site.results} == {"tiny@1.0"}
            if step == "confirmed":
                report = site.offer(camera, "2", "next")
                assert "the process ended 3 times while it was tried" in report.errors[0]
        assert balanced(site.terms())
        shutil.rmtree(tmp_path / "frames")


def test_stopping_during_an_exchange_leaves_the_old_model_and_forgets_the_try(site):
    site.package("next")
    camera = site.camera()
    with site.running(site.use(exchange={**QUICK, "probation_s": 60})):
        site.desire("1", m0={"package": str(site.path / "next")})
        site.shoot_until(camera, lambda: "probation" in site.step())
    attempts = json.loads((site.path / "state" / "attempts.json").read_text())
    assert attempts == {"failed": {}, "open": {}}
    site.inventories.clear()
    with site.running(site.use()):
        assert site.serving() == "tiny@1.0"


def test_checks_that_do_not_end_are_given_up(site, monkeypatch):
    import threading

    from skerry.inference import exchange

    stuck = threading.Event()
    monkeypatch.setattr(exchange, "differences", lambda *_: stuck.wait(60) and [])
    site.package("next")
    camera = site.camera()
    try:
        with site.running(site.use(exchange={**QUICK, "prove_s": 0.5})):
            report = site.offer(camera, "1", "next")
            assert report.state == "refused"
            assert report.errors[0].endswith("tiny@2.0: no end of its checks within 0.5 s")
            stuck.set()
            monkeypatch.undo()
            camera.shoot(0.5)
            eventually(lambda: len(site.results) == camera.number)
            assert site.results[-1].model == "tiny@1.0"
            quick = {**QUICK, "prove_s": 60, "force": packages.digest(site.path / "next" / "manifest.json")}
            assert site.offer(camera, "2", "next", exchange=quick).state == "applied"
    finally:
        stuck.set()
