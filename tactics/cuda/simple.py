"""What the memory-bound tactics share: shapes, vector widths, dividers, launches. All pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

from fusion.dtypes import DataType
from fusion.expression import Expression, type_of
from fusion.network import TensorType
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.codegen import STORAGE_TYPES, Unsupported, computed_type, device_function, storage_type
from tactics.cuda.epilogue import EpilogueCode, finish_code
from tactics.tactic import Argument, Buffer, Config, DeviceSpec, Kernel, Launch, Refusal, Scalar, Workload, config

Defines = tuple[tuple[str, str], ...]

LIMIT = 2**31  # elements that 32-bit offsets reach

_RAW_TYPES = {1: "fx::u8", 2: "fx::u16", 4: "fx::u32", 8: "fx::u64", 16: "fx::b128"}

OUT = Buffer("output")

REGISTER_ELEMENTS = 64  # values that one thread keeps
LONGEST_ROW = 1024 * 16  # elements that one block keeps in registers


def raw_type(size: int) -> str:
    """A C++ type of ``size`` bytes (1, 2, 4, 8, 16), for kernels that only move data."""
    return _RAW_TYPES[size]


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def dims(tensor: TensorType) -> tuple[int, ...]:
    """The concrete shape of a tensor."""
    return tuple(int(dim) for dim in tensor.shape)  # type: ignore[arg-type]


def count(tensor: TensorType) -> int:
    """How many elements a tensor with a concrete shape has."""
    return prod(dims(tensor))


def known(workload: Workload, tensor: int, axes: Sequence[int]) -> int:
    """The product of the sizes of ``axes`` of a tensor (inputs first, then outputs) that never vary: a sure divisor."""
    shape = dims((*workload.inputs, *workload.outputs)[tensor])
    return prod(shape[axis] for axis in axes if not workload.axis_varies(tensor, axis))


def vector_width(itemsize: int, *lengths: int, most: int = 8) -> int:
    """Elements per access: the largest power of two that divides all ``lengths``, of at most 16 bytes and ``most`` elements."""
    return gcd(min(most, max(1, 16 // itemsize)), *lengths)


def divider(value: int) -> tuple[Scalar, Scalar, Scalar]:
    """The fields of a ``Divider`` (include/division.cuh) for ``value`` >= 1."""
    value = max(1, value)
    shift = (value - 1).bit_length()
    multiplier = ((1 << 32) * ((1 << shift) - value)) // value + 1
    return Scalar(value, "u32"), Scalar(multiplier, "u32"), Scalar(shift, "u32")


def defines(device: DeviceSpec, **values: object) -> Defines:
    """Compile-time parameters in a fixed order, with ``PDL`` where the device has programmatic dependent launch."""
    found = {name: str(int(value) if isinstance(value, bool) else value) for name, value in values.items()}
    if device.capability >= 90:
        found["PDL"] = "1"
    return tuple(sorted(found.items()))


def out_pitch(workload: Workload, unit: int = 1) -> dict[str, int]:
    """The defines of ``include/pitch.cuh`` for output 0, in ``unit`` elements; nothing where it is dense."""
    tensor = workload.outputs[0]
    return {"OUT_PITCH": tensor.pitch // unit, "OUT_WIDTH": dims(tensor)[-1] // unit} if tensor.pitch else {}


def x_pitch(workload: Workload) -> dict[str, int]:
    """The same for input 0."""
    tensor = workload.inputs[0]
    return {"X_PITCH": tensor.pitch, "X_WIDTH": dims(tensor)[-1]} if tensor.pitch else {}


def launch(
    kernel: Kernel, blocks: int | tuple[int, ...], threads: int | tuple[int, int], arguments: Sequence[Argument], shared: int = 0
) -> Launch:
    """A launch; dependent when the kernel was compiled for it. Grids have at least one block."""
    grid = (blocks,) if isinstance(blocks, int) else blocks
    block = (threads,) if isinstance(threads, int) else threads
    sizes = tuple(max(1, size) for size in (*grid, 1, 1)[:3])
    return Launch(kernel, sizes, (*block, 1, 1)[:3], tuple(arguments), shared, dependent=("PDL", "1") in kernel.defines)  # type: ignore[arg-type]


def refuse_large(workload: Workload) -> Refusal | None:
    """A refusal when a tensor has 2^31 elements or more."""
    for tensor in (*workload.inputs, *workload.outputs):
        if count(tensor) >= LIMIT:
            return Refusal(f"a tensor has {count(tensor)} elements; this kernel counts to {LIMIT - 1}")
    return None


def refuse_input(workload: Workload) -> Refusal | None:
    """A refusal when generated code cannot read input 0, or a tensor has 2^31 elements or more."""
    dtype = workload.inputs[0].dtype
    if dtype not in STORAGE_TYPES:
        return Refusal(f"x is {dtype.value}; this kernel does not read it")
    return refuse_large(workload)


def contiguous(axes: Sequence[int]) -> bool:
    """Whether ascending ``axes`` are neighbours."""
    return tuple(axes) == tuple(range(axes[0], axes[0] + len(axes)))


def prologue_code(prologue: Expression, dtype: DataType) -> str:
    """``prologue(x)``, its result type ``WORK`` (the type that the operation computes in), for input elements of ``dtype``.

    Raises:
        Unsupported: a data type or function has no CUDA code.
    """
    work = computed_type(type_of(prologue, [dtype]))
    return f'#include "functions.cuh"\nusing WORK = {work};\n' + device_function("prologue", prologue, [dtype])


def wrap_code(workload: Workload, prologue: Expression = IDENTITY) -> tuple[str, EpilogueCode] | Refusal:
    """The prelude with prologue and epilogue around an operation on input 0, and the epilogue's description."""
    dtype = workload.inputs[0].dtype
    try:
        before = prologue_code(prologue, dtype)
        storage_type(workload.outputs[0].dtype)
        code = finish_code(workload, type_of(prologue, [dtype]))
    except Unsupported as reason:
        return Refusal(str(reason))
    if isinstance(code, Refusal):
        return code
    return before + code.prelude, code


def row_configs(n: int, widest: int, values: int = REGISTER_ELEMENTS, aim: int = 16) -> list[Config]:
    """How groups of threads may keep rows of ``n`` elements in registers, the best guess first: ``group`` threads with ``vectors`` vectors of
    ``v`` elements each, at most ``values`` a thread (16 in the largest blocks); best are 8 of them, of vectors of 8 elements ``aim``.
    ``widest`` is the widest vector that rows and results allow."""
    found = []
    for v in dict.fromkeys((widest, max(1, widest // 2))):
        for group in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
            vectors = ceil_div(n, group * v)
            if vectors * v > (values if group < 1024 else 16) or (group > 4 and ceil_div(n, group // 2 * v) == 1):
                continue
            # About 8 to 16 values a thread keep enough loads in flight without starving occupancy.
            found.append((abs(vectors * v - (8 if v < 8 else aim)), -v, group, vectors))
    return [config(v=-v, group=group, vectors=vectors) for _, v, group, vectors in sorted(found)][:5]


def block_of(group: int) -> int:
    """Threads of a block whose groups have ``group`` threads: parts of a warp share a block, larger groups are the block."""
    return group if group > 32 else 128
