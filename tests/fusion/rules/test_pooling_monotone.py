"""What keeps the order of values moves behind the maxima of max pooling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, apply
from fusion.network import Network
from fusion.ops import Pooling
from fusion.reference import run
from fusion.rules import pooling_monotone, pooling_pointwise
from tests.fusion.fusing import fuse, refused
from tests.fusion.networks import X0, X1, X2, X3, Build

FLOAT = DataType.FLOAT
MAX = Pooling("max", (3, 2), (1, 2), (1, 0), (1, 1), (1, 1))
SCALED = apply("relu", apply("add", apply("mul", X0, X1), X2))


def lit(value: float) -> Literal:
    return Literal(value, FLOAT)


def pooled(function: Expression, *constants: np.ndarray | float, op: Pooling = MAX, shape: tuple = (2, 3, 7, 8), extra: bool = False, dtype: DataType = FLOAT) -> Network:
    """``function`` of x and ``constants``, pooled, and (``extra``) a shift per channel behind that."""
    build = Build()
    names = [build.constant(f"c{number}", np.asarray(one, np.float32)) for number, one in enumerate(constants)]
    y = build.layer("pool", op, build.pointwise("f", function, build.input("x", *shape, dtype=dtype), *names))
    if extra:
        y = build.pointwise("shift", "add", y, build.constant("s", (shape[-1] if op.channels_last else shape[1],) + (1, 1) * (not op.channels_last)))
    return build.network(y)


def channels(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    "function",
    [apply("relu", X0), apply("sigmoid", X0), apply("max", lit(-0.5), X0), apply("clip", X0, lit(-1.0), lit(0.5)), apply("leaky_relu", X0, lit(0.1)), apply("exp", X0),
     apply("elu", X0, lit(1.0)), apply("hard_sigmoid", X0, lit(0.2), lit(0.5)), apply("sub", apply("div", apply("tanh", X0), lit(2.0)), lit(1.0)), Convert(DataType.DOUBLE, apply("erf", X0))],
    ids=str,
)  # fmt: skip
def test_rising_functions(function: Expression) -> None:
    for op in (MAX, replace(MAX, ceil_mode=True), replace(MAX, dilation=(2, 1), pre_padding=(4, 1))):
        (layer,) = fuse(pooled(function, op=op), pooling_monotone.RULE).layers
        assert layer.name == "f + pool" and layer.op.prologue == X0 != layer.op.epilogue


def test_scales_and_shifts_of_channels() -> None:
    network = pooled(SCALED, channels(0.5, 2.0, 1e-3), channels(-1.0, 0.0, 3.0), extra=True)
    (layer,) = fuse(network, pooling_monotone.RULE, pooling_pointwise.RULE).layers
    assert layer.inputs == ("x", "c0", "c1", "s")
    (layer,) = fuse(fuse(network, pooling_pointwise.RULE), pooling_monotone.RULE).layers  # an epilogue that is there keeps its operands
    assert layer.op.epilogue == apply("add", SCALED, X3)
    last = pooled(SCALED, np.float32([0.5, 2.0, 1, 1]), np.float32([0, 1, 2, 3]), op=replace(MAX, channels_last=True), shape=(2, 6, 7, 4))
    assert len(fuse(last, pooling_monotone.RULE).layers) == 1


def test_not_a_number_and_infinity() -> None:
    network = pooled(apply("relu", apply("sub", X0, lit(1.0))))
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 8)).astype(np.float32)
    x[0, 0, 2, 2:6] = np.nan, np.inf, -np.inf, 0
    x[1] = -np.inf
    after = fuse(network, pooling_monotone.RULE)
    np.testing.assert_array_equal(run(after, {"x": x})[after.outputs[0]], run(network, {"x": x})[network.outputs[0]])


@pytest.mark.parametrize(
    "options, condition",
    [
        ({"function": apply("sin", X0)}, "order"),
        ({"function": apply("neg", X0)}, "order"),
        ({"function": apply("sqrt", X0)}, "order"),  # NaN of a negative number, which would win
        ({"function": apply("sub", lit(1.0), X0)}, "order"),
        ({"function": apply("mul", X0, lit(0.0))}, "order"),  # NaN of an infinity
        ({"function": apply("leaky_relu", X0, lit(-0.1))}, "order"),
        ({"function": apply("mul", X0, apply("sigmoid", X0))}, "order"),
        ({"function": apply("add", X0, lit(float("-inf")))}, "order"),
        ({"function": apply("mul", X0, X1), "constants": (channels(0.5, -1.0, 1.0),)}, "order"),
        ({"function": apply("add", X0, X1), "constants": (np.arange(8.0),)}, "shape"),
        ({"function": apply("relu", X0), "op": replace(MAX, pre_padding=(3, 0))}, "padding"),
        ({"function": apply("relu", X0), "op": replace(MAX, post_padding=(0, 2))}, "padding"),
        ({"function": apply("relu", X0), "op": replace(MAX, dilation=(8, 1), pre_padding=(8, 0), post_padding=(8, 0))}, "padding"),
        ({"function": Convert(FLOAT, X0), "dtype": DataType.INT32}, "data type"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_near_misses(options: dict, condition: str) -> None:
    options = dict(options)
    network = pooled(options.pop("function"), *options.pop("constants", ()), **options)
    assert refused(network, pooling_monotone.RULE).condition == condition


def test_others_need_what_is_pooled() -> None:
    build = Build()
    y = build.pointwise("f", "relu", build.input("x", 2, 3, 7, 8))
    z = build.layer("pool", MAX, y)
    assert refused(build.network(z, y), pooling_monotone.RULE).condition == "network output"
    assert refused(build.network(z, build.pointwise("other", "exp", y)), pooling_monotone.RULE).condition == "shared"


def test_what_is_known_at_run_time() -> None:
    build, h = Build(), symbol("h")
    y = build.pointwise("f", apply("add", X0, X1), build.input("x", 2, 3, h, 8), build.input("z", 3, 1, 1))
    assert refused(build.network(build.layer("pool", MAX, y)), pooling_monotone.RULE, sizes={"h": 6}).condition == "operands"
    relu, dilated = pooled(apply("relu", X0), shape=(2, 3, h, 8)), pooled(apply("relu", X0), shape=(2, 3, h, 8), op=replace(MAX, dilation=(2, 1)))
    assert len(fuse(relu, pooling_monotone.RULE, sizes={"h": 6}).layers) == 1
    assert refused(dilated, pooling_monotone.RULE, sizes={"h": 6}).condition == "dynamic"
