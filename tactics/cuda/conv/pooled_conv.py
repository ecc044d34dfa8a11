"""Convolution and pooling in one kernel: the convolution's result stays in shared memory.

``pooled_conv.cu`` multiplies on the ordinary cores (any GPU), ``pooled_mma.cu`` on tensor cores with mma.sync.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import ConvolutionPooling
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.conv.common import (
    Window,
    activations,
    channel_alignment,
    pack_weights,
    pixel_step,
    reads_planes,
    window_of,
)
from tactics.cuda.gemm.common import (
    C_TYPES,
    Epilogue,
    ceil_div,
    defines,
    epilogue_of,
    pdl,
    refuse_types,
    round_up,
    sizes,
    vector_bytes,
)
from tactics.cuda.gemm.mma_gemm import tile_defines
from tactics.cuda.gemm.tiles import Tile, legal
from tactics.cuda.simple import LIMIT, out_pitch
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

Pair = tuple[int, int]
# Pooled positions (y, x) of a block.
POSITIONS: tuple[Pair, ...] = (
    (1, 1), (1, 2), (2, 2), (1, 8), (2, 4), (2, 7), (3, 5), (4, 4), (3, 7), (2, 14), (4, 7), (4, 8), (5, 6), (7, 7), (8, 8), (7, 14), (8, 16),
)  # fmt: skip


class _Pooled(Tactic):
    """What both kernels share."""

    device = "cuda"
    ops = (ConvolutionPooling,)

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
        if not workload.is_constant(1):
            return Refusal("the weights are not constant; they are repacked at build")
        window = window_of(first, planes=True)
        if isinstance(window, Refusal):
            return window
        if not 0 < window.pixels < LIMIT or window.groups > 65535 or prod(sizes(workload, len(workload.inputs))) * window.depth == 0:
            return Refusal(f"{window.pixels} results of the convolution in {window.groups} groups, or nothing to compute")
        if prod(window.input) * window.in_channels >= LIMIT:
            return Refusal(f"{prod(window.input) * window.in_channels} elements an image; this kernel counts to {LIMIT - 1}")
        if not self.configs(workload, device):
            return Refusal(f"one window over {prod(_held(workload, (1, 1)))} positions does not fit shared memory")
        epilogue = epilogue_of(first)
        return epilogue if isinstance(epilogue, Refusal) else None

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(_convolution(workload))

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        op = workload.op
        assert isinstance(op, ConvolutionPooling)
        if reads_planes(_convolution(workload)) and op.convolution.groups == 1:
            return (pack_weights(constants[1][:, None], 1),)
        return (pack_weights(constants[1], op.convolution.groups),)

    def _plan(self, workload: Workload, name: str, positions: Pair, columns: int, threads: int, shared: int, **own: object) -> Plan:
        op = workload.op
        assert isinstance(op, ConvolutionPooling)
        first, pooling = _convolution(workload), op.pooling
        window, epilogue = window_of(first, planes=True), epilogue_of(first)
        assert isinstance(window, Window) and isinstance(epilogue, Epilogue)
        pairs = {
            "TAPS": window.taps[1:], "STRIDE": window.stride[1:], "PAD": window.pad[1:], "DILATION": window.dilation[1:], "TILE": positions,
            "POOL": pooling.window, "POOL_STRIDE": pooling.stride, "POOL_PAD": pooling.pre_padding, "POOL_POST": pooling.post_padding,
            "POOL_DILATION": pooling.dilation,
        }  # fmt: skip
        along = {f"{name}_{axis}": int(value) for name, pair in pairs.items() for axis, value in zip("YX", pair, strict=True)}  # type: ignore[arg-type]
        planes = reads_planes(first)
        kernel = Kernel(f"conv/{name}.cu", name, (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], GROUP_IN=window.group_in, GROUP_OUT=window.group_out, AVERAGE=pooling.kind == "average",
            COUNT_PAD=pooling.count_include_pad, PLANES=planes and window.groups == 1, **along, **own, **out_pitch(workload),
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        channels, (height, width) = pixel_step(first, window), window.input[1:]
        strides = (width, 1, height * width) if planes else (width * channels, channels, 1)
        n, *out, _ = sizes(workload, len(workload.inputs))
        row = round_up(window.depth, 16 // workload.inputs[0].dtype.itemsize)
        arguments: tuple[Argument, ...] = (
            Buffer("input", 0), Buffer("packed"), Buffer("output"), Scalar(height), Scalar(width), *map(Scalar, window.output[1:]),
            *map(Scalar, out), Scalar(channels * height * width, "i64"), *map(Scalar, strides), Scalar(row), Scalar(window.out_channels),
            epilogue.argument,
        )  # fmt: skip
        tiles = prod(ceil_div(size, side) for size, side in zip(out, positions, strict=True))
        grid = (n * tiles * ceil_div(window.group_out, columns), 1, window.groups)
        return Plan((Launch(kernel, grid, (threads, 1, 1), arguments, shared, dependent=("PDL", "1") in kernel.defines),))


class PooledConvolution(_Pooled):
    """On the ordinary cores."""

    id = "cuda.conv.pooled"
    reference = True

    STATIC = 2 * 2 * 16 * (64 + 4) * 4  # bytes of shared memory that the products take (include/simt.cuh)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        room = max(48 * 1024, device.shared_memory) - self.STATIC
        return [config(tile_y=y, tile_x=x) for y, x in _positions(workload, 64, 64, room)[:4]]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        positions = chosen["tile_y"], chosen["tile_x"]
        return self._plan(workload, "pooled_conv", positions, 64, 128, _held_bytes(workload, positions, 64))


class PooledMma(_Pooled):
    """On tensor cores."""

    id = "cuda.conv.pooled.mma"

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype = workload.inputs[0].dtype
        if device.capability < 75 or (device.capability < 80 and dtype is not DataType.HALF):
            return Refusal(f"tensor cores of {device.arch} do not multiply {dtype.label}")
        if dtype is DataType.FLOAT and not workload.tf32:
            return Refusal("FP32 products on tensor cores round to TF32, which is not allowed here")
        return super().supports(workload, device)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        itemsize = workload.inputs[0].dtype.itemsize
        columns = 64 if sizes(workload, 1)[0] // workload.op.convolution.groups > 32 else 32  # type: ignore[attr-defined]
        stages = 3 if device.capability >= 80 else 2
        found = []
        for rows, depth, warps_m, warps_n, keep in ((64, 64, 2, 2, 3), (128, 64, 4, 1, 2), (128, 64, 4, 2, 2), (64, 128, 2, 2, 1)):
            tile = Tile(rows, columns, depth // itemsize, warps_m, warps_n, stages=stages)
            if not legal(tile, itemsize, False, device):
                continue
            room = device.shared_memory - _stage_bytes(tile, itemsize)
            found += [config(**tile.__dict__, tile_y=y, tile_x=x) for y, x in _positions(workload, rows, columns, room)[:keep]]
        return found

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        positions = chosen.pop("tile_y"), chosen.pop("tile_x")
        tile, itemsize = Tile(**chosen), workload.inputs[0].dtype.itemsize
        first = _convolution(workload)
        window = window_of(first, planes=True)
        assert isinstance(window, Window)
        aligned = 1 if reads_planes(first) else channel_alignment(first, window)[0]
        own = tile_defines(tile) | {
            "OUT_T": C_TYPES[workload.outputs[0].dtype], "VEC_C": 2, "VEC_A": vector_bytes(itemsize, aligned, window.in_channels if aligned > 1 else 1),
            "B_CONSTANT": 1, "PDL": 1 if pdl(device) else None,
        }  # fmt: skip
        shared = _stage_bytes(tile, itemsize) + _held_bytes(workload, positions, tile.bn)
        return self._plan(workload, "pooled_mma", positions, tile.bn, tile.threads, shared, **own)


def _convolution(workload: Workload) -> Workload:
    """The convolution by itself."""
    op = workload.op
    assert isinstance(op, ConvolutionPooling)
    return replace(workload, op=op.convolution, outputs=op.convolution.infer(workload.inputs))


def _held(workload: Workload, positions: Pair) -> Pair:
    """How many results of the convolution a block reads along y and x."""
    op = workload.op
    assert isinstance(op, ConvolutionPooling)
    y, x = (
        (side - 1) * int(step) + (int(size) - 1) * gap + 1  # type: ignore[arg-type]
        for side, step, size, gap in zip(positions, op.pooling.stride, op.pooling.window, op.pooling.dilation, strict=True)
    )
    return y, x


def _held_bytes(workload: Workload, positions: Pair, columns: int) -> int:
    return prod(_held(workload, positions)) * columns * workload.inputs[0].dtype.itemsize


def _stage_bytes(tile: Tile, itemsize: int) -> int:
    return tile.stages * (tile.bm + tile.bn) * tile.bk * itemsize


def _positions(workload: Workload, rows: int, columns: int, room: int) -> list[Pair]:
    """The positions of a block whose results fit ``room`` bytes; first those with the fewest products of ``rows`` rows, less memory first."""
    out = sizes(workload, len(workload.inputs))[1:3]

    def cost(positions: Pair) -> float:
        blocks = prod(ceil_div(size, side) for size, side in zip(out, positions, strict=True))
        return blocks * round_up(prod(_held(workload, positions)), rows) * (1 + _held_bytes(workload, positions, columns) / (1 << 18))

    return sorted((one for one in POSITIONS if _held_bytes(workload, one, columns) <= room), key=cost)


TACTICS = (PooledConvolution(), PooledMma())
