"""Data movement: composing, cancelling, and moving it past other layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Literal, apply
from fusion.network import Network
from fusion.ops import Concatenation, Gather, MatrixMultiply, Reduce, Shuffle, Slice, Softmax
from fusion.rules import (
    gather_rows,
    matmul_pointwise,
    matmul_split,
    no_op,
    pointwise_shuffle,
    reshape_rows,
    roll,
    shuffle_matmul,
    shuffle_reduce,
    shuffle_reshape,
    shuffle_rows,
    shuffle_shuffle,
    shuffle_weights,
    space_to_depth,
)
from fusion.rules._shuffles import Movement, compose, emit, inverse, movement, refine, transpose_of
from runtime.views import share_memory
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, Build

BATCH, SEQ = symbol("batch"), symbol("seq")
SIZES = {"batch": 2, "seq": 5}


# --- movements -------------------------------------------------------------------------------------------------------


@st.composite
def shuffles(draw: st.DrawFn, shape: tuple[int, ...]) -> Shuffle:
    """Any transpose-reshape-transpose of ``shape``; the reshape only joins and splits axes."""
    first = draw(st.none() | st.permutations(range(len(shape))).map(tuple))
    moved = [shape[axis] for axis in first] if first else list(shape)
    reshape = None
    if draw(st.booleans()):
        factors = [f for dim in moved for f in _factors(dim)]
        reshape = []
        while factors:
            count = draw(st.integers(1, len(factors)))
            reshape.append(int(np.prod(factors[:count])))
            factors = factors[count:]
        reshape = tuple(reshape + [1] * draw(st.integers(0, 1)))
    out = reshape if reshape is not None else tuple(moved)
    second = draw(st.none() | st.permutations(range(len(out))).map(tuple))
    return Shuffle(first, reshape, second)


def _factors(dim: int) -> list[int]:
    found = []
    while dim % 2 == 0 and dim > 2:
        found.append(2)
        dim //= 2
    return [*found, dim]


SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4).map(tuple)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_emitted_shuffles_do_the_movement(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    op = data.draw(shuffles(shape))
    x = np.arange(int(np.prod(shape))).reshape(shape)
    (expected,) = op.evaluate([x])
    move = movement(shape, op)
    if move is None:
        return
    result = x
    ops = emit(move, shape, expected.shape)
    assert len(ops) <= 2
    for step in ops:
        (result,) = step.evaluate([result])
    np.testing.assert_array_equal(result, expected)
    if move.is_view:
        np.testing.assert_array_equal(expected.reshape(-1), x.reshape(-1))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_two_shuffles_compose(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    a = data.draw(shuffles(shape))
    build = Build()
    y = build.layer("a", a, build.input("x", *shape))
    b = data.draw(shuffles(build.tensors[y].shape))  # type: ignore[arg-type]
    network = build.network(build.layer("b", b, y))
    fused = fuse(network, no_op.RULE, shuffle_reshape.RULE, shuffle_shuffle.RULE, tolerance=0)
    assert sum(kind == "Shuffle" for kind in kinds(fused)) <= 2


def test_a_permutation_after_one_that_moves_an_axis_of_one_is_no_identity() -> None:
    build = Build()
    y = build.layer("turn", Shuffle(first=(0, 2, 1), second=(2, 0, 1)), build.input("x", 2, 2, 1))
    assert kinds(fuse(build.network(y), no_op.RULE)) == ["Shuffle"]


def test_movements_of_symbolic_shapes() -> None:
    split = movement((BATCH, SEQ, 768), Shuffle(None, (BATCH, SEQ, 12, 64), (0, 2, 1, 3)))
    assert split == Movement((BATCH, SEQ, 12, 64), (0, 2, 1, 3))
    join = movement((BATCH, 12, SEQ, 64), Shuffle((0, 2, 1, 3), (BATCH * SEQ, 768)))
    assert join is not None and split is not None
    assert compose(split, join).is_view  # type: ignore[union-attr]
    assert movement((BATCH * SEQ, 8), Shuffle(reshape=(BATCH, SEQ, 8))).is_view  # type: ignore[union-attr]


def test_shapes_without_common_factors_have_no_movement() -> None:
    assert refine((6, 4), (4, 6)) is None
    assert refine((BATCH, 6), (SEQ, 6)) is None
    assert movement((6, 4), Shuffle(reshape=(4, 6), second=(1, 0))) is None


def test_leading_ones_stay_in_front() -> None:
    """So that attention sees its head axis last."""
    move = movement((1, 8, 6), Shuffle(None, (1, 8, 2, 3), (0, 2, 1, 3)))
    assert move is not None
    assert emit(move, (1, 8, 6), (1, 2, 8, 3)) == (Shuffle(None, (1, 8, 2, 3), (0, 2, 1, 3)),)


def test_transposes() -> None:
    assert transpose_of((2, 3, 4), Shuffle((0, 2, 1))) == (0, 2, 1)
    assert transpose_of((2, 3, 4), Shuffle((0, 2, 1), None, (1, 0, 2))) == (2, 0, 1)
    assert transpose_of((2, 3, 4), Shuffle(reshape=(2, 3, 4))) == (0, 1, 2)
    assert transpose_of((2, 3, 4), Shuffle(reshape=(6, 4))) is None
    assert inverse((2, 0, 1)) == (1, 2, 0)


# --- shuffle after shuffle -------------------------------------------------------------------------------------------


def two(a: Shuffle, b: Shuffle, *shape: object, keep: bool = False):  # type: ignore[no-untyped-def]
    build = Build()
    y = build.layer("a", a, build.pointwise("relu", "relu", build.input("x", *shape)))
    z = build.pointwise("tanh", "tanh", build.layer("b", b, y))
    return build.network(z, build.pointwise("abs", "abs", y)) if keep else build.network(z)


def test_inverse_shuffles_vanish() -> None:
    network = fuse(two(Shuffle((0, 2, 1)), Shuffle((0, 2, 1)), 2, 3, 4), shuffle_shuffle.RULE)
    assert kinds(network) == ["Pointwise", "Pointwise"]
    assert network.fates["a"].kind == network.fates["b"].kind == "no-op"


def test_inverse_shuffles_vanish_with_run_time_sizes() -> None:
    a = Shuffle(None, (BATCH, SEQ, 4, 2), (0, 2, 1, 3))
    b = Shuffle((0, 2, 1, 3), (BATCH, SEQ, 8))
    network = fuse(two(a, b, BATCH, SEQ, 8), shuffle_shuffle.RULE, sizes=SIZES)
    assert kinds(network) == ["Pointwise", "Pointwise"]


def test_two_reshapes_become_one() -> None:
    network = fuse(two(Shuffle(reshape=(6, 4)), Shuffle(reshape=(3, 8)), 2, 3, 4), shuffle_shuffle.RULE)
    assert only(network, Shuffle).op == Shuffle(reshape=(3, 8))
    assert only(network, Shuffle).name == "a + b"


def test_a_shared_shuffle_is_read_past_when_that_saves_a_movement() -> None:
    network = fuse(two(Shuffle((0, 2, 1)), Shuffle((0, 2, 1)), 2, 3, 4, keep=True), shuffle_shuffle.RULE)
    assert kinds(network).count("Shuffle") == 1


def test_a_shared_shuffle_stays_when_nothing_is_saved() -> None:
    miss = refused(two(Shuffle((0, 2, 1)), Shuffle((1, 0, 2)), 2, 3, 4, keep=True), shuffle_shuffle.RULE)
    assert miss.condition == "shared"


def test_movements_that_do_not_compose_stay() -> None:
    miss = refused(two(Shuffle(reshape=(4, 6)), Shuffle((1, 0)), 6, 4), shuffle_shuffle.RULE)
    assert miss.condition == "shape"


def test_a_channel_shuffle_stays_one_movement() -> None:
    a = Shuffle(None, (2, 2, 3, 4, 5), (0, 2, 1, 3, 4))
    b = Shuffle(reshape=(2, 6, 4, 5))
    miss = refused(two(a, b, 2, 6, 4, 5), shuffle_shuffle.RULE)
    assert miss.condition == "no gain"


# --- shuffles and products -------------------------------------------------------------------------------------------


def product(side: int, order: tuple[int, ...], shapes: tuple[tuple, tuple]):  # type: ignore[no-untyped-def]
    build = Build()
    names = [build.input("a", *shapes[0]), build.input("b", *shapes[1])]
    names[side] = build.layer("transpose", Shuffle(order), names[side])
    return build.network(build.layer("matmul", MatrixMultiply(), *names))


def test_a_transpose_becomes_a_flag_of_the_product() -> None:
    left = fuse(product(0, (0, 2, 1), ((2, 4, 3), (4, 5))), shuffle_matmul.RULE)
    assert only(left, MatrixMultiply).op.transpose_a
    right = fuse(product(1, (1, 0), ((2, 3, 4), (5, 4))), shuffle_matmul.RULE)
    assert only(right, MatrixMultiply).op.transpose_b
    assert right.layers[0].name == "transpose + matmul"


def test_a_transpose_of_the_batch_is_no_flag() -> None:
    miss = refused(product(0, (1, 0, 2), ((3, 2, 4), (2, 4, 5))), shuffle_matmul.RULE)
    assert miss.condition == "permutation"
    assert "(1, 0, 2)" in miss.detail


def test_a_pointwise_function_moves_to_the_product_that_can_compute_it() -> None:
    build = Build()
    y = build.layer("matmul", MatrixMultiply(), build.input("x", 2, 4, 6), build.constant("w", (6, 8)))
    y = build.layer("heads", Shuffle(None, (2, 4, 2, 4), (0, 2, 1, 3)), y)
    y = build.pointwise("scale", apply("mul", X0, Literal(0.5, DataType.FLOAT)), y)
    network = fuse(build.network(y), pointwise_shuffle.RULE, matmul_pointwise.RULE)
    assert [layer.name for layer in network.layers] == ["matmul + scale", "heads"]


@pytest.mark.parametrize("kind", ["input", "shared", "widening"])
def test_a_pointwise_function_stays_behind_the_shuffle(kind: str) -> None:
    from fusion.expression import Convert

    build = Build()
    y = build.input("x", 2, 4, 6, dtype=DataType.HALF if kind == "widening" else DataType.FLOAT)
    if kind != "input":
        y = build.pointwise("before", "tanh", y)
    extra = [y] if kind == "shared" else []
    z = build.layer("heads", Shuffle((0, 2, 1)), y)
    expression = Convert(DataType.FLOAT, X0) if kind == "widening" else apply("exp", X0)
    z = build.pointwise("after", expression, z)
    miss = refused(build.network(z, *extra), pointwise_shuffle.RULE)
    assert miss.condition == ("shared" if kind == "shared" else "no gain")


def test_sequence_first_attention_loses_its_transposes() -> None:
    """x -> [S, B, K] -> product -> [B, S, N], as torch's multi-head attention does."""
    build = Build()
    y = build.layer("before", Shuffle((1, 0, 2)), build.input("x", BATCH, SEQ, 6))
    y = build.layer("matmul", MatrixMultiply(), y, build.constant("w", (6, 8)))
    y = build.pointwise("bias", "add", y, build.constant("b", (8,)))
    y = build.layer("after", Shuffle((1, 0, 2)), y)
    network = fuse(build.network(y), matmul_pointwise.RULE, shuffle_rows.RULE, sizes=SIZES)
    assert kinds(network) == ["MatrixMultiply"]


def test_a_row_permutation_meets_a_split_into_heads() -> None:
    build = Build()
    y = build.layer("before", Shuffle((1, 0, 2)), build.input("x", BATCH, SEQ, 6))
    y = build.layer("matmul", MatrixMultiply(), y, build.constant("w", (6, 8)))
    y = build.layer("heads", Shuffle(None, (SEQ, BATCH, 2, 4), (1, 2, 0, 3)), y)
    network = fuse(build.network(y), shuffle_rows.RULE, sizes=SIZES)
    assert kinds(network) == ["MatrixMultiply", "Shuffle"]


def test_rows_that_have_their_own_operand_stay() -> None:
    build = Build()
    y = build.layer("before", Shuffle((1, 0, 2)), build.input("x", 2, 5, 6))
    y = build.layer("matmul", MatrixMultiply(), y, build.constant("w", (6, 8)))
    y = build.pointwise("bias", "add", y, build.constant("b", (5, 1, 1)))
    y = build.layer("after", Shuffle((1, 0, 2)), y)
    network = fuse(build.network(y), matmul_pointwise.RULE)
    assert refused(network, shuffle_rows.RULE).condition == "operands"


def test_a_reshape_of_rows_moves_before_the_product() -> None:
    build = Build()
    x = build.input("x", 10, 6)
    y = build.layer("gemm", MatrixMultiply(), x, build.constant("w", (6, 8)))
    y = build.layer("view", Shuffle(reshape=(2, 5, 8)), y)
    y = build.pointwise("add", "add", y, build.input("r", 2, 5, 8))
    network = fuse(build.network(y), reshape_rows.RULE, matmul_pointwise.RULE)
    assert kinds(network) == ["Shuffle", "MatrixMultiply"]


def test_a_reshape_of_columns_stays() -> None:
    build = Build()
    y = build.layer("gemm", MatrixMultiply(), build.input("x", 10, 6), build.constant("w", (6, 8)))
    y = build.layer("view", Shuffle(reshape=(10, 2, 4)), y)
    assert kinds(fuse(build.network(y), reshape_rows.RULE)) == ["MatrixMultiply", "Shuffle"]


def test_a_reshape_of_rows_with_their_own_operand_stays() -> None:
    build = Build()
    y = build.layer("gemm", MatrixMultiply(), build.input("x", 10, 6), build.constant("w", (6, 8)))
    y = build.pointwise("rows", "add", y, build.constant("r", (10, 1)))
    y = build.layer("view", Shuffle(reshape=(2, 5, 8)), y)
    network = fuse(build.network(y), matmul_pointwise.RULE)
    assert refused(network, reshape_rows.RULE).condition == "operands"


@pytest.mark.parametrize("transposed", [False, True])
def test_flattening_a_channels_last_image_permutes_the_weights(transposed: bool) -> None:
    build = Build()
    y = build.layer("flatten", Shuffle((0, 3, 1, 2), (2, 60)), build.input("x", 2, 4, 5, 3))
    w = build.constant("w", (7, 60) if transposed else (60, 7))
    y = build.layer("gemm", MatrixMultiply(transpose_b=transposed), y, w)
    network = fuse(build.network(y), shuffle_weights.RULE)
    assert network.layers[0].op == Shuffle(reshape=(2, 60))


def test_weights_stay_when_rows_move() -> None:
    build = Build()
    y = build.layer("move", Shuffle((1, 0, 2)), build.input("x", 2, 5, 6))
    y = build.layer("gemm", MatrixMultiply(), y, build.constant("w", (6, 7)))
    assert refused(build.network(y), shuffle_weights.RULE).condition == "permutation"


# --- slices of a product ---------------------------------------------------------------------------------------------


def packed(parts: int, bias: bool = True):  # type: ignore[no-untyped-def]
    build = Build()
    y = build.layer("matmul", MatrixMultiply(), build.input("x", BATCH, SEQ, 6), build.constant("w", (6, parts * 8)))
    if bias:
        y = build.pointwise("bias", "add", y, build.constant("b", (parts * 8,)))
    return build, y


def test_packed_projections_are_split() -> None:
    build, y = packed(3)
    y = build.layer("split", Shuffle(None, (BATCH, SEQ, 3, 2, 4), (2, 0, 3, 1, 4)), y)
    parts = [build.layer(f"pick{i}", Gather(0), y, build.constant(f"i{i}", np.array(i))) for i in (0, 1, -1)]
    network = fuse(build.network(*parts), matmul_pointwise.RULE, matmul_split.RULE, sizes=SIZES)
    assert kinds(network).count("MatrixMultiply") == 3
    assert "Gather" not in kinds(network)
    names = [layer.name for layer in network.layers if isinstance(layer.op, MatrixMultiply)]
    assert "matmul + bias [8:16]" in names
    assert network.fates["bias"].kind == "layer"


def test_slices_are_split_too() -> None:
    build, y = packed(2)
    parts = [
        build.layer(f"part{i}", Slice((0, 0, start), (BATCH, SEQ, size), (1, 1, 1)), y)
        for i, (start, size) in enumerate(((0, 10), (10, 6)))
    ]
    network = fuse(build.network(*parts), matmul_pointwise.RULE, matmul_split.RULE, sizes=SIZES)
    assert kinds(network) == ["MatrixMultiply", "MatrixMultiply"]


@pytest.mark.parametrize("kind", ["whole", "output", "rows", "inner"])
def test_a_product_that_is_not_cut_in_columns_stays(kind: str) -> None:
    build, y = packed(2, bias=False)
    outputs = [y] if kind == "output" else [build.pointwise("all", "tanh", y)] if kind == "whole" else []
    if kind == "rows":
        part = build.layer("part", Slice((0, 1, 0), (BATCH, 2, 16), (1, 1, 1)), y)
    elif kind == "inner":  # [.., 8, 2]: every second column
        z = build.layer("view", Shuffle(reshape=(BATCH, SEQ, 8, 2)), y)
        part = build.layer("part", Gather(3), z, build.constant("i", np.array(1)))
    else:
        part = build.layer("part", Slice((0, 0, 0), (BATCH, SEQ, 8), (1, 1, 1)), y)
    miss = refused(build.network(part, *outputs), matmul_split.RULE, sizes=SIZES)
    assert miss.condition == {"whole": "shared", "output": "network output", "rows": "axes", "inner": "parts"}[kind]


# --- shuffle and reduce ----------------------------------------------------------------------------------------------


def reduced(order: tuple[int, ...], axes: tuple[int, ...], keep: bool):  # type: ignore[no-untyped-def]
    build = Build()
    y = build.layer("transpose", Shuffle(order), build.input("x", 2, 3, 4))
    return build.network(build.layer("reduce", Reduce("sum", axes, keep), y))


@pytest.mark.parametrize(
    "order, axes, keep",
    [((0, 2, 1), (1,), False), ((0, 2, 1), (1, 2), True), ((2, 0, 1), (0,), False), ((1, 2, 0), (0, 1, 2), True)],
)
def test_a_transpose_before_a_reduction_goes(order: tuple, axes: tuple, keep: bool) -> None:
    network = fuse(reduced(order, axes, keep), shuffle_reduce.RULE)
    assert kinds(network) == ["Reduce"]


@pytest.mark.parametrize("order, axes, keep", [((1, 0, 2), (2,), True), ((1, 0, 2), (2,), False)])
def test_a_transpose_of_axes_that_stay_is_needed(order: tuple, axes: tuple, keep: bool) -> None:
    assert refused(reduced(order, axes, keep), shuffle_reduce.RULE).condition == "axes"


def test_axes_of_length_one_in_other_places_are_a_view() -> None:
    network = fuse(reduced((0, 2, 1), (1,), True), shuffle_reduce.RULE)
    assert kinds(network) == ["Reduce", "Shuffle"]
    assert share_memory(network).elided == {"reduce reshape"}


def test_a_reshape_before_a_reduction_stays() -> None:
    build = Build()
    y = build.layer("view", Shuffle(reshape=(6, 4)), build.input("x", 2, 3, 4))
    network = build.network(build.layer("reduce", Reduce("sum", (1,), True), y))
    assert len(fuse(network, shuffle_reduce.RULE).layers) == 2


# --- phases of a tensor ------------------------------------------------------------------------------------------------


def phases(starts: list[tuple[int, ...]], steps: tuple[int, ...], shape: tuple[int, ...], axis: int) -> Network:
    """The slices of x that begin at ``starts``, joined."""
    build = Build()
    x = build.input("x", *shape)
    sizes = tuple(dim // step for dim, step in zip(shape, steps, strict=True))
    parts = [build.layer(f"part{number}", Slice(start, sizes, steps), x) for number, start in enumerate(starts)]
    return build.network(build.layer("join", Concatenation(axis), *parts))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("last", [2, 3])
def test_phases_are_a_movement(axis: int, last: int) -> None:
    """As a focus of images writes them: rows and columns in one slice, either of them changing first."""
    starts = [(0, 0, a, b) if last == 3 else (0, 0, b, a) for a in range(2) for b in range(2)]
    network = fuse(phases(starts, (1, 1, 2, 2), (2, 3, 4, 6), axis), space_to_depth.RULE)
    assert kinds(network) == ["Shuffle", "Shuffle"]


def test_phases_of_one_axis() -> None:
    for axis in (0, 1):
        assert kinds(fuse(phases([(0, start) for start in range(3)], (1, 3), (2, 6), axis), space_to_depth.RULE)) == ["Shuffle", "Shuffle"]


def test_phases_that_are_no_movement() -> None:
    for starts, steps in (([(0, 0), (0, 0)], (1, 2)), ([(0, 0), (0, 1)], (1, 3)), ([(0, 1), (0, 0)], (1, 2))):
        assert len(fuse(phases(starts, steps, (2, 6), 1), space_to_depth.RULE).layers) == 3


# --- rows in a constant order ------------------------------------------------------------------------------------------

SHIFT = (space_to_depth.RULE, shuffle_shuffle.RULE, roll.RULE, gather_rows.RULE, no_op.RULE, shuffle_reshape.RULE)


def shifted(build: Build, x: str, shape: tuple, by: tuple[int, ...], name: str) -> str:
    """``x`` rolled by ``by[axis - 1]`` along each axis from 1 on, as torch exports it."""
    for axis, start in enumerate(by, 1):
        if start:
            parts = []
            for begin, end in ((start, shape[axis]), (0, start)):
                starts, sizes = [0] * len(shape), list(shape)
                starts[axis], sizes[axis] = begin, end - begin
                parts.append(build.layer(f"{name}{axis} from {begin}", Slice(tuple(starts), tuple(sizes), (1,) * len(shape)), x))
            x = build.layer(f"{name}{axis}", Concatenation(axis), *parts)
    return x


@pytest.mark.parametrize("batch", [2, BATCH], ids=str)
@pytest.mark.parametrize(("by", "back"), [((1, 2), (3, 4)), ((0, 2), (0, 4)), ((3, 0), (1, 0))])
def test_shifted_windows_are_one_gather(batch: object, by: tuple[int, int], back: tuple[int, int]) -> None:
    """Swin's: rolled, cut into windows; what is made of these is put together and rolled back."""
    build = Build()
    shape = (batch, 4, 6, 16)
    x = shifted(build, build.input("x", *shape), shape, by, "roll")
    x = build.layer("cut", Shuffle(None, (batch, 2, 2, 3, 2, 16), (0, 1, 3, 2, 4, 5)), x)
    x = build.layer("windows", Shuffle(reshape=(batch * 6, 4, 16)), x)  # type: ignore[operator]
    x = build.layer("work", Softmax(2), x)
    x = build.layer("whole", Shuffle(None, (batch, 2, 3, 2, 2, 16), (0, 1, 3, 2, 4, 5)), x)
    x = build.layer("image", Shuffle(reshape=shape), x)
    network = fuse(build.network(shifted(build, x, shape, back, "back")), *SHIFT, sizes=SIZES)
    assert [kind for kind in kinds(network) if kind != "Shuffle"] == ["Gather", "Softmax", "Gather"]
    assert all(layer.op.first is layer.op.second is None for layer in network.layers if isinstance(layer.op, Shuffle))


def test_rows_that_are_too_short_to_gather() -> None:
    build = Build()
    shape = (2, 4, 6, 16)
    x = shifted(build, build.input("x", *shape), shape, (1, 0), "roll")
    network = build.network(build.layer("channels", Shuffle((0, 3, 1, 2)), x))
    assert kinds(fuse(network, *SHIFT)) == ["Gather", "Shuffle"]


def test_what_is_no_roll() -> None:
    build = Build()
    x = build.input("x", 2, 6)
    assert refused(build.network(shifted(build, x, (2, 6), (2,), "roll")), roll.RULE).condition == "axis"
    build = Build()
    parts = [build.layer(f"part{start}", Slice((start, 0), (3, 6), (1, 1)), build.input("x", 6, 6) if start == 3 else "x") for start in (3, 1)]
    assert refused(build.network(build.layer("join", Concatenation(0), *parts)), roll.RULE).condition == "sequence"
