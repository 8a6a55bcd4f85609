"""What a transformed graph must still be, on real inputs, before anybody asks how good it is.

Three traps have names of their own, because accuracy on a small labelled set may not show them, and because
whoever has to mend it wants to know which one it was:

    overflow    products of 8 bits summed in 16 (x86 without VNNI): right on one machine, wrong on another
    collapse    one large value stretches a scale until all the others are zero (SiLU and its like)
    softmax     probabilities rounded one by one, which no longer sum to one
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from skerry.inference.choose import difference
from skerry.models.fold import Feeds
from skerry.models.quantisation import exact_session

MOST_DEVIATION = 0.2
"""Of integer kernels from exact arithmetic, in standard deviations; rounding is a tenth of it."""
MOST_LOST = 0.9
"""Share of the values that are not zero and become it, of a tensor that goes into a learned layer."""
MOST_OFF_ONE = 0.05
"""Of the sum of a softmax."""
HALF = 2e-2
"""Largest difference of an output in 16 bits, as a share of its largest value."""
SAME = 1e-3
"""The same of one that should be unchanged."""

_LEARNED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Outputs = Mapping[str, npt.NDArray[Any]]


def unequal(expected: Sequence[Outputs], got: Sequence[Outputs], most: float) -> str:
    """Why two runs over the same inputs are not the same; empty where they are.

    Args:
        expected: outputs of each run.
        got: the same of the transformed graph.
        most: largest difference, as a share of an output's largest value.
    """
    worst = max((difference(dict(e), dict(g)) for e, g in zip(expected, got, strict=True)), default=0.0)
    if np.isfinite(worst) and worst <= most:
        return ""
    if not all(np.isfinite(array).all() for run in got for array in run.values()):
        return "an output is not finite"
    return f"outputs differ: expected at most {most:g} of the largest value, got {worst:.3g}"


def overflow(deviation: float, isa: str) -> str:
    """Why integers overflow; empty where they do not.

    Args:
        deviation: see `skerry.models.quantisation.deviation`.
        isa: of the processor that it was taken on.
    """
    if deviation <= MOST_DEVIATION:
        return ""
    return f"integers overflow on {isa}: {deviation:.2f} standard deviations from exact arithmetic"


def traps(content: bytes, original: bytes, feeds: Sequence[Feeds]) -> list[str]:
    """Collapse and softmax, in a graph that was made smaller; empty where it is in neither.

    Args:
        content: the graph.
        original: what it was made of, with the same names.
        feeds: inputs of both.
    """
    model, before = onnx.load_from_string(content), onnx.load_from_string(original)
    pairs = dict(_quantised(model.graph))
    known = {name for node in before.graph.node for name in node.output}
    collapsing = {b: a for b, a in _into_learned(model.graph, pairs).items() if b in known}
    summed = _softmaxes(model.graph, pairs)
    after = _runs(model, {*collapsing.values(), *summed}, feeds)
    there = _runs(before, set(collapsing), feeds)
    found = []
    for name, quantised in collapsing.items():
        lost = _lost([run[name] for run in there], [run[quantised] for run in after])
        if lost > MOST_LOST:
            found.append(
                f"activations collapse: {lost:.0%} of the values of {name!r} that are not zero become it"
            )
    for name, axis in summed.items():
        off = max(float(np.abs(run[name].astype(np.float64).sum(axis=axis) - 1).max()) for run in after)
        if not off <= MOST_OFF_ONE:
            found.append(f"softmax {name!r}: expected a sum of 1, got one that is off by {off:.2g}")
    return found


def _runs(model: onnx.ModelProto, names: Collection[str], feeds: Sequence[Feeds]) -> list[Feeds]:
    """Tensors anywhere in a graph, computed as the graph says; the model is changed."""
    wanted = sorted(names)
    if not wanted:
        return [{} for _ in feeds]
    there = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in there)
    session = exact_session(model.SerializeToString())
    return [dict(zip(wanted, session.run(wanted, dict(each)), strict=True)) for each in feeds]


def _quantised(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Name of each tensor that is quantised to what it is after that."""
    back = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    constants = {each.name for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in back and node.input[0] not in constants:
            yield node.input[0], back[node.output[0]]


def _into_learned(graph: onnx.GraphProto, pairs: Mapping[str, str]) -> dict[str, str]:
    """Of these, those that a learned layer reads. The graph's own inputs are pictures."""
    read = {name for node in graph.node if node.op_type in _LEARNED for name in node.input}
    inputs = {each.name for each in graph.input}
    return {before: after for before, after in pairs.items() if after in read and before not in inputs}


def _softmaxes(graph: onnx.GraphProto, pairs: Mapping[str, str]) -> dict[str, int]:
    """What is read of each softmax, and the axis that sums to one."""
    found = {}
    for node in graph.node:
        if node.op_type == "Softmax":
            axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
            found[pairs.get(node.output[0], node.output[0])] = axis
    return found


def _lost(before: Sequence[npt.NDArray[Any]], after: Sequence[npt.NDArray[Any]]) -> float:
    """Share of the values that were not zero and are now."""
    there = sum(int(np.count_nonzero(one)) for one in before)
    gone = sum(
        int(np.count_nonzero((one != 0) & (other == 0))) for one, other in zip(before, after, strict=True)
    )
    return gone / there if there else 0.0
