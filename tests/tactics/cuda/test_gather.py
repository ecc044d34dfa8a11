"""Gather and scatter kernels on the CPU harness against the operations' NumPy meaning; results must be equal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.network import Op, TensorType
from fusion.ops import Gather, GatherElements, GatherND, ScatterElements, ScatterND
from tactics.cuda.gather.gather import GatherSingle, GatherSlices, Scatter
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, H100, available, check

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
RANDOM = np.random.default_rng(0)


def run(tactic, op: Op, *arrays: np.ndarray, configs: int = 4) -> None:
    types = tuple(TensorType(DataType(array.dtype.name), array.shape) for array in arrays)
    check(tactic, Workload(op, types, op.infer(types)), arrays, op.evaluate(arrays), configs=configs)


def values(*shape: int, dtype: str = "int32") -> np.ndarray:
    return RANDOM.integers(1, 9, shape).astype(dtype)


def indices(size: int, *shape: int, dtype: str = "int64") -> np.ndarray:
    return RANDOM.integers(-size, size, shape).astype(dtype)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_gather(axis: int, dtype: str) -> None:
    x = values(4, 5, 6)
    run(GatherSlices(), Gather(axis), x, indices(x.shape[axis], 2, 3, dtype=dtype))


def test_embedding_rows_are_read_in_vectors() -> None:
    table = RANDOM.normal(size=(50, 64)).astype(np.float16)
    types = (TensorType(DataType.HALF, (50, 64)), TensorType(DataType.INT64, (3, 7)))
    one = Workload(Gather(0), types, Gather(0).infer(types), varies=((False, False), (True, True), (True, True, False)))
    assert dict(GatherSlices().configs(one, H100)[0])["v"] == 8
    run(GatherSlices(), Gather(0), table, indices(50, 3, 7))
    run(GatherSlices(), Gather(0), table, np.array(7))


def test_bad_indices_are_clamped() -> None:
    run(GatherSlices(), Gather(0), values(4, 3), np.array([9, -9, 3, 2**40], np.int64))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_elements(axis: int) -> None:
    x = values(4, 5, 6)
    shape = [3, 5, 2]
    shape[axis] = 7
    run(GatherSingle(), GatherElements(axis), x, indices(x.shape[axis], *shape))


@pytest.mark.parametrize(("shape", "index_shape", "batch"), [((4, 5, 6), (3, 2), 0), ((4, 5, 6), (2, 2, 1), 0), ((3, 5, 6), (3, 4, 1), 1), ((2, 3, 5), (2, 3, 4, 1), 2), ((4, 5), (7, 2), 0)])
def test_gather_nd(shape: tuple[int, ...], index_shape: tuple[int, ...], batch: int) -> None:
    run(GatherSlices(), GatherND(batch), values(*shape), indices(min(shape), *index_shape))


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_elements_with_equal_indices(axis: int, reduction: str) -> None:
    x = values(4, 7)
    shape = (4, 9) if axis == 1 else (9, 6)
    run(Scatter(), ScatterElements(axis, reduction), x, indices(x.shape[axis], *shape), values(*shape))


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatter_nd(reduction: str) -> None:
    x = values(6, 5, 4, dtype="float32")
    unique = np.array([[0], [-2], [3]])
    run(Scatter(), ScatterND(reduction), x, unique, values(3, 5, 4, dtype="float32"))
    if reduction != "none":
        run(Scatter(), ScatterND(reduction), x, indices(4, 9, 2), values(9, 4, dtype="float32"))
        run(Scatter(), ScatterND(reduction), x, indices(4, 9, 3), values(9, dtype="float32"))


def test_scatter_of_other_types() -> None:
    for dtype in ("float16", "int8", "bool"):
        x = values(5, 6).astype(dtype)
        run(Scatter(), ScatterElements(0), x, indices(5, 2, 6), values(2, 6).astype(dtype))


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 60), count=st.integers(1, 50), inner=st.integers(1, 9))
def test_gather_sizes(rows: int, count: int, inner: int) -> None:
    run(GatherSlices(), Gather(0), values(rows, 2 * inner + 1), indices(rows, count), configs=1)


def test_refusals() -> None:
    types = (TensorType(DataType.FLOAT, (4,)), TensorType(DataType.FLOAT, (2,)))
    refusal = GatherSlices().supports(Workload(Gather(0), types, (TensorType(DataType.FLOAT, (2,)),)), A100)
    assert isinstance(refusal, Refusal) and "int32 or int64" in refusal.reason
