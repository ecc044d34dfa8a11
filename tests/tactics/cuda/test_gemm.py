"""Matrix-product kernels on the CPU harness (tensor-core instructions emulated) against the operation's NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import TensorType
from fusion.ops import MatrixMultiply
from fusion.ops.epilogue import IDENTITY
from tactics.compiler import compile_cubin
from tactics.cuda.gemm import tiles
from tactics.cuda.gemm.gemv import Gemv
from tactics.cuda.gemm.mma_gemm import MmaGemm
from tactics.cuda.gemm.simt_gemm import SimtGemm
from tactics.cuda.gemm.stream import StreamedGemm, fragments
from tactics.tactic import DeviceSpec, Launch, Refusal, Tactic, Workload
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, H100, available, close, kernels, run_plan
from tests.harness.spills import may_spill

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
BIAS_RESIDUAL = apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2)))
LIMITS = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-3}  # fp32 products round to TF32


def product(a_shape, b_shape, dtype=DataType.HALF, transpose_b=True, transpose_a=False, constant=False, bare=False):
    """(workload, inputs, expected)."""
    generator = np.random.default_rng(7)
    k = a_shape[-2] if transpose_a else a_shape[-1]
    shapes = [a_shape, b_shape]
    op = MatrixMultiply(transpose_a, transpose_b, IDENTITY)
    if not bare:
        out = op.infer([TensorType(dtype, shape) for shape in shapes])[0].shape
        shapes += [out[-1:], out]
        op = MatrixMultiply(transpose_a, transpose_b, BIAS_RESIDUAL)
    inputs = [generator.normal(size=shape) for shape in shapes]
    inputs[1] *= k**-0.5
    inputs = [one.astype(dtype.numpy) for one in inputs]
    types = tuple(TensorType(dtype, one.shape) for one in inputs)
    return Workload(op, types, op.infer(types), (False, constant, False, False)[: len(inputs)]), inputs, op.evaluate(inputs)


def run(tactic: Tactic, case, configs: int = 1, wanted=lambda one: True, device: DeviceSpec = A100) -> None:  # noqa: ANN001
    workload, inputs, expected = case
    refusal = tactic.supports(workload, device)
    assert refusal is None, refusal
    found = [one for one in tactic.configs(workload, device) if wanted(dict(one))][:configs]
    assert found
    for one in found:
        plan = tactic.plan(workload, one, device)
        (result,) = run_plan(emulated(plan), inputs, workload.outputs, tactic.prepare(workload, one, {1: inputs[1]}))
        close(result, expected[0], f"{tactic.id} {dict(one)}", LIMITS)


@pytest.mark.parametrize("dtype", [DataType.HALF, DataType.BF16, DataType.FLOAT])
@pytest.mark.parametrize("transpose_b", [True, False])
def test_tails(dtype: DataType, transpose_b: bool) -> None:
    case = product((37, 44), (28, 44) if transpose_b else (44, 28), dtype, transpose_b)
    run(MmaGemm(), case)
    run(SimtGemm(), case)


def test_float_rows_of_a_narrow_tile() -> None:
    """[K][N] in tiles of 16 columns: rows of four chunks, among which eight places would not do."""
    run(MmaGemm(), product((37, 44), (44, 28), DataType.FLOAT, False), wanted=lambda one: one["bn"] == 16)


@pytest.mark.parametrize("shapes", [((1, 1), (1, 1)), ((7, 3), (5, 3)), ((33, 70), (19, 70))])
def test_odd_sizes(shapes) -> None:  # noqa: ANN001
    run(MmaGemm(), product(*shapes, constant=True))
    run(MmaGemm(), product(*shapes))


@pytest.mark.parametrize("shapes", [((3, 2, 17, 24), (3, 2, 9, 24)), ((3, 1, 17, 24), (2, 9, 24)), ((1, 17, 24), (4, 9, 24))])
def test_batches_and_broadcasts(shapes) -> None:  # noqa: ANN001
    run(MmaGemm(), product(*shapes))
    run(SimtGemm(), product(*shapes))


def test_transposed_a_goes_to_the_reference() -> None:
    case = product((24, 17), (24, 9), transpose_b=False, transpose_a=True)
    assert isinstance(MmaGemm().supports(case[0], A100), Refusal)
    run(SimtGemm(), case)


def test_split_depth_through_memory_and_warps_over_the_depth() -> None:
    run(MmaGemm(), product((20, 1040), (24, 1040)), wanted=lambda one: one["splits"] == 2 and one["warps_k"] > 1)
    run(MmaGemm(), product((20, 1037), (24, 1037)), wanted=lambda one: one["splits"] == 3)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_few_rows(rows: int) -> None:
    run(Gemv(), product((rows, 264), (21, 264), constant=True, bare=True), configs=2)


@pytest.mark.parametrize(("rows", "dtype"), [((1,), DataType.HALF), ((3, 4), DataType.BF16)])
def test_few_rows_of_weights_that_stream(rows: tuple[int, ...], dtype: DataType) -> None:
    case = product((*rows, 200), (21, 200), dtype, constant=True)
    run(StreamedGemm(), case, wanted=lambda one: one["warps"] == 2 and one["columns"] == 2)


def test_streamed_weights_hold_every_element_once() -> None:
    values = np.arange(32 * 128, dtype=np.uint16).reshape(32, 128)
    words = fragments(values)
    assert np.array_equal(np.sort(words.view(np.uint16).reshape(-1)), np.arange(32 * 128))
    row, quad, group = 3, 2, 1  # a lane's first word: row 3, the first two of the eight of quad 2
    assert words[0, group, 0, row * 4 + quad, 0] == int(values[row, 64 + 16]) | int(values[row, 64 + 17]) << 16
    assert words[0, group, 0, row * 4 + quad, 1] == int(values[row + 8, 64 + 16]) | int(values[row + 8, 64 + 17]) << 16


def test_streamed_weights_are_refused_where_they_cannot_be() -> None:
    for case, text in ((product((17, 64), (8, 64), constant=True), "17 rows"), (product((2, 64), (8, 64)), "no constant"),
                       (product((2, 60), (8, 60), constant=True), "multiple of 8"), (product((2, 64), (8, 64), DataType.FLOAT, constant=True), "FP32")):  # fmt: skip
        refusal = StreamedGemm().supports(case[0], H100)
        assert isinstance(refusal, Refusal) and text in refusal.reason, refusal


def test_few_rows_of_float_with_a_stored_by_depth() -> None:
    run(Gemv(), product((2, 132), (132, 21), DataType.FLOAT, False, constant=True), configs=2)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (128, 768, 3072), (4096, 4096, 4096), (65, 258, 2048), (300000, 16, 36)])
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a", "sm_120a"])
def test_configurations_are_legal_and_plans_well_formed(sizes: tuple[int, int, int], arch: str) -> None:
    m, n, k = sizes
    capability = int(arch[3:].rstrip("a"))
    device = DeviceSpec("cuda", "test", arch, capability, 100, 65536 if capability == 75 else 101376, flops={"float16": 1e14})
    a, b = TensorType(DataType.HALF, (m, k)), TensorType(DataType.HALF, (n, k))
    op = MatrixMultiply(False, True)
    workload = Workload(op, (a, b), op.infer((a, b)), (False, True))
    found = MmaGemm().configs(workload, device)
    assert found and len(set(found)) == len(found)
    for one in found:
        tile = tiles.tile_of(one)
        assert tiles.legal(tile, 2, False, device)
        plan = MmaGemm().plan(workload, one, device)
        first = plan.steps[0]
        assert isinstance(first, Launch) and first.shared_memory <= device.shared_memory and first.block[0] == tile.threads
        assert tiles.split_depth(tile, k) * tile.splits >= k and tiles.split_depth(tile, k) % tile.bk == 0
        assert len(plan.steps) == 1 + tile.partial and bool(plan.workspace) == tile.partial
        assert not (tile.cluster and capability < 90)
        assert first.grid[0] * tile.bm * tile.bn >= m * n


def test_the_estimate_prefers_small_tiles_for_small_products_and_large_ones_for_large() -> None:
    small = tiles.candidates(128, 768, 768, 1, DataType.HALF, False, H100)[0]
    large = tiles.candidates(8192, 8192, 8192, 1, DataType.HALF, False, H100)[0]
    assert small.bm * small.bn <= 64 * 64 and large.bm * large.bn >= 128 * 128


def test_rows_that_vary_keep_the_kernel() -> None:
    few, many = (product((rows, 64), (32, 64), bare=True)[0] for rows in (64, 200))
    axes = ((True, False), (False, False), (True, False))
    few, many = (Workload(one.op, one.inputs, one.outputs, (), axes) for one in (few, many))
    for one in MmaGemm().configs(few, A100):
        assert kernels(MmaGemm().plan(few, one, A100)) == kernels(MmaGemm().plan(many, one, A100))


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a", "sm_120a"])
def test_compiles_without_spilling_sums(arch: str) -> None:
    capability = int(arch[3:].rstrip("a"))
    device = DeviceSpec("cuda", "test", arch, capability, 100, 65536 if capability == 75 else 101376, flops={"float16": 1e14})
    for sizes in ((1024, 1024, 1024), (64, 64, 4096)):
        workload, *_ = product((sizes[0], sizes[2]), (sizes[1], sizes[2]), bare=True)
        for kernel in kernels(MmaGemm().plan(workload, MmaGemm().configs(workload, device)[0], device)):
            resources = compile_cubin(kernel.source(), kernel.defines, arch).resources
            assert resources.spill_stores <= may_spill(kernel.entry, arch), (sizes, resources)
