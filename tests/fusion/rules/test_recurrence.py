"""Transposes around recurrences."""

from __future__ import annotations

import numpy as np

from fusion.dims import symbol
from fusion.expression import Operand, apply
from fusion.ops import MatrixMultiply, Recurrence, Shuffle
from fusion.rules import recurrence_layout
from tests.fusion.fusing import fuse, refused
from tests.fusion.networks import Build

BATCH, TIME, WIDTH, HIDDEN = symbol("B"), symbol("T"), 5, 4
SIZES = {"B": 2, "T": 3}
TANH = ((apply("tanh", Operand(0)),),)


def gates(build: Build, x: str, directions: int = 1) -> str:
    return build.layer("product", MatrixMultiply(), x, build.constant("w", (WIDTH, directions * HIDDEN)))


def recurrence(build: Build, x: str, directions: int = 1) -> str:
    op = Recurrence("rnn", HIDDEN, (False, True)[:directions], TANH * directions)
    return build.layer("rnn", op, x, build.constant("r", (directions, HIDDEN, HIDDEN)), outputs=2)


def test_batch_first_on_both_sides() -> None:
    build = Build()
    x = build.layer("time_first", Shuffle((1, 0, 2)), build.input("x", BATCH, TIME, WIDTH))
    y = recurrence(build, gates(build, x))
    y = build.layer("batch_first", Shuffle((2, 0, 1, 3), (BATCH, TIME, HIDDEN)), y)
    network = fuse(build.network(y, "rnn:1"), recurrence_layout.RULE, sizes=SIZES)
    assert [layer.op.layer_type for layer in network.layers] == ["MatrixMultiply", "Recurrence", "Shuffle"]
    op = network.layers[1].op
    assert (op.input_order, op.output_order) == ("bt", "btdh")
    assert network.layers[2].op == Shuffle(None, (BATCH, TIME, HIDDEN))
    assert network.layers[1].origins == ("time_first", "rnn")


def test_both_directions_side_by_side() -> None:
    build = Build()
    y = recurrence(build, build.input("x", TIME, BATCH, 2 * HIDDEN), 2)
    y = build.layer("merge", Shuffle((0, 2, 1, 3)), y)
    network = fuse(build.network(y), recurrence_layout.RULE, sizes=SIZES)
    assert len(network.layers) == 1 and network.layers[0].op.output_order == "tbdh"


def test_a_shared_transpose_stays_for_the_others() -> None:
    build = Build()
    x = build.layer("time_first", Shuffle((1, 0, 2)), build.input("x", BATCH, TIME, WIDTH))
    y = recurrence(build, gates(build, x))
    network = fuse(build.network(y, build.pointwise("other", "tanh", x)), recurrence_layout.RULE, sizes=SIZES)
    assert next(layer for layer in network.layers if layer.name == "product").inputs[0] == "x"
    assert any(layer.name == "time_first" for layer in network.layers)


def test_the_hidden_axis_stays_innermost() -> None:
    build = Build()
    y = build.layer("columns", Shuffle((0, 1, 3, 2)), recurrence(build, build.input("x", TIME, BATCH, HIDDEN)))
    assert refused(build.network(y), recurrence_layout.RULE, sizes=SIZES).condition == "innermost"


def test_operands_that_vary_by_row() -> None:
    build = Build()
    x = build.layer("time_first", Shuffle((1, 0, 2)), build.input("x", 2, 3, WIDTH))
    op = MatrixMultiply(epilogue=apply("add", Operand(0), Operand(1)))
    weights, rows = build.constant("w", (WIDTH, HIDDEN)), build.constant("rows", np.ones((3, 1, HIDDEN), np.float32))
    y = recurrence(build, build.layer("product", op, x, weights, rows))
    assert refused(build.network(y), recurrence_layout.RULE).condition == "operands"
