import json
from pathlib import Path

import msgspec
import pytest

from skerry.errors import ConfigError, PackageError
from skerry.models.manifest import Manifest, misfits
from skerry.models.package import load
from skerry.settings import parse
from tiny_models import LABELS, bright_model, manifest, tiny_package, write_package


def test_package_knows_its_labels_and_title(tmp_path: Path) -> None:
    package = tiny_package(tmp_path)
    assert package.labels == LABELS
    assert package.title == "tiny@1.0"
    assert package.model.read_bytes() == bright_model().SerializeToString()


def _manifest_with(tmp_path: Path, **changes: object) -> str:
    write_package(tmp_path, **changes)
    with pytest.raises(PackageError) as caught:
        load(tmp_path)
    assert caught.value.exit_code == 65
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder": {"kind": "yolov9"}}, "$.decoder.kind: expected one of parts, yolov5"),
        ({"decoder": {"kind": "parts", "score_treshold": 0.1}}, "did you mean 'score_threshold'?"),
        ({"artifact": {"sha256": "0" * 64}}, "expected sha256 0000000000000000..., got"),
        ({"artifact": {"file": "../model.onnx", "sha256": "0" * 64}}, "$.artifact.file: expected text that"),
        ({"labels": "missing.txt"}, "missing.txt: expected one label a line, got No such file"),
        (
            {"outputs": [{"name": "out", "shape": [1, 1, 8]}]},
            "expected [1, N, 9] (5 + 3 labels + 1 attributes)",
        ),
        ({"outputs": []}, "$.outputs: expected at least 1 items, got 0"),
        ({"schema": 2}, "$.schema: expected one of 1, got 2"),
        ({"name": "no spaces"}, "$.name: expected a name"),
        (
            {"input": {"name": "x", "width": 8, "height": 6, "mean": [1, 2]}},
            "mean: expected 1 or 3 numbers, got 2",
        ),
        (
            {"input": {"name": "x", "width": 8, "height": 6, "scale": [0]}},
            "scale: expected numbers other than 0",
        ),
    ],
)
def test_bad_manifest_says_what_is_wrong(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    assert said in _manifest_with(tmp_path, **changes)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    text = _manifest_with(tmp_path, name="a b", decoder={"kind": "none"}, colour="red")
    assert len(text.splitlines()) == 3


def test_problems_of_files_are_named_at_once(tmp_path: Path) -> None:
    write_package(tmp_path, artifact={"sha256": "1" * 64})
    (tmp_path / "labels.txt").write_text("bolt\n\nbolt\nnut\n")
    with pytest.raises(PackageError) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert "line 2: expected a label, got an empty line" in text
    assert "line 3: expected each label once, got 'bolt' again" in text
    assert "got [1, 1, 9]" in text
    assert "expected sha256 1111" in text


def test_labels_that_do_not_fit_the_outputs_are_refused(tmp_path: Path) -> None:
    write_package(tmp_path)
    (tmp_path / "labels.txt").write_text("bolt\nnut\n")
    with pytest.raises(
        PackageError, match=r"expected \[1, N, 8\] \(5 \+ 2 labels \+ 1 attributes\), got \[1, 1, 9\]"
    ):
        load(tmp_path)


def test_one_flipped_byte_is_refused(tmp_path: Path) -> None:
    write_package(tmp_path)
    content = bytearray((tmp_path / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(PackageError, match="expected sha256"):
        load(tmp_path)


def test_folder_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="expected a model package"):
        load(tmp_path)


def test_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    write_package(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(PackageError, match="expected JSON"):
        load(tmp_path)


def test_manifest_survives_a_round_trip() -> None:
    one = parse(Manifest, manifest(), "test")
    again = parse(Manifest, json.loads(msgspec.json.encode(one)), "test")
    assert one == again


def test_uint8_input_takes_no_mean() -> None:
    spec = {"name": "x", "width": 8, "height": 6, "dtype": "uint8", "mean": [1]}
    with pytest.raises(ConfigError, match="expected float32 where mean or scale change the pixels"):
        parse(Manifest, manifest(input=spec), "test")


@pytest.mark.parametrize(
    ("decoder", "outputs", "labels"),
    [
        ({"kind": "parts"}, {"o": [1, 100, 9]}, 3),
        ({"kind": "parts", "attributes": []}, {"o": [1, 0, 8]}, 3),
        ({"kind": "yolov5"}, {"o": [1, 25200, 85]}, 80),
        ({"kind": "yolov8"}, {"o": [1, 84, 8400]}, 80),
        ({"kind": "fastestdet"}, {"o": [1, 85, 22, 22]}, 80),
        ({"kind": "ultraface"}, {"scores": [1, 4420, 2], "boxes": [1, 4420, 4]}, 1),
        ({"kind": "ssd"}, {"o": [1, 1, 200, 7]}, 20),
        ({"kind": "ssd"}, {"o": [0, 7]}, 20),
        ({"kind": "ssd", "form": "pairs"}, {"scores": [1, 9, 21], "boxes": [1, 9, 4]}, 20),
        (
            {"kind": "ssd", "form": "pairs", "background": False},
            {"scores": [1, 9, 20], "boxes": [1, 9, 4]},
            20,
        ),
        ({"kind": "classification"}, {"o": [1, 1000]}, 1000),
        ({"kind": "classification", "background": True}, {"o": [1, 1001]}, 1000),
    ],
)
def test_each_decoder_fits_its_own_outputs_and_no_other_number_of_labels(
    decoder: dict[str, object], outputs: dict[str, list[int]], labels: int
) -> None:
    shapes = [{"name": name, "shape": shape} for name, shape in outputs.items()]
    one = parse(Manifest, manifest(decoder=decoder, outputs=shapes), "test")
    assert misfits(one, labels) == []
    if decoder != {"kind": "ssd"}:  # its rows carry a class number, any number of labels fits
        assert len(misfits(one, labels + 1)) == 1
    extra = parse(
        Manifest,
        manifest(decoder=decoder, outputs=[{"name": "unwanted", "shape": [1, 2]}]),
        "test",
    )
    assert misfits(extra, labels)
