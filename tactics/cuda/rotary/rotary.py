"""Rotary position embedding: one read, one write; the tables stay in cache."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusion.dtypes import DataType
from fusion.expression import compute_type
from fusion.network import TensorType
from fusion.ops import RotaryEmbedding
from tactics.cuda.codegen import storage_type
from tactics.cuda.simple import OUT, ceil_div, defines, dims, divider, launch, refuse_large, vector_width
from tactics.tactic import (
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

FILE = "rotary/rotary.cu"
WARP = 32


class Rotary(Tactic):
    """A thread per vector of pairs."""

    id = "cuda.rotary.pairs"
    device = "cuda"
    ops = (RotaryEmbedding,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        types = [tensor.dtype for tensor in workload.inputs]
        if types[1] is not types[2] or types[1] not in (types[0], DataType.FLOAT) or not compute_type(types[0]).is_float or types[0].itemsize < 2:
            return Refusal(f"x, cos and sin are {', '.join(one.value for one in types)}; one type of 16 bits or more, or float32 angles, are needed")
        if types[0].itemsize > types[1].itemsize:
            return Refusal(f"x is {types[0].value}, wider than its angles")
        if workload.axis_varies(0, len(workload.inputs[0].shape) - 1):
            return Refusal("the length of a row varies")
        if _op(workload).epsilon is not None:
            if types[3] not in (types[0], DataType.FLOAT):
                return Refusal(f"a scale of {types[3].value} for rows of {types[0].value}; their type or float32 is needed")
            if not self.configs(workload, device):
                return Refusal(f"rows of {_pairs(workload)[1]} elements are normalised by a warp, {WARP} vectors at most")
        return refuse_large(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        half, width = _pairs(workload)
        widest = vector_width(workload.inputs[0].dtype.itemsize * (2 if _op(workload).interleaved else 1), half, width // 2 - half)
        normalized = _op(workload).epsilon is not None
        fitting = [v for v in dict.fromkeys((widest, max(1, widest // 2))) if not normalized or width // 2 // v <= WARP]
        return [config(threads=threads, v=v) for v in fitting for threads in (128, 256)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, (x, cos, sin, *scale), op = dict(config), workload.inputs, _op(workload)
        v, threads, outer = chosen["v"], chosen["threads"], dims(workload.outputs[0])[:-1]
        half, width = _pairs(workload)
        vectors = width // 2 // v
        group = 1 << (vectors - 1).bit_length()
        count = prod(outer) * (vectors if op.epsilon is None else 1)
        if not count and workload.is_static:
            return Plan(())
        outer = outer or (1,)
        names = defines(device, IN_T=storage_type(x.dtype), ANGLE_T=storage_type(cos.dtype), VEC=v, THREADS=threads, AXES=len(outer), INTERLEAVED=op.interleaved,
                        PARTIAL=width > 2 * half, COS_WIDE=dims(cos)[-1] == 2 * half, SIN_WIDE=dims(sin)[-1] == 2 * half, NORMALIZED=op.epsilon is not None,
                        **({"GROUP": group, "SCALE_T": storage_type(scale[0].dtype)} if scale else {}))  # fmt: skip
        fields = [field for size in reversed(outer) for field in divider(size)]
        for tensor in (x, cos, sin, *scale):
            fields += [Scalar(stride, "u32") for stride in reversed(_strides(tensor, len(outer)))]
        extra = (Buffer("input", 3), Scalar(op.epsilon, "f32")) if op.epsilon is not None else ()
        arguments = (Buffer("input"), Buffer("input", 1), Buffer("input", 2), *extra, OUT, Scalar(count, "u32"), Scalar(half, "u32"), Scalar(width, "u32"),
                     Struct(divider(vectors)), Struct(tuple(fields)))  # fmt: skip
        return Plan((launch(Kernel(FILE, "rotary_embedding", names), ceil_div(count * (group if scale else 1), threads), threads, arguments),))


def _op(workload: Workload) -> RotaryEmbedding:
    assert isinstance(workload.op, RotaryEmbedding)
    return workload.op


def _pairs(workload: Workload) -> tuple[int, int]:
    """Pairs of a row that turn, and the elements of a row."""
    width = dims(workload.inputs[0])[-1]
    return (_op(workload).rotated or width) // 2, width


def _strides(table: TensorType, axes: int) -> list[int]:
    """Elements between neighbours along each of the last ``axes`` axes before the rows; 0 where the table is repeated."""
    shape = dims(table)
    strides = [0 if size == 1 else prod(shape[axis + 1 :]) for axis, size in enumerate(shape[:-1])]
    return [0] * (axes - len(strides)) + strides


TACTICS = (Rotary(),)
