"""Convolution and deconvolution, in one to three spatial dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.dims import Dim, Shape
from fusion.expression import Expression
from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import IDENTITY, epilogue_type


@dataclass(frozen=True)
class Convolution(Op):
    """Inputs: x ``[N, C, *spatial]`` (``[N, *spatial, C]`` when ``channels_last``), weights ``[O, C / groups, *window]``.

    Accumulated in float32 (int32 for integers), then the epilogue, in the shape of the output.
    """

    stride: tuple[int, ...]
    pre_padding: tuple[Dim, ...]
    post_padding: tuple[Dim, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    channels_last: bool = False
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "Convolution"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, weights, *extras = inputs
        batch, channels, spatial = split_channels(x.shape, self.channels_last)
        out_channels, per_group, *window = weights.shape
        if len(spatial) != len(self.stride) or len(window) != len(self.stride):
            raise ShapeError(f"convolution over {len(self.stride)} dimensions of {x.shape} with weights {weights.shape}")
        if isinstance(channels, int) and channels != per_group * self.groups:
            raise ShapeError(f"input has {channels} channels, weights {weights.shape} in {self.groups} groups want "
                             f"{per_group * self.groups}")  # fmt: skip
        sizes = tuple(
            (size + pre + post - dilation * (k - 1) - 1) // stride + 1
            for size, pre, post, dilation, k, stride in zip(
                spatial, self.pre_padding, self.post_padding, self.dilation, window, self.stride, strict=True
            )
        )
        shape = join_channels(batch, out_channels, sizes, self.channels_last)
        return (epilogue_type(self.epilogue, x.dtype, shape, extras),)


@dataclass(frozen=True)
class Deconvolution(Op):
    """Transposed convolution. Inputs: x as for Convolution, weights ``[C, O / groups, *window]``.

    ``pre_padding`` and ``post_padding`` are cut from the full result; ``output_padding`` is added at the end.
    """

    stride: tuple[int, ...]
    pre_padding: tuple[Dim, ...]
    post_padding: tuple[Dim, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[Dim, ...]
    groups: int = 1
    channels_last: bool = False
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "Deconvolution"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, weights, *extras = inputs
        batch, channels, spatial = split_channels(x.shape, self.channels_last)
        in_channels, per_group, *window = weights.shape
        if isinstance(channels, int) and channels != in_channels:
            raise ShapeError(f"input has {channels} channels, weights {weights.shape} want {in_channels}")
        sizes = tuple(
            (size - 1) * stride + dilation * (k - 1) + 1 + extra - pre - post
            for size, pre, post, dilation, k, stride, extra in zip(
                spatial, self.pre_padding, self.post_padding, self.dilation, window, self.stride, self.output_padding,
                strict=True,
            )
        )  # fmt: skip
        shape = join_channels(batch, per_group * self.groups, sizes, self.channels_last)
        return (epilogue_type(self.epilogue, x.dtype, shape, extras),)


def split_channels(shape: Shape, channels_last: bool) -> tuple[Dim, Dim, Shape]:
    """(batch, channels, spatial) of an activation's shape."""
    return (shape[0], shape[-1], shape[1:-1]) if channels_last else (shape[0], shape[1], shape[2:])


def join_channels(batch: Dim, channels: Dim, spatial: Shape, channels_last: bool) -> Shape:
    """The inverse of :func:`split_channels`."""
    return (batch, *spatial, channels) if channels_last else (batch, channels, *spatial)
