"""Query, key and value projections merged into one product that attention reads in place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Literal, apply
from fusion.graph import Limits
from fusion.ops import Attention, MatrixMultiply, Normalization, RotaryEmbedding, Shuffle
from fusion.rules import packed_attention
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, X2, Build

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
        parts.append(build.layer(f"{name}_heads", Shuffle(None, (*axes, HEADS, SIZE), (0, 2, 1, 3) if layout == "bhsd" else None), product))
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
    assert only(network, Attention).op.parts == ((0, 0, HEADS), (0, HEADS, HEADS), (0, 2 * HEADS, HEADS))
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
    assert only(network, Attention).op.parts


def test_near_misses() -> None:
    build, out = projections()
    assert refused(build.network(out), packed_attention.RULE).condition == "device"
    build, out = projections(activation=True)
    assert refused(build.network(out), packed_attention.RULE, limits=CUDA).condition == "epilogue"
    build, out = projections("bhsd")
    assert refused(build.network(out), packed_attention.RULE, limits=CUDA).condition == "layout"


def test_keys_and_values_of_another_tensor() -> None:
    build, out = projections(other=True)
    network = fuse(build.network(out), packed_attention.RULE, limits=CUDA)
    layer = only(network, Attention)
    assert layer.op.parts == ((0, 0, HEADS), (1, 0, HEADS), (1, HEADS, HEADS))
    assert kinds(network).count("MatrixMultiply") == 2


def grouped(heads: tuple[int, int, int] = (4, 2, 2), sizes: tuple[int, int, int] = (4, 4, 4), turned: str = "qk", tables: str = "qk",
            per_head: bool = False) -> Build:  # fmt: skip
    """Grouped queries, and a rotary embedding of what ``turned`` names (``tables``: by the same angles)."""
    build = Build()
    x = build.input("x", BATCH, ROWS, WIDTH)
    angles = {name: [build.constant(f"{name}.{table}", (ROWS, heads[0] if per_head else 1, 4)) for table in ("cos", "sin")] for name in "qkv"}
    parts = []
    for name, count, size in zip("qkv", heads, sizes, strict=True):
        product = build.layer(f"{name}_proj", MatrixMultiply(), x, build.constant(f"{name}.w", (WIDTH, count * size)))
        part = build.layer(f"{name}_heads", Shuffle(reshape=(BATCH, ROWS, count, size)), product)
        if name in turned:
            part = build.layer(f"{name}_turn", RotaryEmbedding(), part, *angles["q" if name in tables else name])
        parts.append(part)
    build.layer("attention", Attention(0.5, layouts=("bshd",) * 4), *parts)
    return build


def test_grouped_queries() -> None:
    network = fuse(grouped(turned="").network("attention:out"), packed_attention.RULE, limits=CUDA)
    assert only(network, Attention).op.parts == ((0, 0, 4), (0, 4, 2), (0, 6, 2))
    assert kinds(network) == ["MatrixMultiply", "Shuffle", "Attention"]


def test_a_rotary_embedding_turns_queries_and_keys_of_the_joined_projection() -> None:
    network = fuse(grouped().network("attention:out"), packed_attention.RULE, limits=CUDA)
    assert kinds(network) == ["MatrixMultiply", "Shuffle", "RotaryEmbedding", "Attention"]
    assert only(network, RotaryEmbedding).op.heads == 6
    assert only(network, Attention).op.parts == ((0, 0, 4), (0, 4, 2), (1, 6, 2))


def test_near_misses_of_joined_heads() -> None:
    for build, condition in (
        (grouped(turned="q"), "rotary embedding"),
        (grouped(turned="qkv", tables="qkv"), "rotary embedding"),
        (grouped(tables="q"), "rotary embedding"),
        (grouped((2, 2, 2), per_head=True), "rotary embedding"),
        (grouped((3, 3, 3), sizes=(4, 4, 2), turned=""), "shapes"),
    ):
        assert refused(build.network("attention:out"), packed_attention.RULE, limits=CUDA).condition == condition


def normalised(before: str = "heads", norms: str = "qk", ops: tuple[Normalization, ...] = (), scales: str = "qk", turned: bool = True, one: bool = False) -> Build:
    """Normalised queries and keys; ``before``: of heads, or of rows. ``one``: one key and value head, as its product makes it alone."""
    build = Build()
    x = build.input("x", BATCH, ROWS, WIDTH)
    angles = [build.constant(table, (ROWS, 1, 4)) for table in ("cos", "sin")]
    row = apply("mul", X0, X1)
    parts = []
    for name, count, op in zip("qkv", (4, 1 if one else 2, 1 if one else 2), ops or (Normalization((-1,), 1e-6, False, row),) * 3, strict=False):
        size = 4 if before == "heads" else 4 * count
        alone = one and name != "q"
        source = build.layer(f"{name}_rows", Shuffle(reshape=(BATCH, 1, ROWS, WIDTH)), x) if alone else x
        part = build.layer(f"{name}_proj", MatrixMultiply(), source, build.constant(f"{name}.w", (WIDTH, count * 4)))
        if before == "heads":
            part = build.layer(f"{name}_heads", Shuffle(reshape=(BATCH, ROWS, count, 4)), part)
        if name in norms:
            scale = build.constant(f"{name}.g", (size,)) if name in scales else build.input(f"{name}.g", size)
            part = build.layer(f"{name}_norm", replace(op, axes=(3 if before == "heads" else 2,)), part, scale)
        if before == "rows":
            part = build.layer(f"{name}_heads", Shuffle(reshape=(BATCH, ROWS, count, 4)), part)
        parts.append(build.layer(f"{name}_turn", RotaryEmbedding(), part, *angles) if turned and name != "v" else part)
    build.layer("attention", Attention(0.5, layouts=("bshd",) * 4), *parts)
    return build


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("one", [True, False])
def test_normalised_heads(turned: bool, one: bool) -> None:
    """As Qwen3 and Gemma 3 have them: one normalisation of what was queries and keys, with a scale of each head."""
    network = fuse(normalised(turned=turned, one=one).network("attention:out"), packed_attention.RULE, limits=CUDA)
    assert [kind for kind in kinds(network) if kind != "Shuffle"] == ["MatrixMultiply", "Normalization", *(["RotaryEmbedding"] if turned else []), "Attention"]
    count = 5 if one else 6
    assert only(network, Normalization).op.heads == (0, count) and network.tensors[only(network, Normalization).inputs[1]].shape == (count, 4)
    assert only(network, Attention).op.parts == ((0, 0, 4), (0, 4, count - 4), (1, count, count - 4))
    assert not turned or only(network, RotaryEmbedding).op.heads == 0


@pytest.mark.parametrize("turned", [True, False])
def test_normalised_positions(turned: bool) -> None:
    """As OLMo 2 has them: all queries of a position have one norm, all keys another."""
    network = fuse(normalised("rows", turned=turned).network("attention:out"), packed_attention.RULE, limits=CUDA)
    assert [layer.op.heads for layer in network.layers if isinstance(layer.op, Normalization)] == [(0, 4), (4, 2)]
    assert kinds(network).count("MatrixMultiply") == 1 and kinds(network).count("RotaryEmbedding") == 2 * turned
    assert only(network, Attention).op.parts == ((0, 0, 4), (1, 0, 2), (2, 6, 2))


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF], ids=lambda d: d.value)
def test_normalised_heads_that_are_scaled_differently(dtype: DataType) -> None:
    """As Swin V2's are: by a number, and queries by one of their head, too. The factors of all heads are one table, in float32 where they do not fit."""
    build = Build()
    x, parts = build.input("x", BATCH, ROWS, WIDTH, dtype=dtype), []
    unit = apply("mul", X0, Literal(0.3, dtype))
    for name, epilogue in (("q", apply("div", apply("mul", unit, X1), X2)), ("k", unit), ("v", None)):
        part = build.layer(f"{name}_proj", MatrixMultiply(), x, build.constant(f"{name}.w", (np.random.default_rng(1).standard_normal((WIDTH, WIDTH)) * 0.3).astype(dtype.numpy)))
        part = build.layer(f"{name}_heads", Shuffle(reshape=(BATCH, ROWS, HEADS, SIZE)), part)
        if epilogue is not None:
            scales = [build.constant(f"{name}.{at}", np.asarray(value, dtype.numpy)) for at, value in enumerate(([[2.0], [3.0], [5.0]], [1.0, 2.0, 4.0, 8.0]))] if name == "q" else []
            part = build.layer(f"{name}_norm", Normalization((3,), 0.0, False, epilogue, 1e-6), part, *scales)
        parts.append(part)
    network = build.network(build.layer("attention", Attention(0.5, layouts=("bshd",) * 4), *parts))
    network = fuse(network, packed_attention.RULE, limits=CUDA, tolerance=2e-5 if dtype is DataType.FLOAT else 4e-3)
    norm = only(network, Normalization)
    assert network.tensors[norm.inputs[1]].shape == (2 * HEADS, SIZE) and network.tensors[norm.inputs[1]].dtype is DataType.FLOAT
    assert network.tensors[norm.outputs[0]].dtype is dtype and norm.op.floor == 1e-6


def test_near_misses_of_normalised_heads() -> None:
    plain = Normalization((-1,), 1e-6, False, apply("mul", X0, X1))
    for build in (
        normalised(norms="q"), normalised(norms="qkv"), normalised(scales="q"), normalised(ops=(plain, replace(plain, epsilon=1e-5), plain)),
        normalised(ops=(plain, replace(plain, center=True), plain)),
    ):  # fmt: skip
        assert refused(build.network("attention:out"), packed_attention.RULE, limits=CUDA).condition == "normalisation"


def test_a_projection_that_someone_else_reads_stays() -> None:
    build, out = projections()
    network = build.network(out, "k_proj:out")
    assert len(fuse(network, packed_attention.RULE, limits=CUDA).layers) == len(network.layers)
