"""Data movement kernels on the CPU harness against the operations' NumPy meaning; results must be equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply
from fusion.network import Op, TensorType
from fusion.ops import Concatenation, Expand, Padding, Reformat, Shuffle, Slice, Tile
from tactics.cuda.shuffle.moves import Concatenate, Movement, Pad, PadRows
from tactics.cuda.shuffle.reformat import StridedReformat, TiledReformat
from tactics.cuda.shuffle.shuffle import CopyShuffle, StridedShuffle, TiledShuffle, passes
from tactics.tactic import Copy, Refusal, Workload
from tests.harness.fiber import A100, H100, available, check, kernels

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")


def workload(op: Op, shapes: Sequence[tuple[int, ...]], dtype: DataType = DataType.INT32, varies: tuple = ()) -> Workload:
    types = tuple(TensorType(dtype, shape) for shape in shapes)
    return Workload(op, types, op.infer(types), varies=varies)


def run(tactic, op: Op, shapes: Sequence[tuple[int, ...]], dtype: DataType = DataType.INT32, configs: int = 6) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 100, shape).astype(dtype.numpy) for shape in shapes]
    check(tactic, workload(op, shapes, dtype), arrays, op.evaluate(arrays), configs=configs)


@pytest.mark.parametrize("dtype", [DataType.INT8, DataType.HALF, DataType.FLOAT, DataType.INT64], ids=lambda d: d.value)
@pytest.mark.parametrize("order", [(0, 2, 3, 1), (0, 3, 1, 2)])
def test_layout_transposes(order: tuple[int, ...], dtype: DataType) -> None:
    for tactic in (TiledShuffle(), StridedShuffle()):
        run(tactic, Shuffle(order), [(2, 5, 9, 67)], dtype, configs=2)


FLOAT, HALF, BF16, INT8 = DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT8
FINITE = apply("clip", Operand(0), Literal(-65504.0, FLOAT), Literal(65504.0, FLOAT))
STEPS = apply("clip", apply("round", apply("div", Operand(0), Literal(0.05, FLOAT))), Literal(-128.0, FLOAT), Literal(127.0, FLOAT))


def reformat(tactic, op: Reformat, source: DataType, shape: tuple[int, ...], varies: tuple = (), configs: int = 8) -> None:
    x = (np.random.default_rng(0).normal(size=shape) * 4).astype(source.numpy)
    if source.is_float and x.size > 4:
        x.reshape(-1)[:4] = np.inf, -np.inf, np.nan, 1e5 if source is not HALF else 6e4
    check(tactic, workload(op, [shape], source, varies), [x], op.evaluate([x]), configs=configs)


@pytest.mark.parametrize(
    ("source", "value"),
    [(FLOAT, Convert(HALF, FINITE)), (FLOAT, Convert(BF16, Operand(0))), (HALF, Convert(FLOAT, Operand(0))), (INT8, Convert(HALF, Operand(0))), (FLOAT, apply("relu", Operand(0)))],
    ids=["to half", "to bf16", "from half", "from int8", "one type"],
)  # fmt: skip
def test_transposes_that_convert(source: DataType, value: Expression) -> None:
    for order in ((0, 2, 3, 1), (0, 3, 1, 2)):
        for tactic in (TiledReformat(), StridedReformat()):
            reformat(tactic, Reformat(order, value), source, (2, 5, 9, 67), configs=1)
    # Accesses of several elements, tails on both sides.
    reformat(TiledReformat(), Reformat((0, 2, 3, 1), value), source, (2, 40, 6, 12), configs=8 if HALF in (source, Reformat((0,), value).infer([TensorType(source, (1,))])[0].dtype) else 1)
    reformat(StridedReformat(), Reformat((0, 2, 1, 3), value), source, (2, 3, 4, 16))


def test_a_transpose_that_quantises() -> None:
    x = np.random.default_rng(0).normal(size=(2, 12, 5, 8)).astype(np.float32) * 4
    op = Reformat((0, 2, 3, 1), Convert(INT8, STEPS))
    for tactic in (TiledReformat(), StridedReformat()):
        check(tactic, workload(op, [x.shape], FLOAT), [x], op.evaluate([x]), configs=2)


def test_a_conversion_of_a_varying_batch_keeps_its_kernel() -> None:
    varies = ((True, False, False, False),) * 2
    op = Reformat((0, 2, 3, 1), Convert(HALF, Operand(0)))
    for tactic in (TiledReformat(), StridedReformat()):
        found = [workload(op, [(batch, 6, 3, 10)], FLOAT, varies) for batch in (4, 1)]
        chosen = tactic.configs(found[0], H100)[0]
        assert len({kernels(tactic.plan(one, chosen, H100)) for one in found}) == 1
        reformat(tactic, op, FLOAT, (1, 6, 3, 10), varies, configs=1)


def test_the_last_axis_stays_in_vectors() -> None:
    op = Shuffle((0, 2, 1, 3))
    one = workload(op, [(2, 6, 4, 64)], DataType.HALF)
    assert dict(StridedShuffle().configs(one, A100)[0])["v"] == 8
    assert isinstance(TiledShuffle().supports(one, A100), Refusal)
    run(StridedShuffle(), op, [(2, 6, 4, 64)], DataType.HALF)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_any_transpose(data: st.DataObject, shape: list[int]) -> None:
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    one = workload(Shuffle(order), [tuple(shape)])
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    check(StridedShuffle(), one, [x], Shuffle(order).evaluate([x]), configs=1)
    if TiledShuffle().supports(one, A100) is None:
        check(TiledShuffle(), one, [x], Shuffle(order).evaluate([x]), configs=1)


@pytest.mark.parametrize(
    ("shape", "op", "count"),
    [
        ((2, 6, 20), Shuffle((0, 2, 1), (2, 4, 5, 6), (0, 3, 2, 1)), 1),
        ((4, 6, 10), Shuffle((2, 0, 1), (10, 24), (1, 0)), 1),
        ((4, 6, 10), Shuffle((1, 0, 2), (8, 30), (1, 0)), 2),
        ((2, 12, 8), Shuffle(None, (2, 3, 4, 8), (0, 2, 1, 3)), 1),
        ((2, 3, 4, 8), Shuffle((0, 2, 1, 3), (8, 24), None), 1),
        ((3, 5), Shuffle((1, 0), None, (1, 0)), 1),
    ],
)
def test_transpose_reshape_transpose(shape: tuple[int, ...], op: Shuffle, count: int) -> None:
    assert len(passes(workload(op, [shape]))) == count
    run(StridedShuffle(), op, [shape], configs=1)


def test_a_reshape_is_a_copy() -> None:
    one = workload(Shuffle(None, (6, 10), None), [(3, 20)])
    (step,) = CopyShuffle().plan(one, (), A100).steps
    assert isinstance(step, Copy) and step.size == 240
    run(CopyShuffle(), Shuffle((0, 1, 3, 2), None, None), [(3, 4, 5, 1)])
    assert isinstance(CopyShuffle().supports(workload(Shuffle((1, 0)), [(3, 4)]), A100), Refusal)
    # With sizes that vary, what is a copy at one size is none at another.
    varies = ((True, False), (False, True))
    assert isinstance(CopyShuffle().supports(workload(Shuffle((1, 0)), [(1, 4)], varies=varies), A100), Refusal)


def test_varying_batch_keeps_kernel_and_vectors() -> None:
    def at(batch: int, sequence: int) -> Workload:
        op = Shuffle(None, (batch, sequence, 12, 64), (0, 2, 1, 3))
        return workload(op, [(batch, sequence, 768)], DataType.HALF,
                        ((True, True, False), (True, False, True, False)))  # fmt: skip
    tactic = StridedShuffle()
    chosen = tactic.configs(at(8, 128), H100)[0]
    assert dict(chosen)["v"] == 8
    assert len({tactic.plan(at(*sizes), chosen, H100).steps[0].kernel for sizes in ((8, 128), (1, 1), (3, 77))}) == 1  # type: ignore[union-attr]
    for sizes in ((1, 1), (1, 5), (3, 1), (2, 7)):
        x = np.random.default_rng(0).normal(size=(*sizes, 768)).astype(np.float16)
        check(tactic, at(*sizes), [x], at(*sizes).op.evaluate([x]), configs=1)


def test_varying_sizes_in_tiles() -> None:
    def at(batch: int, rows: int) -> Workload:
        return workload(Shuffle((0, 2, 1)), [(batch, rows, 40)], DataType.INT32, ((True, True, False), (True, False, True)))
    tactic = TiledShuffle()
    chosen = tactic.configs(at(2, 9), A100)[0]
    kernels = set()
    for sizes in ((2, 9), (1, 1), (1, 33), (5, 1)):
        assert tactic.supports(at(*sizes), A100) is None
        kernels.add(tactic.plan(at(*sizes), chosen, A100).steps[0].kernel)  # type: ignore[union-attr]
        x = np.arange(np.prod(sizes) * 40, dtype=np.int32).reshape(*sizes, 40)
        check(tactic, at(*sizes), [x], at(*sizes).op.evaluate([x]), configs=1)
    assert len(kernels) == 1


@settings(max_examples=25, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_slices(data: st.DataObject, shape: list[int]) -> None:
    starts, sizes, steps = [], [], []
    for size in shape:
        step = data.draw(st.sampled_from([1, 2, -1, -2, 3]))
        start = data.draw(st.integers(0, size - 1))
        most = (size - 1 - start) // step + 1 if step > 0 else start // -step + 1
        starts.append(start)
        sizes.append(data.draw(st.integers(1, most)))
        steps.append(step)
    run(Movement(), Slice(tuple(starts), tuple(sizes), tuple(steps)), [tuple(shape)], configs=1)


def test_slices_in_vectors() -> None:
    op = Slice((0, 1, 16), (2, 2, 32), (1, 1, 1))
    assert dict(Movement().configs(workload(op, [(2, 4, 64)], DataType.HALF), A100)[0])["v"] == 8
    run(Movement(), op, [(2, 4, 64)], DataType.HALF)
    assert dict(Movement().configs(workload(Slice((0, 3), (2, 32), (1, 1)), [(2, 64)], DataType.HALF), A100)[0])["v"] == 1


def test_a_slice_of_a_varying_axis_keeps_its_kernel() -> None:
    def at(batch: int, rows: int) -> Workload:
        op = Slice((0, rows - 2, 0), (batch, 2, 8), (1, 1, 1))
        return workload(op, [(batch, rows, 8)], varies=((True, True, False), (True, False, False)))
    tactic = Movement()
    chosen = tactic.configs(at(3, 5), H100)[0]
    assert len({tactic.plan(at(*sizes), chosen, H100).steps[0].kernel for sizes in ((3, 5), (1, 2), (4, 2))}) == 1  # type: ignore[union-attr]
    x = np.arange(3 * 5 * 8, dtype=np.int32).reshape(3, 5, 8)
    check(tactic, at(3, 5), [x], at(3, 5).op.evaluate([x]), configs=1)


def test_a_slice_that_may_start_anywhere_moves_single_elements() -> None:
    """The last 4 of a row whose length varies: an access of 4 would be misaligned at other lengths."""
    op = Slice((4,), (4,), (1,))
    assert dict(Movement().configs(workload(op, [(8,)], varies=((True,), (False,))), H100)[0])["v"] == 1
    assert dict(Movement().configs(workload(op, [(8,)]), H100)[0])["v"] == 4


@pytest.mark.parametrize(("shape", "target"), [((1, 6), (4, 6)), ((3, 1, 8), (3, 5, 8)), ((7,), (2, 3, 7)), ((2, 1), (2, 9)), ((), (3, 2))])
def test_expand(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    run(Movement(), Expand(target), [shape])


@pytest.mark.parametrize(("shape", "repeats"), [((2, 3), (2, 2)), ((4, 1, 8), (1, 3, 1)), ((5,), (4,)), ((2, 2, 2), (1, 1, 5))])
def test_tile(shape: tuple[int, ...], repeats: tuple[int, ...]) -> None:
    run(Movement(), Tile(repeats), [shape], configs=1)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3), axis=st.integers(0, 2), inner=st.integers(1, 5))
def test_concatenation(lengths: list[int], axis: int, inner: int) -> None:
    shapes = [tuple(length if a == axis else size for a, size in enumerate((3, 4, inner))) for length in lengths]
    run(Concatenate(), Concatenation(axis), shapes, configs=1)


def test_concatenation_of_many_and_in_vectors() -> None:
    run(Concatenate(), Concatenation(1), [(3, 1 + i % 4) for i in range(35)], configs=1)
    shapes = [(2, 5, 64), (2, 5, 32), (2, 5, 8)]
    assert dict(Concatenate().configs(workload(Concatenation(2), shapes, DataType.HALF), A100)[0])["v"] == 8
    run(Concatenate(), Concatenation(2), shapes, DataType.HALF)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("dtype", [DataType.HALF, DataType.INT32], ids=lambda d: d.value)
def test_padding(mode: str, dtype: DataType) -> None:
    op = Padding((0, 2, 3), (0, 4, 1), mode, 7.0)
    run(Pad(), op, [(2, 5, 6)], dtype)
    run(Pad(), Padding((0, 1, 1, 0), (0, 2, 1, 0), mode, -1.0 if dtype is DataType.HALF else 3), [(2, 5, 6, 16)], dtype, configs=2)
    run(Pad(), Padding((-1, 9), (2, -2), mode, 7.0), [(4, 6)], dtype, configs=1)


@pytest.mark.parametrize(("dtype", "width", "held"), [(DataType.HALF, 37, 40), (DataType.INT8, 3, 16), (DataType.FLOAT, 91, 92), (DataType.DOUBLE, 1, 2)])
def test_rows_that_end_with_a_constant(dtype: DataType, width: int, held: int) -> None:
    run(PadRows(), Padding((0, 0, 0), (0, 0, held - width), value=3.0), [(5, 7, width)], dtype)
    assert [PadRows().supports(workload(op, [(5, 6, 12)], DataType.HALF), A100) is None for op in (
        Padding((0, 0, 0), (0, 0, 4)), Padding((0, 0, 0), (0, 0, 5)), Padding((0, 0, 4), (0, 0, 0)), Padding((0, 1, 0), (0, 0, 4)), Padding((0, 0, 0), (0, 0, 4), "edge"),
    )] == [True, False, False, False, False]  # fmt: skip


def test_an_empty_slice_of_sizes_that_vary_still_names_its_kernel() -> None:
    """Bounds that data tell may coincide in the guess that a build is made for, and not in the next inference."""
    flags = ((False, False), (True, True))
    of_size = [workload(Slice((0, 0), size, (1, 1)), ((20, 10),), varies=flags) for size in ((0, 0), (4, 3))]
    chosen = Movement().configs(of_size[0], H100)[0]
    empty, some = (Movement().plan(one, chosen, H100) for one in of_size)
    assert kernels(empty) == kernels(some) != ()
    assert Movement().plan(workload(Slice((0, 0), (0, 3), (1, 1)), ((20, 10),)), chosen, H100).steps == ()
