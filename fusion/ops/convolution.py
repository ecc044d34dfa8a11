"""Convolution and deconvolution, in one to three spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Dim, Shape
from fusion.dtypes import DataType
from fusion.expression import Expression
from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import IDENTITY, accumulator, apply_epilogue, epilogue_type, product_type
from fusion.ops.windows import channels_back, channels_first, pad_spatial, windows


@dataclass(frozen=True)
class Convolution(Op):
    """Inputs: x ``[N, C, *spatial]`` (``[N, *spatial, C]`` when ``channels_last``), weights ``[O, C / groups, *window]``.

    Accumulated in float32 (int32 for integers), then the epilogue, in the shape of the output. 8-bit operands (x int8 or
    uint8 with int8 weights, or 8-bit floats) give an int32 (float32) result: scales of a quantised layer stand in the epilogue. ``input_channels_last`` is
    the layout of x where it is not the output's: a first convolution may read an image's planes and write channels last.
    """

    stride: tuple[int, ...]
    pre_padding: tuple[Dim, ...]
    post_padding: tuple[Dim, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    channels_last: bool = False
    epilogue: Expression = IDENTITY
    input_channels_last: bool | None = None

    layer_type: ClassVar[str] = "Convolution"
    arity: ClassVar[int] = 2

    @property
    def reads_channels_last(self) -> bool:
        """The layout of x."""
        return self.channels_last if self.input_channels_last is None else self.input_channels_last

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, weights, *extras = inputs
        batch, channels, spatial = split_channels(x.shape, self.reads_channels_last)
        out_channels, per_group, *window = weights.shape
        if len(spatial) != len(self.stride) or len(window) != len(self.stride):
            raise ShapeError(
                f"convolution over {len(self.stride)} dimensions of {x.shape} with weights {weights.shape}"
            )
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
        return (epilogue_type(self.epilogue, product_type(x.dtype), shape, extras),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, weights, *extras = inputs
        total = accumulator(x, weights)
        first = channels_first(x, self.reads_channels_last)
        padded = pad_spatial(first, self.pre_padding, self.post_padding).astype(total, copy=False)  # type: ignore[arg-type]
        window = weights.shape[2:]
        counts = [
            (size - dilation * (k - 1) - 1) // stride + 1
            for size, dilation, k, stride in zip(padded.shape[2:], self.dilation, window, self.stride, strict=True)
        ]
        n, spatial = len(first), len(window)
        view = windows(padded, window, self.stride, self.dilation, counts)
        order = (0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial))
        columns = view.transpose(order).reshape(n, self.groups, math.prod(weights.shape[1:]), math.prod(counts))
        matrix = weights.astype(total, copy=False).reshape(self.groups, -1, columns.shape[2])
        result = np.matmul(matrix, columns).reshape(n, len(weights), *counts)
        dtype = product_type(DataType(x.dtype.name))
        return (apply_epilogue(self.epilogue, dtype, channels_back(result, self.channels_last), extras),)


@dataclass(frozen=True)
class Deconvolution(Op):
    """Transposed convolution. Inputs: x as for Convolution, weights ``[C, O / groups, *window]``.

    ``pre_padding`` and ``post_padding`` are cut from the full result; negative ones, and ``output_padding`` at the end, are added to it as
    sums of nothing, which the epilogue is applied to as well.
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
        return (epilogue_type(self.epilogue, product_type(x.dtype), shape, extras),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, weights, *extras = inputs
        total = accumulator(x, weights)
        first = channels_first(x, self.channels_last).astype(total, copy=False)
        n, channels, *spatial = first.shape
        per_group, *window = weights.shape[1:]
        columns = first.reshape(n, self.groups, channels // self.groups, math.prod(spatial))
        matrix = weights.astype(total, copy=False).reshape(self.groups, channels // self.groups, -1)
        products = np.matmul(matrix.transpose(0, 2, 1), columns)
        products = products.reshape(n, self.groups * per_group, *window, *spatial)
        whole = [
            (size - 1) * stride + dilation * (k - 1) + 1 if size else 0
            for size, stride, dilation, k in zip(spatial, self.stride, self.dilation, window, strict=True)
        ]
        full = np.zeros((n, self.groups * per_group, *whole), total)
        for position in np.ndindex(*window):
            target = tuple(
                slice(dilation * k, dilation * k + stride * (size - 1) + 1, stride)
                for k, dilation, stride, size in zip(position, self.dilation, self.stride, spatial, strict=True)
            )
            full[(slice(None), slice(None), *target)] += products[(slice(None), slice(None), *position)]
        grow = [extra - post for extra, post in zip(self.output_padding, self.post_padding, strict=True)]
        result = pad_spatial(full, [-pre for pre in self.pre_padding], grow)  # type: ignore[arg-type, misc]
        dtype = product_type(DataType(x.dtype.name))
        return (apply_epilogue(self.epilogue, dtype, channels_back(result, self.channels_last), extras),)


def split_channels(shape: Shape, channels_last: bool) -> tuple[Dim, Dim, Shape]:
    """(batch, channels, spatial) of an activation's shape."""
    return (shape[0], shape[-1], shape[1:-1]) if channels_last else (shape[0], shape[1], shape[2:])


def join_channels(batch: Dim, channels: Dim, spatial: Shape, channels_last: bool) -> Shape:
    """The inverse of :func:`split_channels`."""
    return (batch, *spatial, channels) if channels_last else (batch, channels, *spatial)
