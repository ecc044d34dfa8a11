"""Elementwise layers: one launch for one expression, each operand read once where it is not broadcast.

``cuda.pointwise.flat`` serves operands of the output's shape and single elements (any count, vectors with a tail);
``cuda.pointwise.broadcast`` serves every broadcast, with the axes merged that all operands treat alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

from fusion.expression import Expression, Operand, operands, substitute
from fusion.ops import Pointwise
from tactics.cuda.codegen import Unsupported, computed_type, device_function, storage_type
from tactics.cuda.simple import LIMIT, OUT, ceil_div, count, defines, dims, divider, launch, out_pitch
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
    aligned_inputs,
    config,
    every_tensor,
)  # fmt: skip

FILE = "pointwise/pointwise.cu"


@dataclass(frozen=True)
class Broadcast:
    """The output's axes merged where every operand is read alike, innermost first.

    Attributes:
        used: the layer inputs that the expression reads.
        sizes: elements along each merged axis (at least one axis).
        divisors: what surely divides each size, whatever varying axes become.
        kept: per used operand and merged axis, whether the operand has it.
        pitches: per used operand, its pitch. Where there is any, axis 0 is the last one alone.
    """

    used: tuple[int, ...]
    sizes: tuple[int, ...]
    divisors: tuple[int, ...]
    kept: tuple[tuple[bool, ...], ...]
    pitches: tuple[int, ...] = ()


def broadcast_of(workload: Workload) -> Broadcast | Refusal:
    """How the operands of a pointwise workload are read."""
    used = operands(workload.op.expression)  # type: ignore[attr-defined]
    out = dims(workload.outputs[0])
    first = len(workload.inputs)
    pitches = tuple(workload.inputs[index].pitch for index in used)
    apart = any(pitches) or workload.outputs[0].pitch > 0
    sizes: list[int] = []
    divisors: list[int] = []
    patterns: list[tuple[bool, ...]] = []
    for axis in reversed(range(len(out))):
        varies = workload.axis_varies(first, axis)
        if out[axis] == 1 and not varies:
            continue
        pattern = []
        for index in used:
            shape = dims(workload.inputs[index])
            own = axis - len(out) + len(shape)
            if own < 0 or (shape[own] == 1 and not workload.axis_varies(index, own)):
                pattern.append(False)
            elif shape[own] == out[axis]:
                pattern.append(True)
            else:
                return Refusal(f"operand {index} of shape {shape} does not broadcast to {out}")
        if patterns and patterns[-1] == tuple(pattern) and not (apart and len(patterns) == 1):
            sizes[-1] *= out[axis]
            divisors[-1] *= 1 if varies else out[axis]
        else:
            sizes.append(out[axis])
            divisors.append(1 if varies else out[axis])
            patterns.append(tuple(pattern))
    if not sizes:
        sizes, divisors, patterns = [1], [1], [(False,) * len(used)]
    return Broadcast(used, tuple(sizes), tuple(divisors), tuple(zip(*patterns, strict=True)) if used else (), pitches)


def code(workload: Workload, vector: Sequence[bool], flat: bool) -> str:
    """The prelude: Args, Loaded, load_operands, compute. ``vector[o]``: operand o is read as V neighbouring elements.

    Raises:
        Unsupported: a data type or function has no CUDA code.
    """
    expression: Expression = workload.op.expression  # type: ignore[attr-defined]
    used = operands(expression)
    types = [workload.inputs[index].dtype for index in used]
    dense = substitute(expression, {index: Operand(position) for position, index in enumerate(used)})
    fields = loads = ""
    for position, dtype in enumerate(types):
        cpp = storage_type(dtype)
        pointer = f"static_cast<const {cpp}*>(args.operand[{position}])"
        if vector[position]:
            fields += f"    fx::Vec<{cpp}, N> o{position};\n"
            offset = "offset" if flat else f"offset[{position}]"
            loads += f"    to.o{position} = *reinterpret_cast<const fx::Vec<{cpp}, N>*>({pointer} + {offset});\n"
        else:
            fields += f"    {cpp} o{position};\n"
            loads += f"    to.o{position} = {pointer}[{'0' if flat else f'offset[{position}]'}];\n"
    arguments = ", ".join(
        f"fx::widen(from.o{position}{'.value[i]' if vector[position] else ''})" for position in range(len(types))
    )
    offset = "long long offset" if flat else "const unsigned (&offset)[OPERANDS]"
    result = computed_type(workload.outputs[0].dtype)
    return (
        '#include "functions.cuh"\n'
        f"using RESULT = {result};\n"
        f"struct Args {{\n    const void* operand[{max(1, len(used))}];\n}};\n"
        + device_function("value", dense, types, stored=True)
        + f"template <int N>\nstruct Loaded {{\n{fields}}};\n"
        f"template <int N>\n__device__ __forceinline__ void load_operands(Loaded<N>& to, const Args& args, {offset}) {{\n{loads}}}\n"
        f"template <int N>\n__device__ __forceinline__ void compute(const Loaded<N>& from, RESULT (&result)[N]) {{\n"
        f"#pragma unroll\n    for (int i = 0; i < N; ++i) result[i] = value({arguments});\n}}\n"
    )


def _check(workload: Workload) -> Broadcast | Refusal:
    found = broadcast_of(workload)
    if isinstance(found, Refusal):
        return found
    try:
        code(workload, [True] * len(found.used), flat=True)
        storage_type(workload.outputs[0].dtype)
    except Unsupported as reason:
        return Refusal(str(reason))
    return found


def _args(found: Broadcast) -> Struct:
    return Struct(tuple(Buffer("input", index) for index in found.used) or (Scalar(0, "u64"),))


def _item_bytes(workload: Workload, found: Broadcast) -> list[int]:
    """Bytes of an element of each tensor that is moved as vectors: the output, and operands with the innermost axis."""
    moved = [workload.inputs[i].dtype for i, kept in zip(found.used, found.kept, strict=True) if kept[0]]
    return [dtype.itemsize for dtype in (workload.outputs[0].dtype, *moved)]


def _spaces(widest: int, elements: int, device: DeviceSpec) -> list[tuple[int, int]]:
    """(V, ITEMS) choices, best first: small tensors are spread over more threads."""
    resident = device.multiprocessors * 1024
    small = elements // widest < resident
    order = [(widest, 1), (widest, 2), (widest, 4), (max(1, widest // 2), 1), (1, 1)]
    if small:
        order = [(widest, 1), (max(1, widest // 2), 1), (1, 1), (widest, 2)]
    return list(dict.fromkeys(order))


class FlatPointwise(Tactic):
    """Operands of the output's shape, or of one element; any element count."""

    id = "cuda.pointwise.flat"
    device = "cuda"
    ops = (Pointwise,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        found = _check(workload)
        if isinstance(found, Refusal):
            return found
        if len(found.sizes) > 1:
            return Refusal(f"operands are broadcast along some axes of {dims(workload.outputs[0])}: see cuda.pointwise.broadcast")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        found = broadcast_of(workload)
        assert isinstance(found, Broadcast)
        widest = min(8, 16 // min(_item_bytes(workload, found)))
        return [config(v=v, items=items, threads=256) for v, items in _spaces(widest, count(workload.outputs[0]), device)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, found = dict(config), broadcast_of(workload)
        assert isinstance(found, Broadcast)
        text = code(workload, [kept[0] for kept in found.kept], flat=True)
        kernel = Kernel(FILE, "pointwise_flat", defines(
            device, FLAT=1, VEC=chosen["v"], ITEMS=chosen["items"], THREADS=chosen["threads"],
            OUT_T=storage_type(workload.outputs[0].dtype)), text)  # fmt: skip
        elements = count(workload.outputs[0])
        blocks = ceil_div(elements // chosen["v"], chosen["threads"] * chosen["items"])
        step = launch(kernel, blocks, chosen["threads"], (OUT, Scalar(elements, "i64"), _args(found)))
        return Plan((step,), in_place=aligned_inputs(workload))  # a thread loads all that it reads before it stores


class BroadcastPointwise(Tactic):
    """Any broadcast; fewer than 2^31 elements."""

    id = "cuda.pointwise.broadcast"
    device = "cuda"
    ops = (Pointwise,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        found = _check(workload)
        if isinstance(found, Refusal):
            return found
        if count(workload.outputs[0]) >= LIMIT:
            return Refusal(f"the output has {count(workload.outputs[0])} elements; this kernel counts to {LIMIT - 1}")
        return None

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload) if dims(workload.outputs[0])[-1] > 1 else ()

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        found = broadcast_of(workload)
        assert isinstance(found, Broadcast)
        widest = min(8, 16 // min(_item_bytes(workload, found)))
        while found.divisors[0] % widest:
            widest //= 2
        spaces = _spaces(widest, count(workload.outputs[0]), device)
        if widest == 1:
            spaces = [(1, 4), (1, 8), (1, 1)] if prod(found.sizes) > device.multiprocessors * 4096 else [(1, 1), (1, 2), (1, 4)]
        return [config(v=v, items=items, threads=256) for v, items in spaces]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, found = dict(config), broadcast_of(workload)
        assert isinstance(found, Broadcast)
        v, rank = chosen["v"], len(found.sizes)
        kernel = Kernel(FILE, "pointwise_broadcast", defines(
            device, VEC=v, ITEMS=chosen["items"], THREADS=chosen["threads"], RANK=rank, OPERANDS=max(1, len(found.used)),
            OUT_T=storage_type(workload.outputs[0].dtype), **out_pitch(workload)),
            code(workload, [kept[0] for kept in found.kept], flat=False))  # fmt: skip
        vectors = prod(found.sizes) // v
        fields: list[Buffer | Scalar] = []
        for axis, size in enumerate(found.sizes):
            fields += divider(size // v if axis == 0 else size)
        for number, kept in enumerate(found.kept or ((False,) * rank,)):
            stride = 1
            for axis, keep in enumerate(kept):
                fields.append(Scalar((stride * (v if axis == 0 else 1)) if keep else 0, "u32"))
                stride *= found.sizes[axis] if keep else 1
                if axis == 0 and found.pitches and found.pitches[number]:
                    stride = found.pitches[number]
        arguments: tuple[Argument, ...] = (OUT, Scalar(vectors, "u32"), _args(found), Struct(tuple(fields)))
        blocks = ceil_div(vectors, chosen["threads"] * chosen["items"])
        return Plan((launch(kernel, blocks, chosen["threads"], arguments),), in_place=aligned_inputs(workload))


TACTICS = (FlatPointwise(), BroadcastPointwise())
