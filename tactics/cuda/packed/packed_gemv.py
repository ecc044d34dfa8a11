"""One to sixteen rows times packed weights (``gemm/stream.cu``): bound by reading the weights once, at their packed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion.ops import PackedMatrixMultiply
from tactics.cuda.gemm import stream
from tactics.cuda.gemm.common import defines
from tactics.cuda.gemm.stream import MOST_ROWS, stream_of
from tactics.cuda.packed.common import finished, kernel_block, refused, shape_of, streamed_weights
from tactics.tactic import Buffer, Config, DeviceSpec, Plan, Refusal, Tactic, Workload, floor_seconds


class PackedGemv(Tactic):
    """Packed weights as fragments of ``mma``, each lane's own bytes in a ring of its own; the scale of a block goes to the sum over it."""

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
        return stream.configurations(workload, *shape_of(workload), *_packing(workload), device)

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        return stream.neighbours(config, shape_of(workload)[1], *_packing(workload), device)

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return stream.estimate(stream_of(config), *shape_of(workload), *_packing(workload), floor_seconds(workload, device), device)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        return streamed_weights(workload, constants)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        bits, block = _packing(workload)
        return stream.plan(
            workload, stream_of(config), shape_of(workload), bits, block, finished(workload), Buffer("packed", 1), device, defines(PACKED_BLOCK=block)
        )


def _packing(workload: Workload) -> tuple[int, int]:
    """(bits, how much of the depth shares a scale)."""
    op = workload.op
    assert isinstance(op, PackedMatrixMultiply)
    block = kernel_block(op)
    assert block is not None
    return op.bits, block


TACTICS = (PackedGemv(),)
