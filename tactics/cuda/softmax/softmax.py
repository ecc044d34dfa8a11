"""Softmax: rows kept in registers, long rows in two passes, and any other axis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

from fusion.dtypes import DataType
from fusion.expression import compute_type, type_of
from fusion.ops import Softmax
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
    known,
    launch,
    out_pitch,
    refuse_large,
    row_configs,
    vector_width,
    wrap_code,
    x_pitch,
)
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Plan,
    Refusal,
    Scalar,
    Tactic,
    Workload,
    config,
    every_tensor,
)

FILE = "softmax/softmax.cu"


def split(workload: Workload) -> tuple[int, int, int]:
    """(outer, n, inner)."""
    shape, axis = dims(workload.inputs[0]), workload.op.axis  # type: ignore[attr-defined]
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def _defines(workload: Workload, device: DeviceSpec, **values: int) -> tuple[tuple[str, str], ...]:
    narrow = (DataType.HALF, DataType.BF16)
    x, out = workload.inputs[0].dtype, workload.outputs[0].dtype
    return defines(
        device, IN_T=storage_type(x), OUT_T=storage_type(out), LOG=workload.op.log,  # type: ignore[attr-defined]
        FAST=x in narrow and out in narrow, **values, **x_pitch(workload), **out_pitch(workload))  # fmt: skip


def _kernel(workload: Workload, entry: str, values: tuple[tuple[str, str], ...]) -> tuple[Kernel, object]:
    code = wrap_code(workload, workload.op.prologue)  # type: ignore[attr-defined]
    assert not isinstance(code, Refusal)
    prelude, epilogue = code
    return Kernel(FILE, entry, (*values, *epilogue.defines), prelude), epilogue_argument(epilogue)


def _row_vectors(workload: Workload) -> int:
    """The widest vectors along a row whose length never varies."""
    sizes = [tensor.dtype.itemsize for tensor in (workload.inputs[0], workload.outputs[0])]
    return vector_width(min(sizes), known(workload, 0, (-1,)))


class _SoftmaxTactic(Tactic):
    """What all of them ask of a workload."""

    device = "cuda"
    ops = (Softmax,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op: Softmax = workload.op  # type: ignore[assignment]
        work = compute_type(type_of(op.prologue, [workload.inputs[0].dtype]))
        if work not in (DataType.FLOAT, DataType.DOUBLE):
            return Refusal(f"softmax of {work.value}; it needs a floating-point type")
        code = wrap_code(workload, op.prologue)
        return code if isinstance(code, Refusal) else refuse_large(workload) or self.refuses(workload, device)

    def refuses(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        """Why this kernel in particular does not serve the workload."""
        return None


class RowSoftmax(_SoftmaxTactic):
    """The last axis, of a fixed length, in registers: one read, one write."""

    id = "cuda.softmax.row"

    def refuses(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if split(workload)[2] != 1 or any(
            workload.axis_varies(0, axis) for axis in range(workload.op.axis, len(workload.inputs[0].shape))  # type: ignore[attr-defined]
        ):
            return Refusal(f"axis {workload.op.axis} of {dims(workload.inputs[0])} is not last or varies: see cuda.softmax.long")  # type: ignore[attr-defined]
        n = split(workload)[1]
        if n > LONGEST_ROW:
            return Refusal(f"rows of {n} elements do not fit the registers of a block: see cuda.softmax.long")
        return None

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        _, n, _ = split(workload)
        return row_configs(n, _row_vectors(workload))

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        rows, n, _ = split(workload)
        threads = block_of(chosen["group"])
        kernel, args = _kernel(workload, "softmax_row", _defines(
            workload, device, KIND=0, VEC=chosen["v"], GROUP=chosen["group"], VECTORS=chosen["vectors"], THREADS=threads))  # fmt: skip
        blocks = ceil_div(rows, threads // chosen["group"])
        return Plan((launch(kernel, blocks, threads, (Buffer("input"), OUT, Scalar(rows), Scalar(n), args)),), in_place=overwritable(workload, 0))  # type: ignore[arg-type]


class LongSoftmax(_SoftmaxTactic):
    """The last axis, of any length, one block per row: two reads, the second mostly from L2."""

    id = "cuda.softmax.long"

    def refuses(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        axis, rank = workload.op.axis, len(workload.inputs[0].shape)  # type: ignore[attr-defined]
        if axis != rank - 1:
            return Refusal(f"axis {axis} of {dims(workload.inputs[0])} is not the last: see cuda.softmax.strided")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        n = split(workload)[1]
        widest = _row_vectors(workload)
        threads = [t for t in (256, 512, 1024, 128) if t * widest <= max(n, 128 * widest)]
        return [config(v=widest, threads=t) for t in threads]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        rows, n, _ = split(workload)
        kernel, args = _kernel(workload, "softmax_long", _defines(
            workload, device, KIND=1, VEC=chosen["v"], THREADS=chosen["threads"]))  # fmt: skip
        return Plan((launch(kernel, rows, chosen["threads"], (Buffer("input"), OUT, Scalar(rows), Scalar(n), args)),), in_place=overwritable(workload, 0))  # type: ignore[arg-type]


class ClusterSoftmax(_SoftmaxTactic):
    """The last axis, of a fixed length, in the registers of a cluster's blocks: one read, one write."""

    id = "cuda.softmax.cluster"

    def refuses(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if device.capability < 90:
            return Refusal(f"compute capability {device.capability / 10:.1f}; clusters of blocks need 9.0")
        if compute_type(type_of(workload.op.prologue, [workload.inputs[0].dtype])) is not DataType.FLOAT:  # type: ignore[attr-defined]
            return Refusal(f"softmax of {workload.inputs[0].dtype.value}; this kernel computes in float32")
        axis, rank = workload.op.axis, len(workload.inputs[0].shape)  # type: ignore[attr-defined]
        if axis != rank - 1 or workload.axis_varies(0, axis):
            return Refusal(f"axis {axis} of {dims(workload.inputs[0])} is not the last or varies")
        if not self.configs(workload, device):
            return Refusal(f"rows of {split(workload)[1]} elements are too short, or do not fit the registers of a cluster")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        n, v = split(workload)[1], _row_vectors(workload)
        found = []
        for cluster in (2, 4, 8):
            for threads in (256, 512, 1024):
                vectors = ceil_div(n, cluster * threads * v)
                if 8 <= vectors * v <= (32 if threads < 1024 else 16) and n > 4096:
                    found.append((abs(vectors * v - 16), cluster, config(v=v, threads=threads, vectors=vectors, cluster=cluster)))
        return [one for *_, one in sorted(found, key=lambda item: item[:2])][:4]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        rows, n, _ = split(workload)
        threads, cluster = chosen["threads"], chosen["cluster"]
        kernel, args = _kernel(workload, "softmax_cluster", _defines(
            workload, device, KIND=3, VEC=chosen["v"], THREADS=threads, VECTORS=chosen["vectors"], CLUSTER=cluster))  # fmt: skip
        one = launch(kernel, rows * cluster, threads, (Buffer("input"), OUT, Scalar(n), args), 4 * (threads // 32 + 2 * cluster))  # type: ignore[arg-type]
        return Plan((replace(one, cluster=(cluster, 1, 1)),))


class ColumnSoftmax(_SoftmaxTactic):
    """An axis that is not the last, of a fixed length, in registers: one read, one write."""

    id = "cuda.softmax.columns"

    def refuses(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        axis, rank = workload.op.axis, len(workload.inputs[0].shape)  # type: ignore[attr-defined]
        if axis == rank - 1 or workload.axis_varies(0, axis):
            return Refusal(f"axis {axis} of {dims(workload.inputs[0])} is the last or varies")
        if not self.configs(workload, device):
            return Refusal(f"{split(workload)[1]} elements do not fit the registers of a block: see cuda.softmax.strided")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        _, n, inner = split(workload)
        item = min(workload.inputs[0].dtype.itemsize, workload.outputs[0].dtype.itemsize)
        widest = vector_width(item, known(workload, 0, (-1,)))  # the epilogue's columns are in the last axis
        found = []
        kept = 32 if workload.inputs[0].dtype.itemsize == 2 else 16  # values of a thread that cost about as many registers as the rest
        for v in dict.fromkeys((widest, max(1, widest // 2), max(1, widest // 4))):
            for threads in (128, 256, 512, 32):
                for tx in (4, 8, 16, 32, 64, 128):
                    if tx > threads:
                        continue
                    ty = threads // tx
                    items = ceil_div(n, ty)
                    if items * v > REGISTER_ELEMENTS or ty >= 2 * n or (tx > 4 and tx * v >= 2 * inner):
                        continue
                    run = tx * v * workload.inputs[0].dtype.itemsize  # neighbouring bytes of a block
                    found.append((max(1.0, 64 / run) * (1 + abs(items * v - kept) / 64) * (1 + 1 / (v * item)) * items * ty / n,
                                  threads, config(v=v, tx=tx, ty=ty, items=items)))  # fmt: skip
        return [one for *_, one in sorted(found, key=lambda item: item[:2])][:6]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        outer, n, inner = split(workload)
        v, tx, ty = chosen["v"], chosen["tx"], chosen["ty"]
        kernel, args = _kernel(workload, "softmax_columns", _defines(
            workload, device, KIND=4, VEC=v, TX=tx, TY=ty, ITEMS=chosen["items"]))  # fmt: skip
        arguments = (Buffer("input"), OUT, Scalar(n), Scalar(inner), Scalar(dims(workload.outputs[0])[-1]), args)
        return Plan((launch(kernel, outer * ceil_div(inner, tx * v), tx * ty, arguments),))  # type: ignore[arg-type]


class StridedSoftmax(_SoftmaxTactic):
    """Any axis; the plainest of the family."""

    id = "cuda.softmax.strided"
    reference = True

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        _, n, inner = split(workload)
        axis, rank = workload.op.axis, len(workload.inputs[0].shape)  # type: ignore[attr-defined]
        item = min(workload.inputs[0].dtype.itemsize, workload.outputs[0].dtype.itemsize)
        # Vectors stay inside the last axis, because the epilogue's columns are there.
        widest = vector_width(item, known(workload, 0, (-1,)), most=4) if axis < rank - 1 else 1
        shapes = [(32, 8), (16, 16), (8, 32)] if inner > 1 else [(1, 128), (1, 32)]
        return [config(v=v, tx=tx, ty=ty) for v in dict.fromkeys((widest, 1)) for tx, ty in shapes][:4]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        outer, n, inner = split(workload)
        kernel, args = _kernel(workload, "softmax_strided", _defines(
            workload, device, KIND=2, VEC=chosen["v"], TX=chosen["tx"], TY=chosen["ty"]))  # fmt: skip
        blocks = outer * ceil_div(inner, chosen["tx"] * chosen["v"])
        last = dims(workload.outputs[0])[-1]
        arguments = (Buffer("input"), OUT, Scalar(n), Scalar(inner), Scalar(last), args)
        return Plan((launch(kernel, blocks, (chosen["tx"], chosen["ty"]), arguments),), in_place=overwritable(workload, 0))  # type: ignore[arg-type]


TACTICS = (RowSoftmax(), ClusterSoftmax(), ColumnSoftmax(), LongSoftmax(), StridedSoftmax())
