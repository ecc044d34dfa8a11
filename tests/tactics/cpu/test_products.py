"""Convolution, deconvolution, matrix products and attention on the CPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Convert, Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import Attention, Convolution, Deconvolution, MatrixMultiply

SETTINGS = settings(max_examples=30, deadline=None)
small = st.integers(1, 3)
dim = st.integers(1, 6)
dtypes = st.sampled_from([np.float32, np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
EPILOGUES = {
    "none": Operand(0),
    "relu": apply("relu", Operand(0)),
    "bias": apply("add", Operand(0), Operand(1)),
    "residual": apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2))),
    "swish": apply("swish", apply("add", Operand(0), Operand(1)), Literal(1.0, DataType.FLOAT)),
    "compare": apply("greater", Operand(0), Operand(1)),
}
epilogues = st.sampled_from(sorted(EPILOGUES))


def values(rng: np.random.Generator, shape, dtype) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def extras(rng: np.random.Generator, name: str, channels: int, rank: int, shape, dtype) -> list[np.ndarray]:
    bias = values(rng, (channels, *(1,) * rank), dtype)
    return [] if name in ("none", "relu") else [bias] if name != "residual" else [bias, values(rng, shape, dtype)]


@st.composite
def convolutions(draw):
    rank = draw(small)
    per_axis = lambda strategy: tuple(draw(strategy) for _ in range(rank))
    window, stride, dilation = per_axis(small), per_axis(small), per_axis(st.integers(1, 2))
    pre, post = per_axis(st.integers(0, 3)), per_axis(st.integers(0, 3))
    spatial = tuple(
        max(1, dilation[i] * (window[i] - 1) + 1 - pre[i] - post[i]) + draw(st.integers(0, 8)) for i in range(rank)
    )
    return {
        "n": draw(small), "groups": draw(st.integers(1, 5)), "c": draw(small), "o": draw(small), "spatial": spatial,
        "window": window, "stride": stride, "dilation": dilation, "pre": pre, "post": post, "seed": draw(st.integers(0, 99)),
    }  # fmt: skip


@given(convolutions(), dtypes, epilogues, st.booleans())
@SETTINGS
def test_convolution(check, case, dtype, name, known):
    rng, groups = np.random.default_rng(case["seed"]), case["groups"]
    x = values(rng, (case["n"], case["c"] * groups, *case["spatial"]), dtype)
    w = values(rng, (case["o"] * groups, case["c"], *case["window"]), dtype)
    shape = case["stride"], case["pre"], case["post"], case["dilation"], groups
    (out,) = Convolution(*shape).infer([TensorType(DataType.FLOAT, x.shape), TensorType(DataType.FLOAT, w.shape)])
    more = extras(rng, name, len(w), len(case["window"]), out.shape, dtype)
    check(Convolution(*shape, epilogue=EPILOGUES[name]), [x, w, *more], {1} if known else ())


@given(
    small,
    small,
    st.integers(1, 9),
    dim,
    st.sampled_from([(7,), (9, 8), (3, 4, 5)]),
    dtypes,
    epilogues,
    st.integers(0, 99),
)
@SETTINGS
def test_convolution_of_one_place(check, n, groups, c, o, spatial, dtype, name, seed):
    rng, rank = np.random.default_rng(seed), len(spatial)
    x, w = values(rng, (n, groups * c, *spatial), dtype), values(rng, (groups * o, c, *(1,) * rank), dtype)
    op = Convolution((1,) * rank, (0,) * rank, (0,) * rank, (1,) * rank, groups, epilogue=EPILOGUES[name])
    more = extras(rng, name, groups * o, rank, (n, groups * o, *spatial), dtype)
    ran = check(op, [x, w, *more], {1})
    assert ("cpu.conv.matmul" if x.dtype.itemsize > 2 else "cpu.conv.im2col") in ran


@given(convolutions(), dtypes, st.booleans())
@SETTINGS
def test_depthwise(check, case, dtype, known):
    rng, channels = np.random.default_rng(case["seed"]), case["groups"] * 3
    x, w = (
        values(rng, (case["n"], channels, *case["spatial"]), dtype),
        values(rng, (channels, 1, *case["window"]), dtype),
    )
    bias = values(rng, (channels, *(1,) * len(case["window"])), dtype)
    op = Convolution(case["stride"], case["pre"], case["post"], case["dilation"], channels, epilogue=EPILOGUES["bias"])
    assert {"cpu.conv.depthwise", "cpu.reference.numpy"} <= check(op, [x, w, bias], {1} if known else ())


@given(small, st.integers(8, 20), st.integers(8, 20), st.integers(1, 40), st.integers(1, 19), st.tuples(*[st.integers(0, 2)] * 4),
       dtypes, epilogues, st.integers(0, 99))  # fmt: skip
@SETTINGS
def test_winograd(check, n, c, o, height, width, pads, dtype, name, seed):
    rng, pre, post = np.random.default_rng(seed), pads[:2], pads[2:]
    assume(height + pre[0] + post[0] >= 3 and width + pre[1] + post[1] >= 3)
    x, w = values(rng, (n, c, height, width), dtype), values(rng, (o, c, 3, 3), dtype)
    shape = (1, 1), pre, post, (1, 1)
    (out,) = Convolution(*shape).infer([TensorType(DataType.FLOAT, x.shape), TensorType(DataType.FLOAT, w.shape)])
    if name == "compare":
        name = "bias"  # a result within rounding of the bias may compare either way
    more = extras(rng, name, o, 2, out.shape, dtype)
    assert "cpu.conv.winograd" in check(Convolution(*shape, epilogue=EPILOGUES[name]), [x, w, *more], {1})


def test_large_images_are_cut(check):
    """Tiles in several runs of rows, on several threads, with more rows than one run holds."""
    rng = np.random.default_rng(0)
    x, bias = values(rng, (2, 16, 101, 90), np.float32), values(rng, (24, 1, 1), np.float32)
    w = values(rng, (24, 16, 3, 3), np.float32)
    op = Convolution((1, 1), (1, 1), (1, 1), (1, 1), epilogue=EPILOGUES["bias"])
    assert {"cpu.conv.winograd", "cpu.conv.im2col"} <= check(op, [x, w, bias], {1})
    check(
        Convolution((1, 1), (0, 0), (0, 0), (1, 1), epilogue=EPILOGUES["bias"]), [x, w[:, :, :1, :1].copy(), bias], {1}
    )
    check(Convolution((2, 2), (1, 1), (1, 1), (1, 1), 16), [x, values(rng, (16, 1, 3, 3), np.float32)], {1})


def test_sizes_other_than_those_it_was_built_for(check):
    """Batch and image sizes vary under one configuration."""
    rng = np.random.default_rng(0)
    w, bias = values(rng, (24, 16, 3, 3), np.float32), values(rng, (24, 1, 1), np.float32)
    op = Convolution((1, 1), (1, 1), (1, 1), (1, 1), epilogue=EPILOGUES["bias"])
    deep = Convolution((2, 2), (1, 1), (1, 1), (1, 1), 16)
    up = Deconvolution((2, 2), (1, 1), (1, 1), (1, 1), (0, 0))
    first = values(rng, (1, 16, 40, 33), np.float32)
    narrow, single = w[:, :, :1, :1].copy(), values(rng, (16, 1, 3, 3), np.float32)
    for shape in ((3, 16, 9, 50), (1, 16, 1, 1), (2, 16, 70, 5)):
        x = values(rng, shape, np.float32)
        check(op, [x, w, bias], {1}, built=(op, [first, w, bias]))
        check(deep, [x, single], {1}, built=(deep, [first, single]))
        one = Convolution((1, 1), (0, 0), (0, 0), (1, 1))
        check(one, [x, narrow], {1}, built=(one, [first, narrow]))
        check(
            up, [x, values(rng, (16, 5, 4, 4), np.float32)], built=(up, [first, values(rng, (16, 5, 4, 4), np.float32)])
        )
    a, b = values(rng, (2, 64, 20), np.float32), values(rng, (20, 200), np.float32)
    for batch, rows in ((1, 1), (5, 3), (1, 200)):
        op = MatrixMultiply()
        check(op, [values(rng, (batch, rows, 20), np.float32), b], {1}, built=(op, [a, b]))
        whole = values(rng, (batch, 3, rows, 8), np.float32)
        check(Attention(0.3, causal=True, softcap=0.5, window=4), [whole] * 3)
        check(Attention(0.3), [whole] * 3, built=(Attention(0.3), [values(rng, (1, 3, 90, 8), np.float32)] * 3))


def test_deconvolution_of_nothing_but_padding(check):
    """More is cut off in front than there are sums; zeros are added behind."""
    x, w = np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
    (found,) = Deconvolution((1, 1), (2, 0), (-3, 0), (1, 1), (0, 0)).evaluate([x, w])
    np.testing.assert_array_equal(found, np.zeros((1, 1, 2, 1)))
    check(Deconvolution((1, 1), (2, 0), (-3, 0), (1, 1), (0, 0), epilogue=EPILOGUES["bias"]), [x, w, np.float32([[[3]]])])


@given(convolutions(), st.data(), dtypes, epilogues, st.booleans())
@SETTINGS
def test_deconvolution(check, case, data, dtype, name, known):
    rng, groups = np.random.default_rng(case["seed"]), case["groups"]
    more = tuple(data.draw(st.integers(0, step - 1)) for step in case["stride"])
    x = values(rng, (case["n"], case["c"] * groups, *case["spatial"]), dtype)
    w = values(rng, (case["c"] * groups, case["o"], *case["window"]), dtype)
    pre, post = (tuple(pad - data.draw(st.integers(0, 3)) for pad in case[side]) for side in ("pre", "post"))  # negative: sums of nothing
    shape = case["stride"], pre, post, case["dilation"], more, groups
    (out,) = Deconvolution(*shape).infer([TensorType(DataType.FLOAT, x.shape), TensorType(DataType.FLOAT, w.shape)])
    assume(all(size > 0 for size in out.shape))
    operands = extras(rng, name, case["o"] * groups, len(case["window"]), out.shape, dtype)
    check(Deconvolution(*shape, epilogue=EPILOGUES[name]), [x, w, *operands], {1} if known else ())


@given(
    st.lists(small, max_size=2), st.sampled_from(["both", "a", "b"]), st.integers(1, 40), dim, st.integers(1, 150),
    st.booleans(), st.booleans(), dtypes, st.sampled_from(["none", "bias", "residual", "rows"]), st.sets(st.integers(0, 1)),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_matmul(check, batch, held, m, k, n, transpose_a, transpose_b, dtype, name, known, seed):
    rng = np.random.default_rng(seed)
    a_batch, b_batch = (batch if held != "b" else [1] * len(batch)), (batch if held != "a" else [])
    a = values(rng, (*a_batch, *((k, m) if transpose_a else (m, k))), dtype)
    b = values(rng, (*b_batch, *((n, k) if transpose_b else (k, n))), dtype)
    shape = (*np.broadcast_shapes(tuple(a_batch), tuple(b_batch)), m, n)
    epilogue = EPILOGUES["bias" if name == "rows" else name]
    row, whole = values(rng, (n,), dtype), values(rng, shape, dtype)
    more = {"none": [], "bias": [row], "residual": [row, whole], "rows": [values(rng, (m, 1), dtype)]}[name]
    check(MatrixMultiply(transpose_a, transpose_b, epilogue), [a, b, *more], known)


@given(
    small, small, st.integers(1, 2), dim, st.integers(0, 4), dim, dim, st.booleans(),
    st.sampled_from(["none", "add", "bool"]), dtypes, st.permutations("bhsd"), st.permutations("bhsd"), st.integers(0, 99),
)  # fmt: skip
@SETTINGS
def test_attention(check, b, heads, share, s, more, d, e, causal, masked, dtype, inner, outer, seed):
    rng, t = np.random.default_rng(seed), s + more
    layouts = ("".join(outer), "".join(inner), "bhsd", "".join(inner))
    q, k, v = (
        values(rng, shape, dtype).transpose(["bhsd".index(axis) for axis in layout])
        for shape, layout in zip([(b, heads * share, s, d), (b, heads, t, d), (b, heads, t, e)], layouts, strict=False)
    )
    inputs = [np.ascontiguousarray(array) for array in (q, k, v)]
    if masked == "add":
        inputs.append(values(rng, (b, 1, s, t), dtype))
    elif masked == "bool":
        inputs.append(rng.random((1, heads * share, s, t)) < 0.6)  # may hide a whole row
    check(Attention(0.5, causal, masked != "none", layouts), inputs)


def quantized_values(rng: np.random.Generator, shape, dtype) -> np.ndarray:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return rng.integers(low, high + 1, shape).astype(dtype)


def requantized(out: DataType):
    """``saturate(round((sum - correction) * scale / 0.05))``: what follows a quantised product."""
    real = apply("mul", Convert(DataType.FLOAT, apply("sub", Operand(0), Operand(1))), Operand(2))
    if out is DataType.FLOAT:
        return real
    steps = apply("round", apply("div", real, Literal(0.05, DataType.FLOAT)))
    low, high = (-128.0, 127.0) if out is DataType.INT8 else (0.0, 255.0)
    return Convert(out, apply("clip", steps, Literal(low, DataType.FLOAT), Literal(high, DataType.FLOAT)))


quantized_outputs = st.sampled_from([DataType.INT32, DataType.FLOAT, DataType.INT8, DataType.UINT8])


@given(convolutions(), st.sampled_from([np.int8, np.uint8]), quantized_outputs, st.booleans())
@settings(max_examples=15, deadline=None)
def test_quantized_convolution(check, case, dtype, out, known):
    rng, groups = np.random.default_rng(case["seed"]), case["groups"]
    x = quantized_values(rng, (case["n"], case["c"] * groups, *case["spatial"]), dtype)
    w = quantized_values(rng, (case["o"] * groups, case["c"], *case["window"]), np.int8)
    channels = (len(w), *(1,) * len(case["window"]))
    operands = [rng.integers(-500, 500, channels).astype(np.int32), (rng.random(channels) / 500).astype(np.float32)]
    epilogue = Operand(0) if out is DataType.INT32 else requantized(out)
    op = Convolution(case["stride"], case["pre"], case["post"], case["dilation"], groups, epilogue=epilogue)
    assume(all(size > 0 for size in op.infer([TensorType(DataType(a.dtype.name), a.shape) for a in (x, w, *operands)])[0].shape))
    check(op, [x, w, *(operands if out is not DataType.INT32 else [])], {1} if known else (), 1)


@given(st.sampled_from([7, 600, 3000]), st.sampled_from([np.int8, np.uint8]), quantized_outputs, st.booleans(), st.booleans())
@settings(max_examples=15, deadline=None)
def test_quantized_matmul(check, depth, dtype, out, known, transpose):
    """Long sums leave float32, and stay exact."""
    rng = np.random.default_rng(depth)
    a, b = quantized_values(rng, (2, 5, depth), dtype), quantized_values(rng, (11, depth) if transpose else (depth, 11), np.int8)
    operands = [rng.integers(-500, 500, 11).astype(np.int32), (rng.random(11) / 50000).astype(np.float32)]
    op = MatrixMultiply(transpose_b=transpose, epilogue=Operand(0) if out is DataType.INT32 else requantized(out))
    check(op, [a, b, *(operands if out is not DataType.INT32 else [])], {1} if known else (), 1)


@given(st.integers(1, 3), st.integers(1, 40), st.sampled_from([np.int8, np.uint8]), quantized_outputs)
@settings(max_examples=10, deadline=None)
def test_quantized_deconvolution(check, groups, channels, dtype, out):
    rng = np.random.default_rng(channels)
    x, w = quantized_values(rng, (2, groups * channels, 5, 4), dtype), quantized_values(rng, (groups * channels, 3, 3, 3), np.int8)
    shape = (groups * 3, 1, 1)
    operands = [rng.integers(-500, 500, shape).astype(np.int32), (rng.random(shape) / 5000).astype(np.float32)]
    epilogue = Operand(0) if out is DataType.INT32 else requantized(out)
    op = Deconvolution((2, 2), (1, 0), (1, 1), (1, 1), (0, 0), groups, epilogue=epilogue)
    check(op, [x, w, *(operands if out is not DataType.INT32 else [])], {1}, 1)
