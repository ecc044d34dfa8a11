"""A depthwise convolution and the 1x1 convolution of its result in one kernel: what lies between stays in shared memory.

``separable.cu`` computes on the ordinary cores (any GPU, the reference), ``separable_mma.cu`` on tensor cores with mma.sync.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import ceil, gcd, prod

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Convolution, SeparableConvolution
from fusion.quantization import on_float_sums
from tactics.cuda.conv.common import Window, pack_weights, pixel_step, window_of
from tactics.cuda.epilogue import NO_EPILOGUE, EpilogueCode, epilogue_argument, finish_code, in_namespace, overwritable
from tactics.cuda.gemm.common import (
    C_TYPES,
    STORED_TYPES,
    Epilogue,
    ceil_div,
    defines,
    pdl,
    round_up,
    sum_types_of,
    vector_bytes,
    vector_columns,
)
from tactics.cuda.gemm.common import epilogue_of as product_epilogue
from tactics.cuda.gemm.mma_gemm import tile_defines
from tactics.cuda.gemm.tiles import Tile
from tactics.cuda.simple import LIMIT, out_pitch
from tactics.separable import input_number, parts
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
    Struct,
    Tactic,
    Workload,
    config,
    floor_seconds,
)

MOST_TAPS = 49  # the window is unrolled
INTEGERS = (DataType.INT8, DataType.UINT8)


@dataclass(frozen=True)
class _Parts:
    """A workload in the kernels' terms: the window of the depthwise convolution, and both epilogues."""

    window: Window
    out_channels: int
    inner: EpilogueCode
    outer: Epilogue
    types: tuple[DataType, DataType]  # of x, and of what lies between


def _parts(workload: Workload) -> _Parts | Refusal:
    """The workload in the kernels' terms, or why they cannot take it."""
    op = workload.op
    assert isinstance(op, SeparableConvolution)
    first, second = parts(workload)
    window, pointwise = window_of(first), window_of(second)
    for one in (window, pointwise):
        if isinstance(one, Refusal):
            return one
    assert isinstance(window, Window) and isinstance(pointwise, Window)
    if not window.groups == window.in_channels == window.out_channels or not pointwise.pointwise:
        return Refusal(f"{window.groups} groups of {window.in_channels} channels, then a window of {pointwise.taps[1:]}: no depthwise and 1x1 convolution")
    if (window.input[0], window.output[0], window.taps[0]) != (1, 1, 1) or len(op.depthwise.stride) > 2:
        return Refusal("three spatial dimensions; this kernel takes two")
    if prod(window.taps) > MOST_TAPS:
        return Refusal(f"a window of {window.taps[1]}x{window.taps[2]}; this kernel unrolls up to {MOST_TAPS} taps")
    if not (workload.is_constant(1) and workload.is_constant(2)):
        return Refusal("the weights are not constant")
    if window.pixels * pointwise.out_channels * window.in_channels == 0:
        return Refusal("nothing to compute")
    if max(window.batch * prod(window.input) * pixel_step(first, window), window.pixels * max(window.in_channels, pointwise.out_channels)) >= LIMIT:
        return Refusal("2^31 elements or more; this kernel has 32-bit offsets")
    x, middle = first.inputs[0].dtype, second.inputs[0].dtype
    if refusal := _refuse_types(workload, x, middle):
        return refusal
    inner = inner_code(first)
    outer = product_epilogue(second)
    if isinstance(inner, Refusal):
        return inner
    return outer if isinstance(outer, Refusal) else _Parts(window, pointwise.out_channels, inner, outer, (x, middle))


def _refuse_types(workload: Workload, x: DataType, middle: DataType) -> Refusal | None:
    """A refusal unless all operands are one floating-point type, or 8-bit integers with int8 weights."""
    weights = {workload.inputs[1].dtype, workload.inputs[2].dtype}
    floats = x in C_TYPES and middle is x and weights == {x}
    if not floats and not (x in INTEGERS and middle in INTEGERS and weights == {DataType.INT8}):
        kinds = ", ".join(one.label for one in (x, workload.inputs[1].dtype, middle, workload.inputs[2].dtype))
        return Refusal(f"operands and what lies between are {kinds}; this kernel takes one of FP32, FP16, BF16, or 8-bit integers with INT8 weights")
    if workload.outputs[0].dtype not in STORED_TYPES:
        return Refusal(f"the output is {workload.outputs[0].dtype.label}; this kernel does not store it")
    return None


class _Separable(Tactic):
    """What both kernels share."""

    device = "cuda"
    ops = (SeparableConvolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        found = _parts(workload)
        return found if isinstance(found, Refusal) else None

    def pitched(self, workload: Workload) -> Collection[int]:
        return [number for number in range(len(workload.inputs) + len(workload.outputs)) if number not in (1, 2)]

    def _launch(self, workload: Workload, name: str, grid: tuple[int, int, int], threads: int, shared: int, weights: tuple[Buffer, Buffer], numbers: Sequence[int],
                **own: object) -> Plan:  # fmt: skip
        """The launch; ``numbers`` are the arguments between the tensors and the epilogues' operands."""
        op = workload.op
        assert isinstance(op, SeparableConvolution)
        found = _parts(workload)
        assert isinstance(found, _Parts)
        window = found.window
        pairs = {"TAPS": window.taps[1:], "STRIDE": window.stride[1:], "DILATION": window.dilation[1:]}
        along = {f"{key}_{axis}": value for key, pair in pairs.items() for axis, value in zip("YX", pair, strict=True)}
        x, middle = found.types
        has_inner = found.inner is not NO_EPILOGUE
        kernel = Kernel(f"conv/{name}.cu", name, (*defines(
            X_T=STORED_TYPES[x], IN_T=STORED_TYPES[middle], OUT_T=STORED_TYPES[workload.outputs[0].dtype], DEPTHWISE_EPILOGUE=1 if has_inner else None,
            **sum_types_of(middle), **along, **own, **out_pitch(workload),
        ), *found.outer.defines), in_namespace(found.inner, "inner") + found.outer.prelude)  # fmt: skip
        arguments: tuple[Argument, ...] = (
            Buffer("input", 0), *weights, Buffer("output"), *map(Scalar, numbers),
            _moved(epilogue_argument(found.inner), op, 0), _moved(found.outer.argument, op, 1),
        )  # fmt: skip
        _, second = parts(workload)
        in_place = tuple(input_number(op, 1, number) for number in overwritable(second) if number >= second.op.arity)  # type: ignore[attr-defined]
        launch = Launch(kernel, grid, (threads, 1, 1), arguments, shared, dependent=("PDL", "1") in kernel.defines)
        return Plan((launch,), in_place=in_place)


def inner_code(workload: Workload) -> EpilogueCode | Refusal:
    """The epilogue of the depthwise convolution as ``finish`` (see :func:`tactics.cuda.epilogue.finish_code`), on float32 sums."""
    op = workload.op
    assert isinstance(op, Convolution)
    expression = op.epilogue if workload.inputs[0].dtype.is_float else on_float_sums(op.epilogue)
    return finish_code(replace(workload, op=replace(op, epilogue=expression)), DataType.FLOAT)


def _moved(argument: Struct, op: SeparableConvolution, part: int) -> Struct:
    """The operands of a part's epilogue as inputs of the whole."""
    return Struct(tuple(
        replace(one, index=input_number(op, part, one.index)) if isinstance(one, Buffer) and one.kind == "input" else one for one in argument.fields
    ))  # fmt: skip


class SimtSeparable(_Separable):
    """On the ordinary cores; a depthwise result is computed once for every 64 output channels."""

    id = "cuda.conv.separable"
    reference = True

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        found = _parts(workload)
        assert isinstance(found, _Parts)
        window = found.window
        step = pixel_step(parts(workload)[0], window)
        grid = (ceil_div(window.pixels, 64), ceil_div(found.out_channels, 64), 1)
        filters = STORED_TYPES[workload.inputs[1].dtype]
        arguments = (window.pixels, *window.input[1:], step, *window.output[1:], *window.pad[1:], window.in_channels, found.out_channels)
        return self._launch(workload, "separable", grid, 128, 0, (Buffer("input", 1), Buffer("input", 2)), arguments, B_T=filters, PDL=1 if pdl(device) else None)

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return 10 * floor_seconds(workload, device) + 1e-4  # after the tensor cores


@dataclass(frozen=True)
class _Shape:
    """One configuration: the tile of the product, and the ``tile_y`` x ``tile_x`` pixels that are its rows."""

    tile: Tile
    tile_y: int
    tile_x: int
    window: Window
    itemsize: int

    @property
    def halo(self) -> int:
        """Input pixels that the tile reads."""
        return prod(
            (side - 1) * stride + (taps - 1) * dilation + 1
            for side, stride, taps, dilation in zip(
                (self.tile_y, self.tile_x), self.window.stride[1:], self.window.taps[1:], self.window.dilation[1:], strict=True
            )
        )

    @property
    def groups(self) -> int:
        """Groups of 16 channels of a stage."""
        return self.tile.bk // 16

    @property
    def filter_bytes(self) -> int:
        """Bytes of the filters of 16 channels."""
        return _padded_taps(self.window, self.itemsize) * 16 * self.itemsize

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory (``separable_mma.cu``): depthwise results and stages, or what the results' way out needs."""
        tile = self.tile
        halo = round_up(self.halo * (tile.bk * self.itemsize + 16), 128)
        stage = round_up(halo + tile.bn * tile.bk * self.itemsize + self.groups * self.filter_bytes, 128)
        return max(tile.bm * tile.bk * self.itemsize + tile.stages * stage, tile.exit_bytes())

    def legal(self, device: DeviceSpec) -> bool:
        """Whether the kernel takes it."""
        tile, warps = self.tile, self.tile.threads // 32
        chunks = tile.bk * self.itemsize // 16
        return (
            tile.bm % (16 * tile.warps_m) == 0
            and tile.bn % (16 * tile.warps_n) == 0
            and chunks in (2, 4, 8)
            and warps % self.groups == 0
            and (tile.bm // 16) % (warps // self.groups) == 0
            and self.tile_y * self.tile_x <= tile.bm
            and tile.threads <= 512
            and self.registers <= min(232, 65536 // tile.threads)
            and self.shared_bytes <= device.shared_memory
            and (tile.splits == 1 or (device.capability >= 90 and tile.splits in (2, 4, 8)))
            and (device.capability >= 80 or tile.stages == 2)
        )

    @property
    def registers(self) -> int:
        """Registers a thread wants: sums of both products, fragments, offsets of the copies."""
        return self.tile.registers() + self.units * 8 + self.loads - 8

    @property
    def loads(self) -> int:
        """Pieces of 16 bytes of x that a thread copies in each stage."""
        return ceil_div(self.halo, self.tile.threads // (self.tile.bk * self.itemsize // 16))

    def blocks(self, device: DeviceSpec) -> int:
        """Resident blocks of a multiprocessor."""
        return max(1, min(device.shared_memory // self.shared_bytes, 2048 // self.tile.threads, 65536 // (self.tile.threads * round_up(self.registers, 8))))

    @property
    def units(self) -> int:
        """Pieces of 16 pixels x 16 channels that a warp computes in each stage."""
        return self.tile.bm // 16 * self.groups // (self.tile.threads // 32)

    def seconds(self, out_channels: int, device: DeviceSpec) -> float:
        """What it should take: stages of instructions and of shared memory's traffic, in waves of resident blocks.

        The constants were fitted to 192 timings of MobileNetV2's pairs on an H100 (batch 1 and 32, INT8 and FP16); the logarithm of the error has a standard
        deviation of 0.19."""
        tile, window = self.tile, self.window
        blocks = self.tiles * ceil_div(out_channels, tile.bn) * tile.splits
        busy = min(self.blocks(device), ceil_div(blocks, device.multiprocessors))  # blocks that share a multiprocessor
        waves = max(1.0, blocks / device.multiprocessors / busy)
        steps = _padded_taps(window, self.itemsize) // (2 if self.itemsize == 1 else 1)
        rows, columns, depth = tile.bm // tile.warps_m // 16, tile.bn // tile.warps_n // 8, tile.bk * self.itemsize // 32
        warps, pieces = tile.threads // 32, tile.bk * self.itemsize // 16
        issue = self.units * ((56 if self.itemsize == 1 else 40) + 4 * steps) + 6 * steps + 1.6 * rows * columns * depth + 9 * self.loads + 60
        tensor = 6.5 * (rows * columns * depth + 2 * steps * self.units)
        conflicts = _conflicts(tile.bm, self.tile_y, self.tile_x, tile.bk * self.itemsize + 16, window)
        shared = warps * (self.units * (4 * steps * conflicts + 2 * self.itemsize) + 2 * steps + (rows + columns / 2) * depth * 4)
        shared += (self.halo + tile.bn) * pieces / 8
        busiest = busy * ((3.4 * warps / 4 * issue) ** 2 + (0.86 * shared) ** 2) ** 0.5
        stages = ceil_div(window.in_channels, tile.bk * tile.splits)
        out = tile.bm * tile.bn * 0.85 + 390 if tile.splits > 1 else tile.bm * tile.bn / tile.threads * 10
        cycles = waves * (stages * max(busiest, 230 / (tile.stages - 1) + 1.9 * (issue + tensor)) + out + 740)
        return 1.5e-6 + (cycles + 0.36 * blocks / device.multiprocessors * self.halo * pieces * stages) / 1.7e9

    @property
    def tiles(self) -> int:
        """Tiles of pixels."""
        return self.window.batch * ceil_div(self.window.output[1], self.tile_y) * ceil_div(self.window.output[2], self.tile_x)


@lru_cache(maxsize=1024)
def _conflicts(rows: int, tile_y: int, tile_x: int, step: int, window: Window) -> float:
    """How many of eight neighbouring pixels (``step`` bytes apart) that one instruction reads lie in the same banks: 1 is best."""
    line = ((tile_x - 1) * window.stride[2] + (window.taps[2] - 1) * window.dilation[2] + 1) * step
    found = []
    for first in range(0, rows, 8):
        pixels = [pixel if pixel < tile_y * tile_x else 0 for pixel in range(first, first + 8)]
        banks = [(pixel // tile_x * window.stride[1] * line + pixel % tile_x * window.stride[2] * step) // 16 % 8 for pixel in pixels]
        found.append(max(map(banks.count, banks)))
    return sum(found) / len(found)


def _padded_taps(window: Window, itemsize: int) -> int:
    return round_up(prod(window.taps), 2 if itemsize == 1 else 1)


# (rows, warps over rows, warps over columns)
_WARPS = ((16, 1, 2), (16, 1, 4), (32, 2, 1), (32, 2, 2), (32, 1, 4), (64, 4, 1), (64, 2, 2), (64, 4, 2), (64, 2, 4), (128, 4, 1), (128, 8, 1), (128, 4, 2))
MOST_COLUMNS = 320  # output channels of a block


class MmaSeparable(_Separable):
    """On tensor cores."""

    id = "cuda.conv.separable.mma"

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype = workload.inputs[0].dtype
        if device.capability < 75 or (device.capability < 80 and dtype is DataType.BF16):
            return Refusal(f"tensor cores of {device.arch} do not multiply {dtype.label}")
        if dtype is DataType.FLOAT:
            return Refusal("FP32 products on tensor cores round to TF32, which a depthwise convolution does not")
        if refusal := super().supports(workload, device):
            return refusal
        return None if self.configs(workload, device) else Refusal("no tile's halo and weights fit shared memory")

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return self.ranked(workload, device)[:32]

    def ranked(self, workload: Workload, device: DeviceSpec) -> tuple[Config, ...]:
        """All legal configurations, the most promising first."""
        found = _parts(workload)
        assert isinstance(found, _Parts)
        return _ranked(found.window, found.out_channels, workload.inputs[0].dtype.itemsize, device)

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        shape, found = _shape(workload, config)
        return max(shape.seconds(found.out_channels, device), floor_seconds(workload, device))

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        shape, _ = _shape(workload, config)
        weights = constants[1]
        channels, taps = len(weights), prod(weights.shape[1:])
        filters = np.zeros((round_up(channels, shape.tile.bk), _padded_taps(shape.window, shape.itemsize)), weights.dtype)
        filters[:channels, :taps] = weights.reshape(channels, taps)
        return np.ascontiguousarray(filters.reshape(-1, 16, filters.shape[1]).swapaxes(1, 2)), pack_weights(constants[2], 1)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        shape, found = _shape(workload, config)
        tile, window, itemsize = shape.tile, shape.window, shape.itemsize
        step = pixel_step(parts(workload)[0], window)
        own = tile_defines(tile) | {
            "TILE_Y": shape.tile_y, "TILE_X": shape.tile_x, "VEC_X": vector_bytes(itemsize, window.in_channels, step), "VEC_D": 4 if window.in_channels % 4 == 0 else 1,
            "VEC_C": vector_columns(found.out_channels), "B_CONSTANT": 1, "PDL": 1 if pdl(device) else None, "MIN_BLOCKS": shape.blocks(device),
        }  # fmt: skip
        grid = (shape.tiles * ceil_div(found.out_channels, tile.bn), tile.splits, 1)
        split = round_up(ceil_div(window.in_channels, tile.splits), tile.bk)
        w_row = round_up(window.in_channels, 16 // itemsize)
        arguments = (*window.input[1:], step, *window.output[1:], *window.pad[1:], window.in_channels, found.out_channels, w_row, split)
        return self._launch(workload, "separable_mma", grid, tile.threads, shape.shared_bytes, (Buffer("packed", 0), Buffer("packed", 1)), arguments, **own)


@lru_cache(maxsize=256)
def _ranked(window: Window, out_channels: int, itemsize: int, device: DeviceSpec) -> tuple[Config, ...]:
    shapes: dict[_Shape, float] = {}
    whole = ceil_div(out_channels, MOST_COLUMNS)
    for rows, warps_m, warps_n in _WARPS:
        bn = round_up(ceil_div(out_channels, whole), 16 * warps_n)
        for depth, stages, splits in product((32, 64, 128), (2, 3, 4) if device.capability >= 80 else (2,), (1, 2, 4, 8)):
            if splits > 1 and window.in_channels < splits * depth // itemsize:
                continue
            tile = Tile(rows, bn, depth // itemsize, warps_m, warps_n, 1, stages, splits, 1 if splits > 1 else 0)
            for tile_y, tile_x in _pixels(window, rows):
                shape = _Shape(tile, tile_y, tile_x, window, itemsize)
                if shape.legal(device):
                    shapes[shape] = shape.seconds(out_channels, device)
    kinds: Counter[tuple[int, int, int]] = Counter()
    order: dict[_Shape, float] = {}
    for shape in sorted(shapes, key=lambda one: (shapes[one], _config(one))):
        kind = (shape.tile.bm, shape.tile.bk, shape.tile.splits)
        order[shape] = shapes[shape] * (1 + 0.05 * kinds[kind])  # of each kind of tile the best before many of one
        kinds[kind] += 1
    return tuple(_config(shape) for shape in sorted(order, key=lambda one: (order[one], _config(one))))


def _config(shape: _Shape) -> Config:
    return config(**shape.tile.__dict__, tile_y=shape.tile_y, tile_x=shape.tile_x)


def _shape(workload: Workload, chosen: Config) -> tuple[_Shape, _Parts]:
    found = _parts(workload)
    assert isinstance(found, _Parts)
    values = dict(chosen)
    tile_y, tile_x = values.pop("tile_y"), values.pop("tile_x")
    return _Shape(Tile(**values), tile_y, tile_x, found.window, workload.inputs[0].dtype.itemsize), found


@lru_cache(maxsize=1024)
def _pixels(window: Window, rows: int) -> list[tuple[int, int]]:
    """Tiles of at most ``rows`` pixels, those first that need the fewest rows and the smallest halo; two at most."""
    height, width = window.output[1:]

    def cost(tile: tuple[int, int]) -> float:
        tiles = prod(ceil(size / side) for size, side in zip((height, width), tile, strict=True))
        halo = prod((side - 1) * stride + taps for side, stride, taps in zip(tile, window.stride[1:], window.taps[1:], strict=True))
        return tiles * (rows + 0.5 * halo)

    found = {(min(y, rows // x), x) for x in (1, 2, 4, 7, 8, 14, 16, gcd(width, 64)) if x <= rows for y in (1, 2, 4, 7, 8, 14, 16, rows)}
    return sorted(found, key=lambda tile: (cost(tile), tile))[:2]


TACTICS = (SimtSeparable(), MmaSeparable())
