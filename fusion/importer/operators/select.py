"""Operators that find how many results there are: NonZero, Compress, NonMaxSuppression, Unique."""

from __future__ import annotations

import numpy as np

from fusion.dims import Dim, dim_min, product
from fusion.importer.builder import Builder
from fusion.importer.node import Node
from fusion.importer.operators.slicing import cut
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Gather, NonMaxSuppression, NonZero, Unique


def _found(b: Builder, table: Value, count: Dim, suffix: str = "") -> Value:
    """The first ``count`` rows of ``table``."""
    rank = table.rank
    return cut(b, table, (0,) * rank, (count, *table.shape[1:]), (1,) * rank, suffix)


def _positions(b: Builder, x: Value, suffix: str = "rows") -> Value:
    """Indices of the non-zero elements of ``x``, a row for each."""
    table, count = b.layers(NonZero(), (x,), "" if suffix == "rows" else "positions")
    (found,) = b.dims(count, "count", product(x.shape))
    return _found(b, table, found, suffix)


@operator("NonZero")
def non_zero(b: Builder, node: Node) -> Value:
    x = node.input(0)
    if x.rank:
        return b.transpose(_positions(b, x), (1, 0), "columns")
    rows = _positions(b, b.reshape(x, (1,), "reshape"))
    return b.reshape(rows, (0, rows.shape[0]), "columns") if rows.shape[0] == 0 else b.transpose(rows, (1, 0), "columns")


@operator("Compress")
def compress(b: Builder, node: Node) -> Value:
    x, condition = node.input(0), node.input(1)
    if "axis" not in node.attributes:
        x = b.reshape(x, (product(x.shape),), "flatten")
    axis = node.axis(node.attr("axis", 0), x.rank)
    rows = _positions(b, condition, "kept")
    return b.layer(Gather(axis), x, b.reshape(rows, (rows.shape[0],), "indices"))


@operator("NonMaxSuppression")
def non_max_suppression(b: Builder, node: Node) -> Value:
    boxes, scores = node.input(0), node.input(1)
    most, overlap, least = (node.optional(index) for index in (2, 3, 4))
    if most is None:
        most = b.constant(np.zeros(1, np.int64), "most")
    limit: Dim = boxes.shape[1]
    if most.is_constant:
        limit = max(0, int(most.array.reshape(-1)[0])) if isinstance(limit, int) else dim_min(limit, max(0, int(most.array.reshape(-1)[0])))
    overlap = overlap or b.constant(np.zeros(1, np.float32), "overlap")
    op = NonMaxSuppression(limit, bool(node.attr("center_point_box", 0)), least is not None)
    least = least or b.constant(np.zeros(1, np.float32), "least")
    table, count = b.layers(op, (boxes, scores, most, overlap, least))
    (found,) = b.dims(count, "count", table.shape[0])
    return _found(b, table, found, "rows")


@operator("Unique")
def unique(b: Builder, node: Node) -> tuple[Value, ...]:
    x = node.input(0)
    axis = node.axis(node.attributes["axis"], x.rank) if "axis" in node.attributes else None
    if axis is None:
        x = b.reshape(x, (product(x.shape),), "flatten")
    first, inverse, counts, count = b.layers(Unique(axis, bool(node.attr("sorted", 1))), (x,))
    (found,) = b.dims(count, "count", first.shape[0])
    indices = _found(b, first, found, "indices")
    values = b.layer(Gather(axis or 0), x, indices, suffix="values")
    return values, indices, inverse, _found(b, counts, found, "counts") if node.wants(3) else counts
