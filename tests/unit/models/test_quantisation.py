"""Eight bits: what stays in float, what overflows, and a search that refuses what costs too much."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from needs import ROOT
from skerry.cli import main
from skerry.cli.model_quantise import REPORT
from skerry.errors import PackageError
from skerry.models.package import load
from skerry.models.quantisation import RECIPES, Recipe, deviation, floating_nodes, quantise

PARTS = ROOT / "models" / "parts"


def product(weights: np.ndarray) -> onnx.ModelProto:
    """y = x · weights."""
    rows, columns = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


def overflowing(folder: Path) -> tuple[bytes, list[dict[str, np.ndarray]]]:
    """A product of numbers that are all near the top of their range, in eight bits."""
    weights = np.ones((64, 32))
    weights[:, ::2] *= 0.9
    onnx.save(product(weights), folder / "model.onnx")
    random = np.random.default_rng(0)
    feeds = [{"x": random.uniform(0.9, 1, (1, 64)).astype(np.float32)} for _ in range(10)]
    return quantise(folder / "model.onnx", feeds, Recipe("nothing", per_channel=False)), feeds


def test_the_head_of_the_demo_model_is_its_last_convolution_and_the_tail_what_follows():
    graph = onnx.load(PARTS / "model.onnx").graph
    assert floating_nodes(graph, "nothing") == []
    tail, head = set(floating_nodes(graph, "tail")), set(floating_nodes(graph, "head"))
    [last] = head - tail
    assert next(node.op_type for node in graph.node if node.name == last) == "Conv"
    assert not [node for node in graph.node if node.op_type == "Conv" and node.name in tail]
    assert graph.node[-1].name in tail


def test_every_recipe_is_another_and_most_is_in_int8_first():
    assert len(set(RECIPES)) == len({recipe.title for recipe in RECIPES}) == 12
    assert [recipe.floating for recipe in RECIPES] == ["nothing"] * 4 + ["tail"] * 4 + ["head"] * 4


def test_quantised_weights_are_eight_bits_and_what_is_kept_is_not(tmp_path):
    random = np.random.default_rng(1)
    onnx.save(product(random.normal(0, 0.1, (64, 32))), tmp_path / "model.onnx")
    feeds = [{"x": random.normal(0, 1, (1, 64)).astype(np.float32)} for _ in range(10)]
    types = {}
    for floating in ("nothing", "head"):
        content = quantise(tmp_path / "model.onnx", feeds, Recipe(floating, per_channel=True))
        types[floating] = {
            t.data_type for t in onnx.load_from_string(content).graph.initializer if len(t.dims) == 2
        }
    assert types == {"nothing": {TensorProto.INT8}, "head": {TensorProto.FLOAT}}


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(product(np.ones((4, 4))).SerializeToString())
    with pytest.raises(PackageError, match="cannot be quantised"):
        quantise(tmp_path / "model.onnx", [{"unheard": np.zeros((1, 4), np.float32)}], RECIPES[0])


def test_ordinary_weights_are_as_exact_as_eight_bits_are(tmp_path):
    random = np.random.default_rng(2)
    onnx.save(product(random.normal(0, 0.1, (64, 32))), tmp_path / "model.onnx")
    feeds = [{"x": random.normal(0, 1, (1, 64)).astype(np.float32)} for _ in range(10)]
    content = quantise(tmp_path / "model.onnx", feeds, RECIPES[0])
    assert deviation(content, feeds) < 0.05


@pytest.fixture(scope="module")
def belt(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("belt")
    command = [
        sys.executable,
        str(ROOT / "scripts" / "label_scene"),
        "--out",
        str(folder),
        "--pictures",
        "30",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_search_refuses_what_costs_too_much_and_writes_what_does_not(belt, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("skerry.models.quantisation.RECIPES", (RECIPES[0], RECIPES[6], RECIPES[10]))
    out = tmp_path / "int8"
    asked = ["model", "quantise", str(PARTS), str(belt), "--calibrate", "15", "--out", str(out)]
    assert main([*asked, "--most-loss", "0.04"]) == 0
    said = capsys.readouterr().out
    assert "all in int8, per tensor, minmax" in said
    assert "refused: loses" in said
    package = load(out)
    assert package.title == "parts@1.0.0-int8"
    assert package.model.stat().st_size < 0.35 * load(PARTS).model.stat().st_size
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    assert report["taken"].startswith("head in float")
    taken = report["recipes"][-1]
    for runtime, its in taken["runtimes"].items():
        assert its["map"] >= report["float"][runtime]["map"] - 0.04
    assert [recipe["refused"] for recipe in report["recipes"][:-1]].count("") == 0


def test_where_nothing_is_good_enough_nothing_is_written(belt, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("skerry.models.quantisation.RECIPES", RECIPES[4:5])
    out = tmp_path / "int8"
    asked = ["model", "quantise", str(PARTS), str(belt), "--calibrate", "15", "--out", str(out)]
    assert main([*asked, "--most-loss", "0"]) == 65
    assert "no recipe loses at most 0: tail in float, per tensor, minmax: loses" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_too_few_pictures_and_a_taken_folder_are_refused(belt, tmp_path, capsys):
    asked = ["model", "quantise", str(PARTS), str(belt), "--out"]
    assert main([*asked, str(tmp_path / "new"), "--calibrate", "25"]) == 78
    assert "expected 10 pictures or more, and as many left of 30, got 25" in capsys.readouterr().err
    assert main([*asked, str(tmp_path)]) == 78
    assert "expected a new folder" in capsys.readouterr().err
