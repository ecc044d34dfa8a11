"""Layers that depend on the order of elements: top-k, argmax, running sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Dim
from fusion.dtypes import DataType
from fusion.network import Op, TensorType
from fusion.ops.epilogue import widen


@dataclass(frozen=True)
class TopK(Op):
    """Input: x. Outputs: the ``k`` largest (smallest) values along ``axis``, best first, and their int64 indices.

    ``softmax`` makes the values those of a softmax along ``axis`` (``softmax``), or of its logarithm (``log``), of floating-point
    numbers, largest first; where several of these round to one value, the order is still that of x.
    """

    k: Dim
    axis: int
    largest: bool = True
    softmax: str = ""

    layer_type: ClassVar[str] = "TopK"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (x,) = inputs
        shape = (*x.shape[: self.axis], self.k, *x.shape[self.axis + 1 :])
        return (TensorType(x.dtype, shape), TensorType(DataType.INT64, shape))

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        (x,) = inputs
        order = sorted_order(widen(x), self.axis, self.largest)
        indices = np.ascontiguousarray(np.take(order, range(self.k), self.axis))  # type: ignore[arg-type]
        values = np.take_along_axis(x, indices, self.axis)
        return (softmax_values(self, x, values) if self.softmax else values), indices


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

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x = widen(inputs[0])
        choose = np.argmax if self.largest else np.argmin
        if self.select_last:
            found = x.shape[self.axis] - 1 - choose(np.flip(x, self.axis), self.axis, keepdims=self.keep_dims)
        else:
            found = choose(x, self.axis, keepdims=self.keep_dims)
        return (np.asarray(found, np.int64),)


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

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x = np.moveaxis(widen(inputs[0]), self.axis, 0)
        x = x[::-1] if self.reverse else x
        accumulate = {"sum": np.add, "prod": np.multiply}[self.kind].accumulate
        if self.exclusive:
            result = np.full(x.shape, 0 if self.kind == "sum" else 1, x.dtype)
            if len(x) > 1:
                accumulate(x[:-1], 0, x.dtype, result[1:])
        else:
            result = accumulate(x, 0, x.dtype)
        result = np.moveaxis(result[::-1] if self.reverse else result, 0, self.axis)
        return (np.ascontiguousarray(result.astype(inputs[0].dtype, copy=False)),)


def softmax_values(op: TopK, x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The softmax (``op.softmax``) along ``op.axis`` of x at the elements ``values``."""
    wide, chosen = widen(x), widen(values)
    with np.errstate(all="ignore"):
        top = wide.max(op.axis, keepdims=True, initial=-np.inf)
        total = np.exp(wide - top).sum(op.axis, keepdims=True, dtype=wide.dtype)
        result = chosen - top - np.log(total) if op.softmax == "log" else np.exp(chosen - top) / total
    return np.asarray(result.astype(values.dtype, copy=False))


def sorted_order(x: np.ndarray, axis: int, largest: bool) -> np.ndarray:
    """The order of ``x`` along ``axis`` (int64), best first; of equal elements the lower index comes first."""
    if not largest:
        return np.argsort(x, axis, kind="stable")
    # An ascending stable sort of the mirrored array, read backwards, keeps lower indices first.
    mirrored = np.argsort(np.flip(x, axis), axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(mirrored, axis)
