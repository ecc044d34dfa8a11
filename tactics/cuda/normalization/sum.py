"""Normalisation of a sum of two tensors: both read once, the sum written only where others need it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusion.dtypes import DataType
from fusion.ops import SumNormalization
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.codegen import storage_type
from tactics.cuda.epilogue import epilogue_argument, overwritable
from tactics.cuda.normalization.normalization import REGISTER_ELEMENTS
from tactics.cuda.simple import (
    OUT,
    block_of,
    ceil_div,
    defines,
    dims,
    launch,
    refuse_large,
    vector_width,
    wrap_code,
)
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Tactic, Workload, config


class SumRows(Tactic):
    """Rows of a fixed size, in registers."""

    id = "cuda.normalization.sum"
    device = "cuda"
    ops = (SumNormalization,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op, x = workload.op, workload.inputs[0]
        assert isinstance(op, SumNormalization)
        if x.dtype not in (DataType.FLOAT, DataType.HALF, DataType.BF16):
            return Refusal(f"a sum of {x.dtype.value}; float16, bfloat16 or float32 is needed")
        if any(workload.axis_varies(0, axis) for axis in range(op.axis, len(x.shape))):
            return Refusal("the size of a row varies")
        if _row(workload) > 1024 * 16:
            return Refusal(f"rows of {_row(workload)} elements do not fit the registers of a block")
        code = wrap_code(workload)
        return code if isinstance(code, Refusal) else refuse_large(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        n, item = _row(workload), min(workload.inputs[0].dtype.itemsize, workload.outputs[0].dtype.itemsize)
        last = dims(workload.inputs[0])[-1]
        widest = vector_width(item, n, *((last,) if workload.op.epilogue != IDENTITY else ()))  # type: ignore[attr-defined]
        found = []
        for v in dict.fromkeys((widest, max(1, widest // 2))):
            for group in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
                vectors = ceil_div(n, group * v)
                if vectors * v > (REGISTER_ELEMENTS // 2 if group < 1024 else 16) or (group > 4 and ceil_div(n, group // 2 * v) == 1):
                    continue
                found.append((abs(vectors * v - 8), -v, group, vectors))
        return [config(v=-v, group=group, vectors=vectors) for _, v, group, vectors in sorted(found)][:5]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, chosen, n = workload.op, dict(config), _row(workload)
        assert isinstance(op, SumNormalization)
        code = wrap_code(workload)
        assert not isinstance(code, Refusal)
        prelude, epilogue = code
        threads = block_of(chosen["group"])
        names = defines(device, IN_T=storage_type(workload.inputs[0].dtype), OUT_T=storage_type(workload.outputs[0].dtype), CENTER=op.center,
                        KEEP_SUM=op.keep_sum, VEC=chosen["v"], GROUP=chosen["group"], VECTORS=chosen["vectors"], THREADS=threads)  # fmt: skip
        kernel = Kernel("normalization/sum.cu", "normalize_sum", (*names, *epilogue.defines), prelude)
        rows = prod(dims(workload.inputs[0])[: op.axis])
        total = Buffer("output", 1) if op.keep_sum else Scalar(0, "u64")
        arguments = (Buffer("input"), Buffer("input", 1), OUT, total, Scalar(rows), Scalar(n), Scalar(dims(workload.outputs[0])[-1]),
                     Scalar(op.epsilon, "f32"), epilogue_argument(epilogue))  # fmt: skip
        return Plan((launch(kernel, ceil_div(rows, threads // chosen["group"]), threads, arguments),), in_place=overwritable(workload, 0, 1))


def _row(workload: Workload) -> int:
    assert isinstance(workload.op, SumNormalization)
    return prod(dims(workload.inputs[0])[workload.op.axis :])


TACTICS = (SumRows(),)
