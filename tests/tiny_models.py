"""Model packages of a few nodes, whose every number can be worked out by hand."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from skerry.models.package import Package, digest, load

WIDTH, HEIGHT = 8, 6
LABELS = ("bolt", "nut", "washer")
BOX = (0.5, 0.5, 0.25, 0.5)
"""cx, cy, w, h of the one object that `bright` and `moody` see."""


def bright_model(batch: int | str = 1, box: tuple[float, float, float, float] = BOX) -> onnx.ModelProto:
    """Sees one bolt whose objectness is the picture's mean brightness (0 to 1)."""
    return _model(_bright_nodes(), batch, box=box)


def moody_model() -> onnx.ModelProto:
    """As `bright`; answers NaN below brightness 0.2, and fails to run from 0.8."""
    nodes = [
        *_bright_nodes(out="seen"),
        helper.make_node("Sub", ["m", "low"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        helper.make_node("Mul", ["m", "five"], ["fifths"]),
        helper.make_node("Cast", ["fifths"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["four_zeros", "index"], ["picked"]),
        helper.make_node("Add", ["seen", "nothing"], ["half"]),
        helper.make_node("Add", ["half", "picked"], ["out"]),
    ]
    return _model(nodes, 1)


def banded_model(how: str, low: float = 0.57, high: float = 0.63) -> onnx.ModelProto:
    """As `bright`, but for brightness between `low` and `high`: there it answers NaN, or fails to run."""
    middle, half = (low + high) / 2, (high - low) / 2
    nodes = [
        *_bright_nodes(out="seen"),
        helper.make_node("Sub", ["m", "middle"], ["off"]),
        helper.make_node("Abs", ["off"], ["distance"]),
        helper.make_node("Sub", ["distance", "half"], ["beyond"]),
    ]
    if how == "nan":
        nodes += [
            helper.make_node("Sqrt", ["beyond"], ["root"]),
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        ]
    else:
        nodes += [
            helper.make_node("Sign", ["beyond"], ["sign"]),
            helper.make_node("Sub", ["sign", "one"], ["index_f"]),  # 0 beyond the band, -2 in it
            helper.make_node("Cast", ["index_f"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["one_zero", "index"], ["nothing"]),
        ]
    nodes.append(helper.make_node("Add", ["seen", "nothing"], ["out"]))
    constants = {
        "middle": np.array(middle, np.float32),
        "half": np.array(half, np.float32),
        "one": np.array(1, np.float32),
        "one_zero": np.zeros(1, np.float32),
    }
    return _model(nodes, 1, constants)


def grown_model() -> onnx.ModelProto:
    """As `bright`, but a light picture makes its output a row longer."""
    nodes = [
        *_bright_nodes(out="seen"),
        helper.make_node("Concat", ["seen", "seen"], ["twice"], axis=1),
        helper.make_node("Greater", ["m", "light"], ["lighter"]),
        helper.make_node("Reshape", ["lighter", "flat"], ["second"]),
        helper.make_node("Concat", ["yes", "second"], ["which"], axis=0),
        helper.make_node("Compress", ["twice", "which"], ["out"], axis=1),
    ]
    constants = {
        "light": np.array(0.9, np.float32),
        "flat": np.array([1], np.int64),
        "yes": np.array([True]),
    }
    return _model(nodes, 1, constants, "n")


def _bright_nodes(out: str = "out") -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Reshape", ["mean", "to"], ["m"]),
        helper.make_node("Mul", ["m", "slope"], ["part"]),
        helper.make_node("Add", ["part", "rest"], [out]),
    ]


def _model(
    nodes: list[onnx.NodeProto],
    batch: int | str,
    more: dict[str, np.ndarray] | None = None,
    rows: int | str = 1,
    box: tuple[float, float, float, float] = BOX,
) -> onnx.ModelProto:
    rest = np.zeros((1, 1, 9), np.float32)
    rest[0, 0] = [*box, 0, 1, 0, 0, 0.25]
    slope = np.zeros((1, 1, 9), np.float32)
    slope[0, 0, 4] = 1
    constants = {
        "to": np.array([-1, 1, 1], np.int64),
        "slope": slope,
        "rest": rest,
        "low": np.array(0.2, np.float32),
        "zero": np.array(0, np.float32),
        "five": np.array(5, np.float32),
        "four_zeros": np.zeros(4, np.float32),
        **(more or {}),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, rows, 9])],
        [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def manifest(**changes: Any) -> dict[str, Any]:
    """Plain data of a manifest for the models here; `changes` replace whole keys."""
    return {
        "schema": 1,
        "name": "tiny",
        "version": "1.0",
        "description": "a test's model",
        "licence": "Apache-2.0",
        "artifact": {"file": "model.onnx", "sha256": "0" * 64, "format": "onnx"},
        "input": {"name": "x", "width": WIDTH, "height": HEIGHT, "scale": [255]},
        "outputs": [{"name": "out", "shape": [1, 1, 9]}],
        "decoder": {"kind": "parts", "score_threshold": 0.1},
        "labels": "labels.txt",
        **changes,
    }


def write_package(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> Path:
    """Write a package; its sha256 is right unless `artifact` is among the changes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes((model or bright_model()).SerializeToString())
    artifact = {"file": "model.onnx", "sha256": digest(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest(**{"artifact": artifact, **changes})))
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return folder


def tiny_package(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> Package:
    return load(write_package(folder, model, **changes))


def frame(brightness: float, width: int = 16, height: int = 12) -> np.ndarray:
    """A picture of one grey, (height, width, 3)."""
    return np.full((height, width, 3), round(brightness * 255), np.uint8)


def add_variant(folder: Path, name: str, model: onnx.ModelProto | None = None, **fields: Any) -> Package:
    """Give a package another form, in ONNX: the same model unless another is given."""
    path = folder / f"{name}.onnx"
    path.write_bytes((model or bright_model()).SerializeToString())
    raw = json.loads((folder / "manifest.json").read_text())
    its = {"name": name, "file": path.name, "sha256": digest(path), **fields}
    raw["variants"] = [*raw.get("variants", ()), its]
    (folder / "manifest.json").write_text(json.dumps(raw))
    return load(folder)


def golden_of(folder: Path, *seen: float, **fields: Any) -> dict[str, Any]:
    """Golden pictures of one grey each, with what `bright` answers: `seen` are their objectnesses."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for grey in seen:
        path = folder / f"grey-{round(grey * 255)}.png"
        cv2.imwrite(str(path), frame(grey))
        cx, cy, w, h = BOX
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        one = {"label": "bolt", "score": grey, "box": box, "attributes": {"defect": 0.25}}
        pictures.append({"file": path.name, "sha256": digest(path), "objects": [one]})
    return {"pictures": pictures, **fields}
