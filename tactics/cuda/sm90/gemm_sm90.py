"""Matrix product on Hopper with TMA and wgmma (``gemm_sm90.cu``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import MatrixMultiply
from tactics.cuda.epilogue import adds_rows, overwritable
from tactics.cuda.gemm.common import (
    Epilogue,
    epilogue_of,
    fixed,
    pdl,
    refuse_epilogue,
    refuse_types,
    rows_and_operands,
    sizes,
    vector_columns,
)
from tactics.cuda.simple import out_pitch
from tactics.cuda.sm90.tile_sm90 import (
    TYPES,
    Problem,
    Tile,
    Tiled,
    grid,
    permute_rows,
    refused,
    tile_defines,
    tile_of,
    tile_order,
)
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Struct,
    TensorMap,
    Workload,
    workload_bytes,
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """A matrix multiplication in the kernel's terms: an operand is shared by the batch, or has a matrix for each."""

    m: int
    n: int
    k: int
    batch: int
    a_shared: bool
    b_shared: bool
    a_km: bool  # a is stored [K, M]
    b_kn: bool  # b is stored [K, N]
    packed: bool  # b is a constant that prepare() turns to [N, K], or permutes


@dataclass(frozen=True)
class Apart:
    """Where a product's rows lie in the output when they are pixels of the input of a deconvolution, and its batch the phases (y, then x) of
    the strides: ``width`` pixels of the input to a line."""

    width: int
    stride_y: int
    stride_x: int


@dataclass(frozen=True)
class Rows:
    """Rows of ``length`` elements, ``pitch`` elements apart. What the product takes of a row behind its end counts as zero."""

    buffer: Buffer
    length: int
    pitch: int


def product_of(workload: Workload) -> Product | Refusal:
    """The workload with its batch axes folded: into m where b has none, else into one."""
    op = workload.op
    assert isinstance(op, MatrixMultiply)
    a, b, out = sizes(workload, 0), sizes(workload, 1), sizes(workload, len(workload.inputs))
    m, n, lead = out[-2], out[-1], out[:-2]
    k = a[-2] if op.transpose_a else a[-1]
    shared = []
    for number, shape in enumerate((a, b)):
        follows = _follows(workload, number, shape[:-2], lead)
        if follows is None:
            return Refusal(f"batch axes {_show(a[:-2])} and {_show(b[:-2])}: one operand follows only some axes of {_show(lead)}")
        shared.append(not follows)
    constant = workload.is_constant(1)
    packed = constant and (not op.transpose_b or (shared[1] and n % 32 == 0))
    b_kn = not op.transpose_b and not packed
    if shared[1] and not shared[0] and not op.transpose_a:
        return Product(prod(lead) * m, n, k, 1, True, True, False, b_kn, packed)
    return Product(m, n, k, prod(lead), shared[0], shared[1], op.transpose_a, b_kn, packed)


def _follows(workload: Workload, number: int, own: tuple[int, ...], lead: tuple[int, ...]) -> bool | None:
    """Whether operand ``number`` has a matrix for each of the batch axes ``lead`` (False: one for all; None: for some)."""
    missing, found = len(lead) - len(own), set()
    for axis, size in enumerate(lead):
        out_varies = workload.axis_varies(len(workload.inputs), axis)
        if size == 1 and not out_varies:
            continue
        at = axis - missing
        found.add(at >= 0 and (own[at] > 1 or workload.axis_varies(number, at)))
    return None if len(found) > 1 else found.pop() if found else False


class Sm90Gemm(Tiled):
    """A warp-specialised wgmma pipeline fed by TMA, in tiles of 64 to 256 rows."""

    id = "cuda.gemm.sm90"
    device = "cuda"
    ops = (MatrixMultiply,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, TYPES) or refused(device, workload.inputs[0].dtype, workload.tf32):
            return refusal
        product = product_of(workload)
        if isinstance(product, Refusal):
            return product
        if not product.m * product.n * product.k * product.batch:
            return Refusal("an empty product")
        itemsize = workload.inputs[0].dtype.itemsize
        if itemsize != 2 and (product.a_km or product.b_kn):
            return Refusal(f"{workload.inputs[0].dtype.label} operands multiply only with K contiguous")
        # TMA strides are multiples of 16 bytes, whatever size a varying axis takes.
        a_inner, b_inner = fixed(workload, 0, -1), product.k if product.packed else fixed(workload, 1, -1)
        for name, inner in (("a", a_inner), ("b", b_inner)):
            if inner * itemsize % 16:
                return Refusal(f"rows of {name} have {inner} elements (1: varies); TMA wants a multiple of {16 // itemsize}")
        if max(product.m, product.n, product.k) >= 2**31:
            return Refusal("a dimension of 2^31 or more")
        return refuse_epilogue(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return rows_and_operands(workload)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        if not _product(workload).packed:
            return ()
        rows = constants[1] if workload.op.transpose_b else np.ascontiguousarray(constants[1].swapaxes(-1, -2))  # type: ignore[attr-defined]
        if tile_of(config).direct:
            rows = permute_rows(rows.reshape(rows.shape[-2:])).reshape(rows.shape)
        return (rows,)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        product, tile, epilogue = _product(workload), tile_of(config), epilogue_of(workload)
        assert isinstance(epilogue, Epilogue)
        constant = product.packed or workload.is_constant(1)
        return Plan((
            gemm_launch(workload, device, tile, product, epilogue, Buffer("packed", 0) if product.packed else Buffer("input", 1),
                        fixed(workload, len(workload.inputs), -1), constant),
        ), in_place=overwritable(workload))  # fmt: skip

    def problem(self, workload: Workload) -> Problem:
        product = _product(workload)
        return Problem(product.m, product.n, product.batch, 1, product.k, workload.inputs[0].dtype, workload_bytes(workload),
                       product.a_km, product.b_kn, permutable=product.packed and product.b_shared, adds_rows=adds_rows(workload))  # fmt: skip


def _product(workload: Workload) -> Product:
    product = product_of(workload)
    assert isinstance(product, Product)
    return product


def gemm_launch(
    workload: Workload, device: DeviceSpec, tile: Tile, product: Product, epilogue: Epilogue, b: Buffer, columns: int, constant_b: bool,
    apart: Apart | None = None, a: Rows | None = None,
) -> Launch:
    """The launch of ``gemm_sm90.cu``; ``columns`` is what the output's row length is known to divide by. ``a``: its rows, if they are not the first
    input's."""
    dtype = workload.inputs[0].dtype
    layouts = (("A_KM", str(int(product.a_km))), ("B_KN", str(int(product.b_kn))), *((("ROWS_APART", "1"),) if apart else ()))
    defines = tile_defines(tile, dtype, workload.outputs[0].dtype, vector_columns(columns), constant_b, pdl(device))
    kernel = Kernel("sm90/gemm_sm90.cu", "gemm", (*defines, *layouts, *pitch_defines(workload), *epilogue.defines), epilogue.prelude)
    maps = (
        _operand_map(a.buffer, tile, workload, product.m, a.length, 1, False, not tile.swap, a.pitch) if a else
        _operand_map(Buffer("input", 0), tile, workload, product.m, product.k, 1 if product.a_shared else product.batch, product.a_km,
                     not tile.swap, workload.inputs[0].pitch),
        _operand_map(b, tile, workload, product.n, product.k, 1 if product.b_shared else product.batch, product.b_kn, bool(tile.swap)),
    )  # fmt: skip
    places = (apart.width, apart.stride_y, apart.stride_x) if apart else ()
    numbers = (product.m, product.n, product.k, product.batch, int(not product.a_shared), int(not product.b_shared), *places)
    problem = Problem(product.m, product.n, product.batch, 1, product.k, dtype, 0)
    return Launch(
        kernel, (grid(tile, problem, device), 1, 1), (tile.threads, 1, 1),
        (*maps, Buffer("output"), *map(Scalar, numbers), Struct(tile_order(tile, problem)), epilogue.argument),
        shared_memory=tile.shared_bytes, dependent=pdl(device),
    )  # fmt: skip


def pitch_defines(workload: Workload) -> tuple[tuple[str, str], ...]:
    """The defines of ``include/pitch.cuh`` for the output."""
    return tuple((name, str(value)) for name, value in out_pitch(workload).items())


def _operand_map(
    buffer: Buffer, tile: Tile, workload: Workload, rows: int, k: int, batch: int, rows_contiguous: bool, on_x: bool,
    pitch: int = 0,
) -> TensorMap:
    """The tiled map (contiguous dimension, the other one, batch) of one operand; its box is what the kernel loads at a time. ``pitch``: of
    its rows, where k is contiguous."""
    dtype = workload.inputs[0].dtype
    size, depth = dtype.itemsize, tile.swizzle // dtype.itemsize
    strides = (rows * size if rows_contiguous else (pitch or k) * size, rows * (pitch or k) * size)
    tf32 = dtype is DataType.FLOAT
    if rows_contiguous:
        width = 64 if on_x or tile.bn % 64 == 0 else 32 if tile.bn % 32 == 0 else 16
        return TensorMap(buffer, dtype, (rows, k, batch), strides, (width, depth, 1), swizzle=width * size, tf32=tf32)
    box = tile.bm // tile.cluster_y if on_x else tile.bn // tile.cluster_x
    return TensorMap(buffer, dtype, (k, rows, batch), strides, (depth, box, 1), swizzle=tile.swizzle, tf32=tf32)


def _show(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "none"


TACTICS = (Sm90Gemm(),)
