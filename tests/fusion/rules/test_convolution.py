"""Convolutions with scales, activations, sums and padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Literal, apply, functions
from fusion.graph import Limits
from fusion.network import Fate
from fusion.ops import Concatenation, Convolution, ConvolutionPooling, Deconvolution, Padding, Pooling
from fusion.ops.epilogue import IDENTITY
from fusion.passes import FusionOptions, optimize
from fusion.rules import (
    constant_operand,
    convolution_activation,
    convolution_concatenation,
    convolution_pointwise,
    convolution_pooling,
    convolution_scale,
    convolution_sum,
    epilogue_operand,
    padding_convolution,
    padding_pooling,
    pooling_pointwise,
)
from fusion.serial import from_json, to_json
from fusion.validation import validate
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, X2, Build, assert_same

FLOAT = DataType.FLOAT
SCALE = apply("add", apply("mul", X0, X1), X2)


class Convs(Build):
    def conv(
        self, name: str, x: str, channels: int, out: int, window: int = 3, groups: int = 1, **options: object
    ) -> str:
        weights = self.constant(f"{name}.w", (out, channels // groups, window, window))
        pad = (window // 2,) * 2
        return self.layer(name, Convolution((1, 1), pad, pad, (1, 1), groups, **options), x, weights)  # type: ignore[arg-type]

    def per_channel(self, name: str, channels: int) -> str:
        return self.constant(name, (channels, 1, 1))


def image(channels: int = 4) -> tuple[Convs, str]:
    build = Convs()
    return build, build.input("x", 2, channels, 5, 6)


# --- scale -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batch_normalisation_goes_into_the_weights(groups: int) -> None:
    build, x = image()
    y = build.conv("conv1", x, 4, 8, groups=groups)
    y = build.pointwise("bn1", SCALE, y, build.per_channel("s", 8), build.per_channel("b", 8))
    network = fuse(build.network(y), convolution_scale.RULE, tolerance=1e-4)
    (layer,) = network.layers
    assert layer.name == "conv1 + bn1"
    assert functions(layer.op.epilogue) == ("add",)
    assert network.tensors[layer.inputs[2]].shape == (8, 1, 1)
    assert network.fates["bn1"] == Fate("layer", "conv1 + bn1")


@pytest.mark.parametrize("groups", [1, 2])
def test_deconvolution_weights_are_scaled_per_group(groups: int) -> None:
    build, x = image()
    weights = build.constant("w", (4, 6 // groups, 2, 2))
    op = Deconvolution((2, 2), (0, 0), (0, 0), (1, 1), (0, 0), groups)
    y = build.layer("deconv", op, x, weights)
    y = build.pointwise("bn", SCALE, y, build.per_channel("s", 6), build.per_channel("b", 6))
    network = fuse(build.network(y), convolution_scale.RULE, tolerance=1e-4)
    assert kinds(network) == ["Deconvolution"]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_affine_chain(data: st.DataObject) -> None:
    build, x = image()
    y = build.conv("conv", x, 4, 3)
    names = []
    for index in range(data.draw(st.integers(1, 4))):
        function = data.draw(st.sampled_from(["add", "sub", "mul", "div"]))
        scalar = data.draw(st.booleans())
        value = build.random.uniform(0.5, 2, (1,) if scalar else (3, 1, 1)).astype(np.float32)
        other = build.constant(f"c{index}", value)
        swapped = function != "div" and data.draw(st.booleans())
        y = build.pointwise(f"f{index}", apply(function, *((X1, X0) if swapped else (X0, X1))), y, other)
        names.append(function)
    rules = (constant_operand.RULE, convolution_scale.RULE, convolution_pointwise.RULE)
    network = fuse(build.network(y), *rules, tolerance=2e-4)
    (layer,) = network.layers
    if "mul" in names or "div" in names:
        assert len(functions(layer.op.epilogue)) <= 1


def test_the_scale_inside_a_larger_expression_is_taken_out() -> None:
    build, x = image()
    y = build.conv("conv", x, 4, 3)
    scaled = apply("mul", X0, X1)
    y = build.pointwise("f", apply("mul", scaled, apply("sigmoid", scaled)), y, build.per_channel("s", 3))
    network = fuse(build.network(y), convolution_scale.RULE, tolerance=1e-4)
    assert network.layers[0].op.epilogue == apply("mul", X0, apply("sigmoid", X0))


def test_a_scale_after_an_activation_stays() -> None:
    build, x = image()
    y = build.pointwise("relu", "relu", build.conv("conv", x, 4, 3))
    y = build.pointwise("bn", apply("mul", X0, X1), y, build.per_channel("s", 3))
    rules = (convolution_activation.RULE, convolution_scale.RULE, convolution_pointwise.RULE)
    network = fuse(build.network(y), *rules)
    assert network.layers[0].op.epilogue == apply("mul", apply("relu", X0), X1)
    assert network.layers[0].fusions == ("convolution-activation", "convolution-pointwise")


def test_a_scale_that_is_not_constant_is_no_weight() -> None:
    build, x = image()
    s = build.input("s", 3, 1, 1)
    y = build.pointwise("bn", apply("mul", X0, X1), build.conv("conv", x, 4, 3), s)
    assert len(fuse(build.network(y), convolution_scale.RULE).layers) == 2


def test_weights_that_are_not_constant_cannot_be_scaled() -> None:
    build, x = image()
    w = build.input("w", 3, 4, 1, 1)
    y = build.layer("conv", Convolution((1, 1), (0, 0), (0, 0), (1, 1)), x, w)
    y = build.pointwise("bn", apply("mul", X0, X1), y, build.per_channel("s", 3))
    miss = refused(build.network(y), convolution_scale.RULE)
    assert miss.condition == "weights"


def test_a_scale_along_the_width_is_none_per_channel() -> None:
    build, x = image()
    y = build.pointwise("f", apply("mul", X0, X1), build.conv("conv", x, 4, 6), build.constant("s", (6,)))
    assert len(fuse(build.network(y), convolution_scale.RULE).layers) == 2


@pytest.mark.filterwarnings("ignore:overflow")
def test_weights_that_would_overflow_are_left_alone() -> None:
    build = Convs()
    x = build.input("x", 1, 2, 3, 3, dtype=DataType.HALF)
    w = build.constant("w", np.full((2, 2, 1, 1), 300, np.float16))
    y = build.layer("conv", Convolution((1, 1), (0, 0), (0, 0), (1, 1)), x, w)
    y = build.pointwise("s", apply("mul", X0, Literal(1000.0, DataType.HALF)), y)
    miss = refused(build.network(y), convolution_scale.RULE)
    assert miss.condition == "overflow"
    assert "1e+03" in miss.detail


def test_a_shared_result_keeps_the_convolution() -> None:
    build, x = image()
    y = build.conv("conv", x, 4, 3)
    z = build.pointwise("bn", apply("mul", X0, X1), y, build.per_channel("s", 3))
    miss = refused(build.network(z, y), convolution_scale.RULE)
    assert miss.condition == "network output"


# --- epilogues -------------------------------------------------------------------------------------------------------

EPILOGUES = (convolution_scale.RULE, convolution_activation.RULE, convolution_sum.RULE, convolution_pointwise.RULE)


@pytest.mark.parametrize(
    "function, rule",
    [("relu", "convolution-activation"), ("tanh", "convolution-activation"), ("exp", "convolution-pointwise")],
)
def test_activations(function: str, rule: str) -> None:
    build, x = image()
    network = fuse(build.network(build.pointwise("f", function, build.conv("conv1", x, 4, 3))), *EPILOGUES)
    (layer,) = network.layers
    assert layer.name == "conv1 + f"
    assert layer.fusions == (rule,)
    assert layer.op.epilogue == apply(function, X0)


def test_clip_is_an_activation() -> None:
    build, x = image()
    clip = apply("clip", X0, Literal(0.0, FLOAT), Literal(6.0, FLOAT))
    network = fuse(build.network(build.pointwise("relu6", clip, build.conv("conv", x, 4, 3))), *EPILOGUES)
    assert network.layers[0].fusions == ("convolution-activation",)


def test_a_residual_block() -> None:
    build, x = image()
    y = build.conv("conv1", x, 4, 4)
    y = build.pointwise("relu", "relu", build.pointwise("add", "add", y, x))
    (layer,) = fuse(build.network(y), *EPILOGUES).layers
    assert layer.name == "conv1 + add + relu"
    assert layer.inputs == ("x", "conv1.w", "x")
    assert layer.op.epilogue == apply("relu", apply("add", X0, X1))


def test_of_two_convolutions_the_later_one_takes_the_sum() -> None:
    build, x = image()
    main, down = build.conv("main", x, 4, 4), build.conv("down", x, 4, 4, window=1)
    network = fuse(build.network(build.pointwise("add", "add", main, down)), *EPILOGUES)
    assert [layer.name for layer in network.layers] == ["main", "down + add"]


def test_an_earlier_convolution_takes_the_sum_when_the_later_one_cannot() -> None:
    build, x = image()
    main, down = build.conv("main", x, 4, 4), build.conv("down", x, 4, 4, window=1)
    network = fuse(build.network(build.pointwise("add", "add", main, down), down), *EPILOGUES)
    assert {layer.name for layer in network.layers} == {"main + add", "down"}


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (3, 1, 1), (1, 3, 5, 6), (6,), (2, 1, 1, 1)])
def test_sums_with_anything_that_broadcasts(shape: tuple[int, ...]) -> None:
    build, x = image()
    other = build.input("y", *shape)
    network = fuse(build.network(build.pointwise("add", "add", build.conv("conv", x, 4, 3), other)), *EPILOGUES)
    assert kinds(network) == ["Convolution"]
    assert network.layers[0].fusions == ("convolution-sum",)


def test_a_sum_that_broadcasts_the_result_stays() -> None:
    build, x = image()
    other = build.input("y", 7, 2, 3, 5, 6)
    y = build.pointwise("add", "add", build.conv("conv", x, 4, 3), other)
    miss = refused(build.network(y), *EPILOGUES)
    assert miss.condition == "shape"
    assert "7x2x3x5x6" in miss.detail


def test_a_result_type_that_kernels_do_not_store_stays() -> None:
    build, x = image()
    y = build.pointwise("positive", apply("greater", X0, Literal(0.0, FLOAT)), build.conv("conv", x, 4, 3))
    assert refused(build.network(y), *EPILOGUES).condition == "data type"


def test_casts_between_real_types_are_stored() -> None:
    build, x = image()
    y = build.pointwise("cast", Convert(DataType.HALF, X0), build.conv("conv", x, 4, 3))
    assert kinds(fuse(build.network(y), *EPILOGUES, tolerance=1e-3)) == ["Convolution"]


def test_a_pointwise_operand_of_an_epilogue_joins_it() -> None:
    build, x = image()
    other = build.pointwise("gate", "sigmoid", build.input("g", 2, 3, 5, 6))
    y = build.pointwise("mul", "mul", build.conv("conv", x, 4, 3), other)
    network = fuse(build.network(y), *EPILOGUES, epilogue_operand.RULE)
    (layer,) = network.layers
    assert layer.op.epilogue == apply("mul", X0, apply("sigmoid", X1))
    assert set(layer.origins) == {"conv", "gate", "mul"}


def test_an_operand_that_reads_much_more_than_it_makes_stays() -> None:
    build, x = image()
    wide = [build.input(f"g{index}", 2, 3, 5, 6) for index in range(4)]
    total = apply("add", apply("add", X0, X1), apply("add", X2, apply("tanh", X0)))
    expression = apply("add", total, build_operand(3))
    other = build.pointwise("gate", expression, *wide)
    y = build.pointwise("mul", "mul", build.conv("conv", x, 4, 3), other)
    graph = fuse(build.network(y), *EPILOGUES)
    assert refused(graph, epilogue_operand.RULE).condition == "traffic"


def build_operand(index: int):  # type: ignore[no-untyped-def]
    from fusion.expression import Operand

    return Operand(index)


# --- padding ---------------------------------------------------------------------------------------------------------


def padded(op, mode: str = "constant", value: float = 0.0, pre=(0, 0, 1, 2), post=(0, 0, 0, 1), before: str = ""):  # type: ignore[no-untyped-def]
    build, x = image()
    if before:
        x = build.pointwise("before", before, x)
    x = build.layer("pad", Padding(pre, post, mode, value), x)
    if isinstance(op, Convolution):
        return build.network(build.layer("conv", op, x, build.constant("w", (3, 4, 3, 3))))
    return build.network(build.layer("pool", op, x))


CONV = Convolution((2, 1), (1, 0), (0, 1), (1, 1))


def test_padding_that_the_epilogue_adds_stays() -> None:
    """The residual sum of a padded tensor and its convolution."""
    build = Build()
    x = build.layer("pad", Padding((0, 0, 1, 1), (0, 0, 1, 1)), build.input("x", 2, 3, 5, 6))
    y = build.layer("conv", Convolution((1, 1), (0, 0), (0, 0), (1, 1), epilogue=apply("add", X0, X1)), x, build.constant("w", (3, 3, 1, 1)), x)
    assert refused(build.network(y), padding_convolution.RULE).condition == "shared"


def test_zero_padding_joins_the_convolution() -> None:
    network = fuse(padded(CONV), padding_convolution.RULE)
    (layer,) = network.layers
    assert layer.op.pre_padding == (2, 2)
    assert layer.op.post_padding == (0, 2)
    assert layer.name == "pad + conv"


@pytest.mark.parametrize(
    "options, condition",
    [
        ({"value": 1.0}, "value"),
        ({"mode": "reflect"}, "value"),
        ({"pre": (0, 0, -1, 0)}, "negative"),
        ({"pre": (1, 0, 0, 0)}, "axes"),
    ],
)
def test_other_padding_stays(options: dict, condition: str) -> None:
    assert refused(padded(CONV, **options), padding_convolution.RULE).condition == condition


def deconvolved(cut: int):  # type: ignore[no-untyped-def]
    build, x = image()
    x = build.layer("pad", Padding((0, 0, 1, 2), (0, 0, 0, 1)), x)
    op = Deconvolution((2, 1), (cut, cut), (cut, cut), (1, 1), (1, 0))
    return build.network(build.layer("deconv", op, x, build.constant("w", (4, 3, 3, 3))))


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_zero_padding_joins_a_deconvolution(cut: int) -> None:
    """Where it cuts less than is padded, what remains is negative padding."""
    (layer,) = fuse(deconvolved(cut), padding_convolution.RULE).layers
    assert layer.op.pre_padding == (cut - 2, cut - 2)
    assert layer.op.post_padding == (cut, cut - 1)


def pool(kind: str, **options: object) -> Pooling:
    return Pooling(kind, (3, 4), (1, 1), (0, 0), (0, 0), (1, 1), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "op, options",
    [
        (pool("average"), {}),
        (pool("average", count_include_pad=True), {}),
        (pool("max"), {"value": -np.inf}),
        (pool("max"), {"before": "relu"}),
        (pool("lp"), {}),
    ],
)
def test_padding_joins_pooling(op: Pooling, options: dict) -> None:
    network = fuse(padded(op, **options), padding_pooling.RULE)
    assert "Padding" not in kinds(network)
    assert network.layers[-1].op.pre_padding == (1, 2)


@pytest.mark.parametrize(
    "op, options, condition",
    [
        (pool("max"), {}, "value"),
        (pool("max"), {"before": "tanh"}, "value"),
        (pool("max"), {"before": "relu", "pre": (0, 0, 3, 0)}, "value"),
        (pool("average"), {"value": 1.0}, "value"),
        (pool("average"), {"mode": "edge"}, "mode"),
        (Pooling("average", (3, 4), (1, 1), (1, 1), (1, 1), (1, 1)), {}, "count"),
        (pool("average", ceil_mode=True), {}, "ceil mode"),
    ],
)
def test_padding_that_pooling_does_not_mean(op: Pooling, options: dict, condition: str) -> None:
    assert refused(padded(op, **options), padding_pooling.RULE).condition == condition


def test_pooling_takes_an_epilogue() -> None:
    build, x = image()
    y = build.pointwise("relu", "relu", build.layer("pool", pool("average"), x))
    assert only(fuse(build.network(y), pooling_pointwise.RULE), Pooling).op.epilogue != IDENTITY


def test_symbolic_batch() -> None:
    build = Convs()
    x = build.input("x", symbol("batch"), 4, 5, 6)
    y = build.conv("conv1", x, 4, 4)
    y = build.pointwise("bn1", SCALE, y, build.per_channel("s", 4), build.per_channel("b", 4))
    y = build.pointwise("relu", "relu", build.pointwise("add", "add", y, x))
    network = fuse(build.network(y), *EPILOGUES, tolerance=1e-4, sizes={"batch": 3})
    assert [layer.name for layer in network.layers] == ["conv1 + bn1 + add + relu"]


# --- joined channels -------------------------------------------------------------------------------------------------


def joined(out: int = 3, parts: int = 2, axis: int = 1, groups: int = 1):  # type: ignore[no-untyped-def]
    build, x = image()
    others = [build.input(f"y{index}", 2, 4, 5, 6) for index in range(parts - 1)]
    y = build.layer("concat", Concatenation(axis), x, *others)
    y = build.conv("conv", y, 4 * parts if axis == 1 else 4, out, groups=groups)
    return build.network(
        build.pointwise("relu", "relu", build.pointwise("bias", "add", y, build.per_channel("b", out)))
    )


def test_a_convolution_of_joined_channels_may_become_two() -> None:
    network = fuse(joined(), *EPILOGUES, convolution_concatenation.RULE, tolerance=1e-4)
    first, second = network.layers
    assert first.op.epilogue == IDENTITY
    assert second.inputs[-1] == first.outputs[0]
    assert second.name == "concat + conv + bias + relu"


@pytest.mark.parametrize("options, condition", [({"out": 8}, "no gain"), ({"parts": 3}, "parts")])
def test_other_joined_channels_stay(options: dict, condition: str) -> None:
    network = fuse(joined(**options), *EPILOGUES)
    assert refused(network, convolution_concatenation.RULE).condition == condition


@pytest.mark.parametrize("options", [{"axis": 0, "parts": 1}, {"axis": 2}, {"groups": 2, "out": 4}])
def test_other_axes_and_groups_do_not_match(options: dict) -> None:
    assert "Concatenation" in kinds(fuse(joined(**options), convolution_concatenation.RULE))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_runs_only_when_asked_for(device: str) -> None:
    network = joined()
    assert "Concatenation" in kinds(optimize(network, FusionOptions(device=device)).network)
    result = optimize(network, FusionOptions(device=device, enabled=("convolution-concatenation",))).network
    validate(result)
    assert_same(network, result, 1e-4)
    assert "Concatenation" not in kinds(result)


# --- pooling of the result ---------------------------------------------------------------------------------------------


def pooled(pooling: Pooling, conv: Convolution | None = None, rank: int = 2, batch: object = 2, dtype: DataType = FLOAT):  # type: ignore[no-untyped-def]
    build = Convs()
    x = build.input("x", batch, 4, *(8, 9, 5)[:rank], dtype=dtype)
    conv = conv or Convolution((1,) * rank, (1,) * rank, (1,) * rank, (1,) * rank)
    y = build.layer("conv", conv, x, build.constant("w", build.random.standard_normal((6, 4, *(3,) * rank)).astype(dtype.numpy)))
    if rank == 2:
        y = build.pointwise("bias", "add", y, build.constant("b", build.random.standard_normal((6, 1, 1)).astype(dtype.numpy)))
        y = build.pointwise("relu", "relu", y)
    return build.network(build.layer("pool", pooling, y))


STEM = Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
HALVES = Pooling("average", (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), True, True)


@pytest.mark.parametrize("pooling", [STEM, HALVES])
def test_a_convolution_may_be_pooled_where_it_is_made(pooling: Pooling) -> None:
    (layer,) = fuse(pooled(pooling, batch=symbol("n")), *EPILOGUES, convolution_pooling.RULE, sizes={"n": 2}).layers
    assert layer.name == "conv + bias + relu + pool"
    assert isinstance(layer.op, ConvolutionPooling) and layer.op.convolution.epilogue != IDENTITY
    assert from_json(to_json(layer)) == layer


@pytest.mark.parametrize(
    "pooling, options, condition",
    [
        (replace(STEM, stride=(1, 1)), {}, "overlap"),
        (replace(STEM, dilation=(4, 1), window=(2, 3)), {}, ""),
        (Pooling("average", (3, 8), (1, 1), (0, 0), (0, 0), (1, 1)), {}, "overlap"),
        (Pooling("max", (8, 8), (1, 2), (0, 0), (0, 0), (1, 1)), {}, ""),
        (replace(HALVES, window=(9, 9), stride=(9, 9), pre_padding=(1, 0)), {}, "window"),
        (replace(STEM, kind="lp"), {}, "kind"),
        (replace(STEM, epilogue=apply("exp", X0)), {}, "epilogue"),
        (Pooling("max", (2,) * 3, (2,) * 3, (0,) * 3, (0,) * 3, (1,) * 3), {"rank": 3}, "dimensions"),
        (STEM, {"dtype": DataType.DOUBLE}, "precision"),
        (replace(STEM, pre_padding=(symbol("n"), 1)), {"batch": symbol("n")}, "dynamic"),
    ],
)
def test_other_pooling_stays_a_layer(pooling: Pooling, options: dict, condition: str) -> None:
    sizes = {"n": 1} if condition == "dynamic" else None
    network = fuse(pooled(pooling, **options), *EPILOGUES, sizes=sizes)
    if not condition:
        assert kinds(fuse(network, convolution_pooling.RULE)) == ["ConvolutionPooling"]
    else:
        assert refused(network, convolution_pooling.RULE, sizes=sizes).condition == condition


def test_pooling_on_a_gpu_joins_channels_last_only() -> None:
    network = fuse(pooled(STEM), *EPILOGUES)
    assert refused(network, convolution_pooling.RULE, limits=Limits("cuda")).condition == "layout"
    result = optimize(network, FusionOptions(device="cuda", enabled=("convolution-pooling",))).network
    joined = only(result, ConvolutionPooling).op
    assert isinstance(joined, ConvolutionPooling) and joined.convolution.channels_last and joined.pooling.channels_last
    assert_same(network, result, 1e-4)
