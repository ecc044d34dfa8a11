"""One to eight rows times a constant weight (``gemv.cu``): bound by reading the weight once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion.ops import MatrixMultiply
from tactics.cuda.epilogue import overwritable
from tactics.cuda.gemm.common import (
    C_TYPES,
    STORED_TYPES,
    Epilogue,
    ceil_div,
    defines,
    epilogue_of,
    fixed,
    pdl,
    refuse_epilogue,
    refuse_types,
)
from tactics.cuda.gemm.mma_gemm import Product, k_alignment, product_of
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Tactic,
    Workload,
    config,
    floor_seconds,
)

MOST_ROWS = 8
WARPS = 4


class Gemv(Tactic):
    """Warps stream rows of the weight ([N][K]) in 16-byte loads; ``split`` warps share one row's depth."""

    id = "cuda.gemm.gemv"
    device = "cuda"
    ops = (MatrixMultiply,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, tuple(C_TYPES)):
            return refusal
        product = product_of(workload)
        if isinstance(product, Refusal):
            return product
        if product.batch != 1 or product.transpose_a:
            return Refusal("this kernel takes one product, a stored [M][K]")
        if any(workload.axis_varies(0, axis) for axis in range(len(workload.inputs[0].shape))):
            return Refusal("the number of rows may vary; it is compiled into this kernel")
        if not 1 <= product.m <= MOST_ROWS:
            return Refusal(f"{product.m} rows; this kernel takes 1 to {MOST_ROWS}")
        if not product.transpose_b and not workload.is_constant(1):
            return Refusal("b is stored [K][N] and is not a constant that could be transposed at build")
        chunk = 16 // workload.inputs[0].dtype.itemsize
        if k_alignment(workload) % chunk or product.k == 0 or fixed(workload, 1, -1) * fixed(workload, 1, -2) == 0:
            return Refusal(f"a depth of {product.k} is no multiple of {chunk}")
        return refuse_epilogue(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        product = product_of(workload)
        assert isinstance(product, Product)
        vectors = product.k * workload.inputs[0].dtype.itemsize // 16
        found = []
        for split in (1, 2, 4):
            for columns in (1, 2, 4):
                if columns * product.m > 16:
                    continue
                unroll = min(8 // columns, max(1, ceil_div(vectors, 32 * split)))
                found.append((split, columns, unroll))
        wanted = 8 * WARPS * device.multiprocessors  # warps that saturate the memory

        def distance(one: tuple[int, int, int]) -> float:
            split, columns, unroll = one
            warps = ceil_div(product.n, columns) * split
            idle = max(0.0, 1 - vectors / (32 * split * unroll))  # lanes without work
            return abs(float(np.log2(warps / wanted))) + 2 * idle + (0.3 if columns > 1 and product.m == 1 else 0.0)

        return [config(split=s, columns=c, unroll=u) for s, c, u in sorted(dict.fromkeys(found), key=distance)]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return 1.5e-6 + floor_seconds(workload, device) * 1.2

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        if workload.op.transpose_b:  # type: ignore[attr-defined]
            return ()
        b = constants[1]
        return (np.ascontiguousarray(b.reshape(b.shape[-2:]).T),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        product = product_of(workload)
        epilogue = epilogue_of(workload)
        assert isinstance(product, Product) and isinstance(epilogue, Epilogue)
        chosen = dict(config)
        kernel = Kernel("gemm/gemv.cu", "gemv", (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], ROWS=product.m, WARPS=WARPS,
            COLUMNS=chosen["columns"], SPLIT=chosen["split"], UNROLL=chosen["unroll"], PDL=1 if pdl(device) else None,
            B_CONSTANT=1 if workload.is_constant(1) else None,
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        grid = (ceil_div(product.n, chosen["columns"] * WARPS // chosen["split"]), 1, 1)
        weights = Buffer("input", 1) if product.transpose_b else Buffer("packed", 0)
        arguments = (Buffer("input", 0), weights, Buffer("output"), Scalar(product.n), Scalar(product.k), epilogue.argument)
        return Plan((Launch(kernel, grid, (WARPS * 32, 1, 1), arguments, dependent=pdl(device)),), in_place=overwritable(workload))


TACTICS = (Gemv(),)
