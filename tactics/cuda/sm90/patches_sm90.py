"""Patch embedding on Hopper: a convolution of an image in planes whose windows lie side by side (stride = window). The patches become rows, the rows
are multiplied (``gemm_sm90.cu``): two kernels, which together are faster than gathering runs of a few pixels for every tile of output channels.

The rule ``convolution-patches`` makes two layers of such a convolution, for any device and channels-last images, too. This tactic is for what the rule
leaves: patches of any length (the rule's rows would have to be whole multiples of 16 bytes, which 14x14 pixels of three channels are not), 8-bit types, and
builds without measured fusions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

import numpy as np

from fusion.ops import Convolution
from tactics.cuda.conv.common import Window, activations, reads_planes, window_of
from tactics.cuda.epilogue import adds_rows, overwritable
from tactics.cuda.gemm.common import Epilogue, epilogue_of, refuse_epilogue, refuse_types, round_up, workspace
from tactics.cuda.shuffle.strides import axes_of, copy_choices, copy_launch, row_major, widest_vector
from tactics.cuda.sm90.gemm_sm90 import Product, Rows, gemm_launch
from tactics.cuda.sm90.tile_sm90 import (
    TYPES,
    Problem,
    Tiled,
    permute_rows,
    refused,
    tile_of,
)
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Launch,
    Plan,
    Refusal,
    Workload,
    tensor_bytes,
    workload_bytes,
)


class Sm90Patches(Tiled):
    """Patches x output channels in tiles, the patches copied out of the image before."""

    id = "cuda.conv.patches_sm90"
    device = "cuda"
    ops = (Convolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, TYPES) or refused(device, workload.inputs[0].dtype, workload.tf32):
            return refusal
        if not workload.is_constant(1):
            return Refusal("the weights are not constant; they are repacked at build")
        if not reads_planes(workload):
            return Refusal("the image is channels-last: see cuda.conv.sm90")
        window = window_of(workload, planes=True)
        if isinstance(window, Refusal):
            return window
        return _illegal_window(window, workload) or refuse_epilogue(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(workload)

    def problem(self, workload: Workload) -> Problem:
        return _problem(workload)

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        copied = 2 * tensor_bytes(workload.inputs[0]) / device.bandwidth
        return super().estimate(workload, config, device) + copied

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        rows = constants[1].reshape(len(constants[1]), -1)  # channel, y, x: as the patches are copied
        rows = np.ascontiguousarray(np.pad(rows, ((0, 0), (0, _pitch(workload) - rows.shape[1]))))
        return (permute_rows(rows) if tile_of(config).direct else rows,)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, epilogue = _window(workload), epilogue_of(workload)
        assert isinstance(epilogue, Epilogue)
        pitch = _pitch(workload)
        product = Product(window.pixels, window.out_channels, pitch, 1, True, True, False, False, True)
        rows = Rows(workspace(), window.depth, pitch)
        launch = gemm_launch(workload, device, tile_of(config), product, epilogue, Buffer("packed", 0), window.out_channels, True, a=rows)
        size = window.pixels * pitch * workload.inputs[0].dtype.itemsize
        return Plan((_copy(workload, window, pitch, device), launch), size, overwritable(workload))


def _window(workload: Workload) -> Window:
    window = window_of(workload, planes=True)
    assert isinstance(window, Window)
    return window


def _pitch(workload: Workload) -> int:
    """Elements from one patch to the next: whole vectors, as TMA wants its strides."""
    return round_up(_window(workload).depth, 16 // workload.inputs[0].dtype.itemsize)


def _problem(workload: Workload) -> Problem:
    window = _window(workload)
    return Problem(window.pixels, window.out_channels, 1, 1, _pitch(workload), workload.inputs[0].dtype, workload_bytes(workload), permutable=True,
                   adds_rows=adds_rows(workload))  # fmt: skip


def _copy(workload: Workload, window: Window, pitch: int, device: DeviceSpec) -> Launch:
    """The launch that writes patch after patch to the workspace: [pixels][channel, y, x], ``pitch`` apart."""
    (_, high, wide), (_, lines, columns) = window.taps, window.output
    planes = (window.batch, window.in_channels, lines, high, columns, wide)
    varies = (workload.axis_varies(0, 0), *(False,) * 5)
    steps = row_major(planes, varies)
    order = (0, 2, 4, 1, 3, 5)
    sizes = [planes[axis] for axis in order]
    axes = axes_of(sizes, varies, [steps[axis] for axis in order], row_major(sizes, varies, pitch, window.depth), merge=workload.is_static)
    size = workload.inputs[0].dtype.itemsize
    images = 1 if varies[0] else window.batch  # one kernel for every batch
    vector, items = copy_choices(widest_vector(axes, size), images * prod(planes[1:]), device)[0]
    return copy_launch(axes, size, vector, items, device, source=Buffer("input"), target=workspace())


def _illegal_window(window: Window, workload: Workload) -> Refusal | None:
    if len(workload.inputs[0].shape) != 4 or window.groups != 1:
        return Refusal(f"{len(workload.inputs[0].shape) - 2} spatial dimensions and {window.groups} groups; this kernel takes two, and one")
    if any(workload.axis_varies(0, axis) for axis in (1, 2, 3)):
        return Refusal("the image's size may vary")
    whole = all(out * stride == size for out, stride, size in zip(window.output, window.stride, window.input, strict=True))
    if window.taps != window.stride or any(window.pad) or window.dilation != (1, 1, 1) or not whole:
        return Refusal(f"windows of {window.taps[1:]} at strides of {window.stride[1:]} overlap, or do not fill the image; this kernel takes those side by side")
    if not window.pixels * window.out_channels:
        return Refusal("an empty output")
    if window.pixels * window.depth >= 2**31:
        return Refusal("2^31 pixels or more")
    return None


TACTICS = (Sm90Patches(),)
