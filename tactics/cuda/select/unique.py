"""Unique: slices are sorted, groups of equal ones numbered by scans over where they begin."""

from __future__ import annotations

from math import prod

from fusion.ops import Unique
from tactics.cuda.codegen import STORAGE_TYPES
from tactics.cuda.select.nonzero import scan_tiles
from tactics.cuda.select.sort import PRELUDE, THREADS, Sorting
from tactics.cuda.simple import ceil_div, defines, dims, launch, refuse_large
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Memset, Plan, Refusal, Scalar, Struct, Tactic, Workload

FILE = "select/unique.cu"
X, INDICES, INVERSE, SIZES, FOUND = Buffer("input"), *(Buffer("output", number) for number in range(4))


class SortUnique(Tactic):
    """Unique of any type, along any axis or of all elements."""

    id = "cuda.unique.sort"
    device = "cuda"
    ops = (Unique,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype = workload.inputs[0].dtype
        return refuse_large(workload) if dtype in STORAGE_TYPES else Refusal(f"no CUDA code orders {dtype.value}")

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, x = workload.op, workload.inputs[0]
        assert isinstance(op, Unique)
        shape = dims(x)
        axis = op.axis
        outer, n, inner = (1, prod(shape), 1) if axis is None else (prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))
        if not n:
            return Plan((Memset(FOUND, 8),))
        slices = Struct(tuple(Scalar(size, "u32") for size in (outer, n, inner)))
        names = {"IN_T": STORAGE_TYPES[x.dtype]}
        compared = None if axis is None else (names, (X, slices))
        sorting = Sorting(1, n, 8 if x.dtype.itemsize == 8 else 4, not workload.is_static, None, compared)
        blocks = ceil_div(n, THREADS)

        offset = 0

        def room(size: int) -> Buffer:
            nonlocal offset
            offset += ceil_div(size, 16) * 16
            return Buffer("workspace", 0, offset - ceil_div(size, 16) * 16)

        first, second = room(sorting.bytes), room(sorting.bytes)
        groups, firsts, begins, numbers = (room(4 * n) for _ in range(4))
        counts = room(4 * blocks)

        def kernel(step: int, entry: str, **more: object) -> Kernel:
            return Kernel(FILE, entry, defines(device, STEP=step, THREADS=THREADS, **more), PRELUDE)

        keyed = {**names, "KEY_BYTES": sorting.key_bytes, "SLICES": compared is not None}
        size = Scalar(n, "u32")
        in_order = second if sorting.passes % 2 else first
        steps = [
            launch(kernel(0, "make_entries", **keyed), blocks, THREADS, (X, first, slices)),
            *sorting.steps(device, first, second),
            launch(kernel(1, "count_groups", **keyed), blocks, THREADS, (X, in_order, counts, slices)),
            scan_tiles(device, counts, FOUND, blocks),
            launch(kernel(2, "write_groups", **keyed), blocks, THREADS, (X, in_order, counts, groups, firsts, begins, slices)),
        ]
        if not op.sorted:
            steps.append(launch(kernel(3, "count_firsts"), blocks, THREADS, (groups, firsts, counts, size)))
            steps.append(scan_tiles(device, counts, FOUND, blocks))
        told = (groups, firsts, begins, counts, numbers, INDICES, SIZES, FOUND, size)
        steps.append(launch(kernel(4, "write_numbers", SORTED=op.sorted), blocks, THREADS, told))
        steps.append(launch(kernel(5, "write_inverse"), blocks, THREADS, (groups, numbers, INVERSE, size)))
        return Plan(tuple(steps), offset)


TACTICS = (SortUnique(),)
