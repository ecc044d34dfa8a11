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
    """

    scale: float
    causal: bool = False
    masked: bool = False
    layouts: tuple[str, str, str, str] = ("bhsd", "bhsd", "bhsd", "bhsd")

    layer_type: ClassVar[str] = "Attention"

    @property
    def arity(self) -> int:
        return 4 if self.masked else 3

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        q, _, v = inputs[:3]
        sizes = dict(zip(self.layouts[0], q.shape, strict=True))
        sizes["d"] = dict(zip(self.layouts[2], v.shape, strict=True))["d"]
        return (TensorType(q.dtype, tuple(sizes[axis] for axis in self.layouts[3])),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        q, k, v = (
            widen(array).transpose([layout.index(axis) for axis in "bhsd"])
            for array, layout in zip(inputs[:3], self.layouts, strict=False)
        )
        k, v = (np.repeat(array, q.shape[1] // array.shape[1], 1) for array in (k, v))
        scores = np.matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(self.scale)
        if self.masked:
            mask = inputs[3]
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
