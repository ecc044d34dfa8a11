"""Normalisations by statistics of the data itself (batch normalisation at inference is a Pointwise scale)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.expression import Expression
from fusion.network import Op, TensorType
from fusion.ops.epilogue import IDENTITY, epilogue_type


@dataclass(frozen=True)
class Normalization(Op):
    """Input: x. ``(x - mean) / sqrt(variance + epsilon)`` over ``axes`` (ascending, >= 0); without ``center`` (RMS norm)
    ``x / sqrt(mean(x * x) + epsilon)``. Scale and bias stand in the epilogue. Statistics in float32 or wider.
    """

    axes: tuple[int, ...]
    epsilon: float
    center: bool = True
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "Normalization"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, *extras = inputs
        return (epilogue_type(self.epilogue, x.dtype, x.shape, extras),)


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
