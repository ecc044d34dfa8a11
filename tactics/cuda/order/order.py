"""Layers that depend on order: argument of the extreme, running sums, top k."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusion.dtypes import DataType
from fusion.ops import ArgReduce, Cumulative, TopK
from tactics.cuda.codegen import STORAGE_TYPES, storage_type
from tactics.cuda.simple import OUT, ceil_div, defines, dims, divider, launch, refuse_large
from tactics.tactic import (
    Argument, Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Struct, Tactic, Workload, config,
)  # fmt: skip

PRELUDE = '#include "vector.cuh"\n'
X, INDICES = Buffer("input"), Buffer("output", 1)
KEYED = (DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT32, DataType.INT16, DataType.INT8, DataType.UINT8, DataType.UINT16)


def _split(workload: Workload) -> tuple[int, int, int]:
    """(outer, n, inner)."""
    shape, axis = dims(workload.inputs[0]), workload.op.axis  # type: ignore[attr-defined]
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def _refusal(workload: Workload) -> Refusal | None:
    dtype = workload.inputs[0].dtype
    if dtype not in STORAGE_TYPES:
        return Refusal(f"no CUDA code for data type {dtype.value}")
    return refuse_large(workload)


class ArgumentOfExtreme(Tactic):
    """ArgMax and ArgMin along any axis."""

    id = "cuda.order.arg"
    device = "cuda"
    ops = (ArgReduce,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return _refusal(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        outer, n, inner = _split(workload)
        if inner == 1 and not any(workload.varies[0] if workload.varies else ()):
            return [config(tx=1, ty=ty) for ty in (128, 256, 512, 32) if ty <= max(32, 2 * n)]
        return [config(tx=tx, ty=ty) for tx, ty in ((32, 8), (32, 32), (8, 32), (1, 128))]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op: ArgReduce = workload.op  # type: ignore[assignment]
        chosen = dict(config)
        outer, n, inner = _split(workload)
        names = defines(device, KIND=0, ELEM_T=storage_type(workload.inputs[0].dtype), TX=chosen["tx"], TY=chosen["ty"],
                        LARGEST=op.largest, SELECT_LAST=op.select_last)  # fmt: skip
        kernel = Kernel("order/order.cu", "arg_reduce", names, PRELUDE)
        blocks = outer * ceil_div(inner, chosen["tx"])
        return Plan((launch(kernel, blocks, (chosen["tx"], chosen["ty"]), (X, OUT, Scalar(n), Scalar(inner))),))


class RunningSum(Tactic):
    """Cumulative sums and products: a block per row along the last axis, else a thread per line."""

    id = "cuda.order.cumulative"
    device = "cuda"
    ops = (Cumulative,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if workload.op.kind not in ("sum", "prod"):  # type: ignore[attr-defined]
            return Refusal(f"running {workload.op.kind!r}; this kernel has sum and prod")  # type: ignore[attr-defined]
        return _refusal(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        last = workload.op.axis == len(workload.inputs[0].shape) - 1  # type: ignore[attr-defined]
        lines = [config(rows=0, threads=128), config(rows=0, threads=32)]
        return [*(config(rows=1, threads=threads) for threads in (256, 128, 1024)), *lines[:1]] if last else lines

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op: Cumulative = workload.op  # type: ignore[assignment]
        chosen = dict(config)
        outer, n, inner = _split(workload)
        same = {"ELEM_T": storage_type(workload.inputs[0].dtype), "THREADS": chosen["threads"], "PRODUCT": op.kind == "prod",
                "EXCLUSIVE": op.exclusive, "REVERSE": op.reverse}  # fmt: skip
        if chosen["rows"]:
            kernel = Kernel("order/order.cu", "cumulate_rows", defines(device, KIND=2, ITEMS=4, **same), PRELUDE)
            return Plan((launch(kernel, outer, chosen["threads"], (X, OUT, Scalar(n))),))
        kernel = Kernel("order/order.cu", "cumulate_lines", defines(device, KIND=1, **same), PRELUDE)
        arguments = (X, OUT, Scalar(outer * inner, "u32"), Scalar(n), Struct(divider(inner)))
        return Plan((launch(kernel, ceil_div(outer * inner, chosen["threads"]), chosen["threads"], arguments),))


class RankTopK(Tactic):
    """Any k and n, by counting what stands before each element; the plainest of the family."""

    id = "cuda.topk.rank"
    device = "cuda"
    ops = (TopK,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return _refusal(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op: TopK = workload.op  # type: ignore[assignment]
        outer, n, inner = _split(workload)
        names = defines(device, KIND=0, ELEM_T=storage_type(workload.inputs[0].dtype), THREADS=128, LARGEST=op.largest)
        kernel = Kernel("order/topk.cu", "topk_rank", names, PRELUDE)
        total = outer * n * inner
        arguments = (X, OUT, INDICES, Scalar(total, "u32"), Scalar(n), Scalar(int(op.k)), Struct(divider(inner)), Struct(divider(n)))  # type: ignore[arg-type]
        return Plan((launch(kernel, ceil_div(total, 128), 128, arguments),))


class _KeyedTopK(Tactic):
    """What the kernels with 64-bit keys share."""

    device = "cuda"
    ops = (TopK,)
    most = 0  # elements of a row

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := _refusal(workload):
            return refusal
        op: TopK = workload.op  # type: ignore[assignment]
        if workload.inputs[0].dtype not in KEYED:
            return Refusal(f"keys of 32 bits cannot hold {workload.inputs[0].dtype.value}: see cuda.topk.rank")
        if workload.axis_varies(0, op.axis):
            return Refusal(f"the size of axis {op.axis} varies: see cuda.topk.rank")
        if _split(workload)[1] > self.most:
            return Refusal(f"{_split(workload)[1]} elements along the axis; this kernel holds {self.most}")
        return None

    def _arguments(self, workload: Workload) -> tuple[Argument, ...]:
        _, n, inner = _split(workload)
        return (X, OUT, INDICES, Scalar(n), Scalar(int(workload.op.k)), Scalar(inner))  # type: ignore[attr-defined]


class RoundsTopK(_KeyedTopK):
    """Few of a row that fits the registers of a block: the best one is taken out k times."""

    id = "cuda.topk.rounds"
    most = 1024 * 16

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := super().supports(workload, device):
            return refusal
        k = workload.op.k  # type: ignore[attr-defined]
        varies = workload.axis_varies(1, workload.op.axis)  # type: ignore[attr-defined]
        return Refusal(f"k is {k} (or varies); rounds pay up to 64") if varies or k > 64 else None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        n = _split(workload)[1]
        found = [config(threads=threads, items=ceil_div(n, threads)) for threads in (128, 64, 32, 256, 512, 1024)
                 if ceil_div(n, threads) <= 16 and (threads <= 2 * n or threads == 32)]  # fmt: skip
        return found[:4]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        outer, _, inner = _split(workload)
        names = defines(device, KIND=1, ELEM_T=storage_type(workload.inputs[0].dtype), THREADS=chosen["threads"],
                        ITEMS=chosen["items"], LARGEST=workload.op.largest)  # type: ignore[attr-defined] # fmt: skip
        kernel = Kernel("order/topk.cu", "topk_rounds", names, PRELUDE)
        return Plan((launch(kernel, outer * inner, chosen["threads"], self._arguments(workload)),))


class SortTopK(_KeyedTopK):
    """Any k of a row that fits shared memory, by sorting it there."""

    id = "cuda.topk.sort"
    most = 4096

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        size = max(64, 1 << (_split(workload)[1] - 1).bit_length())
        return [config(threads=threads, size=size) for threads in dict.fromkeys((min(512, size // 2), min(256, size // 2)))]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        outer, _, inner = _split(workload)
        names = defines(device, KIND=2, ELEM_T=storage_type(workload.inputs[0].dtype), THREADS=chosen["threads"], SIZE=chosen["size"],
                        LARGEST=workload.op.largest)  # type: ignore[attr-defined] # fmt: skip
        kernel = Kernel("order/topk.cu", "topk_sort", names, PRELUDE)
        return Plan((launch(kernel, outer * inner, chosen["threads"], self._arguments(workload), shared=chosen["size"] * 8),))


TACTICS = (ArgumentOfExtreme(), RunningSum(), RoundsTopK(), SortTopK(), RankTopK())
