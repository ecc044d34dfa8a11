"""Deconvolution on Hopper whose windows do not overlap (stride = window, as in U-Net's up-sampling): one product for every phase of its stride
(``gemm_sm90.cu`` with ROWS_APART), channels last."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

import numpy as np

from fusion.ops import Deconvolution
from tactics.cuda.conv.common import Window, activations, pack_phases, window_of
from tactics.cuda.epilogue import overwritable
from tactics.cuda.gemm.common import Epilogue, epilogue_of, fixed, refuse_epilogue, refuse_types
from tactics.cuda.sm90.gemm_sm90 import Apart, Product, gemm_launch
from tactics.cuda.sm90.tile_sm90 import (
    TYPES,
    Problem,
    Tiled,
    permute_rows,
    refused,
    tile_of,
)
from tactics.tactic import Buffer, Config, DeviceSpec, Plan, Refusal, Workload, workload_bytes


class Sm90Deconvolution(Tiled):
    """Input pixels x output channels in tiles, for each phase (place in its window) of the output's pixels."""

    id = "cuda.deconv.sm90"
    device = "cuda"
    ops = (Deconvolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, TYPES) or refused(device, workload.inputs[0].dtype, workload.tf32):
            return refusal
        if not workload.is_constant(1):
            return Refusal("the weights are not constant; they are repacked at build")
        window = window_of(workload)
        if isinstance(window, Refusal):
            return window
        return _illegal_window(window, workload) or refuse_epilogue(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(workload)

    def problem(self, workload: Workload) -> Problem:
        return _problem(workload)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        phases = pack_phases(constants[1], _window(workload))
        return (np.stack([permute_rows(rows) for rows in phases]) if tile_of(config).direct else phases,)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, epilogue = _window(workload), epilogue_of(workload)
        assert isinstance(epilogue, Epilogue)
        _, stride_y, stride_x = window.stride
        product = Product(_pixels(window), window.out_channels, window.in_channels, stride_y * stride_x, True, False, False, False, True)
        apart = Apart(window.input[2], stride_y, stride_x)
        launch = gemm_launch(workload, device, tile_of(config), product, epilogue, Buffer("packed", 0), window.out_channels, True, apart)
        return Plan((launch,), in_place=overwritable(workload))


def _window(workload: Workload) -> Window:
    window = window_of(workload)
    assert isinstance(window, Window)
    return window


def _pixels(window: Window) -> int:
    return window.batch * prod(window.input)


def _problem(workload: Workload) -> Problem:
    window = _window(workload)
    return Problem(_pixels(window), window.out_channels, prod(window.stride), 1, window.in_channels, workload.inputs[0].dtype,
                   workload_bytes(workload), permutable=True)  # fmt: skip


def _illegal_window(window: Window, workload: Workload) -> Refusal | None:
    itemsize = workload.inputs[0].dtype.itemsize
    if window.groups != 1:
        return Refusal(f"{window.groups} groups; this kernel takes one")
    if window.stride[0] != 1 or window.taps[0] != 1:
        return Refusal("windows along three dimensions; this kernel takes two")
    if window.dilation != (1, 1, 1):
        return Refusal(f"windows dilated by {window.dilation[1:]}; this kernel takes taps that lie side by side")
    whole = all(size * stride == out for size, stride, out in zip(window.input, window.stride, window.output, strict=True))
    if window.taps != window.stride or any(window.pad) or not whole:
        return Refusal(f"windows of {window.taps[1:]} at strides of {window.stride[1:]} overlap, or are cut off; this kernel takes those side by side")
    if fixed(workload, 0, -1) == 1 or window.in_channels * itemsize % 16:
        return Refusal(f"{window.in_channels} input channels; TMA strides want a multiple of {16 // itemsize} (that does not vary)")
    if not _pixels(window) * window.out_channels:
        return Refusal("an empty output")
    if _pixels(window) * prod(window.stride) >= 2**31:
        return Refusal("2^31 output pixels or more")
    return None


TACTICS = (Sm90Deconvolution(),)
