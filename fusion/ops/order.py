"""Layers that depend on the order of elements: top-k, argmax, running sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.dims import Dim
from fusion.dtypes import DataType
from fusion.network import Op, TensorType


@dataclass(frozen=True)
class TopK(Op):
    """Input: x. Outputs: the ``k`` largest (smallest) values along ``axis``, best first, and their int64 indices."""

    k: Dim
    axis: int
    largest: bool = True

    layer_type: ClassVar[str] = "TopK"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (x,) = inputs
        shape = (*x.shape[: self.axis], self.k, *x.shape[self.axis + 1 :])
        return (TensorType(x.dtype, shape), TensorType(DataType.INT64, shape))


@dataclass(frozen=True)
class ArgReduce(Op):
    """Input: x. Output: the int64 index of the largest (smallest) element along ``axis``; the first one, or the last."""

    axis: int
    keep_dims: bool
    largest: bool = True
    select_last: bool = False

    layer_type: ClassVar[str] = "TopK"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = inputs[0].shape
        kept = (1,) if self.keep_dims else ()
        return (TensorType(DataType.INT64, (*shape[: self.axis], *kept, *shape[self.axis + 1 :])),)


@dataclass(frozen=True)
class Cumulative(Op):
    """Input: x. Running ``sum`` or ``prod`` along ``axis``."""

    axis: int
    kind: str = "sum"
    exclusive: bool = False
    reverse: bool = False

    layer_type: ClassVar[str] = "Cumulative"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (inputs[0],)
