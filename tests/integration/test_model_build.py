"""`skerry model build` from end to end, on models of a few nodes and real runtimes."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import onnx
import pytest

from build_specs import classifier_spec, detector_spec, silu_model
from skerry.cli import main
from skerry.inference.choose import choose
from skerry.inference.runtimes import Place, installed
from skerry.models import layout
from skerry.models.building import record
from skerry.models.package import load
from skerry.models.provenance import PROVENANCE, loose_ends
from skerry.models.provenance import read as read_provenance
from tiny_models import bright_model

ALL = {
    "onnx-int8": {"recipes": 4, "runtimes": ["onnxruntime"]}, "openvino-fp16": {},
    "openvino-int8": {"through": "onnx"},
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of every form, `package`, and its reports; made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "model-build"
    with (folder.parent / "model-build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "package").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            spec = detector_spec(folder, artifacts=ALL, security_epoch=2)
            asked = ["model", "build", str(spec), "--out", str(folder / "package"), "--quiet"]
            assert main([*asked, "--layout", str(folder / "layout")]) == 0
    return folder


def test_every_form_that_ships_was_measured_on_every_runtime_that_may_load_it(built: Path) -> None:
    package = load(built / "package")
    assert [v.name for v in package.manifest.variants] == list(ALL)
    for variant in package.manifest.variants:
        assert {delta.runtime for delta in variant.measured} == set(variant.runtimes)
        assert variant.runtimes
        assert all(-delta.delta <= 0.01 for delta in variant.measured)
        assert variant.golden is not None
        assert all(picture.objects for picture in variant.golden.pictures)
    its = record.read(built / "package")
    assert its is not None
    assert [(a.name, a.status) for a in its.artifacts] == [
        ("onnx-fp32", "reference"), *((name, "shipped") for name in ALL),
    ]  # fmt: skip
    assert all(a.figures for a in its.artifacts)
    assert {each.role: each.pictures for each in its.data} == {
        "calibration": 12, "evaluation": 12, "golden": 2,
    }  # fmt: skip


def test_what_went_in_and_came_out_of_each_step_hangs_together(built: Path) -> None:
    folder = built / "package"
    statement = read_provenance((folder / PROVENANCE).read_bytes(), PROVENANCE)
    assert loose_ends(statement) == []
    files = {path.name for path in folder.iterdir()}
    assert files >= {"MODEL_CARD.md", "bom.json", "build.json", "report.md", "report.svg", "provenance.json"}


def test_a_device_takes_what_was_built(built: Path, tmp_path: Path) -> None:
    choice = choose(load(built / "package"), Place(cache=tmp_path), precision="int8")
    assert {m.error for m in choice.measurements} == {""}
    assert choice.form in ("onnx-int8", "openvino-int8")


def test_golden_pictures_are_taken_anew_for_every_form(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(built / "package", folder)
    assert main(["model", "golden", str(folder), str(built / "belt" / "13.png")]) == 0
    manifest = load(folder).manifest
    goldens = [manifest.golden, *(variant.golden for variant in manifest.variants)]
    names = {picture.file for golden in goldens if golden is not None for picture in golden.pictures}
    assert None not in goldens
    assert names == {path.name for path in folder.glob("golden-*.png")}
    assert len(names) == 1


def test_forms_are_evaluated_on_the_runtimes_that_may_load_them(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["model", "evaluate", str(built / "package"), str(built / "belt"), "--json"]
    assert main([*asked, "--form", "onnx-int8", "--form", "openvino-fp16"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["runtimes"]) == ["onnxruntime onnx-int8", "openvino openvino-fp16"]
    assert main([*asked, "--form", "nothing"]) == 78
    assert "--form: expected one that onnxruntime/openvino may load, got nothing" in capsys.readouterr().err


def test_times_stand_beside_the_package_and_not_in_it(built: Path) -> None:
    report = json.loads((built / "package.report.json").read_text())
    assert all(f["ms"] > 0 for artifact in report["artifacts"] for f in artifact["figures"])
    assert "| ms |" in (built / "package.report.md").read_text()
    assert "| ms |" not in (built / "package" / "report.md").read_text()
    assert report["digest"] == f"sha256:{layout.select(built / 'layout').hexadecimal}"
    assert layout.verify(built / "layout").config.security_epoch == 2


def test_the_same_spec_gives_the_same_package(built: Path, tmp_path: Path) -> None:
    """In another folder, with the same relative paths."""
    spec = detector_spec(tmp_path, artifacts=ALL, security_epoch=2)
    out = tmp_path / "elsewhere"
    assert main(["model", "build", str(spec), "--out", str(out), "--quiet"]) == 0
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (built / "package", out)
    )
    assert [name for name in first if first[name] != second.get(name)] == []
    digests = [
        json.loads(path.read_text())["digest"]
        for path in (built / "package.report.json", tmp_path / "elsewhere.report.json")
    ]
    assert digests[0] == digests[1]


def test_a_form_that_loses_too_much_ends_the_build_with_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = detector_spec(
        tmp_path,
        artifacts={"onnx-fp32": {"runtimes": ["onnxruntime"]}, "onnx-int8": {"recipes": 1, "least": 1.0}},
    )
    out = tmp_path / "out"
    onnx.save(bright_model(box=(0.5, 0.5, 0.3, 0.5)), tmp_path / "bright.onnx")
    assert main(["model", "build", str(spec), "--out", str(out), "--quiet"]) == 65
    said = capsys.readouterr().err
    assert "onnx-int8: all in int8, per tensor, minmax: expected at least 1 on onnxruntime, got 0." in said
    assert "(when_refused: leave_out builds without it)" in said
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_a_form_that_collapses_is_left_out_with_its_reason(tmp_path: Path) -> None:
    spec = classifier_spec(tmp_path, silu_model(), when_refused="leave_out")
    out = tmp_path / "out"
    assert main(["model", "build", str(spec), "--out", str(out), "--quiet"]) == 0
    assert load(out).manifest.variants == ()
    its = record.read(out)
    assert its is not None
    (refused,) = [a for a in its.artifacts if a.status == "refused"]
    assert "activations collapse: 97% of the values of 'silu'" in refused.reason
    assert not [path.name for path in out.iterdir() if "int8" in path.name]
    assert "Refused" in (out / "report.md").read_text()


def test_pruning_that_costs_too_much_ends_the_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = classifier_spec(
        tmp_path, silu_model(stretch=1), artifacts={"onnx-fp32": {"runtimes": ["onnxruntime"]}},
        prune={"share": 0.99},
    )  # fmt: skip
    assert main(["model", "build", str(spec), "--out", str(tmp_path / "out"), "--quiet"]) == 65
    said = capsys.readouterr().err
    assert "prune: expected a loss of at most 0.01, got: onnxruntime loses 0.5" in said


def test_a_reference_that_is_not_good_enough_always_ends_the_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = {"runtimes": ["onnxruntime"], "least": 0.9}
    spec = detector_spec(tmp_path, artifacts={"onnx-fp32": wish}, when_refused="leave_out")
    onnx.save(bright_model(box=(0.5, 0.5, 0.4, 0.4)), tmp_path / "bright.onnx")
    assert main(["model", "build", str(spec), "--out", str(tmp_path / "out"), "--quiet"]) == 65
    assert "onnx-fp32: expected at least 0.9, got 0." in capsys.readouterr().err


def test_a_taken_folder_and_a_wrong_spec_are_mistakes_of_the_caller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = detector_spec(tmp_path)
    assert main(["model", "build", str(spec), "--out", str(tmp_path)]) == 78
    assert "expected a new folder" in capsys.readouterr().err
    assert main(["model", "build", str(tmp_path / "gone.yaml"), "--out", str(tmp_path / "out")]) == 78
    assert "cannot read the spec" in capsys.readouterr().err


def test_everything_here_is_installed_that_the_forms_need() -> None:
    assert set(installed()) >= {"onnxruntime", "openvino"}
