"""Small things to build packages of: labelled greys, models of a few nodes, and specs."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from tiny_models import BOX, HEIGHT, LABELS, WIDTH, bright_model

PICTURES = 24


def grey_belt(folder: Path) -> Path:
    """Pictures of one grey each, all different, with the bolt that `bright` sees there; COCO."""
    folder.mkdir(parents=True)
    cx, cy, w, h = BOX
    box = [(cx - w / 2) * 160, (cy - h / 2) * 120, w * 160, h * 120]
    images, annotations = [], []
    for n in range(PICTURES):
        pixels = np.full((120, 160, 3), 100 + 6 * n, np.uint8)
        cv2.imwrite(str(folder / f"{n:02}.png"), pixels)
        images.append({"id": n, "file_name": f"{n:02}.png", "width": 160, "height": 120})
        annotations.append({"id": n, "image_id": n, "category_id": 1, "bbox": box})
    whole = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "bolt"}]}
    (folder / "annotations.json").write_text(json.dumps(whole))
    return folder


def bright_and_dark(folder: Path, more: int = 0) -> Path:
    """A folder a label: pictures of one grey each, all different, and with another `more` all others."""
    for n in range(PICTURES):
        label, grey = (("dark", 20 + 2 * n + more), ("bright", 180 + 2 * n + more))[n % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / label / f"{n:02}.png"), np.full((60, 80, 3), grey, np.uint8))
    return folder


def silu_model(stretch: float = 1000.0) -> onnx.ModelProto:
    """Bright or dark, by 32 numbers after a SiLU; one of them is `stretch` times as large as all others.

    That one says nothing, and sets the scale of all in eight bits.
    """
    pixels = 3 * HEIGHT * WIDTH
    first = np.tile(np.linspace(0.5, 1, 32, dtype=np.float32) / pixels, (pixels, 1))
    first[:, 0] *= stretch
    second = np.full((32, 2), 1.0, np.float32)
    second[:, 1], second[0] = -1, 0
    return _model(
        [
            helper.make_node("Reshape", ["x", "flat"], ["row"]),
            helper.make_node("MatMul", ["row", "first"], ["sums"], name="first layer"),
            helper.make_node("Sigmoid", ["sums"], ["gate"]),
            helper.make_node("Mul", ["sums", "gate"], ["silu"], name="silu"),
            helper.make_node("MatMul", ["silu", "second"], ["weighed"], name="second layer"),
            helper.make_node("Add", ["weighed", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["p"], axis=1),
        ],
        {
            "flat": np.array([1, pixels], np.int64), "first": first, "second": second,
            "bias": np.array([-8, 8], np.float32),
        },
        2,
    )  # fmt: skip


def many_model(labels: int = 1000) -> onnx.ModelProto:
    """A softmax over many labels: sure of the first where it is bright, of none where it is dark."""
    pixels = 3 * HEIGHT * WIDTH
    weights = np.zeros((pixels, labels), np.float32)
    weights[:, 0] = 40 / pixels
    return _model(
        [
            helper.make_node("Reshape", ["x", "flat"], ["row"]),
            helper.make_node("MatMul", ["row", "weights"], ["logits"], name="layer"),
            helper.make_node("Softmax", ["logits"], ["p"], axis=1),
        ],
        {"flat": np.array([1, pixels], np.int64), "weights": weights},
        labels,
    )


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], labels: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, labels])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def detector_spec(folder: Path, **changes: Any) -> Path:
    """A spec in `folder` for `bright`, with its model and pictures."""
    if not (folder / "belt").exists():
        grey_belt(folder / "belt")
        onnx.save(bright_model(), folder / "bright.onnx")
    return _spec(folder, {
        "name": "tiny", "version": "1.0.0", "licence": "Apache-2.0", "from": {"onnx": "bright.onnx"},
        "input": {"scale": [255]}, "decoder": {"kind": "parts", "score_threshold": 0.1},
        "labels": list(LABELS),
        "data": {
            "calibration": {"folder": "belt", "take": 12}, "evaluation": {"folder": "belt", "skip": 12},
            "golden": {"take": 2},
        },
        **changes,
    })  # fmt: skip


def classifier_spec(folder: Path, model: onnx.ModelProto, **changes: Any) -> Path:
    """A spec in `folder` for a model that says bright or dark; on ONNX Runtime alone."""
    bright_and_dark(folder / "greys")
    bright_and_dark(folder / "others", 1)
    onnx.save(model, folder / "small.onnx")
    return _spec(folder, {
        "name": "greys", "version": "1.0.0", "from": {"onnx": "small.onnx"}, "input": {"scale": [255]},
        "decoder": {"kind": "classification", "activation": "none"}, "labels": ["bright", "dark"],
        "data": {
            "calibration": {"folder": "others"}, "evaluation": {"folder": "greys"},
            "golden": {"take": 2},
        },
        "artifacts": {"onnx-fp32": {"runtimes": ["onnxruntime"]}, "onnx-int8": {"recipes": 2}},
        **changes,
    })  # fmt: skip


def _spec(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path
