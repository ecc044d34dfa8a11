"""TopK: lines sorted in shared memory, or the k best selected first (in parts, when few lines are long) and only those sorted."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.ops import TopK
from tactics.cuda.codegen import STORAGE_TYPES
from tactics.cuda.order.argreduce import refusal_of, view
from tactics.cuda.simple import ceil_div, defines, divider, launch
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Struct,
    Tactic,
    Workload,
    config,
)

FILE = "order/topk.cu"
PRELUDE = '#include "vector.cuh"\n'
X, VALUES, INDICES = Buffer("input"), Buffer("output", 0), Buffer("output", 1)
STATIC_SHARED = 2048  # bytes that the selection keeps beside the entries, rounded up


def padded(number: int) -> int:
    """The power of two from ``number`` up."""
    return 1 << max(0, number - 1).bit_length()


def entry_bytes(workload: Workload) -> int:
    """Bytes of a key with its index."""
    return 16 if workload.inputs[0].dtype.itemsize == 8 else 8


def _room(device: DeviceSpec) -> int:
    return max(0, device.shared_memory - STATIC_SHARED)


def _kernel(workload: Workload, device: DeviceSpec, entry: str, threads: int, **values: object) -> Kernel:
    dtype = workload.inputs[0].dtype
    names = defines(device, IN_T=STORAGE_TYPES[dtype], KEY_BYTES=8 if dtype.itemsize == 8 else 4, THREADS=threads,
                    LARGEST=workload.op.largest, SOFTMAX=("", "softmax", "log").index(workload.op.softmax), **values)  # type: ignore[attr-defined]  # fmt: skip
    return Kernel(FILE, entry, names, PRELUDE)


def _thread_choices(entries: int) -> list[int]:
    """Threads per block for sorting ``entries``: a pair for each, then fewer."""
    most = min(1024, max(32, padded(entries) // 2))
    return list(dict.fromkeys((most, max(32, most // 2), max(32, most // 4))))


class SortTopK(Tactic):
    """Whole lines in shared memory."""

    id = "cuda.topk.sort"
    device = "cuda"
    ops = (TopK,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        axis, n = workload.op.axis, view(workload)[1]  # type: ignore[attr-defined]
        if workload.axis_varies(0, axis):
            return Refusal(f"the size of axis {axis} varies, so a line may not fit into shared memory: see cuda.topk.select")
        size = padded(n) * entry_bytes(workload)
        if size > _room(device):
            return Refusal(f"a line of {n} needs {size} bytes of shared memory, there are {_room(device)}: see cuda.topk.select")
        return refusal_of(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [config(threads=threads) for threads in _thread_choices(view(workload)[1])]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        threads, (outer, n, inner) = dict(config)["threads"], view(workload)
        k = int(workload.op.k)  # type: ignore[attr-defined]
        if not outer * inner * k:
            return Plan(())
        kernel = _kernel(workload, device, "topk_sort", threads, KIND=0)
        arguments = (X, VALUES, INDICES, Scalar(n, "u32"), Scalar(k, "u32"), Scalar(padded(n), "u32"), Struct(divider(inner)))
        return Plan((launch(kernel, outer * inner, threads, arguments, padded(n) * entry_bytes(workload)),))


class SelectTopK(Tactic):
    """Any line and any k. ``splits`` parts of a line are searched by different blocks, then the best of the parts."""

    id = "cuda.topk.select"
    device = "cuda"
    ops = (TopK,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refusal_of(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        op, (outer, n, inner) = workload.op, view(workload)
        k = int(op.k)  # type: ignore[attr-defined]
        shared = not workload.axis_varies(1, op.axis) and padded(k) * entry_bytes(workload) <= _room(device)  # type: ignore[attr-defined]
        most = 1024 if n >= 4096 else max(32, min(256, padded(n) // 2))
        threads = list(dict.fromkeys((most, max(32, most // 2))))
        # A part should be several times longer than what it keeps.
        splits = min(device.multiprocessors // max(1, outer * inner), n // max(1, 4 * k), n // 4096)
        parts = list(dict.fromkeys((splits, max(1, splits // 4), 1))) if splits > 1 else [1]
        return [config(threads=number, splits=part, shared=shared) for part in parts for number in threads]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, (outer, n, inner) = dict(config), view(workload)
        k, lines, entry = int(workload.op.k), outer * inner, entry_bytes(workload)  # type: ignore[attr-defined]
        if not lines * k:
            return Plan(())
        threads, splits, shared = chosen["threads"], chosen["splits"], chosen["shared"]
        size = padded(k)
        parts_bytes = ceil_div(lines * splits * k * entry, 256) * 256 if splits > 1 else 0
        scratch_bytes = 0 if shared else lines * size * entry
        arguments = (X, VALUES, INDICES, Buffer("workspace"), Buffer("workspace", 0, parts_bytes), Scalar(n, "u32"), Scalar(k, "u32"),
                     Scalar(splits, "u32"), Scalar(size, "u32"), Struct(divider(inner)))  # fmt: skip
        steps: list[Launch] = []
        if splits > 1:
            first = _kernel(workload, device, "topk_select", threads, KIND=1, FINAL=0, FROM_PARTS=0, SHARED=0)
            steps.append(launch(first, (lines, splits), threads, arguments))
        last = _kernel(workload, device, "topk_select", threads, KIND=1, FINAL=1, FROM_PARTS=splits > 1, SHARED=shared)
        steps.append(launch(last, lines, threads, arguments, size * entry if shared else 0))
        return Plan(tuple(steps), parts_bytes + scratch_bytes)


TACTICS = (SortTopK(), SelectTopK())
