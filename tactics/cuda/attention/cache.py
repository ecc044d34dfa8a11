"""Caches of keys and values with new rows behind them: one launch for all of a layer's caches."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusion.ops import CacheAppend
from tactics.cuda.simple import ceil_div, defines, dims, divider, launch, raw_type, refuse_large, vector_width
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

FILE = "attention/cache.cu"
MOST = 8  # caches: their descriptions are kernel arguments


class Append(Tactic):
    """A thread per vector of a row."""

    id = "cuda.cache.append"
    device = "cuda"
    ops = (CacheAppend,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if len(workload.outputs) > MOST:
            return Refusal(f"{len(workload.outputs)} caches; this kernel takes up to {MOST}")
        if len({tensor.dtype for tensor in workload.outputs}) > 1:
            return Refusal("caches of different types; this kernel copies one")
        if workload.axis_varies(0, 3):
            return Refusal("the size of a head varies")
        return refuse_large(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [config(threads=threads, items=items) for threads in (256, 128) for items in (4, 1)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, op, itemsize = dict(config), workload.op, workload.inputs[0].dtype.itemsize
        assert isinstance(op, CacheAppend)
        counts = [prod(dims(tensor)) for tensor in workload.outputs]
        if not any(counts) and workload.is_static:
            return Plan(())
        v = vector_width(itemsize, *(dims(tensor)[3] for tensor in workload.outputs), most=16)
        fields: list[Argument] = []
        for number, ((source, first), total) in enumerate(zip(op.sources, counts, strict=True)):
            (_, heads, length, size), (_, steps, wide, _) = dims(workload.inputs[number]), dims(workload.inputs[source])
            fields += [Buffer("input", number), Buffer("input", source, first * size * itemsize), Buffer("output", number)]
            fields += [Scalar(one, "u32") for one in (total // v, length, steps, steps * wide * size // v, wide * size // v)]
            fields += [*divider(size // v), *divider(dims(workload.outputs[number])[2]), *divider(heads)]
        names = defines(device, MOVE_T=raw_type(v * itemsize), THREADS=chosen["threads"], ITEMS=chosen["items"], CACHES=len(counts), PLACED=op.total is not None)
        blocks = ceil_div(max(counts) // v, chosen["threads"] * chosen["items"])
        starts: Argument = Scalar(0, "u64") if op.total is None else Buffer("input", op.arity - 1)
        arguments = (Struct(tuple(fields)), starts)  # type: ignore[arg-type]
        return Plan((launch(Kernel(FILE, "append", names), (blocks, len(counts)), chosen["threads"], arguments),))


TACTICS = (Append(),)
