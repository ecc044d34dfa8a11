"""Layers without inputs: tensors made of attributes and dimensions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.dims import Dim, Shape
from fusion.dtypes import DataType
from fusion.network import Op, TensorType


@dataclass(frozen=True)
class Fill(Op):
    """No input. A tensor of ``shape`` full of ``value``."""

    shape: Shape
    dtype: DataType
    value: float | int | bool

    layer_type: ClassVar[str] = "Fill"
    arity: ClassVar[int] = 0

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(self.dtype, tuple(self.shape)),)


@dataclass(frozen=True)
class Range(Op):
    """No input. ``count`` values ``start, start + delta, ...``."""

    start: Dim | float
    delta: Dim | float
    count: Dim
    dtype: DataType

    layer_type: ClassVar[str] = "Fill"
    arity: ClassVar[int] = 0

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(self.dtype, (self.count,)),)


@dataclass(frozen=True)
class ShapeValue(Op):
    """No input. An integer tensor of ``shape`` whose elements are the dimensions ``values`` (row-major)."""

    values: Shape
    shape: Shape
    dtype: DataType

    layer_type: ClassVar[str] = "Shape"
    arity: ClassVar[int] = 0

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(self.dtype, tuple(self.shape)),)
