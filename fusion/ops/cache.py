"""Keys and values of the past, with new ones behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, ShapeError, TensorType


@dataclass(frozen=True)
class CacheAppend(Op):
    """Inputs: one or more caches ``[B, H, P, D]``, then tensors ``[B, S, ..., D]`` of which some heads are new rows. Outputs: each cache with its new
    rows behind it, ``[B, H, P + S, D]``.

    ``sources``: for each cache, the number of the input with its new rows, and the first of their ``H`` heads there.
    """

    sources: tuple[tuple[int, int], ...]

    layer_type: ClassVar[str] = "Cache"

    @property
    def arity(self) -> int:
        return max(number for number, _ in self.sources) + 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        found = []
        for past, (number, first) in zip(inputs, self.sources, strict=False):
            (batch, heads, length, size), new = past.shape, inputs[number]
            if new.dtype is not past.dtype or len(new.shape) != 4 or new.shape[3] != size:
                raise ShapeError(f"rows of {new} behind a cache of {past}")
            if not isinstance(heads, int) or (isinstance(new.shape[2], int) and first + heads > new.shape[2]):
                raise ShapeError(f"heads {first} to {first} + {heads} of {new}")
            found.append(TensorType(past.dtype, (batch, heads, length + new.shape[1], size)))
        return tuple(found)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return tuple(
            np.concatenate((past, inputs[number][:, :, first : first + past.shape[1]].transpose(0, 2, 1, 3)), 2)
            for past, (number, first) in zip(inputs, self.sources, strict=False)
        )
