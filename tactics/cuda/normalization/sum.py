"""Normalisation of a sum of two tensors: both read once, the sum written only where others need it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusion.dtypes import DataType
from fusion.ops import SumNormalization
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.codegen import storage_type
from tactics.cuda.epilogue import epilogue_argument, overwritable
from tactics.cuda.simple import (
    LONGEST_ROW,
    OUT,
    REGISTER_ELEMENTS,
    block_of,
    ceil_div,
    defines,
    dims,
    launch,
    refuse_large,
    row_configs,
    vector_width,
    wrap_code,
)
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Tactic, Workload


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
        if _row(workload) > LONGEST_ROW:
            return Refusal(f"rows of {_row(workload)} elements do not fit the registers of a block")
        code = wrap_code(workload)
        return code if isinstance(code, Refusal) else refuse_large(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        n, item = _row(workload), min(workload.inputs[0].dtype.itemsize, workload.outputs[0].dtype.itemsize)
        last = dims(workload.inputs[0])[-1]
        widest = vector_width(item, n, *((last,) if workload.op.epilogue != IDENTITY else ()))  # type: ignore[attr-defined]
        return row_configs(n, widest, REGISTER_ELEMENTS // 2, aim=8)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, chosen, n = workload.op, dict(config), _row(workload)
        assert isinstance(op, SumNormalization)
        code = wrap_code(workload)
        assert not isinstance(code, Refusal)
        prelude, epilogue = code
        threads = block_of(chosen["group"])
        names = defines(device, IN_T=storage_type(workload.inputs[0].dtype), OUT_T=storage_type(workload.outputs[0].dtype), CENTER=op.center,
                        KEEP_SUM=op.keep_sum, KIND=2, ONE_ROW=False, VEC=chosen["v"], GROUP=chosen["group"], VECTORS=chosen["vectors"], THREADS=threads)  # fmt: skip
        kernel = Kernel("normalization/rows.cu", "normalize_sum", (*names, *epilogue.defines), prelude)
        rows = prod(dims(workload.inputs[0])[: op.axis])
        total = Buffer("output", 1) if op.keep_sum else Scalar(0, "u64")
        arguments = (Buffer("input"), Buffer("input", 1), OUT, total, Scalar(rows), Scalar(n), Scalar(dims(workload.outputs[0])[-1]),
                     Scalar(op.epsilon, "f32"), epilogue_argument(epilogue))  # fmt: skip
        return Plan((launch(kernel, ceil_div(rows, threads // chosen["group"]), threads, arguments),), in_place=overwritable(workload, 0, 1))


def _row(workload: Workload) -> int:
    assert isinstance(workload.op, SumNormalization)
    return prod(dims(workload.inputs[0])[workload.op.axis :])


TACTICS = (SumRows(),)
