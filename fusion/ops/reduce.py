"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.expression import Expression
from fusion.network import Op, TensorType
from fusion.ops.epilogue import IDENTITY, epilogue_type


@dataclass(frozen=True)
class Reduce(Op):
    """Input: x. ``kind`` is ``sum``, ``mean``, ``max``, ``min``, ``prod`` or ``logsumexp`` over ``axes`` (ascending, >= 0).

    ``prologue`` is applied to each element before (operand 0 is x), ``epilogue`` to the result: L1 norm is the sum of
    ``abs(x)``, L2 norm the ``sqrt`` of the sum of ``square(x)``. Floating-point types accumulate in float32 or wider.
    """

    kind: str
    axes: tuple[int, ...]
    keep_dims: bool
    prologue: Expression = IDENTITY
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "Reduce"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, *extras = inputs
        shape = tuple(
            1 if axis in self.axes else dim
            for axis, dim in enumerate(x.shape)
            if self.keep_dims or axis not in self.axes
        )
        return (epilogue_type(self.epilogue, x.dtype, shape, extras),)
