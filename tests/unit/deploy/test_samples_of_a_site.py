"""Samples of a site: a camera's own setting says what may be kept of it, and nobody says it in its place."""

from pathlib import Path

import pytest

from needs import ROOT
from skerry.deploy.plan import Place, plan
from skerry.deploy.site import load_site
from skerry.desired import adjusted, nothing
from skerry.errors import ConfigError
from skerry.inference.settings import InferenceSettings
from skerry.settings import BusSettings

SITE = f"""
site: test
cameras:
  - {{name: belt, source: {{kind: synthetic}}, snapshots: %s}}
  - {{name: gate, source: {{kind: synthetic}}, snapshots: %s}}
models:
  - {{package: {ROOT / "models" / "parts"}%s}}
"""
SAMPLES = ", samples: {when: [drift]}"


def inference(folder: Path, text: str) -> InferenceSettings:
    path = folder / "site.yaml"
    path.write_text(text, encoding="utf-8")
    place = Place(state="/s", frames="/f", output="/o", bus=BusSettings())
    (part,) = plan(load_site(path), place).of("inference")
    settings = part.settings
    assert isinstance(settings, InferenceSettings)
    return settings


def test_inference_is_told_what_each_camera_allows(tmp_path: Path) -> None:
    told = inference(tmp_path, SITE % ("blurred", "never", SAMPLES))
    assert told.snapshots == {"belt": "blurred"}
    samples = told.models[0].samples
    assert samples is not None
    assert samples.privacy == "crop", "unless the site says otherwise"


def test_a_site_that_says_nothing_of_samples_keeps_none(tmp_path: Path) -> None:
    told = inference(tmp_path, SITE % ("allowed", "never", ""))
    assert told.snapshots == {"belt": "allowed"}, "what was kept before goes by it"
    assert told.models[0].samples is None


def test_samples_of_cameras_that_all_forbid_them_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        inference(tmp_path, SITE % ("never", "never", SAMPLES))
    (problem,) = caught.value.problems
    assert problem == (
        "site.yaml: $.models[0].samples: expected a camera whose snapshots are blurred or allowed, "
        "got never for belt, gate (set it there)"
    )


@pytest.mark.parametrize(
    "patch",
    [
        {"models": {"0": {"samples": {"when": ["drift"], "privacy": "full"}}}},
        {"snapshots": {"gate": "allowed"}},
    ],
)
def test_nothing_from_outside_changes_what_is_kept(tmp_path: Path, patch: dict[str, object]) -> None:
    deployed = inference(tmp_path, SITE % ("allowed", "never", SAMPLES))
    with pytest.raises(ConfigError, match="expected a setting that may be changed from outside"):
        adjusted(deployed, deployed, patch, nothing, "modules.inference")
