"""What rules share that join projections of one tensor: when products can be one product, and that product."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from fusion.expression import Expression, Operand, apply
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Refusal

_BIAS: Expression = apply("add", Operand(0), Operand(1))


def refuse_products(graph: Graph, products: Sequence[Layer]) -> Refusal | None:
    """Why ``products`` cannot be one with their weights side by side."""
    if len({product.inputs[0] for product in products}) > 1:
        return Refusal("inputs", f"the products read {', '.join(product.inputs[0] for product in products)}")
    if len({(product.op.transpose_a, product.op.transpose_b) for product in products}) > 1:
        flags = ", ".join(f"{product.name} ({product.op.transpose_a}, {product.op.transpose_b})" for product in products)
        return Refusal("transpose", f"the products transpose their operands differently: {flags}")
    for product in products:
        weights = graph.constant(product.inputs[1])
        if weights is None or weights.ndim != 2:
            return Refusal("weights", f"{product.inputs[1]} is no constant matrix")
        if row_added(graph, product) is None:
            return Refusal("epilogue", f"{product.name} does more than add a constant row")
    if len({graph.type(product.outputs[0]).dtype for product in products}) > 1:
        types = ", ".join(graph.type(product.outputs[0]).dtype.value for product in products)
        return Refusal("data type", f"the results of the products are {types}")
    return None


def joined_product(graph: Graph, products: Sequence[Layer], result: str, rule: str) -> tuple[Layer, dict[str, np.ndarray]]:
    """One product whose columns are those of ``products``, and its constants. Its result is named after ``result``."""
    op = products[0].op
    weights = [graph.constants[product.inputs[1]] for product in products]
    base = f"{products[0].inputs[1]}.{result.rsplit('.', 1)[-1]}"
    names = graph.fresh(base), graph.fresh(f"{base}.bias")
    constants = {names[0]: np.ascontiguousarray(np.concatenate(weights, axis=0 if op.transpose_b else 1))}
    inputs = [products[0].inputs[0], names[0]]
    plain = all(product.op.epilogue == IDENTITY for product in products)
    if not plain:
        constants[names[1]] = np.concatenate([row_added(graph, product) for product in products])  # type: ignore[arg-type]
        inputs.append(names[1])
    layer = Layer(
        " + ".join(product.name for product in products), replace(op, epilogue=IDENTITY if plain else _BIAS), tuple(inputs), (graph.fresh(result),),
        union(product.origins for product in products), union((*(product.fusions for product in products), (rule,))),
    )  # fmt: skip
    return layer, constants


def union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """All members of ``groups``, each once."""
    return tuple(dict.fromkeys(one for group in groups for one in group))


def same_value(graph: Graph, one: str, other: str) -> bool:
    a, b = graph.constant(one), graph.constant(other)
    return one == other or (a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b))


def row_added(graph: Graph, product: Layer) -> np.ndarray | None:
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
