"""Elementwise layers: one expression over broadcast inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.expression import Expression, type_of
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
