"""Tensor-core matrix product with mma.sync (``mma_gemm.cu``): any GPU from sm_75 on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from fusion.ops import MatrixMultiply
from tactics.cuda.epilogue import overwritable
from tactics.cuda.gemm import tiles
from tactics.cuda.gemm.common import (
    C_TYPES,
    EIGHT_BIT_TYPES,
    NO_OPERANDS,
    STORED_TYPES,
    Epilogue,
    batches,
    ceil_div,
    defines,
    epilogue_of,
    fixed,
    null,
    pdl,
    refuse_tensor_cores,
    round_up,
    rows_and_operands,
    sizes,
    sum_types,
    two_level,
    vector_bytes,
    vector_columns,
    workspace,
)  # fmt: skip
from tactics.cuda.simple import out_pitch
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Launch, Plan, Refusal, Scalar, Tactic, Workload


@dataclass(frozen=True)
class Product:
    """A matrix multiplication in the kernel's terms. Strides are in elements; ``a_batch`` and ``b_batch`` are (outer, inner)."""

    m: int
    n: int
    k: int
    batch: int
    inner: int
    a_batch: tuple[int, int]
    b_batch: tuple[int, int]
    transpose_a: bool
    transpose_b: bool


def product_of(workload: Workload) -> Product | Refusal:
    """The workload with its batch axes folded: into m when b has none, else into two strides each."""
    op = workload.op
    assert isinstance(op, MatrixMultiply)
    a, b, out = sizes(workload, 0), sizes(workload, 1), sizes(workload, len(workload.inputs))
    m, n = out[-2:]
    k = a[-2] if op.transpose_a else a[-1]
    lead = out[:-2]
    if not op.transpose_a and prod(b[:-2]) == 1 and prod(a[:-2]) == prod(lead) and not _any_varies(workload, 1):
        return Product(prod(lead) * m, n, k, 1, 1, (0, 0), (0, 0), False, op.transpose_b)
    flat = two_level(lead, batches(a[:-2], lead), batches(b[:-2], lead))
    if flat is None:
        return Refusal(f"batch axes {a[:-2]} x {b[:-2]} need more than two strides")
    inner, (a_stride, b_stride) = flat
    matrix = m * (workload.inputs[0].pitch or k)
    return Product(m, n, k, prod(lead), inner, (a_stride[0] * matrix, a_stride[1] * matrix), (b_stride[0] * k * n, b_stride[1] * k * n),
                   op.transpose_a, op.transpose_b)  # fmt: skip


def _any_varies(workload: Workload, tensor: int) -> bool:
    return any(workload.axis_varies(tensor, axis) for axis in range(len(workload.inputs[tensor].shape) - 2))


def k_alignment(workload: Workload) -> int:
    """The depth, or 1 when it varies."""
    op = workload.op
    assert isinstance(op, MatrixMultiply)
    return fixed(workload, 0, -2 if op.transpose_a else -1)


def packs_b(workload: Workload) -> bool:
    """Whether ``prepare`` stores b as [N][K], K padded to 16 bytes: a constant whose rows are not whole vectors as it is."""
    op = workload.op
    assert isinstance(op, MatrixMultiply)
    if not workload.is_constant(1) or workload.inputs[1].dtype.itemsize > 4:
        return False
    b = sizes(workload, 1)
    if workload.inputs[1].dtype.itemsize == 1 and not op.transpose_b:
        return prod(b[:-2]) == 1  # tensor cores read 8-bit operands along the depth
    return (b[-1] * workload.inputs[1].dtype.itemsize) % 16 != 0 and prod(b[:-2]) == 1


def pack_rows(weights: np.ndarray, itemsize: int) -> np.ndarray:
    """[N][K] with K padded with zeros to a multiple of 16 bytes."""
    pad = round_up(weights.shape[1], 16 // itemsize) - weights.shape[1]
    return np.ascontiguousarray(np.pad(weights, ((0, 0), (0, pad))))


class MmaGemm(Tactic):
    """The product on tensor cores, in ``bm`` x ``bn`` tiles."""

    id = "cuda.gemm.mma"
    device = "cuda"
    ops = (MatrixMultiply,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_tensor_cores(workload, device):
            return refusal
        product = product_of(workload)
        if isinstance(product, Refusal):
            return product
        if product.transpose_a:
            return Refusal("a is stored [K][M]; this kernel wants [M][K]")
        if workload.inputs[0].dtype.itemsize == 1 and self._b_kn(workload):
            return Refusal("b is stored [K][N] and not constant; tensor cores read 8-bit operands along the depth")
        if product.k == 0 or product.m * product.n * product.batch == 0:
            return Refusal("an empty product")
        epilogue = self._epilogue(workload)
        return epilogue if isinstance(epilogue, Refusal) else None

    def pitched(self, workload: Workload) -> Collection[int]:
        return rows_and_operands(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        product = product_of(workload)
        assert isinstance(product, Product)
        dtype = workload.inputs[0].dtype
        found = tiles.candidates(product.m, product.n, product.k, product.batch, dtype, self._b_kn(workload), device)
        return [tile.config() for tile in found]

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        product = product_of(workload)
        assert isinstance(product, Product)
        found = tiles.neighbours(tiles.tile_of(config), product.k, workload.inputs[0].dtype.itemsize, self._b_kn(workload), device)
        return [tile.config() for tile in found]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        product = product_of(workload)
        assert isinstance(product, Product)
        return tiles.estimate(tiles.tile_of(config), product.m, product.n, product.k, product.batch, workload.inputs[0].dtype, device)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        if not packs_b(workload):
            return ()
        b = constants[1].reshape(constants[1].shape[-2:])
        return (pack_rows(b if workload.op.transpose_b else b.T, b.dtype.itemsize),)  # type: ignore[attr-defined]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        product, tile, epilogue = product_of(workload), tiles.tile_of(config), self._epilogue(workload)
        assert isinstance(product, Product) and isinstance(epilogue, Epilogue)
        packed, b_kn = packs_b(workload), self._b_kn(workload)
        dtype, out = workload.inputs[0].dtype, workload.outputs[0]
        itemsize = dtype.itemsize
        ldb = round_up(product.k, 16 // itemsize) if packed else product.n if b_kn else product.k
        fixed_n, fixed_k = fixed(workload, len(workload.inputs), -1), k_alignment(workload)
        vec_c = vector_columns(fixed_n)
        common = dict(OUT_T=STORED_TYPES[out.dtype], VEC_C=vec_c, PDL=1 if pdl(device) else None, **sum_types(workload), **out_pitch(workload))
        kernel = Kernel("gemm/mma_gemm.cu", "mma_gemm", (*defines(
            **common, **tile_defines(tile), IN_T={**C_TYPES, **EIGHT_BIT_TYPES}[dtype], B_KN=b_kn,
            VEC_A=vector_bytes(itemsize, fixed_k), VEC_B=16 if packed else vector_bytes(itemsize, fixed_n if b_kn else fixed_k),
            B_CONSTANT=1 if workload.is_constant(1) else None,
        ), *(() if tile.partial else epilogue.defines)), "" if tile.partial else epilogue.prelude)  # fmt: skip
        output = Buffer("output")
        grid = (ceil_div(product.m, tile.bm) * ceil_div(product.n, tile.bn) * product.batch, tile.splits, 1)
        launch = Launch(
            kernel, grid, (tile.threads, 1, 1),
            (Buffer("input", 0), Buffer("packed", 0) if packed else Buffer("input", 1), output, workspace() if tile.partial else null(),
             *map(Scalar, (product.m, product.n, product.k, workload.inputs[0].pitch or product.k, ldb, product.inner)),
             *(Scalar(stride, "i64") for stride in (*product.a_batch, *product.b_batch)),
             Scalar(tiles.split_depth(tile, product.k)), NO_OPERANDS if tile.partial else epilogue.argument),
            shared_memory=tile.shared_bytes(itemsize), dependent=pdl(device),
        )  # fmt: skip
        if not tile.partial:
            return Plan((launch,), in_place=overwritable(workload))
        rows = product.m * product.batch
        return Plan((launch, reduction(common, epilogue, rows, product.n, tile.splits, device)), tile.splits * rows * product.n * 4, overwritable(workload))

    @staticmethod
    def _b_kn(workload: Workload) -> bool:
        return not workload.op.transpose_b and not packs_b(workload)  # type: ignore[attr-defined]

    @staticmethod
    def _epilogue(workload: Workload) -> Epilogue | Refusal:
        return epilogue_of(workload)


def tile_defines(tile: tiles.Tile) -> dict[str, int | None]:
    """The defines of ``include/mma_tile.cuh`` for a tile."""
    return {
        "BM": tile.bm, "BN": tile.bn, "BK": tile.bk, "WARPS_M": tile.warps_m, "WARPS_N": tile.warps_n, "WARPS_K": tile.warps_k,
        "STAGES": tile.stages, "CLUSTER_K": tile.splits if tile.cluster else None, "PARTIAL": 1 if tile.partial else None,
    }  # fmt: skip


def reduction(common: dict, epilogue: Epilogue, rows: int, ld: int, splits: int, device: DeviceSpec) -> Launch:
    """The launch that adds partial sums from the workspace and applies the epilogue."""
    kernel = Kernel("gemm/splitk_reduce.cu", "splitk_reduce", (*defines(**common), *epilogue.defines), epilogue.prelude)
    grid = (ceil_div(rows * ld // common["VEC_C"], 256), 1, 1)
    arguments = (workspace(), Buffer("output"), Scalar(rows, "i64"), Scalar(ld), Scalar(splits), epilogue.argument)
    return Launch(kernel, grid, (256, 1, 1), arguments, dependent=pdl(device))


TACTICS = (MmaGemm(),)
