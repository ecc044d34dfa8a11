"""TopK, ArgMax, ArgMin, running sums."""

from __future__ import annotations

from fusion.importer.builder import Builder
from fusion.importer.node import Node
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import ArgReduce, Cumulative, TopK


@operator("TopK")
def top_k(b: Builder, node: Node) -> tuple[Value, ...]:
    """``k`` is an attribute before opset 10."""
    x = node.input(0)
    k = node.attributes["k"] if "k" in node.attributes else b.dims(node.input(1), "k")[0]
    axis = node.axis(node.attr("axis", -1), x.rank)
    return b.layers(TopK(k, axis, bool(node.attr("largest", 1))), (x,))


@operator("ArgMax", "ArgMin")
def arg_reduce(b: Builder, node: Node) -> Value:
    x = node.input(0)
    axis = node.axis(node.attr("axis", 0), x.rank)
    keep_dims, last = bool(node.attr("keepdims", 1)), bool(node.attr("select_last_index", 0))
    return b.layer(ArgReduce(axis, keep_dims, node.op == "ArgMax", last), x)


@operator("CumSum", "CumProd")
def cumulative(b: Builder, node: Node) -> Value:
    x = node.input(0)
    (axis,) = b.ints(node.input(1), "axis")
    kind = "sum" if node.op == "CumSum" else "prod"
    exclusive, reverse = bool(node.attr("exclusive", 0)), bool(node.attr("reverse", 0))
    return b.layer(Cumulative(node.axis(axis, x.rank), kind, exclusive, reverse), x)
