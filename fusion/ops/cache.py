"""Keys and values of the past, with new ones behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Dim
from fusion.network import Op, ShapeError, TensorType


@dataclass(frozen=True)
class CacheAppend(Op):
    """Inputs: one or more caches ``[B, H, P, D]``, then tensors ``[B, S, ..., D]`` of which some heads are new rows. Outputs: each cache with its new
    rows behind it, ``[B, H, P + S, D]``.

    ``sources``: for each cache, the number of the input with its new rows, and the first of their ``H`` heads there.

    With ``total``, the outputs are ``[B, H, total, D]``, and a last input ``starts`` ``[B]`` (int64) says where the first new row of each sequence
    goes; the past stays where it is, and what neither fills is 0.
    """

    sources: tuple[tuple[int, int], ...]
    total: Dim | None = None

    layer_type: ClassVar[str] = "Cache"

    @property
    def arity(self) -> int:
        return max(number for number, _ in self.sources) + 1 + (self.total is not None)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        found = []
        for past, (number, first) in zip(inputs, self.sources, strict=False):
            (batch, heads, length, size), new = past.shape, inputs[number]
            if new.dtype is not past.dtype or len(new.shape) != 4 or new.shape[3] != size:
                raise ShapeError(f"rows of {new} behind a cache of {past}")
            if not isinstance(heads, int) or (isinstance(new.shape[2], int) and first + heads > new.shape[2]):
                raise ShapeError(f"heads {first} to {first} + {heads} of {new}")
            found.append(TensorType(past.dtype, (batch, heads, length + new.shape[1] if self.total is None else self.total, size)))
        return tuple(found)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        found = []
        for past, (number, first) in zip(inputs, self.sources, strict=False):
            new = inputs[number][:, :, first : first + past.shape[1]].transpose(0, 2, 1, 3)
            if self.total is None:
                found.append(np.concatenate((past, new), 2))
                continue
            result: np.ndarray = np.zeros((*past.shape[:2], self.total, past.shape[3]), past.dtype)  # type: ignore[arg-type]
            kept = min(past.shape[2], result.shape[2])
            result[:, :, :kept] = past[:, :, :kept]
            for batch, start in enumerate(inputs[-1].tolist()):
                low, high = max(start, 0), min(start + new.shape[2], result.shape[2])
                if low < high:
                    result[batch, :, low:high] = new[batch, :, low - start : high - start]
            found.append(result)
        return tuple(found)
