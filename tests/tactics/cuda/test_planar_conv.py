"""Kernels of convolutions that store channel planes, on the CPU harness, against the operation's NumPy meaning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Operand, apply
from fusion.network import TensorType
from fusion.ops import Convolution, Deconvolution, PlanarConvolution
from tactics.cuda.conv.common import channels_last
from tactics.cuda.conv.mma_conv import MmaConvolution, PlanarMma
from tactics.cuda.conv.simt_conv import PlanarSimt
from tactics.tactic import Tactic, Workload
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, H100, available, close, run_plan
from tests.tactics.cuda.test_conv import LIMITS, conv

harness = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
CASES = {
    "head": conv(2, (7, 5), 16, 21, (1, 1)),
    "window": conv(2, (9, 6), 24, 40, (3, 3), 1, 1),
    "strides and groups": conv(1, (9, 8), 24, 36, (3, 2), (2, 1), (1, 0), groups=3, kind="bf16"),
    "image planes": conv(2, (12, 10), 3, 24, (3, 3), (2, 2), (1, 1), planes=True),
    "deconvolution": conv(2, (7, 5), 16, 24, (3, 3), (2, 2), (1, 1), transposed=(1, 1)),
    "one dimension": conv(1, (23,), 12, 17, (3,), 1, 1, kind="f32"),
    "volume": conv(2, (3, 4, 5), 8, 16, (2, 3, 3), (1, 1, 1), (0, 1, 1), bare=True),
}


def planar(name: str, wide: bool = True) -> tuple[Workload, list[np.ndarray], tuple[np.ndarray, ...]]:
    """The case with its result stored as planes; ``wide`` as float32."""
    workload, inputs, _ = CASES[name]
    assert isinstance(workload.op, Convolution | Deconvolution)
    op = PlanarConvolution(replace(workload.op, epilogue=Convert(DataType.FLOAT, workload.op.epilogue)) if wide else workload.op)
    return replace(workload, op=op, outputs=op.infer(workload.inputs)), inputs, op.evaluate(inputs)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_convolution_transposed(name: str) -> None:
    workload, _, (expected,) = planar(name, wide=False)
    (plain,) = CASES[name][2]
    np.testing.assert_array_equal(expected, np.moveaxis(plain, -1, 1))
    assert workload.outputs[0].shape == expected.shape and channels_last(workload).outputs[0].shape == plain.shape


@harness
@pytest.mark.parametrize(("name", "tactic"), [
    ("image planes", PlanarSimt()), ("one dimension", PlanarSimt()), ("deconvolution", PlanarSimt()), ("head", PlanarMma()), ("window", PlanarMma()),
    ("strides and groups", PlanarMma()), ("deconvolution", PlanarMma()),
], ids=["image-simt", "line-simt", "deconvolution-simt", "head", "window", "groups", "deconvolution"])  # fmt: skip
def test_planes_are_stored(name: str, tactic: Tactic) -> None:
    workload, inputs, expected = planar(name, wide=name != "window")
    assert tactic.supports(workload, A100) is None
    one = tactic.configs(workload, A100)[0]
    plan = tactic.plan(workload, one, A100)
    assert not plan.in_place, "what an epilogue adds lies in another order"
    (result,) = run_plan(emulated(plan), inputs, workload.outputs, tactic.prepare(workload, one, {1: inputs[1]}))
    close(result, expected[0], f"{tactic.id} {name} {dict(one)}", {**LIMITS, workload.outputs[0].dtype.value: LIMITS[inputs[0].dtype.name]})


@harness
@pytest.mark.parametrize("tactic", [PlanarSimt(), PlanarMma()], ids=lambda one: one.id)
def test_products_of_8_bits(tactic: Tactic) -> None:
    random = np.random.default_rng(4)
    inputs = [random.integers(-128, 128, (2, 6, 5, 16)).astype(np.int8), random.integers(-128, 128, (21, 16, 3, 3)).astype(np.int8),
              random.random(21, np.float32) * 1e-4]  # fmt: skip
    scaled = apply("mul", Convert(DataType.FLOAT, Operand(0)), Operand(1))
    op = PlanarConvolution(Convolution((1, 1), (1, 1), (1, 1), (1, 1), channels_last=True, epilogue=scaled))
    types = tuple(TensorType(DataType(one.dtype.name), one.shape) for one in inputs)
    workload = Workload(op, types, op.infer(types), (False, True, True))
    assert tactic.supports(workload, A100) is None
    one = tactic.configs(workload, A100)[0]
    (result,) = run_plan(emulated(tactic.plan(workload, one, A100)), inputs, workload.outputs, tactic.prepare(workload, one, {1: inputs[1]}))
    np.testing.assert_allclose(result, op.evaluate(inputs)[0], rtol=1e-6)


def test_no_partial_sums_go_through_memory() -> None:
    workload, *_ = planar("window")
    assert all(not (dict(one)["splits"] > 1 and not dict(one)["cluster"]) for one in PlanarMma().configs(workload, H100))
    assert {dict(one)["splits"] for one in MmaConvolution().configs(channels_last(workload), H100)}
    near = PlanarMma().neighbours(workload, PlanarMma().configs(workload, H100)[0], H100)
    assert near and all(not (dict(one)["splits"] > 1 and not dict(one)["cluster"]) for one in near)


def test_columns_of_a_wider_tensor_are_read_and_not_written() -> None:
    workload, *_ = planar("window")
    assert set(PlanarMma().pitched(workload)) == set(PlanarSimt().pitched(workload)) == {0, 2, 3}


@pytest.mark.gpu
@pytest.mark.parametrize("tactic", [PlanarSimt(), PlanarMma()], ids=lambda one: one.id)
@pytest.mark.parametrize("name", CASES)
def test_on_the_gpu(name: str, tactic: Tactic) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    workload, inputs, expected = planar(name, wide=name != "window")
    device = open_device("0").spec
    configs = tactic.configs(workload, device)
    for one in dict.fromkeys((configs[0], configs[-1])):
        packed = tactic.prepare(workload, one, {1: inputs[1]})
        (result,) = run_on_gpu(tactic.plan(workload, one, device), inputs, workload.outputs, packed)
        close(result, expected[0], str(dict(one)), {**LIMITS, workload.outputs[0].dtype.value: LIMITS[inputs[0].dtype.name]})
