"""Matrix products by cuBLASLt, where ``--tacticSources=+CUBLAS_LT`` asks for it.

Bias, residual sum and ReLU or tanh-GELU are cuBLASLt's own epilogue. Anything else is a product into scratch memory and our
kernel ``splitk_reduce`` behind it, which the times then have to pay for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import MatrixMultiply
from tactics.cuda.gemm.common import (
    C_TYPES,
    STORED_TYPES,
    Epilogue,
    epilogue_of,
    fixed,
    pdl,
    refuse_eight_bits,
    refuse_epilogue,
    refuse_types,
    round_up,
    sum_types,
    vector_columns,
)
from tactics.cuda.gemm.mma_gemm import Product, k_alignment, pack_rows, packs_b, product_of, reduction
from tactics.cuda.libraries.affine import Affine, affine_epilogue
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    LibraryCall,
    Plan,
    Refusal,
    Tactic,
    Workload,
    config,
    floor_seconds,
)

SOURCE = "CUBLAS_LT"
MIB = 1 << 20
# (scratch memory that an algorithm may use, how many of the heuristic's proposals within it are timed)
SEARCH = ((32 * MIB, 5), (4 * MIB, 3), (0, 2))


@dataclass(frozen=True)
class MatrixCall:
    """``out[batch][m][n] = activation(scale * a b + bias[n] + residual)``, everything row-major and dense but for ``ldb``.

    Buffers: ``a`` [m][k] ([k][m] when ``transpose_a``), ``b`` [k][n] ([n][k] when ``transpose_b``) with row length ``ldb``, ``out``,
    and where they are used ``bias`` (in the type of ``out``), ``residual`` (shape and type of ``out``), ``workspace``. Strides are between
    the matrices of a batch, in elements. ``algorithm`` counts the heuristic's proposals, the best first; when ``exact`` is false
    (sizes vary) the last one stands for those that it does not have.
    """

    m: int
    n: int
    k: int
    a: DataType
    b: DataType
    out: DataType
    ldb: int
    transpose_a: bool = False
    transpose_b: bool = False
    batch: int = 1
    a_stride: int = 0
    b_stride: int = 0
    tf32: bool = True
    scale: float = 1.0
    bias: bool = False
    residual: bool = False
    activation: str = ""
    algorithm: int = 0
    exact: bool = True


class CublasLt(Tactic):
    """The heuristic's best algorithms within several amounts of scratch memory."""

    id = "cuda.cublas_lt"
    device = "cuda"
    ops = (MatrixMultiply,)
    source = SOURCE

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype = workload.inputs[0].dtype
        if refusal := refuse_types(workload, 2, (*C_TYPES, DataType.INT8, DataType.FP8)) or refuse_eight_bits(workload, device):
            return refusal
        if dtype is DataType.BF16 and device.capability < 80:
            return Refusal(f"BF16 needs sm_80; the device is {device.arch}")
        product = product_of(workload)
        if isinstance(product, Refusal):
            return product
        if product.m * product.n * product.k * product.batch == 0:
            return Refusal("an empty product")
        if _batch_strides(product) is None:
            return Refusal("batch axes need more than one stride")
        if dtype.itemsize == 1:
            if product.transpose_a or not (product.transpose_b or packs_b(workload)):
                return Refusal("8-bit operands must have the depth contiguous in memory")
            multiple = 16 if dtype.is_float else 4
            n, k = fixed(workload, len(workload.inputs), -1), k_alignment(workload)
            if n % multiple or k % multiple:
                return Refusal(f"{product.n} columns and a depth of {product.k}: {dtype.label} wants multiples of {multiple}")
        return refuse_epilogue(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [config(algorithm=rank, workspace=size) for size, count in SEARCH for rank in range(count)]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return 2e-6 + 1.3 * floor_seconds(workload, device)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        """The weights where they must be repacked, then the bias where it is constant."""
        found = []
        if packs_b(workload):
            b = constants[1].reshape(constants[1].shape[-2:])
            found.append(pack_rows(b if workload.op.transpose_b else b.T, b.dtype.itemsize))  # type: ignore[attr-defined]
        affine = _own_epilogue(workload)
        if affine is not None and affine.bias is not None and workload.is_constant(affine.bias):
            found.append(constants[affine.bias].reshape(-1).astype(workload.outputs[0].dtype.numpy))
        return tuple(found)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        product, epilogue = product_of(workload), epilogue_of(workload)
        assert isinstance(product, Product) and isinstance(epilogue, Epilogue)
        chosen, affine = dict(config), _own_epilogue(workload)
        strides = _batch_strides(product)
        assert strides is not None
        a, b, out = workload.inputs[0].dtype, workload.inputs[1].dtype, workload.outputs[0]
        packed = packs_b(workload)
        transpose_b = packed or product.transpose_b
        sums = DataType.INT32 if a is DataType.INT8 else DataType.FLOAT
        call = MatrixCall(
            product.m, product.n, product.k, a, b, sums if affine is None else out.dtype,
            round_up(product.k, 16 // b.itemsize) if packed else product.k if transpose_b else product.n,
            product.transpose_a, transpose_b, product.batch, *strides, workload.tf32, algorithm=chosen["algorithm"], exact=workload.is_static,
        )  # fmt: skip
        buffers = [("a", Buffer("input", 0)), ("b", Buffer("packed") if packed else Buffer("input", 1))]
        if affine is None:
            size = product.batch * product.m * product.n * 4
            scratch = round_up(size, 256)
            fixed_n = fixed(workload, len(workload.inputs), -1)
            common = dict(OUT_T=STORED_TYPES[out.dtype], VEC_C=vector_columns(fixed_n), PDL=1 if pdl(device) else None, **sum_types(workload))
            finish = reduction(common, epilogue, product.batch * product.m, product.n, 1, device)
            buffers += [("out", Buffer("workspace")), ("workspace", Buffer("workspace", 0, scratch))]
            return Plan((LibraryCall(SOURCE, call, tuple(buffers), chosen["workspace"]), finish), scratch + chosen["workspace"])
        buffers += [("out", Buffer("output")), ("workspace", Buffer("workspace"))]
        if affine.bias is not None:
            buffers.append(("bias", Buffer("packed", int(packed)) if workload.is_constant(affine.bias) else Buffer("input", affine.bias)))
        if affine.residual is not None:
            buffers.append(("residual", Buffer("input", affine.residual)))
        call = MatrixCall(**{
            **call.__dict__, "scale": affine.scale, "bias": affine.bias is not None, "residual": affine.residual is not None,
            "activation": affine.activation,
        })  # fmt: skip
        return Plan((LibraryCall(SOURCE, call, tuple(buffers), chosen["workspace"]),), chosen["workspace"])


def _own_epilogue(workload: Workload) -> Affine | None:
    """The epilogue, where cuBLASLt computes it."""
    a, out = workload.inputs[0].dtype, workload.outputs[0].dtype
    affine = affine_epilogue(workload)
    if affine is None or a not in C_TYPES or out not in (a, DataType.FLOAT):
        return None
    for number in (affine.bias, affine.residual):
        if number is None or (number == affine.bias and workload.is_constant(number)):
            continue
        if workload.inputs[number].dtype is not out:
            return None
    return affine


def _batch_strides(product: Product) -> tuple[int, int] | None:
    """The strides of a and b between matrices when one each is enough."""
    if product.batch == 1:
        return 0, 0
    outer = product.batch // product.inner
    found = []
    for far, near in (product.a_batch, product.b_batch):
        if product.inner == 1:
            found.append(far)
        elif outer == 1 or far == near * product.inner:
            found.append(near)
        else:
            return None
    return found[0], found[1]


TACTICS = (CublasLt(),)
