"""Attention written out, in the forms that exporters write."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusion.dims import Dim, symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, apply
from fusion.network import Network
from fusion.ops import Attention, Expand, MatrixMultiply, Shuffle, Softmax
from fusion.passes import FusionOptions, optimize
from fusion.rules import (
    attention,
    attention_batch,
    attention_heads,
    attention_layout,
    attention_pointwise,
    attention_rows,
    attention_scale,
    reshape_batch,
)
from fusion.rules._scores import Scores, band, read_scores
from fusion.validation import validate
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
    assert band(triangle, "keep") == (True, 0)
    triangle[0, 1] = True
    assert band(triangle, "keep") is None
    assert band(np.ones((S, S), bool), "keep") is None
    assert band(np.zeros((S, S)), "add") is None
    assert band(np.where(np.tril(np.ones((S, S), bool)), 0, -5.0), "add") is None  # -5 hides nothing


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("keys", [S, S + 3])
def test_bands_are_windows(window: int, keys: int) -> None:
    ahead = np.arange(keys) - np.arange(S)[:, None] - (keys - S)
    band_of_keys = (ahead <= 0) & (ahead > -window)
    assert band(band_of_keys[None, None], "keep") == (True, window)
    assert band(np.where(band_of_keys, 0, -np.inf), "add") == (True, window)
    assert band(ahead > -window, "keep") == (False, window)
    band_of_keys[1, :] = True
    assert band(band_of_keys, "keep") is None


def test_a_constant_band_needs_no_mask() -> None:
    build = Build()
    ahead = np.arange(S) - np.arange(S)[:, None]
    mask = build.constant("mask", np.where((ahead <= 0) & (ahead > -2), 0, -3e38).astype(np.float32))
    network = fuse(core(apply("add", X0, X1), mask, build=build), attention.RULE)
    layer = only(network, Attention)
    assert (layer.op.causal, layer.op.window, layer.op.masked) == (True, 2, False)


def test_scores() -> None:
    assert read_scores(apply("div", apply("mul", X0, lit(3.0)), lit(2.0))) == Scores(1.5)
    assert read_scores(Convert(FLOAT, apply("mul", lit(3.0), X0))) == Scores(3.0)
    assert read_scores(apply("max", apply("add", X0, X1), lit(-3e38))) == Scores(1.0, (("add", X1),))
    assert read_scores(apply("mul", apply("tanh", apply("div", X0, lit(50.0))), lit(30.0))) == Scores(0.02, (), 30.0)
    assert read_scores(apply("div", apply("mul", X0, X1), X2)) == Scores(1.0, factors=((X1, False), (X2, True)))
    for other in (apply("mul", apply("add", X0, X1), X2), apply("div", lit(1.0), X0), apply("div", X1, X0), apply("where", X1, X0, lit(0.0)),
                  apply("mul", apply("add", X0, X1), lit(-2.0)), apply("tanh", apply("add", X0, X1)), apply("tanh", apply("tanh", X0))):  # fmt: skip
        assert read_scores(other) is None


@pytest.mark.parametrize("shape", [(H, 1, 1), (1, H, 1, 1), (B, 1, S, 1), ()])
@pytest.mark.parametrize("function", ["mul", "div"])
def test_a_scale_of_every_head_scales_its_queries(shape: tuple[int, ...], function: str) -> None:
    """As Swin V2 has it, learned; a cap and a mask may stand behind it."""
    for expression in (apply("add", apply(function, X0, X1), X2), apply("add", apply("tanh", apply("mul", apply(function, X0, X1), lit(0.5))), X2)):
        build = Build()
        scale, mask = build.pointwise("positive", "exp", build.input("g", *shape)), build.input("mask", H, S, S)
        network = fuse(core(expression, scale, mask, build=build), attention.RULE)
        assert only(network, Attention).inputs[0].endswith(".scaled") and only(network, Attention).op.masked


def test_a_scale_in_float32_of_narrow_queries() -> None:
    build = Build()
    q, k, v = (build.input(name, B, H, S, D, dtype=HALF) for name in "qkv")
    y = build.layer("scores", MatrixMultiply(transpose_b=True, epilogue=Convert(HALF, apply("mul", Convert(FLOAT, X0), X1))), q, k, build.constant("g", np.float32([[[2]], [[3]], [[5]]])))
    network = fuse(build.network(build.layer("context", MatrixMultiply(), build.layer("softmax", Softmax(3), y), v)), attention.RULE, tolerance=2e-3)
    assert kinds(network) == ["Pointwise", "Attention"] and network.tensors[only(network, Attention).inputs[0]].dtype is HALF


def test_a_scale_behind_the_mask() -> None:
    """As Falcon scales scores and ALiBi together."""
    build = Build()
    network = fuse(core(apply("mul", apply("add", X0, X1), lit(0.25)), build.input("alibi", H, 1, S), build=build), attention.RULE)
    assert only(network, Attention).op.scale == 0.25
    assert "Pointwise" in kinds(network)  # of the mask


@pytest.mark.parametrize("masked", [False, True])
def test_capped_scores(masked: bool) -> None:
    build = Build()
    capped = apply("mul", apply("tanh", apply("div", apply("mul", X0, lit(0.5)), lit(3.0))), lit(3.0))
    expression = apply("add", capped, X1) if masked else capped
    network = fuse(core(expression, *([build.input("mask", S, S)] if masked else []), build=build), attention.RULE)
    layer = only(network, Attention)
    assert (layer.op.softcap, layer.op.masked) == (3.0, masked)
    assert layer.op.scale == pytest.approx(0.5)


def test_a_bias_and_a_boolean_mask_are_one_mask() -> None:
    """MPT: ALiBi is added, then positions are filled."""
    build = Build()
    bias = build.input("bias", H, 1, S)
    hidden = build.constant("hidden", np.eye(S, dtype=bool)[::-1])
    network = fuse(core(apply("where", X2, lit(-3e38), apply("add", X0, X1)), bias, hidden, build=build), attention.RULE)
    assert only(network, Attention).op.masked
    assert network.tensors[only(network, Attention).inputs[3]].dtype is FLOAT


def test_one_key_head_for_all() -> None:
    """Falcon: keys and values broadcast against the heads of queries."""
    build = Build()
    q, k, v = build.input("q", B, H, S, D), build.input("k", B, 1, S, D), build.input("v", B, 1, S, D)
    y = build.layer("softmax", Softmax(3), build.layer("scores", MatrixMultiply(transpose_b=True), q, k))
    assert kinds(fuse(build.network(build.layer("context", MatrixMultiply(), y, v)), attention.RULE)) == ["Attention"]


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
        (lambda: core(apply("sigmoid", X0)), "scores"),
        (lambda: core(apply("mul", X0, X1), "g", build=_with_input("g")), "scale"),  # every score has a factor of its own
        (lambda: core(apply("mul", apply("add", X0, X1), X1), "g", build=_with_input("g")), "scores"),
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
    return build.network(build.layer("context", MatrixMultiply(epilogue=apply("add", X0, X1)), y, v, build.input("r", B, H, S, D)))


def _quantised(by_product: bool, dtype: DataType) -> Network:
    build = Build()
    q, k, v = (build.input(name, B, H, S, D) for name in "qkv")
    y = build.layer("softmax", Softmax(3), build.layer("scores", MatrixMultiply(transpose_b=True), q, k))
    result: Expression = X0
    if dtype.is_integer:
        result = apply("clip", apply("round", apply("div", X0, Literal(0.03, FLOAT))), Literal(-128.0, FLOAT), Literal(127.0, FLOAT))
    result = Convert(dtype, result)
    y = build.layer("context", MatrixMultiply(epilogue=result if by_product else X0), y, v)
    return build.network(y if by_product else build.pointwise("quantise", result, y))


@pytest.mark.parametrize("by_product", [False, True])
def test_the_results_are_quantised(by_product: bool) -> None:
    """Also where the product with the values had taken the quantisation before it became attention."""
    network = _quantised(by_product, DataType.INT8)
    assert kinds(fuse(network, attention.RULE)) == ["Attention", "Pointwise"]
    assert kinds(fuse(network, attention.RULE, attention_pointwise.RULE)) == ["Attention"]


def test_wider_results_are_a_layer_of_their_own() -> None:
    assert kinds(fuse(_quantised(False, DataType.DOUBLE), attention.RULE, attention_pointwise.RULE)) == ["Attention", "Pointwise"]


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


def test_keys_may_be_repeated_behind_any_movement() -> None:
    """As torch exports ``repeat_kv`` of values that were just transposed: the transpose and the new axis are one movement."""
    build = Build()
    q, heads = build.input("q", B, 6, S, D), []
    for name in "kv":
        x = build.input(name, B, S, 3, D)
        y = build.layer(f"{name}_split", Shuffle((0, 2, 1, 3), (B, 3, 1, S, D)), x)
        y = build.layer(f"{name}_expand", Expand((B, 3, 2, S, D)), y)
        heads.append(build.layer(f"{name}_join", Shuffle(reshape=(B, 6, S, D)), y))
    network = fuse(build.network(build.layer("attention", Attention(0.5), q, *heads)), attention_heads.RULE)
    assert "Expand" not in kinds(network)


# --- scales of queries and keys -----------------------------------------------------------------------------------------


def scaled(factor: float = 0.5, through: bool = False, function: str = "mul") -> Build:
    build = Build()
    q, k, v = (build.input(name, B, H, S, D) for name in "qkv")
    q = build.pointwise("q_scale", apply(function, X0, lit(factor)), q)
    if through:
        k = build.pointwise("k_scale", apply("div", X0, lit(2.0)), build.input("k5", B, H, 1, S, D))
        k = build.layer("k_view", Shuffle(reshape=(B, H, S, D)), k)
    build.layer("attention", Attention(0.5), q, k, v)
    return build


def test_scales_of_queries_and_keys_are_the_scale_of_scores() -> None:
    network = fuse(scaled().network("attention:out"), attention_scale.RULE)
    assert kinds(network) == ["Attention"]
    assert only(network, Attention).op.scale == 0.25
    network = fuse(scaled(through=True).network("attention:out"), attention_scale.RULE)
    assert kinds(network) == ["Shuffle", "Attention"]
    assert only(network, Attention).op.scale == 0.125


def test_a_scaled_query_that_others_read_is_read_past() -> None:
    network = fuse(scaled().network("attention:out", "q_scale:out"), attention_scale.RULE)
    assert only(network, Attention).inputs[0] == "q"
    assert "Pointwise" in kinds(network)


def test_no_scale() -> None:
    assert refused(scaled(5e-324).network("attention:out"), attention_scale.RULE).condition == "scale"
    build = Build()
    q, k, v = (build.input(name, B, H, S, D) for name in "qkv")
    q = build.pointwise("q_scale", "mul", q, build.input("g", H, 1, 1))
    assert kinds(fuse(build.network(build.layer("attention", Attention(0.5), q, k, v)), attention_scale.RULE)) == ["Pointwise", "Attention"]


# --- heads in the batch -------------------------------------------------------------------------------------------------


def folded(mask: tuple[int, ...] = (), alone: bool = False) -> Build:
    """Heads folded into the batch for products of three axes, as diffusers and older transformers write attention."""
    build = Build()
    parts = []
    for name in "qkv":
        y = build.layer(f"{name}_heads", Shuffle(None, (B, S, H, D), (0, 2, 1, 3)), build.input(name, B, S, H * D))
        parts.append(build.layer(f"{name}_fold", Shuffle(reshape=(B * H, S, D)), y))
    y = build.layer("scores", MatrixMultiply(transpose_b=True), parts[0], parts[1])
    if mask:
        y = build.pointwise("masked", "add", y, build.input("mask", *mask))
    y = build.layer("context", MatrixMultiply(), build.layer("softmax", Softmax(2), y), parts[2])
    y = build.layer("unfold", Shuffle(None, (B, H, S, D), (0, 2, 1, 3)), y)
    build.layer("merge", Shuffle(reshape=(B, S, H * D)), y)
    return build


@pytest.mark.parametrize("mask", [(), (B * H, 1, S), (S, S), (1, S, S)])
def test_heads_in_the_batch_are_heads_again(mask: tuple[int, ...]) -> None:
    network = folded(mask).network("merge:out")
    result = optimize(network, FusionOptions(device="cuda")).network
    validate(result)
    assert_same(network, result)
    layer = only(result, Attention)
    assert layer.op.layouts == ("bshd",) * 4
    assert all(one.op.first is one.op.second is None for one in result.layers if isinstance(one.op, Shuffle))


def test_a_batch_that_is_none_of_heads_stays() -> None:
    build = Build()
    q, k, v = (build.input(name, B * H, 1, S, D) for name in "qkv")
    assert len(fuse(build.network(build.layer("attention", Attention(0.5), q, k, v)), attention_batch.RULE).layers) == 1


@pytest.mark.parametrize("count", [B * H, 1, 0])
def test_masks_of_heads_in_the_batch(count: int) -> None:
    build = Build()
    parts = [build.layer(f"{n}_fold", Shuffle(reshape=(B * H, 1, S, D)), build.input(n, B, H, S, D)) for n in "qkv"]
    mask = build.input("mask", count, 1, 1, S) if count else build.input("mask", S)
    network = build.network(build.layer("attention", Attention(0.5, masked=True), *parts, mask))
    network = fuse(network, attention_batch.RULE)
    assert network.tensors[only(network, Attention).inputs[0]].shape == (B, H, S, D)
    assert network.tensors[only(network, Attention).inputs[3]].shape == ((B, H, 1, S) if count > 1 else (1, 1, 1, S) if count else (S,))


def unfolded(scores: bool = True, batch: int = B * H, operand: tuple[int, ...] = (B * H, 1, S)) -> Build:
    """Bloom: the products have the heads in the batch, mask and softmax have them apart."""
    build = Build()
    q, k, v = build.input("q", batch, S, D), build.input("k", batch, D, S), build.input("v", batch, S, D)
    y = build.layer("scores", MatrixMultiply(epilogue=apply("add", X0, X1)), q, k, build.input("alibi", *operand))
    y = build.layer("split", Shuffle(reshape=(B, batch // B, S, S)), y)
    y = build.layer("softmax", Softmax(3), y)
    build.layer("context", MatrixMultiply(), build.layer("join", Shuffle(reshape=(batch, S, S)), y), v)
    return build


def test_products_have_the_axes_of_the_softmax() -> None:
    network = fuse(unfolded().network("context:out"), reshape_batch.RULE)
    assert all(len(network.tensors[one.outputs[0]].shape) == 4 for one in network.layers if isinstance(one.op, MatrixMultiply))
    network = fuse(unfolded().network("context:out"), reshape_batch.RULE, attention.RULE)
    assert kinds(network).count("Attention") == 1


def test_masks_between_two_foldings() -> None:
    """Whisper before transformers 4.40: scores are unfolded for the mask only."""
    build = Build()
    q, k, v = build.input("q", B * H, S, D), build.input("k", B * H, D, S), build.input("v", B * H, S, D)
    y = build.layer("split", Shuffle(reshape=(B, H, S, S)), build.layer("scores", MatrixMultiply(), q, k))
    y = build.layer("fold", Shuffle(reshape=(B * H, S, S)), build.pointwise("masked", "add", y, build.input("mask", S, S)))
    y = build.layer("context", MatrixMultiply(), build.layer("softmax", Softmax(2), y), v)
    network = fuse(build.network(y), reshape_batch.RULE, attention.RULE)
    assert kinds(network).count("Attention") == 1


def test_products_whose_batch_does_not_split_stay() -> None:
    build = Build()
    q, k = build.input("q", B * H, S, D), build.input("k", D, S)
    y = build.layer("split", Shuffle(reshape=(B, H, S, S)), build.layer("scores", MatrixMultiply(), q, k))
    assert kinds(fuse(build.network(build.pointwise("no_softmax", "tanh", y)), reshape_batch.RULE)) == ["MatrixMultiply", "Shuffle", "Pointwise"]
    build = Build()
    q, k = build.input("q", B * H, S, D), build.input("k", 1, D, S)
    y = build.layer("scores", MatrixMultiply(), q, k)
    y = build.layer("split", Shuffle(reshape=(B, 1, H * S, S)), y)  # rows are folded as well
    assert len(fuse(build.network(build.layer("softmax", Softmax(3), y)), reshape_batch.RULE).layers) == 3


def grouped_rows(mask: tuple[int, ...] | None = None, heads: int = 6, keys: int = 2, positions: int = 1, batch: Dim = 2, **options: object) -> Network:
    """Queries of one position, those of a group as rows of the key head that they share."""
    build = Build()
    q = build.layer("rows", Shuffle(reshape=(batch, 2, heads * positions // 2, 8)), build.input("q", batch, heads, positions, 8))
    k, v = build.input("k", batch, keys, 5, 8), build.input("v", batch, keys, 5, 4)
    masks = [build.input("mask", *mask)] if mask is not None else []
    return build.network(build.layer("attention", Attention(0.5, masked=mask is not None, **options), q, k, v, *masks))  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", [None, (5,), (2, 1, 1, 5)])
def test_groups_that_were_rows_are_heads(mask: tuple[int, ...] | None) -> None:
    network = fuse(grouped_rows(mask), attention_rows.RULE)
    assert only(network, Attention).inputs[0] == "q" and kinds(network) == ["Attention", "Shuffle"]
    assert kinds(fuse(grouped_rows(batch=symbol("batch")), attention_rows.RULE, sizes={"batch": 2})) == ["Attention", "Shuffle"]


@pytest.mark.parametrize(
    ("network", "condition"),
    [(grouped_rows((3, 5)), "mask"), (grouped_rows((2, 1, 5)), "mask"), (grouped_rows(keys=1), "heads"), (grouped_rows(causal=True), "causal"), (grouped_rows(window=2), "causal")],
)
def test_rows_that_stay(network: Network, condition: str) -> None:
    assert refused(network, attention_rows.RULE).condition == condition


def test_rows_of_several_positions_are_no_groups() -> None:
    assert kinds(fuse(grouped_rows(positions=2), attention_rows.RULE)) == ["Shuffle", "Attention"]
