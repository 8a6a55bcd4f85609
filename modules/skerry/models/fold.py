"""Clean up a foreign ONNX graph without changing what it computes.

Exporters leave things that runtimes then cannot optimise: initialisers among the graph's inputs (they
could be overridden, so no constant is folded), symbolic batch sizes, subgraphs of constants. What is
done here is checked on real numbers: a graph that answers differently is not used.

Build side only: needs the extra `models`.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

# As in the runtime: its wheels report to their makers unless told not to, from the import on.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

from skerry.errors import PackageError

Feeds = dict[str, npt.NDArray[Any]]

TOLERANCE = 1e-4
"""Largest difference of any output number that counts as the same."""
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")


@dataclass(frozen=True)
class Folded:
    """A graph after clean-up.

    Attributes:
        content: the ONNX file.
        changes: what was done, one sentence each.
        nodes: number of nodes before and after.
        difference: largest difference of any output number from the original's.
        outputs: name to shape, as seen in runs; 0 for a dimension that differs between them.
    """

    content: bytes
    changes: tuple[str, ...]
    nodes: tuple[int, int]
    difference: float
    outputs: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class GraphInput:
    """The input of a foreign graph; None for a dimension that is not fixed."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def read_model(path: Path) -> onnx.ModelProto:
    """An ONNX file.

    Raises:
        PackageError: it is none.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # onnx raises protobuf, OS and checker errors of many bases
        text = str(error).strip().splitlines()
        raise PackageError(
            f"{path}: expected an ONNX model ({text[0] if text else type(error).__name__})"
        ) from error
    return model


def graph_input(model: onnx.ModelProto, where: str) -> GraphInput:
    """The one input that is not an initialiser.

    Raises:
        PackageError: there is not exactly one.
    """
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise PackageError(f"{where}: expected a model with 1 input, got {len(inputs)} ({names})")
    kind = inputs[0].type.tensor_type
    shape = tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)
    return GraphInput(inputs[0].name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))


def ops(model: onnx.ModelProto) -> Counter[str]:
    """Operator to number of nodes."""
    return Counter(node.op_type for node in model.graph.node)


def fold(model: onnx.ModelProto, shape: Sequence[int | None], feeds: Sequence[Feeds]) -> Folded:
    """Clean up, and prove on `feeds` that nothing else changed.

    Args:
        model: the original; left as it is.
        shape: of the input, None where it stays dynamic.
        feeds: inputs to compare on, at least one.

    Raises:
        PackageError: ONNX Runtime cannot run the original.
    """
    expected = [_run(model.SerializeToString(), f) for f in feeds]
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    changes = _drop_constant_inputs(clean) + _fix_shape(clean, shape)
    content, more = _fold_constants(clean)
    worst = _difference(expected, [_run(content, f) for f in feeds])
    if worst <= TOLERANCE:
        changes += more
    else:
        changes += [f"folding changed an output by {worst:.3g}: left unfolded"]
        content = clean.SerializeToString()
        worst = _difference(expected, [_run(content, f) for f in feeds])
        if worst > TOLERANCE:
            raise PackageError(f"clean-up: expected the same outputs within {TOLERANCE:g}, got {worst:.3g}")
    after = onnx.load_from_string(content)
    onnx.checker.check_model(after)
    nodes = len(model.graph.node), len(after.graph.node)
    return Folded(content, tuple(changes), nodes, worst, _shapes(expected))


def _drop_constant_inputs(model: onnx.ModelProto) -> list[str]:
    constants = {i.name for i in model.graph.initializer}
    kept = [i for i in model.graph.input if i.name not in constants]
    dropped = len(model.graph.input) - len(kept)
    if not dropped:
        return []
    del model.graph.input[:]
    model.graph.input.extend(kept)
    # Before version 4 of the IR every initialiser had to be an input as well.
    model.ir_version = max(model.ir_version, 4)
    return [f"{dropped} initialisers were among the graph's inputs: removed there"]


def _fix_shape(model: onnx.ModelProto, shape: Sequence[int | None]) -> list[str]:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    loose = [n for n, (d, want) in enumerate(zip(dims, shape, strict=True)) if want and d.dim_value != want]
    for n in loose:
        dims[n].dim_value = int(shape[n] or 0)
    if not loose:
        return []
    for output in model.graph.output:  # they follow from the input, and would contradict it now
        output.type.tensor_type.ClearField("shape")
    return [f"dimensions {', '.join(map(str, loose))} of the input were not fixed: now {list(shape)}"]


def _fold_constants(model: onnx.ModelProto) -> tuple[bytes, list[str]]:
    """ONNX Runtime's basic optimisations: constants, identities, Conv + BatchNormalization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="skerry-") as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(path)
    foreign = sorted({n.domain for n in folded.graph.node} - set(_STANDARD))
    if foreign:
        return model.SerializeToString(), [f"not folded: it would take operators of {', '.join(foreign)}"]
    used = {n.domain for n in folded.graph.node}
    imports = [o for o in folded.opset_import if o.domain in used or o.domain == ""]
    del folded.opset_import[:]
    folded.opset_import.extend(imports)
    gone = ops(model) - ops(folded)
    if not gone:
        return model.SerializeToString(), []
    listed = ", ".join(f"{n} {op}" for op, n in gone.most_common())
    return folded.SerializeToString(), [f"folded or fused away: {listed}"]


def _run(content: bytes, feeds: Feeds) -> Feeds:
    """Run without optimisation: the plainest meaning of the graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise PackageError(
            f"onnxruntime cannot run it: {str(error).strip().splitlines()[0][:200]}"
        ) from error


def _difference(expected: Sequence[Feeds], got: Sequence[Feeds]) -> float:
    worst = 0.0
    for want, have in zip(expected, got, strict=True):
        for name, array in want.items():
            if name not in have or have[name].shape != array.shape:
                return float("inf")
            same = np.isclose(array, have[name], rtol=0, atol=0, equal_nan=True)
            gap = np.where(same, 0, np.abs(array.astype(np.float64) - have[name]))
            worst = max(worst, float(gap.max(initial=0)) if np.isfinite(gap).all() else float("inf"))
    return worst


def _shapes(runs: Sequence[Feeds]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name in runs[0]:
        seen = [run[name].shape for run in runs]
        if len({len(s) for s in seen}) != 1:
            raise PackageError(f"output {name!r}: expected one rank, got {sorted(set(seen))}")
        shapes[name] = tuple(dims[0] if len(set(dims)) == 1 else 0 for dims in zip(*seen, strict=True))
    return shapes
