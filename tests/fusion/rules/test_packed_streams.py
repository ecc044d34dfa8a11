"""Attention of two streams of positions, each with projections of its own: one product a stream."""

from __future__ import annotations

import pytest

from fusion.dims import Dim, symbol
from fusion.dtypes import DataType
from fusion.expression import apply
from fusion.graph import Limits
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import Attention, Concatenation, MatrixMultiply, Normalization, RotaryEmbedding, Shuffle
from fusion.passes import FusionOptions, optimize
from fusion.rules import packed_streams, rotary_streams
from runtime.views import view_layers
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, Build, assert_same
from tests.language_models import mmdit, model

CUDA = Limits("cuda")
HEADS, SIZE = 3, 4
WIDTH = HEADS * SIZE
SCALED = apply("mul", X0, X1)


def streams(
    batch: Dim = 2, *, normalised: tuple[bool, bool] = (False, False), turned: str = "", heads: tuple[int, int] = (HEADS, HEADS), axis: int = 1, crossed: bool = False,
    angles: tuple[int, ...] = (8, 1, SIZE),
) -> Network:  # fmt: skip
    """5 and 3 positions; ``turned`` before or behind they are joined; ``crossed``: the second stream's values are of the first one's rows."""
    build = Build()
    tables = [build.input(name, *angles) for name in ("cos", "sin")] if turned else []
    x, z = build.input("x", batch, 5, WIDTH), build.input("z", batch, 3, WIDTH)
    other = build.input("w", batch, 3, WIDTH) if crossed else z
    joined = []
    for name in "qkv":
        parts = []
        for stream, (rows, source, count) in enumerate(((5, x, heads[0]), (3, other if name == "v" else z, heads[1]))):
            part = build.layer(f"{name}{stream}", MatrixMultiply(), source, build.constant(f"{name}{stream}.w", (WIDTH, count * SIZE)))
            part = build.layer(f"{name}{stream}.heads", Shuffle(reshape=(batch, rows, count, SIZE)), part)
            if normalised[stream] and name != "v":
                part = build.layer(f"{name}{stream}.norm", Normalization((3,), 1e-6, False, SCALED), part, build.constant(f"{name}{stream}.g", (SIZE,)))
            parts.append(part)
        y = build.layer(f"{name}.join", Concatenation(axis), *parts)
        joined.append(build.layer(f"{name}.turn", RotaryEmbedding(), y, *tables) if turned and name != "v" else y)
    return build.network(build.layer("attention", Attention(0.5, layouts=("bshd",) * 4), *joined))


@pytest.mark.parametrize("batch", [1, 2, symbol("batch")])
def test_one_product_a_stream(batch: Dim) -> None:
    network = fuse(streams(batch), packed_streams.RULE, limits=CUDA, sizes={"batch": 2})
    assert sorted(kinds(network)) == ["Attention", "Concatenation", "MatrixMultiply", "MatrixMultiply", "Shuffle", "Shuffle"]
    assert only(network, Attention).op.parts == ((0, 0, HEADS), (0, HEADS, HEADS), (0, 2 * HEADS, HEADS))
    assert set(only(network, Concatenation).origins) == {"q.join", "k.join", "v.join"}


@pytest.mark.parametrize("batch, products", [(1, 2), (2, 4)])
def test_values_of_several_images_stay_apart_where_queries_and_keys_are_normalised(batch: int, products: int) -> None:
    network = fuse(streams(batch, normalised=(True, True)), packed_streams.RULE, limits=CUDA)
    assert kinds(network).count("MatrixMultiply") == products and kinds(network).count("Normalization") == 2
    assert kinds(network).count("Concatenation") == 2


def test_streams_that_turn() -> None:
    network = fuse(streams(normalised=(True, True), turned="behind"), rotary_streams.RULE, packed_streams.RULE, limits=CUDA)
    assert kinds(network).count("RotaryEmbedding") == 4, "q and k of both, by tables of their own until equal slices are one"
    both = optimize(streams(1, normalised=(True, True), turned="behind"), FusionOptions(device="cuda")).network
    assert_same(streams(1, normalised=(True, True), turned="behind"), both)
    views = view_layers(both)
    assert sorted(type(layer.op).__name__ for layer in both.layers if layer.name not in views) == ["Attention", "MatrixMultiply", "MatrixMultiply", "RotaryEmbedding", "RotaryEmbedding"]


def test_refusals() -> None:
    assert refused(streams(), packed_streams.RULE).condition == "device"
    assert refused(streams(crossed=True), packed_streams.RULE, limits=CUDA).condition == "inputs"
    assert refused(streams(1, normalised=(True, False)), packed_streams.RULE, limits=CUDA).condition == "normalisation"
    assert refused(streams(turned="behind"), rotary_streams.RULE, limits=CUDA).condition == "no gain"
    assert refused(streams(normalised=(True, True), turned="behind"), rotary_streams.RULE).condition == "device"
    assert refused(streams(normalised=(True, True), turned="behind", angles=(1, 1, SIZE)), rotary_streams.RULE, limits=CUDA).condition == "angles"


@pytest.mark.parametrize("precision", [None, DataType.HALF])
def test_two_images(precision: DataType | None) -> None:
    """Their streams are joined by a copy, and attention's results cut; nothing else moves."""
    network = import_onnx(model(mmdit(batch=2)).SerializeToString())
    result = optimize(network, FusionOptions(device="cuda", precision=precision)).network
    assert_same(network, result, 2e-4 if precision is None else 1e-2)
    views = view_layers(result)
    working = [type(layer.op).__name__ for layer in result.layers if layer.name not in views]
    assert working.count("Concatenation") == 1 and working.count("Slice") == 2 and working.count("MatrixMultiply") == 4
