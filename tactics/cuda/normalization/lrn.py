"""Local response normalisation across channels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusion.ops import LocalResponseNormalization
from tactics.cuda.codegen import STORAGE_TYPES, storage_type
from tactics.cuda.simple import OUT, ceil_div, defines, dims, divider, launch, refuse_large
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Struct, Tactic, Workload, config


class LocalResponse(Tactic):
    """One thread per element, channels first or last."""

    id = "cuda.normalization.lrn"
    device = "cuda"
    ops = (LocalResponseNormalization,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype = workload.inputs[0].dtype
        if dtype not in STORAGE_TYPES or not dtype.is_float:
            return Refusal(f"local response normalisation of {dtype.value}; it needs a floating-point type")
        return refuse_large(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [config(threads=256), config(threads=128)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op: LocalResponseNormalization = workload.op  # type: ignore[assignment]
        shape, threads = dims(workload.inputs[0]), dict(config)["threads"]
        channels = shape[-1] if op.channels_last else shape[1]
        inner = 1 if op.channels_last else prod(shape[2:])
        before = (op.size - 1) // 2
        names = defines(device, ELEM_T=storage_type(workload.inputs[0].dtype), THREADS=threads)
        kernel = Kernel("normalization/lrn.cu", "local_response", names, '#include "vector.cuh"\n')
        total = prod(shape)
        arguments = (Buffer("input"), OUT, Scalar(total, "u32"), Scalar(channels), Struct(divider(inner)), Struct(divider(channels)),
                     Scalar(before), Scalar(op.size - 1 - before), Scalar(op.alpha / op.size, "f32"), Scalar(op.beta, "f32"),
                     Scalar(op.bias, "f32"))  # fmt: skip
        return Plan((launch(kernel, ceil_div(total, threads), threads, arguments),))


TACTICS = (LocalResponse(),)
