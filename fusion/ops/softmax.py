"""Softmax along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.expression import Expression
from fusion.network import Op, TensorType
from fusion.ops.epilogue import IDENTITY, epilogue_type


@dataclass(frozen=True)
class Softmax(Op):
    """Input: x. Softmax (its logarithm when ``log``) along ``axis`` (>= 0), computed in float32 or wider.

    ``prologue`` is applied to each element before (operand 0 is x).
    """

    axis: int
    log: bool = False
    prologue: Expression = IDENTITY
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "SoftMax"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, *extras = inputs
        return (epilogue_type(self.epilogue, x.dtype, x.shape, extras),)
