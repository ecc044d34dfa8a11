"""MatMul(x, DQ(w)) -> MatMul(x, w) with w packed in memory, for constant w of at most 8 bits with a scale per block of the depth.

``quantized-matmul`` comes first: it takes products whose activations are quantised too. Here x is real, and what pays is that
the weights cross memory at their packed size; whether kernels really read them so, or weights dequantised at build, is a tactic's choice.
"""

from __future__ import annotations

import math

import numpy as np

from fusion.dtypes import DataType
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, PackedMatrixMultiply
from fusion.ops.packed_matmul import packed
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._quantized import NARROW_INTEGERS, Weights, constant_weights, dequantized, is_read_elsewhere

SMALLEST = 1 << 14  # weights; fewer are dequantised at build without anyone noticing
STEP = 16  # of the depth, which blocks of kernels are multiples of


def _match(graph: Graph, layer: Layer) -> Match | None:
    weights = constant_weights(graph, layer.inputs[1])
    if weights is None or weights.values.dtype.kind not in "iu" or dequantized(graph, graph.producer(layer.inputs[0])) is not None:
        return None
    return Match((*weights.layers, layer), (), {"weights": weights})


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, weights = match.layers[-1], match.found["weights"]
    a, b = layer.inputs[:2]
    dtype = graph.type(a).dtype
    if dtype not in (DataType.FLOAT, DataType.HALF, DataType.BF16):
        return Refusal("data type", f"{a} is {dtype.value}; packed weights multiply float32, float16 or bfloat16")
    if layer.op.transpose_a or len(graph.type(a).shape) < 2:
        return Refusal("layout", f"{a} is read by columns")
    if math.prod(weights.values.shape[:-2]) != 1 or len(weights.values.shape) > len(graph.type(layer.outputs[0]).shape):
        return Refusal("batch", f"{b} of shape {weights.values.shape} is several matrices")
    if weights.values.size < SMALLEST:
        return Refusal("size", f"{b} has {weights.values.size} weights; fewer than {SMALLEST} are dequantised at build")
    block = _block(*_rows(layer, weights)[1:])
    depth = weights.values.shape[-1 if layer.op.transpose_b else -2]
    if block % STEP and block < depth:
        return Refusal("block", f"the scales of {b} change after {block} of the depth; multiples of {STEP} are allowed")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, weights = match.layers[-1], match.found["weights"]
    values, scale, zero = _rows(layer, weights)
    block, dtype = _block(scale, zero), graph.type(layer.inputs[0]).dtype.numpy
    scaling = dequantized(graph, weights.layers[0])
    assert scaling is not None
    bits = 4 if scaling.quantized in NARROW_INTEGERS else 8
    low = -(1 << bits - 1) if scaling.quantized.value.startswith("int") else 0
    made = {
        "packed": packed((values.astype(np.int32) - low).astype(np.uint8), bits),
        "scales": np.ascontiguousarray(scale[:, ::block]).astype(dtype),
        "zeros": np.ascontiguousarray(zero[:, ::block] - low).astype(dtype),
    }
    constants = {graph.fresh(f"{layer.inputs[1]}.{name}"): value for name, value in made.items()}
    op = PackedMatrixMultiply(bits, values.shape[1], block, layer.op.epilogue)
    fused = Layer("", op, (layer.inputs[0], *constants, *layer.inputs[2:]), layer.outputs)
    return Replacement((*(one for one in match.layers[:-1] if is_read_elsewhere(graph, one, match)), fused), constants)


def _rows(layer: Layer, weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, scales and zero points as ``[N, K]``."""
    found = (one.reshape(one.shape[-2:]) for one in (weights.values, weights.scale, weights.zero))
    values, scale, zero = (one if layer.op.transpose_b else one.T for one in found)
    return values, scale, zero


def _block(scale: np.ndarray, zero: np.ndarray) -> int:
    """The longest run of the depth in which no row changes its scale or zero point."""
    depth = scale.shape[1]
    same = (scale[:, 1:] == scale[:, :-1]) & (zero[:, 1:] == zero[:, :-1])
    changes = np.flatnonzero(~same.all(0)) + 1
    return int(np.gcd.reduce(changes)) if changes.size else depth


RULE = Rule("packed-matmul", __doc__.splitlines()[0], (MatrixMultiply,), _match, _rewrite, _check)
