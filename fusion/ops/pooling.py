"""Windowed pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Dim, ceil_div, dim_min
from fusion.dtypes import DataType
from fusion.expression import Expression, type_of
from fusion.network import Op, TensorType
from fusion.ops.convolution import join_channels, split_channels
from fusion.ops.epilogue import IDENTITY, apply_epilogue, apply_prologue, epilogue_type
from fusion.ops.windows import channels_back, channels_first, pad_spatial, windows


@dataclass(frozen=True)
class Pooling(Op):
    """Inputs: x, as for Convolution, the epilogue's operands, and ``operands`` more for the prologue. ``kind`` is ``max``, ``average`` or ``lp`` (with exponent ``p``).

    ``count_include_pad`` divides an average by the window's size even where it hangs over the declared padding.
    Positions beyond the padding, which ``ceil_mode`` may add, never count.
    ``prologue`` is applied to each element of x before (operand 0 is x, the last inputs are its others); padding does not go through it: it stays
    zero, or absent from a maximum.
    """

    kind: str
    window: tuple[Dim, ...]
    stride: tuple[Dim, ...]
    pre_padding: tuple[Dim, ...]
    post_padding: tuple[Dim, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool = False
    count_include_pad: bool = False
    p: int = 2
    channels_last: bool = False
    prologue: Expression = IDENTITY
    epilogue: Expression = IDENTITY
    operands: int = 0

    layer_type: ClassVar[str] = "Pooling"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (x, *others), extras = self.split(inputs)
        batch, channels, spatial = split_channels(x.shape, self.channels_last)
        sizes = []
        for size, pre, post, dilation, k, stride in zip(
            spatial, self.pre_padding, self.post_padding, self.dilation, self.window, self.stride, strict=True
        ):
            room = size + pre + post - dilation * (k - 1) - 1
            count = (ceil_div(room, stride) if self.ceil_mode else room // stride) + 1
            if self.ceil_mode:  # the last window must start inside the input or its left padding
                count = dim_min(count, (size + pre - 1) // stride + 1)
            sizes.append(count)
        shape = join_channels(batch, channels, tuple(sizes), self.channels_last)
        pooled = epilogue_type(self.prologue, x.dtype, x.shape, others)
        return (epilogue_type(self.epilogue, pooled.dtype, shape, extras),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        before, extras = self.split(inputs)
        (out,) = self.infer([TensorType(DataType(one.dtype.name), one.shape) for one in inputs])
        dtype = type_of(self.prologue, [DataType(one.dtype.name) for one in before])
        counts = split_channels(out.shape, self.channels_last)[2]
        with np.errstate(all="ignore"):
            first = channels_first(apply_prologue(self.prologue, *before), self.channels_last)
        axes = tuple(range(-len(counts), 0))
        needed = self.overhang(first.shape[2:], counts)  # type: ignore[arg-type]
        lowest = least(first.dtype) if self.kind == "max" else 0
        padded = pad_spatial(first, self.pre_padding, needed, lowest)  # type: ignore[arg-type]
        view = windows(padded, self.window, self.stride, self.dilation, counts)  # type: ignore[arg-type]
        if self.kind == "max":
            result = view.max(axes)
        elif self.kind == "average":
            total = view.sum(axes, dtype=view.dtype)
            result = total / self.window_counts(first.shape[2:], counts).astype(total.dtype)  # type: ignore[arg-type]
        elif self.kind == "lp":
            if self.p == 2:
                result = np.sqrt(np.square(view).sum(axes, dtype=view.dtype))
            else:
                result = (np.abs(view) ** self.p).sum(axes, dtype=view.dtype) ** (1.0 / self.p)
        else:
            raise ValueError(f"pooling has no kind {self.kind!r}: max, average or lp")
        return (apply_epilogue(self.epilogue, dtype, channels_back(result, self.channels_last), extras),)

    def split(self, values: Sequence) -> tuple[tuple, tuple]:
        """What belongs to the inputs: the prologue's operands, and the epilogue's after its result."""
        end = len(values) - self.operands
        return (values[0], *values[end:]), tuple(values[1:end])

    def overhang(self, spatial: Sequence[int], counts: Sequence[int]) -> list[int]:
        """Along each axis, how many elements behind an input of ``spatial`` the last of ``counts`` windows needs (negative: it ends before)."""
        axes = zip(counts, self.stride, self.dilation, self.window, spatial, self.pre_padding, strict=True)
        return [(count - 1) * int(stride) + gap * (int(k) - 1) + 1 - size - int(pre) for count, stride, gap, k, size, pre in axes]  # type: ignore[arg-type]

    def window_counts(self, spatial: Sequence[int], counts: Sequence[int]) -> np.ndarray:
        """What an average is divided by: how many positions count, per output position (int64, shape ``counts``)."""
        total = np.ones((1,) * len(counts), np.int64)
        for axis, (size, count) in enumerate(zip(spatial, counts, strict=True)):
            pre, post = int(self.pre_padding[axis]), int(self.post_padding[axis])  # type: ignore[arg-type]
            low, high = (-pre, size + post) if self.count_include_pad else (0, size)
            start = np.arange(count) * int(self.stride[axis]) - pre  # type: ignore[arg-type]
            places = start[:, None] + np.arange(int(self.window[axis])) * self.dilation[axis]  # type: ignore[arg-type]
            inside = ((places >= low) & (places < high)).sum(1)
            total = total * inside.reshape((-1,) + (1,) * (len(counts) - axis - 1))
        return np.maximum(total, 1)


def least(dtype: np.dtype) -> float | int | bool:
    """The neutral element of a maximum: minus infinity, or the least integer."""
    if dtype.kind == "f":
        return -np.inf
    return False if dtype.kind == "b" else int(np.iinfo(dtype).min)
