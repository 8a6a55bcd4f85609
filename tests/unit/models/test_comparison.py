"""What `skerry model diff` finds, and what it says of who would notice."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_folders import package_folder, packed
from skerry.cli import main
from skerry.errors import ConfigError, PackageError
from skerry.models import layout
from skerry.models.comparison import Comparison, Moved, compare, compare_labels, load


def both(room: Path, labels: str | None = None, same_weights: bool = True, **changes: Any) -> Comparison:
    """1.0.0, and what came of it."""
    one = package_folder(room / "a")
    version = changes.pop("version", "1.1.0")
    other = package_folder(room / "b", version, **changes)
    if same_weights:
        manifest = json.loads((other / "manifest.json").read_bytes())
        manifest["artifact"] = json.loads((one / "manifest.json").read_bytes())["artifact"]
        (other / "manifest.json").write_text(json.dumps(manifest))
        (other / "model.onnx").write_bytes((one / "model.onnx").read_bytes())
    if labels is not None:
        (other / "labels.txt").write_text(labels)
    return compare(load(str(one)), load(str(other)))


def notice(found: Comparison, begin: str) -> str:
    (text,) = [n.device for n in found.notices if n.what.startswith(begin)]
    return text


def test_a_package_is_the_same_as_itself_in_a_layout(tmp_path: Path) -> None:
    packed(tmp_path)
    found = compare(load(str(tmp_path / "1.0.0")), load(str(tmp_path / "layout")))
    assert found.same
    assert (found.fields, found.files, found.forms, found.notices) == ((), (), (), ())
    assert found.b["digest"].startswith("sha256:")


def test_labels_are_told_as_added_removed_and_moved() -> None:
    found = compare_labels(("bolt", "nut", "washer"), ("screw", "bolt", "washer"))
    assert (found.added, found.removed, found.moved) == (("screw",), ("nut",), (Moved("bolt", 0, 1),))


def test_labels_that_moved_under_the_same_weights_are_refused_by_a_device(tmp_path: Path) -> None:
    found = both(tmp_path, labels="bad\ngood\n")
    assert notice(found, "labels moved: bad 1 -> 0, good 0 -> 1").startswith("refuses it")
    assert found.refused


def test_labels_that_moved_with_their_weights_are_no_reason_to_refuse(tmp_path: Path) -> None:
    found = both(tmp_path, labels="bad\ngood\n", same_weights=False)
    assert notice(found, "labels moved").startswith("takes it, if the weights moved along")
    assert not found.refused


def test_a_label_that_went_is_refused_by_a_device(tmp_path: Path) -> None:
    found = both(tmp_path, labels="good\nworse\n", same_weights=False)
    assert notice(found, "labels removed: bad").startswith("refuses it")
    assert notice(found, "labels added: worse") == "takes it"
    assert found.refused


@pytest.mark.parametrize(
    ("changes", "field", "a", "b"),
    [
        ({"input": {"name": "in", "width": 16, "height": 6}}, "input.width", 8, 16),
        ({"decoder": {"kind": "classification", "max_objects": 9}}, "decoder.max_objects", 300, 9),
        ({"budget": {"latency_ms": 4.0}}, "budget.latency_ms", None, 4.0),
        ({"licence": "MIT"}, "licence", "", "MIT"),
    ],
)  # fmt: skip
def test_a_field_of_the_manifest_is_told_by_its_path(
    tmp_path: Path, changes: dict[str, Any], field: str, a: object, b: object
) -> None:
    found = both(tmp_path, **changes)
    assert [(c.what, c.a, c.b) for c in found.fields] == [(field, a, b)]
    assert not found.refused


def test_an_older_version_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    found = both(tmp_path, version="0.9.0")
    assert notice(found, "older: 0.9.0 after 1.0.0") == "refuses it, unless its site asks for that version"
    assert found.refused


def test_two_contents_of_one_version_are_told(tmp_path: Path) -> None:
    found = both(tmp_path, version="1.0.0", licence="MIT")
    assert notice(found, "two contents of version 1.0.0")


def test_another_model_is_refused(tmp_path: Path) -> None:
    assert notice(both(tmp_path, name="other"), "another model: tiny, other").startswith("refuses it")


def test_a_lower_security_epoch_is_refused(tmp_path: Path) -> None:
    layout.pack(package_folder(tmp_path / "1"), tmp_path / "one", security_epoch=2)
    layout.pack(package_folder(tmp_path / "2", "1.1.0"), tmp_path / "two", security_epoch=1)
    a, b = load(str(tmp_path / "one")), load(str(tmp_path / "two"))
    assert compare(a, b).refused
    assert not compare(b, a).refused or notice(compare(b, a), "older")
    assert notice(compare(b, a), "security epoch 2 after 1").startswith("takes it, and once")


def test_attributes_that_went_are_refused(tmp_path: Path) -> None:
    def parts(room: Path, version: str, attributes: list[str]) -> Path:
        shape = [1, 0, 5 + 2 + len(attributes)]
        decoder = {"kind": "parts", "attributes": attributes}
        return package_folder(room, version, decoder=decoder, outputs=[{"name": "out", "shape": shape}])

    a = load(str(parts(tmp_path / "a", "1.0.0", ["defect", "wet"])))
    b = load(str(parts(tmp_path / "b", "1.1.0", ["defect"])))
    assert notice(compare(a, b), "attributes lost: wet").startswith("refuses it")


def figures(value: float) -> dict[str, Any]:
    """A variant with a measured figure."""
    measured = {"runtime": "onnxruntime", "isa": "avx2", "metric": "top1", "value": value, "delta": 0.0}
    return {"name": "onnx-int8", "file": "model.onnx", "precision": "int8", "measured": [measured]}


def test_figures_are_compared_where_both_were_measured_alike(tmp_path: Path) -> None:
    sides = []
    for n, value in enumerate((0.9, 0.8)):
        folder = package_folder(tmp_path / str(n), f"1.{n}.0")
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["variants"] = [{**figures(value), "sha256": manifest["artifact"]["sha256"]}]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        sides.append(load(str(folder)))
    (score,) = compare(*sides).scores
    assert (score.form, score.runtime, score.isa, score.a, score.b) == (
        "onnx-int8",
        "onnxruntime",
        "avx2",
        0.9,
        0.8,
    )
    assert compare(sides[0], load(str(package_folder(tmp_path / "c", "2.0.0")))).scores == ()


def test_a_package_of_a_layout_is_found_by_name_and_version(tmp_path: Path) -> None:
    packed(tmp_path, "1.0.0")
    packed(tmp_path, "1.1.0")
    there = str(tmp_path / "layout")
    assert load(f"{there}#tiny@1.1.0").title == "tiny@1.1.0"
    assert load(f"{there}#{load(f'{there}#tiny@1.0.0').digest[:12]}").title == "tiny@1.0.0"
    with pytest.raises(PackageError, match=r"expected one package tiny@2\.0\.0, got 0"):
        load(f"{there}#tiny@2.0.0")
    with pytest.raises(PackageError, match="expected one package, got 2"):
        load(there)
    with pytest.raises(ConfigError, match="got nothing there"):
        load(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="expected an image layout before #"):
        load(f"{tmp_path / '1.0.0'}#tiny@1.0.0")


def test_the_command_says_so_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = package_folder(tmp_path / "a")
    other = package_folder(tmp_path / "b", "1.1.0")
    (other / "labels.txt").write_text("good\nworse\n")
    assert main(["model", "diff", str(one), str(other)]) == 0
    text = capsys.readouterr().out
    assert "labels removed: bad" in text
    assert "a device refuses B" in text
    assert main(["model", "diff", str(one), str(other), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["refused"] is True
    assert report["labels"] == {"added": ["worse"], "removed": ["bad"], "moved": []}
    assert main(["model", "diff", str(one), str(one)]) == 0
    assert "the same, byte for byte" in capsys.readouterr().out
    (other / "model.onnx").write_bytes(b"another")
    assert main(["model", "diff", str(one), str(other)]) == 65
