"""Argmax and argmin: along neighbouring elements (a part of a warp up to a block per row), or across rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusion.ops import ArgReduce
from tactics.cuda.codegen import STORAGE_TYPES
from tactics.cuda.simple import OUT, block_of, ceil_div, defines, dims, known, launch, refuse_large, vector_width
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Tactic, Workload, config

FILE = "order/argreduce.cu"
PRELUDE = '#include "vector.cuh"\n'


def view(workload: Workload) -> tuple[int, int, int]:
    """Input 0 as (outer, n, inner) around the operation's axis."""
    shape, axis = dims(workload.inputs[0]), workload.op.axis  # type: ignore[attr-defined]
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def refusal_of(workload: Workload) -> Refusal | None:
    """Why no kernel that orders elements can serve it."""
    dtype = workload.inputs[0].dtype
    if dtype not in STORAGE_TYPES:
        return Refusal(f"no CUDA code orders {dtype.value}")
    return refuse_large(workload)


def key_type(workload: Workload) -> str:
    """The C++ type of an element's key (include/order.cuh)."""
    return "fx::u64" if workload.inputs[0].dtype.itemsize == 8 else "fx::u32"


def _kernel(workload: Workload, device: DeviceSpec, entry: str, **values: object) -> Kernel:
    op: ArgReduce = workload.op  # type: ignore[assignment]
    names = defines(device, IN_T=STORAGE_TYPES[workload.inputs[0].dtype], KEY=key_type(workload), LARGEST=op.largest,
                    SELECT_LAST=op.select_last, **values)  # fmt: skip
    return Kernel(FILE, entry, names, PRELUDE)


class RowArgReduce(Tactic):
    """The axis is the last one that has more than one element."""

    id = "cuda.argreduce.rows"
    device = "cuda"
    ops = (ArgReduce,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        axis, rank = workload.op.axis, len(workload.inputs[0].shape)  # type: ignore[attr-defined]
        if view(workload)[2] != 1 or any(workload.axis_varies(0, one) for one in range(axis + 1, rank)):
            return Refusal(f"axis {axis} is not the last one: see cuda.argreduce.columns")
        return refusal_of(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        outer, n, _ = view(workload)
        widest = vector_width(workload.inputs[0].dtype.itemsize, known(workload, 0, (workload.op.axis,)))  # type: ignore[attr-defined]
        groups = [group for group in (1, 8, 32, 128, 256, 1024) if group == 1 or group <= 4 * ceil_div(n, widest)]
        fewest = device.multiprocessors * 1024 // max(1, outer)
        groups.sort(key=lambda group: abs(group.bit_length() - min(max(32, fewest), n // (2 * widest), 1024).bit_length()))
        return [config(group=group, v=v) for group in groups[:4] for v in dict.fromkeys((widest, 1))]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, (outer, n, _) = dict(config), view(workload)
        group, threads = chosen["group"], block_of(chosen["group"])
        kernel = _kernel(workload, device, "arg_rows", KIND=0, GROUP=group, VEC=chosen["v"], THREADS=threads)
        arguments = (Buffer("input"), OUT, Scalar(outer, "u32"), Scalar(n, "u32"))
        return Plan((launch(kernel, ceil_div(outer, threads // group), threads, arguments),))


class ColumnArgReduce(Tactic):
    """Any axis."""

    id = "cuda.argreduce.columns"
    device = "cuda"
    ops = (ArgReduce,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refusal_of(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        outer, n, inner = view(workload)
        shapes = [(32, 8), (128, 1), (32, 1), (32, 32), (8, 32)]
        many = outer * inner > device.multiprocessors * 1024
        if many or n < 16:
            shapes = [(128, 1), (32, 8), (32, 1)]
        if inner < 32:
            shapes = [(8, 32), (1, 128), *shapes]
        return [config(tx=tx, ty=ty) for tx, ty in dict.fromkeys(shapes)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, (outer, n, inner) = dict(config), view(workload)
        tx, ty = chosen["tx"], chosen["ty"]
        kernel = _kernel(workload, device, "arg_columns", KIND=1, TX=tx, TY=ty)
        arguments = (Buffer("input"), OUT, Scalar(n, "u32"), Scalar(inner, "u32"))
        return Plan((launch(kernel, outer * ceil_div(inner, tx), (tx, ty), arguments),))


TACTICS = (RowArgReduce(), ColumnArgReduce())
