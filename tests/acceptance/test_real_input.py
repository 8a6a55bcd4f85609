"""Real footage and foreign models, from the import of the model to the far end."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import needs
from site_run import SiteRun, assert_exactly_once, site_run

PEOPLE = needs.DATA / "one-by-one-person-detection.mp4"
BOTTLES = needs.DATA / "bottle-detection.mp4"
PERSONS = 6
"""Counted by eye: six persons come from below, one by one, stop at the table, and leave to the right."""


def imported(folder: Path, model: str, short: str, *more: str) -> Path:
    """A package made by `skerry model import`, as a user would."""
    out = folder / short
    command = [sys.executable, "-m", "skerry", "model", "import", str(needs.DATA / model), "--out", str(out)]
    command += ["--manifest", str(needs.ROOT / "sites" / "models" / f"{short}.yaml"), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def fastestdet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    return imported(folder, "fastestdet.onnx", "fastestdet", "--labels", str(needs.DATA / "coco.names"))


@pytest.fixture(scope="module")
def ultraface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported(tmp_path_factory.mktemp("packages"), "ultraface-slim-320.onnx", "ultraface")


def run_to_its_end(out: Path, site: str, video: Path, package: Path) -> tuple[SiteRun, dict]:
    path = needs.ROOT / "sites" / site
    with site_run(out, "run", str(path), "--set", f"video={video}", "--set", f"package={package}") as run:
        code, result = run.finish(within_s=115)
        assert code == 0, run.stderr()
        assert result["ledger_balanced"]
        (camera,) = result["cameras"].values()
        assert camera["captured"] == camera["inferred"], (
            camera
        )  # a file, as fast as possible: no frame is dropped
        assert_exactly_once(run.delivered())
        return run, result


@needs.mosquitto
@needs.data
@pytest.mark.slow
class TestRealFootage:
    def test_the_people_who_walk_through_are_counted(self, tmp_path: Path, fastestdet: Path) -> None:
        run, result = run_to_its_end(tmp_path / "out", "people.yaml", PEOPLE, fastestdet)
        assert result["cameras"]["hall"]["captured"] == 1394
        crossed = [e for e in run.delivered() if e["subject"] == "hall/walked-through"]
        assert len(crossed) == PERSONS
        assert [e["data"]["total"] for e in crossed] == list(range(1, PERSONS + 1))

    def test_faces_are_seen_and_reported(self, tmp_path: Path, ultraface: Path) -> None:
        run, _ = run_to_its_end(tmp_path / "out", "faces.yaml", PEOPLE, ultraface)
        assert run.delivered()
        assert {e["data"]["label"] for e in run.delivered()} == {"face"}

    def test_bottles_on_a_table_are_reported(self, tmp_path: Path, fastestdet: Path) -> None:
        run, result = run_to_its_end(tmp_path / "out", "bottles.yaml", BOTTLES, fastestdet)
        assert result["cameras"]["table"]["captured"] == 1189
        kinds = Counter(e["type"] for e in run.delivered())
        assert kinds["skerry.presence.started"] >= 1
