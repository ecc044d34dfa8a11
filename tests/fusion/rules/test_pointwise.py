"""Pointwise chains, trees and diamonds; activations written out."""

from __future__ import annotations

import math

import pytest

from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Literal, apply
from fusion.rules import (
    constant_operand,
    gelu,
    hard_swish,
    mish,
    neutral_element,
    pointwise,
    pointwise_readers,
    power,
    sigmoid,
    softplus,
    swish,
)
from tests.fusion.fusing import fuse, kinds, refused
from tests.fusion.networks import X0, X1, Build

FLOAT, HALF = DataType.FLOAT, DataType.HALF


def lit(value: float, dtype: DataType = FLOAT) -> Literal:
    return Literal(value, dtype)


def test_trees_become_one_layer() -> None:
    build = Build()
    x, y, z = (build.input(name, 2, 3) for name in "xyz")
    left, right = build.pointwise("mul", "mul", x, y), build.pointwise("tanh", "tanh", z)
    network = fuse(build.network(build.pointwise("add", "add", left, right)), pointwise.RULE)
    (layer,) = network.layers
    assert layer.name.startswith("fusedPointwiseNode(")
    assert set(layer.inputs) == {"x", "y", "z"}
    assert set(layer.origins) == {"mul", "tanh", "add"}


def test_diamonds_become_one_layer() -> None:
    build = Build()
    top = build.pointwise("exp", "exp", build.input("x", 2, 3))
    left, right = build.pointwise("tanh", "tanh", top), build.pointwise("abs", "abs", top)
    network = fuse(build.network(build.pointwise("add", "add", left, right)), pointwise.RULE)
    assert kinds(network) == ["Pointwise"]
    assert network.layers[0].inputs == ("x",)


def test_casts_are_part_of_a_chain() -> None:
    build = Build()
    x = build.pointwise("wide", Convert(FLOAT, X0), build.input("x", 2, 3, dtype=HALF))
    y = build.pointwise("narrow", Convert(HALF, X0), build.pointwise("exp", "exp", x))
    network = fuse(build.network(y), pointwise.RULE)
    assert network.layers[0].op.expression == Convert(HALF, apply("exp", Convert(FLOAT, X0)))


def test_a_cheap_producer_may_broadcast() -> None:
    build = Build()
    small = build.pointwise("rsqrt", "rsqrt", build.pointwise("square", "square", build.input("s", 3)))
    network = fuse(build.network(build.pointwise("mul", "mul", build.input("x", 2, 3), small)), pointwise.RULE)
    assert len(network.layers) == 1


def test_an_expensive_producer_does_not_broadcast() -> None:
    build = Build()
    small: Expression = X0
    for _ in range(5):
        small = apply("tanh", apply("exp", small))
    y = build.pointwise("small", small, build.input("s", 3))
    network = build.network(build.pointwise("mul", "mul", build.input("x", 2, 3), y))
    miss = refused(network, pointwise.RULE)
    assert miss.condition == "broadcast"
    assert "10" in miss.detail


def test_repeated_squaring_ends_at_the_limit() -> None:
    build = Build()
    y = build.input("x", 2)
    for index in range(40):
        y = build.pointwise(f"p{index}", apply("mul", X0, apply("tanh", X0)), y)
    network = fuse(build.network(y), pointwise.RULE)
    assert 1 < len(network.layers) < 40


def test_equal_chains_have_equal_operations() -> None:
    """Operands are numbered in the order of reading, so that one timing serves both."""
    build = Build()
    outputs = []
    for name, swapped in (("a", False), ("b", True)):
        x, y = build.input(f"x{name}", 2, 3), build.input(f"y{name}", 2, 3)
        total = build.pointwise(f"add{name}", apply("add", X1, X0) if swapped else apply("add", X0, X1), x, y)
        outputs.append(build.pointwise(f"relu{name}", "relu", total))
    network = fuse(build.network(*outputs), neutral_element.RULE, constant_operand.RULE, pointwise.RULE)
    assert network.layers[0].op == network.layers[1].op


# --- activations -----------------------------------------------------------------------------------------------------

HALF_X = apply("mul", X0, lit(0.5))
ROOT_HALF, ROOT_TWO_OVER_PI = math.sqrt(0.5), math.sqrt(2 / math.pi)
CUBE = apply("mul", apply("pow", X0, lit(3)), lit(0.044715))
ERF = apply("erf", apply("div", X0, lit(math.sqrt(2))))
TANH = apply("tanh", apply("mul", apply("add", X0, CUBE), lit(ROOT_TWO_OVER_PI)))
POLYNOMIAL = apply("add", lit(1), apply("mul", apply("mul", X0, lit(0.044715)), X0))
FAST = apply("tanh", apply("mul", apply("mul", X0, lit(ROOT_TWO_OVER_PI)), POLYNOMIAL))
SOFTPLUS = apply("log", apply("add", apply("exp", X0), lit(1)))
CLIP = apply("clip", apply("add", X0, lit(3)), lit(0), lit(6))
LOGISTIC = apply("div", lit(1), apply("add", apply("exp", apply("neg", X0)), lit(1)))

WRITTEN_OUT = [
    (gelu, apply("mul", HALF_X, apply("add", ERF, lit(1))), "gelu"),
    (gelu, apply("mul", apply("mul", X0, apply("add", lit(1), ERF)), lit(0.5)), "gelu"),
    (gelu, apply("mul", X0, apply("mul", lit(0.5), apply("add", ERF, lit(1)))), "gelu"),
    (
        gelu,
        apply("mul", X0, apply("div", apply("add", apply("erf", apply("mul", X0, lit(ROOT_HALF))), lit(1)), lit(2))),
        "gelu",
    ),
    (gelu, apply("mul", HALF_X, apply("add", TANH, lit(1))), "gelu_tanh"),
    (gelu, apply("mul", HALF_X, apply("add", lit(1), FAST)), "gelu_tanh"),
    (swish, apply("mul", X0, apply("sigmoid", X0)), "swish"),
    (swish, apply("mul", apply("sigmoid", apply("mul", X0, lit(1.702))), X0), "swish"),
    (hard_swish, apply("div", apply("mul", X0, CLIP), lit(6)), "hard_swish"),
    (hard_swish, apply("mul", X0, apply("hard_sigmoid", X0, lit(1 / 6), lit(0.5))), "hard_swish"),
    (hard_swish, apply("mul", X0, apply("mul", CLIP, lit(1 / 6))), "hard_swish"),
    (mish, apply("mul", X0, apply("tanh", apply("softplus", X0))), "mish"),
    (mish, apply("mul", apply("tanh", SOFTPLUS), X0), "mish"),
    (softplus, SOFTPLUS, "softplus"),
    (sigmoid, LOGISTIC, "sigmoid"),
    (sigmoid, apply("reciprocal", apply("add", lit(1), apply("exp", apply("neg", X0)))), "sigmoid"),
]


@pytest.mark.parametrize("rule, expression, function", WRITTEN_OUT)
def test_written_out_activations_are_recognised(rule, expression: Expression, function: str) -> None:  # type: ignore[no-untyped-def]
    build = Build()
    network = fuse(build.network(build.pointwise("f", expression, build.input("x", 300))), rule.RULE, tolerance=1e-5)
    found = network.layers[0].op.expression
    assert isinstance(found, Apply)
    assert found.function == function
    assert found.arguments[0] == X0


def test_they_are_found_inside_and_of_inner_expressions() -> None:
    inner = apply("add", X0, X1)
    written = apply("mul", inner, apply("sigmoid", inner))
    build = Build()
    x, y = build.input("x", 30), build.input("y", 30)
    network = fuse(build.network(build.pointwise("f", apply("abs", written), x, y)), swish.RULE)
    assert network.layers[0].op.expression == apply("abs", apply("swish", inner, lit(1.0)))


def test_narrow_literals_are_recognised() -> None:
    root = apply("erf", apply("div", X0, lit(1.4140625, HALF)))
    expression = apply("mul", apply("mul", X0, lit(0.5, HALF)), apply("add", root, lit(1, HALF)))
    build = Build()
    x = build.input("x", 300, dtype=HALF)
    network = fuse(build.network(build.pointwise("f", expression, x)), gelu.RULE, tolerance=2e-3)
    assert network.layers[0].op.expression == apply("gelu", X0)


@pytest.mark.parametrize(
    "rule, expression",
    [
        (gelu, apply("mul", HALF_X, apply("add", apply("erf", X0), lit(1)))),
        (gelu, apply("mul", X0, apply("add", ERF, lit(1)))),
        (gelu, apply("mul", HALF_X, apply("add", apply("tanh", apply("mul", X0, lit(0.8))), lit(1)))),
        (swish, apply("mul", apply("add", X0, lit(1)), apply("sigmoid", X0))),
        (swish, apply("mul", X1, apply("sigmoid", X0))),
        (hard_swish, apply("mul", X0, CLIP)),
        (hard_swish, apply("div", apply("mul", X0, apply("clip", X0, lit(0), lit(6))), lit(6))),
        (mish, apply("mul", X0, apply("tanh", apply("exp", X0)))),
        (softplus, apply("log", apply("add", apply("exp", X0), lit(2)))),
        (sigmoid, apply("div", lit(1), apply("add", apply("exp", X0), lit(1)))),
    ],
)
def test_look_alikes_stay(rule, expression: Expression) -> None:  # type: ignore[no-untyped-def]
    build = Build()
    x = build.input("x", 30)
    names = [x, build.input("y", 30)] if X1 in list(_nodes(expression)) else [x]
    network = fuse(build.network(build.pointwise("f", expression, *names)), rule.RULE, power.RULE, tolerance=1e-5)
    functions = {node.function for node in _nodes(network.layers[0].op.expression) if isinstance(node, Apply)}
    assert not functions & {"gelu", "gelu_tanh", "swish", "hard_swish", "mish"}
    assert network.layers[0].fusions == ()


def _nodes(expression: Expression):  # type: ignore[no-untyped-def]
    from fusion.rules._expressions import subtrees

    return subtrees(expression)


@pytest.mark.parametrize("size", [0, 3])
def test_readers_of_a_layer_without_elements(size: int) -> None:
    build = Build()
    x = build.pointwise("add", "add", build.input("x", 2, size), build.input("s", size))
    network = fuse(build.network(build.pointwise("exp", "exp", x), build.pointwise("neg", "neg", x)), pointwise_readers.RULE)
    assert [layer.name for layer in network.layers] == ["fusedPointwiseNode(add, exp)", "fusedPointwiseNode(add, neg)"]
