"""Query, key and value projections merged into one product that attention reads in place."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.expression import apply
from fusion.graph import Limits
from fusion.ops import Attention, MatrixMultiply, Shuffle
from fusion.rules import packed_attention
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, Build

CUDA = Limits("cuda")
BATCH, ROWS, HEADS, SIZE = 2, 5, 3, 4
WIDTH = HEADS * SIZE


def projections(
    layout: str = "bshd",
    batch: object = BATCH,
    biased: tuple[bool, bool, bool] = (True, True, True),
    other: bool = False,
    activation: bool = False,
    masked: bool = False,
    transpose_b: bool = False,
) -> tuple[Build, str]:
    """x -> three products -> attention; ``other``: k and v come from another input."""
    build = Build()
    axes = (ROWS, batch) if layout == "sbhd" else (batch, ROWS)
    x = build.input("x", *axes, WIDTH)
    y = build.input("y", *axes, WIDTH) if other else x
    parts = []
    for name, source, bias in zip("qkv", (x, y, y), biased, strict=True):
        weights = build.constant(f"{name}.w", (WIDTH, WIDTH))
        epilogue, extras = X0, ()
        if bias:
            epilogue, extras = apply("add", X0, X1), (build.constant(f"{name}.b", (WIDTH,)),)
        if activation and name == "q":
            epilogue = apply("relu", epilogue)
        product = build.layer(f"{name}_proj", MatrixMultiply(transpose_b=transpose_b, epilogue=epilogue), source, weights, *extras)
        parts.append(build.layer(f"{name}_heads", Shuffle(reshape=(*axes, HEADS, SIZE)), product))
    if masked:
        parts.append(build.input("mask", ROWS, ROWS))
    return build, build.layer("attention", Attention(0.5, masked=masked, layouts=(layout,) * 4), *parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["bshd", "sbhd"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_three_projections_become_one(layout: str, masked: bool, transpose_b: bool) -> None:
    build, out = projections(layout, masked=masked, transpose_b=transpose_b)
    network = fuse(build.network(out), packed_attention.RULE, limits=CUDA)
    assert kinds(network) == ["MatrixMultiply", "Shuffle", "Attention"]
    assert only(network, MatrixMultiply).name == "q_proj + k_proj + v_proj"
    assert only(network, Attention).op.layouts[0] == layout[:2] + "thd"
    assert set(only(network, MatrixMultiply).origins) == {"q_proj", "k_proj", "v_proj"}


def test_a_missing_bias_counts_as_zeros() -> None:
    build, out = projections(biased=(True, False, True))
    network = fuse(build.network(out), packed_attention.RULE, limits=CUDA)
    bias = network.constants[only(network, MatrixMultiply).inputs[2]]
    assert np.array_equal(bias[WIDTH : 2 * WIDTH], np.zeros(WIDTH))
    build, out = projections(biased=(False, False, False))
    network = fuse(build.network(out), packed_attention.RULE, limits=CUDA)
    assert len(only(network, MatrixMultiply).inputs) == 2


def test_the_batch_may_be_symbolic() -> None:
    build, out = projections(batch=symbol("batch"))
    network = fuse(build.network(out), packed_attention.RULE, limits=CUDA, sizes={"batch": 3})
    assert only(network, Attention).op.packed


def test_near_misses() -> None:
    build, out = projections()
    assert refused(build.network(out), packed_attention.RULE).condition == "device"
    build, out = projections(other=True)
    assert refused(build.network(out), packed_attention.RULE, limits=CUDA).condition == "inputs"
    build, out = projections(activation=True)
    assert refused(build.network(out), packed_attention.RULE, limits=CUDA).condition == "epilogue"
    build, out = projections("bhsd")
    assert refused(build.network(out), packed_attention.RULE, limits=CUDA).condition == "layout"


def test_a_projection_that_someone_else_reads_stays() -> None:
    build, out = projections()
    network = build.network(out, "k_proj:out")
    assert len(fuse(network, packed_attention.RULE, limits=CUDA).layers) == len(network.layers)
