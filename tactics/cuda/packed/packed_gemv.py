"""One to eight rows times packed weights (``packed_gemv.cu``): bound by reading the weights once, at their packed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion.ops import PackedMatrixMultiply
from tactics.cuda.gemm.common import C_TYPES, ceil_div, defines, pdl, round_up
from tactics.cuda.packed.common import finished, kernel_block, kernel_weights, refused, shape_of
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

MOST_ROWS = 8


class PackedGemv(Tactic):
    """``warps`` warps share the depth of 16 columns, each with ``unroll`` groups of 64 in flight."""

    id = "cuda.packed.gemv"
    device = "cuda"
    ops = (PackedMatrixMultiply,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refused(workload, device):
            return refusal
        m, _, k = shape_of(workload)
        if m > MOST_ROWS:
            return Refusal(f"{m} rows; this kernel takes 1 to {MOST_ROWS}")
        return Refusal(f"a depth of {k} is no multiple of 8") if k % 8 else None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        op, (_, n, k) = workload.op, shape_of(workload)
        assert isinstance(op, PackedMatrixMultiply)
        groups, blocks = ceil_div(k, 64), ceil_div(n, 16)
        wanted = 16 * device.multiprocessors  # warps that saturate the memory

        def distance(one: tuple[int, int]) -> float:
            warps, unroll = one
            idle = 1 - groups / (round_up(groups, warps * unroll))
            return abs(float(np.log2(blocks * warps / wanted))) + idle + abs(float(np.log2(unroll * op.bits / 16)))

        found = [(warps, unroll) for warps in (2, 4, 8, 16) for unroll in (1, 2, 4, 8) if unroll * op.bits <= 32]
        return [_configuration(warps, unroll) for warps, unroll in sorted(found, key=distance)]

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        op, chosen = workload.op, dict(config)
        assert isinstance(op, PackedMatrixMultiply)
        warps, unroll = chosen["warps"], chosen["unroll"]
        found = ((warps * 2, unroll), (warps // 2, unroll), (warps, unroll + 1), (warps, unroll - 1), (warps + 2, unroll))
        return [_configuration(w, u) for w, u in found if 1 <= w <= 16 and u >= 1 and u * op.bits <= 32]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return 1.5e-6 + floor_seconds(workload, device) * 1.2

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        return kernel_weights(workload, constants)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (m, n, k), epilogue, chosen = workload.op, shape_of(workload), finished(workload), dict(config)
        assert isinstance(op, PackedMatrixMultiply)
        kernel = Kernel("packed/packed_gemv.cu", "packed_gemv", (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=C_TYPES[workload.outputs[0].dtype], ROWS=m if workload.is_static else MOST_ROWS, WARPS=chosen["warps"],
            UNROLL=chosen["unroll"], PACKED_BITS=op.bits, PACKED_BLOCK=kernel_block(op), PDL=1 if pdl(device) else None,
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        arguments = (
            Buffer("input", 0), Buffer("packed", 0), Buffer("packed", 1), Buffer("output"), Scalar(m), Scalar(n), Scalar(k), Scalar(round_up(n, 16)),
            epilogue.argument,
        )  # fmt: skip
        launch = Launch(kernel, (ceil_div(n, 16), 1, 1), (chosen["warps"] * 32, 1, 1), arguments, dependent=pdl(device))
        return Plan((launch,))


def _configuration(warps: int, unroll: int) -> Config:
    return config(warps=warps, unroll=unroll)


TACTICS = (PackedGemv(),)
