"""The same model in other forms. Whether the result is any good is not asked here."""

from __future__ import annotations

import logging

import numpy as np
import onnx
from onnx import numpy_helper

from skerry.errors import PackageError
from skerry.models.quantisation import RECIPES, Recipe

_LEARNED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def recipes(*, narrow: bool, most: int) -> tuple[Recipe, ...]:
    """Ways of quantising, in the order in which they are tried.

    Args:
        narrow: the result must do on processors without VNNI, where weights in 8 bits may overflow; each way
            is tried in 8 bits and then in 7.
        most: so many at most.
    """
    reduced = (Recipe(r.floating, r.per_channel, r.method, reduced=True) for r in RECIPES)
    ways = [way for pair in zip(RECIPES, reduced, strict=True) for way in (pair if narrow else pair[:1])]
    return tuple(ways[:most])


def half(model: onnx.ModelProto) -> bytes:
    """Weights and arithmetic in 16 bits; inputs and outputs stay as they are.

    Raises:
        PackageError: the graph cannot be converted.
    """
    # Imported now: it is large, and says things on import.
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - slow to load

    level = logging.getLogger().level
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        converted = convert_float_to_float16(copy, keep_io_types=True)
        _sort(converted.graph)
        onnx.checker.check_model(converted)
    except Exception as error:
        raise PackageError(f"cannot be converted to 16 bits: {type(error).__name__}: {error}") from error
    finally:
        logging.getLogger().setLevel(level)
    return bytes(converted.SerializeToString(deterministic=True))


def _sort(graph: onnx.GraphProto) -> None:
    """Put each node after those whose outputs it reads; the converter appends its casts at the end."""
    made = {name for node in graph.node for name in node.output}
    there: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    left = list(graph.node)
    while left:
        ready: list[onnx.NodeProto] = []
        waiting: list[onnx.NodeProto] = []
        for node in left:
            late = any(name in made and name not in there for name in node.input)
            (waiting if late else ready).append(node)
            there |= set() if late else set(node.output)
        if not ready:
            raise ValueError("the graph has a cycle")
        ordered, left = ordered + ready, waiting
    del graph.node[:]
    graph.node.extend(ordered)


def prune(model: onnx.ModelProto, share: float) -> tuple[bytes, str]:
    """Set the smallest weights of each learned layer to 0.

    Args:
        model: the graph; left as it is.
        share: of a layer's weights, above 0 and below 1.

    Returns:
        The ONNX file, and what was done.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    read = {name for node in copy.graph.node if node.op_type in _LEARNED for name in node.input[1:2]}
    zeros = weights = layers = 0
    for each in copy.graph.initializer:
        array = numpy_helper.to_array(each)
        if each.name not in read or array.ndim < 2 or array.dtype != np.float32:
            continue
        pruned = array.copy()
        smallest = np.argsort(np.abs(array), axis=None, kind="stable")[: int(share * array.size)]
        pruned.flat[smallest] = 0
        each.CopyFrom(numpy_helper.from_array(pruned, each.name))
        zeros += int(np.count_nonzero(pruned == 0))
        weights += array.size
        layers += 1
    if not layers:
        raise PackageError("prune: expected layers with weights, found none in the graph")
    said = f"{zeros} of {weights} weights in {layers} layers are 0"
    return copy.SerializeToString(deterministic=True), said
