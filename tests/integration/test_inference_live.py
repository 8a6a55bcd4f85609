"""Settings of the inference module changed while it runs, and what it says of itself."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from integration.test_inference import Site
from skerry.channels import DESIRED, INVENTORY, REPORTED
from skerry.desired import digest
from skerry.messages import Desired, Inventory, ModelInUse, Reported
from skerry.testing import eventually
from tiny_models import moody_model, write_package


class Steered(Site):
    """An inference module that is steered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reports: list[Reported] = []
        self.inventories: list[Inventory] = []
        self.bus.subscribe(REPORTED, self.reports.append)
        self.bus.subscribe(INVENTORY, self.inventories.append)

    def apply(self, number: str, **model: Any) -> Reported:
        """Have it applied."""
        patch = {"models": {"0": model}}
        message = Desired(module="inference", version=number, digest=digest(patch), patch=patch)
        self.bus.publish(DESIRED, message, "inference")
        eventually(lambda: self.reports and self.reports[-1].version == number)
        return self.reports[-1]


@pytest.fixture
def site(tmp_path: Path) -> Steered:
    write_package(tmp_path / "package", moody_model())
    return Steered(tmp_path)


def test_a_threshold_holds_from_the_next_frame_on_and_every_frame_is_accounted_for(site):
    camera = site.camera()
    shown = []
    with site.running():
        for number, threshold in enumerate((None, 0.7, 0.5, 0.9, None), 1):
            assert site.apply(str(number), score_threshold=threshold).state == "applied"
            camera.shoot(0.6)
            eventually(lambda number=number: len(site.results) == number)
            shown.append(len(site.results[-1].objects))
    assert shown == [1, 0, 1, 0, 1]
    assert {result.status for result in site.results} == {"ok"}
    assert site.terms() == {"received": 5, "inferred": 5}


def test_no_frame_is_lost_under_a_flood_of_thresholds(site):
    camera = site.camera()
    with site.running():
        for number in range(200):
            patch = {"models": {"0": {"score_threshold": number % 10 / 10}}}
            wanted = Desired(module="inference", version=str(number), digest=digest(patch), patch=patch)
            site.bus.publish(DESIRED, wanted, "inference")
            if number % 10 == 0:
                camera.shoot(0.6)
        eventually(lambda: site.reports and site.reports[-1].version == "199")
        eventually(lambda: sum(n for k, n in site.terms().items() if k != "received") == 20)
    assert [result.sequence for result in site.results] == list(range(1, len(site.results) + 1))
    terms = site.terms()
    assert terms.pop("received") == sum(terms.values()) == 20


def test_what_needs_a_restart_is_said_and_changes_nothing_now(site):
    camera = site.camera()
    with site.running():
        report = site.apply("1", device="cuda", batch={"max": 2}, score_threshold=0.7)
        assert report.state == "applied"
        assert report.restart == ("models.0.device", "models.0.batch.max")
        camera.shoot(0.6)
        eventually(lambda: site.results)
        assert site.results[0].model == "tiny@1.0"
        assert site.results[0].objects == ()


def test_a_device_that_the_runtime_does_not_know_is_refused_in_the_words_of_the_patch(site):
    with site.running():
        report = site.apply("1", device="npu")
    assert report.state == "refused"
    assert report.errors[0].startswith("modules.inference.models.0: device: expected one of cpu, cuda")


def test_the_inventory_names_what_is_installed_and_the_model_by_its_manifest(site):
    with site.running({"package": str(site.path / "package"), "runtime": "onnxruntime", "cameras": ["gate"]}):
        eventually(lambda: site.inventories and site.inventories[-1].models)
    said = site.inventories[-1]
    manifest = (site.path / "package" / "manifest.json").read_bytes()
    assert said.models == (
        ModelInUse(
            model="tiny@1.0",
            digest=hashlib.sha256(manifest).hexdigest(),
            runtime="onnxruntime/cpu",
            cameras=("gate",),
        ),
    )
    assert said.runtimes["onnxruntime"] == version("onnxruntime")
    assert "openvino" not in said.runtimes or said.runtimes["openvino"].startswith(version("openvino"))


def test_saying_what_is_installed_imports_none_of_it():
    import subprocess

    code = (
        "import sys; from skerry.inference.module import _runtimes; assert _runtimes();"
        "assert not {'onnxruntime', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
