"""Layers that only move data: transpose, reshape, concatenate, slice, pad, expand, tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.dims import Dim, Shape, product
from fusion.network import Op, ShapeError, TensorType, broadcast


@dataclass(frozen=True)
class Shuffle(Op):
    """Input: x. A transpose, then a reshape, then a transpose; each may be missing (None).

    A permutation ``p`` makes output axis ``i`` of input axis ``p[i]``. ``reshape`` holds final dimensions (no 0, no -1).
    """

    first: tuple[int, ...] | None = None
    reshape: Shape | None = None
    second: tuple[int, ...] | None = None

    layer_type: ClassVar[str] = "Shuffle"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = inputs[0].shape
        if self.first is not None:
            shape = tuple(shape[axis] for axis in self.first)
        if self.reshape is not None:
            before, after = product(shape), product(self.reshape)
            if isinstance(before, int) and isinstance(after, int) and before != after:
                raise ShapeError(f"reshape of {shape} ({before} elements) to {self.reshape} ({after} elements)")
            shape = tuple(self.reshape)
        if self.second is not None:
            shape = tuple(shape[axis] for axis in self.second)
        return (TensorType(inputs[0].dtype, shape),)


@dataclass(frozen=True)
class Concatenation(Op):
    """Inputs: one or more tensors that differ only along ``axis`` (>= 0)."""

    axis: int

    layer_type: ClassVar[str] = "Concatenation"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = list(inputs[0].shape)
        for axis in range(len(shape)):
            if axis != self.axis:
                shape[axis] = broadcast([(tensor.shape[axis],) for tensor in inputs])[0]
        total: Dim = 0
        for tensor in inputs:
            total = tensor.shape[self.axis] + total
        shape[self.axis] = total
        return (TensorType(inputs[0].dtype, tuple(shape)),)


@dataclass(frozen=True)
class Slice(Op):
    """Input: x. Along each axis ``sizes[i]`` elements ``starts[i], starts[i] + steps[i], ...`` (a step may be negative)."""

    starts: Shape
    sizes: Shape
    steps: tuple[int, ...]

    layer_type: ClassVar[str] = "Slice"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(inputs[0].dtype, tuple(self.sizes)),)


@dataclass(frozen=True)
class Padding(Op):
    """Input: x. ``pre`` and ``post`` elements are added along each axis (negative ones are cut off).

    ``mode`` is ``constant`` (with ``value``), ``reflect``, ``edge`` or ``wrap``.
    """

    pre: Shape
    post: Shape
    mode: str = "constant"
    value: float = 0.0

    layer_type: ClassVar[str] = "Padding"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = tuple(dim + pre + post for dim, pre, post in zip(inputs[0].shape, self.pre, self.post, strict=True))
        return (TensorType(inputs[0].dtype, shape),)


@dataclass(frozen=True)
class Expand(Op):
    """Input: x, broadcast to ``shape`` (final dimensions, as NumPy's broadcast_to)."""

    shape: Shape

    layer_type: ClassVar[str] = "Expand"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(inputs[0].dtype, tuple(self.shape)),)


@dataclass(frozen=True)
class Tile(Op):
    """Input: x, repeated ``repeats[i]`` times along axis ``i``."""

    repeats: Shape

    layer_type: ClassVar[str] = "Tile"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = tuple(dim * times for dim, times in zip(inputs[0].shape, self.repeats, strict=True))
        return (TensorType(inputs[0].dtype, shape),)
