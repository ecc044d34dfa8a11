"""Windowed and global pooling."""

from __future__ import annotations

from fusion.expression import Expression
from fusion.importer.builder import X0, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.windows import window
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Pooling, Reduce
from fusion.ops.epilogue import IDENTITY

KINDS = {"MaxPool": "max", "AveragePool": "average", "LpPool": "lp"}


@operator("MaxPool", "AveragePool", "LpPool")
def pool(b: Builder, node: Node) -> Value:
    node.refuse_outputs(1, what="Indices")
    x = node.input(0)
    if not 3 <= x.rank <= 5:
        raise Unsupported(f"pooling over a tensor with {x.rank} dimensions; 3 to 5 are supported")
    w = window(node, x.shape[2:], node.required("kernel_shape"))
    ceil_mode = bool(node.attr("ceil_mode", 0)) and node.attr("auto_pad", "NOTSET") in ("NOTSET", "")
    op = Pooling(
        KINDS[node.op], w.sizes, w.strides, w.pre, w.post, w.dilations, ceil_mode,
        bool(node.attr("count_include_pad", 0)), int(node.attr("p", 2)),
    )  # fmt: skip
    return b.layer(op, x)


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(b: Builder, node: Node) -> Value:
    """A reduction over all spatial axes."""
    x = node.input(0)
    axes = tuple(range(2, x.rank))
    if node.op != "GlobalLpPool":
        return b.layer(Reduce("mean" if node.op == "GlobalAveragePool" else "max", axes, True), x)
    prologue, epilogue = lp_norm(int(node.attr("p", 2)), x)
    return b.layer(Reduce("sum", axes, True, prologue, epilogue), x)


def lp_norm(p: int, x: Value) -> tuple[Expression, Expression]:
    """What an Lp norm applies to each element before the sum, and to the sum."""
    if p == 1:
        return call("abs", X0), IDENTITY
    if p == 2:
        return call("square", X0), call("sqrt", X0)
    return call("pow", call("abs", X0), literal(p, x.dtype)), call("pow", X0, literal(1.0 / p, x.dtype))
