"""Axes that the model computes: one of a few alternatives, each the operator with constant axes, chosen by nested branches.

The structure of a layer cannot depend on data, but which of several layers runs can: that is what an If is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import numpy as np

from fusion.importer.errors import Unsupported
from fusion.importer.node import Node

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, NodeProto

ALTERNATIVES = 32  # more of them are refused
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
# The input that holds axes, and whether other inputs belong to them in their order.
AXES = {
    **dict.fromkeys((f"Reduce{name}" for name in REDUCTIONS), (1, False)),
    **dict.fromkeys(("CumSum", "CumProd", "Squeeze", "Unsqueeze"), (1, False)),
    "DFT": (2, False),
    "Slice": (3, True),
    "Pad": (3, True),
}
OPSET = 18


def body(node: Node) -> FunctionProto | None:
    """What does as ``node`` does, with branches over its axes; None when its axes are known, or it has none.

    Raises:
        Unsupported: there are too many alternatives.
    """
    if node.domain or node.op not in AXES or node.proto is None:
        return None
    index, ordered = AXES[node.op]
    axes = node.optional(index)
    if axes is None or axes.is_constant or axes.elements is not None or axes.rank > 1:
        return None
    count = int(axes.shape[0]) if axes.rank and isinstance(axes.shape[0], int) else 1 if not axes.rank else -1
    if count < 0:
        raise Unsupported(f"its axes are computed, and so is how many there are ({axes.shape[0]})")
    rank = node.input(0).rank + (count if node.op == "Unsqueeze" else 0)
    choices = list((permutations if ordered else combinations)(range(rank), count))
    if not 0 < len(choices) <= ALTERNATIVES:
        raise Unsupported(f"its {count} axes of {rank} are computed: {len(choices)} alternatives, of at most {ALTERNATIVES}; give them as constants")
    return _function(node, index, rank, choices, ordered)


def _function(node: Node, index: int, rank: int, choices: Sequence[tuple[int, ...]], ordered: bool) -> FunctionProto:
    """The axes become one number (the sum of 2^axis, or digits to the base ``rank``), by which the alternatives are searched."""
    from onnx import helper, numpy_helper

    proto = node.proto
    assert proto is not None
    inputs = [f"input{number}" for number in range(len(proto.input))]
    outputs = [f"output{number}" for number, name in enumerate(proto.output)]
    weights = [rank**place if ordered else 1 for place in range(len(choices[0]))]
    table = np.arange(rank) if ordered else 1 << np.arange(rank)

    def constant(name: str, array: np.ndarray) -> NodeProto:
        return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(array.astype(np.int64), name))

    nodes = [
        constant("flat", np.array([-1])), constant("rank", np.array([rank])), constant("table", table), constant("weights", np.array(weights)),
        helper.make_node("Cast", [inputs[index]], ["wide"], name="wide", to=7),
        helper.make_node("Reshape", ["wide", "flat"], ["list"], name="list"),
        helper.make_node("Mod", ["list", "rank"], ["places"], name="places"),
        helper.make_node("Gather", ["table", "places"], ["digits"], name="digits"),
        helper.make_node("Mul", ["digits", "weights"], ["terms"], name="terms"),
        helper.make_node("ReduceSum", ["terms"], ["number"], name="number", keepdims=0),
    ]  # fmt: skip
    numbers = sorted((sum(int(table[axis]) * weight for axis, weight in zip(one, weights, strict=True)), one) for one in choices)

    def graph(part: Sequence[tuple[int, tuple[int, ...]]], name: str) -> GraphProto:
        results = [f"{name}_{output}" for output in outputs]
        if len(part) == 1:
            shape = node.input(index).shape
            leaf = type(proto)()
            leaf.CopyFrom(proto)
            leaf.input[:] = [f"{name}_axes" if number == index else one if old else "" for number, (one, old) in enumerate(zip(inputs, proto.input, strict=True))]
            leaf.output[:] = [result if old else "" for result, old in zip(results, proto.output, strict=True)]
            leaf.name = "chosen"
            made = [constant(f"{name}_axes", np.array(part[0][1]).reshape(shape)), leaf]  # type: ignore[arg-type]
        else:
            middle = len(part) // 2
            made = [
                constant(f"{name}_middle", np.array(part[middle][0])),
                helper.make_node("Less", ["number", f"{name}_middle"], [f"{name}_lower"], name=f"{name}_lower"),
                helper.make_node("If", [f"{name}_lower"], results, name=f"{name}_choice",
                                 then_branch=graph(part[:middle], f"{name}l"), else_branch=graph(part[middle:], f"{name}h")),
            ]  # fmt: skip
        return helper.make_graph(made, name, [], [helper.make_empty_tensor_value_info(result) for result in results])

    whole = graph(numbers, "axes")
    renamed = dict(zip((entry.name for entry in whole.output), outputs, strict=True))
    for made in whole.node:
        made.output[:] = [renamed.get(name, name) for name in made.output]
    opset = node.opset
    return helper.make_function("", node.op, inputs, outputs, [*nodes, *whole.node], [helper.make_opsetid("", max(opset, OPSET))])
