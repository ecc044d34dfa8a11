"""What the recurrent tactics share: defines, activations, arguments."""

from __future__ import annotations

from fusion.dtypes import DataType
from fusion.expression import Apply, Expression, Literal, Operand, apply, substitute
from fusion.network import TensorType
from fusion.ops import Recurrence
from fusion.ops.recurrent import compute_operand
from tactics.cuda.codegen import STORAGE_TYPES, Unsupported, device_function
from tactics.cuda.simple import dims
from tactics.tactic import Buffer, Refusal, Scalar, Struct, Workload

CELLS = {"rnn": 0, "gru": 1, "lstm": 2}
REAL = (DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.DOUBLE)


def operation(workload: Workload) -> Recurrence:
    """The workload's operation."""
    assert isinstance(workload.op, Recurrence)
    return workload.op


def sizes(workload: Workload) -> tuple[int, int]:
    """(steps, rows of the batch)."""
    op, shape = operation(workload), dims(workload.inputs[0])
    return shape[op.input_order.index("t")], shape[op.input_order.index("b")]


def refusal_of(workload: Workload) -> Refusal | None:
    """What no recurrent kernel takes."""
    dtype = workload.inputs[0].dtype
    if dtype not in REAL:
        return Refusal(f"no recurrent kernel for data type {dtype.value}")
    for number, tensor in enumerate(workload.inputs):
        if tensor.dtype is not dtype and number != operation(workload).place("lengths"):
            return Refusal(f"input {number} is {tensor.dtype.value}, the first is {dtype.value}")
    try:
        prelude(workload)
    except Unsupported as reason:
        return Refusal(str(reason))
    return None


def prelude(workload: Workload) -> str:
    """The activations as device functions, clipping included.

    Raises:
        Unsupported: one has no CUDA code.
    """
    op, dtype = operation(workload), workload.inputs[0].dtype
    kind = compute_operand(dtype)
    work = STORAGE_TYPES[kind]
    lines = ['#include "functions.cuh"', f"using WORK = {work};"]
    for number in range(len(op.activations[0])):
        distinct = list(dict.fromkeys(one[number] for one in op.activations))
        for index, function in enumerate(distinct):
            code = device_function(f"activation{number}_{index}", bounded(function, op.clip, kind), [kind], fast=dtype.itemsize == 2)
            lines.append(code)
        choice = f"activation{number}_0(x)"
        if len(distinct) > 1:
            choice = f"direction == 0 ? activation{number}_0(x) : activation{number}_1(x)"
        lines.append(f"__device__ __forceinline__ WORK activation{number}(WORK x, int direction) {{ return {choice}; }}")
    return "\n".join(lines) + "\n"


def bounded(function: Expression, clip: float, kind: DataType) -> Expression:
    """``function`` of its operand, which ``clip`` bounds."""
    inner: Expression = Operand(0)
    if clip:
        inner = apply("clip", inner, Literal(-clip, kind), Literal(clip, kind))
        function = substitute(function, {0: inner})
    return function if isinstance(function, Apply) else apply("add", function, Literal(0.0, kind))


def names(workload: Workload) -> dict[str, object]:
    """The defines that ``recurrent.cuh`` wants."""
    op = operation(workload)
    place = op.place("lengths")
    return {
        "CELL": CELLS[op.cell], "GATES": op.gates, "HIDDEN": op.hidden, "DIRECTIONS": len(op.reverse),
        "IN_T": STORAGE_TYPES[workload.inputs[0].dtype], "LENGTH_T": "int" if place is None else STORAGE_TYPES[workload.inputs[place].dtype],
        "RESET_AFTER": op.reset_after, "COUPLED": op.coupled, "HAS_BIAS": op.recurrent_bias, "HAS_H": op.initial_h, "HAS_C": op.initial_c,
        "HAS_PEEPHOLE": op.peephole, "HAS_LENGTHS": op.lengths,
        "REVERSE": sum(1 << direction for direction, backwards in enumerate(op.reverse) if backwards),
    }  # fmt: skip


def tensors(workload: Workload, weights: Buffer) -> Struct:
    """The kernel's ``Tensors``; what is absent points to x and is never read."""
    op = operation(workload)
    optional = (op.place(name) for name in ("recurrent_bias", "initial_h", "initial_c", "peephole", "lengths"))
    last_c = Buffer("output", 2) if op.cell == "lstm" else Buffer("output", 1)
    return Struct((Buffer("input", 0), weights, *(Buffer("input", number or 0) for number in optional), Buffer("output", 0), Buffer("output", 1), last_c))


def strides(workload: Workload) -> Struct:
    """The kernel's ``Strides``."""
    op = operation(workload)
    x, y, state = workload.inputs[0], workload.outputs[0], workload.outputs[1]
    found = [
        _stride(x, op.input_order, "t"), _stride(x, op.input_order, "b"), *(_stride(y, op.output_order, axis) for axis in "tdb"),
        *(_stride(state, op.state_order, axis) for axis in "db"),
    ]  # fmt: skip
    return Struct(tuple(Scalar(value, "i64") for value in found))


def _stride(tensor: TensorType, order: str, axis: str) -> int:
    stride = 1
    for size in dims(tensor)[order.index(axis) + 1 :]:
        stride *= size
    return stride
