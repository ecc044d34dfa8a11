"""Matrix product on the ordinary cores (``simt_gemm.cu``): the reference of its family, any GPU, any size."""

from __future__ import annotations

from collections.abc import Collection

from fusion.ops import MatrixMultiply
from tactics.cuda.epilogue import overwritable
from tactics.cuda.gemm.common import (
    REFERENCE_TYPES,
    STORED_TYPES,
    Epilogue,
    ceil_div,
    defines,
    epilogue_of,
    operand_types,
    refuse_epilogue,
    refuse_types,
    rows_and_operands,
)
from tactics.cuda.gemm.mma_gemm import Product, product_of
from tactics.cuda.simple import out_pitch
from tactics.tactic import Argument, Buffer, Config, DeviceSpec, Kernel, Launch, Plan, Refusal, Scalar, Tactic, Workload

TILE = 64


class SimtGemm(Tactic):
    """64 x 64 tiles, 8 x 4 results per thread, fp32 accumulation."""

    id = "cuda.gemm.simt"
    device = "cuda"
    ops = (MatrixMultiply,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, REFERENCE_TYPES):
            return refusal
        product = product_of(workload)
        if isinstance(product, Refusal):
            return product
        if product.m * product.n * product.batch == 0:
            return Refusal("an empty product")
        return refuse_epilogue(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return rows_and_operands(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        product = product_of(workload)
        epilogue = epilogue_of(workload)
        assert isinstance(product, Product) and isinstance(epilogue, Epilogue)
        m, n, k = product.m, product.n, product.k
        kernel = Kernel("gemm/simt_gemm.cu", "simt_gemm", (*defines(
            **operand_types(workload), OUT_T=STORED_TYPES[workload.outputs[0].dtype], B_ALONG_N=not product.transpose_b, **out_pitch(workload),
        ), *epilogue.defines), epilogue.prelude)  # fmt: skip
        grid = (ceil_div(m, TILE) * ceil_div(n, TILE) * product.batch, 1, 1)
        a_strides = (1, m) if product.transpose_a else (workload.inputs[0].pitch or k, 1)
        b_strides = (1, k) if product.transpose_b else (n, 1)
        arguments: tuple[Argument, ...] = (
            Buffer("input", 0), Buffer("input", 1), Buffer("output"), Scalar(m), Scalar(n), Scalar(k),
            *(Scalar(stride, "i64") for stride in (*a_strides, *b_strides)), Scalar(product.inner),
            *(Scalar(stride, "i64") for stride in (*product.a_batch, *product.b_batch)), epilogue.argument,
        )  # fmt: skip
        return Plan((Launch(kernel, grid, (128, 1, 1), arguments),), in_place=overwritable(workload))


TACTICS = (SimtGemm(),)
