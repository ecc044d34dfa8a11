"""Indexed reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.network import Op, TensorType


@dataclass(frozen=True)
class Gather(Op):
    """Inputs: x, indices. Output ``x.shape[:axis] + indices.shape + x.shape[axis + 1:]``; negative indices wrap."""

    axis: int

    layer_type: ClassVar[str] = "Gather"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, indices = inputs
        return (TensorType(x.dtype, (*x.shape[: self.axis], *indices.shape, *x.shape[self.axis + 1 :])),)


@dataclass(frozen=True)
class GatherElements(Op):
    """Inputs: x, indices of the same rank. Output has the indices' shape (ONNX GatherElements)."""

    axis: int

    layer_type: ClassVar[str] = "Gather"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(inputs[0].dtype, inputs[1].shape),)


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


@dataclass(frozen=True)
class ScatterElements(Op):
    """Inputs: x, indices, updates (ONNX ScatterElements). ``reduction`` is ``none``, ``add``, ``mul``, ``min`` or ``max``."""

    axis: int
    reduction: str = "none"

    layer_type: ClassVar[str] = "Scatter"
    arity: ClassVar[int] = 3

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (inputs[0],)


@dataclass(frozen=True)
class ScatterND(Op):
    """Inputs: x, indices ``[..., r]``, updates (ONNX ScatterND)."""

    reduction: str = "none"

    layer_type: ClassVar[str] = "Scatter"
    arity: ClassVar[int] = 3

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (inputs[0],)
