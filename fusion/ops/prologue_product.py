"""A product of a function of its first operand: what the function makes never goes through memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Expression
from fusion.network import Op, TensorType
from fusion.ops.convolution import Convolution
from fusion.ops.epilogue import apply_epilogue, epilogue_type
from fusion.ops.matmul import MatrixMultiply


@dataclass(frozen=True)
class PrologueProduct(Op):
    """Inputs: those of ``product``, its epilogue's operands among them, then ``operands`` more.

    ``prologue`` is applied to each element of input 0, which is its operand 0; operands 1 and on are the last inputs, which broadcast to the
    shape of input 0. What it makes is rounded to its type as if it were stored. A convolution's padding does not go through it: it stays zero.
    """

    product: MatrixMultiply | Convolution
    prologue: Expression
    operands: int = 0

    layer_type: ClassVar[str] = "PrologueProduct"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        first, second = self.split(inputs)
        return self.product.infer((self.middle(first), *second))

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        (x, *others), second = self.split(inputs)
        with np.errstate(all="ignore"):
            middle = apply_epilogue(self.prologue, DataType(x.dtype.name), x, others)
        return self.product.evaluate((middle, *second))

    def split(self, values: Sequence) -> tuple[tuple, tuple]:
        """What belongs to the inputs: the prologue's operands, and the product's after what the prologue makes."""
        end = len(values) - self.operands
        return (values[0], *values[end:]), tuple(values[1:end])

    def middle(self, operands: Sequence[TensorType]) -> TensorType:
        """What the prologue makes of ``operands``; it lies as operand 0 does where that is columns of a wider tensor."""
        x, *others = operands
        return replace(epilogue_type(self.prologue, x.dtype, x.shape, others), pitch=x.pitch)
