"""A channels-last convolution whose result is stored channels-first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, TensorType
from fusion.ops.convolution import Convolution, Deconvolution


@dataclass(frozen=True)
class PlanarConvolution(Op):
    """Inputs: those of ``convolution`` (channels last), with its epilogue's operands. The result is stored as planes, [N, O, *spatial]: what an output of the
    network wants, or a layer that runs channels-first. All sizes in the operation are numbers."""

    convolution: Convolution | Deconvolution

    layer_type: ClassVar[str] = "PlanarConvolution"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (made,) = self.convolution.infer(inputs)
        batch, *spatial, channels = made.shape
        return (TensorType(made.dtype, (batch, channels, *spatial)),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        (made,) = self.convolution.evaluate(inputs)
        return (np.ascontiguousarray(np.moveaxis(made, -1, 1)),)
