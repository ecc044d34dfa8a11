"""Where the maximum of each pooling window lies (MaxPool's second output)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Dim
from fusion.dtypes import DataType
from fusion.network import Op, TensorType
from fusion.ops.pooling import Pooling, least
from fusion.ops.windows import pad_spatial, windows


@dataclass(frozen=True)
class PoolingIndices(Op):
    """Input ``[N, C, *spatial]``; output int64, the flat index in the whole input of the first maximum of each window.

    ``column_major`` counts the spatial axes in reverse order (ONNX ``storage_order`` 1).
    """

    window: tuple[Dim, ...]
    stride: tuple[Dim, ...]
    pre_padding: tuple[Dim, ...]
    post_padding: tuple[Dim, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool = False
    column_major: bool = False

    layer_type: ClassVar[str] = "Pooling"
    arity: ClassVar[int] = 1

    @property
    def _pooling(self) -> Pooling:
        """The pooling whose maxima these are."""
        return Pooling("max", self.window, self.stride, self.pre_padding, self.post_padding, self.dilation, self.ceil_mode)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(DataType.INT64, self._pooling.infer(inputs)[0].shape),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        (x,) = inputs
        spatial = x.shape[2:]
        counts = tuple(int(dim) for dim in self.infer([TensorType(DataType(x.dtype.name), x.shape)])[0].shape[2:])  # type: ignore[arg-type]
        post = self._pooling.overhang(spatial, counts)
        index = np.arange(np.prod(spatial, dtype=np.int64)).reshape(spatial)
        if self.column_major:
            index = np.arange(index.size).reshape(spatial[::-1]).T
        values = x.astype(np.float32) if x.dtype.kind not in "fiub" else x
        cut = (self.window, self.stride, self.dilation, counts)
        shape = (*x.shape[:2], *counts, -1)
        padded = windows(pad_spatial(values, self.pre_padding, post, least(values.dtype)), *cut).reshape(shape)  # type: ignore[arg-type]
        places = windows(pad_spatial(index[None, None], self.pre_padding, post, -1), *cut).reshape(1, 1, *counts, -1)  # type: ignore[arg-type]
        best = (places >= 0) & ((padded == padded.max(-1, keepdims=True)) | (padded != padded))
        chosen = np.take_along_axis(np.broadcast_to(places, padded.shape), best.argmax(-1)[..., None], -1)[..., 0]
        plane = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *(1,) * len(spatial))
        return (np.maximum(chosen, 0) + plane * np.prod(spatial, dtype=np.int64),)
