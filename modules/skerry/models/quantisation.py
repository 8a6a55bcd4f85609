"""Weights and activations in 8 bits, after training: a graph with QuantizeLinear and DequantizeLinear (QDQ).

Build side only: needs the extra `models`. What is quantised is searched, because no one recipe fits every
model: a box is the sum of a cell's place and a small offset, and 8 bits for that sum are a pixel or two too
few, while 8 bits for the layers before it cost nothing.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, 2018; the ONNX Runtime documentation, Quantize ONNX Models.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from skerry.errors import PackageError

# As in the runtime: its wheels report to their makers unless told not to, from the import on.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime
from onnxruntime import quantization as ort

Feeds = Mapping[str, npt.NDArray[Any]]
Floating = Literal["nothing", "tail", "head"]
Method = Literal["minmax", "percentile"]

_LEARNED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SUFFIXES = {"nothing": "all in int8", "tail": "tail in float", "head": "head in float"}


@dataclass(frozen=True)
class Recipe:
    """One way to quantise."""

    floating: Floating
    """What stays in floating point: nothing, what follows the last learned layers, or those layers too."""
    per_channel: bool
    """A scale for each output channel of a layer's weights, not one for all."""
    method: Method = "minmax"
    """How the range of an activation is found: all that was seen, or all but 0.001 % on either side."""
    reduced: bool = False
    """Weights in 7 bits, so that sums of two products do not overflow 16 bits where there is no VNNI."""

    @property
    def title(self) -> str:
        """In a few words."""
        scales = "per channel" if self.per_channel else "per tensor"
        return f"{_SUFFIXES[self.floating]}, {scales}, {self.method}{', 7 bits' if self.reduced else ''}"


RECIPES = tuple(
    Recipe(floating, per_channel, method)
    for floating in ("nothing", "tail", "head")
    for per_channel in (False, True)
    for method in ("minmax", "percentile")
)
"""All that is searched, those with most in int8 first."""


class _Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # its module has no types
    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def quantise(model: Path, feeds: Sequence[Feeds], recipe: Recipe) -> bytes:
    """Quantise a graph with the ranges that its activations have on some inputs.

    Args:
        model: the ONNX file, in float32.
        feeds: inputs to calibrate on, at least one.
        recipe: how.

    Returns:
        The ONNX file with QDQ nodes: activations uint8 asymmetric, weights int8 symmetric.

    Raises:
        PackageError: the model cannot be quantised.
    """
    ways = ort.CalibrationMethod
    method = {"minmax": ways.MinMax, "percentile": ways.Percentile}[recipe.method]
    kept = floating_nodes(onnx.load(model).graph, recipe.floating)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        out = Path(folder) / "model.onnx"
        try:
            ort.quantize_static(
                str(model), str(out), _Reader(feeds), quant_format=ort.QuantFormat.QDQ,
                per_channel=recipe.per_channel, activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8, nodes_to_exclude=kept, calibrate_method=method,
                reduce_range=recipe.reduced,
            )  # fmt: skip
        except Exception as error:
            raise PackageError(f"{model}: cannot be quantised: {type(error).__name__}: {error}") from error
        return out.read_bytes()


def floating_nodes(graph: onnx.GraphProto, floating: Floating) -> list[str]:
    """The names of the nodes that stay in floating point.

    The last learned layers are those that no learned layer follows: each output of a detector has its own.
    """
    if floating == "nothing":
        return []
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    learned = [node for node in graph.node if node.op_type in _LEARNED]
    names = {node.name for node in learned}
    followers = {node.name: _followers(node, readers) for node in learned}
    last = {name for name in names if not names & followers[name]}
    kept = {name for one in last for name in followers[one]}
    return sorted(kept | (last if floating == "head" else set()))


def _followers(node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> set[str]:
    """Names of all nodes that a node's outputs go into, at once or later."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        for name in waiting.pop().output:
            for reader in readers.get(name, ()):
                if reader.name not in found:
                    found.add(reader.name)
                    waiting.append(reader)
    return found


def deviation(content: bytes, feeds: Sequence[Feeds]) -> float:
    """How far this processor's 8-bit arithmetic is from the exact one, in standard deviations of an output.

    The same graph is run twice: with the runtime's integer kernels, and node by node in floating point, which
    computes what the graph says. Processors without VNNI (or its like) add products of 8 bits in pairs in 16
    bits, which overflow: the same file is then right on one machine and wrong on another. Rounding alone is
    a hundredth or two.
    """
    fast, exact = _session(content, all_in_one=True), exact_session(content)
    worst = 0.0
    for each in feeds:
        for one, other in zip(fast.run(None, dict(each)), exact.run(None, dict(each)), strict=True):
            spread = float(np.std(other)) or 1.0
            away = float(np.sqrt(np.mean(np.square(one - other)))) / spread
            worst = max(worst, away if np.isfinite(away) else float("inf"))
    return worst


def exact_session(content: bytes) -> onnxruntime.InferenceSession:
    """A session that computes node by node what the graph says."""
    return _session(content, all_in_one=False)


def _session(content: bytes, *, all_in_one: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if all_in_one else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library prints and logs what nobody asked for."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
