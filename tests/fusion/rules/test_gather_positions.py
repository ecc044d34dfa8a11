"""Indexed reads of everything in order, at indices that are computed of sizes."""

from __future__ import annotations

import pytest

from fusion.dims import Dim, symbol
from fusion.dtypes import DataType
from fusion.expression import Expression, Literal, apply
from fusion.network import Network
from fusion.ops import Gather, Pointwise, Range, ShapeValue, Shuffle
from fusion.passes import FusionOptions, optimize
from fusion.rules import gather_positions
from tests.fusion.fusing import fuse, kinds, refused
from tests.fusion.networks import X0, X1, X2, Build, assert_same

BATCH, SEQ = symbol("batch"), symbol("seq")
SIZES = {"batch": 2, "seq": 5}
INT64 = DataType.INT64
INDEX = apply("add", X0, apply("mul", X1, X2))


def read(
    *, index: Expression = INDEX, columns: Dim = SEQ, stride: Dim = SEQ, swapped: bool = False, start: int = 0, width: int = 3, batch: Dim = BATCH, seq: Dim = SEQ
) -> Network:  # fmt: skip
    """``x[rows, columns]`` of ``[batch, seq, width]``."""
    build = Build()
    flat = build.layer("flat", Shuffle(reshape=(batch * seq, width)), build.pointwise("x", "tanh", build.input("in", batch, seq, width)))
    at = build.layer("columns", Shuffle(reshape=(1, columns, 1) if swapped else (1, 1, columns)), build.layer("across", Range(start, 1, columns, INT64)))
    row = build.layer("rows", Shuffle(reshape=(1, 1, batch) if swapped else (batch, 1, 1)), build.layer("down", Range(0, 1, batch, INT64)))
    names = [at, row, build.layer("size", ShapeValue((stride,), (1,), INT64))]
    y = build.layer("read", Gather(0), flat, build.layer("index", Pointwise(index), *names))
    return build.network(build.pointwise("sin", "sin", y))


@pytest.mark.parametrize("index", [INDEX, apply("add", apply("mul", X1, X2), X0)])
def test_everything_in_order_is_a_reshape(index: Expression) -> None:
    network = read(index=index)
    result = fuse(network, gather_positions.RULE, sizes=SIZES)
    assert kinds(result) == ["Pointwise", "Shuffle", "Shuffle", "Pointwise"]
    assert len(optimize(network, FusionOptions(device="cuda")).network.layers) <= 2
    assert_same(network, result, sizes={"batch": 3, "seq": 1})


def test_a_stride_that_is_a_number() -> None:
    index = apply("add", X0, apply("mul", X1, Literal(5, INT64)))
    result = fuse(read(index=index, columns=5, seq=5, stride=5), gather_positions.RULE, sizes=SIZES)
    assert "Gather" not in kinds(result)


@pytest.mark.parametrize("network", [read(columns=SEQ - 1), read(stride=SEQ - 1), read(swapped=True)])
def test_other_orders_stay(network: Network) -> None:
    assert refused(network, gather_positions.RULE, sizes=SIZES).condition == "order"


@pytest.mark.parametrize("network", [read(start=1, columns=SEQ - 1), read(index=apply("mul", X0, X1))])
def test_other_indices_are_not_looked_at(network: Network) -> None:
    assert "Gather" in kinds(fuse(network, gather_positions.RULE, sizes=SIZES))
