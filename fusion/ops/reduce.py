"""Reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Expression, type_of
from fusion.network import Op, TensorType
from fusion.ops.epilogue import IDENTITY, apply_epilogue, apply_prologue, epilogue_type
from fusion.ops.pooling import least


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
        return (epilogue_type(self.epilogue, type_of(self.prologue, [x.dtype]), shape, extras),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, *extras = inputs
        dtype = type_of(self.prologue, [DataType(x.dtype.name)])
        with np.errstate(all="ignore"):
            result = reduce_array(self.kind, apply_prologue(self.prologue, x), self.axes, self.keep_dims)
        return (apply_epilogue(self.epilogue, dtype, result, extras),)


def reduce_array(kind: str, x: np.ndarray, axes: tuple[int, ...], keep_dims: bool) -> np.ndarray:
    """``x`` reduced over ``axes`` in its own type; an empty maximum (minimum) is the least (greatest) value.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "sum":
        return np.sum(x, axes, dtype=x.dtype, keepdims=keep_dims)
    if kind == "prod":
        return np.prod(x, axes, dtype=x.dtype, keepdims=keep_dims)
    if kind == "mean":
        count = math.prod(x.shape[axis] for axis in axes)
        if x.dtype.kind == "f":
            return np.sum(x, axes, dtype=x.dtype, keepdims=keep_dims) / x.dtype.type(count)
        total = np.sum(x, axes, dtype=np.int64, keepdims=keep_dims)
        return (np.sign(total) * (np.abs(total) // max(count, 1))).astype(x.dtype)
    if kind == "max":
        return np.max(x, axes, keepdims=keep_dims, initial=least(x.dtype))
    if kind == "min":
        return np.min(x, axes, keepdims=keep_dims, initial=greatest(x.dtype))
    if kind == "logsumexp":
        peak = np.max(x, axes, keepdims=True, initial=least(x.dtype))
        shift = np.where(np.isfinite(peak), peak, 0).astype(x.dtype)
        total = np.log(np.sum(np.exp(x - shift), axes, keepdims=True)) + shift
        return np.asarray(total if keep_dims else np.squeeze(total, axes)).astype(x.dtype, copy=False)
    raise ValueError(f"Reduce has no kind {kind!r}: sum, mean, max, min, prod or logsumexp")


def greatest(dtype: np.dtype) -> float | int | bool:
    """The neutral element of a minimum: infinity, or the greatest integer."""
    if dtype.kind == "f":
        return np.inf
    return True if dtype.kind == "b" else int(np.iinfo(dtype).max)
