"""Convolution kernels on the CPU harness (tensor-core instructions emulated) against the operation's NumPy meaning."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import TensorType
from fusion.ops import Convolution, Deconvolution
from tactics.compiler import compile_cubin
from tactics.cuda.conv.common import Window, merge_groups, window_of
from tactics.cuda.conv.depthwise import Depthwise
from tactics.cuda.conv.depthwise_mma import DepthwiseMma
from tactics.cuda.conv.mma_conv import MmaConvolution
from tactics.cuda.conv.simt_conv import SimtConvolution
from tactics.tactic import DeviceSpec, Refusal, Tactic, Workload
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, available, close, kernels, run_plan
from tests.harness.spills import may_spill

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
RELU_BIAS_RESIDUAL = apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2)))
TYPES = {"f16": DataType.HALF, "bf16": DataType.BF16, "f32": DataType.FLOAT}
# fp32 products on tensor cores round both operands to 10 bits
LIMITS = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-3}


def conv(n, spatial, c, o, window, stride=1, pad=0, dilation=1, groups=1, kind="f16", transposed=None, planes=False, bare=False):
    """(workload, inputs, expected) of a channels-last (de)convolution with bias, residual and ReLU unless ``bare``."""
    rank = len(spatial)
    stride, pad, dilation = ((one,) * rank if isinstance(one, int) else one for one in (stride, pad, dilation))
    if transposed is None:
        op = Convolution(stride, pad, pad, dilation, groups, True, input_channels_last=False if planes else None)
        w_shape = (o, c // groups, *window)
    else:
        op = Deconvolution(stride, pad, pad, dilation, transposed, groups, True)
        w_shape = (c, o // groups, *window)
    dtype = TYPES[kind]
    shapes = [(n, c, *spatial) if planes else (n, *spatial, c), w_shape]
    if not bare:
        out = op.infer([TensorType(dtype, shape) for shape in shapes])[0]
        op = replace(op, epilogue=RELU_BIAS_RESIDUAL)
        shapes += [(o,), out.shape]
    generator = np.random.default_rng(3)
    inputs = [generator.normal(size=shape) for shape in shapes]
    inputs[1] *= (c // groups * math.prod(window)) ** -0.5
    inputs = [one.astype(dtype.numpy) for one in inputs]
    types = tuple(TensorType(dtype, one.shape) for one in inputs)
    return Workload(op, types, op.infer(types), (False, True, True, False)[: len(inputs)]), inputs, op.evaluate(inputs)


def run(tactic: Tactic, case, configs: int = 1, device: DeviceSpec = A100, chosen=None) -> None:  # noqa: ANN001
    """Run ``configs`` configurations spread over the tactic's list (or ``chosen``) and compare."""
    workload, inputs, expected = case
    refusal = tactic.supports(workload, device)
    assert refusal is None, refusal
    found = list(tactic.configs(workload, device))
    picked = chosen or found[:: max(1, len(found) // configs)][:configs]
    for one in picked:
        assert one in found
        plan = tactic.plan(workload, one, device)
        (result,) = run_plan(emulated(plan), inputs, workload.outputs, tactic.prepare(workload, one, {1: inputs[1]}))
        close(result, expected[0], f"{tactic.id} {dict(one)}", LIMITS)


@pytest.mark.parametrize("sizes", [
    (2, (7, 5), 16, 24, (3, 3), (2, 2), (1, 1), (1, 1), 1, (1, 1)),
    (1, (5, 4), 8, 24, (2, 2), (2, 2), (0, 0), (1, 1), 1, (0, 0)),
    (2, (5, 6), 12, 18, (4, 3), (2, 1), (1, 1), (1, 2), 3, (0, 0)),
    (2, (7,), 7, 9, (5,), (3,), (2,), (1,), 1, (1,)),
    (1, (4, 5), 8, 8, (1, 2), (3, 2), (0, 0), (1, 1), 1, (1, 0)),
    (1, (3, 2, 4), 8, 8, (3, 2, 2), (2, 1, 2), (1, 0, 1), (1, 1, 1), 1, (0, 0, 1)),
    (1, (5, 5), 8, 16, (3, 3), (2, 2), (0, 1), (2, 2), 2, (0, 0)),
    (1, (4, 5), 8, 16, (2, 3), (3, 2), (-3, -2), (1, 2), 1, (1, 0)),  # sums of nothing around the full result
    (1, (3,), 8, 8, (1,), (2,), (-5,), (1,), 1, (0,)),
])  # fmt: skip
def test_deconvolution_by_phases(sizes) -> None:  # noqa: ANN001
    *first, output_padding = sizes
    case = conv(*first, transposed=output_padding)
    run(SimtConvolution(), case)
    run(MmaConvolution(), case)


def test_deconvolution_in_float() -> None:
    run(MmaConvolution(), conv(1, (5, 6), 12, 18, (4, 3), (2, 1), (1, 1), (1, 2), 3, kind="f32", transposed=(0, 0)))


def test_deconvolution_with_partial_sums() -> None:
    case = conv(1, (3, 3), 256, 16, (4, 4), (2, 2), (1, 1), transposed=(0, 0))
    split = [one for one in MmaConvolution().configs(case[0], A100) if dict(one)["splits"] > 1]
    assert split
    run(MmaConvolution(), case, chosen=split[:1])


@pytest.mark.parametrize("sizes", [
    (2, (12, 10), 3, 24, (3, 3), (2, 2), (1, 1)),
    (1, (15, 15), 3, 16, (7, 7), (2, 2), (3, 3)),
    (1, (8, 16), 3, 24, (4, 8), (4, 8), (0, 0)),
    (2, (9,), 2, 12, (3,), (1,), (1,)),
    (1, (9, 8), 4, 12, (3, 2), (1, 2), (0, 1), (2, 1)),
])  # fmt: skip
def test_image_planes(sizes) -> None:  # noqa: ANN001
    case = conv(*sizes, kind="f32" if sizes[2] == 2 else "f16", planes=True)
    run(SimtConvolution(), case)
    run(MmaConvolution(), case)
    assert isinstance(window_of(case[0]), Refusal)
    assert "channels-last" in Depthwise().supports(case[0], A100).reason  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize(("window", "stride", "dilation"), [((3, 3), (1, 1), (1, 1)), ((5, 3), (2, 2), (1, 1)), ((3, 3), (1, 2), (2, 2))])
def test_depthwise(window, stride, dilation, kind: str) -> None:  # noqa: ANN001
    pad = tuple(size // 2 for size in window)
    run(Depthwise(), conv(2, (9, 10), 24, 24, window, stride, pad, dilation, 24, kind=kind), configs=2)


def test_depthwise_odd_channels_and_one_dimension() -> None:
    run(Depthwise(), conv(2, (5, 7), 9, 9, (3, 3), 1, 1, 1, 9), configs=2)
    run(Depthwise(), conv(2, (23,), 12, 12, (7,), 2, 3, 1, 12, bare=True), configs=2)
    wide = conv(1, (80,), 4, 4, (9,), 1, 4, 5, 4, bare=True)
    assert "41 input columns" not in str(Depthwise().supports(wide[0], A100))
    assert isinstance(Depthwise().supports(wide[0], A100), Refusal)


def test_depthwise_bfloat16() -> None:
    run(Depthwise(), conv(1, (6, 7), 16, 16, (3, 3), 1, 1, 1, 16, kind="bf16"))


@pytest.mark.parametrize(("kind", "sizes"), [
    ("f16", (2, (9, 10), 32, 48, (3, 3), 1, 1)),
    ("bf16", (1, (9, 8), 24, 40, (3, 3), 2, 1)),
    ("f32", (1, (7, 6), 6, 20, (5, 3), 1, (2, 1))),
    ("f16", (1, (7, 6), 17, 19, (3, 2), (1, 2), (1, 0))),
    ("f16", (2, (5, 5), 64, 40, (1, 1), 1, 0)),
    ("f16", (1, (3, 6, 5), 8, 16, (2, 3, 3), (1, 2, 1), (0, 1, 1), (1, 1, 2))),
])  # fmt: skip
def test_convolution(sizes, kind: str) -> None:  # noqa: ANN001
    run(MmaConvolution(), conv(*sizes, kind=kind))


@pytest.mark.parametrize(("c", "o", "groups", "merged"), [(32, 32, 8, 1), (64, 64, 16, 2), (24, 24, 3, 1), (12, 24, 12, 1), (128, 128, 2, 2)])
def test_small_groups_are_multiplied_together(c: int, o: int, groups: int, merged: int) -> None:
    case = conv(1, (6, 7), c, o, (3, 3), 1, 1, 1, groups)
    window = window_of(case[0])
    assert isinstance(window, Window)
    assert groups // merge_groups(window, 2) == merged
    run(MmaConvolution(), case)


def test_depthwise_reads_a_row_of_inputs_once() -> None:
    """More rows in flight and larger tiles never change which outputs exist: every element is written for every tile."""
    case = conv(1, (11, 13), 16, 16, (3, 3), 1, 1, 1, 16)
    sizes = {(one["tile_y"], one["tile_x"]): found for found in Depthwise().configs(case[0], A100) for one in [dict(found)]}
    run(Depthwise(), case, chosen=[sizes[7, 4], sizes[2, 7]])


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a", "sm_120a"])
def test_compiles_without_spilling_sums(arch: str) -> None:
    capability = int(arch[3:].rstrip("a"))
    device = DeviceSpec("cuda", "test", arch, capability, 100, 65536 if capability == 75 else 101376, flops={"float16": 1e14})
    cases = [
        (MmaConvolution(), conv(1, (14, 14), 64, 64, (3, 3), 1, 1, bare=True)),
        (MmaConvolution(), conv(1, (16, 16), 3, 16, (7, 7), 2, 3, planes=True, bare=True)),
        (MmaConvolution(), conv(1, (8, 8), 64, 32, (2, 2), 2, 0, transposed=(0, 0), bare=True)),
        (Depthwise(), conv(1, (28, 28), 32, 32, (3, 3), 1, 1, 1, 32, bare=True)),
        (Depthwise(), conv(1, (28, 28), 32, 32, (5, 5), 2, 2, 1, 32, kind="f32", bare=True)),
        (Depthwise(), conv(1, (28, 28), 32, 32, (7, 7), 1, 3, 1, 32, bare=True)),
    ]
    for tactic, (workload, *_) in cases:
        for one in tactic.configs(workload, device)[:1]:
            for kernel in kernels(tactic.plan(workload, one, device)):
                resources = compile_cubin(kernel.source(), kernel.defines, arch).resources
                assert resources.spill_stores <= may_spill(kernel.entry, arch), (tactic.id, dict(one), resources)


# Segments of columns: two images in one, one, two, several; tiles that hang over the image and over the batch; a tail of channels.
NEIGHBOURING = [
    ((5, (9, 7), 24, 24, (7, 5), 1, (3, 2), 1, 24), "f16"),
    ((9, (6, 14), 16, 16, (9, 5), 1, (4, 2), 1, 16), "bf16"),
    ((1, (11, 28), 8, 8, (6, 6), 1, (2, 3), 1, 8), "f16"),
    ((1, (5, 37), 8, 8, (5, 5), 1, 2, 1, 8), "f16"),
    ((1, (12, 23), 16, 16, (4, 9), 1, 0, 1, 16), "f16"),
    ((70, (3, 4), 8, 8, (5, 5), 1, 2, 1, 8), "f16"),
]  # fmt: skip


# Two images side by side, three; a block that walks several tiles (rows beyond the image; fewer than are asked for at once);
# the last columns of several segments; four channels a warp, and two.
@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (1, dict(groups=1, warps=8, stages=1)),
        (5, dict(groups=1, warps=4, stages=3)),
        (2, dict(groups=2, warps=8, stages=1)),
        (0, dict(groups=2, warps=8, stages=1)),
    ],
)
def test_depthwise_on_tensor_cores(number: int, wanted: dict[str, int]) -> None:
    sizes, kind = NEIGHBOURING[number]
    case, few = conv(*sizes, kind=kind), replace(A100, multiprocessors=1)
    one = next(one for one in DepthwiseMma().configs(case[0], few) if wanted.items() <= dict(one).items())
    run(DepthwiseMma(), case, device=few, chosen=[one])


@pytest.mark.gpu
@pytest.mark.parametrize(("sizes", "kind"), NEIGHBOURING)
def test_depthwise_on_the_gpu(sizes, kind: str) -> None:  # noqa: ANN001
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    (workload, inputs, expected), spec = conv(*sizes, kind=kind), open_device("0").spec
    for tactic, some in ((Depthwise(), slice(2)), (DepthwiseMma(), slice(None))):
        for one in tactic.configs(workload, spec)[some]:
            (result,) = run_on_gpu(tactic.plan(workload, one, spec), inputs, workload.outputs, tactic.prepare(workload, one, {1: inputs[1]}))
            close(result, expected[0], f"{tactic.id} {dict(one)}", LIMITS)
