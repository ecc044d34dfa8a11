"""Reductions, softmax and normalisations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, apply
from fusion.graph import Limits
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import Convolution, GroupNormalization, Normalization, Padding, Pooling, Reduce, Shuffle, Softmax
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from fusion.rules import (
    constant_operand,
    group_normalization,
    layer_normalization,
    log_sum_exp,
    neutral_element,
    normalization_cast,
    normalization_pointwise,
    padding_pooling,
    pointwise,
    pooling_channels,
    pooling_pointwise,
    pooling_prologue,
    power,
    reduce_pointwise,
    reduce_pooling,
    reduce_prologue,
    reduce_reduce,
    rms_normalization,
    softmax_log,
    softmax_pointwise,
    softmax_prologue,
)
from tests.catalogue import Row, model
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, X2, Build, assert_same

FLOAT, HALF = DataType.FLOAT, DataType.HALF
CUDA = Limits(device="cuda")


def lit(value: float, dtype: DataType = FLOAT) -> Literal:
    return Literal(value, dtype)


# --- reduce ----------------------------------------------------------------------------------------------------------

REDUCE = (log_sum_exp.RULE, reduce_pointwise.RULE, reduce_prologue.RULE)


@pytest.mark.parametrize(
    "before, kind, after",
    [
        ("abs", "sum", None),
        ("square", "sum", None),
        ("square", "sum", "sqrt"),
        (None, "mean", "log"),
        ("exp", "max", None),
    ],
)
def test_norms(before: str | None, kind: str, after: str | None) -> None:
    build = Build()
    y = build.input("x", 2, 3, 4)
    if before:
        y = build.pointwise("before", before, y)
    if after == "log":
        y = build.pointwise("positive", "exp", y)
    y = build.layer("reduce", Reduce(kind, (2,), False), y)
    if after:
        y = build.pointwise("after", after, y)
    (layer,) = fuse(build.network(y), *REDUCE).layers
    assert isinstance(layer.op, Reduce)


def test_log_sum_exp() -> None:
    build = Build()
    y = build.pointwise("exp", "exp", build.input("x", 2, 5))
    y = build.pointwise("log", "log", build.layer("sum", Reduce("sum", (1,), True), y))
    network = fuse(build.network(y), *REDUCE)
    assert network.layers[0].op == Reduce("logsumexp", (1,), True)
    assert network.layers[0].name == "exp + sum + log"


@pytest.mark.parametrize("function, kind", [("exp", "mean"), ("square", "sum")])
def test_other_logarithms_of_sums_are_no_log_sum_exp(function: str, kind: str) -> None:
    build = Build()
    y = build.pointwise("f", function, build.input("x", 2, 5))
    y = build.pointwise("log", "log", build.layer("sum", Reduce(kind, (1,), True), y))
    assert fuse(build.network(y), *REDUCE).layers[0].op.kind == kind


def test_a_prologue_has_one_operand() -> None:
    build = Build()
    y = build.pointwise("mul", "mul", build.input("x", 2, 5), build.input("y", 2, 5))
    miss = refused(build.network(build.layer("sum", Reduce("sum", (1,), True), y)), reduce_prologue.RULE)
    assert miss.condition == "operands"


def test_a_prologue_does_not_broadcast() -> None:
    build = Build()
    y = build.pointwise("add", apply("add", X0, X1), build.input("x", 5), build.constant("c", (2, 5)))
    miss = refused(build.network(build.layer("sum", Reduce("sum", (1,), True), y)), reduce_prologue.RULE)
    assert miss.condition == "operands"


def test_an_integer_input_is_not_converted_in_a_prologue() -> None:
    build = Build()
    y = build.pointwise("cast", Convert(FLOAT, X0), build.input("x", 2, 5, dtype=DataType.INT64))
    miss = refused(build.network(build.layer("sum", Reduce("sum", (1,), True), y)), reduce_prologue.RULE)
    assert miss.condition == "data type"


def test_widening_before_a_reduction_moves_behind_it() -> None:
    build = Build()
    y = build.pointwise("wide", Convert(FLOAT, X0), build.input("x", 2, 50, dtype=HALF))
    network = fuse(build.network(build.layer("sum", Reduce("sum", (1,), True), y)), reduce_prologue.RULE)
    assert network.layers[0].op == Reduce("sum", (1,), True, epilogue=Convert(FLOAT, X0))


POOL = Pooling("average", (2, 3), (2, 3), (1, 0), (0, 1), (1, 1), count_include_pad=True)


def pooled(op: Pooling, *outputs: str, function: object = "exp", shape: tuple = (2, 3, 7, 8), dtype: DataType = FLOAT):  # type: ignore[no-untyped-def]
    build = Build()
    y = build.pointwise("f", function, build.input("x", *shape, dtype=dtype))  # type: ignore[arg-type]
    return build.network(build.layer("pool", op, y), *outputs)


@pytest.mark.parametrize(
    "op",
    [
        POOL,
        replace(POOL, count_include_pad=False, stride=(4, 3)),
        replace(POOL, kind="max", ceil_mode=True),
        replace(POOL, kind="lp"),
        replace(POOL, window=(2, 2), dilation=(2, 2), stride=(3, 3)),
        Pooling("max", (7, 8), (1, 1), (0, 0), (0, 0), (1, 1)),  # the whole image
    ],
)
def test_pooling_whose_windows_do_not_overlap_takes_a_function_of_each_element(op: Pooling) -> None:
    for function in ("exp", apply("mul", apply("tanh", X0), apply("sub", X0, lit(0.5)))):
        (layer,) = fuse(pooled(op, function=function), pooling_prologue.RULE).layers  # exp(0) is not 0: padding must stay outside
        assert layer.op.prologue != X0 and layer.name == "f + pool"


@pytest.mark.parametrize(
    "op, condition",
    [
        (replace(POOL, stride=(1, 3)), "overlap"),
        (replace(POOL, stride=(2, 2)), "overlap"),
        (replace(POOL, window=(2, 2), dilation=(2, 1), stride=(2, 2)), "overlap"),
    ],
)
def test_overlapping_windows_would_compute_values_again(op: Pooling, condition: str) -> None:
    assert refused(pooled(op), pooling_prologue.RULE).condition == condition


def test_a_window_of_the_whole_image_overlaps_nothing_whatever_its_size() -> None:
    h = symbol("h")
    op = Pooling("average", (h, 4), (1, 1), (0, 0), (0, 0), (1, 1))
    (layer,) = fuse(pooled(op, shape=(2, 3, h, 4)), pooling_prologue.RULE, sizes={"h": 5}).layers
    assert layer.op.prologue == apply("exp", X0)


def test_a_pooling_prologue_that_another_reads_stays() -> None:
    assert refused(pooled(POOL, "f:out"), pooling_prologue.RULE).condition == "network output"
    build = Build()
    y = build.pointwise("f", "exp", build.input("x", 2, 3, 7, 8))
    z = build.layer("other", Softmax(1), y)
    assert refused(build.network(build.layer("pool", POOL, y), z), pooling_prologue.RULE).condition == "shared"


def test_a_pooling_prologue_has_one_operand() -> None:
    for other in ("tensor", "channels"):
        build = Build()
        x = build.input("x", 2, 3, 7, 8)
        second = build.input("z", 2, 3, 7, 8) if other == "tensor" else build.constant("c", (3, 1, 1))
        y = build.pointwise("f", "mul", x, second)
        assert refused(build.network(build.layer("pool", POOL, y)), pooling_prologue.RULE).condition == "operands"


LAST = replace(POOL, channels_last=True)


def scaled_pool(*operands: tuple, shape: tuple = (2, 7, 8, 3), op: Pooling = LAST, **options: object):  # type: ignore[no-untyped-def]
    """relu(x * c0 + c1), pooled, behind that a shift of channels."""
    build = Build()
    names = [build.constant(f"c{number}", one) for number, one in enumerate(operands)]
    y = build.pointwise("f", apply("relu", apply("add", apply("mul", X0, X1), X2)), build.input("x", *shape, **options), *names)  # type: ignore[arg-type]
    y = build.pointwise("shift", "add", build.layer("pool", op, y), build.constant("s", (3,) if op.channels_last else (3, 1, 1)))
    return build.network(y)


@pytest.mark.parametrize("operands", [((3,), (1, 1, 1, 3)), ((2, 1, 1, 3), (1,))])
def test_scales_of_channels_join_the_pooling(operands: tuple) -> None:
    limits = Limits("cuda")
    network = fuse(scaled_pool(*operands), pooling_pointwise.RULE)
    (layer,) = fuse(network, pooling_channels.RULE, limits=limits).layers
    assert layer.inputs == ("x", "s", "c0", "c1") and layer.op.operands == 2 and layer.name == "f + pool + shift"


@pytest.mark.parametrize(
    "network, device, condition",
    [
        (scaled_pool((3,), (3,)), "cpu", "device"),
        (scaled_pool((3, 1, 1), (3, 1, 1), shape=(2, 3, 7, 8), op=POOL), "cuda", "device"),
        (scaled_pool((3,), (3,), op=replace(LAST, stride=(1, 3))), "cuda", "overlap"),
        (scaled_pool((3,), (7, 1, 1)), "cuda", "shape"),
        (scaled_pool((2, 7, 8, 3), (3,)), "cuda", "operands"),
        (scaled_pool((3,), (3,), dtype=DataType.INT32), "cuda", "data type"),
    ],
    ids=["cpu", "channels first", "overlap", "positions", "another tensor", "integers"],
)  # fmt: skip
def test_near_misses_of_scales_of_channels(network: Network, device: str, condition: str) -> None:
    assert refused(network, pooling_channels.RULE, limits=Limits(device)).condition == condition


def test_dequantisation_joins_the_pooling_that_averages_it() -> None:
    build = Build()
    y = build.pointwise("dequantize", apply("mul", Convert(FLOAT, X0), lit(0.05)), build.input("q", 2, 3, 7, 8, dtype=DataType.INT8))
    (layer,) = fuse(build.network(build.layer("pool", POOL, y)), pooling_prologue.RULE).layers
    assert layer.name == "dequantize + pool" and layer.inputs == ("q",)


def test_padding_does_not_enter_a_pooling_with_a_prologue() -> None:
    build = Build()
    y = build.layer("pad", Padding((0, 0, 1, 1), (0, 0, 1, 1), "constant", 0), build.input("x", 2, 3, 6, 6))
    y = build.layer("pool", Pooling("average", (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), prologue=apply("exp", X0)), y)
    assert refused(build.network(y), padding_pooling.RULE).condition == "prologue"


def test_a_convolution_keeps_its_activation_before_pooling() -> None:
    build = Build()
    y = build.layer("conv", Convolution((1, 1), (1, 1), (1, 1), (1, 1)), build.input("x", 2, 3, 6, 6), build.constant("w", (4, 3, 3, 3)))
    y = build.pointwise("relu", "relu", y)
    result = optimize(build.network(build.layer("pool", Pooling("average", (6, 6), (1, 1), (0, 0), (0, 0), (1, 1)), y)))
    assert [layer.name for layer in result.network.layers] == ["conv + relu", "pool"]


def mean(shape: tuple, axes: tuple[int, ...] = (2, 3), keep: bool = True):  # type: ignore[no-untyped-def]
    build = Build()
    y = build.layer("mean", Reduce("mean", axes, keep), build.input("x", *shape))
    return build.network(build.pointwise("relu", "relu", y))


def test_a_spatial_mean_becomes_pooling_on_a_gpu() -> None:
    network = fuse(mean((2, 3, 4, 5)), reduce_pointwise.RULE, reduce_pooling.RULE, limits=CUDA)
    assert only(network, Pooling).op.window == (4, 5)


@pytest.mark.parametrize(
    "shape, keep, limits, condition",
    [
        ((2, 3, 4, 5), True, Limits(), "device"),
        ((2, 3, 4, 5), False, CUDA, "keepdims"),
        ((2, 3, symbol("h"), 5), True, CUDA, "dynamic"),
        ((2, 3, 64, 64), True, CUDA, "size"),
    ],
)
def test_other_means_stay(shape: tuple, keep: bool, limits: Limits, condition: str) -> None:
    miss = refused(mean(shape, keep=keep), reduce_pooling.RULE, limits=limits, sizes={"h": 4})
    assert miss.condition == condition


def test_a_mean_over_channels_is_no_pooling() -> None:
    assert "Reduce" in kinds(fuse(mean((2, 3, 4, 5), (1, 2)), reduce_pooling.RULE, limits=CUDA))


# --- softmax ---------------------------------------------------------------------------------------------------------

SOFTMAX = (softmax_log.RULE, softmax_pointwise.RULE, softmax_prologue.RULE)


def test_softmax_takes_scale_and_cast() -> None:
    build = Build()
    y = build.pointwise("scale", apply("mul", X0, lit(0.5)), build.input("x", 2, 5))
    y = build.pointwise("narrow", Convert(HALF, X0), build.layer("softmax", Softmax(1), y))
    (layer,) = fuse(build.network(y), *SOFTMAX, tolerance=1e-3).layers
    assert layer.op == Softmax(1, prologue=apply("mul", X0, lit(0.5)), epilogue=Convert(HALF, X0))


def test_log_softmax() -> None:
    build = Build()
    y = build.pointwise("log", "log", build.layer("softmax", Softmax(1), build.input("x", 2, 5)))
    (layer,) = fuse(build.network(y), *SOFTMAX).layers
    assert layer.op == Softmax(1, log=True)
    assert "softmax-log" in layer.fusions


def test_the_logarithm_of_something_else_is_no_log_softmax() -> None:
    build = Build()
    y = build.layer("softmax", Softmax(1), build.input("x", 2, 5))
    y = build.pointwise("f", apply("add", X0, apply("log", X0)), y)
    assert not fuse(build.network(y), *SOFTMAX).layers[0].op.log


# --- normalisations written out --------------------------------------------------------------------------------------

WRITTEN = (constant_operand.RULE, neutral_element.RULE, power.RULE, pointwise.RULE)
NORMS = (layer_normalization.RULE, rms_normalization.RULE)


class Norms(Build):
    def layer_norm(
        self, x: str, axes: tuple[int, ...], size: int, square: str = "pow", root: str = "div", scale: bool = True
    ) -> str:
        mean = self.layer("mean", Reduce("mean", axes, True), x)
        data = self.pointwise("sub", "sub", x, mean)
        return self.rest(data, data, axes, size, square, root, scale)

    def rest(
        self, data: str, squared: str, axes: tuple[int, ...], size: int, square: str, root: str, scale: bool
    ) -> str:
        if square == "pow":
            squares = self.pointwise("pow", apply("pow", X0, lit(2)), squared)
        else:
            squares = self.pointwise("mul0", "mul", squared, squared)
        variance = self.layer("variance", Reduce("mean", axes, True), squares)
        variance = self.pointwise("epsilon", apply("add", X0, lit(1e-5)), variance)
        deviation = self.pointwise("sqrt", "sqrt", variance)
        if root == "div":
            y = self.pointwise("div", "div", data, deviation)
        else:
            inverse = self.pointwise("reciprocal", apply("div", lit(1), X0), deviation)
            y = self.pointwise("times", "mul", data, inverse)
        if scale:
            y = self.pointwise("scale", "mul", y, self.constant("g", (size,)))
            y = self.pointwise("shift", "add", y, self.constant("b", (size,)))
        return y


@pytest.mark.parametrize("square", ["pow", "mul"])
@pytest.mark.parametrize("root", ["div", "times"])
@pytest.mark.parametrize("scale", [True, False])
def test_layer_normalisation_written_out(square: str, root: str, scale: bool) -> None:
    build = Norms()
    y = build.layer_norm(build.input("x", symbol("batch"), 5, 16), (2,), 16, square, root, scale)
    network = fuse(build.network(y), *WRITTEN, sizes={"batch": 2})
    network = fuse(network, *NORMS, tolerance=1e-4, sizes={"batch": 2})
    (layer,) = network.layers
    assert isinstance(layer.op, Normalization)
    assert layer.op.center
    assert layer.op.axes == (2,)
    assert layer.op.epsilon == pytest.approx(1e-5)
    assert layer.fusions[-1] == "layer-normalization"
    assert len(layer.inputs) == (3 if scale else 1)


@pytest.mark.parametrize("root", ["div", "times"])
def test_rms_normalisation_written_out(root: str) -> None:
    build = Norms()
    x = build.input("x", 2, 5, 16)
    y = build.rest(x, x, (2,), 16, "pow", root, scale=True)
    network = fuse(fuse(build.network(y), *WRITTEN), *NORMS, tolerance=1e-4)
    (layer,) = network.layers
    assert not layer.op.center


def test_rms_normalisation_of_a_narrow_type_in_float32() -> None:
    """As exported from models that cast up, normalise, and cast down again."""
    build = Norms()
    x = build.pointwise("wide", Convert(FLOAT, X0), build.input("x", 2, 5, 16, dtype=HALF))
    y = build.rest(x, x, (2,), 16, "pow", "times", scale=False)
    y = build.pointwise("narrow", Convert(HALF, X0), y)
    y = build.pointwise("scale", "mul", y, build.constant("g", build.random.standard_normal(16).astype(np.float16)))
    network = fuse(fuse(build.network(y), *WRITTEN, tolerance=2e-3), *NORMS, normalization_cast.RULE, tolerance=2e-3)
    (layer,) = network.layers
    assert layer.inputs[0] == "x"


def test_statistics_over_other_axes_are_no_layer_normalisation() -> None:
    build = Norms()
    x = build.input("x", 2, 5, 16)
    mean = build.layer("mean", Reduce("mean", (1,), True), x)
    data = build.pointwise("sub", "sub", x, mean)
    y = build.rest(data, data, (2,), 16, "pow", "div", scale=False)
    network = fuse(fuse(build.network(y), *WRITTEN), *NORMS, tolerance=1e-4)
    assert not only(network, Normalization).op.center  # the second half is one, of centred data
    assert "Reduce" in kinds(network)


def test_dividing_something_else_is_no_normalisation() -> None:
    build = Norms()
    x, other = build.input("x", 2, 5, 16), build.input("y", 2, 5, 16)
    y = build.rest(other, x, (2,), 16, "pow", "div", scale=False)
    network = fuse(fuse(build.network(y), *WRITTEN), *NORMS, tolerance=1e-4)
    assert "Normalization" not in kinds(network)


def test_a_variance_that_is_read_elsewhere_stays() -> None:
    build = Norms()
    y = build.layer_norm(build.input("x", 2, 5, 16), (2,), 16)
    network = fuse(build.network(y, "variance:out"), *WRITTEN)
    assert refused(network, *NORMS).condition == "network output"


def test_normalisation_takes_scale_and_shift() -> None:
    build = Build()
    y = build.layer("norm", Normalization((1,), 1e-5), build.input("x", 2, 16))
    y = build.pointwise("scale", "mul", y, build.constant("g", (16,)))
    network = fuse(build.network(build.pointwise("relu", "relu", y)), normalization_pointwise.RULE)
    assert [layer.name for layer in network.layers] == ["norm + scale + relu"]


def test_a_narrowing_cast_before_a_normalisation_stays() -> None:
    build = Build()
    y = build.pointwise("narrow", Convert(HALF, X0), build.input("x", 2, 16))
    network = build.network(build.layer("norm", Normalization((1,), 1e-5), y))
    assert len(fuse(network, normalization_cast.RULE).layers) == 2


def grouped(groups: int = 2, target: tuple = (2, 6, 4, 5), order: tuple | None = None, epilogue=X0):  # type: ignore[no-untyped-def]
    build = Build()
    x = build.input("x", 2, 6, 4, 5)
    y = build.layer("split", Shuffle(order, (2, groups, 120 // groups)), x)
    y = build.layer("norm", Normalization((2,), 1e-3, epilogue=epilogue), y)
    y = build.layer("join", Shuffle(reshape=target), y)
    return build.network(
        build.pointwise("scale", "mul", y, build.constant("g", (6, 1, 1) if len(target) == 4 else (1,)))
    )


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups_folded_into_channels(groups: int) -> None:
    network = fuse(grouped(groups), group_normalization.RULE, normalization_pointwise.RULE)
    (layer,) = network.layers
    assert isinstance(layer.op, GroupNormalization)
    assert layer.op.groups == groups
    assert layer.name == "split + norm + join + scale"


@pytest.mark.parametrize(
    "options, condition",
    [
        ({"groups": 4}, "groups"),
        ({"target": (2, 120)}, "shape"),
        ({"order": (0, 2, 3, 1)}, "moves"),
        ({"epilogue": apply("square", X0)}, "epilogue"),
    ],
)
def test_other_reshaped_normalisations_stay(options: dict, condition: str) -> None:
    assert refused(grouped(**options), group_normalization.RULE).condition == condition


# --- moments from sums, as JAX writes them ---------------------------------------------------------------------------

SUMS = "q = Mul(x, x)\na = ReduceSum(x, axes)\nb = ReduceSum(q, axes)\nm = Mul(a, c)\nw = Mul(b, c)\n"
MEANS = "q = Mul(x, x)\nm = ReduceMean(x, axes)\nw = ReduceMean(q, axes)\n"
DEVIATION = "m2 = Mul(m, m)\nv = Sub(w, m2)\ne = Add(v, eps)\nr = Sqrt(e)\nd = Sub(x, m)\n"
QUOTIENT = "y = Div(d, r)"


@pytest.mark.parametrize(
    ("nodes", "axes", "fits"),
    [
        (SUMS + DEVIATION + QUOTIENT, (2,), True),
        (MEANS + DEVIATION + QUOTIENT, (2,), True),
        (MEANS + DEVIATION + "i = Reciprocal(r)\nz = Mul(d, g)\ny = Mul(i, z)", (1, 2), True),
        (MEANS + DEVIATION + "t = Div(d, r)\nz = Mul(t, g)\ny = Tanh(z)", (2,), True),
        (SUMS.replace("Mul(a, c)", "Mul(a, other)") + DEVIATION + QUOTIENT, (2,), False),
        (MEANS + DEVIATION.replace("Sub(w, m2)", "Add(w, m2)") + QUOTIENT, (2,), False),
        (MEANS + DEVIATION.replace("m2 = Mul(m, m)", "m2 = Mul(m, w)") + QUOTIENT, (2,), False),
        (MEANS + DEVIATION + "y = Mul(d, r)", (2,), False),
        (MEANS + DEVIATION + "t = Div(d, r)\ny = Add(t, m)", (2,), False),
        (MEANS.replace("ReduceMean(q, axes)", "ReduceMean(q, first)") + DEVIATION + QUOTIENT, (2,), False),
    ],
)
def test_moments_from_sums(nodes: str, axes: tuple[int, ...], fits: bool) -> None:
    values = {"axes": np.array(axes), "first": np.array([1]), "c": 1 / 16, "other": 1 / 15, "eps": 1e-3, "g": (16,)}
    network = import_onnx(model(Row("moments", nodes, "", inputs={"x": (3, 5, 16)}, values=values)))
    result = optimize(network)
    assert result.counts.get("layer-normalization", 0) == fits
    assert_same(network, result.network)
    if fits:
        assert [layer.op.layer_type for layer in result.network.layers] == ["Normalization"]
        x = np.random.default_rng(0).standard_normal((3, 5, 16)) + 3000.0  # float32 squares of this have no digit of the variance left
        wide = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-3)
        found = run(result.network, {"x": x.astype(np.float32)})["y"]
        g = result.network.constants.get("g", 1.0)
        wanted = np.tanh(wide * g) if "Tanh" in nodes else wide * g
        np.testing.assert_allclose(found, wanted, atol=2e-3)


def twice(kind: str, first: tuple[int, ...], second: tuple[int, ...], keep: tuple[bool, bool], inner: Expression = X0, dtype: DataType = DataType.FLOAT, then: str = "") -> Network:
    """A reduction of a reduction of (2, 3, 4, 5)."""
    build = Build()
    y = build.layer("first", Reduce(kind, first, keep[0], prologue=inner), build.input("x", 2, 3, 4, 5, dtype=dtype))
    return build.network(build.layer("second", Reduce(then or kind, second, keep[1], epilogue=apply("add", X0, X1)), y, build.constant("c", (1,))))


@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min", "prod"])
@pytest.mark.parametrize("first, second, keep, axes", [((3,), (2,), (True, True), (2, 3)), ((1,), (0, 2), (False, False), (0, 1, 3)), ((2, 3), (1,), (False, False), (1, 2, 3))])
def test_reductions_of_reductions(kind: str, first: tuple[int, ...], second: tuple[int, ...], keep: tuple[bool, bool], axes: tuple[int, ...]) -> None:
    network = fuse(twice(kind, first, second, keep, apply("abs", X0)), reduce_reduce.RULE)
    (layer,) = network.layers
    assert layer.op == Reduce(kind, axes, keep[0], prologue=apply("abs", X0), epilogue=apply("add", X0, X1))


def test_reductions_that_are_not_one() -> None:
    assert refused(twice("mean", (3,), (2,), (True, True), then="max"), reduce_reduce.RULE).condition == "kind"
    assert refused(twice("logsumexp", (3,), (2,), (True, True)), reduce_reduce.RULE).condition == "kind"
    assert refused(twice("mean", (3,), (2,), (True, False)), reduce_reduce.RULE).condition == "keepdims"
    assert refused(twice("mean", (3,), (2,), (False, True)), reduce_reduce.RULE).condition == "keepdims"
    build = Build()
    y = build.layer("first", Reduce("sum", (3,), True, epilogue=apply("sqrt", X0)), build.pointwise("abs", "abs", build.input("x", 2, 3, 4, 5)))
    assert refused(build.network(build.layer("second", Reduce("sum", (2,), True), y)), reduce_reduce.RULE).condition == "function"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_group_of_all_channels(device: str) -> None:
    """As PoolFormer normalises. Its scale and shift per channel are no constants per column of the row that the group is folded into."""
    row = Row(
        "group", "r = Reshape(x, flat)\nn = InstanceNormalization(r, one, zero)\nb = Reshape(n, back)\ns = Mul(b, g)\ny = Add(s, h)", "",
        values={"flat": np.array([0, 1, -1]), "back": np.array([2, 8, 6, 6]), "one": np.ones(1), "zero": np.zeros(1), "g": (8, 1, 1), "h": (8, 1, 1)},
    )  # fmt: skip
    network = import_onnx(model(row))
    result = optimize(network, FusionOptions(device=device)).network
    assert only(result, GroupNormalization).op.groups == 1
    assert_same(network, result)
