"""Specs of builds, their pictures and sources."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from build_specs import detector_spec, silu_model
from skerry.errors import ConfigError, PackageError
from skerry.models.building import data, jobs, record, source
from skerry.models.building.spec import From, GoldenWish, Pictures, read_spec


def test_every_problem_of_a_spec_is_told_at_once(tmp_path: Path) -> None:
    path = detector_spec(
        tmp_path, **{"from": {"onnx": "gone.onnx"}}, labels="gone.names", baseline="gone.json",
        data={"evaluation": {"folder": "gone"}},
        artifacts={"onnx-int8": {}, "openvino-int8": {"through": "onnx", "runtimes": ["onnxruntime"]}},
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        read_spec(path)
    said = "\n".join(caught.value.problems)
    for text in (
        "from.onnx: expected a file, got none at gone.onnx",
        "baseline: expected a file",
        "data.evaluation.folder: expected a folder, got none at gone",
        "data.calibration: expected a folder for onnx-int8, openvino-int8, got none",
        "artifacts.openvino-int8.runtimes: expected openvino, which reads it, got onnxruntime",
        "labels: ",
    ):
        assert f"{path}: {text}" in said


def test_wrong_types_are_told_with_their_places(tmp_path: Path) -> None:
    path = detector_spec(tmp_path, version="one", artifacts={"onnx-int4": {}}, when_refused="shrug")
    with pytest.raises(ConfigError) as caught:
        read_spec(path)
    said = str(caught.value)
    assert "$.version" in said
    assert "$.when_refused" in said
    assert "onnx-int4" in said


@pytest.mark.parametrize(("raw", "said"), [({}, "neither"), ({"onnx": "a", "python": "b"}, "both")])
def test_a_model_comes_from_one_place(tmp_path: Path, raw: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"from: expected onnx or python, got {said}"):
        read_spec(detector_spec(tmp_path, **{"from": raw}))


def test_the_reference_is_always_made_and_first(tmp_path: Path) -> None:
    spec, labels = read_spec(detector_spec(tmp_path, artifacts={"openvino-fp16": {}, "onnx-int8": {}}))
    assert list(spec.wishes) == ["onnx-fp32", "onnx-int8", "openvino-fp16"]
    assert labels == ("bolt", "nut", "washer")


def test_a_picture_that_calibrates_does_not_judge(tmp_path: Path) -> None:
    detector_spec(tmp_path)
    belt = tmp_path / "belt"
    judges = data.evaluation(belt, Pictures(folder="belt", skip=12))
    one = data.calibration(belt, Pictures(folder="belt", take=12))
    data.check_apart(one, judges)
    with pytest.raises(ConfigError, match=r"expected different pictures, got 1 in both, 12\.png as 12\.png"):
        data.check_apart(data.calibration(belt, Pictures(folder="belt", take=13)), judges)
    (tmp_path / "copy").mkdir()
    for n in range(10):
        (tmp_path / "copy" / f"copy-{n}.png").write_bytes((belt / f"{12 + n}.png").read_bytes())
    copies = data.calibration(tmp_path / "copy", Pictures(folder="copy"))
    with pytest.raises(ConfigError, match=r"got 10 in both, copy-0\.png as 12\.png"):
        data.check_apart(copies, judges)


def test_a_set_is_known_by_its_content_and_names(tmp_path: Path) -> None:
    detector_spec(tmp_path)
    belt = tmp_path / "belt"

    def sha() -> str:
        return data.evaluation(belt, Pictures(folder="belt", skip=12)).record.sha256

    before = sha()
    (belt / "00.png").write_bytes((belt / "01.png").read_bytes())
    assert sha() == before, "it is not one of them"
    raw = (belt / "annotations.json").read_text()
    (belt / "annotations.json").write_text(raw + " ")
    assert sha() != before


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    detector_spec(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.evaluation: expected at least 10 pictures, got 4"):
        data.evaluation(tmp_path / "belt", Pictures(folder="belt", skip=20))


def test_golden_pictures_are_spread_over_those_that_judge(tmp_path: Path) -> None:
    detector_spec(tmp_path)
    judges = data.evaluation(tmp_path / "belt", Pictures(folder="belt", skip=12))
    assert [p.name for p in data.golden(None, GoldenWish(take=3), judges).pictures] == [
        "12.png", "16.png", "20.png",
    ]  # fmt: skip


HOOK = """
import sys

def make(path, labels=3):
    sys.path.insert(0, {tests!r})
    from build_specs import many_model
    import onnx
    model = many_model(labels)
    model.doc_string = "made in " + path
    model.graph.node[0].metadata_props.add(key="stack", value=__file__)
    onnx.save(model, path)

def fail(path):
    raise RuntimeError("no weights")

def forget(path):
    pass
"""


def test_a_hook_writes_the_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[2])
    (tmp_path / "export.py").write_text(HOOK.format(tests=tests))
    wish = From(python="export.py", function="make", arguments={"labels": 5})
    its, step = source.fetch(wish, tmp_path, tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 5
    assert str(tmp_path).encode() not in (tmp_path / "out.onnx").read_bytes()
    assert (its.form, its.file, its.function) == ("python", "export.py", "make")
    assert (step.name, step.tool, step.parameters) == ("export", "python", {"labels": "5"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "export.py").write_text(HOOK.format(tests=tests))
    assert source.fetch(wish, tmp_path / "elsewhere", tmp_path / "other.onnx") == (its, step)


@pytest.mark.parametrize(
    ("function", "said"),
    [("fail", "failed: RuntimeError: no weights"), ("forget", "it wrote none"), ("gone", "AttributeError")],
)
def test_a_hook_that_fails_says_why(tmp_path: Path, function: str, said: str) -> None:
    (tmp_path / "export.py").write_text(HOOK.format(tests=""))
    with pytest.raises(PackageError, match=said):
        source.fetch(From(python="export.py", function=function), tmp_path, tmp_path / "out.onnx")


def test_an_interpreter_that_is_none_is_a_mistake_in_the_spec(tmp_path: Path) -> None:
    (tmp_path / "export.py").write_text(HOOK.format(tests=""))
    wish = From(python="export.py", interpreter="export.py")
    with pytest.raises(ConfigError, match=r"from\.interpreter: expected a Python"):
        source.fetch(wish, tmp_path, tmp_path / "out.onnx")


def test_what_is_remarked_in_a_graph_is_removed_and_nothing_else() -> None:
    model = silu_model()
    before = model.SerializeToString(deterministic=True)
    model.graph.doc_string = "x"
    model.graph.node[1].doc_string = "y"
    model.graph.initializer[0].doc_string = "z"
    source.strip(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    digest = "0" * 64
    its = record.BuildRecord(
        name="tiny", version="1.0.0", spec=record.Content(name="spec.yaml", sha256=digest),
        source=record.Source(form="onnx", file="m.onnx", sha256=digest, onnx_sha256=digest),
        tools={"python": "3"},
    )  # fmt: skip
    assert record.read(tmp_path) is None
    (tmp_path / record.RECORD).write_bytes(record.encode(its))
    assert record.read(tmp_path) == its
    (tmp_path / record.RECORD).write_text("{}")
    with pytest.raises(ConfigError):
        record.read(tmp_path)


def test_inputs_for_a_child_come_back_in_their_order(tmp_path: Path) -> None:

    its = [{"x": np.full((1, 2), n, np.float32), "y": np.array([n])} for n in range(12)]
    jobs.write_feeds(tmp_path / "f.npz", its)
    again = jobs.read_feeds(tmp_path / "f.npz")
    assert [each["x"][0, 0] for each in again] == list(range(12))
    assert [int(each["y"][0]) for each in again] == list(range(12))


def test_the_demos_spec_is_one(tmp_path: Path) -> None:
    path = Path(__file__).parents[3] / "sites" / "models" / "parts.build.yaml"
    raw = yaml.safe_load(path.read_text())
    for each in ("calibration", "evaluation"):
        (tmp_path / "belt").mkdir(exist_ok=True)
        raw["data"][each]["folder"] = str(tmp_path / "belt")
    for field in ("labels", "baseline"):
        raw[field] = str(path.parent / raw[field])
    raw["from"]["onnx"] = str(path.parent / raw["from"]["onnx"])
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(raw))
    spec, labels = read_spec(tmp_path / "spec.yaml")
    assert (spec.name, labels) == ("parts", ("bolt", "nut", "washer"))
