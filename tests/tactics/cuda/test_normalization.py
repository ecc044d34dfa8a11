"""Normalisation kernels on the CPU harness against the operations' NumPy meaning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Literal, Operand, apply
from fusion.network import Op, TensorType
from fusion.ops import GroupNormalization, Normalization, SumNormalization
from tactics.compiler import compile_cubin
from tactics.cuda.normalization.normalization import (
    ClusterNormalization,
    LongNormalization,
    RowNormalization,
    SplitNormalization,
    StridedNormalization,
)
from tactics.cuda.normalization.sum import SumRows
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, H100, HarnessError, available, check, kernels, run_plan

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
X = Operand(0)
SCALE_BIAS = apply("add", apply("mul", X, Operand(1)), Operand(2))
LIMIT = {"float32": 3e-5}  # the mean is subtracted from values around 3: two digits are lost, in NumPy too


def run(tactic, op: Op, shape: tuple[int, ...], dtype: DataType, extras: tuple[tuple[int, ...], ...] = (), configs: int = 6, device=A100) -> None:
    generator = np.random.default_rng(1)
    types = tuple(TensorType(dtype, one) for one in (shape, *extras))
    arrays = [(generator.normal(size=one) * 2 + 3).astype(dtype.numpy) for one in (shape, *extras)]
    truth = op.evaluate([array.astype(np.float64) if dtype is DataType.FLOAT else array for array in arrays])
    check(tactic, Workload(op, types, op.infer(types)), arrays, truth, configs=configs, tolerance=LIMIT, device=device)


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF, DataType.BF16])
@pytest.mark.parametrize("n", [768, 49])
def test_layer_normalization(n: int, dtype: DataType) -> None:
    configs = 6 if dtype is DataType.FLOAT else 2  # other types are loaded and stored in another way
    run(RowNormalization(), Normalization((1,), 1e-5, True, SCALE_BIAS), (5, n), dtype, ((n,), (n,)), configs)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 20), n=st.sampled_from([1, 20, 21, 24]), center=st.booleans())
def test_row_lengths(rows: int, n: int, center: bool) -> None:
    run(RowNormalization(), Normalization((1,), 1e-3, center), (rows, 2 * n + 1), DataType.FLOAT, configs=1)
    run(StridedNormalization(), Normalization((1,), 1e-3, center), (rows, 2 * n + 1), DataType.FLOAT, configs=1)


@pytest.mark.parametrize("tactic", [RowNormalization(), LongNormalization(), StridedNormalization(), SplitNormalization()], ids=lambda t: t.id)
def test_instance_normalization_over_two_axes(tactic) -> None:
    shape = (2, 3, 72, 64)
    run(tactic, Normalization((2, 3), 1e-5, True, SCALE_BIAS), shape, DataType.FLOAT, ((3, 1, 1), (3, 1, 1)), configs=2)


@pytest.mark.parametrize("tactic", [RowNormalization(), LongNormalization(), StridedNormalization()], ids=lambda t: t.id)
def test_rms_norm(tactic) -> None:
    run(tactic, Normalization((2,), 1e-6, False, apply("mul", X, Operand(1))), (2, 3, 512), DataType.HALF, ((512,),), configs=2)


@pytest.mark.parametrize(
    ("tactic", "floor"),
    [(RowNormalization(), 0.5), (RowNormalization(), 1e-30), *((tactic, 0.5) for tactic in (LongNormalization(), StridedNormalization(), SplitNormalization(), ClusterNormalization()))],
)  # fmt: skip
def test_a_root_of_at_least_a_number(tactic, floor: float) -> None:
    """Rows of zeros stay zeros, small ones are divided by the floor, and what is no number stays so."""
    x = np.random.default_rng(0).normal(size=(5, 4096)).astype(np.float32)
    x[1], x[2], x[3, 7] = 0, x[2] * 1e-3, np.nan
    types = (TensorType(DataType.FLOAT, x.shape),)
    op = Normalization((1,), 0.0, False, apply("mul", X, Literal(0.25, DataType.FLOAT)), floor)
    truth = op.evaluate([x.astype(np.float64)])
    assert np.all(truth[0][1] == 0) and np.all(np.isnan(truth[0][3]))
    check(tactic, Workload(op, types, types), [x], truth, configs=1, device=H100)


@pytest.mark.parametrize(
    ("tactic", "axes", "heads", "scale"),
    [
        (RowNormalization(), (3,), (0, 5), (5, 16)), (RowNormalization(), (3,), (2, 3), (16,)), (RowNormalization(), (2, 3), (4, 2), (2, 16)),
        (StridedNormalization(), (3,), (2, 3), (3, 16)),
    ],
)  # fmt: skip
def test_some_heads_of_a_projection(tactic, axes: tuple[int, ...], heads: tuple[int, int], scale: tuple[int, ...]) -> None:
    """Queries and keys, each with a scale of their own; or all keys of a position together."""
    x, g = np.random.default_rng(0).normal(size=(2, 3, 7, 16)).astype(np.float16), np.random.default_rng(1).normal(size=scale).astype(np.float16)
    op = Normalization(axes, 1e-6, False, apply("mul", X, Operand(1)), heads=heads)
    types = tuple(TensorType(DataType.HALF, one.shape) for one in (x, g))
    truth = op.evaluate([x, g])
    assert truth[0].shape == (2, 3, heads[1], 16)
    check(tactic, Workload(op, types, op.infer(types)), [x, g], truth, configs=1, device=H100)


def test_other_kernels_take_no_heads() -> None:
    types = (TensorType(DataType.HALF, (2, 3, 400, 128)),)
    op = Normalization((2, 3), 1e-6, heads=(0, 300))
    for tactic in (LongNormalization(), ClusterNormalization()):
        assert isinstance(tactic.supports(Workload(op, types, op.infer(types)), H100), Refusal)
    assert not RowNormalization().pitched(Workload(replace(op, axes=(3,)), types, op.infer(types)))


@pytest.mark.parametrize("axes", [(0,), (0, 2), (1,), (0, 1, 2), (0, 1)])
def test_any_axes(axes: tuple[int, ...]) -> None:
    run(StridedNormalization(), Normalization(axes, 1e-5), (6, 7, 8), DataType.FLOAT, configs=1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF])
def test_group_normalization(channels_last: bool, dtype: DataType) -> None:
    shape, scale = ((2, 17, 16, 64), (64,)) if channels_last else ((2, 64, 17, 16), (64, 1, 1))
    op = GroupNormalization(4, 1e-5, channels_last, SCALE_BIAS)
    run(SplitNormalization(), op, shape, dtype, (scale, scale), configs=1)
    run(StridedNormalization(), op, shape, dtype, (scale, scale), configs=2)
    if not channels_last:
        run(RowNormalization(), op, shape, dtype, (scale, scale), configs=2)


@pytest.mark.parametrize("device", [A100, H100], ids=["one block", "clusters"])
@pytest.mark.parametrize(
    ("shape", "groups", "last", "dtype"),
    [((2, 13, 21, 40), 4, True, DataType.HALF), ((3, 31, 29, 24), 6, True, DataType.FLOAT), ((2, 40, 13, 21), 4, False, DataType.BF16)],
)
def test_groups_in_registers(shape: tuple[int, ...], groups: int, last: bool, dtype: DataType, device) -> None:  # noqa: ANN001
    extras = (shape[-1:],) * 2 if last else ((shape[1], 1, 1),) * 2
    op = GroupNormalization(groups, 1e-5, last, SCALE_BIAS)
    workload = Workload(op, (TensorType(dtype, shape), *(TensorType(dtype, one) for one in extras)), (TensorType(dtype, shape),))
    assert {dict(one)["cluster"] > 1 for one in ClusterNormalization().configs(workload, device)[:3]} == {device is H100}
    run(ClusterNormalization(), op, shape, dtype, extras, configs=2, device=device)


def test_rms_norm_in_registers() -> None:
    run(ClusterNormalization(), Normalization((1,), 1e-6, False, apply("mul", X, Operand(1))), (2, 20_011), DataType.HALF, ((20_011,),), configs=1, device=H100)


def test_large_mean_does_not_cancel() -> None:
    x = (np.random.default_rng(0).normal(size=(2, 8192)) + 1000).astype(np.float32)
    types = (TensorType(DataType.FLOAT, x.shape),)
    op = Normalization((1,), 1e-5)
    truth = op.evaluate([x.astype(np.float64)])
    for tactic in (RowNormalization(), LongNormalization(), SplitNormalization(), StridedNormalization()):
        check(tactic, Workload(op, types, types), [x], truth, configs=1, tolerance={"float32": 1e-4})


def test_legality_over_varying_axes() -> None:
    types = (TensorType(DataType.HALF, (8, 128, 768)),)
    def at(*varies: bool) -> Workload:
        return Workload(Normalization((2,), 1e-5), types, types, varies=(varies, varies))
    assert RowNormalization().supports(at(True, True, False), H100) is None
    assert isinstance(RowNormalization().supports(at(False, False, True), H100), Refusal)
    assert all(dict(config)["v"] == 1 for config in LongNormalization().configs(at(False, False, True), A100))
    integers = (TensorType(DataType.INT32, (4, 8)),)
    assert isinstance(StridedNormalization().supports(Workload(Normalization((1,), 1e-5), integers, integers), A100), Refusal)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("dtype", "n"), [(DataType.HALF, 768), (DataType.FLOAT, 49)])
def test_sums(dtype: DataType, n: int, keep: bool) -> None:
    run(SumRows(), SumNormalization(1, 1e-5, keep, keep, SCALE_BIAS), (5, n), dtype, ((5, n), (n,), (n,)), configs=3)
    run(SumRows(), SumNormalization(1, 1e-5, not keep, keep), (3, 2, 20), dtype, ((3, 2, 20),), configs=1)


@pytest.mark.parametrize(("arch", "device"), [("sm_75", A100), ("sm_90a", H100)])
def test_sums_compile(arch: str, device) -> None:  # noqa: ANN001
    types = tuple(TensorType(DataType.HALF, shape) for shape in ((64, 1024), (64, 1024), (1024,), (1024,)))
    op = SumNormalization(1, 1e-5, True, True, SCALE_BIAS)
    one = Workload(op, types, op.infer(types))
    for chosen in SumRows().configs(one, device)[:2]:
        for kernel in kernels(SumRows().plan(one, chosen, device)):
            assert compile_cubin(kernel.source(), kernel.defines, arch).resources.spill_stores == 0


def test_splits_that_wrote_over_their_input_would_be_found() -> None:
    """Every block reads the first element of its positions: the plan does not offer x, and the harness says why it is right."""
    one, op = SplitNormalization(), Normalization((1,), 1e-5, True)
    x = np.random.default_rng(0).normal(size=(2, 8192)).astype(np.float32)
    types = (TensorType(DataType.FLOAT, x.shape),)
    workload = Workload(op, types, op.infer(types))
    plan = next(plan for chosen in one.configs(workload, A100) if len((plan := one.plan(workload, chosen, A100)).steps) == 2 and plan.steps[1].grid[1] > 1)
    assert plan.in_place == ()
    with pytest.raises(HarnessError, match="output 0 is another when output 0 is written over input 0"):
        run_plan(replace(plan, in_place=(0,)), [x], workload.outputs)
