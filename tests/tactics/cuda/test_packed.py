"""Products with packed weights on the CPU harness (tensor-core instructions emulated) and on a GPU, against dequantised weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import TensorType
from fusion.ops import MatrixMultiply, PackedMatrixMultiply
from fusion.ops.packed_matmul import packed, unpacked
from tactics.cuda.gemm.stream import Stream, StreamedGemm
from tactics.cuda.packed.common import grouped
from tactics.cuda.packed.dequantized import TACTICS as DEQUANTIZED
from tactics.cuda.packed.packed_gemm import PackedGemm
from tactics.cuda.packed.packed_gemv import PackedGemv
from tactics.tactic import Launch, Refusal, Tactic, Workload, config
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, H100, available, close, run_plan

EPILOGUE = apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2)))
LIMITS = {"float16": 2e-3, "bfloat16": 1e-2}
CHOSEN = {"columns": 2, "warps": 2, "stages": 2, "tiles": 1, "across": 1}
harness = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")


def case(rows: tuple[int, ...], n: int, k: int, bits: int, block: int, dtype: DataType = DataType.HALF, whole: bool = True, bare: bool = False):
    """(workload, inputs, expected in float64)."""
    generator = np.random.default_rng(11)
    blocks, out = -(-k // block), (*rows, n)
    op = PackedMatrixMultiply(bits, k, block, Operand(0) if bare else EPILOGUE)
    zeros = generator.integers(0, 1 << bits, (n, blocks)) + (0.0 if whole else 0.5)
    inputs = [
        generator.normal(size=(*rows, k)).astype(dtype.numpy), packed(generator.integers(0, 1 << bits, (n, k)).astype(np.uint8), bits),
        ((generator.random((n, blocks)) + 0.5) * 0.1 / (1 << bits)).astype(dtype.numpy), zeros.astype(dtype.numpy),
        *([] if bare else [generator.normal(size=shape).astype(dtype.numpy) for shape in ((n,), out)]),
    ]  # fmt: skip
    types = tuple(TensorType(DataType(one.dtype.name), one.shape) for one in inputs)
    wide = [one.astype(np.float64) for one in inputs]
    product = wide[0] @ op.dequantized(*inputs[1:4]).astype(np.float64).T
    expected = product if bare else np.maximum(product + wide[4] + wide[5], 0)
    return Workload(op, types, op.infer(types), (False, True, True, True, True, False)[: len(inputs)]), inputs, expected


def run(tactic: Tactic, found, configs: int = 1, wanted=lambda one: True, device=A100) -> None:  # noqa: ANN001
    workload, inputs, expected = found
    refusal = tactic.supports(workload, device)
    assert refusal is None, refusal
    chosen = [one for one in tactic.configs(workload, device) if wanted(dict(one))][:configs]
    assert chosen
    constants = {n: inputs[n] for n, known in enumerate(workload.constant) if known}
    for one in chosen:
        plan = tactic.plan(workload, one, device)
        (result,) = run_plan(emulated(plan), inputs, workload.outputs, tactic.prepare(workload, one, constants))
        close(result, expected, f"{tactic.id} {dict(one)}", LIMITS)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([2, 4, 8]), st.integers(1, 5), st.integers(1, 40))
def test_packing_is_undone(bits: int, rows: int, columns: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    assert np.array_equal(unpacked(packed(values, bits), bits)[:, :columns], values)


def test_weights_are_packed_once_for_all_configurations() -> None:
    (workload, inputs, _), other = case((3,), 16, 64, 4, 32), case((3,), 16, 64, 8, 32)
    constants = {n: inputs[n] for n in (1, 2, 3)}
    first, second = (PackedGemm().prepare(workload, config(bm=bm), constants) for bm in (16, 32))
    assert first[0] is second[0]
    assert PackedGemm().prepare(other[0], (), {n: other[1][n] for n in (1, 2, 3)})[0] is not first[0]
    again = {n: one.copy() for n, one in constants.items()}
    assert np.array_equal(PackedGemm().prepare(workload, (), again)[0], first[0])
    assert PackedGemm().prepare(workload, (), again)[0] is not first[0]


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_hold_every_weight_once(bits: int) -> None:
    words = grouped(np.full((20, 70), (1 << bits) - 1, np.uint8), bits)
    assert words.nbytes == 32 * 128 * bits // 8
    assert sum(int(word).bit_count() for word in words.reshape(-1)) == 20 * 70 * bits


@harness
@pytest.mark.parametrize(
    ("rows", "k", "bits", "block", "dtype", "stream"),
    [
        (3, 328, 4, 32, DataType.HALF, Stream(2, 2, 3, 1)),  # the ring holds all
        (3, 328, 8, 128, DataType.BF16, Stream(3, 2, 2, 1)),  # and does not
        (1, 72, 4, 72, DataType.BF16, Stream(1, 2, 2, 1)),
        (10, 264, 4, 16, DataType.HALF, Stream(1, 4, 2, 2, 2)),  # two teams
        (9, 1152, 8, 256, DataType.HALF, Stream(2, 2, 3, 2)),  # a block of weights takes more than one turn
    ],
)
def test_few_rows(rows: int, k: int, bits: int, block: int, dtype: DataType, stream: Stream) -> None:
    workload, inputs, expected = case((rows,), 37, k, bits, block, dtype)  # with two groups of columns a block the last one begins early
    assert PackedGemv().supports(workload, A100) is None
    packed_arrays = PackedGemv().prepare(workload, (), {n: inputs[n] for n in (1, 2, 3)})
    (result,) = run_plan(emulated(PackedGemv().plan(workload, stream.config(), A100)), inputs, workload.outputs, packed_arrays)
    close(result, expected, str(stream), LIMITS)


@harness
def test_a_varying_number_of_rows_takes_one_kernel() -> None:
    varies = ((True, False), *((False, False),) * 3, (False,), (True, False), (True, False))
    kernels = set()
    for rows in (2, 7):
        workload, inputs, expected = case((rows,), 20, 64, 4, 32)
        workload = replace(workload, varies=varies)
        run(PackedGemv(), (workload, inputs, expected), wanted=lambda one: one == CHOSEN)
        kernels |= {step.kernel for step in PackedGemv().plan(workload, config(**CHOSEN), A100).steps if isinstance(step, Launch)}
    assert len(kernels) == 1


@harness
@pytest.mark.parametrize(
    ("bits", "block", "k", "dtype"), [(4, 16, 200, DataType.HALF), (8, 64, 200, DataType.HALF), (4, 128, 199, DataType.BF16), (8, 200, 200, DataType.BF16)]
)
def test_many_rows(bits: int, block: int, k: int, dtype: DataType) -> None:
    run(PackedGemm(), case((2, 9), 44, k, bits, block, dtype), wanted=lambda one: one["bn"] == 64 and one["splits"] == 1)


@harness
def test_splits_of_the_depth() -> None:
    run(PackedGemm(), case((17,), 24, 1040, 4, 32), wanted=lambda one: one["splits"] == 2 and not one["cluster"] and one["bm"] == 16)
    run(PackedGemm(), case((5,), 40, 1040, 8, 32), wanted=lambda one: one["warps_k"] == 4, device=replace(H100, capability=80))


@harness
def test_dequantised_at_build() -> None:
    for tactic in DEQUANTIZED[:2]:
        run(tactic, case((5, 7), 24, 64, 4, 32))
        run(tactic, case((5,), 9, 37, 8, 16))  # the ordinary product packs these weights again
    run(DEQUANTIZED[2], case((2,), 24, 64, 4, 32))


def test_refusals() -> None:
    def refused(found, text: str, tactic: Tactic | None = None) -> None:  # noqa: ANN001
        refusal = (tactic or PackedGemm()).supports(found[0], H100)
        assert isinstance(refusal, Refusal) and text in refusal.reason, refusal

    refused(case((4,), 16, 64, 4, 32, DataType.FLOAT), "--fp16")
    refused(case((4,), 16, 96, 4, 48), "blocks of 48")
    refused(case((17,), 16, 64, 4, 32), "17 rows", PackedGemv())
    refused(case((1,), 16, 36, 4, 32), "multiple of 8", PackedGemv())
    broken = case((4,), 16, 64, 4, 32, whole=False)
    with pytest.raises(ValueError, match="no whole numbers"):
        PackedGemm().prepare(broken[0], (), {n: broken[1][n] for n in (1, 2, 3)})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [DataType.HALF, DataType.BF16])
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (8, 64), (8, 16)])
def test_on_a_gpu(bits: int, block: int, dtype: DataType) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    device = open_device("0").spec
    for tactic, rows in ((PackedGemv(), 1), (PackedGemv(), 5), (PackedGemm(), 19), (PackedGemm(), 150)):
        workload, inputs, expected = case((rows,), 264, 1096, bits, block, dtype)
        constants = {n: inputs[n] for n, known in enumerate(workload.constant) if known}
        for one in tactic.configs(workload, device)[:4]:
            (found,) = run_on_gpu(tactic.plan(workload, one, device), inputs, workload.outputs, tactic.prepare(workload, one, constants))
            close(found, expected, f"{tactic.id} {dict(one)}", LIMITS)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [DataType.HALF, DataType.BF16])
def test_sixteen_bits_of_few_rows_on_a_gpu(dtype: DataType) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    device, generator, op = open_device("0").spec, np.random.default_rng(3), MatrixMultiply(False, True, EPILOGUE)
    for rows in (1, 2, 9):
        inputs = [generator.normal(size=shape).astype(dtype.numpy) for shape in ((rows, 1096), (269, 1096), (269,), (rows, 269))]
        wide = [one.astype(np.float64) for one in inputs]
        expected = np.maximum(wide[0] @ wide[1].T + wide[2] + wide[3], 0)
        types = tuple(TensorType(dtype, one.shape) for one in inputs)
        workload = Workload(op, types, op.infer(types), (False, True, True, False))
        for one in StreamedGemm().configs(workload, device)[:5]:
            arrays = StreamedGemm().prepare(workload, one, {1: inputs[1]})
            (found,) = run_on_gpu(StreamedGemm().plan(workload, one, device), inputs, workload.outputs, arrays)
            close(found, expected, f"{dict(one)}", LIMITS)
