"""Convolution over few channels on Hopper whose weights stay in shared memory (``conv_window_sm90.cu``), channels last."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Convolution
from tactics.cuda.conv.common import Window, activations, pack_weights, pixel_step, window_of
from tactics.cuda.gemm.common import (
    STORED_TYPES,
    Epilogue,
    ceil_div,
    defines,
    epilogue_of,
    pdl,
    refuse_epilogue,
    refuse_types,
    round_up,
)
from tactics.cuda.simple import divider, out_pitch
from tactics.cuda.sm90.tile_sm90 import CLOCK, INGEST, LATENCY, LAUNCH, SHARED, permute_rows, refused
from tactics.tactic import (
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
    TensorMap,
    Workload,
    config,
    workload_bytes,
)

POSITIONS = 128  # of a warpgroup's tile
ROW = 128  # bytes of 64 channels


@dataclass(frozen=True)
class Patch:
    """A tile's outputs, and the patch of the image that their windows see."""

    height: int  # outputs
    width: int
    taps: tuple[int, int]

    @property
    def pitch(self) -> int:
        """Pixels of a row of the patch."""
        return self.width + self.taps[1] - 1

    @property
    def rows(self) -> int:
        """Rows of pixels."""
        return self.height + self.taps[0] - 1

    @property
    def bytes(self) -> int:
        """Shared memory of a patch of 64 channels: all pixels that any position reaches, in whole swizzle patterns."""
        return round_up((POSITIONS + (self.taps[0] - 1) * self.pitch + self.taps[1] - 1) * ROW, 1024)


def patch_of(height: int, width: int, taps: tuple[int, int]) -> Patch:
    """The tile that covers height x width outputs with the fewest tiles, of those the one that reads the fewest pixels."""
    fits = [Patch(min(height, POSITIONS // (columns + taps[1] - 1)), columns, taps) for columns in range(1, min(width, POSITIONS + 1 - taps[1]) + 1)]
    return min(fits, key=lambda one: (ceil_div(height, one.height) * ceil_div(width, one.width), one.rows * one.pitch))


def shared_bytes(patch: Patch, channels: int, bn: int, patches: int) -> int:
    """Dynamic shared memory: the weights, the patches, the barriers."""
    slabs = channels // 64
    return patch.taps[0] * patch.taps[1] * slabs * bn * ROW + patches * slabs * patch.bytes + (2 * patches + 1) * 8


class Sm90WindowConvolution(Tactic):
    """Every tap multiplies the same patch of the image, which is fetched once; for 3 x 3 windows over 64 or 128 channels."""

    id = "cuda.conv.sm90_window"
    device = "cuda"
    ops = (Convolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, (DataType.HALF, DataType.BF16)) or refused(device, workload.inputs[0].dtype, True):
            return refusal
        if not workload.is_constant(1):
            return Refusal("the weights are not constant; they are repacked at build")
        window = window_of(workload)
        if isinstance(window, Refusal):
            return window
        return _illegal(window, workload) or refuse_epilogue(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        window = _window(workload)
        found = choices(_patch(window), window.in_channels, window.out_channels)
        return sorted(found, key=lambda choice: self.estimate(workload, choice, device))

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        window, choice = _window(workload), dict(config)
        patch, slabs, bn = _patch(window), window.in_channels // 64, choice["bn"]
        blocks = device.multiprocessors // ceil_div(window.out_channels, bn)
        turns = ceil_div(_tiles(window, patch), max(1, blocks))
        arithmetic = patch.taps[0] * patch.taps[1] * slabs * 8 * max(bn / 2, 16 + bn / 4)
        writing = 300 + 2 * bn / 32 * 250
        each = max(arithmetic, slabs * patch.rows * patch.pitch * ROW / INGEST, (arithmetic + writing) / 2)
        body = (turns * each + writing + 2 * LATENCY) / CLOCK
        outside = workload_bytes(workload) / device.bandwidth + 1e-6
        return LAUNCH + max(body, outside) + 0.2 * min(body, outside)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        return (permute_rows(pack_weights(constants[1], 1, transposed=False)),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, choice, epilogue = _window(workload), dict(config), epilogue_of(workload)
        assert isinstance(epilogue, Epilogue)
        dtype, patch, bn = workload.inputs[0].dtype, _patch(window), choice["bn"]
        channels, taps, (_, height, width) = window.in_channels, patch.taps, window.input
        row, tap = pixel_step(workload, window) * dtype.itemsize, channels * dtype.itemsize
        image = TensorMap(Buffer("input", 0), dtype, (channels, width, height, window.batch), (row, row * width, row * width * height),
                          (64, patch.pitch, patch.rows, 1))  # fmt: skip
        weight = TensorMap(Buffer("packed", 0), dtype, (channels, taps[0] * taps[1], window.out_channels), (tap, tap * taps[0] * taps[1]), (64, 1, bn))
        values = defines(
            IN_T=STORED_TYPES[dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], BN=bn, VEC=8, DIRECT=1, SLABS=channels // 64,
            FILTER_H=taps[0], FILTER_W=taps[1], PATCHES=choice["patches"], EARLY=choice["early"], PDL=1 if pdl(device) else None, **out_pitch(workload),
        )  # fmt: skip
        numbers = (window.batch, *window.output[1:], window.out_channels, patch.height, patch.width, *window.pad[1:], patch.bytes)
        ranges = ceil_div(window.out_channels, bn)
        along = ceil_div(window.output[2], patch.width)  # tiles of a row
        tiles = (*divider(along * ceil_div(window.output[1], patch.height)), *divider(along))
        return Plan((Launch(
            Kernel("sm90/conv_window_sm90.cu", "convolution_window", (*values, *epilogue.defines), epilogue.prelude),
            (min(_tiles(window, patch), max(1, device.multiprocessors // ranges)), ranges, 1), (2 * 128 + 32, 1, 1),
            (image, weight, Buffer("output"), *map(Scalar, numbers), Struct(tiles), epilogue.argument),
            shared_memory=shared_bytes(patch, channels, bn, choice["patches"]), dependent=pdl(device),
        ),))  # fmt: skip


def _window(workload: Workload) -> Window:
    window = window_of(workload)
    assert isinstance(window, Window)
    return window


def _patch(window: Window) -> Patch:
    return patch_of(window.output[1], window.output[2], (window.taps[1], window.taps[2]))


def _tiles(window: Window, patch: Patch) -> int:
    return window.batch * ceil_div(window.output[1], patch.height) * ceil_div(window.output[2], patch.width)


def choices(patch: Patch, channels: int, outputs: int) -> list[Config]:
    """As many outputs at once and patches ahead as shared memory holds, and when a warpgroup's turn ends."""
    found = []
    for bn in (128, 96, 64, 32):
        fits = [patches for patches in (6, 4, 2) if outputs % bn == 0 and shared_bytes(patch, channels, bn, patches) <= SHARED]
        found += [config(bn=bn, patches=patches, early=early) for patches in fits[:1] for early in (1, 2, 0) if early < patch.taps[0] * patch.taps[1]]
    return found


def _illegal(window: Window, workload: Workload) -> Refusal | None:
    """What the kernel asks of the convolution, each condition once."""
    if window.groups != 1:
        return Refusal(f"{window.groups} groups; this kernel takes one")
    if window.input[0] != 1 or window.taps[0] != 1:
        return Refusal("windows slide along three dimensions; this kernel takes two")
    if window.taps[1] * window.taps[2] == 1 or window.stride != (1, 1, 1) or window.dilation != (1, 1, 1):
        return Refusal("this kernel takes windows of several taps with stride and dilation 1")
    if window.in_channels % 64 or window.out_channels % 32:
        return Refusal(f"{window.in_channels} input and {window.out_channels} output channels; this kernel takes multiples of 64 and 32")
    if any(workload.axis_varies(0, axis) for axis in range(1, len(workload.inputs[0].shape))):
        return Refusal("the image's size varies; the tile is cut to it")
    if not 0 < window.pixels < 2**31:
        return Refusal(f"{window.pixels} output pixels; this kernel takes 1 to 2^31")
    if max(window.taps) > 64 or not choices(_patch(window), window.in_channels, window.out_channels):
        return Refusal(f"the weights of {window.taps[1:]} taps over {window.in_channels} channels do not fit in shared memory beside the image")
    return None


TACTICS = (Sm90WindowConvolution(),)
