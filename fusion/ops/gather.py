"""Indexed reads and writes. Negative indices count from the end; what is out of range is clamped to the nearest element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import widen


@dataclass(frozen=True)
class Gather(Op):
    """Inputs: x, indices. Output ``x.shape[:axis] + indices.shape + x.shape[axis + 1:]``; negative indices wrap."""

    axis: int

    layer_type: ClassVar[str] = "Gather"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, indices = inputs
        if not 0 <= self.axis < len(x.shape):
            raise ShapeError(f"axis {self.axis} of a tensor with {len(x.shape)} dimensions")
        return (TensorType(x.dtype, (*x.shape[: self.axis], *indices.shape, *x.shape[self.axis + 1 :])),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, indices = inputs
        return (np.take(x, wrap(indices, x.shape[self.axis]), self.axis),)


@dataclass(frozen=True)
class GatherElements(Op):
    """Inputs: x, indices of the same rank. Output has the indices' shape (ONNX GatherElements)."""

    axis: int

    layer_type: ClassVar[str] = "Gather"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(inputs[0].dtype, inputs[1].shape),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, indices = inputs
        return (x[element_grid(indices, self.axis, x.shape[self.axis])],)


@dataclass(frozen=True)
class GatherND(Op):
    """Inputs: x, indices ``[..., r]`` (ONNX GatherND)."""

    batch_dims: int = 0

    layer_type: ClassVar[str] = "Gather"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, indices = inputs
        depth = indices.shape[-1]
        assert isinstance(depth, int)
        return (TensorType(x.dtype, (*indices.shape[:-1], *x.shape[self.batch_dims + depth :])),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, indices = inputs
        batch, depth = self.batch_dims, indices.shape[-1]
        grid: list[np.ndarray] = [
            np.arange(size).reshape(-1, *(1,) * (indices.ndim - 2 - axis)) for axis, size in enumerate(x.shape[:batch])
        ]
        grid += [wrap(indices[..., i], x.shape[batch + i]) for i in range(depth)]
        result = x[tuple(grid)]
        return (np.array(result, order="C"),)


@dataclass(frozen=True)
class ScatterElements(Op):
    """Inputs: x, indices, updates (ONNX ScatterElements). ``reduction`` is ``none``, ``add``, ``mul``, ``min`` or ``max``."""

    axis: int
    reduction: str = "none"

    layer_type: ClassVar[str] = "Scatter"
    arity: ClassVar[int] = 3

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, indices, updates = inputs
        return (scatter(x, element_grid(indices, self.axis, x.shape[self.axis]), updates, self.reduction),)


@dataclass(frozen=True)
class ScatterND(Op):
    """Inputs: x, indices ``[..., r]``, updates (ONNX ScatterND)."""

    reduction: str = "none"

    layer_type: ClassVar[str] = "Scatter"
    arity: ClassVar[int] = 3

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, indices, updates = inputs
        grid = tuple(wrap(indices[..., i], x.shape[i]) for i in range(indices.shape[-1]))
        return (scatter(x, grid, updates, self.reduction),)


def wrap(indices: np.ndarray, size: int) -> np.ndarray:
    """``indices`` into an axis of ``size`` elements as intp: negative ones from the end, the rest clamped."""
    wide = indices.astype(np.intp, copy=False)
    return np.clip(np.where(wide < 0, wide + size, wide), 0, max(size - 1, 0))


def element_grid(indices: np.ndarray, axis: int, size: int) -> tuple[np.ndarray, ...]:
    """Index arrays that address, for each element of ``indices``, the same place with ``axis`` replaced by its value."""
    grid: list[np.ndarray] = list(np.indices(indices.shape, np.intp, sparse=True))
    grid[axis] = wrap(indices, size)
    return tuple(grid)


def scatter(x: np.ndarray, grid: tuple[np.ndarray, ...], updates: np.ndarray, reduction: str) -> np.ndarray:
    """A copy of ``x`` with ``updates`` written (of equal places the last) or reduced into ``x[grid]``.

    Raises:
        ValueError: an unknown reduction.
    """
    if reduction == "none":
        result = x.copy()
        result[grid] = updates
        return result
    functions = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}
    if reduction not in functions:
        raise ValueError(f"scatter has no reduction {reduction!r}: none, add, mul, min or max")
    result = np.array(widen(x))
    if result.dtype == np.bool_ and reduction in ("add", "mul"):
        functions = {"add": np.logical_or, "mul": np.logical_and}
    functions[reduction].at(result, grid, widen(updates))
    return result.astype(x.dtype, copy=False)
