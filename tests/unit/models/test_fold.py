import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry.cli.model import add_commands
from skerry.errors import ConfigError, PackageError
from skerry.models import fold as folding
from skerry.models.package import load
from skerry.models.short import Short, full_input, read_short
from skerry.settings import parse
from tiny_models import LABELS, bright_model, write_package

FEEDS = [{"x": np.random.default_rng(n).random((1, 3, 6, 8), np.float32)} for n in range(3)]


def _sloppy() -> onnx.ModelProto:
    """`bright` as careless exporters leave it: constants among the inputs, a symbolic batch."""
    model = bright_model("batch")
    for constant in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(constant.name, constant.data_type, list(constant.dims))
        )
    model.graph.node[0].output[0] = "raw"
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    extra = [
        helper.make_node("Mul", ["two", "two"], ["four"]),
        helper.make_node("Div", ["four", "four"], ["one"]),
        helper.make_node("Mul", ["raw", "one"], ["mean"]),
    ]
    for n, node in enumerate(extra, 1):
        model.graph.node.insert(n, node)
    return model


def test_folding_cleans_the_graph_and_keeps_its_answers() -> None:
    before = _sloppy()
    result = folding.fold(before, (1, 3, 6, 8), FEEDS)
    after = onnx.load_from_string(result.content)
    assert result.nodes == (7, len(after.graph.node))
    assert len(after.graph.node) < 7
    assert [i.name for i in after.graph.input] == ["x"]
    assert result.difference <= folding.TOLERANCE
    assert result.outputs == {"out": (1, 1, 9)}
    said = " ".join(result.changes)
    assert "3 initialisers were among the graph's inputs" in said
    assert "dimensions 0 of the input were not fixed" in said
    assert "folded or fused away" in said


def test_a_clean_graph_is_left_alone() -> None:
    result = folding.fold(bright_model(), (1, 3, 6, 8), FEEDS)
    assert result.changes == ()
    assert result.nodes == (4, 4)


def test_a_fold_that_changes_the_answers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: onnx.ModelProto) -> tuple[bytes, list[str]]:
        changed = bright_model()
        rest = next(i for i in changed.graph.initializer if i.name == "rest")
        values = numpy_helper.to_array(rest).copy()
        values[0, 0, 0] += 0.001
        rest.CopyFrom(numpy_helper.from_array(values, "rest"))
        return changed.SerializeToString(), ["folded"]

    monkeypatch.setattr(folding, "_fold_constants", wrong)
    result = folding.fold(bright_model(), (1, 3, 6, 8), FEEDS)
    assert result.content == bright_model().SerializeToString()
    assert "left unfolded" in result.changes[0]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(PackageError, match="expected an ONNX model"):
        folding.read_model(path)
    with pytest.raises(PackageError, match="expected an ONNX model"):
        folding.read_model(tmp_path / "missing.onnx")


def test_a_model_with_two_inputs_is_refused() -> None:
    model = bright_model()
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    with pytest.raises(PackageError, match=r"expected a model with 1 input, got 2 \(x, y\)"):
        folding.graph_input(model, "model.onnx")


@pytest.mark.parametrize(
    ("shape", "given", "said"),
    [
        ((1, 3, None, 8), {}, "input.height: expected pixels, the graph leaves it open"),
        ((1, 3, 6, 8), {"width": 9}, "input.width: expected 8 as in the graph, got 9"),
        ((1, 3, 6), {}, "expected an input of 4 dimensions"),
    ],
)
def test_input_that_contradicts_the_graph_is_refused(
    shape: tuple[int | None, ...], given: dict[str, int], said: str
) -> None:
    short = parse(Short, {"decoder": {"kind": "parts"}, "input": given}, "test")
    with pytest.raises(PackageError, match=said):
        full_input(short.input, folding.GraphInput("x", shape, "float32"), "model.onnx")


def test_layout_is_read_from_the_graph() -> None:
    short = parse(Short, {"decoder": {"kind": "parts"}}, "test")
    spec = full_input(short.input, folding.GraphInput("x", (1, 6, 8, 3), "uint8"), "model.onnx")
    assert (spec.layout, spec.width, spec.height, spec.dtype) == ("nhwc", 8, 6, "uint8")


@pytest.mark.parametrize("name", ["fastestdet", "ultraface"])
def test_the_short_manifests_of_the_examples_are_valid(name: str) -> None:
    short, _ = read_short(Path(__file__).parents[3] / "sites" / "models" / f"{name}.yaml")
    assert short.licence


def _skerry(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    arguments = parser.parse_args(["model", *words])
    return int(arguments.func(arguments))


def test_import_makes_a_package_that_inspect_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(_sloppy(), tmp_path / "sloppy.onnx")
    (tmp_path / "names").write_text("\n".join(LABELS))
    (tmp_path / "short.yaml").write_text("input: {scale: [255]}\ndecoder: {kind: parts}\nlabels: names\n")
    out = tmp_path / "package"
    words = (
        "import",
        str(tmp_path / "sloppy.onnx"),
        "--manifest",
        str(tmp_path / "short.yaml"),
        "--out",
        str(out),
    )
    assert _skerry(*words, "--json", "--no-measure", "--licence", "MIT") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["title"] == "sloppy@1"
    assert report["nodes"][1] < report["nodes"][0] == 7
    assert load(out).manifest.licence == "MIT"
    assert _skerry("inspect", str(out), "--json", "--no-measure") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sha256_ok"]
    assert shown["labels"] == list(LABELS)
    assert sum(shown["operators"].values()) == report["nodes"][1]
    with pytest.raises(ConfigError, match="add --force to replace it"):
        _skerry(*words)
    assert _skerry(*words, "--force", "--no-measure") == 0


def test_import_leaves_no_half_package(tmp_path: Path) -> None:
    onnx.save(bright_model(), tmp_path / "m.onnx")
    (tmp_path / "names").write_text("just one\n")
    out = tmp_path / "package"
    with pytest.raises(PackageError, match="are the labels complete"):
        _skerry(
            "import", str(tmp_path / "m.onnx"), "--decoder", "parts", "--labels", str(tmp_path / "names"),
            "--out", str(out),
        )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "names"]


def test_import_spares_a_folder_with_other_files(tmp_path: Path) -> None:
    onnx.save(bright_model(), tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="got one with other files"):
        _skerry("import", str(tmp_path / "m.onnx"), "--decoder", "parts", "--out", str(tmp_path), "--force")


def test_inspect_measures_every_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_package(tmp_path / "p")
    assert _skerry("inspect", str(tmp_path / "p"), "--json") == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["runtimes"][0]["runtime"] == "onnxruntime"
    assert all(m["error"] == "" and m["ms"] > 0 for m in shown["runtimes"])


def test_inspect_of_a_bad_package_fails_with_every_problem(tmp_path: Path) -> None:
    write_package(tmp_path, decoder={"kind": "nonsense"}, name="a b")
    with pytest.raises(PackageError) as caught:
        _skerry("inspect", str(tmp_path))
    assert len(str(caught.value).splitlines()) == 2
