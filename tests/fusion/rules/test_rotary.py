"""Rotary embeddings computed in float32 between narrower tensors."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, apply, substitute
from fusion.network import Network
from fusion.ops import Concatenation, Pointwise, RotaryEmbedding, Slice
from fusion.passes import FusionOptions, optimize
from fusion.rules import rotary_cast, rotary_embedding
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, X2, X3, Build, assert_same

HALF, FLOAT = DataType.HALF, DataType.FLOAT
SHAPE = (2, 5, 3, 8)


def wide(expression: Expression) -> Expression:
    return Convert(FLOAT, expression)


def turn(end: Expression, build: Build | None = None) -> Network:
    """``x * cos + turned * sin`` of float16 x and float32 angles; ``end`` is what is made of the sum, operand 0."""
    build = build or Build()
    x, cos, sin = build.input("x", *SHAPE, dtype=HALF), build.input("cos", 5, 1, 8), build.input("sin", 5, 1, 8)
    first, second = (build.layer(f"half{at}", Slice((0, 0, 0, at), (*SHAPE[:3], 4), (1,) * 4), x) for at in (0, 4))
    turned = build.layer("turned", Concatenation(3), build.pointwise("neg", "neg", second), first)
    total = apply("add", apply("mul", wide(X0), X1), apply("mul", wide(X2), X3))
    return build.network(build.layer("sum", Pointwise(substitute(end, {0: total})), x, cos, turned, sin))


@pytest.mark.parametrize("end", [Convert(HALF, X0), apply("mul", Convert(HALF, X0), Literal(0.5, HALF))], ids=["rounded", "scaled"])
def test_angles_wider_than_what_turns(end: Expression) -> None:
    network = fuse(turn(end), rotary_embedding.RULE, tolerance=2e-3)
    layer = only(network, RotaryEmbedding)
    assert layer.inputs == ("x", "cos", "sin")
    assert kinds(network) == ["RotaryEmbedding", *(["Pointwise"] if isinstance(end, Convert) is False else [])]


@pytest.mark.parametrize("end", [X0, apply("mul", X0, Literal(0.5, FLOAT)), Convert(HALF, apply("mul", X0, Literal(0.5, FLOAT)))], ids=str)
def test_a_result_that_is_not_rounded_at_once(end: Expression) -> None:
    assert refused(turn(end), rotary_embedding.RULE).condition == "data type"


def cast(source: DataType = HALF, back: DataType = HALF) -> Network:
    build = Build()
    x = build.pointwise("widen", Convert(FLOAT, X0), build.input("x", *SHAPE, dtype=source))
    y = build.layer("turn", RotaryEmbedding(), x, build.input("cos", 5, 1, 8), build.input("sin", 5, 1, 4))
    return build.network(build.pointwise("narrow", Convert(back, X0), y))


def test_casts_around_a_rotary_embedding() -> None:
    network = fuse(cast(), rotary_cast.RULE, tolerance=2e-3)
    assert kinds(network) == ["RotaryEmbedding"]
    assert len(fuse(cast(back=DataType.BF16), rotary_cast.RULE, tolerance=2e-2).layers) == 3
    assert refused(cast(DataType.INT32, DataType.INT32), rotary_cast.RULE).condition == "data type"


def test_narrow_networks_turn_in_narrow_numbers() -> None:
    network = turn(Convert(HALF, X0))
    result = optimize(network, FusionOptions(precision=HALF)).network
    assert_same(network, result, 3e-3)
    assert np.all([one.dtype is not FLOAT for name, one in result.tensors.items() if name in only(result, RotaryEmbedding).outputs])
