"""Depthwise convolution with stride 1 and a large window on tensor cores (``depthwise_mma.cu``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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

CHANNELS = 16  # of a block
COLUMNS = 16  # outputs, and inputs, of one mma
THREADS = 128
MOST_TAPS_X, MOST_TAPS_Y = 9, 9
LEAST_TAPS = 25  # below, ``cuda.conv.depthwise`` is faster (H100, 3x3)


class DepthwiseMma(Tactic):
    """Eight strips (``bands`` of an image, in 8 / ``bands`` images) of ``rows`` rows a block."""

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
        found = [config(bands=bands, rows=rows) for bands in (1, 2, 4, 8) for rows in (1, 3, 5, 7)
                 if _shared_bytes(window, bands, rows) <= min(device.shared_memory, 112 * 1024) and _registers(window) <= 255]  # fmt: skip
        return sorted(found, key=lambda one: (self.estimate(workload, one, device), one))

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        window, chosen = window_of(workload), dict(config)
        assert isinstance(window, Window)
        bands, rows = chosen["bands"], chosen["rows"]
        waves = ceil_div(_blocks(window, bands, rows), device.multiprocessors * _resident(window, bands, rows, device))
        turn = 3.6e-7 + 2.6e-8 * window.taps[1]  # as long with fewer blocks beside it; 40 timings of 5x5 and 7x7 (H100): 5 % on average
        return 1.5e-6 + floor_seconds(workload, device) / 0.84 + waves * (1.1e-6 + 4e-7 / bands + rows * turn)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        weights = constants[1]  # [C, 1, y, x] -> [C, padded][y][x + 1] pairs of neighbours
        c, (y, x) = weights.shape[0], (1, *weights.shape[2:])[-2:]
        wide = np.zeros((round_up(c, CHANNELS), y, x + 2), weights.dtype)
        wide[:c, :, 1:-1] = weights.reshape(c, y, x)
        return (np.ascontiguousarray(np.stack([wide[..., :-1], wide[..., 1:]], -1)),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, epilogue, chosen = window_of(workload), epilogue_of(workload), dict(config)
        assert isinstance(window, Window) and isinstance(epilogue, Epilogue)
        bands, rows = chosen["bands"], chosen["rows"]
        kernel = Kernel("conv/depthwise_mma.cu", "depthwise_mma", (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], CHANNELS=window.in_channels, BANDS=bands, ROWS=rows,
            TAPS_Y=window.taps[1], TAPS_X=window.taps[2], PDL=1 if pdl(device) else None, MIN_BLOCKS=_resident(window, bands, rows, device),
            **x_pitch(workload), **out_pitch(workload),
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        numbers = (window.batch, *window.input[1:], *window.output[1:], *window.pad[1:], _segments(window))
        return Plan((Launch(
            kernel, (_blocks(window, bands, rows), 1, 1), (THREADS, 1, 1), (Buffer("input", 0), Buffer("packed", 0), Buffer("output"), *map(Scalar, numbers), epilogue.argument),
            shared_memory=_shared_bytes(window, bands, rows), dependent=pdl(device),
        ),), in_place=overwritable(workload))  # fmt: skip


def _segments(window: Window) -> int:
    """Pieces of a row, each of up to 16 outputs that need up to 16 inputs (padding is none)."""
    (_, wide), (_, out), pad, step = window.input[1:], window.output[1:], window.pad[2], COLUMNS + 1 - window.taps[2]
    count, begin = 1, 0
    while not (out - begin <= COLUMNS and min(wide, out - pad + window.taps[2] - 1) - max(0, begin - pad) <= COLUMNS):
        begin = begin + step if begin else min(COLUMNS, step + pad)
        count += 1
    return count


def _blocks(window: Window, bands: int, rows: int) -> int:
    return ceil_div(window.in_channels, CHANNELS) * _segments(window) * ceil_div(window.output[1], bands * rows) * ceil_div(window.batch, 8 // bands)


def _shared_bytes(window: Window, bands: int, rows: int) -> int:
    """Inputs and results (``depthwise_mma.cu``)."""
    return (8 // bands * (bands * rows + window.taps[1] - 1) + 16) * (COLUMNS * CHANNELS * 2 + 16)


def _registers(window: Window) -> int:
    """That a thread wants: the bands, rows of inputs, sums."""
    return 20 * window.taps[1] + 16 + 44


def _resident(window: Window, bands: int, rows: int, device: DeviceSpec) -> int:
    """Blocks of a multiprocessor."""
    by_registers = 65536 // (THREADS * round_up(min(255, _registers(window)), 8))
    return max(1, min(by_registers, device.shared_memory // (_shared_bytes(window, bands, rows) + 1024)))


TACTICS = (DepthwiseMma(),)
