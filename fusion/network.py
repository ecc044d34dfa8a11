"""The network: a graph of layers over named tensors, as values.

A :class:`Network` is never changed; passes make a new one. Layers stand in a topological order. Tensors are dense and
row-major in the shape that the network gives them; memory layouts are part of the network (a channels-last
convolution says so in its operation, and a reformat is a Shuffle layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from fusion.dims import Shape, is_static
from fusion.dtypes import DataType

_NOTHING: Mapping = MappingProxyType({})


@dataclass(frozen=True)
class TensorType:
    """Data type and shape of a tensor; dimensions are integers or symbolic."""

    dtype: DataType
    shape: Shape

    @property
    def is_static(self) -> bool:
        """Whether every dimension is a number."""
        return is_static(self.shape)


class ShapeError(ValueError):
    """Input types that an operation cannot take; the text says which and what it wants."""


class Op:
    """What a layer computes: the base of the frozen dataclasses in ``fusion/ops``.

    A subclass is a frozen dataclass of attributes (numbers, strings, tuples, dimensions, expressions). Operations with
    a field ``epilogue`` apply that expression to their result: operand 0 is the result, operand ``k >= 1`` is layer input
    ``arity + k - 1``, broadcast against the result as NumPy does. ``arity`` counts the inputs before those.
    """

    layer_type: ClassVar[str] = ""

    @property
    def arity(self) -> int:
        """How many layer inputs come before the epilogue's operands."""
        raise NotImplementedError

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """The types of the outputs.

        Raises:
            ShapeError: the inputs do not fit this operation.
        """
        raise NotImplementedError

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The outputs: the NumPy meaning of this operation, the reference for every tactic.

        All dimensions in the attributes must be numbers (see :func:`fusion.bind.bind_op`).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Layer:
    """One operation with the names of its inputs and outputs.

    ``origins`` are the ONNX nodes that it computes, ``fusions`` the rules that made it; both in the order applied.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    origins: tuple[str, ...] = ()
    fusions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fate:
    """What became of an ONNX node: ``kind`` is ``layer``, ``folded``, ``no-op`` or ``dead``; ``layer`` names the layer."""

    kind: str
    layer: str = ""


@dataclass(frozen=True)
class Network:
    """A graph of layers.

    Attributes:
        name: the model's name.
        inputs, outputs: names of the tensors that callers set and read, in the model's order.
        layers: topologically ordered.
        tensors: the type of every tensor that a layer reads or writes, and of inputs and outputs.
        constants: values of the tensors that are known at build (weights), C-contiguous.
        fates: per ONNX node what became of it; complete after import and kept complete by every pass.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    tensors: Mapping[str, TensorType]
    constants: Mapping[str, np.ndarray] = field(default_factory=lambda: _NOTHING)
    fates: Mapping[str, Fate] = field(default_factory=lambda: _NOTHING)

    def producers(self) -> dict[str, Layer]:
        """The layer that writes each tensor."""
        return {name: layer for layer in self.layers for name in layer.outputs}

    def readers(self) -> dict[str, list[Layer]]:
        """The layers that read each tensor (a layer that reads it twice stands twice)."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in layer.inputs:
                found.setdefault(name, []).append(layer)
        return found


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape that NumPy broadcasting gives; a symbolic dimension against a number other than 1 becomes the number.

    Raises:
        ShapeError: two numbers differ and neither is 1.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result = []
    for axis in range(rank):
        dims = {shape[axis - rank + len(shape)] for shape in shapes if axis - rank + len(shape) >= 0} - {1}
        numbers = {dim for dim in dims if isinstance(dim, int)}
        if len(numbers) > 1:
            raise ShapeError(f"shapes {', '.join(map(_show, shapes))} do not broadcast: {sorted(numbers)} differ")
        # Symbolic dimensions that are not equal as expressions are taken to be equal at run time.
        result.append(numbers.pop() if numbers else min(dims, key=lambda dim: len(str(dim)), default=1))
    return tuple(result)


def _show(shape: Shape) -> str:
    return "x".join(str(dim) for dim in shape) or "scalar"
