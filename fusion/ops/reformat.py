"""A transpose and a function of each element in one layer: what changes both the layout and the data type of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.expression import Expression, evaluate
from fusion.network import Op, TensorType
from fusion.ops.epilogue import IDENTITY, epilogue_type


@dataclass(frozen=True)
class Reformat(Op):
    """Input: x. Output axis ``i`` is input axis ``order[i]``; each element goes through ``epilogue`` (operand 0 is the element)."""

    order: tuple[int, ...]
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "Reformat"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = tuple(inputs[0].shape[axis] for axis in self.order)
        return (epilogue_type(self.epilogue, inputs[0].dtype, shape, ()),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (np.array(evaluate(self.epilogue, [inputs[0].transpose(self.order)]), order="C"),)
