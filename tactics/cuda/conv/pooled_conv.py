"""Convolution and pooling in one kernel on the ordinary cores (``pooled_conv.cu``): the convolution's result stays in shared memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from fusion.ops import ConvolutionPooling
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.conv.common import Window, pack_weights, reads_planes, window_of
from tactics.cuda.gemm.common import C_TYPES, Epilogue, ceil_div, defines, epilogue_of, refuse_types, round_up, sizes
from tactics.cuda.simple import LIMIT
from tactics.tactic import (
    Argument,
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Tactic,
    Workload,
    config,
)

ROWS = COLUMNS = 64  # of the products; see include/simt.cuh
STATIC = 2 * 2 * 16 * (64 + 4) * 4  # bytes of shared memory that the products take
TILES = ((1, 1), (1, 2), (2, 2), (1, 8), (2, 4), (2, 7), (3, 5), (4, 4), (3, 7), (2, 14), (4, 7), (4, 8), (5, 6), (7, 7), (8, 8))


class PooledConvolution(Tactic):
    """A tile of pooled positions a block; the convolution's results of tile and halo wait in shared memory."""

    id = "cuda.conv.pooled"
    device = "cuda"
    ops = (ConvolutionPooling,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, ConvolutionPooling)
        if len(op.convolution.stride) != 2:
            return Refusal(f"{len(op.convolution.stride)} spatial dimensions; this kernel takes two")
        if op.pooling.kind not in ("max", "average") or op.pooling.epilogue != IDENTITY or not op.pooling.channels_last:
            return Refusal("the pooling is no channels-last maximum or average without an epilogue")
        first = _convolution(workload)
        if refusal := refuse_types(first, 2, tuple(C_TYPES)):
            return refusal
        if first.outputs[0].dtype is not first.inputs[0].dtype:
            return Refusal(f"{first.inputs[0].dtype.label} operands with {first.outputs[0].dtype.label} results; this kernel has one type")
        if not (workload.constant and workload.constant[1]):
            return Refusal("the weights are not constant")
        window = window_of(first, planes=True)
        if isinstance(window, Refusal):
            return window
        if not 0 < window.pixels < LIMIT or window.groups > 65535 or prod(sizes(workload, len(workload.inputs))) == 0:
            return Refusal(f"{window.pixels} results of the convolution in {window.groups} groups, or an empty output")
        if not self._tiles(workload, device):
            return Refusal(f"one window over {prod(_held(workload, (1, 1)))} positions does not fit shared memory")
        epilogue = epilogue_of(first)
        return epilogue if isinstance(epilogue, Refusal) else None

    @staticmethod
    def _tiles(workload: Workload, device: DeviceSpec) -> list[tuple[int, int]]:
        """The tiles whose results fit, those with the fewest products for each output first."""
        room = max(48 * 1024, device.shared_memory) - STATIC
        fitting = [tile for tile in TILES if _shared(workload, tile) <= room]
        out = sizes(workload, len(workload.inputs))[1:3]

        def cost(tile: tuple[int, int]) -> float:
            blocks = prod(ceil_div(size, side) for size, side in zip(out, tile, strict=True))
            return blocks * round_up(prod(_held(workload, tile)), ROWS) * (1 + _shared(workload, tile) / (1 << 18))

        return sorted(fitting, key=cost)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [config(tile_y=y, tile_x=x) for y, x in self._tiles(workload, device)[:4]]

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        op = workload.op
        assert isinstance(op, ConvolutionPooling)
        return (pack_weights(constants[1], op.convolution.groups),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, chosen = workload.op, dict(config)
        assert isinstance(op, ConvolutionPooling)
        first, pooling, tile = _convolution(workload), op.pooling, (chosen["tile_y"], chosen["tile_x"])
        window, epilogue = window_of(first, planes=True), epilogue_of(first)
        assert isinstance(window, Window) and isinstance(epilogue, Epilogue)
        pairs = {
            "TAPS": window.taps[1:], "STRIDE": window.stride[1:], "PAD": window.pad[1:], "DILATION": window.dilation[1:], "TILE": tile,
            "POOL": pooling.window, "POOL_STRIDE": pooling.stride, "POOL_PAD": pooling.pre_padding, "POOL_POST": pooling.post_padding,
            "POOL_DILATION": pooling.dilation,
        }  # fmt: skip
        along = {f"{name}_{axis}": int(value) for name, pair in pairs.items() for axis, value in zip("YX", pair, strict=True)}  # type: ignore[arg-type]
        kernel = Kernel("conv/pooled_conv.cu", "pooled_conv", (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], GROUP_IN=window.group_in, GROUP_OUT=window.group_out, AVERAGE=pooling.kind == "average",
            COUNT_PAD=pooling.count_include_pad, **along,
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        channels, (height, width) = window.in_channels, window.input[1:]
        strides = (channels * height * width, width * channels, channels, 1)
        if reads_planes(first):
            strides = (channels * height * width, width, 1, height * width)
        n, *out, _ = sizes(workload, len(workload.inputs))
        row = round_up(window.depth, 16 // workload.inputs[0].dtype.itemsize)
        arguments: tuple[Argument, ...] = (
            Buffer("input", 0), Buffer("packed"), Buffer("output"), Scalar(height), Scalar(width), *map(Scalar, window.output[1:]),
            *map(Scalar, out), *(Scalar(stride, "i64") for stride in strides), Scalar(row), Scalar(window.out_channels), epilogue.argument,
        )  # fmt: skip
        tiles = prod(ceil_div(size, side) for size, side in zip(out, tile, strict=True))
        grid = (n * tiles * ceil_div(window.group_out, COLUMNS), 1, window.groups)
        return Plan((Launch(kernel, grid, (128, 1, 1), arguments, _shared(workload, tile)),))


def _convolution(workload: Workload) -> Workload:
    """The convolution by itself."""
    op = workload.op
    assert isinstance(op, ConvolutionPooling)
    return replace(workload, op=op.convolution, outputs=op.convolution.infer(workload.inputs))


def _held(workload: Workload, tile: tuple[int, int]) -> tuple[int, int]:
    """How many results of the convolution a tile reads along y and x."""
    op = workload.op
    assert isinstance(op, ConvolutionPooling)
    y, x = (
        (side - 1) * int(step) + (int(size) - 1) * gap + 1  # type: ignore[arg-type]
        for side, step, size, gap in zip(tile, op.pooling.stride, op.pooling.window, op.pooling.dilation, strict=True)
    )
    return y, x


def _shared(workload: Workload, tile: tuple[int, int]) -> int:
    return prod(_held(workload, tile)) * COLUMNS * workload.inputs[0].dtype.itemsize


TACTICS = (PooledConvolution(),)
