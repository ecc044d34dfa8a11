"""Patch embedding on Hopper: a convolution of an image in planes whose windows lie side by side (stride = window). The patches become rows, the rows
are multiplied (``gemm_sm90.cu``): two kernels, which together are faster than gathering runs of a few pixels for every tile of output channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fusion.network import TensorType
from fusion.ops import Convolution, Shuffle
from tactics.cuda.conv.common import Window, activations, reads_planes, window_of
from tactics.cuda.epilogue import adds_rows, overwritable
from tactics.cuda.gemm.common import Epilogue, epilogue_of, refuse_types, workspace
from tactics.cuda.shuffle.shuffle import passes
from tactics.cuda.shuffle.strides import copy_choices, copy_launch, widest_vector
from tactics.cuda.sm90.gemm_sm90 import Product, gemm_launch
from tactics.cuda.sm90.tile_sm90 import TYPES, Problem, candidates, estimate, neighbours, permute_rows, refused, tile_of
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Launch,
    Plan,
    Refusal,
    Tactic,
    Workload,
    tensor_bytes,
    workload_bytes,
)


class Sm90Patches(Tactic):
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
        if refusal := _illegal_window(window, workload):
            return refusal
        epilogue = epilogue_of(workload)
        return epilogue if isinstance(epilogue, Refusal) else None

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [tile.config() for tile in candidates(_problem(workload), device)]

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        return [tile.config() for tile in neighbours(tile_of(config), _problem(workload))]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        copied = 2 * tensor_bytes(workload.inputs[0]) / device.bandwidth
        return estimate(tile_of(config), _problem(workload), device) + copied

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        rows = np.ascontiguousarray(constants[1].reshape(len(constants[1]), -1))  # channel, y, x: as the patches are copied
        return (permute_rows(rows) if tile_of(config).direct else rows,)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, epilogue = _window(workload), epilogue_of(workload)
        assert isinstance(epilogue, Epilogue)
        product = Product(window.pixels, window.out_channels, window.depth, 1, True, True, False, False, True)
        launch = gemm_launch(workload, device, tile_of(config), product, epilogue, Buffer("packed", 0), window.out_channels, True, a=workspace())
        return Plan((_copy(workload, window, device), launch), tensor_bytes(workload.inputs[0]), overwritable(workload))


def _window(workload: Workload) -> Window:
    window = window_of(workload, planes=True)
    assert isinstance(window, Window)
    return window


def _problem(workload: Workload) -> Problem:
    window = _window(workload)
    return Problem(window.pixels, window.out_channels, 1, 1, window.depth, workload.inputs[0].dtype, workload_bytes(workload), permutable=True,
                   adds_rows=adds_rows(workload))  # fmt: skip


def _copy(workload: Workload, window: Window, device: DeviceSpec) -> Launch:
    """The launch that writes patch after patch to the workspace: [pixels][channel, y, x]."""
    kind, (_, high, wide), (_, lines, columns) = workload.inputs[0], window.taps, window.output
    op = Shuffle(reshape=(window.batch, window.in_channels, lines, high, columns, wide), second=(0, 2, 4, 1, 3, 5))
    varies = ((workload.axis_varies(0, 0), False, False, False), (workload.axis_varies(0, 0), *(False,) * 5)) if workload.varies else ()
    rows = TensorType(kind.dtype, op.infer((kind,))[0].shape)
    (axes,) = passes(Workload(op, (kind,), (rows,), (False,), varies))
    size = kind.dtype.itemsize
    vector, items = copy_choices(widest_vector(axes, size), window.pixels * window.depth, device)[0]
    return copy_launch(axes, size, vector, items, device, source=Buffer("input"), target=workspace())


def _illegal_window(window: Window, workload: Workload) -> Refusal | None:
    itemsize = workload.inputs[0].dtype.itemsize
    if len(workload.inputs[0].shape) != 4 or window.groups != 1:
        return Refusal(f"{len(workload.inputs[0].shape) - 2} spatial dimensions and {window.groups} groups; this kernel takes two, and one")
    if any(workload.axis_varies(0, axis) for axis in (1, 2, 3)):
        return Refusal("the image's size may vary")
    whole = all(out * stride == size for out, stride, size in zip(window.output, window.stride, window.input, strict=True))
    if window.taps != window.stride or any(window.pad) or window.dilation != (1, 1, 1) or not whole:
        return Refusal(f"windows of {window.taps[1:]} at strides of {window.stride[1:]} overlap, or do not fill the image; this kernel takes those side by side")
    if window.depth * itemsize % 16:
        return Refusal(f"patches of {window.depth} values; TMA strides want a multiple of {16 // itemsize}")
    if not window.pixels * window.out_channels:
        return Refusal("an empty output")
    if window.pixels * window.depth >= 2**31:
        return Refusal("2^31 pixels or more")
    return None


TACTICS = (Sm90Patches(),)
