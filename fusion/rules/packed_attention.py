"""Attention(x wq, x wk, x wv) -> Attention(x [wq wk wv]): three projections of one tensor become one product, read in place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.expression import Expression, Operand, apply
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, MatrixMultiply, Shuffle
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import movement

LAYOUTS = ("bshd", "sbhd")  # a row of a projection holds all heads of one position
_BIAS: Expression = apply("add", Operand(0), Operand(1))


def _match(graph: Graph, layer: Layer) -> Match | None:
    if layer.op.packed:
        return None
    products, views = [], []
    for name in layer.inputs[:3]:
        view = graph.producer(name)
        product = graph.producer(view.inputs[0]) if view is not None and isinstance(view.op, Shuffle) else None
        if view is None or product is None or not isinstance(product.op, MatrixMultiply):
            return None
        views.append(view)
        products.append(product)
    layers = (*products, *views, layer)
    if len({item.name for item in layers}) != 7:
        return None
    vanishing = tuple(item.outputs[0] for item in layers[:-1])
    return Match(layers, vanishing, {"products": tuple(products), "views": tuple(views)})


def _check(graph: Graph, match: Match) -> Refusal | None:
    attention, products = match.layers[-1], match.found["products"]
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU three products are as fast as one, and their results need no strides")
    if len({product.inputs[0] for product in products}) > 1:
        return Refusal("inputs", f"the products read {', '.join(product.inputs[0] for product in products)}")
    if len({(product.op.transpose_a, product.op.transpose_b) for product in products}) > 1:
        return Refusal("transpose", "the products transpose their operands differently")
    if len(set(attention.op.layouts[:3])) > 1 or attention.op.layouts[0] not in LAYOUTS:
        return Refusal("layout", f"q, k and v are stored as {', '.join(attention.op.layouts[:3])}; {' or '.join(LAYOUTS)} is needed")
    for product, view in zip(products, match.found["views"], strict=True):
        weights = graph.constant(product.inputs[1])
        if weights is None or weights.ndim != 2:
            return Refusal("weights", f"{product.inputs[1]} is no constant matrix")
        if _bias(graph, product) is None:
            return Refusal("epilogue", f"{product.name} does more than add a constant row")
        moved = movement(graph.type(view.inputs[0]).shape, view.op)
        if moved is None or not moved.is_view:
            return Refusal("moves", f"{view.name} moves data")
    shapes = {graph.type(name).shape for name in attention.inputs[:3]}
    types = {graph.type(product.outputs[0]).dtype for product in products}
    if len(shapes) > 1 or len(types) > 1:
        return Refusal("shapes", "q, k and v differ in shape or data type (grouped queries, cross attention)")
    return None


def _bias(graph: Graph, product: Layer) -> np.ndarray | None:
    """The row that ``product`` adds to its result (zeros for none), None when its epilogue is anything else."""
    columns = graph.type(product.outputs[0]).shape[-1]
    dtype = graph.type(product.outputs[0]).dtype.numpy
    if product.op.epilogue == IDENTITY:
        return np.zeros(int(columns), dtype)  # type: ignore[call-overload]
    if product.op.epilogue != _BIAS:
        return None
    value = graph.constant(product.inputs[2])
    if value is None or value.size not in (1, columns) or (value.size > 1 and value.shape[-1] != columns):
        return None
    return np.broadcast_to(value.reshape(-1), (columns,)).astype(dtype)  # type: ignore[arg-type]


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    attention, products = match.layers[-1], match.found["products"]
    op = products[0].op
    weights = [graph.constant(product.inputs[1]) for product in products]
    joined: np.ndarray = np.concatenate(weights, axis=0 if op.transpose_b else 1)  # type: ignore[arg-type]
    rows = [_bias(graph, product) for product in products]
    plain = all(product.op.epilogue == IDENTITY for product in products)
    names = {"weights": graph.fresh(f"{products[0].inputs[1]}.qkv"), "bias": graph.fresh(f"{products[0].inputs[1]}.qkv.bias")}
    constants = {names["weights"]: np.ascontiguousarray(joined)}
    inputs = [products[0].inputs[0], names["weights"]]
    if not plain:
        constants[names["bias"]] = np.concatenate(rows)  # type: ignore[arg-type]
        inputs.append(names["bias"])
    flat, packed = graph.fresh(f"{attention.name}.qkv"), graph.fresh(f"{attention.name}.packed")
    origins = tuple(dict.fromkeys(node for product in products for node in product.origins))
    product = Layer(
        " + ".join(product.name for product in products), replace(op, epilogue=IDENTITY if plain else _BIAS), tuple(inputs),
        (flat,), origins, tuple(dict.fromkeys((*(rule for one in products for rule in one.fusions), RULE.name))),
    )  # fmt: skip
    a, b, heads, size = graph.type(attention.inputs[0]).shape
    view = Layer(f"{attention.name} packed", Shuffle(reshape=(a, b, 3, heads, size)), (flat,), (packed,))
    layout = attention.op.layouts[0][:2] + "thd"
    changed = replace(attention.op, packed=True, layouts=(layout, layout, layout, attention.op.layouts[3]))
    moved = tuple(node for one in match.found["views"] for node in one.origins)
    fused = Layer(
        attention.name, changed, (packed, *attention.inputs[3:]), attention.outputs,
        tuple(dict.fromkeys((*moved, *attention.origins))), tuple(dict.fromkeys((*attention.fusions, RULE.name))),
    )  # fmt: skip
    return Replacement((product, view, fused), constants)


RULE = Rule("packed-attention", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
