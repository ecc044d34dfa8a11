"""No-ops, neutral elements, constants, casts, repeated layers."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, apply
from fusion.network import Fate, Op
from fusion.ops import Concatenation, Expand, Fill, Padding, Pointwise, Resize, Shuffle, Slice, Softmax, Tile
from fusion.rules import (
    cast_chain,
    common_subexpression,
    constant_fold,
    constant_operand,
    neutral_element,
    no_op,
    power,
    relu_relu,
)
from tests.fusion.fusing import fuse, kinds, refused
from tests.fusion.networks import X0, X1, X2, Build

FLOAT, HALF, INT64 = DataType.FLOAT, DataType.HALF, DataType.INT64


def number(value: float, dtype: DataType = FLOAT) -> Literal:
    return Literal(value, dtype)


def between(op: Op, *shape: object):  # type: ignore[no-untyped-def]
    """relu -> op -> tanh."""
    build = Build()
    x = build.pointwise("relu", "relu", build.input("x", *shape))
    return build.network(build.pointwise("tanh", "tanh", build.layer("op", op, x)))


BATCH = symbol("batch")


@pytest.mark.parametrize(
    "op, shape",
    [
        (Pointwise(X0), (2, 3)),
        (Slice((0, 0), (2, 3), (1, 1)), (2, 3)),
        (Slice((0, 0), (BATCH, 3), (1, 1)), (BATCH, 3)),
        (Padding((0, 0), (0, 0)), (2, 3)),
        (Shuffle(), (2, 3)),
        (Shuffle(reshape=(2, 3)), (2, 3)),
        (Shuffle(first=(0, 2, 1), second=(0, 2, 1)), (1, 1, 1)),
        (Shuffle(first=(0, 2, 1)), (2, 1, 1)),
        (Expand((2, 3)), (2, 3)),
        (Tile((1, 1)), (2, 3)),
        (Concatenation(1), (2, 3)),
        (Resize((2, 3), (1.0, 1.0), mode="linear"), (2, 3)),
        (Resize((2, 3), (None, None)), (2, 3)),
    ],
)
def test_nothing_is_removed(op: Op, shape: tuple) -> None:
    network = fuse(between(op, *shape), no_op.RULE, sizes={"batch": 2})
    assert [layer.name for layer in network.layers] == ["relu", "tanh"]
    assert network.fates["op"] == Fate("no-op")


@pytest.mark.parametrize(
    "op, shape",
    [
        (Pointwise(apply("neg", X0)), (2, 3)),
        (Slice((1, 0), (2, 3), (-1, 1)), (2, 3)),
        (Slice((0, 0), (1, 3), (1, 1)), (2, 3)),
        (Padding((1, 0), (-1, 0)), (2, 3)),
        (Shuffle(first=(1, 0)), (3, 3)),
        (Shuffle(first=(1, 0), reshape=(3, 3)), (3, 3)),
        (Shuffle(reshape=(3, 2)), (2, 3)),
        (Expand((2, 3)), (1, 3)),
        (Resize((2, 3), (1.0, 1.2)), (2, 3)),
        (Resize((2, 3), (None, None), coordinates="tf_crop_and_resize", roi=(0, 0, 0.5, 0.5)), (2, 3)),
    ],
)
def test_what_does_something_stays(op: Op, shape: tuple) -> None:
    assert len(fuse(between(op, *shape), no_op.RULE, sizes={"batch": 2}).layers) == 3


@pytest.mark.parametrize(
    "before, after",
    [
        (apply("add", X0, number(0)), X0),
        (apply("add", number(0), X0), X0),
        (apply("sub", X0, number(0)), X0),
        (apply("mul", X0, number(1)), X0),
        (apply("mul", number(1), X0), X0),
        (apply("div", X0, number(1)), X0),
        (apply("pow", X0, number(1)), X0),
        (apply("neg", apply("neg", X0)), X0),
        (apply("tanh", apply("add", apply("mul", X0, number(1)), number(0))), apply("tanh", X0)),
        (apply("add", apply("mul", number(2), number(3)), X0), apply("add", X0, number(6))),
        (apply("sub", number(0), X0), apply("sub", number(0), X0)),
        (apply("div", number(1), X0), apply("div", number(1), X0)),
        (apply("mul", X0, number(0)), apply("mul", X0, number(0))),
        (apply("add", X1, X0), apply("add", X0, X1)),
    ],
)
def test_neutral_elements(before: Expression, after: Expression) -> None:
    assert neutral_element._improve(before, [FLOAT, FLOAT]) == after


def test_a_zero_of_another_type_decides_the_type() -> None:
    expression = apply("add", number(0), X0)  # its type is that of the literal
    assert neutral_element._improve(expression, [HALF]) == expression


@pytest.mark.parametrize(
    "before, after",
    [
        (apply("pow", X0, number(2)), apply("square", X0)),
        (apply("mul", X0, X0), apply("square", X0)),
        (apply("pow", X0, number(0.5)), apply("sqrt", X0)),
        (apply("pow", X0, number(-0.5)), apply("rsqrt", X0)),
        (apply("div", number(1), apply("sqrt", X0)), apply("rsqrt", X0)),
        (apply("reciprocal", apply("sqrt", X0)), apply("rsqrt", X0)),
        (apply("max", X0, number(0)), apply("relu", X0)),
        (apply("pow", X0, number(3)), apply("pow", X0, number(3))),
        (apply("mul", X0, X1), apply("mul", X0, X1)),
        (apply("div", number(2), apply("sqrt", X0)), apply("div", number(2), apply("sqrt", X0))),
    ],
)
def test_powers(before: Expression, after: Expression) -> None:
    assert power._improve(before, [FLOAT, FLOAT]) == after


def test_powers_of_integers_stay() -> None:
    expression = apply("pow", X0, number(2, INT64))
    assert power._improve(expression, [INT64]) == expression


@pytest.mark.parametrize(
    "before, dtype, after",
    [
        (Convert(FLOAT, X0), FLOAT, X0),
        (Convert(HALF, Convert(FLOAT, X0)), HALF, X0),
        (Convert(INT64, Convert(DataType.INT32, X0)), DataType.UINT8, Convert(INT64, X0)),
        (Convert(FLOAT, Convert(HALF, X0)), FLOAT, Convert(FLOAT, Convert(HALF, X0))),
        (Convert(FLOAT, Convert(INT64, X0)), FLOAT, Convert(FLOAT, Convert(INT64, X0))),
        (Convert(FLOAT, Convert(DataType.BOOL, X0)), INT64, Convert(FLOAT, Convert(DataType.BOOL, X0))),
    ],
)
def test_casts(before: Expression, dtype: DataType, after: Expression) -> None:
    assert cast_chain._improve(before, [dtype]) == after


def clip(x: Expression, low: float, high: float) -> Expression:
    return apply("clip", x, number(low), number(high))


@pytest.mark.parametrize(
    "before, after",
    [
        (apply("relu", apply("relu", X0)), apply("relu", X0)),
        (apply("relu", apply("sigmoid", X0)), apply("sigmoid", X0)),
        (apply("relu", clip(X0, -1, 6)), clip(X0, 0, 6)),
        (clip(apply("relu", X0), -1, 6), clip(X0, 0, 6)),
        (clip(clip(X0, -1, 4), 0, 6), clip(X0, 0, 4)),
        (apply("relu", apply("tanh", X0)), apply("relu", apply("tanh", X0))),
        (clip(clip(X0, 5, 9), 0, 1), clip(clip(X0, 5, 9), 0, 1)),
        (apply("relu", clip(X0, -3, -1)), apply("relu", clip(X0, -3, -1))),
    ],
)
def test_repeated_rectifiers(before: Expression, after: Expression) -> None:
    assert relu_relu._improve(before, [FLOAT]) == after


def test_rectifiers_in_layers() -> None:
    build = Build()
    x = build.input("x", 20)
    y = build.pointwise("f", clip(apply("relu", apply("relu", X0)), 0.1, 0.5), x)
    network = fuse(build.network(y), relu_relu.RULE)
    assert network.layers[0].op.expression == clip(X0, 0.1, 0.5)
    assert network.layers[0].fusions == ("relu-relu",)


# --- constants -------------------------------------------------------------------------------------------------------


def test_constants_of_one_element_become_literals() -> None:
    build = Build()
    x = build.input("x", 2, 3)
    c = build.constant("c", np.full((1, 1), 2.5, np.float32))
    network = fuse(build.network(build.pointwise("add", "add", x, c)), constant_operand.RULE)
    assert network.layers[0].op.expression == apply("add", X0, number(2.5))
    assert network.constants == {}
    assert network.layers[0].fusions == ()  # a way of writing, not a fusion


def test_a_constant_that_widens_the_result_stays() -> None:
    build = Build()
    x = build.input("x", 3)
    c = build.constant("c", np.full((1, 1), 2.5, np.float32))
    network = fuse(build.network(build.pointwise("add", "add", x, c)), constant_operand.RULE)
    assert len(network.layers[0].inputs) == 2


@pytest.mark.parametrize("value, literal", [(0.0, True), (1.0, True), (0.02, False)])
def test_zeros_and_ones_become_literals(value: float, literal: bool) -> None:
    build = Build()
    x = build.input("x", 2, 3)
    c = build.constant("c", np.full((3,), value, np.float32))
    network = fuse(build.network(build.pointwise("add", "add", x, c)), constant_operand.RULE)
    assert (len(network.layers[0].inputs) == 1) is literal


def test_leading_axes_of_length_one_go() -> None:
    build = Build()
    x = build.input("x", 2, 3, 4)
    c = build.constant("c", (1, 3, 1))
    network = fuse(build.network(build.pointwise("add", "add", x, c)), constant_operand.RULE)
    assert network.tensors[network.layers[0].inputs[1]].shape == (3, 1)


def test_repeated_operands_are_read_once() -> None:
    build = Build()
    x = build.input("x", 2, 3)
    expression = apply("add", X0, apply("mul", X1, X2))
    network = fuse(build.network(build.pointwise("f", expression, x, x, x)), constant_operand.RULE)
    assert network.layers[0].inputs == (x,)


def test_fill_becomes_a_literal() -> None:
    build = Build()
    x = build.input("x", BATCH, 3)
    zeros = build.layer("zeros", Fill((BATCH, 1), FLOAT, 2.0))
    network = fuse(build.network(build.pointwise("add", "add", x, zeros)), constant_operand.RULE, sizes={"batch": 2})
    assert kinds(network) == ["Pointwise"]
    assert network.fates["zeros"] == Fate("dead")


def test_layers_of_constants_are_computed() -> None:
    build = Build()
    x = build.input("x", 2, 3)
    c = build.layer("transpose", Shuffle(first=(1, 0)), build.constant("c", (3, 2)))
    network = fuse(build.network(build.pointwise("add", "add", x, c)), constant_fold.RULE)
    assert kinds(network) == ["Pointwise"]
    assert network.fates["transpose"] == Fate("folded")


def test_a_constant_that_grows_much_is_computed_at_run_time() -> None:
    build = Build()
    x = build.input("x", 1000, 1000)
    c = build.layer("expand", Expand((1000, 1000)), build.constant("c", (1000,)))
    miss = refused(build.network(build.pointwise("add", "add", x, c)), constant_fold.RULE)
    assert miss.condition == "growth"


def test_a_constant_of_run_time_size_is_computed_at_run_time() -> None:
    build = Build()
    x = build.input("x", BATCH, 3)
    c = build.layer("expand", Expand((BATCH, 3)), build.constant("c", (3,)))
    miss = refused(build.network(build.pointwise("add", "add", x, c)), constant_fold.RULE, sizes={"batch": 2})
    assert miss.condition == "dynamic"


def test_a_constant_network_output_stays_a_layer() -> None:
    build = Build()
    build.input("x", 2)
    network = build.network(build.pointwise("neg", "neg", build.constant("c", (3,))))
    assert kinds(fuse(network, constant_fold.RULE)) == ["Pointwise"]


# --- repeated layers -------------------------------------------------------------------------------------------------


def test_equal_layers_are_computed_once() -> None:
    build = Build()
    x = build.input("x", 2, 3)
    a, b = build.layer("a", Softmax(1), x), build.layer("b", Softmax(1), x)
    network = fuse(build.network(build.pointwise("add", "add", a, b)), common_subexpression.RULE)
    assert kinds(network) == ["Softmax", "Pointwise"]
    assert network.layers[0].origins == ("a", "b")
    assert network.fates["b"] == Fate("layer", "a")


@pytest.mark.parametrize("other", [Softmax(0), Softmax(1, log=True)])
def test_different_layers_stay(other: Op) -> None:
    build = Build()
    x = build.input("x", 2, 3)
    a, b = build.layer("a", Softmax(1), x), build.layer("b", other, x)
    assert len(fuse(build.network(build.pointwise("add", "add", a, b)), common_subexpression.RULE).layers) == 3


def test_two_equal_network_outputs_stay_two() -> None:
    build = Build()
    x = build.input("x", 2, 3)
    a, b = build.layer("a", Softmax(1), x), build.layer("b", Softmax(1), x)
    assert refused(build.network(a, b), common_subexpression.RULE).condition == "types"
