"""What the GEMM, convolution and attention tactics share: C names of data types, alignment, the epilogue, small arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from fusion.dtypes import DataType
from fusion.ops.epilogue import product_type
from tactics.cuda.epilogue import epilogue_argument, finish_code
from tactics.tactic import Buffer, DeviceSpec, Refusal, Scalar, Struct, Workload, every_tensor

C_TYPES = {DataType.FLOAT: "float", DataType.HALF: "__half", DataType.BF16: "__nv_bfloat16"}

# What 8-bit operands are in the kernels, and what sums may become.
EIGHT_BIT_TYPES = {DataType.INT8: "fx::i8", DataType.UINT8: "fx::u8", DataType.FP8: "fx::e4m3", DataType.FP8_E5M2: "fx::e5m2"}
STORED_TYPES = {**C_TYPES, **EIGHT_BIT_TYPES, DataType.INT32: "int"}
REFERENCE_TYPES = (*STORED_TYPES,)  # what the ordinary cores multiply

Defines = tuple[tuple[str, str], ...]


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The least multiple of ``b`` that is at least ``a``."""
    return ceil_div(a, b) * b


def defines(**values: object) -> Defines:
    """Compile-time parameters, in a fixed order; those whose value is None are left out."""
    return tuple((name, str(int(value) if isinstance(value, bool) else value)) for name, value in sorted(values.items())
                 if value is not None)  # fmt: skip


def vector_bytes(itemsize: int, *lengths: int) -> int:
    """The widest of 16, 8, 4, 2 bytes that divides every length (in elements of ``itemsize`` bytes)."""
    return gcd(16, *(length * itemsize for length in lengths))


def vector_columns(*lengths: int) -> int:
    """How many columns (8, 4, 2 or 1) divide every length: what one store may cover."""
    return gcd(8, *lengths)


def fixed(workload: Workload, tensor: int, axis: int) -> int:
    """The size of an axis when it never varies, else 1: what alignment may be derived from."""
    shape = (*workload.inputs, *workload.outputs)[tensor].shape
    return 1 if workload.axis_varies(tensor, axis) else int(shape[axis])  # type: ignore[arg-type]


def sizes(workload: Workload, tensor: int) -> tuple[int, ...]:
    """The concrete shape of a tensor (inputs first, then outputs)."""
    return tuple(int(dim) for dim in (*workload.inputs, *workload.outputs)[tensor].shape)  # type: ignore[arg-type]


def pdl(device: DeviceSpec) -> bool:
    """Whether kernels are compiled for programmatic dependent launch."""
    return device.capability >= 90


def refuse_types(workload: Workload, tensors: int, allowed: tuple[DataType, ...]) -> Refusal | None:
    """A refusal unless the first ``tensors`` inputs share one of the ``allowed`` types (UINT8 goes with INT8) and the output is one of STORED_TYPES."""
    first = workload.inputs[0].dtype
    if first not in allowed:
        return Refusal(f"inputs are {first.label}; this kernel takes {', '.join(one.label for one in allowed)}")
    wanted = DataType.INT8 if first is DataType.UINT8 else first
    for tensor in workload.inputs[1:tensors]:
        if tensor.dtype is not wanted:
            return Refusal(f"inputs are {first.label} and {tensor.dtype.label}; beside {first.label} this kernel wants {wanted.label}")
    if workload.outputs[0].dtype not in STORED_TYPES:
        return Refusal(f"the output is {workload.outputs[0].dtype.label}; this kernel stores {', '.join(one.label for one in STORED_TYPES)}")
    return None


def refuse_eight_bits(workload: Workload, device: DeviceSpec) -> Refusal | None:
    """A refusal where tensor cores do not multiply the workload's 8-bit operands."""
    dtype = workload.inputs[0].dtype
    if dtype.itemsize == 1 and dtype.is_float and device.capability < 89:
        return Refusal(f"tensor cores multiply {dtype.label} from sm_89 on; the device is {device.arch}")
    return None


def refuse_tensor_cores(workload: Workload, device: DeviceSpec) -> Refusal | None:
    """A refusal where mma.sync does not multiply the workload's first two inputs, or rounds them where that is not allowed."""
    if device.capability < 75:
        return Refusal(f"tensor cores of this kernel need sm_75; the device is {device.arch}")
    allowed = (DataType.HALF,) if device.capability < 80 else (DataType.HALF, DataType.BF16, DataType.FLOAT)
    if refusal := refuse_types(workload, 2, (*allowed, *EIGHT_BIT_TYPES)) or refuse_eight_bits(workload, device):
        return refusal
    if workload.inputs[0].dtype is DataType.FLOAT and not workload.tf32:
        return Refusal("FP32 products on tensor cores round to TF32, which is not allowed here")
    return None


def operand_types(workload: Workload) -> dict[str, str | int | None]:
    """The defines that say how operands are stored and summed (``include/sums.cuh``)."""
    a, b = (tensor.dtype for tensor in workload.inputs[:2])
    return {"A_T": STORED_TYPES[a], "B_T": STORED_TYPES[b], **sum_types(workload)}


def sum_types(workload: Workload) -> dict[str, str | int | None]:
    """The defines that say how sums are held."""
    return sum_types_of(workload.inputs[0].dtype)


def sum_types_of(dtype: DataType) -> dict[str, str | int | None]:
    """The same for operands of ``dtype``."""
    return {"SUM_T": None if dtype.is_float else "int"}


def rows_and_operands(workload: Workload) -> list[int]:
    """The tensors of a product that the kernels take as columns of wider ones: a where k is contiguous, operands, the output."""
    return [number for number in every_tensor(workload) if number > 1 or (number == 0 and not workload.op.transpose_a)]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Epilogue:
    """The generated epilogue of a workload: source text before the kernel, its defines, and the kernel's last argument."""

    prelude: str
    defines: Defines
    argument: Struct


NO_OPERANDS = Struct((Scalar(0, "u64"),))


def epilogue_of(workload: Workload) -> Epilogue | Refusal:
    """The workload's epilogue as a kernel takes it."""
    code = finish_code(workload, product_type(workload.inputs[0].dtype))
    return code if isinstance(code, Refusal) else Epilogue(code.prelude, code.defines, epilogue_argument(code))


def refuse_epilogue(workload: Workload) -> Refusal | None:
    """Why a kernel cannot compute the workload's epilogue, None when it can."""
    epilogue = epilogue_of(workload)
    return epilogue if isinstance(epilogue, Refusal) else None


def batches(shape: tuple[int, ...], out: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of a tensor's batch axes against the output's (0 where it broadcasts); both without matrix axes."""
    padded = (1,) * (len(out) - len(shape)) + shape
    strides, step = [], 1
    for size, whole in zip(reversed(padded), reversed(out), strict=True):
        strides.append(0 if size == 1 and whole != 1 else step)
        step *= size
    return tuple(reversed(strides))


def two_level(out: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[int, list[tuple[int, int]]] | None:
    """Batch axes flattened to two levels: (inner count, per operand (outer, inner) stride in matrices), or None.

    Axis ``split`` separates the levels; each level must be one stride for every operand.
    """
    for split in range(len(out) + 1):
        levels = [_flat_stride(out[:split], [s[:split] for s in strides]), _flat_stride(out[split:], [s[split:] for s in strides])]
        if levels[0] is not None and levels[1] is not None:
            return prod(out[split:]), list(zip(levels[0], levels[1], strict=True))
    return None


def _flat_stride(dims: tuple[int, ...], strides: list[tuple[int, ...]]) -> list[int] | None:
    result = []
    for one in strides:
        flat, step, count = None, 0, 1
        for size, stride in zip(reversed(dims), reversed(one), strict=True):
            if size == 1:
                continue
            if flat is None:
                flat = stride
            elif stride != step:
                return None
            step = stride * size if flat else 0
            count *= size
        result.append(flat or 0)
    return result


def null() -> Scalar:
    """A pointer that is not used."""
    return Scalar(0, "u64")


def workspace() -> Buffer:
    """The layer's scratch memory."""
    return Buffer("workspace")
