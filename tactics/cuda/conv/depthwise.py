"""Depthwise convolution, channels last (``depthwise.cu``): memory-bound, any GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd

import numpy as np

from fusion.ops import Convolution
from tactics.cuda.conv.common import Window, window_of
from tactics.cuda.gemm.common import C_TYPES, Epilogue, ceil_div, defines, epilogue_of, fixed, pdl, refuse_types
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Launch, Plan, Refusal, Scalar, Tactic, Workload, config, floor_seconds

MOST_TAPS = 81  # the window is unrolled


def _registers(window: Window, tile_y: int, tile_x: int, vector: int, itemsize: int) -> int:
    span = (tile_x - 1) * window.stride[2] + (window.taps[2] - 1) * window.dilation[2] + 1
    return tile_y * tile_x * vector + 2 * span * vector * itemsize // 4 + vector * 2 + 32


class Depthwise(Tactic):
    """Each thread computes ``tile_y`` x ``tile_x`` pixels of ``vector`` neighbouring channels."""

    id = "cuda.conv.depthwise"
    device = "cuda"
    ops = (Convolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, tuple(C_TYPES)):
            return refusal
        window = window_of(workload)
        if isinstance(window, Refusal):
            return window
        if not (window.groups == window.in_channels == window.out_channels):
            return Refusal(f"{window.groups} groups of {window.in_channels} channels: not a depthwise convolution with one filter a channel")
        if not (len(workload.constant) > 1 and workload.constant[1]):
            return Refusal("the weights are not constant; they are repacked at build")
        if (window.input[0], window.output[0], window.taps[0]) != (1, 1, 1) or workload.op.stride[:-2] not in ((), (1,)):  # type: ignore[attr-defined]
            return Refusal("three spatial dimensions; this kernel takes two")
        if window.taps[1] * window.taps[2] > MOST_TAPS:
            return Refusal(f"a window of {window.taps[1]}x{window.taps[2]}; this kernel unrolls up to {MOST_TAPS} taps")
        if window.pixels * window.in_channels == 0 or window.pixels * window.in_channels >= 2**31:
            return Refusal(f"{window.pixels} output pixels of {window.in_channels} channels")
        epilogue = epilogue_of(workload)
        return epilogue if isinstance(epilogue, Refusal) else None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        window = window_of(workload)
        assert isinstance(window, Window)
        itemsize = workload.inputs[0].dtype.itemsize
        widest = gcd(16 // itemsize, fixed(workload, 0, -1))
        found = []
        for vector in {widest, max(1, widest // 2)}:
            for tile_y in (1, 2, 4):
                for tile_x in (1, 2, 4):
                    if (tile_y > 1 and window.output[1] == 1) or _registers(window, tile_y, tile_x, vector, itemsize) > 200:
                        continue
                    if tile_y * tile_x * window.taps[1] * window.taps[2] * vector > 2500:  # unrolled code
                        continue
                    found.append(config(vector=vector, tile_y=tile_y, tile_x=tile_x))
        return sorted(found, key=lambda one: (self.estimate(workload, one, device), one))

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        window, chosen = window_of(workload), dict(config)
        assert isinstance(window, Window)
        itemsize = workload.inputs[0].dtype.itemsize
        span_y = (chosen["tile_y"] - 1) * window.stride[1] + (window.taps[1] - 1) * window.dilation[1] + 1
        span_x = (chosen["tile_x"] - 1) * window.stride[2] + (window.taps[2] - 1) * window.dilation[2] + 1
        tiles = window.batch * ceil_div(window.output[1], chosen["tile_y"]) * ceil_div(window.output[2], chosen["tile_x"])
        loads = tiles * window.in_channels * (span_y * span_x + window.taps[1] * window.taps[2] * chosen["tile_y"]) * itemsize
        threads = tiles * window.in_channels // chosen["vector"]
        registers = _registers(window, chosen["tile_y"], chosen["tile_x"], chosen["vector"], itemsize)
        resident = device.multiprocessors * min(2048, 65536 // (registers + 16))
        waves = threads / resident
        cache = loads / (5 * device.bandwidth) * (1 if chosen["vector"] * itemsize >= 8 else 2)
        return 1.5e-6 + max(floor_seconds(workload, device) * 1.2, cache) * (1 + 0.5 / max(waves, 0.5) if waves > 1 else 1.5)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        weights = constants[1]  # [C, 1, *taps] -> [taps, C]
        return (np.ascontiguousarray(weights.reshape(weights.shape[0], -1).T),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, chosen = window_of(workload), dict(config)
        epilogue = epilogue_of(workload)
        assert isinstance(window, Window) and isinstance(epilogue, Epilogue)
        registers = _registers(window, chosen["tile_y"], chosen["tile_x"], chosen["vector"], workload.inputs[0].dtype.itemsize)
        kernel = Kernel("conv/depthwise.cu", "depthwise", (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=C_TYPES[workload.outputs[0].dtype], VECTOR=chosen["vector"],
            TILE_Y=chosen["tile_y"], TILE_X=chosen["tile_x"], TAPS_Y=window.taps[1], TAPS_X=window.taps[2], STRIDE_Y=window.stride[1],
            STRIDE_X=window.stride[2], DILATION_Y=window.dilation[1], DILATION_X=window.dilation[2], PDL=1 if pdl(device) else None,
            MIN_BLOCKS=max(1, min(4, 65536 // 256 // (registers + 24))),
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        threads = (window.batch * ceil_div(window.output[1], chosen["tile_y"]) * ceil_div(window.output[2], chosen["tile_x"])
                   * (window.in_channels // chosen["vector"]))  # fmt: skip
        arguments = (
            Buffer("input", 0), Buffer("packed", 0), Buffer("output"),
            *map(Scalar, (window.batch, *window.input[1:], *window.output[1:], window.in_channels, *window.pad[1:])), epilogue.argument,
        )  # fmt: skip
        return Plan((Launch(kernel, (ceil_div(threads, 256), 1, 1), (256, 1, 1), arguments, dependent=pdl(device)),))


TACTICS = (Depthwise(),)
