"""Operators that make tensors of nothing but attributes and shapes: constants, ranges, fills, triangles."""

from __future__ import annotations

import math

import numpy as np

from fusion.dims import Dim, Sym, dim_max
from fusion.dtypes import DataType, data_type
from fusion.expression import Convert
from fusion.importer import ratio
from fusion.importer.builder import X0, X1, X2, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.registry import operator
from fusion.importer.tensors import data_type_of
from fusion.importer.values import Value
from fusion.ops import Fill, Range


@operator("Constant")
def constant(b: Builder, node: Node) -> Value:
    attributes = node.attributes
    if "value" in attributes:
        return b.constant(attributes["value"], "value")
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64), ("value_ints", np.int64)):
        if name in attributes:
            return b.constant(np.asarray(attributes[name], dtype), "value")
    if "sparse_value" in attributes:
        return b.constant(attributes["sparse_value"], "value")
    raise Unsupported(f"a constant given by {', '.join(attributes) or 'nothing'}")


@operator("ConstantOfShape")
def constant_of_shape(b: Builder, node: Node) -> Value:
    value = node.attr("value", np.zeros(1, np.float32))
    dtype = data_type(value.dtype)
    item = value.reshape(-1)[0]
    number = float(item) if dtype.is_float else bool(item) if dtype is DataType.BOOL else int(item)
    shape = node.input(0)
    return b.layer(Fill(() if shape.shape == (0,) else b.dims(shape, "shape"), dtype, number))


@operator("Range")
def range_(b: Builder, node: Node) -> Value:
    bounds = [node.input(index) for index in range(3)]
    dtype = bounds[0].dtype
    if all(value.is_constant for value in bounds):
        first, limit, delta = (value.array.reshape(-1)[0].item() for value in bounds)
        if delta == 0:
            raise Unsupported("a step of 0")
        count = max(0, math.ceil((limit - first) / delta))
        return b.layer(Range(first, delta, count, dtype))
    names = ("start", "limit", "delta")
    start, limit, step = (b.items(value, name)[0] for value, name in zip(bounds, names, strict=True))
    if None in (start, limit, step):
        return _computed_range(b, bounds)
    length = ratio.ceil(ratio.div(ratio.sub(limit, start), step))
    if length is None or not isinstance(start, int | Sym) or not isinstance(step, int | Sym):
        raise Unsupported("its bounds depend on data; trtcli needs them to follow from shapes and constants")
    assert isinstance(length, int | Sym)
    return b.layer(Range(start, step, length if isinstance(length, Sym) else dim_max(length, 0), dtype))


def _computed_range(b: Builder, bounds: list[Value]) -> Value:
    """A range whose bounds are data: its length is computed on the device and read by the host."""
    start, _, step = bounds
    wide = DataType.DOUBLE
    span = call("sub", Convert(wide, X1), Convert(wide, X0))
    length = Convert(DataType.INT64, call("max", call("ceil", call("div", span, Convert(wide, X2))), literal(0, wide)))
    shaped = [b.reshape(value, (1,), f"bound{index}") for index, value in enumerate(bounds)]
    (count,) = b.dims(b.pointwise(length, *shaped, suffix="length"), "length")
    positions = b.layer(Range(0, 1, count, DataType.INT64), suffix="positions")
    value = call("add", X0, call("mul", X1, Convert(start.dtype, X2)))
    return b.pointwise(value, shaped[0], b.reshape(step, (1,), "bound2"), positions)


def _axis_range(b: Builder, size: Dim, shape: tuple[Dim, ...], suffix: str) -> Value:
    return b.reshape(b.layer(Range(0, 1, size, DataType.INT64), suffix=suffix), shape, f"{suffix}_shape")


def _rows_and_columns(b: Builder, x: Value) -> tuple[Value, Value]:
    """Row and column numbers of the matrices in ``x``, to compare with each other."""
    rows, columns = x.shape[-2:]
    return _axis_range(b, rows, (rows, 1), "rows"), _axis_range(b, columns, (columns,), "columns")


@operator("Trilu")
def trilu(b: Builder, node: Node) -> Value:
    """Keeps the elements on or above (below) the diagonal ``k``, zero elsewhere."""
    x, k = node.input(0), node.optional(1)
    rows, columns = _rows_and_columns(b, x)
    diagonal = X0 if k is None else call("add", X0, X2)
    inside = call("greater_or_equal" if node.attr("upper", 1) else "less_or_equal", X1, diagonal)
    offset = () if k is None else (b.reshape(k, (1,), "k"),)
    mask = b.pointwise(inside, rows, columns, *offset, suffix="mask")
    return b.pointwise(call("where", X1, X0, literal(0, x.dtype)), x, mask)


@operator("EyeLike")
def eye_like(b: Builder, node: Node) -> Value:
    x = node.input(0)
    dtype = data_type_of(node.attributes["dtype"]) if "dtype" in node.attributes else x.dtype
    rows, columns = _rows_and_columns(b, x)
    diagonal = call("add", X0, literal(node.attr("k", 0), DataType.INT64))
    return b.pointwise(Convert(dtype, call("equal", diagonal, X1)), rows, columns)
