"""Windowed pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.dims import Dim, ceil_div, dim_min
from fusion.expression import Expression
from fusion.network import Op, TensorType
from fusion.ops.convolution import join_channels, split_channels
from fusion.ops.epilogue import IDENTITY, epilogue_type


@dataclass(frozen=True)
class Pooling(Op):
    """Input: x, as for Convolution. ``kind`` is ``max``, ``average`` or ``lp`` (with exponent ``p``).

    ``count_include_pad`` divides an average by the window's size even where it hangs over the declared padding.
    Positions beyond the padding, which ``ceil_mode`` may add, never count.
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
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "Pooling"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, *extras = inputs
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
        return (epilogue_type(self.epilogue, x.dtype, shape, extras),)
