"""Random numbers. A model gives the same ones at every inference, on every device.

The key of a generator is the bits of the node's ``seed`` (a float32); a node without one gets a key of its own from its name. ONNX
leaves the generator open, so the numbers are not those of another tool.
"""

from __future__ import annotations

import zlib

import numpy as np

from fusion.dims import Dim
from fusion.dtypes import DataType
from fusion.expression import Convert
from fusion.importer.builder import X0, X1, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.registry import operator
from fusion.importer.tensors import data_type_of
from fusion.importer.values import Value
from fusion.ops import Cumulative, Random, Reduce, Softmax

UNSEEDED = 0x7472746C  # the second word of keys that come from names


def key_of(node: Node) -> tuple[int, int]:
    """The generator's key."""
    seed = node.attr("seed")
    if seed is None:
        return zlib.crc32(node.name.encode()), UNSEEDED
    return int(np.float32(seed).view(np.uint32)), 0


def _dtype(node: Node, default: DataType) -> DataType:
    dtype = data_type_of(node.attr("dtype")) if node.attr("dtype") else default
    if not dtype.is_float:
        raise Unsupported(f"random numbers of type {dtype.value}; floating-point types are supported")
    return dtype


def _layer(b: Builder, node: Node, shape: tuple[Dim, ...], dtype: DataType, suffix: str = "") -> Value:
    if node.op.startswith("RandomNormal"):
        op = Random(shape, dtype, "normal", node.attr("mean", 0.0), node.attr("scale", 1.0), key_of(node))
    else:
        op = Random(shape, dtype, "uniform", node.attr("low", 0.0), node.attr("high", 1.0), key_of(node))
    return b.layer(op, suffix=suffix)


@operator("RandomNormal", "RandomUniform")
def random(b: Builder, node: Node) -> Value:
    return _layer(b, node, tuple(node.required("shape")), _dtype(node, DataType.FLOAT))


@operator("RandomNormalLike", "RandomUniformLike")
def random_like(b: Builder, node: Node) -> Value:
    x = node.input(0)
    return _layer(b, node, x.shape, _dtype(node, x.dtype))


@operator("Bernoulli")
def bernoulli(b: Builder, node: Node) -> Value:
    """1 with the probability that the input gives."""
    x = node.input(0)
    dtype = data_type_of(node.attr("dtype")) if node.attr("dtype") else x.dtype
    wide = DataType.DOUBLE if x.dtype is DataType.DOUBLE else DataType.FLOAT
    uniform = _layer(b, node, x.shape, wide, "uniform")
    return b.pointwise(Convert(dtype, call("less", X1, Convert(wide, X0))), x, uniform)


@operator("Multinomial")
def multinomial(b: Builder, node: Node) -> Value:
    """Classes drawn with the probabilities ``softmax(x)``: how many of their running sums a uniform number has reached."""
    x, count = node.input(0), node.attr("sample_size", 1)
    batch, classes = x.shape
    dtype = data_type_of(node.attr("dtype", 6))
    wide = DataType.DOUBLE if x.dtype is DataType.DOUBLE else DataType.FLOAT
    probabilities = b.layer(Softmax(1), b.convert(x, wide, "wide"), suffix="probabilities")
    sums = b.reshape(b.layer(Cumulative(1), probabilities, suffix="sums"), (batch, 1, classes), "row")
    uniform = _layer(b, node, (batch, count, 1), wide, "uniform")
    reached = b.pointwise(Convert(DataType.INT32, call("greater_or_equal", X0, X1)), uniform, sums, suffix="reached")
    chosen = b.layer(Reduce("sum", (2,), False), reached, suffix="count")
    # Running sums may end a little below 1.
    last = literal(classes - 1, DataType.INT32) if isinstance(classes, int) else None
    if last is None:
        raise Unsupported("the number of classes must be known")
    return b.pointwise(Convert(dtype, call("min", X0, last)), chosen)
