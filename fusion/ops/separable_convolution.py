"""A depthwise convolution and the 1x1 convolution of its result, which never goes through memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, TensorType
from fusion.ops.convolution import Convolution


@dataclass(frozen=True)
class SeparableConvolution(Op):
    """Inputs: x, the weights of ``depthwise`` and of ``pointwise``, the ``operands`` operands of the first epilogue, those of the second.

    ``depthwise`` has one filter a channel, ``pointwise`` is 1x1 with stride 1, no padding and one group. Between them stands what the first epilogue
    makes, rounded to its type (8 bits in a quantised network) as if it were stored.
    """

    depthwise: Convolution
    pointwise: Convolution
    operands: int = 0

    layer_type: ClassVar[str] = "SeparableConvolution"
    arity: ClassVar[int] = 3

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        first, second = self.split(inputs)
        (middle,) = self.depthwise.infer(first)
        return self.pointwise.infer((middle, *second))

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        first, second = self.split(inputs)
        (middle,) = self.depthwise.evaluate(first)
        return self.pointwise.evaluate((middle, *second))

    def split(self, values: Sequence) -> tuple[tuple, tuple]:
        """What belongs to the inputs, per convolution: those of ``depthwise``, and those of ``pointwise`` after what lies between."""
        x, filters, weights, *extras = values
        return (x, filters, *extras[: self.operands]), (weights, *extras[self.operands :])
