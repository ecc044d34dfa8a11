"""Fold and the indices of max pooling: one thread per output element, loops over the window."""

from __future__ import annotations

from math import prod

from fusion.expression import compute_type
from fusion.ops import Fold, PoolingIndices
from tactics.cuda.codegen import storage_type
from tactics.cuda.simple import OUT, ceil_div, count, defines, dims, divider, launch, refuse_input
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Struct, Tactic, Workload

THREADS = 128
X = Buffer("input")


def _numbers(values: tuple) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


class FoldGather(Tactic):
    """Fold: each output element adds up the columns that cover it."""

    id = "cuda.windows.fold"
    device = "cuda"
    ops = (Fold,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refuse_input(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, x, total = workload.op, workload.inputs[0], count(workload.outputs[0])
        assert isinstance(op, Fold)
        if not total:
            return Plan(())
        counts = _numbers(op.counts())
        axes: list[Scalar | Buffer] = []
        for axis, size in enumerate(_numbers(op.image)):
            axes += [*divider(size), Scalar(op.window[axis]), Scalar(op.stride[axis]), Scalar(op.pre_padding[axis]),
                     Scalar(op.dilation[axis]), Scalar(counts[axis])]  # fmt: skip
        names = defines(device, RANK=len(op.image), IN_T=storage_type(x.dtype), WORK=storage_type(compute_type(x.dtype)), THREADS=THREADS)
        arguments = (X, OUT, Scalar(total, "u32"), Scalar(prod(op.window)), Scalar(prod(counts), "i64"), Struct(tuple(axes)))
        return Plan((launch(Kernel("windows/fold.cu", "fold", names), ceil_div(total, THREADS), THREADS, arguments),))


class PoolingArgmax(Tactic):
    """The index of each window's maximum."""

    id = "cuda.windows.indices"
    device = "cuda"
    ops = (PoolingIndices,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refuse_input(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, x, total = workload.op, workload.inputs[0], count(workload.outputs[0])
        assert isinstance(op, PoolingIndices)
        if not total:
            return Plan(())
        spatial, out = dims(x)[2:], dims(workload.outputs[0])[2:]
        axes: list[Scalar | Buffer] = []
        for axis, size in enumerate(spatial):
            step = prod(spatial[:axis]) if op.column_major else prod(spatial[axis + 1 :])
            axes += [*divider(out[axis]), Scalar(size), Scalar(int(op.window[axis])), Scalar(int(op.stride[axis])),  # type: ignore[arg-type]
                     Scalar(int(op.pre_padding[axis])), Scalar(op.dilation[axis]), Scalar(step)]  # type: ignore[arg-type] # fmt: skip
        names = defines(device, RANK=len(spatial), IN_T=storage_type(x.dtype), WORK=storage_type(compute_type(x.dtype)), THREADS=THREADS)
        taps = prod(_numbers(op.window))
        arguments = (X, OUT, Scalar(total, "u32"), Scalar(taps), Scalar(prod(spatial)), Struct(tuple(axes)))
        return Plan((launch(Kernel("windows/indices.cu", "pooling_indices", names), ceil_div(total, THREADS), THREADS, arguments),))


TACTICS = (FoldGather(), PoolingArgmax())
