"""Attention written out, in the forms that exporters write."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, apply
from fusion.network import Network
from fusion.ops import Attention, Expand, MatrixMultiply, Shuffle, Softmax
from fusion.passes import FusionOptions, optimize
from fusion.rewrite import validate
from fusion.rules import attention, attention_heads, attention_layout
from fusion.rules._scores import Scores, is_causal, read_scores
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, X2, Build, assert_same

FLOAT, HALF = DataType.FLOAT, DataType.HALF
BATCH, SEQ = symbol("batch"), symbol("seq")
SIZES = {"batch": 2, "seq": 5}
B, H, S, D = 2, 3, 5, 4


def lit(value: float, dtype: DataType = FLOAT) -> Literal:
    return Literal(value, dtype)


def core(epilogue: Expression = X0, *operands: str, build: Build | None = None, **options: object) -> Network:
    """softmax(q k) v on [B, H, S, D] inputs."""
    build = build or Build()
    q, k, v = build.input("q", B, H, S, D), build.input("k", B, H, D, S), build.input("v", B, H, S, D)
    y = build.layer("scores", MatrixMultiply(epilogue=epilogue), q, k, *operands)
    y = build.layer("softmax", Softmax(3, **options), y)  # type: ignore[arg-type]
    return build.network(build.layer("context", MatrixMultiply(), y, v))


def test_the_core() -> None:
    network = fuse(core(apply("mul", X0, lit(0.25))), attention.RULE)
    layer = only(network, Attention)
    assert layer.op.scale == 0.25
    assert layer.name == "scores + softmax + context"
    assert kinds(network) == ["Shuffle", "Attention"]  # k came transposed


@pytest.mark.parametrize("shape", [(B, 1, 1, S), (B, H, S, S), (1, 1, S, S), (S, S), (S,)])
def test_additive_masks(shape: tuple[int, ...]) -> None:
    build = Build()
    mask = build.input("mask", *shape)
    network = fuse(core(apply("add", apply("div", X0, lit(2.0)), X1), mask, build=build), attention.RULE)
    layer = only(network, Attention)
    assert layer.op.masked
    assert layer.op.scale == 0.5
    assert layer.inputs[3] == "mask"


@pytest.mark.parametrize("keeps", [True, False])
def test_boolean_masks(keeps: bool) -> None:
    build = Build()
    mask = build.input("mask", B, 1, 1, S, dtype=DataType.BOOL)
    low = lit(-3e38)
    # Position 0 is never masked: fully masked rows differ, by design (Attention gives 0).
    first = build.constant("first", np.arange(S) == 0)
    visible = (
        build.pointwise("visible", "or", mask, first)
        if keeps
        else build.pointwise("hidden", apply("and", X0, apply("not", X1)), mask, first)
    )
    expression = apply("where", X1, X0, low) if keeps else apply("where", X1, low, X0)
    network = fuse(core(expression, visible, build=build), attention.RULE)
    assert network.tensors[only(network, Attention).inputs[3]].dtype is DataType.BOOL


def test_two_additive_masks_are_summed() -> None:
    build = Build()
    a, b = build.input("a", B, 1, 1, S), build.input("b", S, S)
    network = fuse(core(apply("add", apply("add", X0, X1), X2), a, b, build=build), attention.RULE)
    assert "Pointwise" in kinds(network)
    assert only(network, Attention).op.masked


@pytest.mark.parametrize("kind", ["add", "keep"])
def test_a_constant_triangle_is_causal(kind: str) -> None:
    build = Build()
    triangle = np.tril(np.ones((S, S), bool))
    if kind == "add":
        mask = build.constant("mask", np.where(triangle, 0, -1e9).astype(np.float32))
        expression = apply("add", apply("mul", X0, lit(0.5)), X1)
    else:
        mask = build.constant("mask", triangle[None, None])
        expression = apply("where", X1, apply("mul", X0, lit(0.5)), lit(-1e9))
    network = fuse(core(expression, mask, build=build), attention.RULE)
    layer = only(network, Attention)
    assert layer.op.causal
    assert not layer.op.masked


def test_an_almost_triangular_mask_is_not_causal() -> None:
    triangle = np.tril(np.ones((S, S), bool))
    assert is_causal(triangle, "keep")
    triangle[0, 1] = True
    assert not is_causal(triangle, "keep")
    assert not is_causal(np.ones((S, S), bool), "keep")
    assert not is_causal(np.zeros((S, S)), "add")


def test_scores() -> None:
    assert read_scores(apply("div", apply("mul", X0, lit(3.0)), lit(2.0))) == Scores(1.5)
    assert read_scores(Convert(FLOAT, apply("mul", lit(3.0), X0))) == Scores(3.0)
    assert read_scores(apply("max", apply("add", X0, X1), lit(-3e38))) == Scores(1.0, (("add", X1),))
    for other in (apply("mul", X0, X1), apply("tanh", X0), apply("mul", apply("add", X0, X1), lit(2.0)),
                  apply("div", lit(1.0), X0), apply("where", X1, X0, lit(0.0))):  # fmt: skip
        assert read_scores(other) is None


@pytest.mark.parametrize("rank", [2, 3])
def test_heads_folded_into_the_batch(rank: int) -> None:
    build = Build()
    shape = (B * H, S, D)[3 - rank :]
    q, k, v = (build.input(name, *shape) for name in "qkv")
    y = build.layer("scores", MatrixMultiply(transpose_b=True), q, k)
    y = build.layer("softmax", Softmax(rank - 1), y)
    network = fuse(build.network(build.layer("context", MatrixMultiply(), y, v)), attention.RULE)
    assert kinds(network).count("Attention") == 1


def test_softmax_in_float32_between_narrow_products() -> None:
    build = Build()
    q, k, v = (build.input(name, B, H, S, D, dtype=HALF) for name in "qkv")
    y = build.layer("scores", MatrixMultiply(transpose_b=True, epilogue=Convert(FLOAT, X0)), q, k)
    y = build.pointwise("narrow", Convert(HALF, X0), build.layer("softmax", Softmax(3), y))
    network = fuse(build.network(build.layer("context", MatrixMultiply(), y, v)), attention.RULE, tolerance=3e-3)
    assert kinds(network) == ["Attention"]


def test_the_guard_against_empty_rows() -> None:
    build = Build()
    q, k, v = (build.input(name, B, H, S, D) for name in "qkv")
    y = build.layer("scores", MatrixMultiply(transpose_b=True), q, k)
    y = build.layer("softmax", Softmax(3), y)
    y = build.pointwise("guard", apply("where", apply("isnan", X0), lit(0.0), X0), y)
    network = fuse(build.network(build.layer("context", MatrixMultiply(), y, v)), attention.RULE)
    assert kinds(network) == ["Attention"]


@pytest.mark.parametrize(
    "network, condition",
    [
        (lambda: core(apply("tanh", X0)), "scores"),
        (lambda: core(apply("mul", X0, X1), "g", build=_with_input("g")), "scores"),
        (lambda: _grouped(), "batch"),
        (lambda: _busy(), "network output"),
        (lambda: _epilogue(), "pattern"),
    ],
)
def test_near_misses(network, condition: str) -> None:  # type: ignore[no-untyped-def]
    assert refused(network(), attention.RULE).condition == condition


def _with_input(name: str) -> Build:
    build = Build()
    build.input(name, S, S)
    return build


def _grouped() -> Network:
    build = Build()
    q, k, v = build.input("q", B, H, S, D), build.input("k", 1, H, S, D), build.input("v", B, H, S, D)
    y = build.layer("softmax", Softmax(3), build.layer("scores", MatrixMultiply(transpose_b=True), q, k))
    return build.network(build.layer("context", MatrixMultiply(), y, v))


def _busy() -> Network:
    build = Build()
    q, k, v = (build.input(name, B, H, S, D) for name in "qkv")
    y = build.layer("softmax", Softmax(3), build.layer("scores", MatrixMultiply(transpose_b=True), q, k))
    return build.network(build.layer("context", MatrixMultiply(), y, v), y)


def _epilogue() -> Network:
    build = Build()
    q, k, v = (build.input(name, B, H, S, D) for name in "qkv")
    y = build.layer("softmax", Softmax(3), build.layer("scores", MatrixMultiply(transpose_b=True), q, k))
    return build.network(build.layer("context", MatrixMultiply(epilogue=apply("relu", X0)), y, v))


@pytest.mark.parametrize("softmax", [Softmax(2), Softmax(3, log=True), Softmax(3, epilogue=apply("square", X0))])
def test_another_softmax_is_no_attention(softmax: Softmax) -> None:
    build = Build()
    q, k, v = (build.input(name, B, H, S, D) for name in "qkv")
    y = build.layer("softmax", softmax, build.layer("scores", MatrixMultiply(transpose_b=True), q, k))
    network = build.network(build.layer("context", MatrixMultiply(), y, v))
    assert len(fuse(network, attention.RULE).layers) == 3


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_transposes_around_attention_become_layouts() -> None:
    build = Build()
    heads = []
    for name in "qkv":
        x = build.input(name, BATCH, SEQ, H * D)
        heads.append(build.layer(f"{name}_heads", Shuffle(None, (BATCH, SEQ, H, D), (0, 2, 1, 3)), x))
    y = build.layer("attention", Attention(0.5), *heads)
    y = build.layer("merge", Shuffle((0, 2, 1, 3), (BATCH, SEQ, H * D)), y)
    network = fuse(build.network(y), attention_layout.RULE, sizes=SIZES)
    assert only(network, Attention).op.layouts == ("bshd",) * 4
    assert all(layer.op.first is layer.op.second is None for layer in network.layers if isinstance(layer.op, Shuffle))


def test_plain_transposes_vanish() -> None:
    build = Build()
    q, k, v = (build.input(name, S, B, H, D) for name in "qkv")
    heads = [
        build.layer(f"{name}_t", Shuffle((1, 2, 0, 3)), tensor) for name, tensor in zip("qkv", (q, k, v), strict=True)
    ]
    y = build.layer("out", Shuffle((2, 0, 1, 3)), build.layer("attention", Attention(0.5), *heads))
    network = fuse(build.network(y), attention_layout.RULE)
    (layer,) = network.layers
    assert layer.op.layouts == ("sbhd",) * 4
    assert layer.origins == ("q_t", "k_t", "v_t", "attention", "out") or set(layer.origins) == {
        "q_t", "k_t", "v_t", "attention", "out"}  # fmt: skip


def test_a_transpose_that_moves_the_head_dimension_stays() -> None:
    build = Build()
    q, v = build.input("q", B, H, S, D), build.input("v", B, H, S, D)
    k = build.layer("transpose", Shuffle((0, 1, 3, 2)), build.input("k", B, H, D, S))
    network = build.network(build.layer("attention", Attention(0.5), q, k, v))
    assert kinds(fuse(network, attention_layout.RULE)) == ["Shuffle", "Attention"]


def test_a_shared_transpose_is_read_past() -> None:
    build = Build()
    q, v = build.input("q", B, H, S, D), build.input("v", B, H, S, D)
    k = build.layer("transpose", Shuffle((0, 2, 1, 3)), build.input("k", B, S, H, D))
    y = build.layer("attention", Attention(0.5), q, k, v)
    network = fuse(build.network(y, build.pointwise("other", "tanh", k)), attention_layout.RULE)
    assert only(network, Attention).inputs[1] == "k"


# --- whole blocks, as exporters write them ---------------------------------------------------------------------------


class Block(Build):
    def linear(self, name: str, x: str, k: int, n: int) -> str:
        y = self.layer(name, MatrixMultiply(), x, self.constant(f"{name}.w", (k, n)))
        return self.pointwise(f"{name}_bias", "add", self.constant(f"{name}.b", (n,)), y)

    def heads(self, name: str, x: str, order: tuple[int, ...]) -> str:
        y = self.layer(f"{name}_view", Shuffle(reshape=(BATCH, SEQ, H, D)), x)
        return self.layer(f"{name}_transpose", Shuffle(order), y)


def block(style: str) -> Network:
    build = Block()
    x = build.input("x", BATCH, SEQ, H * D)
    mask = build.input("mask", BATCH, 1, 1, SEQ)
    q, k, v = (build.linear(name, x, H * D, H * D) for name in "qkv")
    q, v = build.heads("q", q, (0, 2, 1, 3)), build.heads("v", v, (0, 2, 1, 3))
    k = build.heads("k", k, (0, 2, 3, 1) if style == "product" else (0, 2, 1, 3))
    if style == "sqrt":  # torch.export of scaled_dot_product_attention
        k = build.layer("kt", Shuffle((0, 1, 3, 2)), k)
        root = lit(math.sqrt(math.sqrt(1 / D)))
        q, k = (build.pointwise(f"{n}_scale", apply("mul", X0, root), t) for n, t in (("q", q), ("k", k)))
    if style == "query":
        q = build.pointwise("q_scale", apply("div", X0, lit(math.sqrt(D))), q)
        k = build.layer("kt", Shuffle((0, 1, 3, 2)), k)
    y = build.layer("scores", MatrixMultiply(), q, k)
    if style == "product":
        y = build.pointwise("scale", apply("div", X0, lit(math.sqrt(D))), y)
    y = build.layer("softmax", Softmax(3), build.pointwise("masked", "add", y, mask))
    y = build.layer("context", MatrixMultiply(), y, v)
    y = build.layer("merge", Shuffle(reshape=(BATCH, SEQ, H * D)), build.layer("back", Shuffle((0, 2, 1, 3)), y))
    return build.network(build.pointwise("residual", "add", build.linear("o", y, H * D, H * D), x))


@pytest.mark.parametrize("style", ["product", "sqrt", "query"])
def test_a_whole_block(style: str) -> None:
    network = block(style)
    result = optimize(network, FusionOptions()).network
    validate(result)
    assert_same(network, result, 1e-4, SIZES)
    assert sorted(set(kinds(result))) == ["Attention", "MatrixMultiply", "Shuffle"]
    assert kinds(result).count("MatrixMultiply") == 4
    assert only(result, Attention).op.layouts == ("bshd",) * 4
    assert all(layer.op.first is layer.op.second is None for layer in result.layers if isinstance(layer.op, Shuffle))


def repeated(k_heads: int = 3, v_heads: int = 3, interleaved: bool = False) -> Network:
    build = Build()
    heads = []
    for name, count in (("k", k_heads), ("v", v_heads)):
        y = build.input(name, B, count, S, D)
        times = 6 // count
        if interleaved:  # k0 k1 k2 k0 k1 k2: not the order in which heads serve queries
            y = build.layer(f"{name}_split", Shuffle(reshape=(B, 1, count, S, D)), y)
            y = build.layer(f"{name}_expand", Expand((B, times, count, S, D)), y)
        else:
            y = build.layer(f"{name}_split", Shuffle(reshape=(B, count, 1, S, D)), y)
            y = build.layer(f"{name}_expand", Expand((B, count, times, S, D)), y)
        heads.append(build.layer(f"{name}_join", Shuffle(reshape=(B, 6, S, D)), y))
    return build.network(build.layer("attention", Attention(0.5), build.input("q", B, 6, S, D), *heads))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_repeated_heads_are_read_without_copies(heads: int) -> None:
    network = fuse(repeated(heads, heads), attention_heads.RULE)
    (layer,) = network.layers
    assert layer.inputs == ("q", "k", "v")


def test_interleaved_heads_are_copied() -> None:
    assert "Expand" in kinds(fuse(repeated(interleaved=True), attention_heads.RULE))


def test_different_repetitions_are_copied() -> None:
    assert refused(repeated(2, 3), attention_heads.RULE).condition == "heads"
