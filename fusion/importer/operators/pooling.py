"""Windowed and global pooling."""

from __future__ import annotations

from fusion.dims import product
from fusion.expression import Expression
from fusion.importer.builder import X0, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.windows import window
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Fill, Padding, Pooling, PoolingIndices, Reduce, ScatterND
from fusion.ops.epilogue import IDENTITY

KINDS = {"MaxPool": "max", "AveragePool": "average", "LpPool": "lp"}


@operator("MaxPool", "AveragePool", "LpPool")
def pool(b: Builder, node: Node) -> tuple[Value, ...]:
    """MaxPool's Indices are a layer of their own, made when somebody reads them."""
    x = node.input(0)
    if not 3 <= x.rank <= 5:
        raise Unsupported(f"pooling over a tensor with {x.rank} dimensions; 3 to 5 are supported")
    w = window(node, x.shape[2:], node.required("kernel_shape"))
    ceil_mode = bool(node.attr("ceil_mode", 0)) and node.attr("auto_pad", "NOTSET") in ("NOTSET", "")
    op = Pooling(
        KINDS[node.op], w.sizes, w.strides, w.pre, w.post, w.dilations, ceil_mode,
        bool(node.attr("count_include_pad", 0)), int(node.attr("p", 2)),
    )  # fmt: skip
    result = b.layer(op, x)
    if not node.wants(1):
        return (result,)
    where = PoolingIndices(w.sizes, w.strides, w.pre, w.post, w.dilations, ceil_mode, bool(node.attr("storage_order", 0)))
    return result, b.layer(where, x, suffix="indices")


@operator("MaxUnpool")
def max_unpool(b: Builder, node: Node) -> Value:
    """Zeros, with the elements put where the indices say; they count in the shape that the window would have pooled."""
    x, indices = node.input(0), node.input(1)
    w = window(node, x.shape[2:], node.required("kernel_shape"))
    spatial = tuple(
        (size - 1) * stride + k - pre - post
        for size, stride, k, pre, post in zip(x.shape[2:], w.strides, w.sizes, w.pre, w.post, strict=True)
    )
    shape = (*x.shape[:2], *spatial)
    zeros = b.layer(Fill((product(shape),), x.dtype, 0.0 if x.dtype.is_float else 0), suffix="zeros")
    places = b.reshape(indices, (product(indices.shape), 1), "places")
    put = b.layer(ScatterND(), zeros, places, b.reshape(x, (product(x.shape),), "flatten"))
    result = b.reshape(put, shape, "shape")
    given = node.optional(2)
    if given is None:
        return result
    target = b.dims(given, "output_shape")
    after = tuple(wanted - size for wanted, size in zip(target, shape, strict=True))
    if not any(dim != 0 for dim in after):
        return result
    if any(isinstance(dim, int) and dim < 0 for dim in after):
        raise Unsupported(f"output_shape {target} is smaller than {shape}, which the window unpools to")
    return b.layer(Padding((0,) * x.rank, after), result, suffix="pad")


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
