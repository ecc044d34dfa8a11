"""Tensors without inputs: constants, ranges, random numbers and dimensions."""

from __future__ import annotations

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import compute_type
from fusion.ops import Fill, Random, Range, ShapeValue
from tactics.cuda.codegen import STORAGE_TYPES
from tactics.cuda.simple import OUT, ceil_div, count, defines, launch, raw_type
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Memset,
    Plan,
    Refusal,
    Scalar,
    Struct,
    Tactic,
    Workload,
    tensor_bytes,
)

FILE = "fill/fill.cu"
PRELUDE = '#include "vector.cuh"\n'
VALUES = 32


class Filled(Tactic):
    """Fill, Random, Range and ShapeValue, each in one small kernel (zeros by a memset)."""

    id = "cuda.fill"
    device = "cuda"
    ops = (Fill, Random, Range, ShapeValue)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype = workload.outputs[0].dtype
        if not isinstance(workload.op, Fill) and dtype not in STORAGE_TYPES:
            return Refusal(f"no CUDA code for data type {dtype.value}")
        if isinstance(workload.op, ShapeValue) and len(workload.op.values) > VALUES:
            return Refusal(f"{len(workload.op.values)} dimensions; this kernel writes up to {VALUES}")
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, output = workload.op, workload.outputs[0]
        elements = count(output)
        if not elements:
            return Plan(())
        if isinstance(op, Fill):
            bits = int.from_bytes(np.asarray(op.value).astype(output.dtype.numpy).tobytes(), "little")
            if not bits:
                return Plan((Memset(OUT, tensor_bytes(output)),))
            kernel = Kernel(FILE, "fill", defines(device, KIND=0, MOVE_T=raw_type(output.dtype.itemsize)), PRELUDE)
            return Plan((launch(kernel, ceil_div(elements, 1024), 256, (OUT, Scalar(elements, "i64"), Scalar(bits, "u64"))),))
        if isinstance(op, Range):
            real = output.dtype.is_float
            work = compute_type(output.dtype)
            ctype = ("f64" if work is DataType.DOUBLE else "f32") if real else "i64"
            argument = ("double" if work is DataType.DOUBLE else "float") if real else "fx::i64"
            names = defines(device, KIND=1, OUT_T=STORAGE_TYPES[output.dtype], ARG_T=argument)
            start, delta = (float(value) if real else int(value) for value in (op.start, op.delta))  # type: ignore[arg-type]
            arguments = (OUT, Scalar(elements, "i64"), Scalar(start, ctype), Scalar(delta, ctype))
            return Plan((launch(Kernel(FILE, "range", names, PRELUDE), ceil_div(elements, 256), 256, arguments),))
        if isinstance(op, Random):
            double = compute_type(output.dtype) is DataType.DOUBLE
            names = defines(device, KIND=3, OUT_T=STORAGE_TYPES[output.dtype], REAL="double" if double else "float", NORMAL=op.kind == "normal")
            ctype = "f64" if double else "f32"
            numbers = (Scalar(op.first, ctype), Scalar(op.second, ctype), Scalar(op.key[0], "u32"), Scalar(op.key[1], "u32"))
            blocks = ceil_div(elements, 2 if double else 4)
            return Plan((launch(Kernel(FILE, "random_numbers", names, PRELUDE), ceil_div(blocks, 256), 256, (OUT, Scalar(elements, "i64"), *numbers)),))
        assert isinstance(op, ShapeValue)
        names = defines(device, KIND=2, OUT_T=STORAGE_TYPES[output.dtype])
        values = [int(value) for value in op.values] + [0] * (VALUES - len(op.values))  # type: ignore[arg-type]
        fields: tuple[Buffer | Scalar, ...] = tuple(Scalar(value, "i64") for value in values)
        return Plan((launch(Kernel(FILE, "dimensions", names, PRELUDE), 1, 32, (OUT, Scalar(elements), Struct(fields))),))


TACTICS = (Filled(),)
