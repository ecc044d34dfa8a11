"""Local response normalisation across channels, in both layouts: one read and one write of the tensor, the window from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusion.expression import compute_type
from fusion.ops import LocalResponseNormalization
from tactics.cuda.codegen import storage_type
from tactics.cuda.simple import OUT, ceil_div, count, defines, dims, divider, known, launch, refuse_large, vector_width
from tactics.tactic import (
    Argument,
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Plan,
    Refusal,
    Scalar,
    Struct,
    Tactic,
    Workload,
    config,
)

FILE = "lrn/lrn.cu"
LONGEST = 64  # channels of a window: they are unrolled, and with the channels innermost they stand in registers
THREADS = 128


class WindowedLrn(Tactic):
    """LRN: one thread per vector of channels (channels innermost) or of places (channels outside)."""

    id = "cuda.lrn.window"
    device = "cuda"
    ops = (LocalResponseNormalization,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype, size = workload.inputs[0].dtype, workload.op.size  # type: ignore[attr-defined]
        if not dtype.is_float or not compute_type(dtype).is_float or dtype.itemsize < 2:
            return Refusal(f"x is {dtype.value}; float16, bfloat16, float32 or float64 is needed")
        if not 1 <= size <= LONGEST:
            return Refusal(f"a window of {size} channels; this kernel has 1 to {LONGEST}")
        return refuse_large(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        rank = len(workload.inputs[0].shape)
        axes = (rank - 1,) if workload.op.channels_last else range(2, rank)  # type: ignore[attr-defined]
        widest = vector_width(workload.inputs[0].dtype.itemsize, known(workload, 0, axes))
        widths = [widest, max(1, widest // 2), 1]
        if count(workload.inputs[0]) // widest < device.multiprocessors * 512:
            widths.reverse()
        return [config(v=v) for v in dict.fromkeys(widths)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, dtype, shape = workload.op, workload.inputs[0].dtype, dims(workload.inputs[0])
        assert isinstance(op, LocalResponseNormalization)
        v, work = dict(config)["v"], compute_type(dtype)
        names = defines(device, IN_T=storage_type(dtype), WORK=storage_type(work), SIZE=op.size, VEC=v, THREADS=THREADS,
                        CHANNELS_LAST=op.channels_last, BETA_3_4=op.beta == 0.75, BETA=repr(float(op.beta)))  # fmt: skip
        ctype = "f64" if work.itemsize == 8 else "f32"
        total = count(workload.inputs[0]) // v
        sizes: tuple[Argument, ...]
        if op.channels_last:
            entry, sizes = "lrn_channels_last", (Struct(divider(shape[-1] // v)),)
        else:
            entry, sizes = "lrn_channels_first", (Struct(divider(prod(shape[2:]) // v)), Struct(divider(shape[1])))
        arguments = (Buffer("input"), OUT, Scalar(total, "u32"), Scalar(float(op.bias), ctype), Scalar(float(op.alpha / op.size), ctype))
        return Plan((launch(Kernel(FILE, entry, names), ceil_div(total, THREADS), THREADS, (*arguments, *sizes)),))


TACTICS = (WindowedLrn(),)
