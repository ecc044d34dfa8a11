"""Layers that move, select, order or make data on the CPU."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.ops import (
    ArgReduce,
    Concatenation,
    Cumulative,
    Expand,
    Fill,
    Gather,
    GatherElements,
    GatherND,
    Padding,
    Range,
    Resize,
    ScatterElements,
    ScatterND,
    ShapeValue,
    Shuffle,
    Slice,
    Tile,
    TopK,
)

SETTINGS = settings(max_examples=30, deadline=None)
dim = st.integers(1, 5)
shapes = st.lists(dim, min_size=1, max_size=4)
seeds = st.integers(0, 99)
dtypes = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.bool_])


def values(seed: int, *shape: int, dtype=np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 4).astype(dtype)


@given(shapes, st.data(), dtypes, seeds)
@settings(max_examples=80, deadline=None)
def test_shuffle(check, shape, data, dtype, seed):
    x = values(seed, *shape, dtype=dtype)
    first = data.draw(st.none() | st.permutations(range(len(shape))))
    before = [shape[axis] for axis in first] if first else shape
    factors = data.draw(st.permutations([p for size in before for p in ((2, size // 2) if size % 2 == 0 else (size,))]))
    middle = data.draw(st.sampled_from([None, tuple(factors), (x.size,), (1, *before)]))
    rank = len(before if middle is None else middle)
    second = data.draw(st.none() | st.permutations(range(rank)))
    ran = check(Shuffle(tuple(first) if first else None, middle, tuple(second) if second else None), [x])
    assert len(ran) == 2  # the reference, and one of copy and twice


def test_shuffle_of_many_elements(check):
    x = values(0, 33, 70, 41)
    check(Shuffle((2, 0, 1)), [x])
    check(Shuffle((2, 0, 1), (41 * 33, 70), (1, 0)), [x])
    check(Shuffle((1, 0, 2), (33, 70, 41), (2, 1, 0)), [x])


@given(shapes, st.data(), dtypes, seeds)
@SETTINGS
def test_slice_and_padding(check, shape, data, dtype, seed):
    x = values(seed, *shape, dtype=dtype)
    cuts = []
    for size in shape:
        step, start = data.draw(st.sampled_from([-2, -1, 1, 3])), data.draw(st.integers(0, size - 1))
        cuts.append((start, (size - start + step - 1) // step if step > 0 else start // -step + 1, step))
    check(Slice(*(tuple(cut) for cut in zip(*cuts, strict=True))), [x])
    pads = st.integers(-1, 3)
    pre = tuple(data.draw(pads) if size > 2 else data.draw(st.integers(0, 1)) for size in shape)
    post = tuple(data.draw(pads) if size > 2 else data.draw(st.integers(0, 1)) for size in shape)
    for mode in ("constant", "edge", "reflect", "wrap"):
        if mode != "reflect" or all(size > 2 for size in shape):
            check(Padding(pre, post, mode, 1.0), [x], least=mode in ("constant", "edge"))


def test_large_padding(check):
    x = values(0, 3, 70, 301)
    for mode in ("constant", "edge", "reflect", "wrap"):
        assert "cpu.padding.copies" in check(Padding((0, 3, 5), (0, 4, 2), mode, -2.0), [x])


@given(shapes, st.data(), dtypes, seeds)
@SETTINGS
def test_concatenation_expand_tile(check, shape, data, dtype, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = values(seed, *shape, dtype=dtype)
    check(Concatenation(axis), [x, values(seed + 1, *shape[:axis], 3, *shape[axis + 1 :], dtype=dtype), x])
    check(Tile(tuple(data.draw(st.integers(1, 3)) for _ in shape)), [x])
    check(Expand((2, *shape)), [x])
    check(Expand(tuple(shape)), [x[tuple(slice(0, 1) for _ in shape)].copy()])


def test_sizes_other_than_those_it_was_built_for(check):
    """A reflection or a view that is possible at the size of the build may not be at another: then the reference runs."""
    first, tiny = values(0, 2, 9, 9), values(0, 2, 2, 1)
    op = Padding((0, 3, 3), (0, 3, 3), "reflect")
    check(op, [tiny], built=(op, [first]))
    check(Shuffle((1, 0, 2), (4, 1), (1, 0)), [tiny], built=(Shuffle((1, 0, 2), (18, 9), (1, 0)), [first]))
    check(Shuffle((2, 1, 0), (9, 18), (1, 0)), [first], built=(Shuffle((2, 1, 0), (1, 4), (1, 0)), [tiny]))


def test_large_copies(check):
    x = values(0, 50, 900)
    check(Concatenation(1), [x, x[:, :7].copy(), x])
    check(Tile((2, 3)), [x])
    check(Expand((3, 50, 900)), [x])


@given(shapes, shapes, st.data(), dtypes, st.sampled_from([np.int32, np.int64]), seeds)
@SETTINGS
def test_gather(check, shape, index_shape, data, dtype, index_type, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x, rng = values(seed, *shape, dtype=dtype), np.random.default_rng(seed)
    reach = shape[axis] + 1  # also out of range
    check(Gather(axis), [x, rng.integers(-reach, reach, index_shape).astype(index_type)])
    part = [size + 1 if i == axis else data.draw(st.integers(1, size)) for i, size in enumerate(shape)]
    check(GatherElements(axis), [x, rng.integers(-reach, reach, part).astype(index_type)])
    batch = data.draw(st.integers(0, len(shape) - 1))
    depth = data.draw(st.integers(1, len(shape) - batch))
    outer = (*shape[:batch], *((2, 3) if data.draw(st.booleans()) else ()))
    places = np.stack([rng.integers(-size, size, outer) for size in shape[batch : batch + depth]], -1)
    check(GatherND(batch), [x, places.astype(index_type)])


@given(shapes, st.data(), st.sampled_from(["none", "add", "mul", "min", "max"]), seeds)
@SETTINGS
def test_scatter(check, shape, data, reduction, seed):
    dtype = data.draw(st.sampled_from([np.float32, np.int64, np.float16]))
    axis = data.draw(st.integers(0, len(shape) - 1))
    x, rng = values(seed, *shape, dtype=dtype), np.random.default_rng(seed)
    part = [data.draw(st.integers(1, size)) for size in shape]
    least = 1 if dtype != np.float16 or reduction == "none" else 0
    indices = rng.integers(-shape[axis], shape[axis], part)
    check(ScatterElements(axis, reduction), [x, indices, values(seed + 1, *part, dtype=dtype)], least=least)
    depth = data.draw(st.integers(1, len(shape)))
    places = np.stack([rng.integers(-size, size, 4) for size in shape[:depth]], -1)
    check(ScatterND(reduction), [x, places, values(seed + 1, 4, *shape[depth:], dtype=dtype)], least=least)


@given(st.tuples(dim, dim, dim, dim), st.tuples(dim, dim), st.sampled_from(["nearest", "linear", "cubic"]),
       st.sampled_from(["half_pixel", "align_corners", "asymmetric"]), st.booleans(), seeds)  # fmt: skip
@SETTINGS
def test_resize(check, shape, factors, mode, coordinates, antialias, seed):
    end = (*shape[:2], *(max(1, size * factor // 2) for size, factor in zip(shape[2:], factors, strict=True)))
    for dtype in (np.float32, np.float16):
        op = Resize(end, (None,) * 4, mode, coordinates, antialias=antialias and mode != "nearest")
        check(op, [values(seed, *shape, dtype=dtype)])
    check(Resize((end[0] + 1, *end[1:]), (None,) * 4, "nearest"), [values(seed, *shape, dtype=np.int8)])


def test_resize_left_to_the_reference(check):
    op = Resize((3, 6), (None, None), "linear", "tf_crop_and_resize", roi=(0.2, -0.3, 1.3, 0.8), extrapolation=7.0)
    assert check(op, [values(0, 4, 5)], least=0) == {"cpu.reference.numpy"}


@given(
    shapes,
    st.data(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([np.float32, np.float16, np.int32, np.uint8]),
    seeds,
)
@SETTINGS
def test_order(check, shape, data, largest, flag, dtype, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = np.abs(values(seed, *shape)).astype(np.int32).astype(dtype)  # with ties
    check(TopK(data.draw(st.integers(1, shape[axis])), axis, largest), [x])
    least = 1 if dtype != np.float16 else 0
    check(ArgReduce(axis, data.draw(st.booleans()), largest, flag), [x], least=least)
    check(Cumulative(axis, "sum", flag, largest), [x])
    check(Cumulative(axis, "prod", largest, flag), [np.clip(x, 1, 2)])


def test_topk_on_several_threads(check):
    check(TopK(7, 1), [values(0, 40, 500)])
    check(TopK(7, 1, True, "softmax"), [values(0, 40, 500)])
    check(TopK(3, 1, True, "log"), [values(0, 4, 50, 3)])
    check(TopK(7, 0, False), [values(0, 500, 40)])


def test_topk_of_strange_floats(check):
    """Zeros of both signs are equal, NaN is the largest, infinities are in between."""
    x = np.array([[0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, np.nan, 3.0, -3.0, 0.0]], np.float32)
    for largest in (True, False):
        assert {"cpu.topk.partition", "cpu.topk.sort"} <= check(TopK(9, 1, largest), [x])
    check(TopK(2, 0), [np.array([5, 2**62, -1, 2**62], np.int64)])
    check(TopK(2, 0), [np.array([5, -(2**31), 2**31 - 1, 5], np.int32)])


@pytest.mark.parametrize(
    "op",
    [
        Fill((3, 4), DataType.BF16, 1.5), Fill((), DataType.BOOL, True), Fill((0, 2), DataType.FLOAT, 1.0),
        Range(5, -2, 4, DataType.INT64), Range(0.5, 0.25, 9, DataType.FLOAT), ShapeValue((3, 5), (2,), DataType.INT64),
    ],
)  # fmt: skip
def test_fills(check, op):
    check(op, [])


def test_empty_tensors(check):
    empty = np.zeros((0, 3), np.float32)
    check(Shuffle((1, 0)), [empty])
    check(Concatenation(0), [empty, np.ones((2, 3), np.float32)])
    check(Tile((2, 2)), [empty])
    assert math.prod(empty.shape) == 0
