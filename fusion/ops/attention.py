"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Expression
from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import IDENTITY, apply_epilogue, epilogue_type, widen


@dataclass(frozen=True)
class Stored:
    """Where q, k or v lies: heads ``first`` and following of input ``number``, whose axes ``layout`` names; ``type`` is what these heads alone are."""

    number: int
    first: int
    layout: str
    type: TensorType


@dataclass(frozen=True)
class Attention(Op):
    """Inputs: q, k, v, and with ``masked`` an additive (or boolean) mask that broadcasts to ``[B, H, S, T]``.

    Each of q, k, v and the output names its axes with a permutation of ``bhsd`` in ``layouts`` (four strings: q, k, v, output),
    so that transposes around the layer disappear. ``softmax(scale * q k^T + mask) v``, in float32 inside; ``causal``
    keeps ``t <= s + T - S``, and a ``window`` w (0: none) ``t > s + T - S - w``. k and v may have fewer heads than q, each serving ``H / heads`` neighbours. A row of which
    everything is masked is 0. With a ``softcap`` c, ``c * tanh(score / c)`` takes the place of a scaled score before the mask.
    ``epilogue``: what becomes of each result (operand 0, computed in float32): a cast, a quantisation.

    With ``parts``, q, k and v are heads of fewer inputs: for each of the three the number of its input, the first head there and how many
    heads it has. One projection makes q, k and v (or k and v) so, and attention reads them where they are.
    """

    scale: float
    causal: bool = False
    masked: bool = False
    layouts: tuple[str, str, str, str] = ("bhsd", "bhsd", "bhsd", "bhsd")
    parts: tuple[tuple[int, int, int], ...] = ()
    softcap: float = 0.0
    window: int = 0
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "Attention"

    @property
    def sources(self) -> int:
        """How many inputs hold q, k and v."""
        return max(number for number, _, _ in self.parts) + 1 if self.parts else 3

    @property
    def arity(self) -> int:
        return self.sources + self.masked

    def stored(self, inputs: Sequence[TensorType]) -> tuple[Stored, Stored, Stored]:
        """Where q, k and v lie."""
        found = []
        for side, layout in enumerate(self.layouts[:3]):
            number, first, heads = self.parts[side] if self.parts else (side, 0, 0)
            kind = inputs[number]
            if self.parts:
                whole = dict(zip(layout, kind.shape, strict=True))["h"]
                if isinstance(whole, int) and first + heads > whole:
                    raise ShapeError(f"heads {first} to {first + heads} of input {number}, which has {whole}")
                kind = TensorType(kind.dtype, tuple(heads if axis == "h" else dim for axis, dim in zip(layout, kind.shape, strict=True)))
            found.append(Stored(number, first, layout, kind))
        return found[0], found[1], found[2]

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        q, _, v = self.stored(inputs)
        sizes = dict(zip(q.layout, q.type.shape, strict=True))
        sizes["d"] = dict(zip(v.layout, v.type.shape, strict=True))["d"]
        return (epilogue_type(self.epilogue, q.type.dtype, tuple(sizes[axis] for axis in self.layouts[3]), ()),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        q, k, v = (
            widen(inputs[number].transpose([layout.index(axis) for axis in "bhsd"])[:, first : first + heads or None])
            for (number, first, heads), layout in zip(self.parts or ((0, 0, 0), (1, 0, 0), (2, 0, 0)), self.layouts, strict=False)
        )
        k, v = (np.repeat(array, q.shape[1] // array.shape[1], 1) for array in (k, v))
        scores = np.matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(self.scale)
        if self.softcap:
            scores = np.tanh(scores / q.dtype.type(self.softcap)) * q.dtype.type(self.softcap)
        if self.masked:
            mask = inputs[self.arity - 1]
            scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + widen(mask)
        s, t = scores.shape[-2:]
        ahead = np.arange(t) - np.arange(s)[:, None] - (t - s)
        if self.causal:
            scores = np.where(ahead <= 0, scores, -np.inf)
        if self.window:
            scores = np.where(ahead > -self.window, scores, -np.inf)
        with np.errstate(all="ignore"):
            peak = scores.max(-1, keepdims=True, initial=-np.inf)
            powers = np.exp(scores - np.where(np.isneginf(peak), 0, peak)).astype(q.dtype, copy=False)
            total = powers.sum(-1, keepdims=True, dtype=q.dtype)
            result = np.matmul(powers / np.where(total == 0, 1, total), v)
        result = result.transpose(["bhsd".index(axis) for axis in self.layouts[3]])
        return (apply_epilogue(self.epilogue, DataType(inputs[0].dtype.name), np.ascontiguousarray(result), ()),)
