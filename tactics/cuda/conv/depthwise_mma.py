"""Depthwise convolution with stride 1 and a large window on tensor cores (``depthwise_mma.cu``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.dtypes import DataType
from tactics.cuda.conv.common import Window, activations, window_of
from tactics.cuda.conv.depthwise import Depthwise
from tactics.cuda.epilogue import overwritable
from tactics.cuda.gemm.common import (
    C_TYPES,
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

COLUMNS, ROWS = 16, 8  # of one mma: outputs (and inputs) of a row, and rows
CHANNELS = 16  # of a block: 4 for each of four warps, or 2 for each of eight
# Warps, groups, stages: the best of 24 on each layer (H100); the best of two images a tile took 8 to 18 % longer. Four channels a warp want more registers than there are for higher windows.
OFFERED = ((4, 1, 2), (4, 1, 3), (4, 2, 2), (8, 1, 1), (8, 1, 2), (8, 2, 1), (8, 4, 1))
MOST_TAPS_X, MOST_TAPS_Y = 9, 9
LEAST_TAPS = 25  # below, ``cuda.conv.depthwise`` is faster (H100, 3x3)


@dataclass(frozen=True)
class _Tile:
    """One configuration for one window: ``groups`` groups of ``rows`` rows of ``pack`` images side by side, ``stages`` tiles on their way."""

    window: Window
    groups: int
    rows: int
    pack: int
    warps: int
    stages: int

    @property
    def span(self) -> int:
        """Input rows of a tile of one image."""
        return self.groups * self.rows + self.window.taps[1] - 1

    @property
    def segments(self) -> int:
        """Pieces of a row, each of up to 16 outputs that need up to 16 inputs (padding is none)."""
        (_, wide), (_, out), pad, step = self.window.input[1:], self.window.output[1:], self.window.pad[2], COLUMNS + 1 - self.window.taps[2]
        count, begin = 1, 0
        while not (out - begin <= COLUMNS and min(wide, out - pad + self.window.taps[2] - 1) - max(0, begin - pad) <= COLUMNS):
            begin = begin + step if begin else min(COLUMNS, step + pad)
            count += 1
        return count

    @property
    def tiles(self) -> int:
        """Of 16 channels of one segment."""
        return ceil_div(self.window.output[1], self.groups * self.rows) * ceil_div(self.window.batch, self.pack)

    @property
    def columns(self) -> int:
        """Blocks of 16 channels of one segment."""
        return ceil_div(self.window.in_channels, CHANNELS) * self.segments

    def blocks(self, device: DeviceSpec) -> int:
        """Blocks of the grid: no more than are resident, for each keeps its filters and walks its tiles."""
        return self.columns * min(self.tiles, max(1, device.multiprocessors * self.resident(device) // self.columns))

    @property
    def shared_bytes(self) -> int:
        """Planes, results and inputs (``depthwise_mma.cu``)."""
        plane = 2 * ((self.span + ROWS - self.rows + 5) // 8 * 8 + 2) * 16
        results = round_up(self.groups * self.rows * 144, 128) + 32
        return CHANNELS // 8 * (8 * plane + 64) + CHANNELS // 4 * results + self.stages * self.span * COLUMNS * CHANNELS * 2

    def resident(self, device: DeviceSpec) -> int:
        """Blocks of a multiprocessor."""
        each = CHANNELS // self.warps
        by_registers = 65536 // (32 * self.warps * round_up(4 * each * (self.window.taps[1] + 1) + (40 if each == 4 and device.capability >= 100 else 32), 8))  # the bands and sums, and the rest
        return max(1, min(by_registers, device.shared_memory // (self.shared_bytes + 1024)))


def pitch_of(window: Window) -> int:
    """Columns from one image to the next where several lie side by side: zeros between, enough for the windows of both."""
    right = window.output[2] - window.pad[2] + window.taps[2] - 1 - window.input[2]
    return window.input[2] + max(0, window.pad[2], right)


class DepthwiseMma(Tactic):
    """Sixteen channels a block; ``groups`` times ``rows`` rows of ``pack`` images at a time."""

    id = "cuda.conv.depthwise.mma"
    device = "cuda"
    ops = Depthwise.ops

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype = workload.inputs[0].dtype
        if device.capability < 75 or (device.capability < 80 and dtype is not DataType.HALF):
            return Refusal(f"tensor cores of {device.arch} do not multiply {dtype.label}")
        if refusal := refuse_types(workload, 2, (DataType.HALF, DataType.BF16)) or Depthwise().supports(workload, device):
            return refusal
        window = window_of(workload)
        assert isinstance(window, Window)
        if workload.outputs[0].dtype.itemsize > 2:
            return Refusal(f"results of {workload.outputs[0].dtype.label}; this kernel writes 16 or 8 bits")
        if window.stride != (1, 1, 1) or window.dilation != (1, 1, 1):
            return Refusal("a stride or a dilation; this kernel takes neighbouring windows of neighbouring pixels")
        if window.taps[1] > MOST_TAPS_Y or window.taps[2] > MOST_TAPS_X or window.taps[1] * window.taps[2] < LEAST_TAPS:
            return Refusal(f"a window of {window.taps[1]}x{window.taps[2]}; this kernel takes {LEAST_TAPS} taps and more, up to {MOST_TAPS_Y}x{MOST_TAPS_X}")
        if window.pad[2] >= window.taps[2]:
            return Refusal(f"{window.pad[2]} columns of padding, a whole window of {window.taps[2]}")
        if window.in_channels % 8:
            return Refusal(f"{window.in_channels} channels; this kernel takes multiples of 8")
        return None

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        window = window_of(workload)
        assert isinstance(window, Window)
        results, height, widest = len(workload.inputs), window.output[1], max(window.input[2], window.output[2])
        narrow = not (workload.axis_varies(0, -2) or workload.axis_varies(results, -2)) and widest <= COLUMNS  # pitch and number are compiled in
        pack = 1 + (COLUMNS - widest) // pitch_of(window) if narrow else 1
        rows = ROWS if workload.axis_varies(results, 1) else ceil_div(height, ceil_div(height, ROWS))
        found = []
        for warps, groups, stages in OFFERED:
            tile = _Tile(window, groups, rows, pack, warps, stages)
            fits = tile.shared_bytes <= min(device.shared_memory, 64 * 1024)
            if fits and (groups == 1 or groups <= ceil_div(height, rows)) and (warps == 8 or window.taps[1] <= 5):
                found.append(config(groups=groups, rows=rows, pack=pack, warps=warps, stages=stages))
        return sorted(found, key=lambda one: (self.estimate(workload, one, device), one))

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        window = window_of(workload)
        assert isinstance(window, Window)
        tile = _Tile(window, **dict(config))
        blocks = tile.blocks(device)
        turns, shared = ceil_div(tile.tiles * tile.columns, blocks), ceil_div(blocks, device.multiprocessors)
        taps, groups = window.taps[1], tile.groups
        instructions = 132 + groups * (222 + 4 * taps) if tile.warps == 4 else 140 + groups * (127 + 2 * taps)  # of a warp and tile, from the counters
        issue = turns * shared * tile.warps * instructions / 4 / (1.85e9 * (0.6 if tile.warps == 4 else 0.7))
        first = blocks * tile.span * COLUMNS * CHANNELS * 2 / device.bandwidth  # inputs that come before anything is computed
        return 2.0e-6 + first + (floor_seconds(workload, device) ** 3 + issue**3) ** (1 / 3)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        weights = constants[1]  # [C, 1, y, x] -> [C / 4, padded][x + 1][y][4] pairs of neighbours
        c, (y, x) = weights.shape[0], (1, *weights.shape[2:])[-2:]
        wide = np.zeros((round_up(c, CHANNELS), y, x + 2), weights.dtype)
        wide[:c, :, 1:-1] = weights.reshape(c, y, x)
        pairs = np.stack([wide[..., :-1], wide[..., 1:]], -1).reshape(-1, 4, y, x + 1, 2)
        return (np.ascontiguousarray(pairs.transpose(0, 3, 2, 1, 4)),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, epilogue = window_of(workload), epilogue_of(workload)
        assert isinstance(window, Window) and isinstance(epilogue, Epilogue)
        tile = _Tile(window, **dict(config))
        kernel = Kernel("conv/depthwise_mma.cu", "depthwise_mma", (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], CHANNELS=window.in_channels, WARPS=tile.warps, EACH=CHANNELS // tile.warps, STAGES=tile.stages,
            GROUPS=tile.groups, ROWS=tile.rows, PACK=tile.pack, PITCH=pitch_of(window) if tile.pack > 1 else COLUMNS,
            TAPS_Y=window.taps[1], TAPS_X=window.taps[2], PDL=1 if pdl(device) else None, MIN_BLOCKS=tile.resident(device),
            **x_pitch(workload), **out_pitch(workload),
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        numbers = (window.batch, *window.input[1:], *window.output[1:], *window.pad[1:], tile.segments, -1)
        return Plan((Launch(
            kernel, (tile.blocks(device), 1, 1), (32 * tile.warps, 1, 1), (Buffer("input", 0), Buffer("packed", 0), Buffer("output"), *map(Scalar, numbers), epilogue.argument),
            shared_memory=tile.shared_bytes, dependent=pdl(device),
        ),), in_place=overwritable(workload))  # fmt: skip


TACTICS = (DepthwiseMma(),)
