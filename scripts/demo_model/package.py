"""Writing the package: the graph, its manifest, its labels and a card that says what was measured."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

from demo_model.grid import CELLS, HEIGHT, OUTPUTS, WIDTH
from demo_model.network import Detector
from demo_model.scoring import Found, decode
from skerry.capture.scene import KINDS

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its wheels report to their makers unless told not to
import onnxruntime

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

VERSION = "1.0.0"
OPSET = 17
IOU_THRESHOLD = 0.4
MOST_AT_ONCE = 16
"""Pictures of several cameras that a site may put into one run."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one picture in ONNX Runtime on the CPU."""

    threads: int
    median_ms: float
    p95_ms: float


def export(network: Detector, path: Path) -> None:
    """Writes the graph, batch normalisation folded, batch size free."""
    example = torch.zeros(1, 3, HEIGHT, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network.eval().to(memory_format=torch.contiguous_format),
            (example,),
            path,
            input_names=["images"],
            output_names=["detections"],
            opset_version=OPSET,
            dynamic_axes={"images": {0: "n"}, "detections": {0: "n"}},
            dynamo=False,
        )
    model = onnx.load(path)
    _, cells, outputs = model.graph.output[0].type.tensor_type.shape.dim
    cells.dim_value, outputs.dim_value = CELLS, OUTPUTS
    for node in model.graph.node:
        node.ClearField("doc_string")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


class Exported:
    """The written graph in ONNX Runtime, fed as the manifest says."""

    def __init__(self, path: Path, threads: int = 2) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, images: Bytes) -> Floats:
        """(n, CELLS, OUTPUTS) for (n, HEIGHT, WIDTH, 3) BGR."""
        feed = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255.0)
        return np.asarray(self._session.run(["detections"], {"images": feed})[0])

    def find(self, images: Bytes, threshold: float) -> list[Found]:
        """What it finds in each picture, from `threshold` on."""
        rows = np.concatenate([self.run(images[at : at + 16]) for at in range(0, len(images), 16)])
        return [decode(one, threshold, IOU_THRESHOLD) for one in rows]


def latency(path: Path, threads: int, runs: int = 300) -> Latency:
    """Measures one picture at a time, after 30 runs to warm up."""
    exported = Exported(path, threads)
    image = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    taken = []
    for run in range(30 + runs):
        began = time.perf_counter()
        exported.run(image)
        if run >= 30:
            taken.append((time.perf_counter() - began) * 1e3)
    return Latency(threads, float(np.median(taken)), float(np.percentile(taken, 95)))


def write_manifest(folder: Path, score_threshold: float) -> None:
    """Writes `manifest.json` and `labels.txt` beside the `model.onnx` that is there."""
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    manifest = {
        "schema": 1,
        "name": "parts",
        "version": VERSION,
        "description": "Bolts, nuts and washers on the demo's conveyor belt, and whether each is defective.",
        "licence": "Apache-2.0",
        "artifact": {"file": "model.onnx", "sha256": digest, "format": "onnx"},
        "input": {
            "name": "images",
            "width": WIDTH,
            "height": HEIGHT,
            "layout": "nchw",
            "dtype": "float32",
            "colour": "bgr",
            "resize": "stretch",
            "interpolation": "linear",
            "mean": [0, 0, 0],
            "scale": [255, 255, 255],
            "pad": 114,
            "batch": MOST_AT_ONCE,
        },
        "outputs": [{"name": "detections", "shape": [1, CELLS, OUTPUTS]}],
        "decoder": {
            "kind": "parts",
            "score_threshold": score_threshold,
            "iou_threshold": IOU_THRESHOLD,
        },
        "labels": "labels.txt",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (folder / "labels.txt").write_text("\n".join(KINDS) + "\n", encoding="utf-8")
