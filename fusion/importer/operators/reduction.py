"""Reductions, softmax and the like."""

from __future__ import annotations

from fusion.dims import product
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, substitute
from fusion.importer.builder import X0, X1, Builder, call
from fusion.importer.node import Node
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import ArgReduce, Range, Reduce, Softmax
from fusion.ops.epilogue import IDENTITY

# kind, what is applied to each element before, what to the result
REDUCTIONS: dict[str, tuple[str, Expression, Expression]] = {
    "ReduceSum": ("sum", IDENTITY, IDENTITY),
    "ReduceMean": ("mean", IDENTITY, IDENTITY),
    "ReduceMax": ("max", IDENTITY, IDENTITY),
    "ReduceMin": ("min", IDENTITY, IDENTITY),
    "ReduceProd": ("prod", IDENTITY, IDENTITY),
    "ReduceL1": ("sum", call("abs", X0), IDENTITY),
    "ReduceL2": ("sum", call("square", X0), call("sqrt", X0)),
    "ReduceSumSquare": ("sum", call("square", X0), IDENTITY),
    "ReduceLogSum": ("sum", IDENTITY, call("log", X0)),
    "ReduceLogSumExp": ("logsumexp", IDENTITY, IDENTITY),
}


@operator(*REDUCTIONS)
def reduction(b: Builder, node: Node) -> Value:
    """Axes are an attribute, since opset 18 (ReduceSum: 13) an input; none given means all, or nothing at all."""
    x = node.input(0)
    kind, prologue, epilogue = REDUCTIONS[node.op]
    # Where nothing is reduced, what the operator does to each element still happens.
    element = X0 if kind == "logsumexp" else substitute(epilogue, {0: prologue})
    given = node.optional(1)
    axes = tuple(node.attr("axes", ())) if given is None else b.ints(given, "axes")
    if not axes:
        if node.attr("noop_with_empty_axes", 0):
            return b.pointwise(element, x)
        axes = tuple(range(x.rank))
    axes = tuple(sorted({node.axis(axis, x.rank) for axis in axes}))
    if x.rank == 0:
        return b.pointwise(element, x)
    return b.layer(Reduce(kind, axes, bool(node.attr("keepdims", 1)), prologue, epilogue), x)


@operator("Softmax", "LogSoftmax", since=13)
def softmax(b: Builder, node: Node) -> Value:
    x = node.input(0)
    return b.layer(Softmax(node.axis(node.attr("axis", -1), x.rank), node.op == "LogSoftmax"), x)


@operator("Softmax", "LogSoftmax", until=12)
def softmax_flattened(b: Builder, node: Node) -> Value:
    """The old meaning: the tensor is seen as a matrix, split before ``axis``."""
    x, log = node.input(0), node.op == "LogSoftmax"
    axis = node.axis(node.attr("axis", 1), x.rank)
    if product(x.shape[axis + 1 :]) == 1:
        return b.layer(Softmax(axis, log), x)
    matrix = b.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])), "flatten")
    return b.reshape(b.layer(Softmax(1, log), matrix), x.shape, "unflatten")


@operator("Hardmax")
def hardmax(b: Builder, node: Node) -> Value:
    """1 at the first maximum along the axis, 0 elsewhere."""
    x = node.input(0)
    flatten = node.opset < 13
    axis = node.axis(node.attr("axis", 1 if flatten else -1), x.rank)
    seen = x
    if flatten and product(x.shape[axis + 1 :]) != 1:
        seen, axis = b.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])), "flatten"), 1
    best = b.layer(ArgReduce(axis, True), seen, suffix="argmax")
    positions = b.layer(Range(0, 1, seen.shape[axis], DataType.INT64), suffix="positions")
    positions = b.reshape(positions, (seen.shape[axis], *(1,) * (seen.rank - axis - 1)), "column")
    result = b.pointwise(Convert(x.dtype, call("equal", X0, X1)), positions, best)
    return b.reshape(result, x.shape, "unflatten")
