"""Masks of attention that say the same to every query, or every head."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dims import Dim, symbol
from fusion.dtypes import DataType
from fusion.expression import Expression, Literal, Operand, apply
from fusion.network import Network
from fusion.ops import Attention, Pointwise, Range, Shuffle
from fusion.rules import expand_operand, mask_rows, no_op
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, Build

SEQ = symbol("seq")
FLOAT, INT64 = DataType.FLOAT, DataType.INT64
RULES = (mask_rows.RULE, expand_operand.RULE, no_op.RULE)
ADDED = apply("where", X1, Literal(0.0, FLOAT), Literal(-9.0, FLOAT))


def masked(*operands: np.ndarray | str, expression: Expression, length: Dim = 5, start: int = 0, twice: bool = False, also: bool = False) -> Network:
    """Attention of 2 images and 3 heads; its mask is ``expression`` of the operands: constants, ``keys`` (a mask of keys) and ``positions`` of queries."""
    build = Build()
    q, k, v = (build.input(name, 2, 3, length, 4) for name in "qkv")
    names = []
    for number, one in enumerate(operands):
        if isinstance(one, np.ndarray):
            names.append(build.constant(f"c{number}", one))
        elif one == "keys":
            names.append(build.pointwise("keys", apply("greater", X0, Literal(0.0, FLOAT)), build.input("padding", 2, 1, 1, length)))
        else:
            positions = build.layer("range", Range(start, 1, length, INT64))
            names.append(build.layer("positions", Shuffle(reshape=(1, 1, length, 1)), positions))
    mask = build.layer("mask", Pointwise(expression), *names)
    y = build.layer("attention", Attention(0.5, masked=True), q, k, v, mask)
    y = build.layer("again", Attention(0.5, masked=True), y, k, v, mask) if twice else y
    return build.network(y, *([mask] if also else []))


def joined(condition: Expression) -> Expression:
    return apply("where", apply("and", condition, X1), Literal(0.0, FLOAT), Literal(-9.0, FLOAT))


FROM = apply("greater_or_equal", X0, Literal(0, INT64))


@pytest.mark.parametrize("twice", [False, True])
def test_a_constant_that_is_true_for_all(twice: bool) -> None:
    network = fuse(masked(np.ones((5, 1), bool), "keys", expression=joined(X0), twice=twice), *RULES)
    assert "Expand" not in kinds(network)
    assert {network.tensors[layer.inputs[3]].shape for layer in network.layers if isinstance(layer.op, Attention)} == {(2, 1, 1, 5)}


@pytest.mark.parametrize("length", [5, SEQ])
def test_positions_are_not_negative(length: Dim) -> None:
    network = fuse(masked("positions", "keys", expression=joined(apply("and", FROM, Literal(True, DataType.BOOL))), length=length), *RULES, sizes={"seq": 5})
    assert network.tensors[only(network, Attention).inputs[3]].shape == (2, 1, 1, length)


def test_equal_heads() -> None:
    bias = np.broadcast_to(np.random.default_rng(0).standard_normal((1, 5, 5)).astype(np.float32), (3, 5, 5)).copy()
    network = fuse(masked(bias, "keys", expression=apply("add", X0, ADDED)), *RULES)
    assert network.tensors[only(network, Attention).inputs[3]].shape == (2, 1, 5, 5)


def test_refusals() -> None:
    some = np.arange(5).reshape(5, 1) > 1
    assert refused(masked(some, "keys", expression=joined(X0)), mask_rows.RULE).condition == "operands"
    assert refused(masked("positions", "keys", expression=joined(apply("greater_or_equal", X0, Literal(1, INT64)))), mask_rows.RULE).condition == "operands"
    assert refused(masked("positions", "keys", expression=joined(FROM), start=-1), mask_rows.RULE).condition == "operands"
    assert refused(masked(np.ones((5, 1), bool), "keys", expression=joined(X0), also=True), mask_rows.RULE).condition == "network output"


def test_no_queries() -> None:
    network = masked(np.ones((0, 1), bool), "keys", expression=joined(X0), length=0)
    assert refused(network, mask_rows.RULE).condition == "operands"


def test_an_operand_without_queries_stays() -> None:
    network = fuse(masked("keys", np.float32([0.5]), expression=apply("where", Operand(0), X1, Literal(-9.0, FLOAT))), *RULES)
    assert kinds(network) == ["Pointwise", "Pointwise", "Attention"]
