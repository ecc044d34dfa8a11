"""Tensor-core (de)convolution as an implicit GEMM with mma.sync (``mma_conv.cu``), channels last: any GPU from sm_75 on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import ClassVar

import numpy as np

from fusion.network import Op
from fusion.ops import Convolution, Deconvolution, PlanarConvolution
from tactics.cuda.conv.common import (
    Window,
    activations,
    channel_alignment,
    channels_last,
    merge_columns,
    merge_groups,
    pack_phases,
    pack_weights,
    phase_depth,
    phase_taps,
    pixel_step,
    planes_as_depth,
    reads_planes,
    window_of,
    with_groups,
)  # fmt: skip
from tactics.cuda.epilogue import overwritable
from tactics.cuda.gemm import tiles
from tactics.cuda.gemm.common import (
    C_TYPES,
    EIGHT_BIT_TYPES,
    NO_OPERANDS,
    STORED_TYPES,
    Epilogue,
    ceil_div,
    defines,
    epilogue_of,
    null,
    pdl,
    refuse_tensor_cores,
    round_up,
    sum_types,
    vector_bytes,
    vector_columns,
    workspace,
)  # fmt: skip
from tactics.cuda.gemm.mma_gemm import reduction, tile_defines
from tactics.cuda.simple import out_pitch
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Launch, Plan, Refusal, Scalar, Tactic, Workload

TAP_BITS = 32


class MmaConvolution(Tactic):
    """Output pixels x output channels in tiles; a 1x1 convolution with stride 1 runs as the plain product (``mma_gemm.cu``).

    Groups of few channels are multiplied together (block-diagonal weights), an image's channel planes are read as a volume, and
    a deconvolution is one plain convolution for every phase of its stride.
    """

    id = "cuda.conv.mma"
    device = "cuda"
    ops: ClassVar[tuple[type[Op], ...]] = (Convolution, Deconvolution)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_tensor_cores(workload, device):
            return refusal
        if not workload.is_constant(1):
            return Refusal("the weights are not constant; they are repacked at build")
        window = _seen(workload)
        if isinstance(window, Refusal):
            return window
        if window.pixels * window.out_channels * window.depth == 0 or window.groups > 65535:
            return Refusal(f"an output of {window.pixels} pixels and {window.out_channels} channels in {window.groups} groups")
        if sum(_taps(window)) > TAP_BITS:
            return Refusal(f"a window of {'x'.join(map(str, window.taps))} has more than {TAP_BITS} tap coordinates")
        if window.groups * prod(_phases(window)) > 65535:
            return Refusal(f"{window.groups} groups and strides of {window.stride}: more than 65535 phases")
        if window.batch * prod(window.input) * window.in_channels >= 2**31:
            return Refusal("2^31 input elements or more; this kernel has 32-bit offsets")
        epilogue = self._epilogue(workload)
        return epilogue if isinstance(epilogue, Refusal) else None

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        window = self._window(workload)
        found = tiles.candidates(*_product(window), workload.inputs[0].dtype, False, device, _gather(workload, window))
        return [tile.config() for tile in found]

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        _, _, depth, *_ = _product(self._window(workload))
        found = tiles.neighbours(tiles.tile_of(config), depth, workload.inputs[0].dtype.itemsize, False, device)
        return [tile.config() for tile in found]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        window = self._window(workload)
        return tiles.estimate(tiles.tile_of(config), *_product(window), workload.inputs[0].dtype, device, _gather(workload, window))

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        window, weights = self._window(workload), constants[1]
        if window.transposed:
            return (pack_phases(weights, window),)
        if reads_planes(workload):
            return (pack_weights(weights[:, None], 1),)
        groups = workload.op.groups  # type: ignore[attr-defined]
        return (pack_weights(weights, groups, merge=groups // window.groups),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return self._plan(workload, config, device)

    def _plan(self, workload: Workload, config: Config, device: DeviceSpec, planes: bool = False) -> Plan:
        """``planes``: the result is stored channels-first."""
        window, tile, epilogue = self._window(workload), tiles.tile_of(config), self._epilogue(workload)
        assert isinstance(epilogue, Epilogue)
        dtype, itemsize = workload.inputs[0].dtype, workload.inputs[0].dtype.itemsize
        align_in, align_out = channel_alignment(workload, window)
        common = dict(
            OUT_T=STORED_TYPES[workload.outputs[0].dtype], VEC_C=vector_columns(align_out), PDL=1 if pdl(device) else None, **sum_types(workload), **out_pitch(workload)
        )
        shared = dict(
            **common, **tile_defines(tile), IN_T={**C_TYPES, **EIGHT_BIT_TYPES}[dtype], VEC_A=vector_bytes(itemsize, align_in, window.in_channels), B_CONSTANT=1
        )
        own, prelude = ((), "") if tile.partial else (epilogue.defines, epilogue.prelude)
        argument = NO_OPERANDS if tile.partial else epilogue.argument
        pixels, group_out, depth, many = _product(window)
        w_row = round_up(depth, 16 // itemsize)
        partial = workspace() if tile.partial else null()
        blocks = ceil_div(pixels, tile.bm) * ceil_div(group_out, tile.bn)
        split = Scalar(tiles.split_depth(tile, depth))
        if window.pointwise and not self._varies_in_space(workload) and not planes:
            kernel = Kernel("gemm/mma_gemm.cu", "mma_gemm", (*defines(**shared, B_KN=0, VEC_B=16), *own), prelude)
            arguments = (
                Buffer("input", 0), Buffer("packed", 0), Buffer("output"), partial,
                *map(Scalar, (window.pixels, window.out_channels, window.depth, pixel_step(workload, window), w_row, 1)),
                *(Scalar(0, "i64") for _ in range(4)), split, argument,
            )  # fmt: skip
        else:
            kernel = Kernel("conv/mma_conv.cu", "mma_conv", (*defines(**shared, TRANSPOSED=1 if window.transposed else None, OUT_PLANES=1 if planes else None), *own), prelude)
            arguments = (
                Buffer("input", 0), Buffer("packed", 0), Buffer("output"), partial, Scalar(pixels), *map(Scalar, window.input),
                Scalar(pixel_step(workload, window)), *map(Scalar, window.output), Scalar(window.out_channels), Scalar(window.group_in),
                Scalar(window.group_out), Scalar(w_row),
                *map(Scalar, (*window.taps, *window.stride, *window.pad, *window.dilation)), split, argument,
            )  # fmt: skip
        launch = Launch(kernel, (blocks, tile.splits, many), (tile.threads, 1, 1), arguments,
                        shared_memory=tile.shared_bytes(itemsize), dependent=pdl(device))  # fmt: skip
        if not tile.partial:
            return Plan((launch,), in_place=() if planes else overwritable(workload))
        second = reduction(common, epilogue, window.pixels, window.out_channels, tile.splits, device)
        return Plan((launch, second), tile.splits * window.pixels * window.out_channels * 4, overwritable(workload))

    @staticmethod
    def _window(workload: Workload) -> Window:
        window = _seen(workload)
        assert isinstance(window, Window)
        return window

    @staticmethod
    def _varies_in_space(workload: Workload) -> bool:
        return any(workload.axis_varies(0, axis) for axis in range(1, len(workload.inputs[0].shape)))

    @staticmethod
    def _epilogue(workload: Workload) -> Epilogue | Refusal:
        return epilogue_of(workload)


class PlanarMma(MmaConvolution):
    """The same, with the result stored as channel planes."""

    id = "cuda.conv.planes.mma"
    ops = (PlanarConvolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        inner = channels_last(workload)
        if refusal := super().supports(inner, device):
            return refusal
        if not self.configs(workload, device):
            return Refusal("every tile would share the depth through sums in memory")
        pixels = self._window(inner).pixels
        return Refusal(f"{pixels} pixels; this kernel counts to 2^31 - 1") if pixels >= 2**31 else None

    def pitched(self, workload: Workload) -> Collection[int]:
        return [number for number in super().pitched(channels_last(workload)) if number < len(workload.inputs)]

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [one for one in super().configs(channels_last(workload), device) if not tiles.tile_of(one).partial]

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        found = super().neighbours(channels_last(workload), config, device)
        return [one for one in found if not tiles.tile_of(one).partial]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return super().estimate(channels_last(workload), config, device)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        return super().prepare(channels_last(workload), config, constants)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return self._plan(channels_last(workload), config, device, planes=True)


def _seen(workload: Workload) -> Window | Refusal:
    """The window as the kernel computes it."""
    window = window_of(workload, planes=True)
    if isinstance(window, Window) and reads_planes(workload):
        window = planes_as_depth(window)
    if isinstance(window, Refusal):
        return window
    window = merge_columns(window, workload)
    return with_groups(window, window.groups // merge_groups(window, workload.inputs[0].dtype.itemsize))


def _gather(workload: Workload, window: Window) -> float:
    if window.pointwise:
        return 0.0
    align, _ = channel_alignment(workload, window)
    whole = vector_bytes(workload.inputs[0].dtype.itemsize, align, window.in_channels) == 16
    return tiles.GATHER if whole else tiles.GATHER_ELEMENTS


def _phases(window: Window) -> tuple[int, int, int]:
    return window.stride if window.transposed else (1, 1, 1)


def _taps(window: Window) -> tuple[int, ...]:
    return tuple(max(map(len, phases)) for phases in phase_taps(window)) if window.transposed else window.taps


def _product(window: Window) -> tuple[int, int, int, int]:
    """The products that the layer amounts to: rows, columns and depth of one (of the largest phase), and how many."""
    if not window.transposed:
        return window.pixels, window.group_out, window.depth, window.groups
    pixels = window.batch * prod(ceil_div(size, stride) for size, stride in zip(window.output, window.stride, strict=True))
    return pixels, window.group_out, phase_depth(window), window.groups * prod(window.stride)


TACTICS = (MmaConvolution(), PlanarMma())
