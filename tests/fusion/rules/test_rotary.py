"""Rotary embeddings computed in float32 between narrower tensors."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dims import Dim, symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, apply, substitute
from fusion.graph import Limits
from fusion.network import Network
from fusion.ops import Concatenation, Normalization, Pointwise, RotaryEmbedding, Slice
from fusion.passes import FusionOptions, optimize
from fusion.rules import constant_fold, rotary_cast, rotary_embedding, rotary_normalization, rotary_positions
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, X2, X3, Build, assert_same

HALF, FLOAT = DataType.HALF, DataType.FLOAT
SHAPE = (2, 5, 3, 8)
CUDA = Limits("cuda")


def wide(expression: Expression) -> Expression:
    return Convert(FLOAT, expression)


def turn(end: Expression, build: Build | None = None) -> Network:
    """``x * cos + turned * sin`` of float16 x and float32 angles; ``end`` is what is made of the sum, operand 0."""
    build = build or Build()
    x, cos, sin = build.input("x", *SHAPE, dtype=HALF), build.input("cos", 5, 1, 8), build.input("sin", 5, 1, 8)
    first, second = (build.layer(f"half{at}", Slice((0, 0, 0, at), (*SHAPE[:3], 4), (1,) * 4), x) for at in (0, 4))
    turned = build.layer("turned", Concatenation(3), build.pointwise("neg", "neg", second), first)
    total = apply("add", apply("mul", wide(X0), X1), apply("mul", wide(X2), X3))
    return build.network(build.layer("sum", Pointwise(substitute(end, {0: total})), x, cos, turned, sin))


@pytest.mark.parametrize("end", [Convert(HALF, X0), apply("mul", Convert(HALF, X0), Literal(0.5, HALF))], ids=["rounded", "scaled"])
def test_angles_wider_than_what_turns(end: Expression) -> None:
    network = fuse(turn(end), rotary_embedding.RULE, tolerance=2e-3)
    layer = only(network, RotaryEmbedding)
    assert layer.inputs == ("x", "cos", "sin")
    assert kinds(network) == ["RotaryEmbedding", *(["Pointwise"] if isinstance(end, Convert) is False else [])]


@pytest.mark.parametrize("end", [X0, apply("mul", X0, Literal(0.5, FLOAT)), Convert(HALF, apply("mul", X0, Literal(0.5, FLOAT)))], ids=str)
def test_a_result_that_is_not_rounded_at_once(end: Expression) -> None:
    assert refused(turn(end), rotary_embedding.RULE).condition == "data type"


def cast(source: DataType = HALF, back: DataType = HALF) -> Network:
    build = Build()
    x = build.pointwise("widen", Convert(FLOAT, X0), build.input("x", *SHAPE, dtype=source))
    y = build.layer("turn", RotaryEmbedding(), x, build.input("cos", 5, 1, 8), build.input("sin", 5, 1, 4))
    return build.network(build.pointwise("narrow", Convert(back, X0), y))


def test_casts_around_a_rotary_embedding() -> None:
    network = fuse(cast(), rotary_cast.RULE, tolerance=2e-3)
    assert kinds(network) == ["RotaryEmbedding"]
    assert len(fuse(cast(back=DataType.BF16), rotary_cast.RULE, tolerance=2e-2).layers) == 3
    assert refused(cast(DataType.INT32, DataType.INT32), rotary_cast.RULE).condition == "data type"


def test_narrow_networks_turn_in_narrow_numbers() -> None:
    network = turn(Convert(HALF, X0))
    result = optimize(network, FusionOptions(precision=HALF)).network
    assert_same(network, result, 3e-3)
    assert np.all([one.dtype is not FLOAT for name, one in result.tensors.items() if name in only(result, RotaryEmbedding).outputs])


def normalised(op: Normalization, scale: tuple[int, ...] | None = (8,), dtype: DataType = FLOAT) -> Network:
    """A rotary embedding of normalised rows."""
    build = Build()
    x = build.input("x", *SHAPE, dtype=dtype)
    y = build.layer("norm", op, x, *([build.constant("g", scale)] if scale is not None else []))
    return build.network(build.layer("turn", RotaryEmbedding(heads=2 if op.heads is None else 0), y, build.input("cos", 5, 1, 8), build.input("sin", 5, 1, 8)))


SCALED = apply("mul", X0, X1)


@pytest.mark.parametrize("op, heads", [(Normalization((3,), 1e-6, False, SCALED), 2), (Normalization((3,), 1e-6, False, apply("mul", X1, X0), heads=(0, 2)), 2)])
def test_rows_are_normalised_as_they_turn(op: Normalization, heads: int) -> None:
    network = fuse(normalised(op), rotary_normalization.RULE, limits=CUDA)
    assert only(network, RotaryEmbedding).op == RotaryEmbedding(heads=heads, epsilon=1e-6) and kinds(network) == ["RotaryEmbedding"]


@pytest.mark.parametrize(
    "op, scale, condition",
    [
        (Normalization((3,), 1e-6, True, SCALED), (8,), "normalisation"), (Normalization((3,), 1e-6, False, SCALED, 0.5), (8,), "normalisation"),
        (Normalization((2, 3), 1e-6, False, SCALED), (8,), "axes"), (Normalization((3,), 1e-6, False), None, "epilogue"),
        (Normalization((3,), 1e-6, False, apply("add", X0, X1)), (8,), "epilogue"), (Normalization((3,), 1e-6, False, SCALED), (3, 1), "size"),
        (Normalization((3,), 1e-6, False, SCALED, heads=(1, 2)), (8,), "heads"),
    ],
)  # fmt: skip
def test_rows_that_are_normalised_before_they_turn(op: Normalization, scale: tuple[int, ...] | None, condition: str) -> None:
    assert refused(normalised(op, scale), rotary_normalization.RULE, limits=CUDA).condition == condition
    assert refused(normalised(Normalization((3,), 1e-6, False, SCALED)), rotary_normalization.RULE).condition == "device"


def registers(before: int, behind: int, *, order: tuple[int, ...] = (0, 1, 2), angles: tuple[int, ...] = (5, 1, 8), known: bool = False, batch: Dim = 2) -> Network:
    """``before`` positions that do not turn, 5 that do, and ``behind`` ones that do not; rows are (batch, positions, heads, elements)."""
    build = Build()
    x = build.input("x", batch, before + 5 + behind, 3, 8)
    tables = [build.constant(name, angles) if known else build.input(name, *angles) for name in ("cos", "sin")]
    parts, start = [], 0
    for name, size in (("before", before), ("turned", 5), ("behind", behind)):
        part = build.layer(name, Slice((0, start, 0, 0), (batch, size, 3, 8), (1,) * 4), x) if size else ""
        parts.append(build.layer("turn", RotaryEmbedding(interleaved=True), part, *tables) if name == "turned" else part)
        start += size
    return build.network(build.layer("join", Concatenation(1), *(parts[place] for place in order if parts[place])))


@pytest.mark.parametrize("around", [(1, 0), (0, 2), (3, 1)])
@pytest.mark.parametrize("batch", [2, symbol("batch")])
def test_positions_that_do_not_turn(around: tuple[int, int], batch: Dim) -> None:
    network = fuse(registers(*around, batch=batch), rotary_positions.RULE, sizes={"batch": 2})
    assert kinds(network) == ["Padding", "Padding", "RotaryEmbedding"]
    network = fuse(registers(*around, known=True), rotary_positions.RULE, constant_fold.RULE)
    assert kinds(network) == ["RotaryEmbedding"] and network.constants[only(network, RotaryEmbedding).inputs[1]].shape == (5 + sum(around), 1, 8)


@pytest.mark.parametrize(
    "network, condition", [(registers(1, 1, order=(2, 1, 0)), "parts"), (registers(1, 0, order=(1, 0)), "parts"), (registers(2, 0, angles=(1, 1, 8)), "angles"),
                           (registers(2, 0, angles=(8,)), "angles")],
)  # fmt: skip
def test_parts_that_are_not_all_positions_in_order(network: Network, condition: str) -> None:
    assert refused(network, rotary_positions.RULE).condition == condition
