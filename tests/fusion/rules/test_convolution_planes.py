"""Convolutions that store their result channels-first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, apply
from fusion.graph import Limits
from fusion.network import Network
from fusion.ops import Convolution, Deconvolution, PlanarConvolution, Reformat, Shuffle, Slice
from fusion.padded_channels import pad_channels, paddable
from fusion.passes import FusionOptions, optimize
from fusion.rules.convolution_planes import RULE
from tests.fusion.fusing import fuse, kinds, refused
from tests.fusion.networks import X0, X1, Build

GPU = Limits(device="cuda")
HALF, FLOAT = DataType.HALF, DataType.FLOAT
BACK = (0, 3, 1, 2)
CONV = Convolution((1, 1), (1, 1), (1, 1), (1, 1), channels_last=True, epilogue=apply("relu", apply("add", X0, X1)))


def network(op: Convolution | Deconvolution = CONV, last: Shuffle | Reformat = Shuffle(first=BACK), dtype: DataType = FLOAT, read: bool = False) -> Network:  # noqa: B008
    build = Build()
    x = build.input("x", 2, 6, 5, 8, dtype=dtype)
    weights = build.random.standard_normal((8, 8, 3, 3) if isinstance(op, Convolution) else (8, 12, 3, 3)).astype(dtype.numpy)
    bias = build.random.standard_normal(weights.shape[isinstance(op, Deconvolution)]).astype(dtype.numpy)
    t = build.layer("conv", op, x, build.constant("w", weights), build.constant("b", bias))
    y = build.layer("last", last, t)
    return build.network(y, *([build.pointwise("other", "exp", t)] if read else []))


@pytest.mark.parametrize("op", [CONV, Deconvolution((2, 2), (1, 1), (1, 1), (1, 1), (1, 1), channels_last=True, epilogue=CONV.epilogue)], ids=["conv", "deconv"])
def test_the_result_is_stored_as_planes(op: Convolution | Deconvolution) -> None:
    after = fuse(network(op), RULE, limits=GPU)
    (layer,) = after.layers
    assert layer.op == PlanarConvolution(op) and layer.name == "conv + last" and layer.fusions == (RULE.name,)
    assert layer.origins == ("conv", "last") and layer.inputs == ("x", "w", "b")


def test_the_cast_of_a_reformat_joins_the_epilogue() -> None:
    after = fuse(network(last=Reformat(BACK, Convert(FLOAT, X0)), dtype=HALF), RULE, limits=GPU, tolerance=2e-2)
    assert kinds(after) == ["PlanarConvolution"]
    assert after.layers[0].op.convolution.epilogue == Convert(FLOAT, CONV.epilogue)  # type: ignore[attr-defined]
    assert after.tensors[after.outputs[0]].dtype is FLOAT


def test_a_reformat_that_a_pass_put_in_leaves_its_name() -> None:
    before = network()
    conv, last = before.layers
    before = replace(before, layers=(conv, replace(last, origins=(), fusions=("reformat",))), fates={"conv": before.fates["conv"]})
    (layer,) = fuse(before, RULE, limits=GPU).layers
    assert layer.name == "conv" and layer.fusions == (RULE.name,)


@pytest.mark.parametrize("kind", ["conv", "deconv"])
def test_channels_that_were_padded_are_not_computed(kind: str) -> None:
    build = Build()
    x = build.input("x", 2, 16, 6, 5)
    one, none = (1, 1), (0, 0)
    if kind == "conv":
        t = build.layer("conv", Convolution(one, one, one, one), x, build.constant("w", (21, 16, 3, 3)))
    else:
        t = build.layer("conv", Deconvolution((2, 2), none, none, one, none), x, build.constant("w", (16, 21, 2, 2)))
    t = build.pointwise("bias", apply("relu", apply("add", X0, X1)), t, build.constant("b", (21, 1, 1)))
    network = optimize(build.network(t), FusionOptions(device="cuda", precision=HALF)).network
    padded = pad_channels(network, paddable(network)).network
    assert [type(layer.op) for layer in padded.layers][-2:] == [Slice, Reformat]
    after = fuse(padded, RULE, limits=GPU, tolerance=2e-3)
    last = after.layers[-1]
    assert isinstance(last.op, PlanarConvolution) and after.tensors[after.outputs[0]].dtype is FLOAT
    assert after.constants[last.inputs[1]].shape[1 if kind == "deconv" else 0] == 21 and after.constants[last.inputs[2]].shape == (21,)


@pytest.mark.parametrize(
    ("before", "limits", "condition"),
    [(network(), Limits(), "device"), (network(read=True), GPU, "shared"), (network(last=Shuffle(first=(0, 2, 1, 3))), GPU, "layout"),
     (network(last=Shuffle(reshape=(2, 30, 8))), GPU, "layout"), (network(last=Reformat(BACK, Convert(DataType.INT32, X0))), GPU, "data type")],
)  # fmt: skip
def test_near_misses(before: Network, limits: Limits, condition: str) -> None:
    miss = refused(before, RULE, limits=limits)
    assert (miss.rule, miss.condition) == (RULE.name, condition)
