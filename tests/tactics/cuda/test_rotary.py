"""Rotary embedding on the CPU harness against the operation's NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.network import TensorType
from fusion.ops import RotaryEmbedding
from tactics.compiler import compile_cubin
from tactics.cuda.rotary.rotary import Rotary
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, H100, available, check, kernels

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
TACTIC = Rotary()


PLAIN = RotaryEmbedding()


def workload(x: tuple, cos: tuple, sin: tuple, dtype: DataType = DataType.FLOAT, varies: tuple = (), op: RotaryEmbedding = PLAIN) -> Workload:
    types = tuple(TensorType(dtype, shape) for shape in (x, cos, sin))
    return Workload(op, types, op.infer(types), varies=varies)


def run(x: tuple, cos: tuple, sin: tuple, dtype: DataType = DataType.FLOAT, configs: int = 1, op: RotaryEmbedding = PLAIN) -> None:
    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape).astype(dtype.numpy) for shape in (x, cos, sin)]
    check(TACTIC, workload(x, cos, sin, dtype, op=op), arrays, op.evaluate(arrays), configs=configs)


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF], ids=lambda d: d.value)
def test_heads(dtype: DataType) -> None:
    run((2, 3, 5, 32), (1, 1, 5, 32), (1, 1, 5, 32), dtype, configs=2)
    run((2, 5, 3, 32), (5, 1, 16), (2, 5, 1, 32), dtype)


def test_angles_in_float32() -> None:
    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape).astype(np.float16 if not number else np.float32) for number, shape in enumerate([(2, 5, 3, 16), (5, 1, 8), (5, 1, 16)])]
    types = tuple(TensorType(DataType.FLOAT if number else DataType.HALF, array.shape) for number, array in enumerate(arrays))
    check(TACTIC, Workload(PLAIN, types, PLAIN.infer(types)), arrays, PLAIN.evaluate(arrays), configs=1)
    assert isinstance(TACTIC.supports(Workload(PLAIN, (types[1], *types[:1] * 2), (types[1],)), A100), Refusal)


def test_parts_of_rows_and_of_heads() -> None:
    run((2, 5, 6, 64), (5, 1, 8), (5, 1, 16), DataType.HALF, op=RotaryEmbedding(True, 16, 4))
    run((2, 5, 6, 64), (5, 1, 24), (5, 1, 48), DataType.HALF, op=RotaryEmbedding(False, 48))


@pytest.mark.parametrize(
    ("x", "scale", "op", "dtype"),
    [
        ((2, 3, 5, 32), (32,), RotaryEmbedding(epsilon=1e-6), DataType.HALF), ((2, 3, 6, 32), (4, 32), RotaryEmbedding(True, 0, 4, 1e-6), DataType.HALF),
        ((2, 3, 5, 40), (5, 40), RotaryEmbedding(epsilon=1e-3), DataType.FLOAT), ((2, 3, 5, 64), (64,), RotaryEmbedding(False, 16, epsilon=1e-6), DataType.HALF),
    ],
)  # fmt: skip
def test_normalised_rows(x: tuple, scale: tuple, op: RotaryEmbedding, dtype: DataType) -> None:
    random, turned = np.random.default_rng(0), op.rotated or x[-1]
    arrays = [random.normal(size=shape).astype(dtype.numpy) for shape in (x, (3, 1, turned), (2, 3, 1, turned // 2), scale)]
    types = tuple(TensorType(dtype, one.shape) for one in arrays)
    check(TACTIC, Workload(op, types, op.infer(types)), arrays, op.evaluate(arrays), configs=1)


def test_rows_that_a_warp_cannot_normalise() -> None:
    types = tuple(TensorType(DataType.HALF, shape) for shape in ((2, 3, 1022), (1, 1022), (1, 1022), (1022,)))
    op = RotaryEmbedding(epsilon=1e-6)
    assert isinstance(TACTIC.supports(Workload(op, types, op.infer(types)), H100), Refusal)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    outer = data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=3))
    half, rest = data.draw(st.sampled_from([1, 3, 4])), data.draw(st.sampled_from([0, 0, 2, 8]))
    heads = data.draw(st.integers(0, outer[-1]))
    op = RotaryEmbedding(data.draw(st.booleans()), 2 * half if rest else 0, heads)
    turned = [*outer[:-1], heads or outer[-1]]
    table = [tuple(data.draw(st.sampled_from([1, size])) for size in turned[data.draw(st.integers(0, 3)) :]) for _ in range(2)]
    widths = [data.draw(st.sampled_from([half, 2 * half])) for _ in range(2)]
    run((*outer, 2 * half + rest), (*table[0], widths[0]), (*table[1], widths[1]), op=op)


def test_sizes_that_vary() -> None:
    flags = ((True, True, True, False), (False, False, True, False), (False, False, True, False), (True, True, True, False))
    chosen = TACTIC.configs(workload((2, 3, 5, 64), (1, 1, 5, 64), (1, 1, 5, 64), DataType.HALF, flags), H100)[0]
    shapes = (((2, 3, 5, 64), (1, 1, 5, 64)), ((1, 9, 70, 64), (1, 1, 70, 64)))
    plans = [TACTIC.plan(workload(x, table, table, DataType.HALF, flags), chosen, H100) for x, table in shapes]
    assert len({kernels(plan) for plan in plans}) == 1
    assert isinstance(TACTIC.supports(workload((2, 4), (1, 4), (1, 4), varies=((True, True),) * 4), A100), Refusal)


@pytest.mark.parametrize(("arch", "device"), [("sm_75", A100), ("sm_90a", H100)])
def test_compiles(arch: str, device) -> None:  # noqa: ANN001
    plain = workload((2, 3, 5, 64), (5, 64), (5, 64), DataType.HALF)
    op, types = RotaryEmbedding(epsilon=1e-6), (*plain.inputs, TensorType(DataType.HALF, (5, 64)))
    normalised = Workload(op, types, op.infer(types))
    for kernel in (kernel for one in (plain, normalised) for kernel in kernels(TACTIC.plan(one, TACTIC.configs(one, device)[0], device))):
        assert compile_cubin(kernel.source(), kernel.defines, arch).resources.spill_stores == 0
