"""Linear attention: a recurrent state per head instead of a softmax over all keys (ONNX LinearAttention)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import widen


@dataclass(frozen=True)
class LinearAttention(Op):
    """Inputs: query ``[B, T, Hq * dk]``, key ``[B, T, H * dk]``, value ``[B, T, H * dv]``, then those that there are of: past state
    ``[B, H, dk, dv]`` (``has_past``), decay ``[B, T, H or H * dk]`` (``gated``), beta ``[B, T, H or 1]`` (``delta``).

    Per step, with decay g and rate b: ``S = exp(g) S``; ``v = b (v - S^T k)`` with ``delta``; ``S = S + k v^T``; output ``scale q^T S``.
    Outputs ``[B, T, Hq * dv]`` and the last state. ``scale`` 0 means ``1 / sqrt(dk)``.
    """

    query_heads: int
    heads: int
    gated: bool = False
    delta: bool = False
    has_past: bool = False
    scale: float = 0.0

    layer_type: ClassVar[str] = "LinearAttention"

    @property
    def arity(self) -> int:
        return 3 + self.has_past + self.gated + self.delta

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        query, key, value, *rest = inputs
        widths = [tensor.shape[-1] for tensor in (query, key, value)]
        if any(len(tensor.shape) != 3 for tensor in (query, key, value)) or not all(isinstance(width, int) for width in widths):
            raise ShapeError(f"query {query.shape}, key {key.shape}, value {value.shape}; [batch, steps, known width] is needed")
        if self.query_heads % self.heads or widths[0] % self.query_heads or widths[1] % self.heads or widths[2] % self.heads:
            raise ShapeError(f"widths {widths} do not split into {self.query_heads} and {self.heads} heads")
        dk, dv = widths[0] // self.query_heads, widths[2] // self.heads
        if widths[1] != dk * self.heads:
            raise ShapeError(f"key of width {widths[1]}; {self.heads} heads of {dk} are needed")
        state = rest[0] if self.has_past else TensorType(query.dtype, (query.shape[0], self.heads, dk, dv))
        return TensorType(query.dtype, (*query.shape[:2], self.query_heads * dv)), state

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        query, key, value, *rest = inputs
        batch, steps = query.shape[:2]
        q = widen(query).reshape(batch, steps, self.heads, self.query_heads // self.heads, -1)
        k = widen(key).reshape(batch, steps, self.heads, -1)
        v = widen(value).reshape(batch, steps, self.heads, -1)
        dk = k.shape[-1]
        state_type = rest[0].dtype if self.has_past else query.dtype
        state = widen(rest.pop(0)).copy() if self.has_past else np.zeros((batch, self.heads, dk, v.shape[-1]), q.dtype)
        decay = widen(rest.pop(0)).reshape(batch, steps, self.heads, -1) if self.gated else None
        rate = widen(rest.pop(0))[..., None] if self.delta else None
        scale = q.dtype.type(self.scale or 1 / math.sqrt(dk))
        out = np.empty((batch, steps, self.heads, q.shape[3], v.shape[-1]), q.dtype)
        for step in range(steps):
            if decay is not None:
                state = state * np.exp(decay[:, step])[..., None]
            added = v[:, step]
            if rate is not None:
                added = rate[:, step] * (added - np.einsum("bhkv,bhk->bhv", state, k[:, step]))
            state = state + k[:, step][..., None] * added[..., None, :]
            out[:, step] = scale * np.einsum("bhgk,bhkv->bhgv", q[:, step], state)
        return out.reshape(batch, steps, -1).astype(query.dtype, copy=False), state.astype(state_type, copy=False)
