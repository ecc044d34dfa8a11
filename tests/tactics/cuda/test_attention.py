"""Attention kernels on the CPU harness (tensor-core instructions emulated) against the operation's NumPy meaning."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Operand
from fusion.network import TensorType
from fusion.ops import Attention
from fusion.ops.epilogue import IDENTITY
from tactics.compiler import compile_cubin
from tactics.cuda.attention.attention import SINGLE, GroupedAttention, MmaAttention, SimtAttention
from tactics.cuda.sm90.attention_decode_sm90 import Sm90DecodeAttention
from tactics.cuda.sm90.attention_sm90 import Sm90Attention, Sm90ShortAttention
from tactics.tactic import Config, DeviceSpec, Launch, Refusal, Tactic, Workload, config
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, H100, available, close, kernels, run_plan

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
SMALL = config(warps=2, row_tiles=1, block_kv=32)
TF32 = 1e-3
WIDE = Convert(DataType.FLOAT, Operand(0))
LIMITS = {"float16": 2e-3, "bfloat16": 1.2e-2, "float32": 1e-5}


def attention(b, h, s_q, s_k, d, dtype=DataType.HALF, mask=None, causal=False, layout="bhsd", kv_heads=None, d_v=None, boolean=False, window=0, softcap=0.0,
              epilogue=IDENTITY):  # fmt: skip
    """(workload, inputs, expected)."""
    generator = np.random.default_rng(5)
    sizes = [(h, s_q, d), (kv_heads or h, s_k, d), (kv_heads or h, s_k, d_v or d)]
    inputs = []
    for heads, length, size in sizes:
        one = generator.normal(size=(b, heads, length, size)).astype(dtype.numpy)
        inputs.append(np.ascontiguousarray(one.transpose(["bhsd".index(axis) for axis in layout])))
    if mask is not None and boolean:
        values = generator.random(mask) > 0.4
        values[..., 0] = True
        inputs.append(values)
    elif mask is not None:
        values = generator.normal(size=mask)
        values[..., -1] = -math.inf
        inputs.append(values.astype(dtype.numpy))
    types = tuple(TensorType(DataType.BOOL if one.dtype == np.bool_ else dtype, one.shape) for one in inputs)
    op = Attention(d**-0.5, causal, mask is not None, (layout,) * 4, (), softcap, window, epilogue)
    return Workload(op, types, op.infer(types)), inputs, op.evaluate(inputs)


def run(tactic: Tactic, case, chosen: Config = (), device: DeviceSpec = A100) -> None:  # noqa: ANN001
    workload, inputs, expected = case
    refusal = tactic.supports(workload, device)
    assert refusal is None, refusal
    assert chosen in tactic.configs(workload, device)
    (result,) = run_plan(emulated(tactic.plan(workload, chosen, device)), inputs, workload.outputs)
    close(result, expected[0], f"{tactic.id} {dict(chosen)}", {**LIMITS, "float32": TF32 if inputs[0].dtype == np.float32 and tactic.id.endswith("mma") else LIMITS[inputs[0].dtype.name]})


CASES = {
    "keys past the last block": dict(sizes=(2, 2, 37, 53, 64)),
    "one mask row in pairs": dict(sizes=(2, 2, 20, 70, 64), mask=(2, 1, 1, 70), layout="bshd"),
    "one mask row of odd length": dict(sizes=(2, 2, 20, 71, 64), mask=(2, 1, 1, 71)),
    "a mask for every query": dict(sizes=(1, 2, 33, 40, 64), mask=(1, 2, 33, 40)),
    "one column of mask": dict(sizes=(1, 2, 18, 40, 64), mask=(18, 1), boolean=True),
    "boolean pairs": dict(sizes=(2, 2, 17, 66, 64), mask=(2, 1, 1, 66), boolean=True),
    "boolean odd": dict(sizes=(1, 2, 33, 33, 64), mask=(33, 33), boolean=True),
    "causal, fewer keys than queries": dict(sizes=(1, 2, 50, 33, 64), causal=True),
    "shared key heads": dict(sizes=(1, 4, 20, 65, 64), causal=True, kv_heads=2),
    "a window": dict(sizes=(1, 2, 50, 90, 64), causal=True, window=20),
    "a cap and a mask": dict(sizes=(1, 2, 33, 40, 64), softcap=0.7, mask=(1, 2, 33, 40), window=9),
    "a wide result": dict(sizes=(1, 2, 21, 40, 64), epilogue=WIDE, layout="bshd"),
    "float32": dict(sizes=(1, 2, 21, 40, 64), dtype=DataType.FLOAT, mask=(1, 1, 1, 40)),
    "one query": dict(sizes=(2, 2, 1, 45, 64)),
    "bfloat16": dict(sizes=(1, 2, 33, 40, 64), dtype=DataType.BF16),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_tensor_cores(name: str) -> None:
    case = dict(CASES[name])
    run(MmaAttention(), attention(*case.pop("sizes"), **case), SMALL)  # type: ignore[misc]


@pytest.mark.parametrize(("tactic", "sizes"), [(MmaAttention(), ((2, 21, 8, 64),)), (SimtAttention(), ((2, 21, 4, 64), (2, 37, 4, 64)))])
def test_parts_of_fewer_inputs(tactic: Tactic, sizes: tuple) -> None:
    """Queries, keys and values of one projection with grouped heads, and keys and values of one."""
    parts = ((0, 0, 4), (0, 4, 2), (0, 6, 2)) if len(sizes) == 1 else ((0, 0, 4), (1, 0, 2), (1, 2, 2))
    op = Attention(0.125, len(sizes) == 1, False, ("bshd",) * 4, parts)
    generator = np.random.default_rng(1)
    inputs = [generator.normal(size=size).astype(np.float16) for size in sizes]
    types = tuple(TensorType(DataType.HALF, size) for size in sizes)
    run(tactic, (Workload(op, types, op.infer(types)), inputs, op.evaluate(inputs)), SMALL if isinstance(tactic, MmaAttention) else ())


@pytest.mark.parametrize(("d", "d_v"), [(33, 33), (64, 24)])
def test_head_sizes(d: int, d_v: int) -> None:
    run(MmaAttention(), attention(1, 2, 20, 37, d, d_v=d_v), SMALL)


GROUPS = {
    "one query, split": (dict(sizes=(2, 8, 1, 300, 64), kv_heads=2, mask=(1, 8, 1, 300)), 4, 3),
    "a few queries, causal, split": (dict(sizes=(1, 6, 3, 150, 64), kv_heads=2, causal=True, layout="bshd", mask=(1, 6, 3, 150)), 2, 2),
    "whole": (dict(sizes=(1, 6, 3, 70, 64), kv_heads=2, causal=True, window=20), 1, 3),
    "a step of keys each": (dict(sizes=(1, 4, 1, 300, 64), kv_heads=2, causal=True), SINGLE, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_heads(name: str) -> None:
    """Rows are the queries of all heads that share keys; more splits than blocks of keys leave some empty."""
    case, splits, buffers = dict(GROUPS[name][0]), *GROUPS[name][1:]
    workload, inputs, expected = attention(*case.pop("sizes"), **case)  # type: ignore[arg-type, misc]
    chosen = config(warps=1, row_tiles=1, block_kv=32, splits=splits, buffers=buffers)
    (result,) = run_plan(emulated(GroupedAttention().plan(workload, chosen, A100)), inputs, workload.outputs)
    close(result, expected[0], name, {"float16": LIMITS["float16"]})
    found = GroupedAttention().configs(workload, replace(A100, multiprocessors=8))
    assert found and all(dict(one)["buffers"] == (2 if dict(one)["splits"] else 1) or dict(one)["buffers"] == 3 for one in found)


DECODE = {
    "one query": (dict(sizes=(2, 2, 1, 45, 64)), dict(stages=3)),
    "one query, split": (dict(sizes=(1, 8, 1, 300, 128), kv_heads=2), dict(splits=3, stages=2)),
    "a few queries, causal, split": (dict(sizes=(1, 6, 3, 150, 64), kv_heads=2, causal=True, layout="bshd", mask=(1, 6, 3, 150)), dict(splits=2, keys=32)),
    "a window, a narrow head": (dict(sizes=(1, 6, 3, 170, 72), kv_heads=2, causal=True, window=20), dict(stages=2)),
    "more rows than a block has": (dict(sizes=(2, 12, 2, 100, 64), kv_heads=1, mask=(2, 1, 1, 100), boolean=True), dict(splits=2, stages=2)),
    "an odd mask, bfloat16": (dict(sizes=(1, 4, 2, 61, 64), mask=(1, 4, 2, 61), dtype=DataType.BF16), dict(stages=3)),
    "queries that see nothing": (dict(sizes=(1, 2, 9, 5, 64), causal=True), dict(stages=2)),
    "results of another type": (dict(sizes=(1, 4, 1, 90, 64), epilogue=Convert(DataType.BF16, Operand(0))), dict(stages=2)),
    "results of another type, split": (dict(sizes=(1, 4, 1, 90, 64), epilogue=Convert(DataType.BF16, Operand(0))), dict(splits=3, stages=2)),
    "more splits than steps": (dict(sizes=(1, 2, 1, 40, 64)), dict(splits=4, stages=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODE)
def test_warps_with_rings_of_their_own(name: str) -> None:
    case, how = dict(DECODE[name][0]), DECODE[name][1]
    workload, inputs, expected = attention(*case.pop("sizes"), **case)  # type: ignore[arg-type, misc]
    assert Sm90DecodeAttention().supports(workload, H100) is None
    chosen = config(**{**dict(blocks=1, warps=2, keys=16, stages=2, splits=1), **how})
    (result,) = run_plan(emulated(Sm90DecodeAttention().plan(workload, chosen, H100)), inputs, workload.outputs)
    close(result, expected[0], name, LIMITS)


def test_decoding_fills_the_device() -> None:
    """The first choice has a block for nearly every multiprocessor, or all there are, and no block without keys."""
    for batch, kv_heads, keys in ((1, 8, 4096), (8, 8, 2048), (32, 8, 1024), (1, 4, 100)):
        sizes = ((batch, 32, 1, 128), (batch, kv_heads, keys, 128), (batch, kv_heads, keys, 128))
        types, op = tuple(TensorType(DataType.HALF, size) for size in sizes), Attention(0.1)
        workload = Workload(op, types, op.infer(types))
        best = dict(Sm90DecodeAttention().configs(workload, H100)[0])
        blocks, steps = batch * kv_heads * best["splits"], math.ceil(keys / best["keys"])
        assert best["splits"] <= steps and (best["splits"] * best["warps"] >= steps // 2 or blocks > 0.9 * H100.multiprocessors), best


def lowest(dtype: DataType, s_q: int = 3, s_k: int = 40, rows: bool = True):  # noqa: ANN201
    """(workload, inputs, expected) with a mask of the lowest finite number, where all keys of query 1 are hidden by it and all of query 2 by infinity;
    without ``rows`` of one row for all queries, in which the first batch has no key."""
    generator = np.random.default_rng(1)
    inputs = [generator.normal(size=(2, 2, length, 64)).astype(np.float16) for length in (s_q, s_k, s_k)]
    low, mask = np.finfo(np.float32).min if dtype is DataType.FLOAT else np.float32(-3.3895314e38), np.zeros((2, 1, s_q if rows else 1, s_k), np.float32)
    mask[0, 0, min(1, mask.shape[2] - 1)], mask[1, 0, :, 5:] = low, low
    if rows:
        mask[0, 0, 2] = -math.inf
    inputs.append(mask.astype(dtype.numpy))
    types = tuple(TensorType(DataType(one.dtype.name), one.shape) for one in inputs)
    op = Attention(0.125, False, True)
    return Workload(op, types, op.infer(types)), inputs, op.evaluate(inputs)


LOWEST = [(DataType.FLOAT, True), (DataType.FLOAT, False), (DataType.BF16, True)]


@pytest.mark.parametrize(("dtype", "rows"), LOWEST)
def test_what_the_lowest_number_hides_entirely_is_the_mean(dtype: DataType, rows: bool) -> None:
    workload, inputs, expected = lowest(dtype, rows=rows)
    assert np.abs(expected[0][0, :, 1]).max() > 0.05
    for tactic, chosen in ((MmaAttention(), SMALL), (Sm90DecodeAttention(), config(blocks=1, warps=2, keys=16, stages=2, splits=1))):
        (result,) = run_plan(emulated(tactic.plan(workload, chosen, H100)), inputs, workload.outputs)
        close(result, expected[0], tactic.id, LIMITS)


def test_more_splits_than_blocks_of_keys() -> None:
    workload, inputs, expected = attention(1, 2, 1, 40, 64, epilogue=WIDE)
    chosen = config(warps=1, row_tiles=1, block_kv=32, splits=4)
    (result,) = run_plan(emulated(GroupedAttention().plan(workload, chosen, A100)), inputs, workload.outputs)
    close(result, expected[0], "empty splits", {"float32": LIMITS["float16"]})


def test_an_infinite_value_stays_infinite() -> None:
    """Splits that there are not must not take part: 0 times an infinite value is no number."""
    workload, inputs, _ = attention(1, 2, 1, 90, 64)
    inputs[2][0, 1, 89, 5] = np.inf
    expected = workload.op.evaluate(inputs)[0]
    assert np.isinf(expected).sum() == 1
    chosen = config(warps=1, row_tiles=1, block_kv=32, splits=3)
    (result,) = run_plan(emulated(GroupedAttention().plan(workload, chosen, A100)), inputs, workload.outputs)
    np.testing.assert_array_equal(np.isinf(result), np.isinf(expected))
    close(np.where(np.isinf(expected), 0, result), np.where(np.isinf(expected), 0, expected), "infinite", {"float16": LIMITS["float16"]})


def test_float32_without_tf32() -> None:
    """Three products of parts: as near as float32 sums are."""
    workload, inputs, expected = attention(1, 2, 21, 40, 64, DataType.FLOAT, causal=True, layout="bshd")
    workload = replace(workload, tf32=False)
    (result,) = run_plan(emulated(MmaAttention().plan(workload, SMALL, A100)), inputs, workload.outputs)
    close(result, expected[0], "exact", {"float32": 2e-6})
    assert MmaAttention().tolerance(workload) == 1e-4


@pytest.mark.parametrize("chosen", [config(warps=1, row_tiles=2, block_kv=64), config(warps=4, row_tiles=1, block_kv=128)])
def test_other_tiles(chosen: Config) -> None:
    run(MmaAttention(), attention(1, 1, 37, 140, 64, mask=(1, 1, 1, 140)), chosen)


@pytest.mark.parametrize("name", ["one mask row in pairs", "boolean odd", "shared key heads", "a cap and a mask"])
def test_reference(name: str) -> None:
    case = dict(CASES[name])
    run(SimtAttention(), attention(*case.pop("sizes"), **case))  # type: ignore[misc]


def test_refusals_name_what_was_found() -> None:
    workload, *_ = attention(1, 1, 4, 4, 300)
    assert "300" in MmaAttention().supports(workload, A100).reason  # type: ignore[union-attr]
    workload, *_ = attention(1, 1, 4, 4, 64, DataType.FLOAT)
    assert MmaAttention().supports(workload, A100) is None
    assert isinstance(MmaAttention().supports(workload, replace(A100, arch="sm_75", capability=75)), Refusal)
    assert SimtAttention().supports(workload, A100) is None


def test_sequence_length_that_varies_keeps_the_kernel() -> None:
    """A longer sequence must launch the same kernel with other arguments."""
    plans = []
    for length in (64, 100):
        workload, *_ = attention(1, 2, length, length, 64)
        varying = Workload(workload.op, workload.inputs, workload.outputs, (), ((False, False, True, False),) * 4)
        plans.append(MmaAttention().plan(varying, SMALL, H100))
    assert kernels(plans[0]) == kernels(plans[1])
    first, second = (plan.steps[0] for plan in plans)
    assert isinstance(first, Launch) and isinstance(second, Launch) and first.grid != second.grid


def test_a_cache_that_grows_keeps_the_kernels() -> None:
    """Few queries over any number of keys, in batches of any size: blocks that share the keys, and the launch that joins them."""
    axes = ((True, False, False, False), *((True, False, True, False),) * 2, (True, False, False, True), (True, False, False, False))
    for tactic in (GroupedAttention(), Sm90DecodeAttention()):
        varying = []
        for batch, length in ((1, 640), (3, 1001)):
            workload, *_ = attention(batch, 8, 1, length, 64, kv_heads=2, mask=(batch, 1, 1, length))
            varying.append(Workload(workload.op, workload.inputs, workload.outputs, (), axes))
        chosen = tactic.configs(varying[0], H100)
        assert any(dict(one)["splits"] > 1 for one in chosen)
        for one in chosen:
            assert kernels(tactic.plan(varying[0], one, H100)) == kernels(tactic.plan(varying[1], one, H100)), (tactic.id, one)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a", "sm_120a"])
def test_compiles_without_spills(arch: str) -> None:
    device = DeviceSpec("cuda", "test", arch, int(arch[3:].rstrip("a")), 100, 65536 if arch == "sm_75" else 101376)
    cases = [(64, None, DataType.HALF), (64, (2, 1, 1, 197), DataType.HALF), (128, None, DataType.HALF)]
    for d, mask, dtype in [*cases, *([(64, None, DataType.FLOAT), (128, None, DataType.FLOAT)] if arch in ("sm_80", "sm_90a") else [])]:
        workload, *_ = attention(2, 1, 197, 197, d, dtype, mask=mask)
        few, *_ = attention(2, 4, 1, 700, d, dtype, kv_heads=1, mask=None if mask is None else (2, 1, 1, 700))
        plans = [tactic.plan(one, tactic.configs(one, device)[0], device) for tactic, one in ((MmaAttention(), workload), (GroupedAttention(), few))]
        for kernel in dict.fromkeys(kernel for plan in plans for kernel in kernels(plan)):
            resources = compile_cubin(kernel.source(), kernel.defines, arch).resources
            assert resources.spill_stores == 0, (arch, d, mask, dtype, resources)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in CASES if "window" in name or "cap" in name or "wide" in name or name == "float32"] + list(GROUPS))
def test_on_gpu(name: str) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    case = dict({**CASES, **{name: one for name, (one, *_) in GROUPS.items()}}[name])
    workload, inputs, expected = attention(*case.pop("sizes"), **case)  # type: ignore[misc]
    spec = open_device("0").spec
    grouped = [(GroupedAttention(), one) for one in GroupedAttention().configs(workload, spec)[:2]] if name in GROUPS else []
    for tactic, chosen in ((MmaAttention(), MmaAttention().configs(workload, spec)[0]), (SimtAttention(), ()), *grouped):
        (result,) = run_on_gpu(tactic.plan(workload, chosen, spec), inputs, workload.outputs)
        close(result, expected[0], tactic.id, {**LIMITS, "float32": LIMITS["float16"]})


@pytest.mark.gpu
@pytest.mark.parametrize("name", DECODE)
def test_decoding_on_gpu(name: str) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    case = dict(DECODE[name][0])
    workload, inputs, expected = attention(*case.pop("sizes"), **case)  # type: ignore[arg-type, misc]
    tactic, spec = Sm90DecodeAttention(), open_device("0").spec
    if spec.arch != "sm_90a":
        pytest.skip("a kernel for sm_90a")
    found = tactic.configs(workload, spec)
    for chosen in dict.fromkeys((found[0], found[-1], max(found, key=lambda one: dict(one)["splits"]))):
        (result,) = run_on_gpu(tactic.plan(workload, chosen, spec), inputs, workload.outputs)
        close(result, expected[0], f"{name} {dict(chosen)}", LIMITS)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "rows"), LOWEST)
def test_the_lowest_number_on_gpu(dtype: DataType, rows: bool) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    spec = open_device("0").spec
    for tactic, lengths in ((Sm90Attention(), (300, 400)), (Sm90ShortAttention(), (150, 200))):
        workload, inputs, expected = lowest(dtype, *lengths, rows)
        if isinstance(tactic.supports(workload, spec), Refusal):
            pytest.skip("a kernel for sm_90a")
        for chosen in tactic.configs(workload, spec):
            (result,) = run_on_gpu(tactic.plan(workload, chosen, spec), inputs, workload.outputs)
            close(result, expected[0], f"{tactic.id} {dict(chosen)}", LIMITS)
