"""Layers without inputs: tensors made of attributes and dimensions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Dim, Shape
from fusion.dtypes import DataType
from fusion.expression import compute_type
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

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (np.full(self.shape, self.value, self.dtype.numpy),)  # type: ignore[arg-type]


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

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        wide = compute_type(self.dtype).numpy
        steps = np.arange(self.count).astype(wide)  # type: ignore[arg-type]
        values = wide.type(self.start) + wide.type(self.delta) * steps
        return (values.astype(self.dtype.numpy, copy=False),)


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

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (np.array(self.values, self.dtype.numpy).reshape(self.shape),)  # type: ignore[arg-type]
