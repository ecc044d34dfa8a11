"""The bits of a tensor under another data type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dtypes import DataType
from fusion.network import Op, ShapeError, TensorType


@dataclass(frozen=True)
class Reinterpret(Op):
    """The same bytes as elements of ``dtype``, which is as wide (ONNX BitCast)."""

    dtype: DataType

    layer_type: ClassVar[str] = "Reinterpret"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (x,) = inputs
        if x.dtype.itemsize != self.dtype.itemsize:
            raise ShapeError(f"{x.dtype.value} has {x.dtype.itemsize} bytes, {self.dtype.value} has {self.dtype.itemsize}")
        return (TensorType(self.dtype, x.shape),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (np.ascontiguousarray(inputs[0]).view(self.dtype.numpy).reshape(inputs[0].shape),)
