"""Random numbers by a counter-based generator: every number follows from a key and its place, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Shape
from fusion.dtypes import DataType
from fusion.network import Op, TensorType

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


@dataclass(frozen=True)
class Random(Op):
    """No input. A tensor of ``shape`` with ``uniform`` numbers from ``first`` up to ``second``, or ``normal`` ones with mean ``first`` and
    standard deviation ``second``; the same at every inference.

    Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) with the two 32-bit words of ``key``; block
    number ``i`` gives the elements ``4 i`` to ``4 i + 3`` (of doubles ``2 i`` and ``2 i + 1``). A word's upper 24 bits make a float32
    in [0, 1), two words' upper 53 bits a float64; normal numbers are made of pairs (Box and Muller, 1958). Narrow types are rounded.
    """

    shape: Shape
    dtype: DataType
    kind: str
    first: float
    second: float
    key: tuple[int, int] = (0, 0)

    layer_type: ClassVar[str] = "Random"
    arity: ClassVar[int] = 0

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(self.dtype, tuple(self.shape)),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        count = int(np.prod([int(dim) for dim in self.shape], dtype=np.int64))  # type: ignore[arg-type]
        wide = np.float64 if self.dtype is DataType.DOUBLE else np.float32
        parts = uniforms(philox(-(-count // (2 if wide is np.float64 else 4)), self.key), wide)
        first, second = wide(self.first), wide(self.second)
        if self.kind == "uniform":
            values = first + (second - first) * parts
        else:
            one = wide(2.0**-53 if wide is np.float64 else 2.0**-24)
            radius = np.sqrt(wide(-2) * np.log(parts[:, ::2] + one))
            angle = wide(2 * np.pi) * parts[:, 1::2]
            pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
            values = first + second * pairs
        return (np.ascontiguousarray(values.reshape(-1)[:count].reshape(self.shape).astype(self.dtype.numpy, copy=False)),)  # type: ignore[arg-type]


def philox(blocks: int, key: tuple[int, int]) -> np.ndarray:
    """Random words ``[blocks, 4]`` (uint32) of the blocks 0, 1, 2 ..."""
    low = np.uint64(0xFFFFFFFF)
    number = np.arange(blocks, dtype=np.uint64)
    counter = [number & low, number >> np.uint64(32), np.zeros_like(number), np.zeros_like(number)]
    words = list(key)
    for _ in range(ROUNDS):
        first, second = (counter[index] * np.uint64(factor) for index, factor in zip((0, 2), MULTIPLIERS, strict=True))
        counter = [
            (second >> np.uint64(32)) ^ counter[1] ^ np.uint64(words[0]), second & low,
            (first >> np.uint64(32)) ^ counter[3] ^ np.uint64(words[1]), first & low,
        ]  # fmt: skip
        words = [(word + increment) & 0xFFFFFFFF for word, increment in zip(words, INCREMENTS, strict=True)]
    return np.stack(counter, 1).astype(np.uint32)


def uniforms(words: np.ndarray, dtype: type) -> np.ndarray:
    """Numbers in [0, 1) from random words ``[blocks, 4]``: four float32 or two float64 of each block."""
    if dtype is np.float32:
        return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    pairs = words.astype(np.uint64)
    return (((pairs[:, ::2] << np.uint64(32)) | pairs[:, 1::2]) >> np.uint64(11)).astype(np.float64) * 2.0**-53
