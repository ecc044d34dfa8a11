"""Depthwise convolution, channels last (``depthwise.cu``): memory-bound, any GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, prod

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Convolution
from fusion.quantization import on_float_sums
from tactics.cuda.conv.common import Window, activations, window_of
from tactics.cuda.epilogue import epilogue_argument, finish_code, overwritable
from tactics.cuda.gemm.common import (
    C_TYPES,
    EIGHT_BIT_TYPES,
    STORED_TYPES,
    Epilogue,
    ceil_div,
    defines,
    epilogue_of,
    pdl,
    refuse_types,
    round_up,
)
from tactics.cuda.simple import out_pitch, x_pitch
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
    floor_seconds,
)

MOST_TAPS = 81  # the window is unrolled
MOST_COLUMNS = 32  # a bit mask says which input columns exist
BLOCK = 128
HELD_WEIGHTS = 72  # registers


@dataclass(frozen=True)
class _Tile:
    """One configuration for one window: its spans of input, and what a thread spends."""

    window: Window
    itemsize: int
    vector: int
    tile_y: int
    tile_x: int
    ahead: int = 1

    @property
    def span(self) -> tuple[int, int]:
        """Input rows and columns of a tile."""
        y, x = (
            (tile - 1) * stride + (taps - 1) * dilation + 1
            for tile, stride, taps, dilation in zip(
                (self.tile_y, self.tile_x), self.window.stride[1:], self.window.taps[1:], self.window.dilation[1:], strict=True
            )
        )
        return y, x

    @property
    def taps(self) -> int:
        """Products of one output."""
        return self.window.taps[1] * self.window.taps[2]

    @property
    def hold(self) -> bool:
        """Whether the weights stay in registers."""
        return self.taps * self.vector <= HELD_WEIGHTS

    @property
    def registers(self) -> int:
        """Registers a thread wants (within 10 % of what ptxas reports)."""
        reach = (self.window.taps[1] - 1) * self.window.dilation[1] + 1
        rows = min(self.tile_y, ceil_div(reach, self.window.stride[1]))  # of unfinished sums
        words = self.ahead * self.span[1] * max(1, self.vector * self.itemsize // 4)
        weights = (self.taps if self.hold else 2 * self.window.taps[2]) * self.vector
        return rows * self.tile_x * self.vector + self.span[1] * self.vector + words + weights + (28 if self.hold else 76)

    @property
    def blocks(self) -> int:
        """Resident blocks of a multiprocessor."""
        return max(1, min(16, 65536 // (BLOCK * round_up(self.registers, 8))))

    @property
    def threads(self) -> int:
        """Threads of the whole grid."""
        window = self.window
        tiles = window.batch * ceil_div(window.output[1], self.tile_y) * ceil_div(window.output[2], self.tile_x)
        return tiles * (window.in_channels // self.vector)

    @property
    def instructions(self) -> float:
        """Instructions of a thread, counted in SASS for 3x3 to 7x7 windows."""
        outputs, (rows, columns) = self.tile_y * self.tile_x, self.span
        weights = self.taps * (1 if self.hold else max(1, self.tile_y // 2)) * max(1, self.vector / 4)
        return outputs * self.vector * (self.taps + 2.75) + rows * (columns * (self.vector + 1.5) + 6) + weights + 2 * outputs + 90


def _tile(window: Window, itemsize: int, chosen: Config) -> _Tile:
    return _Tile(window, itemsize, **dict(chosen))


class Depthwise(Tactic):
    """Each thread computes ``tile_y`` x ``tile_x`` pixels of ``vector`` neighbouring channels."""

    id = "cuda.conv.depthwise"
    device = "cuda"
    ops = (Convolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, (*C_TYPES, *EIGHT_BIT_TYPES)):
            return refusal
        window = window_of(workload)
        if isinstance(window, Refusal):
            return window
        if not (window.groups == window.in_channels == window.out_channels):
            return Refusal(f"{window.groups} groups of {window.in_channels} channels: not a depthwise convolution with one filter a channel")
        if not workload.is_constant(1):
            return Refusal("the weights are not constant; they are repacked at build")
        if (window.input[0], window.output[0], window.taps[0]) != (1, 1, 1) or workload.op.stride[:-2] not in ((), (1,)):  # type: ignore[attr-defined]
            return Refusal("three spatial dimensions; this kernel takes two")
        if window.taps[1] * window.taps[2] > MOST_TAPS:
            return Refusal(f"a window of {window.taps[1]}x{window.taps[2]}; this kernel unrolls up to {MOST_TAPS} taps")
        if (window.taps[2] - 1) * window.dilation[2] + 1 > MOST_COLUMNS:
            return Refusal(f"{window.taps[2]} columns {window.dilation[2]} apart; this kernel takes up to {MOST_COLUMNS} input columns")
        if window.pixels * window.in_channels == 0 or max(window.pixels, window.batch * prod(window.input)) * window.in_channels >= 2**31:
            return Refusal(f"{window.pixels} output pixels of {window.in_channels} channels")
        if workload.axis_varies(0, -1):
            return Refusal("the number of channels may vary; it is compiled into this kernel")
        epilogue = _epilogue(workload)
        return epilogue if isinstance(epilogue, Refusal) else None

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        window = window_of(workload)
        assert isinstance(window, Window)
        itemsize = workload.inputs[0].dtype.itemsize
        widest = gcd(16 // itemsize, window.in_channels)
        found = []
        for vector in (one for one in (8, 4, 2, 1) if widest % one == 0 and one >= min(2, widest)):
            for tile_y in (1, 2, 4, 7) if window.output[1] > 1 or workload.axis_varies(len(workload.inputs), 1) else (1,):
                for tile_x in (1, 2, 4, 7):
                    tile = _Tile(window, itemsize, vector, tile_y, tile_x)
                    # Enough rows in flight that a multiprocessor waits for 32 KB at a time.
                    resident = min(tile.blocks * BLOCK, ceil_div(tile.threads, device.multiprocessors))
                    wanted = ceil_div(32768, max(1, resident * tile.span[1] * vector * itemsize))
                    if not workload.is_static:
                        wanted = 2
                    tile = _Tile(window, itemsize, vector, tile_y, tile_x, max(1, min(wanted, 3, tile.span[0])))
                    if tile.span[1] > MOST_COLUMNS or tile.registers > 216 or tile_y * tile_x * tile.taps * vector > 3200:  # unrolled code
                        continue
                    found.append(config(vector=vector, tile_y=tile_y, tile_x=tile_x, ahead=tile.ahead))
        if not found:
            found.append(config(vector=1, tile_y=1, tile_x=1, ahead=1))
        return sorted(found, key=lambda one: (self.estimate(workload, one, device), one))

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        window = window_of(workload)
        assert isinstance(window, Window)
        tile = _tile(window, workload.inputs[0].dtype.itemsize, config)
        resident = tile.blocks * BLOCK
        waves = tile.threads / (resident * device.multiprocessors)
        per_sm = min(resident, tile.threads / device.multiprocessors)
        share = min(0.8, 0.4 + per_sm / 2560)  # of the issue slots that so many threads fill
        issue = tile.threads * tile.instructions / (device.multiprocessors * 128 * 1.7e9 * share)
        if waves > 1:
            issue *= ceil(waves) / waves if waves < 4 else 1 + 0.3 / waves
        latency = max(1.0, waves) * (8e-7 + 5e-7 * tile.span[0] / tile.ahead)
        parts = (floor_seconds(workload, device), issue, latency)
        return 1.5e-6 + sum(part**3 for part in parts) ** (1 / 3)  # the largest, and a little of the others

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        weights = constants[1]  # [C, 1, *taps] -> [taps, C], in fp32 so that the kernel converts nothing
        return (np.ascontiguousarray(weights.reshape(weights.shape[0], -1).T.astype(np.float32)),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, epilogue = window_of(workload), _epilogue(workload)
        assert isinstance(window, Window) and isinstance(epilogue, Epilogue)
        tile = _tile(window, workload.inputs[0].dtype.itemsize, config)
        kernel = Kernel("conv/depthwise.cu", "depthwise", (*defines(
            IN_T=STORED_TYPES[workload.inputs[0].dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], CHANNELS=window.in_channels,
            VECTOR=tile.vector, TILE_Y=tile.tile_y, TILE_X=tile.tile_x, AHEAD=tile.ahead, HOLD=tile.hold, TAPS_Y=window.taps[1],
            TAPS_X=window.taps[2], STRIDE_Y=window.stride[1], STRIDE_X=window.stride[2], DILATION_Y=window.dilation[1],
            DILATION_X=window.dilation[2], PDL=1 if pdl(device) else None, BLOCK=BLOCK, MIN_BLOCKS=tile.blocks,
            **x_pitch(workload), **out_pitch(workload),
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        arguments: tuple[Argument, ...] = (
            Buffer("input", 0), Buffer("packed", 0), Buffer("output"),
            *map(Scalar, (window.batch, *window.input[1:], *window.output[1:], *window.pad[1:])), epilogue.argument,
        )  # fmt: skip
        return Plan((Launch(kernel, (ceil_div(tile.threads, BLOCK), 1, 1), (BLOCK, 1, 1), arguments, dependent=pdl(device)),), in_place=overwritable(workload))


def _epilogue(workload: Workload) -> Epilogue | Refusal:
    """The epilogue, on float32 sums: they hold those of 8-bit integers exactly."""
    dtype = workload.inputs[0].dtype
    if dtype.is_float:
        return epilogue_of(workload)
    op = workload.op
    assert isinstance(op, Convolution)
    code = finish_code(replace(workload, op=replace(op, epilogue=on_float_sums(op.epilogue))), DataType.FLOAT)
    return code if isinstance(code, Refusal) else Epilogue(code.prelude, code.defines, epilogue_argument(code))


TACTICS = (Depthwise(),)
