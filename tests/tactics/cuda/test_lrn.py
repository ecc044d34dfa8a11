"""Local response normalisation on the CPU harness against the operation's NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.network import TensorType
from fusion.ops import LocalResponseNormalization
from tactics.compiler import compile_cubin
from tactics.cuda.lrn.lrn import WindowedLrn
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, H100, available, check, kernels

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
LRN = WindowedLrn()


def workload(op: LocalResponseNormalization, shape: tuple[int, ...], dtype: DataType = DataType.FLOAT, varies: tuple = ()) -> Workload:
    types = (TensorType(dtype, shape),)
    return Workload(op, types, op.infer(types), varies=varies)


def run(op: LocalResponseNormalization, shape: tuple[int, ...], dtype: DataType = DataType.FLOAT, configs: int = 4) -> None:
    x = (np.random.default_rng(0).normal(size=shape) * 3).astype(dtype.numpy)
    check(LRN, workload(op, shape, dtype), [x], op.evaluate([x]), configs=configs)


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.DOUBLE], ids=lambda d: d.value)
@pytest.mark.parametrize("last", [False, True])
def test_alexnet(last: bool, dtype: DataType) -> None:
    shape = (2, 3, 4, 24) if last else (2, 24, 3, 8)
    run(LocalResponseNormalization(5, 0.5, 0.75, 1.0, last), shape, dtype)


@settings(max_examples=25, deadline=None)
@given(size=st.sampled_from([1, 4]), channels=st.integers(1, 13), spatial=st.integers(1, 9), last=st.booleans())  # fmt: skip
def test_any_size(size: int, channels: int, spatial: int, last: bool) -> None:
    shape = (2, spatial, channels) if last else (2, channels, spatial)
    run(LocalResponseNormalization(size, 0.3, 0.5, 2.0, last), shape, configs=1)


def test_zeros_without_bias() -> None:
    op = LocalResponseNormalization(3, 1.0, 0.75, 0.0, True)
    x = np.array([[[0, 0, 0, 2, 0, 0, 0]]], np.float32)
    check(LRN, workload(op, x.shape), [x], op.evaluate([x]))


def test_sizes_that_vary() -> None:
    op = LocalResponseNormalization(5, 0.5, 0.75, 1.0, True)
    flags = ((True, True, True, False),) * 2
    chosen = LRN.configs(workload(op, (64, 55, 55, 96), DataType.HALF, flags), H100)[0]
    assert dict(chosen)["v"] == 8
    sizes = ((64, 55, 55, 96), (1, 3, 5, 96))
    assert len({kernels(LRN.plan(workload(op, shape, DataType.HALF, flags), chosen, H100)) for shape in sizes}) == 1


def test_refusals() -> None:
    found = LRN.supports(workload(LocalResponseNormalization(65, 1.0, 0.75, 1.0), (1, 99, 4)), A100)
    assert isinstance(found, Refusal) and "65" in found.reason
    found = LRN.supports(workload(LocalResponseNormalization(5, 1.0, 0.75, 1.0), (1, 9, 4), DataType.INT32), A100)
    assert isinstance(found, Refusal) and "int32" in found.reason


@pytest.mark.parametrize(("arch", "device"), [("sm_75", A100), ("sm_90a", H100)])
def test_compiles(arch: str, device) -> None:  # noqa: ANN001
    for last in (False, True):
        one = workload(LocalResponseNormalization(5, 0.5, 0.7, 1.0, last), (64, 64, 64, 64), DataType.HALF)
        (kernel,) = kernels(LRN.plan(one, LRN.configs(one, device)[0], device))
        assert compile_cubin(kernel.source(), kernel.defines, arch).resources.spill_stores == 0
