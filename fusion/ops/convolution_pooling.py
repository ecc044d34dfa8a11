"""A convolution and the pooling of its result, which never goes through memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, TensorType
from fusion.ops.convolution import Convolution
from fusion.ops.pooling import Pooling


@dataclass(frozen=True)
class ConvolutionPooling(Op):
    """Inputs: those of ``convolution``, with its epilogue's operands. The result is ``pooling`` (which has neither prologue nor epilogue) of its result,
    rounded to its type as if it were stored. All sizes in the two operations are numbers."""

    convolution: Convolution
    pooling: Pooling

    layer_type: ClassVar[str] = "ConvolutionPooling"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return self.pooling.infer(self.convolution.infer(inputs))

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return self.pooling.evaluate(self.convolution.evaluate(inputs))
