"""Layers that only move data: transpose, reshape, concatenate, slice, pad, expand, tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

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

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x = inputs[0]
        if self.first is not None:
            x = x.transpose(self.first)
        if self.reshape is not None:
            x = x.reshape(self.reshape)  # type: ignore[arg-type]
        if self.second is not None:
            x = x.transpose(self.second)
        return (np.array(x, order="C"),)


@dataclass(frozen=True)
class Concatenation(Op):
    """Inputs: one or more tensors that differ only along ``axis`` (>= 0)."""

    axis: int

    layer_type: ClassVar[str] = "Concatenation"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = list(inputs[0].shape)
        if any(len(tensor.shape) != len(shape) for tensor in inputs) or not 0 <= self.axis < len(shape):
            raise ShapeError(f"tensors of {', '.join(str(len(tensor.shape)) for tensor in inputs)} dimensions cannot be joined along axis {self.axis}")
        for axis in range(len(shape)):
            if axis != self.axis:
                dims = [tensor.shape[axis] for tensor in inputs]
                if len(numbers := {dim for dim in dims if isinstance(dim, int)}) > 1:
                    raise ShapeError(f"tensors with {', '.join(map(str, sorted(numbers)))} elements along axis {axis} cannot be joined along axis {self.axis}")
                shape[axis] = broadcast([(dim,) for dim in dims])[0]
        total: Dim = 0
        for tensor in inputs:
            total = tensor.shape[self.axis] + total
        shape[self.axis] = total
        return (TensorType(inputs[0].dtype, tuple(shape)),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (np.concatenate(inputs, self.axis),)


@dataclass(frozen=True)
class Slice(Op):
    """Input: x. Along each axis ``sizes[i]`` elements ``starts[i], starts[i] + steps[i], ...`` (a step may be negative)."""

    starts: Shape
    sizes: Shape
    steps: tuple[int, ...]

    layer_type: ClassVar[str] = "Slice"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        if len(inputs[0].shape) != len(self.sizes):
            raise ShapeError(f"a slice of {len(self.sizes)} dimensions of a tensor with {len(inputs[0].shape)}")
        return (TensorType(inputs[0].dtype, tuple(self.sizes)),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (inputs[0][self.slices()].copy(),)

    def slices(self) -> tuple[slice, ...]:
        """The same as Python slices."""
        result = []
        for start, size, step in zip(self.starts, self.sizes, self.steps, strict=True):
            assert isinstance(start, int) and isinstance(size, int)
            stop = start + size * step
            # A slice that runs backwards through element 0 has no end that could be written as a number.
            result.append(slice(0, 0) if size == 0 else slice(start, None if stop < 0 else stop, step))
        return tuple(result)


@dataclass(frozen=True)
class Padding(Op):
    """Input: x. ``pre`` and ``post`` elements are added along each axis (negative ones are cut off).

    ``mode`` is ``constant`` (with ``value``), ``reflect``, ``edge`` or ``wrap``, of what cutting left.
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

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        (x,) = inputs
        pairs = [(int(pre), int(post)) for pre, post in zip(self.pre, self.post, strict=True)]  # type: ignore[arg-type]
        x = x[tuple(slice(max(-a, 0), dim - max(-b, 0)) for (a, b), dim in zip(pairs, x.shape, strict=True))]
        width = [(max(a, 0), max(b, 0)) for a, b in pairs]
        if self.mode == "constant":
            result = np.full([dim + a + b for dim, (a, b) in zip(x.shape, width, strict=True)], self.value, x.dtype)
            result[tuple(slice(a, a + dim) for dim, (a, _) in zip(x.shape, width, strict=True))] = x
            return (result,)
        return (np.pad(x, width, self.mode).copy(),)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Expand(Op):
    """Input: x, broadcast to ``shape`` (final dimensions, as NumPy's broadcast_to)."""

    shape: Shape

    layer_type: ClassVar[str] = "Expand"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(inputs[0].dtype, tuple(self.shape)),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (np.broadcast_to(inputs[0], self.shape).copy(),)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Tile(Op):
    """Input: x, repeated ``repeats[i]`` times along axis ``i``."""

    repeats: Shape

    layer_type: ClassVar[str] = "Tile"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = tuple(dim * times for dim, times in zip(inputs[0].shape, self.repeats, strict=True))
        return (TensorType(inputs[0].dtype, shape),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (np.tile(inputs[0], self.repeats),)  # type: ignore[arg-type]
