"""`skerry model samples`: what a device kept becomes a set that other commands read, once it is corrected."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from skerry.cli import main
from skerry.clock import utc
from skerry.errors import ConfigError
from skerry.inference.samples import About, Shelf, encoded, suggestions
from skerry.messages import Detection
from skerry.models.datasets import read

LABELS = ("bolt", "nut")
NUT = Detection("nut", 0.61, (0.25, 0.5, 0.5, 1.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three samples of two cameras; 64 x 48, one without objects."""
    shelf = Shelf(tmp_path / "samples")
    for n, (camera, trigger, objects) in enumerate(
        [("gate", "drift", [NUT]), ("gate", "low_score", [NUT, NUT]), ("ramp", "drift", [])]
    ):
        about = About(
            camera=camera, time=utc(n), number=n + 1, model="parts@1.0.0", digest="d" * 64, labels=LABELS,
            trigger=trigger, why="drift: brightness", privacy="crop", details=True, width=64, height=48,
            objects=suggestions(objects, 64, 48), concealed=0, kept_at=utc(n), erase_after=utc(1e9),
        )  # fmt: skip
        picture = np.full((48, 64, 3), 50 * n, np.uint8)
        shelf.keep(f"{n}-{camera}", about, encoded(picture), most_bytes=1_000_000)
    return shelf.folder


def corrected(out: Path) -> None:
    path = out / "annotations.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw["info"]["suggested"]
    path.write_text(json.dumps(raw), encoding="utf-8")


def test_samples_become_a_labelled_folder_once_somebody_has_corrected_them(folder, tmp_path, capsys):
    out = tmp_path / "to-label"
    assert main(["model", "samples", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "3 pictures, 3 suggestions" in said
    with pytest.raises(ConfigError, match="somebody has corrected, got a model's suggestions"):
        read(out)
    corrected(out)
    found = read(out)
    assert found.form == "coco"
    assert [len(picture.truths) for picture in found.pictures] == [1, 2, 0]
    truth = found.pictures[0].truths[0]
    assert (truth.label, truth.box) == ("nut", pytest.approx(NUT.box))
    raw = json.loads((out / "annotations.json").read_text(encoding="utf-8"))
    assert [category["name"] for category in raw["categories"]] == list(LABELS), "a label not seen is offered"
    assert raw["images"][0]["why"] == "drift: brightness"
    sheet = cv2.imread(str(out / "contact-sheet.jpg"))
    assert sheet.shape == (2 * (237 + 40), 2 * 320, 3)


def test_what_is_kept_is_counted_by_camera_and_reason(folder, capsys):
    assert main(["model", "samples", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 3
    assert report["next_erased"] == utc(1e9)
    assert {"camera": "gate", "why": "low_score", "samples": 1} in report["of"]


def test_erasing_takes_what_is_asked_for_and_no_more(folder, capsys):
    assert main(["model", "samples", str(folder), "--camera", "gate", "--why", "drift", "--erase"]) == 0
    assert "erased 1" in capsys.readouterr().out
    assert len(Shelf(folder).kept()) == 2
    assert main(["model", "samples", str(folder), "--erase"]) == 0
    assert list(folder.iterdir()) == []


def test_a_set_is_never_written_over_another_and_then_nothing_is_erased(folder, tmp_path, capsys):
    (tmp_path / "to-label").mkdir()
    assert main(["model", "samples", str(folder), "--out", str(tmp_path / "to-label"), "--erase"]) == 78
    assert "expected a folder that is not there yet" in capsys.readouterr().err
    assert len(Shelf(folder).kept()) == 3


def test_a_damaged_picture_is_named_and_left_out(folder, tmp_path, capsys):
    (folder / "0-gate.jpg").write_bytes(b"cut off")
    assert main(["model", "samples", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "0-gate: no picture, left out" in capsys.readouterr().out
    corrected(tmp_path / "out")
    assert len(read(tmp_path / "out").pictures) == 2


def test_a_folder_without_samples_is_refused(tmp_path, capsys):
    assert main(["model", "samples", str(tmp_path / "none")]) == 78
    assert main(["model", "samples", str(tmp_path), "--out", str(tmp_path / "out")]) == 78
    assert not (tmp_path / "out").exists()
