"""Gathers and scatters. Scatters are deterministic: no atomics, updates that may meet are done in order by one thread."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

from fusion.dtypes import DataType
from fusion.ops import Gather, GatherElements, GatherND, ScatterElements, ScatterND
from tactics.cuda.codegen import Unsupported, storage_type
from tactics.cuda.shuffle.strides import copy_choices
from tactics.cuda.simple import OUT, ceil_div, count, defines, dims, divider, known, launch, raw_type, refuse_large
from tactics.tactic import (
    Argument,
    Buffer,
    Config,
    Copy,
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
    tensor_bytes,
)  # fmt: skip

PRELUDE = '#include "vector.cuh"\n'
X, INDICES, UPDATES = Buffer("input", 0), Buffer("input", 1), Buffer("input", 2)
REDUCTIONS = {"none": 0, "add": 1, "mul": 2, "min": 3, "max": 4}


def _steps(shape: Sequence[int]) -> list[int]:
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _refusal(workload: Workload) -> Refusal | None:
    dtype = workload.inputs[1].dtype
    if dtype not in (DataType.INT32, DataType.INT64):
        return Refusal(f"indices are {dtype.value}; this kernel takes int32 or int64")
    return refuse_large(workload)


def _index_type(workload: Workload) -> str:
    return storage_type(workload.inputs[1].dtype)


class GatherSlices(Tactic):
    """Gather and GatherND: slices in the widest vectors that fit them."""

    id = "cuda.gather.slices"
    device = "cuda"
    ops = (Gather, GatherND)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if isinstance(workload.op, GatherND) and workload.axis_varies(1, -1):
            return Refusal("the length of the index tuples varies")
        return _refusal(workload)

    @staticmethod
    def _first(workload: Workload) -> int:
        """The first axis of the input that slices keep."""
        op = workload.op
        if isinstance(op, Gather):
            return op.axis + 1
        return op.batch_dims + dims(workload.inputs[1])[-1]  # type: ignore[attr-defined]

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        rank = len(workload.inputs[0].shape)
        widest = gcd(max(1, 16 // workload.inputs[0].dtype.itemsize), known(workload, 0, range(self._first(workload), rank)))
        choices = copy_choices(widest, max(1, count(workload.outputs[0])), device)
        return [config(v=v, items=items) for v, items in choices if items == 1 or isinstance(workload.op, Gather)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, chosen = workload.op, dict(config)
        v, items, item = chosen["v"], chosen["items"], workload.inputs[0].dtype.itemsize
        x, indices = dims(workload.inputs[0]), dims(workload.inputs[1])
        total = count(workload.outputs[0]) // v
        if not total:
            return Plan(())
        inner = prod(x[self._first(workload) :]) // v
        same: dict[str, object] = {"MOVE_T": raw_type(item * v), "INDEX_T": _index_type(workload), "THREADS": 256}
        arguments: tuple[Argument, ...]
        if isinstance(op, Gather):
            kernel = Kernel("gather/gather.cu", "gather", defines(device, KIND=0, ITEMS=items, **same), PRELUDE)
            arguments = (X, INDICES, OUT, Scalar(total, "u32"), Scalar(x[op.axis]), Struct(divider(inner)),
                         Struct(divider(prod(indices))))  # fmt: skip
            return Plan((launch(kernel, ceil_div(total, 256 * items), 256, arguments),))
        assert isinstance(op, GatherND)
        depth, batch = indices[-1], op.batch_dims
        steps = [step // v for step in _steps(x)]
        if depth == 0:
            return Plan((Copy(X, OUT, tensor_bytes(workload.outputs[0])),))
        kernel = Kernel("gather/gather.cu", "gather_nd", defines(device, KIND=2, DEPTH=depth, **same), PRELUDE)
        axes = Struct((*(Scalar(x[batch + d]) for d in range(depth)), *(Scalar(steps[batch + d], "u32") for d in range(depth))))
        arguments = (X, INDICES, OUT, Scalar(total, "u32"), Struct(divider(inner)), Struct(divider(prod(indices[batch:-1]))),
                     Scalar(prod(x[batch:]) // v, "i64"), axes)  # fmt: skip
        return Plan((launch(kernel, ceil_div(total, 256), 256, arguments),))


class GatherSingle(Tactic):
    """GatherElements: one thread per element."""

    id = "cuda.gather.elements"
    device = "cuda"
    ops = (GatherElements,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return _refusal(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        x, indices = dims(workload.inputs[0]), dims(workload.inputs[1])
        axis, rank, total = workload.op.axis, len(x), prod(indices)  # type: ignore[attr-defined]
        if not total:
            return Plan(())
        names = defines(device, KIND=1, MOVE_T=raw_type(workload.inputs[0].dtype.itemsize), INDEX_T=_index_type(workload), THREADS=256,
                        RANK=rank, AXIS=rank - 1 - axis)  # fmt: skip
        fields: list[Buffer | Scalar] = []
        for size in reversed(indices):
            fields += divider(size)
        fields += [Scalar(step, "u32") for step in reversed(_steps(x))]
        kernel = Kernel("gather/gather.cu", "gather_elements", names, PRELUDE)
        arguments = (X, INDICES, OUT, Scalar(total, "u32"), Scalar(x[axis]), Struct(tuple(fields)))
        return Plan((launch(kernel, ceil_div(total, 256), 256, arguments),))


class Scatter(Tactic):
    """ScatterElements (a thread per line along the axis) and ScatterND, after a copy of the input.

    ScatterND with a reduction does the tuples one after another, in parallel only along a slice: right and repeatable, but
    slow for slices of few elements.
    """

    id = "cuda.gather.scatter"
    device = "cuda"
    ops = (ScatterElements, ScatterND)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        reduction = workload.op.reduction  # type: ignore[attr-defined]
        if reduction not in REDUCTIONS:
            return Refusal(f"reduction {reduction!r}; this kernel has {', '.join(REDUCTIONS)}")
        if isinstance(workload.op, ScatterND) and workload.axis_varies(1, -1):
            return Refusal("the length of the index tuples varies")
        try:
            storage_type(workload.inputs[0].dtype)
        except Unsupported as reason:
            return Refusal(str(reason))
        return _refusal(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        copy = Copy(X, OUT, tensor_bytes(workload.outputs[0]))
        x, indices = dims(workload.inputs[0]), dims(workload.inputs[1])
        if not prod(indices):
            return Plan((copy,))
        same: dict[str, object] = {
            "ELEM_T": storage_type(workload.inputs[0].dtype), "INDEX_T": _index_type(workload), "THREADS": 128,
            "REDUCTION": REDUCTIONS[op.reduction],  # type: ignore[attr-defined]
        }  # fmt: skip
        scatter = self._elements if isinstance(op, ScatterElements) else self._tuples
        return Plan((copy, scatter(workload, x, indices, same, device)))

    @staticmethod
    def _elements(workload: Workload, x: tuple[int, ...], indices: tuple[int, ...], same: dict[str, object], device: DeviceSpec) -> Launch:
        axis = workload.op.axis  # type: ignore[attr-defined]
        out_steps, index_steps = _steps(x), _steps(indices)
        others = [one for one in reversed(range(len(x))) if one != axis]
        fields: list[Buffer | Scalar] = []
        for one in others:
            fields += divider(indices[one])
        fields = fields or list(divider(1))
        fields += [Scalar(index_steps[one], "u32") for one in others] or [Scalar(0, "u32")]
        fields += [Scalar(out_steps[one], "u32") for one in others] or [Scalar(0, "u32")]
        lines = prod(indices[one] for one in others)
        kernel = Kernel("gather/scatter.cu", "scatter_elements", defines(device, KIND=0, RANK=max(1, len(others)), **same), PRELUDE)
        arguments = (INDICES, UPDATES, OUT, Scalar(lines, "u32"), Scalar(indices[axis]), Scalar(x[axis]),
                     Scalar(index_steps[axis], "u32"), Scalar(out_steps[axis], "u32"), Struct(tuple(fields)))  # fmt: skip
        return launch(kernel, ceil_div(lines, 128), 128, arguments)

    @staticmethod
    def _tuples(workload: Workload, x: tuple[int, ...], indices: tuple[int, ...], same: dict[str, object], device: DeviceSpec) -> Launch:
        depth, tuples = indices[-1], prod(indices[:-1])
        inner, steps = prod(x[depth:]), _steps(x)
        parallel = workload.op.reduction == "none"  # type: ignore[attr-defined]
        kernel = Kernel("gather/scatter.cu", "scatter_nd", defines(device, KIND=1, DEPTH=depth, PARALLEL=parallel, **same), PRELUDE)
        axes = Struct((*(Scalar(x[d]) for d in range(depth)), *(Scalar(steps[d], "u32") for d in range(depth))))
        threads = inner * tuples if parallel else inner
        return launch(kernel, ceil_div(threads, 128), 128, (INDICES, UPDATES, OUT, Scalar(tuples, "u32"), Struct(divider(inner)), axes))


TACTICS = (GatherSlices(), GatherSingle(), Scatter())
