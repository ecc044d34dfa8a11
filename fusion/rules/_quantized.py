"""What the quantisation rules share: recognising DequantizeLinear and QuantizeLinear, which are pointwise layers here.

    dequantised x = (q - zero) * scale          quantised q = saturate(round(x / scale) + zero)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Literal, Operand, type_of
from fusion.graph import Graph
from fusion.network import Layer, Op
from fusion.ops import (
    Expand,
    Gather,
    Pointwise,
    Pooling,
    Resize,
    Shuffle,
    Slice,
    Tile,
)
from fusion.rewrite import Match
from fusion.rules._expressions import value_of

QUANTIZED = (DataType.INT8, DataType.UINT8, DataType.FP8, DataType.FP8_E5M2)  # what products multiply
NARROW_INTEGERS = (DataType.INT4, DataType.UINT4, DataType.INT2, DataType.UINT2)  # of weights only, which become int8


@dataclass(frozen=True)
class Scaling:
    """How numbers of type ``quantized`` stand for real ones: ``(q - zero) * scale``, both float64 and of one element when
    they hold for the whole tensor, else broadcast against it."""

    tensor: str  # the quantised tensor of a dequantisation, the real one of a quantisation
    quantized: DataType
    scale: np.ndarray
    zero: np.ndarray
    real: DataType

    @property
    def uniform(self) -> bool:
        """Whether one scale and one zero point serve the whole tensor."""
        return self.scale.size == 1 and self.zero.size == 1

    def equals(self, other: Scaling) -> bool:
        """Whether both map numbers in the same way."""
        return (
            self.quantized is other.quantized
            and self.uniform
            and other.uniform
            and float(self.scale.reshape(())) == float(other.scale.reshape(()))
            and float(self.zero.reshape(())) == float(other.zero.reshape(()))
        )


def dequantized(graph: Graph, layer: Layer | None) -> Scaling | None:
    """The scaling of a layer that dequantises a tensor of at most 8 bits by known scales, else None."""
    if layer is None or not isinstance(layer.op, Pointwise):
        return None
    expression, types = layer.op.expression, [graph.type(name).dtype for name in layer.inputs]
    real = type_of(expression, types)
    if isinstance(expression, Convert) and real.is_float:
        expression = expression.argument
    scale: np.ndarray | None = np.ones(())
    if isinstance(expression, Apply) and expression.function == "mul":
        expression, factor = expression.arguments
        scale = _known(graph, layer, factor)
    elif expression is layer.op.expression:
        return None
    zero: np.ndarray | None = np.zeros(())
    if isinstance(expression, Convert) and isinstance(expression.argument, Apply):
        expression = expression.argument  # integers subtract their zero point in int32
    if isinstance(expression, Apply) and expression.function == "sub":
        expression, offset = expression.arguments
        zero = _known(graph, layer, offset)
    source = _converted(expression)
    if source is None or scale is None or zero is None or types[source] not in (*QUANTIZED, *NARROW_INTEGERS) or not real.is_float:
        return None
    if graph.type(layer.inputs[source]).shape != graph.type(layer.outputs[0]).shape:
        return None
    return Scaling(layer.inputs[source], types[source], scale, zero, real)


def quantized(graph: Graph, layer: Layer | None) -> Scaling | None:
    """The scaling of a layer that quantises a tensor by known scales, else None."""
    if layer is None or not isinstance(layer.op, Pointwise):
        return None
    types = [graph.type(name).dtype for name in layer.inputs]
    expression = layer.op.expression
    if not isinstance(expression, Convert) or expression.dtype not in QUANTIZED:
        return None
    target, expression = expression.dtype, expression.argument
    if not isinstance(expression, Apply) or expression.function != "clip":
        return None
    expression = expression.arguments[0]
    zero: np.ndarray | None = np.zeros(())
    if isinstance(expression, Apply) and expression.function == "add":
        expression, offset = expression.arguments
        zero = _known(graph, layer, offset)
    if target.is_integer:
        if not isinstance(expression, Apply) or expression.function != "round":
            return None
        (expression,) = expression.arguments
    scale: np.ndarray | None = np.ones(())
    if isinstance(expression, Apply) and expression.function == "div":
        expression, factor = expression.arguments
        scale = _known(graph, layer, factor)
    source = _converted(expression)
    if source is None or scale is None or zero is None or not types[source].is_float:
        return None
    if graph.type(layer.inputs[source]).shape != graph.type(layer.outputs[0]).shape:
        return None
    return Scaling(layer.inputs[source], target, scale, zero, types[source])


def _converted(expression: Expression) -> int | None:
    """The operand that ``expression`` only converts."""
    while isinstance(expression, Convert):
        expression = expression.argument
    return expression.index if isinstance(expression, Operand) else None


def _known(graph: Graph, layer: Layer, expression: Expression) -> np.ndarray | None:
    """The value of a scale or zero point, in float64."""
    if isinstance(expression, Convert) and isinstance(expression.argument, Literal):
        return np.asarray(expression.argument.value, np.float64)
    constants = {i: value for i, name in enumerate(layer.inputs) if (value := graph.constant(name)) is not None}
    plain = expression.argument if isinstance(expression, Convert) else expression
    return value_of(plain, constants)


# --- constants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Quantised weights that are known at build: integers (or 8-bit floats) and, broadcast to their shape, scales and zeros.

    ``layers`` are those between the stored constant and the product: a dequantisation, and Shuffles that are already in the
    values here."""

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    layers: tuple[Layer, ...]


def constant_weights(graph: Graph, tensor: str) -> Weights | None:
    """The quantised weights behind ``tensor``, through transposes and reshapes, or None."""
    shuffles: list[Layer] = []
    layer = graph.producer(tensor)
    while layer is not None and isinstance(layer.op, Shuffle):
        shuffles.append(layer)
        layer = graph.producer(layer.inputs[0])
    scaling = dequantized(graph, layer)
    if layer is None or scaling is None:
        return None
    values = graph.constant(scaling.tensor)
    if values is None:
        return None
    if scaling.quantized in NARROW_INTEGERS:
        values = values.astype(np.int8)
    scale, zero = (np.broadcast_to(one, values.shape) for one in (scaling.scale, scaling.zero))
    for shuffle in reversed(shuffles):
        (values,), (scale,), (zero,) = (shuffle.op.evaluate([array]) for array in (values, scale, zero))
    return Weights(values, scale, zero, (layer, *reversed(shuffles)))


def is_read_elsewhere(graph: Graph, layer: Layer, match: Match) -> bool:
    """Whether something outside the match, whose last layer is a product, still needs ``layer``."""
    needed: set[str] = set()
    for one in reversed(match.layers[:-1]):
        (made,) = one.outputs
        readers = {reader.name for reader in graph.readers(made)} - {match.layers[-1].name}
        outside = readers - {other.name for other in match.layers}
        if made in graph.outputs or outside or readers & needed:
            needed.add(one.name)
        elif any(name == made for name in match.layers[-1].inputs[2:]):
            needed.add(one.name)  # the product's own epilogue reads it too
    return layer.name in needed


# --- layers through which scales pass ----------------------------------------------------------------------------------


def moves_data(op: Op) -> bool:
    """Whether the layer only moves elements of its first input: quantising before or after it is the same."""
    return isinstance(op, Shuffle | Slice | Expand | Tile | Gather) or (isinstance(op, Resize) and op.mode == "nearest")


def keeps_order(op: Op) -> bool:
    """Whether the layer picks elements by their order, which quantisation keeps: max pooling."""
    return isinstance(op, Pooling) and op.kind == "max" and op.prologue == op.epilogue == Operand(0)
