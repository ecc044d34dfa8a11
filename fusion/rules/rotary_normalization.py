"""RotaryEmbedding(Normalization(x, g)) -> RotaryEmbedding(x, g), which divides rows by their root mean square before they turn: queries and keys with norms."""

from __future__ import annotations

from dataclasses import replace

from fusion.dtypes import DataType
from fusion.expression import Apply, Operand
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Normalization, RotaryEmbedding
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import show
from fusion.rules._statistics import strip

LONGEST = 256  # elements of a row: a warp holds it, each thread one vector of pairs


def _match(graph: Graph, layer: Layer) -> Match | None:
    norm = graph.producer(layer.inputs[0])
    if norm is None or not isinstance(norm.op, Normalization) or layer.op.epsilon is not None:
        return None
    return Match((norm, layer), norm.outputs)


def _check(graph: Graph, match: Match) -> Refusal | None:
    norm, layer = match.layers
    kind, made = graph.type(norm.inputs[0]), graph.type(norm.outputs[0])
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU two layers are as fast as one")
    if norm.op.axes != (len(kind.shape) - 1,):
        return Refusal("axes", f"{norm.name} normalises over axes {norm.op.axes}, not over each row that turns")
    if norm.op.center or norm.op.floor:
        return Refusal("normalisation", f"{norm.name} {'subtracts the mean' if norm.op.center else f'divides by at least {norm.op.floor:g}'}; the embedding divides by a root alone")
    product = strip(norm.op.epilogue)
    factors = [strip(one) for one in product.arguments] if isinstance(product, Apply) and product.function == "mul" else []
    if factors not in ([Operand(0), Operand(1)], [Operand(1), Operand(0)]):
        return Refusal("epilogue", f"{norm.name} does not scale its rows alone, with one tensor")
    scale = graph.type(norm.inputs[1])
    if kind.dtype is not made.dtype or scale.dtype not in (kind.dtype, DataType.FLOAT):
        return Refusal("data type", f"{norm.name} makes {made.dtype.value} of {kind.dtype.value} and {scale.dtype.value}")
    width = kind.shape[-1]
    if not isinstance(width, int) or width > LONGEST or scale.shape[-1:] != (width,):
        return Refusal("size", f"rows of {show(kind.shape[-1:])} with a scale of {show(scale.shape)}; up to {LONGEST} elements fit a warp")
    if norm.op.heads is not None and (norm.op.heads[0] or layer.op.heads):
        return Refusal("heads", f"{norm.name} takes heads from {norm.op.heads[0]} on, {layer.name} {layer.op.heads or 'all'} of these")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    norm, layer = match.layers
    op = replace(layer.op, heads=norm.op.heads[1] if norm.op.heads is not None else layer.op.heads, epsilon=norm.op.epsilon)
    return Replacement((Layer("", op, (norm.inputs[0], *layer.inputs[1:], norm.inputs[1]), layer.outputs),))


RULE = Rule("rotary-normalization", __doc__.splitlines()[0], (RotaryEmbedding,), _match, _rewrite, _check)
