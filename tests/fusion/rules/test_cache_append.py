"""Queries, new keys and new values of one step: one product, one rotary embedding, one append."""

from __future__ import annotations

import pytest

from fusion.dims import symbol
from fusion.expression import apply
from fusion.graph import Limits
from fusion.ops import Attention, CacheAppend, Concatenation, MatrixMultiply, RotaryEmbedding, Shuffle
from fusion.rules import cache_append
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, Build

CUDA = Limits("cuda")
BATCH, SIZE, WIDTH = 2, 4, 12
PAST = symbol("past")
SIZES = {"past": 3, "steps": 5}


def decoder(steps: object = 1, turned: str = "qk", before: bool = True, biased: bool = False, sizes: str = "", per_head: bool = False,
            angles: str = "qk", read: bool = False, activation: bool = False) -> tuple[Build, tuple[str, ...]]:  # fmt: skip
    """Grouped queries over a cache; ``before``: heads are transposed before they turn."""
    build = Build()
    x = build.input("x", BATCH, steps, WIDTH)
    made = []
    for name, heads in (("q", 4), ("k", 2), ("v", 2)):
        size = SIZE * (2 if name in sizes else 1)
        epilogue, extras = (apply("add", X0, X1), (build.constant(f"{name}.b", (heads * size,)),)) if biased and name != "k" else (X0, ())
        if activation and name == "v":
            epilogue = apply("relu", epilogue)
        y = build.layer(f"{name}_proj", MatrixMultiply(epilogue=epilogue), x, build.constant(f"{name}.w", (WIDTH, heads * size)), *extras)
        tables = [build.input(f"{name}_{t}", BATCH, heads if per_head else 1, steps, size) if name not in angles else f"all_{t}" for t in ("cos", "sin")]
        if name == "q" and "q" in angles:
            for table in tables:
                build.input(table, BATCH, heads if per_head else 1, steps, SIZE)
        if before or name not in turned:
            y = build.layer(f"{name}_heads", Shuffle(None, (BATCH, steps, heads, size), (0, 2, 1, 3)), y)
            y = build.layer(f"{name}_turn", RotaryEmbedding(), y, *tables) if name in turned else y
        else:
            y = build.layer(f"{name}_heads", Shuffle(reshape=(BATCH, steps, heads, size)), y)
            views = [build.layer(f"{name}_{number}_view", Shuffle(reshape=(BATCH, steps, 1, size)), one) for number, one in enumerate(tables)]
            y = build.layer(f"{name}_back", Shuffle((0, 2, 1, 3)), build.layer(f"{name}_turn", RotaryEmbedding(), y, *views))
        if name != "q":
            y = build.layer(f"{name}_cache", Concatenation(2), build.input(f"past_{name}", BATCH, heads, PAST, size), y)
        made.append(y)
    return build, (build.layer("attention", Attention(0.5), *made), *made[1:], *(("k_proj:out",) if read else ()))


@pytest.mark.parametrize("steps", [1, 3, symbol("steps")], ids=str)
@pytest.mark.parametrize("before", [True, False])
def test_a_step_of_generation(steps: object, before: bool) -> None:
    build, outputs = decoder(steps, before=before, biased=True)
    network = fuse(build.network(*outputs), cache_append.RULE, limits=CUDA, sizes=SIZES)
    found = [kind for kind in kinds(network) if kind != "Shuffle"]
    assert found == ["MatrixMultiply", "RotaryEmbedding", "CacheAppend", "Attention"]
    assert only(network, RotaryEmbedding).op.heads == 6
    assert only(network, CacheAppend).op.sources == ((2, 4), (3, 6))
    assert only(network, Attention).op.parts == ((0, 0, 4), (1, 0, 2), (2, 0, 2))
    assert all(layer.op.first is layer.op.second is None for layer in network.layers if isinstance(layer.op, Shuffle))


def test_as_many_steps_as_heads() -> None:
    for before in (True, False):
        build, outputs = decoder(4, before=before)
        assert "CacheAppend" in kinds(fuse(build.network(*outputs), cache_append.RULE, limits=CUDA, sizes=SIZES))


def test_without_a_rotary_embedding() -> None:
    build, outputs = decoder(symbol("steps"), turned="")
    network = fuse(build.network(*outputs), cache_append.RULE, limits=CUDA, sizes=SIZES)
    assert [kind for kind in kinds(network) if kind != "Shuffle"] == ["MatrixMultiply", "CacheAppend", "Attention"]
    assert only(network, CacheAppend).op.sources == ((2, 4), (2, 6))


@pytest.mark.parametrize(
    "options, condition",
    [
        ({"turned": "q"}, "rotary embedding"),
        ({"angles": "q"}, "rotary embedding"),
        ({"per_head": True, "angles": "q", "turned": "qk"}, "rotary embedding"),
        ({"sizes": "v"}, "shapes"),
        ({"activation": True}, "epilogue"),
        ({"read": True}, "network output"),
    ],
)
def test_near_misses(options: dict, condition: str) -> None:
    build, outputs = decoder(**options)
    assert refused(build.network(*outputs), cache_append.RULE, limits=CUDA, sizes=SIZES).condition == condition


def test_on_the_cpu_nothing_is_joined() -> None:
    build, outputs = decoder()
    assert refused(build.network(*outputs), cache_append.RULE, sizes=SIZES).condition == "device"
