"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.network import Op, TensorType


@dataclass(frozen=True)
class Attention(Op):
    """Inputs: q, k, v, and with ``masked`` an additive (or boolean) mask that broadcasts to ``[B, H, S, T]``.

    Each of q, k, v and the output names its axes with a permutation of ``bhsd`` in ``layouts`` (four strings: q, k, v, output),
    so that transposes around the layer disappear. ``softmax(scale * q k^T + mask) v``, in float32 inside; ``causal``
    keeps ``t <= s + T - S``.
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
