"""Channels that only an output's memory has, behind a convolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, apply
from fusion.graph import Limits
from fusion.io_formats import OUTPUT_FORMAT, IOType, with_io_types
from fusion.network import Network
from fusion.ops import Convolution, Padding
from fusion.passes import FusionOptions, optimize
from fusion.rules.channel_padding import RULE
from tests.fusion.fusing import fuse, kinds, refused
from tests.fusion.networks import X0, X1, X2, Build

GPU = Limits(device="cuda")
RELU_BIAS = apply("relu", apply("add", X0, X1))


def network(epilogue: Expression = RELU_BIAS, groups: int = 1, residual: bool = False, read: bool = False, mark: str = OUTPUT_FORMAT) -> Network:
    build = Build()
    x = build.input("x", 2, 6, 5, 10)
    operands = [build.constant("b", (5,)), build.constant("s", np.array(2.5, np.float32))]
    if residual:
        operands[0] = build.input("r", 2, 6, 5, 5)
    op = Convolution((1, 1), (1, 1), (1, 1), (1, 1), groups, True, epilogue)
    t = build.layer("conv", op, x, build.constant("w", (5, 10 // groups, 3, 3)), *operands)
    y = build.layer("pad", Padding((0, 0, 0, 0), (0, 0, 0, 3)), t)
    before = build.network(y, *([build.pointwise("other", "exp", t)] if read else []))
    layers = tuple(replace(one, fusions=(mark,)) if one.name == "pad" else one for one in before.layers)
    return replace(before, layers=layers)


@pytest.mark.parametrize("epilogue", [X0, RELU_BIAS, apply("mul", RELU_BIAS, X2), Convert(DataType.HALF, apply("tanh", RELU_BIAS))])
def test_weights_of_zeros_make_them(epilogue: Expression) -> None:
    after = fuse(network(epilogue), RULE, tolerance=1e-3)
    (layer,) = after.layers
    assert isinstance(layer.op, Convolution) and layer.op.epilogue == epilogue and layer.name == "conv" and layer.fusions == (RULE.name,)
    assert after.constants[layer.inputs[1]].shape == (8, 10, 3, 3) and after.constants[layer.inputs[2]].shape == (8,)
    assert layer.inputs[3] == "s"


@pytest.mark.parametrize(
    ("before", "condition"),
    [(network(apply("sigmoid", RELU_BIAS)), "epilogue"), (network(residual=True), "operand"), (network(groups=5), "groups"), (network(read=True), "shared")],
)  # fmt: skip
def test_near_misses(before: Network, condition: str) -> None:
    miss = refused(before, RULE)
    assert (miss.rule, miss.condition) == (RULE.name, condition)


def test_padding_of_the_model_s_own_stays() -> None:
    assert kinds(fuse(network(mark="other"), RULE)) == ["Convolution", "Padding"]


def test_an_output_of_padded_channels_costs_nothing() -> None:
    build = Build()
    x = build.input("x", 2, 16, 6, 5)
    t = build.layer("conv", Convolution((1, 1), (1, 1), (1, 1), (1, 1)), x, build.constant("w", (21, 16, 3, 3)))
    before = with_io_types(build.network(build.pointwise("relu", "relu", t)), {"x": IOType(DataType.HALF, "hwc8"), "relu:out": IOType(DataType.HALF, "hwc8")})
    after = optimize(before, FusionOptions(device="cuda", precision=DataType.HALF)).network
    assert kinds(after) == ["Convolution"] and after.tensors[after.outputs[0]].shape == (2, 6, 5, 24)
