"""Convolution on Hopper as an implicit matrix product: TMA's im2col mode and wgmma (``conv_sm90.cu``), channels last."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Convolution
from tactics.cuda.conv.common import Window, activations, merge_columns, pack_weights, pixel_step, window_of
from tactics.cuda.epilogue import adds_rows, overwritable
from tactics.cuda.gemm.common import (
    Epilogue,
    ceil_div,
    epilogue_of,
    fixed,
    pdl,
    refuse_epilogue,
    refuse_types,
    vector_columns,
)
from tactics.cuda.simple import divider
from tactics.cuda.sm90.gemm_sm90 import Product, gemm_launch, pitch_defines
from tactics.cuda.sm90.tile_sm90 import (
    TYPES,
    Problem,
    Tile,
    Tiled,
    grid,
    permute_rows,
    refused,
    tile_defines,
    tile_of,
    tile_order,
)
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Im2col,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Struct,
    TensorMap,
    Workload,
    workload_bytes,
)  # fmt: skip


def window_sm90(workload: Workload) -> Window | Refusal:
    """The convolution with what can be folded folded: a depth axis that nothing slides along into the batch; patches that do not
    overlap (stride = window, no padding) into wider channels and shorter images."""
    window = window_of(workload)
    if isinstance(window, Refusal):
        return window
    window = merge_rows(merge_columns(window, workload), workload)
    if window.taps[0] == window.stride[0] == 1 and window.pad[0] == 0 and window.input[0] == window.output[0]:
        depth = window.input[0]
        window = replace(window, batch=window.batch * depth, input=(1, *window.input[1:]), output=(1, *window.output[1:]))
    return window


def merge_rows(window: Window, workload: Workload) -> Window:
    """When windows do not overlap along y, each row of windows is an image of its own, one window high."""
    taps = window.taps[1]
    rank = len(workload.inputs[0].shape)
    if taps == 1 or window.stride[1] != taps or window.pad[1] or window.dilation[1] != 1 or window.input[0] != 1:
        return window
    if rank < 4 or window.input[1] % taps or workload.axis_varies(0, rank - 3):
        return window
    return replace(
        window, batch=window.batch * window.output[1], input=(1, taps, window.input[2]), output=(1, 1, window.output[2]),
        stride=(window.stride[0], 1, window.stride[2]),
    )  # fmt: skip


def corners(window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    """The box that the window's first tap moves in, as im2col wants it, x before y: where it starts, and where it ends against the
    image's last pixel."""
    first = (-window.pad[2], -window.pad[1])
    last = tuple((window.output[i] - 1) * window.stride[i] - window.pad[i] - (window.input[i] - 1) for i in (2, 1))
    return first, (last[0], last[1])


class Sm90Convolution(Tiled):
    """Output pixels x output channels in tiles; a 1x1 convolution with stride 1 runs as the plain product (``gemm_sm90.cu``)."""

    id = "cuda.conv.sm90"
    device = "cuda"
    ops = (Convolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, TYPES) or refused(device, workload.inputs[0].dtype, workload.tf32):
            return refusal
        if not workload.is_constant(1):
            return Refusal("the weights are not constant; they are repacked at build")
        window = window_sm90(workload)
        if isinstance(window, Refusal):
            return window
        return _illegal_window(window, workload) or refuse_epilogue(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(workload)

    def problem(self, workload: Workload) -> Problem:
        return _problem(workload)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        rows = pack_weights(constants[1], 1, transposed=False)
        return (permute_rows(rows) if tile_of(config).direct else rows,)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, tile, epilogue = _window(workload), tile_of(config), epilogue_of(workload)
        assert isinstance(epilogue, Epilogue)
        if is_product(window, workload):
            product = Product(window.pixels, window.out_channels, window.in_channels, 1, True, True, False, False, True)
            return Plan((gemm_launch(workload, device, tile, product, epilogue, Buffer("packed", 0), window.out_channels, True),), in_place=overwritable(workload))
        return Plan((_launch(workload, device, tile, window, epilogue),), in_place=overwritable(workload))


def _window(workload: Workload) -> Window:
    window = window_sm90(workload)
    assert isinstance(window, Window)
    return window


def is_product(window: Window, workload: Workload) -> bool:
    """Whether it runs as the plain product of pixels."""
    spatial = range(1, len(workload.inputs[0].shape) - 1)
    return window.pointwise or (window.taps == window.stride == (1, 1, 1) and not any(window.pad) and not any(
        workload.axis_varies(0, axis) for axis in spatial))  # fmt: skip


def _problem(workload: Workload) -> Problem:
    window = _window(workload)
    taps = window.taps[1] * window.taps[2]
    return Problem(window.pixels, window.out_channels, 1, taps, window.in_channels, workload.inputs[0].dtype, workload_bytes(workload),
                   may_swap=is_product(window, workload), permutable=True, adds_rows=adds_rows(workload))  # fmt: skip


def _illegal_window(window: Window, workload: Workload) -> Refusal | None:
    """What TMA asks of the convolution, each condition once."""
    itemsize = workload.inputs[0].dtype.itemsize
    if window.groups != 1:
        return Refusal(f"{window.groups} groups; this kernel takes one")
    if window.input[0] != 1 or window.taps[0] != 1:
        return Refusal("windows slide along three dimensions; this kernel takes two")
    if fixed(workload, 0, -1) == 1 or window.in_channels * itemsize % 16:
        return Refusal(f"{window.in_channels} input channels; TMA strides want a multiple of {16 // itemsize} (that does not vary)")
    if not window.pixels * window.out_channels:
        return Refusal("an empty output")
    if window.pixels >= 2**31:
        return Refusal("2^31 output pixels or more")
    if is_product(window, workload):
        return None
    if max(window.stride) > 8:
        return Refusal(f"stride {window.stride[1:]}; TMA's im2col mode walks in steps of up to 8")
    if any(not -128 <= corner <= 127 for corner in sum(corners(window), ())):
        return Refusal(f"padding {window.pad[1:]} or a window of {window.taps[1:]}: im2col corners have 8 bits")
    if any(dilation * (taps - 1) > 255 for dilation, taps in zip(window.dilation, window.taps, strict=True)):
        return Refusal(f"a window of {window.taps[1:]} with dilation {window.dilation[1:]}: im2col offsets have 8 bits")
    return None


def taps_inner(window: Window) -> bool:
    """Whether the image is the larger operand, so that the order of K follows it."""
    return window.batch * window.input[1] * window.input[2] >= window.taps[1] * window.taps[2] * window.out_channels


def _launch(workload: Workload, device: DeviceSpec, tile: Tile, window: Window, epilogue: Epilogue) -> Launch:
    dtype = workload.inputs[0].dtype
    size, depth = dtype.itemsize, tile.swizzle // dtype.itemsize
    channels, (_, height, width) = window.in_channels, window.input
    row = pixel_step(workload, window) * size
    lower, upper = corners(window)
    image = TensorMap(
        Buffer("input", 0), dtype, (channels, width, height, window.batch), (row, row * width, row * width * height),
        element_strides=(1, window.stride[2], window.stride[1], 1), swizzle=tile.swizzle,
        im2col=Im2col(lower, upper, depth, tile.bm // tile.cluster_y), tf32=dtype is DataType.FLOAT,
    )  # fmt: skip
    taps = window.taps[1] * window.taps[2]
    weight = TensorMap(
        Buffer("packed", 0), dtype, (channels, taps, window.out_channels), (channels * size, channels * size * taps), (depth, 1, tile.bn // tile.cluster_x),
        swizzle=tile.swizzle, tf32=dtype is DataType.FLOAT,
    )  # fmt: skip
    columns = vector_columns(window.out_channels)
    defines = tile_defines(tile, dtype, workload.outputs[0].dtype, columns, True, pdl(device))
    kernel = Kernel("sm90/conv_sm90.cu", "convolution", (*defines, *pitch_defines(workload), *epilogue.defines), epilogue.prelude)
    numbers = (
        window.pixels, window.out_channels, channels, taps, *window.stride[1:], *window.pad[1:], *window.dilation[1:], int(taps_inner(window)),
    )  # fmt: skip
    divisors = (*window.output[1:], window.taps[2], taps if taps_inner(window) else ceil_div(channels, depth))
    return Launch(
        kernel, (grid(tile, _problem(workload), device), 1, 1), (tile.threads, 1, 1),
        (image, weight, Buffer("output"), *map(Scalar, numbers), Struct(tuple(field for value in divisors for field in divider(value))),
         Struct(tile_order(tile, _problem(workload))), epilogue.argument), shared_memory=tile.shared_bytes,
        dependent=pdl(device),
    )  # fmt: skip


TACTICS = (Sm90Convolution(),)
