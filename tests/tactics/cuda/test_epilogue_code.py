"""Generated epilogues on the CPU harness: every way an operand can broadcast, as vectors and one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Expression, Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import MatrixMultiply
from fusion.ops.epilogue import IDENTITY, apply_epilogue
from tactics.cuda.codegen import storage_type
from tactics.cuda.epilogue import NO_EPILOGUE, EpilogueCode, epilogue_argument, finish_code, operand_kinds
from tactics.tactic import Buffer, Kernel, Launch, Plan, Refusal, Scalar, Struct, Workload
from tests.harness.fiber import available, close, run_plan

needs_compiler = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
X = Operand(0)
SUM = apply("relu", apply("add", apply("mul", X, Operand(2)), Operand(1)))

# A kernel as a product would call it: `x` holds the float accumulators of [rows, ld].
KERNEL = """#include "sums.cuh"
extern "C" __global__ void drive(const float* x, OUT_T* out, int rows, int ld, EpilogueArgs args) {
    const int vectors = ld / WIDTH, index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= rows * vectors) return;
    const long long m = index / vectors;
    const int n = index % vectors * WIDTH;
    float v[WIDTH];
    for (int i = 0; i < WIDTH; ++i) v[i] = x[m * ld + n + i];
    store_sums(out + m * ld + n, v, args, m, n, ld);
}
"""


def workload(out: tuple[int, ...], extras: list[tuple[int, ...]], expression: Expression, dtype: DataType = DataType.FLOAT,
             varies: tuple = ()) -> Workload:  # fmt: skip
    types = (TensorType(dtype, (*out[:-1], 8)), TensorType(dtype, (8, out[-1])), *(TensorType(dtype, shape) for shape in extras))
    op = MatrixMultiply(epilogue=expression)
    return Workload(op, types, op.infer(types), varies=varies)


def run(out: tuple[int, ...], extras: list[tuple[int, ...]], expression: Expression, width: int, dtype: DataType = DataType.FLOAT) -> None:
    one = workload(out, extras, expression, dtype)
    code = finish_code(one)
    assert isinstance(code, EpilogueCode), code
    generator = np.random.default_rng(1)
    x = generator.normal(size=out).astype(np.float32)
    arrays = [generator.normal(size=shape).astype(dtype.numpy) for shape in extras]
    rows = int(np.prod(out[:-1], dtype=int))
    # The harness' inputs 0 and 1 are the accumulators and nothing; the operands stand from 2 on, as in the layer.
    kernel = Kernel("", "drive", (("OUT_T", storage_type(one.outputs[0].dtype)), ("WIDTH", str(width)), *code.defines), code.prelude + KERNEL)
    count = rows * (out[-1] // width)
    launch = Launch(kernel, ((count + 63) // 64, 1, 1), (64, 1, 1),
                    (Buffer("input", 0), Buffer("output"), Scalar(rows), Scalar(out[-1]), epilogue_argument(code)))  # fmt: skip
    (result,) = run_plan(Plan((launch,)), [x, np.zeros(1, np.float32), *arrays], one.outputs)
    close(result, apply_epilogue(expression, dtype, x, arrays), f"{out} {extras} width {width}")


@needs_compiler
@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF, DataType.BF16], ids=lambda dtype: dtype.value)
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_vectors_of_every_width(width: int, dtype: DataType) -> None:
    run((3, 5, 16), [(16,), (3, 5, 16)], SUM, width, dtype)


SHAPES = [(3, 4, 8), (1, 4, 8), (3, 1, 8), (3, 4, 1), (1, 1, 8), (4, 8), (4, 1), (8,), (1,), (), (3, 1, 1), (1, 1, 1)]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_broadcast(shape: tuple[int, ...]) -> None:
    run((3, 4, 8), [(8,), shape], SUM, 4)


@needs_compiler
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_broadcast_of_rank_four(data: st.DataObject) -> None:
    out = tuple(data.draw(st.integers(1, 4)) for _ in range(3)) + (data.draw(st.sampled_from([2, 4, 6])),)
    shape = tuple(size if data.draw(st.booleans()) else 1 for size in out)[data.draw(st.integers(0, 3)) :]
    run(out, [shape], apply("add", X, Operand(1)), 2)


def test_kinds_are_named() -> None:
    extras = [(8,), (3, 4, 8), (3, 4, 1), (1,), (1, 4, 8), (3, 1, 8)]
    expression: Expression = X
    for index in range(len(extras)):
        expression = apply("add", expression, Operand(index + 1))
    assert operand_kinds(workload((3, 4, 8), extras, expression)) == ("column", "full", "row", "scalar", "periodic", "strided")


def test_identity_has_no_code() -> None:
    code = finish_code(workload((3, 8), [], IDENTITY))
    assert code is NO_EPILOGUE
    assert epilogue_argument(NO_EPILOGUE) == Struct((Scalar(0, "u64"),))


def test_operands_are_those_that_the_expression_reads() -> None:
    code = finish_code(workload((3, 8), [(8,), (3, 8)], apply("add", X, Operand(2))))
    assert isinstance(code, EpilogueCode) and code.operands == (Buffer("input", 3),)


def test_sizes_that_vary_are_arguments() -> None:
    varies = ((True, True, False), (False, False), (False, True, False), (True, True, False))
    def at(batch: int, rows: int) -> EpilogueCode:
        code = finish_code(workload((batch, rows, 8), [(1, rows, 8)], apply("add", X, Operand(1)), varies=varies))
        assert isinstance(code, EpilogueCode)
        return code
    assert at(3, 4).prelude == at(1, 1).prelude == at(7, 1).prelude
    assert at(3, 4).sizes == (Scalar(4, "u32"),)


def test_refusals_name_what_was_found() -> None:
    wrong = Workload(MatrixMultiply(epilogue=apply("add", X, Operand(1))),
                     (TensorType(DataType.FLOAT, (3, 8)), TensorType(DataType.FLOAT, (8, 8)), TensorType(DataType.FLOAT, (5,))),
                     (TensorType(DataType.FLOAT, (3, 8)),))  # fmt: skip
    refusal = finish_code(wrong)
    assert isinstance(refusal, Refusal) and "5" in refusal.reason and "3x8" in refusal.reason
    fp8 = workload((3, 8), [], apply("mul", X, Literal(2.0, DataType.FLOAT)), DataType.FP8)
    assert isinstance(finish_code(fp8), EpilogueCode)  # float32 accumulators; how FP8 is stored is the kernel's matter
