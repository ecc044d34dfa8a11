"""Layers that move, select, order or make data, against ONNX Runtime (or ONNX's reference evaluator)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fusion.dtypes import DataType
from fusion.network import TensorType
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
    Pointwise,
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


def values(seed: int, *shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check(op, inputs, *want: np.ndarray) -> None:
    """Equal values, inferred types, C order, and memory that is not the input's."""
    got = op.evaluate(inputs)
    inferred = op.infer([TensorType(DataType(array.dtype.name), array.shape) for array in inputs])
    assert [(t.dtype.numpy, t.shape) for t in inferred] == [(array.dtype, array.shape) for array in got]
    for result, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(result, expected)
        assert not any(np.shares_memory(result, array) for array in inputs)


@given(shapes, st.data(), seeds)
@SETTINGS
def test_shuffle(shape, data, seed):
    first = tuple(data.draw(st.permutations(range(len(shape)))))
    x = values(seed, *shape)
    middle = x.transpose(first)
    check(Shuffle(first, (x.size, 1), (1, 0)), [x], middle.reshape(x.size, 1).T)
    check(Shuffle(first), [x], middle)


@given(shapes, st.data(), seeds)
@SETTINGS
def test_slice(oracle, shape, data, seed):
    x = values(seed, *shape)
    starts, ends, steps, sizes = [], [], [], []
    for size in shape:
        step = data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
        start = data.draw(st.integers(0, size - 1))
        count = data.draw(st.integers(0, (size - start + step - 1) // step if step > 0 else start // -step + 1))
        end = start + count * step
        starts.append(start), steps.append(step), sizes.append(count)
        ends.append(end if end >= 0 else -(10**9))
    ints = [np.array(v, np.int64) for v in (starts, ends, range(len(shape)), steps)]
    (want,) = oracle("Slice", [x, *ints])
    check(Slice(tuple(starts), tuple(sizes), tuple(steps)), [x], want)


@given(shapes, st.data(), seeds, st.sampled_from(["constant", "reflect", "edge", "wrap"]))
@SETTINGS
def test_padding(oracle, shape, data, seed, mode):
    x = values(seed, *shape)
    reach = (lambda size: size - 1) if mode == "reflect" else lambda size: size
    pre = [data.draw(st.integers(0, reach(size))) for size in shape]
    post = [data.draw(st.integers(0, reach(size))) for size in shape]
    (want,) = oracle("Pad", [x, np.array(pre + post, np.int64), np.array(1.5, np.float32)], mode=mode)
    check(Padding(tuple(pre), tuple(post), mode, 1.5), [x], want)


def test_padding_negative_cuts():
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    check(Padding((0, -1), (1, 1), "constant", 9.0), [x], [[1, 2, 9], [4, 5, 9], [9, 9, 9]])
    check(Padding((0, -1), (0, 1), "edge"), [x], [[1, 2, 2], [4, 5, 5]])


@given(shapes, st.data(), seeds)
@SETTINGS
def test_concatenation_expand_tile(oracle, shape, data, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = values(seed, *shape)
    y = values(seed + 1, *shape[:axis], 2, *shape[axis + 1 :])
    check(Concatenation(axis), [x, y], oracle("Concat", [x, y], axis=axis)[0])
    repeats = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    check(Tile(repeats), [x], oracle("Tile", [x, np.array(repeats)])[0])
    narrow = values(seed, *(1 if data.draw(st.booleans()) else size for size in shape))
    target = (2, *shape)
    check(Expand(target), [narrow], oracle("Expand", [narrow, np.array(target)])[0])


@given(shapes, shapes, st.data(), seeds)
@SETTINGS
def test_gather(oracle, shape, index_shape, data, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = values(seed, *shape)
    rng = np.random.default_rng(seed)
    indices = rng.integers(-shape[axis], shape[axis], index_shape)
    check(Gather(axis), [x, indices], oracle("Gather", [x, indices], axis=axis)[0])
    elements = rng.integers(
        -shape[axis], shape[axis], [size + 2 if i == axis else size for i, size in enumerate(shape)]
    )
    check(GatherElements(axis), [x, elements], oracle("GatherElements", [x, elements], axis=axis)[0])


def test_gather_clamps_what_is_out_of_range():
    x = np.arange(3.0, dtype=np.float32)
    check(Gather(0), [x, np.array([-9, 9])], [0, 2])


@given(st.lists(dim, min_size=2, max_size=4), st.data(), seeds)
@SETTINGS
def test_gather_scatter_nd(oracle, shape, data, seed):
    batch = data.draw(st.integers(0, len(shape) - 1))
    depth = data.draw(st.integers(1, len(shape) - batch))
    rng = np.random.default_rng(seed)
    outer = (*shape[:batch], 3)
    bounds = shape[batch : batch + depth]
    indices = np.stack([rng.integers(-size, size, outer) for size in bounds], -1)
    x = values(seed, *shape)
    check(GatherND(batch), [x, indices], oracle("GatherND", [x, indices], batch_dims=batch)[0])
    # unique places, so that writes do not depend on their order
    depth = data.draw(st.integers(1, len(shape)))
    places = rng.permutation(int(np.prod(shape[:depth])))[:3]
    unique = np.stack(np.unravel_index(places, shape[:depth]), -1)
    updates = values(seed + 1, len(places), *shape[depth:])
    for reduction in ("none", "add", "mul", "min", "max"):
        (want,) = oracle("ScatterND", [x, unique, updates], reduction=reduction)
        check(ScatterND(reduction), [x, unique, updates], want)


@given(shapes, st.data(), seeds, st.sampled_from(["none", "add", "mul", "min", "max"]))
@SETTINGS
def test_scatter_elements(oracle, shape, data, seed, reduction):
    axis = data.draw(st.integers(0, len(shape) - 1))
    rng = np.random.default_rng(seed)
    x = values(seed, *shape)
    count = data.draw(st.integers(1, shape[axis]))
    part = [count if i == axis else data.draw(st.integers(1, size)) for i, size in enumerate(shape)]
    indices = np.argsort(rng.random([shape[i] if i == axis else n for i, n in enumerate(part)]), axis)
    indices = np.take(indices, range(count), axis)  # unique along the axis
    indices = np.where(rng.random(indices.shape) < 0.5, indices, indices - shape[axis])
    updates = values(seed + 1, *part)
    (want,) = oracle("ScatterElements", [x, indices, updates], axis=axis, reduction=reduction)
    check(ScatterElements(axis, reduction), [x, indices, updates], want)


def test_scatter_repeated_places():
    x, indices = np.zeros((1, 3), np.float16), np.array([[1, 1, 1]])
    updates = np.array([[1, 2, 4]], np.float16)
    check(ScatterElements(1, "add"), [x, indices, updates], [[0, 7, 0]])
    check(ScatterElements(1), [x, indices, updates], [[0, 4, 0]])


@given(shapes, st.data(), st.booleans(), seeds)
@SETTINGS
def test_topk(oracle, shape, data, largest, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    k = data.draw(st.integers(1, shape[axis]))
    x = np.random.default_rng(seed).integers(-3, 3, shape).astype(data.draw(st.sampled_from([np.float32, np.int32])))
    want = oracle("TopK", [x, np.array([k])], outputs=2, axis=axis, largest=int(largest))
    check(TopK(k, axis, largest), [x], *want)


def test_topk_unsigned_and_bfloat16():
    check(TopK(2, 0), [np.array([3, 250, 0, 250], np.uint8)], [250, 250], [1, 3])
    check(TopK(2, 0, False), [np.array([3, -1, 0], ml_dtypes.bfloat16)], np.array([-1, 0], ml_dtypes.bfloat16), [1, 2])


@given(shapes, st.data(), st.booleans(), st.booleans(), st.booleans(), seeds)
@SETTINGS
def test_arg_reduce(oracle, shape, data, largest, last, keep, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = np.random.default_rng(seed).integers(-2, 2, shape).astype(np.float32)
    (want,) = oracle("ArgMax" if largest else "ArgMin", [x], axis=axis, keepdims=int(keep), select_last_index=int(last))
    check(ArgReduce(axis, keep, largest, last), [x], want)


@given(shapes, st.data(), st.booleans(), st.booleans(), seeds)
@SETTINGS
def test_cumulative(oracle, shape, data, exclusive, reverse, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = np.random.default_rng(seed).integers(-9, 9, shape).astype(data.draw(st.sampled_from([np.float32, np.int32])))
    (want,) = oracle("CumSum", [x, np.array(axis)], exclusive=int(exclusive), reverse=int(reverse))
    check(Cumulative(axis, "sum", exclusive, reverse), [x], want)


def test_cumulative_product():
    x = np.array([2, 3, 4], np.float32)
    check(Cumulative(0, "prod"), [x], [2, 6, 24])
    check(Cumulative(0, "prod", True, True), [x], [12, 4, 1])


COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]


@st.composite
def resizes(draw):
    shape = tuple(draw(st.integers(1, 7)) for _ in range(2))
    scales = tuple(draw(st.sampled_from([0.3, 0.5, 0.75, 1.0, 1.4, 2.0, 2.7])) for _ in range(2))
    by_scale = draw(st.booleans())
    out = tuple(max(1, int(np.floor(size * scale))) for size, scale in zip(shape, scales, strict=True))
    by_scale = by_scale and all(int(np.floor(a * s)) >= 1 for a, s in zip(shape, scales, strict=True))
    return shape, out, scales if by_scale else (None, None), draw(seeds)


def reference_resize(x, op, **attributes):
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    by_scale = op.scales[0] is not None
    node = helper.make_node("Resize", ["x", "roi", "scales" if by_scale else "", "" if by_scale else "sizes"], ["y"],
                            mode=op.mode, coordinate_transformation_mode=op.coordinates, nearest_mode=op.rounding,
                            cubic_coeff_a=op.cubic_a, exclude_outside=int(op.exclude_outside),
                            antialias=int(op.antialias), extrapolation_value=op.extrapolation)  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g",
        [info("x", TensorProto.FLOAT, None), info("roi", TensorProto.FLOAT, None),
         info("scales", TensorProto.DOUBLE, None) if by_scale else info("sizes", TensorProto.INT64, None)],
        [info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    feeds = {"x": x, "roi": np.array(op.roi, np.float32)}
    feeds |= {"scales": np.array(op.scales)} if by_scale else {"sizes": np.array(op.shape)}
    return ReferenceEvaluator(model).run(None, feeds)[0]


@given(resizes(), st.sampled_from(["nearest", "linear", "cubic"]), st.sampled_from(COORDINATES), st.booleans(),
       st.booleans(), st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_resize(case, mode, coordinates, antialias, exclude, rounding):
    shape, out, scales, seed = case
    if coordinates == "pytorch_half_pixel" and 1 in out:
        return  # the evaluator reads at -0.5 there, the operator's text says 0
    if coordinates == "half_pixel_symmetric":
        return  # the evaluator loses a pixel to rounding there: test_symmetric_resize asks ONNX Runtime instead
    x = values(seed, *shape)
    plain = mode == "nearest"
    op = Resize(out, scales, mode, coordinates, rounding, -0.6, exclude and not plain, antialias and not plain)
    (got,) = op.evaluate([x])
    want = reference_resize(x, op)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@given(resizes(), st.sampled_from(["linear", "cubic"]), st.sampled_from(["half_pixel", "align_corners", "asymmetric"]))
@SETTINGS
def test_resize_like_onnx_runtime(oracle, case, mode, coordinates):
    shape, out, _, seed = case
    x = values(seed, 1, 2, *shape)
    sizes = np.array((1, 2, *out), np.int64)
    (want,) = oracle("Resize", [x, None, None, sizes], mode=mode, coordinate_transformation_mode=coordinates)
    (got,) = Resize((1, 2, *out), (None,) * 4, mode, coordinates).evaluate([x])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
def test_resize_crop_and_extrapolate(mode):
    x = values(0, 4, 5)
    op = Resize((3, 6), (None, None), mode, "tf_crop_and_resize", roi=(0.2, -0.3, 1.3, 0.8), extrapolation=7.0)
    np.testing.assert_allclose(op.evaluate([x])[0], reference_resize(x, op), rtol=1e-4, atol=1e-5)


def test_fills():
    check(Fill((2, 1), DataType.HALF, 0.5), [], np.full((2, 1), 0.5, np.float16))
    check(Range(3, -2, 4, DataType.INT64), [], [3, 1, -1, -3])
    check(Range(0.5, 0.25, 3, DataType.BF16), [], np.array([0.5, 0.75, 1.0], ml_dtypes.bfloat16))
    check(ShapeValue((7, 2), (2,), DataType.INT64), [], [7, 2])
    check(ShapeValue((7,), (), DataType.INT32), [], 7)


def test_pointwise_fills_the_broadcast_shape():
    from fusion.expression import Operand, apply

    x, y = values(0, 2, 1), values(1, 1, 3)
    check(Pointwise(apply("add", Operand(0), Operand(1))), [x, y], x + y)
    check(Pointwise(apply("relu", Operand(0))), [x, y], np.broadcast_to(np.maximum(x, 0), (2, 3)))


@pytest.mark.parametrize(("size", "scale"), [(7, 0.5), (5, 0.5), (6, 0.5), (3, 2.5), (4, 1.75)])
@pytest.mark.parametrize(("mode", "rounding"), [("nearest", "round_prefer_floor"), ("nearest", "round_prefer_ceil"), ("linear", "floor")])
def test_symmetric_resize(size: int, scale: float, mode: str, rounding: str) -> None:
    out = int(size * scale)
    node = helper.make_node(
        "Resize", ["x", "", "scales"], ["y"], mode=mode, coordinate_transformation_mode="half_pixel_symmetric",
        nearest_mode=rounding,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("scales", TensorProto.FLOAT, [2], [1.0, scale])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    x = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    (got,) = Resize((2, out), (1.0, scale), mode, "half_pixel_symmetric", rounding).evaluate([x])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
