"""Normalisations by statistics of the data itself (batch normalisation at inference is a Pointwise scale)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Literal
from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import IDENTITY, apply_epilogue, epilogue_type, widen
from fusion.ops.windows import channels_back, channels_first


@dataclass(frozen=True)
class Normalization(Op):
    """Input: x. ``(x - mean) / sqrt(variance + epsilon)`` over ``axes`` (ascending, >= 0); without ``center`` (RMS norm)
    ``x / sqrt(mean(x * x) + epsilon)``. Scale and bias stand in the epilogue. Statistics in float32 or wider.
    With a ``floor``, the root is at least that: what is divided by its L2 norm may be all zeros.

    With ``heads``, (first, count), x is ``[..., H, D]`` and what is normalised are that many of its heads: queries or keys of a projection that
    holds all of them and values.
    """

    axes: tuple[int, ...]
    epsilon: float
    center: bool = True
    epilogue: Expression = IDENTITY
    floor: float = 0.0
    heads: tuple[int, int] | None = None

    layer_type: ClassVar[str] = "Normalization"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, *extras = inputs
        shape = x.shape
        if self.heads is not None:
            if len(shape) < 2 or (isinstance(shape[-2], int) and sum(self.heads) > shape[-2]):
                raise ShapeError(f"{self.heads[1]} heads from {self.heads[0]} on of x of shape {shape}")
            shape = (*shape[:-2], self.heads[1], shape[-1])
        return (epilogue_type(self.epilogue, x.dtype, shape, extras),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, *extras = inputs
        if self.heads is not None:
            x = x[..., self.heads[0] : sum(self.heads), :]
        result = normalize(widen(x), self.axes, self.epsilon, self.center, self.floor)
        return (apply_epilogue(self.epilogue, DataType(x.dtype.name), result, extras),)


@dataclass(frozen=True)
class SumNormalization(Op):
    """Inputs: x, y of one type. As Normalization of ``x + y`` over the last axes from ``axis`` on; with ``keep_sum`` the sum, in the type
    of x, is a second output."""

    axis: int
    epsilon: float
    center: bool = True
    keep_sum: bool = False
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "Normalization"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, y, *extras = inputs
        if x != y:
            raise ShapeError(f"a sum of {x} and {y}; they must have one type")
        result = epilogue_type(self.epilogue, x.dtype, x.shape, extras)
        return (result, x) if self.keep_sum else (result,)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, y, *extras = inputs
        total = widen(x) + widen(y)
        result = normalize(total, tuple(range(self.axis, x.ndim)), self.epsilon, self.center)
        normalized = apply_epilogue(self.epilogue, DataType(x.dtype.name), result, extras)
        return (normalized, total.astype(x.dtype, copy=False)) if self.keep_sum else (normalized,)


@dataclass(frozen=True)
class GroupNormalization(Op):
    """Input: x, as for Convolution. Normalised over all positions of each of ``groups`` channel groups, per image."""

    groups: int
    epsilon: float
    channels_last: bool = False
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "Normalization"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, *extras = inputs
        return (epilogue_type(self.epilogue, x.dtype, x.shape, extras),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, *extras = inputs
        first = widen(channels_first(x, self.channels_last))
        grouped = first.reshape(len(first), self.groups, -1)
        result = normalize(grouped, (2,), self.epsilon, center=True).reshape(first.shape)
        result = channels_back(result, self.channels_last)
        return (apply_epilogue(self.epilogue, DataType(x.dtype.name), result, extras),)


@dataclass(frozen=True)
class LocalResponseNormalization(Op):
    """Input: x, as for Convolution. ``x / (bias + alpha / size * sum of squares over size channels) ** beta``."""

    size: int
    alpha: float
    beta: float
    bias: float
    channels_last: bool = False

    layer_type: ClassVar[str] = "LRN"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x = widen(channels_first(inputs[0], self.channels_last))
        squares = np.square(x)
        total = np.zeros_like(squares)
        channels = x.shape[1]
        before = (self.size - 1) // 2
        for offset in range(max(-before, 1 - channels), min(self.size - before, channels)):
            low, high = max(0, -offset), channels - max(0, offset)
            total[:, low:high] += squares[:, low + offset : high + offset]
        with np.errstate(all="ignore"):
            base = x.dtype.type(self.bias) + x.dtype.type(self.alpha / self.size) * total
            result = x / np.power(base, x.dtype.type(self.beta))
        return (channels_back(result, self.channels_last).astype(inputs[0].dtype, copy=False),)


def unit_length(dtype: DataType, count: int) -> Expression:
    """What makes of a row of ``count`` elements of ``dtype``, over their root mean square, one of length 1."""
    wide = dtype if dtype.itemsize >= 4 else DataType.FLOAT  # or the factor would be rounded to 8 or 11 bits
    made: Expression = Apply("mul", (IDENTITY if wide is dtype else Convert(wide, IDENTITY), Literal(count**-0.5, wide)))
    return made if wide is dtype else Convert(dtype, made)


def normalize(x: np.ndarray, axes: tuple[int, ...], epsilon: float, center: bool, floor: float = 0.0) -> np.ndarray:
    """``x`` minus its mean (when ``center``), over its root mean square (at least ``floor``), along ``axes``; in the type of ``x``."""
    count = x.dtype.type(math.prod(x.shape[axis] for axis in axes))
    with np.errstate(all="ignore"):
        if center:
            x = x - x.sum(axes, keepdims=True, dtype=x.dtype) / count
        variance = np.square(x).sum(axes, keepdims=True, dtype=x.dtype) / count
        root = np.sqrt(variance + x.dtype.type(epsilon))
        return np.asarray(x / (np.maximum(root, x.dtype.type(floor)) if floor else root))
