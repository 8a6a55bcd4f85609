"""`skerry model baseline` on a copy of the demo's package."""

import shutil
from pathlib import Path

import pytest

from needs import ROOT
from skerry.cli import main
from skerry.inference.drift import signals
from skerry.models.package import load

DEMO = str(ROOT / "sites" / "demo.yaml")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "models" / "parts", tmp_path / "parts"))


def test_what_the_demo_sees_goes_into_the_package(package, capsys):
    mode = (package / "manifest.json").stat().st_mode
    assert main(["model", "baseline", str(package), DEMO, "--seconds", "400", "--window", "20"]) == 0
    said = capsys.readouterr().out
    assert "400 pictures in 20 windows" in said
    assert "a false alarm in" in said
    found = load(package).manifest.baseline
    assert found is not None
    assert (found.every_s, found.window, found.windows) == (1.0, 20, 20)
    assert {"brightness", "sharpness", "objects", "score"} <= set(found.signals) <= set(signals(3))
    assert (package / "manifest.json").stat().st_mode == mode


def test_a_recording_that_is_too_short_changes_nothing(package, capsys):
    before = (package / "manifest.json").read_bytes()
    assert main(["model", "baseline", str(package), DEMO, "--seconds", "5"]) == 78
    assert "expected 570 samples or more, got 5" in capsys.readouterr().err
    assert (package / "manifest.json").read_bytes() == before


def test_a_camera_that_is_none_is_refused(package, capsys):
    assert main(["model", "baseline", str(package), DEMO, "--camera", "gate"]) == 78
    assert "--camera: expected one of belt, got gate" in capsys.readouterr().err
