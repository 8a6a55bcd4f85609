"""`skerry model baseline` on a copy of the demo's package."""

import json
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
    assert "expected 570 samples or more in whole windows, got 0 of 5" in capsys.readouterr().err
    assert (package / "manifest.json").read_bytes() == before


def test_a_camera_that_is_none_is_refused(package, capsys):
    assert main(["model", "baseline", str(package), DEMO, "--camera", "gate"]) == 78
    assert "--camera: expected one of belt, got gate" in capsys.readouterr().err


def test_recordings_that_were_kept_make_a_baseline_together(package, tmp_path, capsys):
    before = (package / "manifest.json").read_bytes()
    kept = tmp_path / "kept.json"
    show = [str(package), DEMO, "--seconds", "20", "--window", "20", "--keep", str(kept)]
    assert main(["model", "baseline", *show]) == 0
    assert "20 pictures in 1 windows" in capsys.readouterr().out
    assert (package / "manifest.json").read_bytes() == before, "to keep a recording changes no package"
    merge = ["--merge", str(kept)]
    assert main(["model", "baseline", str(package), *18 * merge]) == 78
    assert "expected 380 samples or more in whole windows, got 360 of 360" in capsys.readouterr().err
    assert main(["model", "baseline", str(package), *20 * merge]) == 0
    found = load(package).manifest.baseline
    assert found is not None
    assert (found.windows, found.window, found.every_s) == (20, 20, 1.0)
    assert sum(found.signals["brightness"].counts) == 400


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "0" * 64}, "expected a recording with the model"),
        ({"windows": [{"score": [1, 2]}]}, r"windows[0].score: expected 20 bins, got 2"),
        ({"windows": [{"mood": [1, 2]}]}, r"windows[0].mood: expected 0 bins, got 2"),
        ({"windows": [{"score": [-1]}]}, "expected a recording of"),
    ],
)
def test_a_recording_that_does_not_fit_changes_nothing(package, tmp_path, capsys, change, said):
    manifest = load(package).manifest
    raw = {
        "schema": 1, "model": manifest.artifact.sha256, "labels": load(package).labels, "every_s": 1.0,
        "window": 20, "samples": 20, "windows": [],
    }  # fmt: skip
    before = (package / "manifest.json").read_bytes()
    (tmp_path / "kept.json").write_text(json.dumps(raw | change), encoding="utf-8")
    assert main(["model", "baseline", str(package), "--merge", str(tmp_path / "kept.json")]) == 78
    assert said in capsys.readouterr().err
    assert (package / "manifest.json").read_bytes() == before


def test_a_baseline_of_nothing_is_refused(package, capsys):
    assert main(["model", "baseline", str(package)]) == 78
    assert "expected SITE or --merge FILE, got neither" in capsys.readouterr().err
