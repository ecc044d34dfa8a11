"""Kernels without inputs on the CPU harness against the operations' NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.network import Op
from fusion.ops import Fill, Random, Range, ShapeValue
from tactics.cuda.fill.fill import Filled
from tactics.tactic import Launch, Memset, Refusal, Workload
from tests.harness.fiber import A100, available, check, run_plan

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")


def run(op: Op) -> None:
    check(Filled(), Workload(op, (), op.infer(())), [], op.evaluate(()))


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT64, DataType.INT8, DataType.BOOL])
def test_fill(dtype: DataType) -> None:
    run(Fill((3, 701), dtype, 1))
    run(Fill((5,), dtype, 0))


def test_zeros_are_a_memset() -> None:
    op = Fill((4,), DataType.HALF, 0.0)
    (step,) = Filled().plan(Workload(op, (), op.infer(())), (), A100).steps
    assert isinstance(step, Memset) and step.size == 8
    op = Fill((4,), DataType.HALF, -0.0)
    (step,) = Filled().plan(Workload(op, (), op.infer(())), (), A100).steps
    assert isinstance(step, Launch)


@pytest.mark.parametrize(
    "op",
    [
        Range(0, 1, 1000, DataType.INT64), Range(7, -2, 9, DataType.INT32), Range(0.5, 0.25, 300, DataType.FLOAT),
        Range(0.1, 0.1, 50, DataType.DOUBLE), Range(1.0, 0.5, 70, DataType.HALF),
    ],
)  # fmt: skip
def test_range(op: Range) -> None:
    run(op)


def test_dimensions() -> None:
    run(ShapeValue((2, 3, 1 << 40), (3,), DataType.INT64))
    run(ShapeValue((7,), (), DataType.INT32))
    op = ShapeValue(tuple(range(33)), (33,), DataType.INT64)
    assert isinstance(Filled().supports(Workload(op, (), op.infer(())), A100), Refusal)


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.DOUBLE, DataType.HALF])
def test_random_numbers(dtype: DataType) -> None:
    """Uniform numbers are the same on every device, bit for bit."""
    op = Random((7, 301), dtype, "uniform", -0.3, 1.7, (123, 456))
    one = Workload(op, (), op.infer(()))
    (found,) = run_plan(Filled().plan(one, (), A100), [], one.outputs)
    assert np.array_equal(found, op.evaluate(())[0])
    run(Random((2101,), dtype, "normal", 0.5, 2.0, (1, 2)))
