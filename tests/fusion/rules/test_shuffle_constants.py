"""Constants that are added behind a movement of a product's result, or behind its concatenation with others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dims import Dim, Shape, symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, apply
from fusion.network import Network, TensorType
from fusion.ops import Concatenation, Convolution, MatrixMultiply, Shuffle
from fusion.rules import concatenation_constants, convolution_sum, shuffle_constants
from fusion.rules.shuffle_constants import moved_back
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, Build

BATCH = symbol("batch")


def patches(
    constant: Shape = (20, 6), *, batch: Dim = 2, moves: tuple[Shuffle, ...] = (), joined: int = 0, shared: bool = False, wide: bool = False
) -> Network:
    """A convolution whose pixels become rows, and a constant added to them; ``joined``: behind that many class tokens, of two images."""
    build = Build()
    y = conv = build.layer("conv", Convolution((1, 1), (0, 0), (0, 0), (1, 1)), build.input("x", batch, 3, 4, 5), build.constant("w", (6, 3, 1, 1)))
    for number, move in enumerate(moves or (Shuffle(None, (batch, 6, 20), (0, 2, 1)),)):
        y = build.layer(f"move{number}", move, y)
    if joined:
        y = build.layer("join", Concatenation(1), build.constant("token", (2, joined, 6)), y)
    total = apply("add", X0, X1)
    out = build.pointwise("add", Convert(DataType.DOUBLE, total) if wide else total, y, build.constant("c", constant))  # type: ignore[arg-type]
    return build.network(out, *([build.pointwise("other", "tanh", conv)] if shared else []))


@pytest.mark.parametrize("batch", [1, 2, BATCH])
@pytest.mark.parametrize("constant", [(20, 6), (6,), (20, 1), (1, 20, 6)])
def test_positions_are_added_where_the_convolution_stores(batch: Dim, constant: tuple[int, ...]) -> None:
    network = fuse(patches(constant, batch=batch), shuffle_constants.RULE, sizes={"batch": 2})
    assert kinds(network) == ["Convolution", "Shuffle"]
    assert only(network, Convolution).name == "conv + add" and set(only(network, Convolution).origins) == {"conv", "add"}
    assert network.constants[only(network, Convolution).inputs[2]].size == np.prod(constant)


def test_movements_of_two_layers() -> None:
    moves = (Shuffle(None, (2, 2, 3, 4, 5), (0, 3, 1, 4, 2)), Shuffle(reshape=(2, 4 * 2 * 5, 3)))
    network = fuse(patches((40, 3), moves=moves), shuffle_constants.RULE)
    assert kinds(network) == ["Convolution", "Shuffle", "Shuffle"]


def test_class_tokens() -> None:
    network = fuse(patches((22, 6), joined=2), concatenation_constants.RULE, shuffle_constants.RULE)
    assert sorted(kinds(network)) == ["Concatenation", "Convolution", "Pointwise", "Shuffle"], "what is added to the tokens is computed at build"


@pytest.mark.parametrize(
    "network, condition",
    [(patches((3, 1), moves=(Shuffle(reshape=(2, 2, 3, 20)),)), "operands"), (patches((7, 20, 6), batch=1), "shape"), (patches(wide=True), "data type"),
     (patches(shared=True), "shared")],
)  # fmt: skip
def test_constants_that_stay(network: Network, condition: str) -> None:
    assert refused(network, shuffle_constants.RULE).condition == condition


@pytest.mark.parametrize("network, condition", [(patches((1, 6), joined=2), "no gain"), (patches((22, 6), joined=2, shared=True), "no gain"), (patches((22, 6), joined=2, wide=True), "data type")])
def test_concatenations_that_stay(network: Network, condition: str) -> None:
    assert refused(network, concatenation_constants.RULE, convolution_sum.RULE).condition == condition


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)), st.lists(st.booleans(), min_size=4, max_size=4), st.booleans())
def test_moved_back(order: list[int], broadcast: list[bool], merged: bool) -> None:
    """An operand before a movement does what it did behind."""
    shape = (2, 3, 4, 5)
    target = tuple(shape[axis] for axis in order)
    op = Shuffle(first=tuple(order), reshape=(target[0], target[1] * target[2], target[3]) if merged else None)
    whole = op.infer([TensorType(DataType.DOUBLE, shape)])[0].shape
    value = np.random.default_rng(0).standard_normal([1 if one else int(size) for one, size in zip(broadcast, whole, strict=False)])  # type: ignore[call-overload]
    x = np.random.default_rng(1).standard_normal(shape)
    moved = moved_back(value, shape, op)
    assert moved is not None and moved.size == value.size
    np.testing.assert_allclose(op.evaluate([x + moved])[0], op.evaluate([x])[0] + value)


def test_a_matrix_product_with_rows_moved() -> None:
    build = Build()
    y = build.layer("product", MatrixMultiply(), build.input("x", 3, 4, 8), build.constant("w", (8, 6)))
    y = build.layer("move", Shuffle((1, 0, 2)), y)
    network = fuse(build.network(build.pointwise("add", "add", build.constant("c", (4, 1, 6)), y)), shuffle_constants.RULE)
    assert kinds(network) == ["MatrixMultiply", "Shuffle"] and network.constants[only(network, MatrixMultiply).inputs[2]].shape == (1, 4, 6)
