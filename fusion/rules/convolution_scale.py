"""Conv(x, w) * s + b -> Conv(x, w * s) + b', for s and b uniform or per channel; also Deconv.

This is how batch normalisation disappears. Weights are adjusted in float64 and rounded once. ``matmul-scale`` is the same
for matrix products, per column.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.expression import Expression, Operand, apply, functions, substitute, text
from fusion.graph import Graph
from fusion.network import Layer, Op
from fusion.ops import Convolution, Deconvolution, MatrixMultiply
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._affine import channel_constants, leading_affine
from fusion.rules._epilogue import check as epilogue_check
from fusion.rules._expressions import join, number, pointwise_reader

_SCALES = frozenset({"mul", "div", "sub", "neg"})
_BIAS = apply("add", Operand(0), Operand(1))


def _channel_axis(graph: Graph, layer: Layer) -> tuple[int, int]:
    """(rank of the output, its channel axis)."""
    rank = len(graph.type(layer.outputs[0]).shape)
    if isinstance(layer.op, MatrixMultiply):
        return rank, rank - 1
    return rank, rank - 1 if layer.op.channels_last else 1


def _whole(layer: Layer, reader: Layer | None) -> tuple[Expression, tuple[str, ...]]:
    """The epilogue with the reader's expression after it, and the names of its operands (0 is the result)."""
    result, extras = layer.outputs[0], layer.inputs[layer.op.arity :]
    if reader is None:
        return layer.op.epilogue, (result, *extras)
    return join(reader.op.expression, reader.inputs, result, layer.op.epilogue, (result, *extras))


def _match(graph: Graph, layer: Layer) -> Match | None:
    if graph.type(layer.inputs[1]).dtype.itemsize == 1:
        return None  # quantised weights cannot take a scale; their epilogue has it
    rank, axis = _channel_axis(graph, layer)
    result, extras = layer.outputs[0], layer.inputs[layer.op.arity :]
    if layer.op.epilogue == _BIAS:  # by far the most common one: no scale in it, and no need to look at the values
        if 1 not in channel_constants(graph, (result, *extras), rank, axis):
            return None
    elif layer.op.epilogue != IDENTITY:
        steps = functions(layer.op.epilogue)
        if not _SCALES.intersection(steps) and steps.count("add") < 2 and steps != ("add",):
            return None
        own = leading_affine(layer.op.epilogue, channel_constants(graph, (result, *extras), rank, axis))
        if own is not None and (own.steps > 1 or not np.all(own.scale == 1)):
            return Match((layer,))
        if own is None or own.rest != IDENTITY:
            return None  # something that is not affine stands between
    reader = pointwise_reader(graph, layer)
    if reader is None or not _SCALES.intersection(functions(reader.op.expression)):
        return None
    position = next(i for i, name in enumerate(reader.inputs) if name == result)
    if any(name == result for name in reader.inputs[position + 1 :]):
        return None
    names = (result, *(name for name in reader.inputs if name != result))
    mapping: dict[int, Expression] = {i: Operand(names.index(name)) for i, name in enumerate(reader.inputs)}
    affine = leading_affine(substitute(reader.op.expression, mapping), channel_constants(graph, names, rank, axis))
    if affine is None or np.all(affine.scale == 1):
        return None  # a shift alone is a bias: an ordinary epilogue
    return Match((layer, reader), (result,))


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer = match.layers[0]
    weights = layer.inputs[1]
    if graph.constant(weights) is None:
        return Refusal("weights", f"the weights {weights} are not constant")
    if not graph.type(weights).dtype.is_float:
        return Refusal("data type", f"the weights {weights} are {graph.type(weights).dtype.value}, not floating point")
    return epilogue_check(graph, match) if len(match.layers) == 2 else None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    layer, reader = match.layers[0], match.layers[-1] if len(match.layers) == 2 else None
    rank, axis = _channel_axis(graph, layer)
    expression, names = _whole(layer, reader)
    affine = leading_affine(expression, channel_constants(graph, names, rank, axis))
    if affine is None:
        return Refusal("pattern", f"what follows the product, {text(expression)}, does not begin with a scale")
    a, w = layer.inputs[:2]
    weights = graph.constants[w]
    constants: dict[str, np.ndarray] = {}
    if np.any(affine.scale != 1):
        with np.errstate(over="ignore"):
            scaled = (weights.astype(np.float64) * _along_weights(layer, affine.scale, weights)).astype(weights.dtype)
        if not np.all(np.isfinite(scaled)) and np.all(np.isfinite(weights)):
            return Refusal("overflow", f"{w} times the scale does not fit {graph.type(w).dtype.value} "
                                       f"(largest factor {np.abs(affine.scale).max():.3g})")  # fmt: skip
        w = graph.fresh(f"{w}.scaled")
        constants[w] = scaled
    rest = affine.rest
    if np.any(affine.shift != 0):
        bias = graph.fresh(f"{layer.name}.bias")
        rest = substitute(rest, {0: apply("add", Operand(0), Operand(len(names)))})
        names = (*names, bias)
        channels = graph.type(layer.outputs[0]).shape[axis]
        shift = affine.shift.astype(weights.dtype)
        if shift.ndim and isinstance(channels, int):
            constants[bias] = np.broadcast_to(shift, (channels,)).reshape((-1,) + (1,) * (rank - 1 - axis))
        else:
            constants[bias] = shift
    rest, used = number(rest, names, fixed=1)
    op = replace(layer.op, epilogue=rest)
    outputs = reader.outputs if reader is not None else layer.outputs
    return Replacement((Layer("", op, (a, w, *used[1:]), outputs),), constants, keep_name=reader is None)


def _along_weights(layer: Layer, scale: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``scale`` in a shape that broadcasts along the output channels of ``weights``."""
    if scale.ndim == 0:
        return scale
    op = layer.op
    if isinstance(op, MatrixMultiply):
        return scale[:, None] if op.transpose_b else scale
    window = (1,) * (weights.ndim - 2)
    if isinstance(op, Convolution):
        return scale.reshape(-1, 1, *window)
    # Deconvolution: [C, O / groups, *window]; the rows of group g make the output channels of group g.
    per_group = scale.reshape(op.groups, 1, -1)
    rows = np.broadcast_to(per_group, (op.groups, weights.shape[0] // op.groups, weights.shape[1]))
    return rows.reshape(weights.shape[0], weights.shape[1], *window)


def scale_rule(name: str, equation: str, anchors: tuple[type[Op], ...]) -> Rule:
    """The rule for one family of products."""
    return Rule(name, equation, anchors, _match, _rewrite, _check)


RULE = scale_rule("convolution-scale", __doc__.splitlines()[0], (Convolution, Deconvolution))
