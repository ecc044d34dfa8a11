"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, TensorType
from fusion.ops.epilogue import widen


@dataclass(frozen=True)
class Attention(Op):
    """Inputs: q, k, v, and with ``masked`` an additive (or boolean) mask that broadcasts to ``[B, H, S, T]``.

    Each of q, k, v and the output names its axes with a permutation of ``bhsd`` in ``layouts`` (four strings: q, k, v, output),
    so that transposes around the layer disappear. ``softmax(scale * q k^T + mask) v``, in float32 inside; ``causal``
    keeps ``t <= s + T - S``. k and v may have fewer heads than q, each serving ``H / heads`` neighbours. A row of which
    everything is masked is 0.

    With ``packed``, q, k and v are one input of rank 5 whose layout ``layouts[0]`` has a further axis ``t`` of length 3 (q, k, v);
    ``layouts[1:3]`` mean nothing then.
    """

    scale: float
    causal: bool = False
    masked: bool = False
    layouts: tuple[str, str, str, str] = ("bhsd", "bhsd", "bhsd", "bhsd")
    packed: bool = False

    layer_type: ClassVar[str] = "Attention"

    @property
    def arity(self) -> int:
        return (1 if self.packed else 3) + self.masked

    def unpacked(self, inputs: Sequence[TensorType]) -> tuple[tuple[str, TensorType], ...]:
        """Layout and type of q, k and v; parts of a packed input lose the axis ``t``."""
        if not self.packed:
            return tuple(zip(self.layouts[:3], inputs[:3], strict=True))
        layout, (dtype, shape) = self.layouts[0], (inputs[0].dtype, inputs[0].shape)
        kept = TensorType(dtype, tuple(dim for axis, dim in zip(layout, shape, strict=True) if axis != "t"))
        return ((layout.replace("t", ""), kept),) * 3

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (layout, q), _, (layout_v, v) = self.unpacked(inputs)
        sizes = dict(zip(layout, q.shape, strict=True))
        sizes["d"] = dict(zip(layout_v, v.shape, strict=True))["d"]
        return (TensorType(q.dtype, tuple(sizes[axis] for axis in self.layouts[3])),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        layouts = self.layouts
        parts = list(inputs[:3])
        if self.packed:
            parts = list(np.moveaxis(inputs[0], layouts[0].index("t"), 0))
            layouts = (layouts[0].replace("t", ""),) * 3 + layouts[3:]  # type: ignore[assignment]
        q, k, v = (
            widen(array).transpose([layout.index(axis) for axis in "bhsd"])
            for array, layout in zip(parts, layouts, strict=False)
        )
        k, v = (np.repeat(array, q.shape[1] // array.shape[1], 1) for array in (k, v))
        scores = np.matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(self.scale)
        if self.masked:
            mask = inputs[self.arity - 1]
            scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + widen(mask)
        if self.causal:
            s, t = scores.shape[-2:]
            scores = np.where(np.arange(t) <= np.arange(s)[:, None] + t - s, scores, -np.inf)
        with np.errstate(all="ignore"):
            peak = scores.max(-1, keepdims=True, initial=-np.inf)
            powers = np.exp(scores - np.where(np.isneginf(peak), 0, peak)).astype(q.dtype, copy=False)
            total = powers.sum(-1, keepdims=True, dtype=q.dtype)
            result = np.matmul(powers / np.where(total == 0, 1, total), v)
        result = result.transpose(["bhsd".index(axis) for axis in self.layouts[3]])
        return (np.ascontiguousarray(result).astype(inputs[0].dtype, copy=False),)
