"""Labelled folders in three forms, and what is wrong with them."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from needs import ROOT
from skerry.cli import main
from skerry.errors import ConfigError
from skerry.models.datasets import read
from skerry.models.evaluation import Truth

COCO = {
    "images": [{"id": 7, "file_name": "far/away/one.png", "width": 100, "height": 50}],
    "annotations": [
        {"image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 20], "iscrowd": 0},
        {"image_id": 7, "category_id": 3, "bbox": [50, 0, 50, 50], "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "nut"}],
}
VOC = """<annotation><filename>one.png</filename><size><width>100</width><height>50</height></size>
<object><name>nut</name><difficult>0</difficult><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((50, 100, 3), np.uint8))


def coco(folder: Path, raw: object = COCO) -> Path:
    picture(folder / "images" / "one.png")
    (folder / "instances.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


def voc(folder: Path, text: str = VOC) -> Path:
    picture(folder / "JPEGImages" / "one.png")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "one.xml").write_text(text, encoding="utf-8")
    return folder


def test_coco_is_read_with_its_crowds(tmp_path):
    its = read(coco(tmp_path))
    assert its.form == "coco"
    assert its.labels == ("nut",)
    [labelled] = its.pictures
    assert labelled.path == tmp_path / "images" / "one.png"
    assert labelled.truths == (
        Truth("nut", (0.1, 0.2, 0.3, 0.6)),
        Truth("nut", (0.5, 0.0, 1.0, 1.0), crowd=True),
    )


def test_voc_is_read_in_pixels_from_one(tmp_path):
    its = read(voc(tmp_path))
    assert its.form == "voc"
    assert its.pictures[0].truths == (Truth("nut", (0.1, 0.2, 0.3, 0.6)),)


def test_what_is_difficult_in_voc_is_a_crowd(tmp_path):
    its = read(voc(tmp_path, VOC.replace("<difficult>0", "<difficult>1")))
    assert its.pictures[0].truths[0].crowd


def test_a_folder_a_label_is_read(tmp_path):
    picture(tmp_path / "bolt" / "1.png")
    picture(tmp_path / "nut" / "1.JPG")
    its = read(tmp_path)
    assert its.form == "folders"
    assert [p.truths[0].label for p in its.pictures] == ["bolt", "nut"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: f / "none", "expected a folder of labelled pictures, found none"),
        (lambda f: f, "found none"),
        (lambda f: coco(f, {}), "missing or wrong: 'categories'"),
        (
            lambda f: coco(f, {**COCO, "annotations": [{"image_id": 8, "bbox": [0, 0, 1, 1]}]}),
            "missing or wrong: 8",
        ),
        (lambda f: coco(f, {**COCO, "images": [{**COCO["images"][0], "file_name": "two.png"}]}), "two.png"),
        (lambda f: coco(f, {**COCO, "images": [{**COCO["images"][0], "width": 0}]}), "missing or wrong"),
        (lambda f: voc(f, "<annotation>"), "expected a VOC annotation"),
        (lambda f: voc(f, VOC.replace("<xmin>11</xmin>", "")), "an object without a box"),
        (lambda f: voc(f, VOC.replace("one.png", "../../two.png")), "two.png, found none"),
    ],
)
def test_a_wrong_folder_is_refused_with_what_is_wrong(tmp_path, make, said):
    with pytest.raises(ConfigError) as error:
        read(make(tmp_path))
    assert said in str(error.value)


@pytest.fixture(scope="module")
def belt(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("belt")
    command = [
        sys.executable,
        str(ROOT / "scripts" / "label_scene"),
        "--out",
        str(folder),
        "--pictures",
        "40",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_demo_model_is_as_good_as_its_card_says_on_every_runtime(belt, capsys):
    package = str(ROOT / "models" / "parts")
    assert main(["model", "evaluate", package, str(belt), "--json", "--least-map50", "0.97"]) == 0
    found = json.loads(capsys.readouterr().out)["runtimes"]
    assert {"onnxruntime", "openvino"} <= set(found)
    one, other = found["onnxruntime"], found["openvino"]
    assert one["map50"] == pytest.approx(other["map50"], abs=0.005)
    assert one["labels"]["nut"]["truths"] > 20


def test_a_model_that_is_less_good_than_asked_for_ends_with_65(belt, capsys):
    asked = ["model", "evaluate", str(ROOT / "models" / "parts"), str(belt), "--runtime", "onnxruntime"]
    assert main([*asked, "--least-map50", "1.01"]) == 65
    said = capsys.readouterr()
    assert "onnxruntime: map50: expected at least 1.01" in said.err
    assert "bolt" in said.out


def test_pictures_of_something_else_are_refused(tmp_path, capsys):
    picture(tmp_path / "cat" / "1.png")
    assert main(["model", "evaluate", str(ROOT / "models" / "parts"), str(tmp_path)]) == 78
    assert "expected labels of the model (bolt, nut, washer), got cat" in capsys.readouterr().err
