"""Golden pictures and agreement: what counts as the same."""

import json
from pathlib import Path

import cv2
import msgspec
import pytest

from skerry.errors import ConfigError, PackageError
from skerry.inference.agreement import Agreement, compare, overlap
from skerry.inference.golden import differences, mismatches
from skerry.inference.model import Result
from skerry.messages import Detection
from skerry.models.manifest import Golden, GoldenPicture, Sighting
from skerry.models.package import load
from tiny_models import bright_model, frame, write_package

BOX = (0.1, 0.1, 0.3, 0.4)
GOLDEN = Golden(pictures=(GoldenPicture(file="a.png", sha256="0" * 64),))


def seen(label="bolt", score=0.8, box=BOX, **attributes):
    return Detection(label, score, box, attributes)


def wanted(label="bolt", score=0.8, box=BOX, **attributes):
    return Sighting(label=label, score=score, box=box, attributes=attributes)


def test_within_the_tolerances_is_the_same():
    assert not mismatches(
        [wanted(defect=0.5)], [seen(score=0.785, box=(0.1, 0.105, 0.3, 0.4), defect=0.51)], GOLDEN, 0.4
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([seen("nut")], "expected bolt 0.80 at [0.100, 0.100, 0.300, 0.400], got nut 0.80"),
        ([seen(score=0.7)], "got bolt 0.70"),
        ([seen(box=(0.12, 0.1, 0.3, 0.4))], "got bolt 0.80 at [0.120"),
        ([seen(defect=0.5)], "got bolt 0.80"),
        ([], "got nothing"),
        ([seen(), seen(box=(0.6, 0.6, 0.8, 0.8))], "expected no more objects, got bolt"),
        ([seen(), seen()], "expected no more objects, got bolt"),
    ],
)
def test_beyond_the_tolerances_is_told(found, said):
    assert said in mismatches([wanted()], found, GOLDEN, 0.4)[0]


def test_an_object_at_the_threshold_may_be_there_or_not():
    assert not mismatches([wanted(score=0.41)], [], GOLDEN, 0.4)
    assert not mismatches([], [seen(score=0.41)], GOLDEN, 0.4)
    assert mismatches([wanted(score=0.45)], [], GOLDEN, 0.4)


def test_agreement_counts_objects_of_one_label_that_overlap_by_half():
    far = (0.6, 0.6, 0.8, 0.8)
    one = [seen(), seen(box=far), seen("nut", box=far)]
    assert compare(one, [seen(box=(0.11, 0.1, 0.31, 0.4)), seen("nut", box=BOX)]) == Agreement(1, 1, 4)
    assert compare(one, one).share == 1
    assert compare(one, []).share == 0
    assert compare([], []).share is None
    total = compare(one, one) + compare(one, []) + compare([], [])
    assert total == Agreement(3, 3, 6)
    assert str(total) == "50% of 6 objects in 3 frames"


def test_an_object_is_paired_once():
    assert compare([seen(), seen()], [seen()]) == Agreement(1, 1, 2)


def test_overlap_is_intersection_over_union():
    assert overlap((0, 0, 0.2, 0.2), (0.1, 0, 0.3, 0.2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 0.2, 0.2), (0.2, 0, 0.3, 0.2)) == 0


def _pictures(folder: Path) -> Path:
    folder.mkdir()
    for n, brightness in enumerate((0.3, 0.6)):
        cv2.imwrite(str(folder / f"{n}.png"), frame(brightness))
    return folder


def test_golden_pictures_are_made_once_and_looked_at_on_every_load(tmp_path, capsys):
    from skerry.cli import main

    folder = write_package(tmp_path / "package", bright_model())
    assert main(["model", "golden", str(folder), str(_pictures(tmp_path / "pictures")), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [p["objects"] for p in report["pictures"]] == [1, 1]
    package = load(folder)
    golden = package.manifest.golden
    assert golden is not None
    assert [p.objects[0].score for p in golden.pictures] == pytest.approx([0.3, 0.6], abs=0.01)
    box = golden.pictures[0].objects[0].box

    def right(pixels):
        return Result((seen(score=float(pixels.mean()) / 255, box=box, defect=0.25),))

    assert not differences(package, right)
    assert "got nothing" in differences(package, lambda _: Result())[0]
    assert differences(package, lambda _: Result(reason="session: broken"))[0].endswith(": session: broken")

    first = {p.name for p in folder.glob("golden-*.png")}
    again = tmp_path / "again.png"
    cv2.imwrite(str(again), frame(0.5))
    assert main(["model", "golden", str(folder), str(again)]) == 0
    capsys.readouterr()
    (left,) = folder.glob("golden-*.png")
    assert left.name not in first
    cv2.imwrite(str(left), frame(0.9))
    with pytest.raises(PackageError, match=r"golden-.*expected sha256"):
        load(folder)


def test_golden_pictures_of_labels_that_the_package_lacks_are_refused(tmp_path):
    folder = write_package(tmp_path / "package")
    picture = folder / "a.png"
    cv2.imwrite(str(picture), frame(0.5))
    from skerry.models.package import digest

    raw = json.loads((folder / "manifest.json").read_text())
    golden = Golden(
        pictures=(GoldenPicture(file="a.png", sha256=digest(picture), objects=(wanted("screw"),)),)
    )
    raw["golden"] = msgspec.to_builtins(golden)
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(PackageError, match=r"golden.pictures\[0\]: expected labels of labels.txt, got screw"):
        load(folder)


@pytest.mark.parametrize("images", [["nowhere.png"], ["empty"]])
def test_pictures_that_cannot_be_read_change_nothing(tmp_path, images):
    from skerry.cli.model_golden import make

    folder = write_package(tmp_path / "package")
    before = sorted((p.name, p.read_bytes()) for p in folder.iterdir())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError):
        make(folder, [tmp_path / name for name in images])
    assert sorted((p.name, p.read_bytes()) for p in folder.iterdir()) == before
