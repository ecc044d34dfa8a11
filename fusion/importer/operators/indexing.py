"""Indexed reads and writes, and one-hot encoding."""

from __future__ import annotations

from fusion.dtypes import DataType
from fusion.expression import Convert
from fusion.importer.builder import X0, X1, X2, X3, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.movement import expand_to
from fusion.importer.operators.slicing import cut
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Gather, GatherElements, GatherND, Range, ScatterElements, ScatterND, ShapeValue


@operator("Gather")
def gather(b: Builder, node: Node) -> Value:
    x = node.input(0)
    return b.layer(Gather(node.axis(node.attr("axis", 0), x.rank)), x, node.input(1))


@operator("GatherElements")
def gather_elements(b: Builder, node: Node) -> Value:
    x = node.input(0)
    return b.layer(GatherElements(node.axis(node.attr("axis", 0), x.rank)), x, node.input(1))


@operator("GatherND")
def gather_nd(b: Builder, node: Node) -> Value:
    x, indices = node.input(0), node.input(1)
    if not isinstance(indices.shape[-1], int):
        raise Unsupported(f"indices of shape {indices.shape}: the last dimension must be known")
    if indices.shape[-1] == 1 and not node.attr("batch_dims", 0):  # one index per row: what an index list becomes in torch's exporter
        return b.layer(Gather(0), x, b.reshape(indices, indices.shape[:-1], "rows"))
    return b.layer(GatherND(node.attr("batch_dims", 0)), x, indices)


@operator("ScatterElements", "Scatter")
def scatter_elements(b: Builder, node: Node) -> Value:
    x = node.input(0)
    op = ScatterElements(node.axis(node.attr("axis", 0), x.rank), node.attr("reduction", "none"))
    return b.layer(op, x, node.input(1), node.input(2))


@operator("ScatterND")
def scatter_nd(b: Builder, node: Node) -> Value:
    return b.layer(ScatterND(node.attr("reduction", "none")), node.input(0), node.input(1), node.input(2))


@operator("TensorScatter")
def tensor_scatter(b: Builder, node: Node) -> Value:
    """``update`` written into the cache along ``axis``, from each sequence's write position on; ``circular`` wraps at its end."""
    cache, update, start = node.input(0), node.input(1), node.optional(2)
    axis = node.axis(node.attr("axis", -2), cache.rank)
    steps, capacity = update.shape[axis], cache.shape[axis]
    index = b.layer(Range(0, 1, steps, DataType.INT64), suffix="steps")
    index = b.reshape(index, tuple(steps if one == axis else 1 for one in range(cache.rank)), "step_axis")
    if start is not None:
        first = b.reshape(start, (start.shape[0], *(1,) * (cache.rank - 1)), "start")
        place = call("add", X0, Convert(DataType.INT64, X1))
        if node.attr("mode", "linear") == "circular":
            size = b.layer(ShapeValue((capacity,), (1,), DataType.INT64), suffix="capacity")
            index = b.pointwise(call("mod", place, X2), index, first, size, suffix="place")
        else:
            index = b.pointwise(place, index, first, suffix="place")
    return b.layer(ScatterElements(axis), cache, expand_to(b, index, update.shape, "index"), update)


@operator("OneHot")
def one_hot(b: Builder, node: Node) -> Value:
    """``where(index == position, on, off)``; negative indices count from the end, others outside give off."""
    indices, values = node.input(0), node.input(2)
    (depth,) = b.dims(node.input(1), "depth")
    rank = indices.rank + 1
    axis = node.axis(node.attr("axis", -1), rank)
    if indices.dtype is not DataType.INT64:
        indices = b.pointwise(Convert(DataType.INT64, X0), indices, suffix="indices")
    column = b.reshape(indices, (*indices.shape[:axis], 1, *indices.shape[axis:]), "unsqueeze")
    positions = b.layer(Range(0, 1, depth, DataType.INT64), suffix="positions")
    positions = b.reshape(positions, (depth, *(1,) * (rank - axis - 1)), "column")
    size = b.layer(ShapeValue((depth,), (1,), DataType.INT64), suffix="depth")
    wrapped = call("where", call("less", X0, literal(0, DataType.INT64)), call("add", X0, X1), X0)
    column = b.pointwise(wrapped, column, size, suffix="wrap")
    if values.is_constant:
        off, on = (b.constant(values.array[index], name) for index, name in ((0, "off"), (1, "on")))
    else:
        off, on = (b.reshape(cut(b, values, (i,), (1,), (1,), name), (), f"{name}_scalar") for i, name in ((0, "off"), (1, "on")))
    return b.pointwise(call("where", call("equal", X0, X1), X2, X3), column, positions, on, off)
