"""Softmax along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Expression, type_of
from fusion.network import Op, TensorType
from fusion.ops.epilogue import IDENTITY, apply_epilogue, apply_prologue, epilogue_type


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
        return (epilogue_type(self.epilogue, type_of(self.prologue, [x.dtype]), x.shape, extras),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, *extras = inputs
        dtype = type_of(self.prologue, [DataType(x.dtype.name)])
        value = apply_prologue(self.prologue, x)
        with np.errstate(all="ignore"):
            shifted = value - value.max(self.axis, keepdims=True, initial=-np.inf)
            powers = np.exp(shifted)
            total = powers.sum(self.axis, keepdims=True, dtype=powers.dtype)
            result = shifted - np.log(total) if self.log else powers / total
        return (apply_epilogue(self.epilogue, dtype, result, extras),)
