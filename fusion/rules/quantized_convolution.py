"""Conv(DQ(x), DQ(w)) -> f(Conv(x, w)) on 8-bit numbers, f = (sum - zero * sum(w)) * scale in the epilogue; also Deconv.

Integers are summed in int32, exactly; then the epilogue multiplies by the scale of x times the scale of w, one for the tensor or
one per output channel. A zero point of x is not subtracted from every element: what it adds to each sum depends on the weights
alone (and on how far the window hangs over the border, where there is nothing to correct), so the layer's own meaning,
applied to ones, gives the correction at build. ``quantized-matmul`` is the same for matrix products.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.dims import is_static
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply, substitute, type_of
from fusion.graph import Graph
from fusion.network import Layer, Op
from fusion.ops import Convolution, Deconvolution, MatrixMultiply, Shuffle
from fusion.ops.epilogue import product_type
from fusion.quantization import at_border, correction, shifted_weights
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import number, show
from fusion.rules._quantized import QUANTIZED, Scaling, Weights, constant_weights, dequantized, is_read_elsewhere

_LONGEST = 2**31 // (255 * 128)  # products of 8 bits that an int32 holds in any case


def _match(graph: Graph, layer: Layer) -> Match | None:
    if graph.type(layer.inputs[0]).dtype.itemsize == 1:
        return None
    producers = [graph.producer(name) for name in layer.inputs[:2]]
    sides = [dequantized(graph, producer) for producer in producers]
    weights = constant_weights(graph, layer.inputs[1])
    if sides[0] is None and sides[1] is None and weights is None:
        return None
    between = weights.layers if weights is not None else (producers[1],) if sides[1] is not None else ()
    left = (producers[0],) if sides[0] is not None else ()
    layers = tuple(dict.fromkeys(one for one in (*left, *between) if one is not None))
    return Match((*layers, layer), (), {"x": sides[0], "w": sides[1], "weights": weights})


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer = match.layers[-1]
    x, w, weights = match.found["x"], match.found["w"], match.found["weights"]
    a, b = layer.inputs[:2]
    if x is None:
        return Refusal("activations", f"{a} is {graph.type(a).dtype.value}, not dequantised by a known scale: only the "
                                      f"weights are quantised")  # fmt: skip
    if x.quantized not in QUANTIZED:
        return Refusal("data type", f"{x.tensor} is {x.quantized.value}; activations of {', '.join(one.value for one in QUANTIZED)} are multiplied")
    if weights is None and w is None:
        return Refusal("weights", f"{b} is {graph.type(b).dtype.value}, not dequantised by a known scale")
    if not x.uniform:
        return Refusal("scale", f"{a} has a scale of shape {show(x.scale.shape)}; one for the whole tensor is allowed")
    kind = weights.values.dtype.name if weights is not None else w.quantized.value
    if (x.quantized.is_float or kind.startswith("float")) and x.quantized.value != kind:
        return Refusal("data type", f"{x.tensor} is {x.quantized.value}, {b} is {kind}")
    if x.real is DataType.DOUBLE:
        return Refusal("data type", f"{a} is float64")
    if weights is None:
        if w.quantized not in QUANTIZED:
            return Refusal("data type", f"{w.tensor} is {w.quantized.value} and not constant")
        if not isinstance(layer.op, MatrixMultiply):
            return Refusal("weights", f"{w.tensor} is not constant")
        if not w.uniform or w.zero.any() or x.zero.any() or w.quantized is DataType.UINT8:
            return Refusal("zero point", f"{x.tensor} and {w.tensor} have zero points {x.zero.reshape(-1)[:1]} and "
                                         f"{w.zero.reshape(-1)[:1]}; between two activations only 0, and int8, is allowed")  # fmt: skip
        return None
    depth = _depth(layer.op, weights.values.shape)
    if depth > _LONGEST and x.quantized.is_integer:
        return Refusal("overflow", f"sums of {depth} products may not fit int32; {_LONGEST} are allowed")
    moved = shifted_weights(weights.values, weights.zero)
    if isinstance(moved, str):
        return Refusal("zero point", f"{b}: {moved}")
    if _per_channel(layer.op, weights.scale) is None:
        return Refusal("scale", f"the scales of {b} differ along its inputs; they may differ along its outputs only")
    if x.zero.any():
        if not x.quantized.is_integer:
            return Refusal("zero point", f"{a} is an 8-bit float with zero point {float(x.zero.reshape(())):g}")
        if at_border(layer.op) and not is_static(graph.type(a).shape[1:]):
            return Refusal("zero point", f"{a} of shape {show(graph.type(a).shape)} has zero point {int(x.zero.reshape(()))}, and what "
                                         f"the padding needs for it depends on run-time sizes")  # fmt: skip
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    layer = match.layers[-1]
    x: Scaling = match.found["x"]
    w: Scaling | None = match.found["w"]
    weights: Weights | None = match.found["weights"]
    constants: dict[str, np.ndarray] = {}
    names = [layer.outputs[0], *layer.inputs[layer.op.arity :]]

    def operand(value: np.ndarray, suffix: str) -> Expression:
        """An epilogue operand with this value."""
        if value.size == 1:
            item = value.reshape(())
            return Literal(int(item) if value.dtype.kind == "i" else float(item), DataType(value.dtype.name))
        name = graph.fresh(f"{layer.name}.{suffix}")
        constants[name] = value
        names.append(name)
        return Operand(len(names) - 1)

    result: Expression = Operand(0)
    if weights is None:
        assert w is not None
        b, scale = w.tensor, x.scale.reshape(()) * w.scale.reshape(())
    else:
        moved = shifted_weights(weights.values, weights.zero)
        per_channel = _per_channel(layer.op, weights.scale)
        assert not isinstance(moved, str) and per_channel is not None
        b = graph.fresh(f"{layer.inputs[1]}.{moved.dtype.name}")
        constants[b] = moved
        scale = x.scale.reshape(()) * per_channel
        if x.zero.any():
            shift = correction(layer.op, moved, graph.type(x.tensor).shape, int(x.zero.reshape(())))
            result = apply("sub", result, operand(shift, "zero_point"))
    kind = product_type(x.quantized)
    result = result if kind is DataType.FLOAT else Convert(DataType.FLOAT, result)
    result = apply("mul", result, operand(scale.astype(np.float32), "scale"))
    out = graph.type(layer.outputs[0]).dtype
    epilogue = substitute(layer.op.epilogue, {0: result})
    types = [kind, *(graph.type(name).dtype if name not in constants else DataType(constants[name].dtype.name) for name in names[1:])]
    if type_of(epilogue, types) is not out:
        epilogue = Convert(out, epilogue)
    epilogue, used = number(epilogue, names, fixed=1)
    op, a = replace(layer.op, epilogue=epilogue), x.tensor
    turns: tuple[Layer, ...] = ()
    if isinstance(op, MatrixMultiply) and graph.limits.device == "cuda":
        op, a, b, turns = _depth_last(graph, layer, op, a, b, b in constants)
    fused = Layer("", op, (a, b, *used[1:]), layer.outputs)
    kept = tuple(one for one in match.layers[:-1] if is_read_elsewhere(graph, one, match))
    return Replacement((*kept, *turns, fused), constants)


def _depth_last(
    graph: Graph, layer: Layer, op: MatrixMultiply, a: str, b: str, known: bool
) -> tuple[MatrixMultiply, str, str, tuple[Layer, ...]]:
    """The product with operands of rows along the depth, as tensor cores read 8 bits; Shuffles turn those that are not
    (``known`` weights are turned at build)."""
    turns = []

    def turned(name: str) -> str:
        rank = len(graph.type(name).shape)
        made = graph.fresh(f"{name}.turned")
        swap = Shuffle(first=(*range(rank - 2), rank - 1, rank - 2))
        turns.append(Layer(f"reformat {name} for {layer.name}", swap, (name,), (made,), fusions=("reformat",)))
        return made

    if op.transpose_a:
        a, op = turned(a), replace(op, transpose_a=False)
    if not op.transpose_b and not known:
        b, op = turned(b), replace(op, transpose_b=True)
    return op, a, b, tuple(turns)


def _depth(op: Op, shape: tuple[int, ...]) -> int:
    """How many products one sum of the layer has at most."""
    if isinstance(op, MatrixMultiply):
        return shape[-1 if op.transpose_b else -2]
    size = int(np.prod(shape[1:]))
    return size if isinstance(op, Convolution) else size // max(shape[1], 1) * shape[0] // op.groups  # type: ignore[attr-defined]


def _per_channel(op: Op, scale: np.ndarray) -> np.ndarray | None:
    """``scale`` (of the weights' shape) as an epilogue operand: one number, or one per output channel; None when it varies otherwise."""
    if scale.size and np.all(scale == scale.reshape(-1)[0]):
        return scale.reshape(-1)[0].reshape(())
    if isinstance(op, MatrixMultiply):
        axis = scale.ndim - (2 if op.transpose_b else 1)
        other = scale.ndim - (1 if op.transpose_b else 2)
        first = scale.take([0], other)
        if scale.ndim > 2 and not np.all(first == first.reshape(-1, *first.shape[-2:])[:1]):
            return None
        return first.reshape(-1, first.shape[axis])[0] if np.all(scale == first) else None
    window = (1,) * (scale.ndim - 2)
    if isinstance(op, Convolution):
        first = scale.reshape(len(scale), -1)[:, :1]
        return first.reshape(-1, *window) if np.all(scale.reshape(len(scale), -1) == first) else None
    assert isinstance(op, Deconvolution)
    grouped = scale.reshape(op.groups, scale.shape[0] // op.groups, scale.shape[1], -1)
    first = grouped[:, :1, :, :1]
    return first.reshape(-1, *window) if np.all(grouped == first) else None


def quantized_rule(name: str, equation: str, anchors: tuple[type[Op], ...]) -> Rule:
    """The rule for one family of products."""
    return Rule(name, equation, anchors, _match, _rewrite, _check)


RULE = quantized_rule("quantized-convolution", __doc__.splitlines()[0], (Convolution, Deconvolution))
