"""(De)convolution on the ordinary cores (``simt_conv.cu``): the reference of its family, any GPU, any size."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from typing import ClassVar

from fusion.network import Op
from fusion.ops import Convolution, Deconvolution, PlanarConvolution
from tactics.cuda.conv.common import Window, activations, channels_last, pixel_step, reads_planes, window_of
from tactics.cuda.epilogue import overwritable
from tactics.cuda.gemm.common import (
    REFERENCE_TYPES,
    STORED_TYPES,
    Epilogue,
    ceil_div,
    defines,
    epilogue_of,
    operand_types,
    refuse_epilogue,
    refuse_types,
)
from tactics.cuda.simple import out_pitch
from tactics.tactic import Argument, Buffer, Config, DeviceSpec, Kernel, Launch, Plan, Refusal, Scalar, Tactic, Workload

TILE = 64


class SimtConvolution(Tactic):
    """Implicit GEMM in 64 x 64 tiles; weights are read in the model's own layout."""

    id = "cuda.conv.simt"
    device = "cuda"
    ops: ClassVar[tuple[type[Op], ...]] = (Convolution, Deconvolution)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, REFERENCE_TYPES):
            return refusal
        window = window_of(workload, planes=True)
        if isinstance(window, Refusal):
            return window
        if window.pixels * window.out_channels == 0 or window.groups > 65535:
            return Refusal(f"an output of {window.pixels} pixels and {window.out_channels} channels in {window.groups} groups")
        return refuse_epilogue(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return activations(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return self._plan(workload)

    @staticmethod
    def _plan(workload: Workload, planes: bool = False) -> Plan:
        """``planes``: the result is stored channels-first."""
        window = window_of(workload, planes=True)
        epilogue = epilogue_of(workload)
        assert isinstance(window, Window) and isinstance(epilogue, Epilogue)
        kernel = Kernel("conv/simt_conv.cu", "simt_conv", (*defines(
            **operand_types(workload), OUT_T=STORED_TYPES[workload.outputs[0].dtype], TRANSPOSED=window.transposed, OUT_PLANES=1 if planes else None, **out_pitch(workload),
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        channels, (depth, height, width), taps = pixel_step(workload, window), window.input, prod(window.taps)
        x_strides = (channels * depth * height * width, channels * height * width, channels * width, channels, 1)
        if reads_planes(workload):
            x_strides = (channels * depth * height * width, height * width, width, 1, depth * height * width)
        if window.transposed:  # weights [C][O / groups][taps]
            w_strides = (window.group_in * window.group_out * taps, taps, window.group_out * taps)
        else:  # [O][C / groups][taps]
            w_strides = (window.group_out * window.group_in * taps, window.group_in * taps, taps)
        arguments: tuple[Argument, ...] = (
            Buffer("input", 0), Buffer("input", 1), Buffer("output"), Scalar(window.pixels), *map(Scalar, window.input),
            *map(Scalar, window.output), *(Scalar(stride, "i64") for stride in (*x_strides, *w_strides)), Scalar(window.out_channels),
            Scalar(window.group_in), Scalar(window.group_out),
            *map(Scalar, (*window.taps, *window.stride, *window.pad, *window.dilation)), epilogue.argument,
        )  # fmt: skip
        grid = (ceil_div(window.pixels, TILE) * ceil_div(window.group_out, TILE), 1, window.groups)
        return Plan((Launch(kernel, grid, (128, 1, 1), arguments),), in_place=() if planes else overwritable(workload))


class PlanarSimt(SimtConvolution):
    """The same, with the result stored as channel planes."""

    id = "cuda.conv.planes"
    ops = (PlanarConvolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return super().supports(channels_last(workload), device)

    def pitched(self, workload: Workload) -> Collection[int]:
        return [number for number in super().pitched(channels_last(workload)) if number < len(workload.inputs)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return self._plan(channels_last(workload), planes=True)


TACTICS = (SimtConvolution(), PlanarSimt())
