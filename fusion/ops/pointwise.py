"""Elementwise layers: one expression over broadcast inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.expression import Expression, evaluate, type_of
from fusion.network import Op, TensorType, broadcast


@dataclass(frozen=True)
class Pointwise(Op):
    """``expression`` over all inputs (operand ``i`` is input ``i``), broadcast as NumPy does; one output."""

    expression: Expression

    layer_type: ClassVar[str] = "PointWise"

    @property
    def arity(self) -> int:
        raise TypeError("a pointwise layer has no epilogue: it is one expression")

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        dtype = type_of(self.expression, [tensor.dtype for tensor in inputs])
        return (TensorType(dtype, broadcast([tensor.shape for tensor in inputs])),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        value = evaluate(self.expression, inputs)
        shape = np.broadcast_shapes(*(array.shape for array in inputs))
        return (value if value.shape == shape else np.broadcast_to(value, shape).copy(),)
