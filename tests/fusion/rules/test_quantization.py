"""Quantised products, and scales that move through other layers; results stay bit-equal."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, apply
from fusion.graph import Limits
from fusion.network import Network
from fusion.ops import (
    Concatenation,
    Convolution,
    Deconvolution,
    Gather,
    MatrixMultiply,
    Padding,
    Pointwise,
    Pooling,
    Resize,
    Shuffle,
    Slice,
    Softmax,
)
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from fusion.rules import (
    dequantize_forward,
    dequantize_quantize,
    matmul_pointwise,
    pointwise,
    quantize_backward,
    quantized_convolution,
    quantized_matmul,
    shuffle_matmul,
)
from fusion.validation import validate
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, Build, assert_same

FLOAT, INT8, UINT8, INT32, FP8 = DataType.FLOAT, DataType.INT8, DataType.UINT8, DataType.INT32, DataType.FP8
EXACT = 1e-6
RANGE = {INT8: (-128.0, 127.0), UINT8: (0.0, 255.0), FP8: (-448.0, 448.0)}


def q_of(x: Expression, scale: float, zero: int = 0, dtype: DataType = INT8) -> Expression:
    steps = apply("div", x, Literal(scale, FLOAT))
    steps = apply("round", steps) if dtype.is_integer else steps
    steps = apply("add", steps, Literal(float(zero), FLOAT)) if zero else steps
    low, high = RANGE[dtype]
    return Convert(dtype, apply("clip", steps, Literal(low, FLOAT), Literal(high, FLOAT)))


def dq_of(x: Expression, scale: Expression, zero: int = 0) -> Expression:
    moved = apply("sub", Convert(INT32, x), Convert(INT32, Literal(zero, INT8))) if zero else x
    return apply("mul", Convert(FLOAT, moved), scale)


def quantize(build: Build, name: str, x: str, scale: float = 0.05, zero: int = 0, dtype: DataType = INT8) -> str:
    return build.pointwise(name, q_of(X0, scale, zero, dtype), x)


def dequantize(build: Build, name: str, x: str, scale: float = 0.05, zero: int = 0) -> str:
    return build.pointwise(name, dq_of(X0, Literal(scale, FLOAT), zero), x)


def weights(build: Build, name: str, shape: tuple[int, ...], axis: int | None = 0, dtype=np.int8, zero: int = 0) -> str:
    values = build.random.integers(-100, 100, shape).astype(dtype)
    w = build.constant(name, values)
    if axis is None:
        return dequantize(build, f"{name}_dq", w, 0.02, zero)
    full = [1] * len(shape)
    full[axis] = shape[axis]
    scale = build.constant(f"{name}_scale", (build.random.random(full) * 0.02 + 0.001).astype(np.float32))
    return build.pointwise(f"{name}_dq", dq_of(X0, X1, zero), w, scale)


def conv(groups: int = 1, pad: int = 1, kind=Convolution, **more):
    if kind is Deconvolution:
        return Deconvolution((1, 1), (pad, pad), (pad, pad), (1, 1), (0, 0), groups, **more)
    return Convolution((1, 1), (pad, pad), (pad, pad), (1, 1), groups, **more)


def activation(build: Build, *shape, zero: int = 0, dtype: DataType = INT8, scale: float = 0.05, name: str = "x") -> str:
    q = quantize(build, f"{name}_q", build.input(name, *shape), scale, zero, dtype)
    return dequantize(build, f"{name}_dq", q, scale, zero)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("zero", "dtype"), [(0, INT8), (-7, INT8), (7, UINT8)])
@pytest.mark.parametrize("kind", [Convolution, Deconvolution])
@pytest.mark.parametrize("pad", [0, 1])
def test_convolution(groups: int, zero: int, dtype: DataType, kind, pad: int) -> None:
    build = Build()
    x = activation(build, 2, 4, 6, 5, zero=zero, dtype=dtype)
    w = weights(build, "w", (4, 4 // groups, 3, 3), None if kind is Deconvolution else 0)
    y = build.layer("conv", conv(groups, pad, kind), x, w)
    result = fuse(build.network(y), quantized_convolution.RULE, tolerance=EXACT)
    layer = only(result, kind)
    assert [result.tensors[name].dtype for name in layer.inputs[:2]] == [dtype, INT8]
    assert kinds(result) == ["Pointwise", kind.__name__]  # Q stays; both DQ are gone


def test_the_whole_residual_block_is_one_layer() -> None:
    build = Build()
    x = activation(build, 2, 4, 6, 5)
    skip_q = build.input("skip", 2, 4, 6, 5, dtype=INT8)
    w, bias = weights(build, "w", (4, 4, 3, 3)), build.constant("bias", (4, 1, 1))
    y = build.layer("conv", conv(epilogue=apply("add", X0, X1)), x, w, bias)
    y = build.pointwise("add", "add", y, dequantize(build, "skip_dq", skip_q, 0.04))
    y = quantize(build, "y_q", build.pointwise("relu", "relu", y), 0.1)
    result = optimize(build.network(y))
    assert_same(build.network(y), result.network, EXACT)
    layer = only(result.network, Convolution)
    assert kinds(result.network) == ["Pointwise", "Convolution"]
    assert [result.network.tensors[name].dtype for name in (*layer.inputs[:2], *layer.outputs)] == [INT8] * 3
    assert INT8 in [result.network.tensors[name].dtype for name in layer.inputs[2:]]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("zero", [0, 5])
def test_matmul(transpose: bool, zero: int) -> None:
    build = Build()
    x = activation(build, 2, 3, 8, zero=zero)
    w = weights(build, "w", (6, 8) if transpose else (8, 6), 0 if transpose else 1)
    y = build.layer("product", MatrixMultiply(transpose_b=transpose), x, w)
    y = quantize(build, "y_q", build.pointwise("bias", "add", y, build.constant("b", (6,))), 0.2)
    result = fuse(build.network(y), quantized_matmul.RULE, matmul_pointwise.RULE, tolerance=EXACT)
    assert kinds(result) == ["Pointwise", "MatrixMultiply"]
    assert result.tensors[result.outputs[0]].dtype is INT8


def test_weights_behind_a_transpose() -> None:
    build = Build()
    x = activation(build, 3, 8)
    w = build.layer("turn", Shuffle(first=(1, 0)), weights(build, "w", (6, 8)))
    network = build.network(build.layer("product", MatrixMultiply(), x, w))
    result = fuse(network, quantized_matmul.RULE, tolerance=EXACT)
    assert kinds(result) == ["Pointwise", "MatrixMultiply"]
    assert result.fates["turn"].kind == "layer"


def test_two_activations() -> None:
    build = Build()
    a, b = activation(build, 2, 3, 8, name="a"), activation(build, 2, 8, 4, name="b", scale=0.03)
    result = fuse(build.network(build.layer("product", MatrixMultiply(), a, b)), quantized_matmul.RULE, tolerance=EXACT)
    assert [result.tensors[name].dtype for name in only(result, MatrixMultiply).inputs] == [INT8, INT8]


def test_on_a_gpu_rows_are_turned_along_the_depth() -> None:
    build = Build()
    a, b = activation(build, 2, 3, 8, name="a"), activation(build, 2, 8, 4, name="b", scale=0.03)
    network = build.network(build.layer("product", MatrixMultiply(), a, b))
    result = fuse(network, quantized_matmul.RULE, shuffle_matmul.RULE, limits=Limits("cuda"), tolerance=EXACT)
    assert kinds(result) == ["Pointwise", "Pointwise", "Shuffle", "MatrixMultiply"]
    assert only(result, MatrixMultiply).op.transpose_b
    assert refused(result, shuffle_matmul.RULE, limits=Limits("cuda")).condition == "data type"


def test_8_bit_floats() -> None:
    build = Build()
    x = activation(build, 3, 8, dtype=FP8)
    w = build.constant("w", build.random.standard_normal((8, 4)).astype(ml_dtypes.float8_e4m3fn))
    y = build.layer("product", MatrixMultiply(), x, dequantize(build, "w_dq", w, 0.5))
    result = fuse(build.network(y), quantized_matmul.RULE, tolerance=1e-5)
    assert [result.tensors[name].dtype for name in only(result, MatrixMultiply).inputs] == [FP8, FP8]


def test_other_readers_keep_their_dequantisation() -> None:
    build = Build()
    x = activation(build, 1, 4, 6, 6)
    y = build.layer("conv", conv(), x, weights(build, "w", (4, 4, 3, 3)))
    result = fuse(build.network(y, build.pointwise("exp", "exp", x)), quantized_convolution.RULE, tolerance=EXACT)
    assert result.tensors[only(result, Convolution).inputs[0]].dtype is INT8
    assert any(layer.name == "x_dq" for layer in result.layers)


def test_weights_of_uint8_lose_their_zero_point() -> None:
    build = Build()
    x = activation(build, 1, 4, 6, 6)
    w = build.constant("w", build.random.integers(100, 200, (4, 4, 3, 3)).astype(np.uint8))
    moved = apply("sub", Convert(INT32, X0), Literal(150, INT32))
    w = build.pointwise("w_dq", apply("mul", Convert(FLOAT, moved), Literal(0.01, FLOAT)), w)
    result = fuse(build.network(build.layer("conv", conv(), x, w)), quantized_convolution.RULE, tolerance=EXACT)
    assert result.tensors[only(result, Convolution).inputs[1]].dtype is INT8


def test_weights_of_4_bits_become_int8() -> None:
    build = Build()
    x = activation(build, 3, 8)
    w = build.constant("w", build.random.integers(-8, 8, (8, 4)).astype(ml_dtypes.int4))
    y = build.layer("product", MatrixMultiply(), x, dequantize(build, "w_dq", w, 0.1))
    result = fuse(build.network(y), quantized_matmul.RULE, tolerance=EXACT)
    assert [result.tensors[name].dtype for name in only(result, MatrixMultiply).inputs] == [INT8, INT8]


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.int4])
def test_nothing_is_dequantised_at_run_time_with_all_rules_off(dtype) -> None:  # noqa: ANN001
    build = Build()
    w = build.constant("w", build.random.integers(-8, 8, (8, 4)).astype(dtype))
    network = build.network(build.layer("product", MatrixMultiply(), build.input("x", 3, 8), dequantize(build, "w_dq", w, 0.1)))
    assert kinds(optimize(network, FusionOptions(disabled=("all",))).network) == ["MatrixMultiply"]


def near_misses() -> dict[str, tuple[Network, str]]:
    found = {}

    def case(condition: str, name: str, x, w, op=None) -> None:
        build = Build()
        found[name] = build.network(build.layer("product", op or conv(), x(build), w(build))), condition

    image, rows = lambda b: activation(b, 1, 4, 6, 6), lambda b: activation(b, 3, 8)
    plain = lambda b: weights(b, "w", (4, 4, 3, 3))
    case("activations", "real activations", lambda b: b.input("x", 1, 4, 6, 6), plain)
    case("weights", "real weights", image, lambda b: b.constant("w", (4, 4, 3, 3)))
    case("scale", "scales along the inputs", image, lambda b: weights(b, "w", (4, 4, 3, 3), 1))
    case("scale", "blocked scales", rows, lambda b: weights(b, "w", (8, 4), 0), MatrixMultiply())
    case("zero point", "weights too far from zero", image, lambda b: weights(b, "w", (4, 4, 3, 3), None, zero=90))
    case("zero point", "two activations with a zero point", lambda b: activation(b, 3, 8, zero=3),
         lambda b: activation(b, 8, 4, name="b"), MatrixMultiply())  # fmt: skip
    case("data type", "8-bit floats and integers", lambda b: activation(b, 1, 4, 6, 6, dtype=FP8), plain)

    def per_channel(build: Build) -> str:
        q = quantize(build, "x_q", build.input("x", 1, 4, 6, 6))
        scale = build.constant("s", np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1) / 50)
        return build.pointwise("x_dq", dq_of(X0, X1), q, scale)

    case("scale", "an activation with scales per channel", per_channel, plain)
    return found


@pytest.mark.parametrize(("network", "condition"), near_misses().values(), ids=near_misses().keys())
def test_near_misses(network: Network, condition: str) -> None:
    assert refused(network, quantized_convolution.RULE, quantized_matmul.RULE).condition == condition


def test_a_zero_point_at_a_border_of_unknown_place_is_refused() -> None:
    build = Build()
    x = activation(build, 1, 4, symbol("h"), 6, zero=3)
    y = build.layer("conv", conv(), x, weights(build, "w", (4, 4, 3, 3)))
    miss = refused(build.network(y), quantized_convolution.RULE, sizes={"h": 5})
    assert miss.condition == "zero point"


def test_weights_only_are_dequantised_at_build() -> None:
    build = Build()
    y = build.layer("product", MatrixMultiply(), build.input("x", 3, 8), weights(build, "w", (8, 4), 1))
    for disabled in ((), ("all",)):
        result = optimize(build.network(y), FusionOptions(disabled=disabled))
        assert_same(build.network(y), result.network)
        assert kinds(result.network) == ["MatrixMultiply"]
        assert result.network.tensors[only(result.network, MatrixMultiply).inputs[1]].dtype is FLOAT
    assert result.network.fates["w_dq"].kind == "folded"


# --- scales on their way ---------------------------------------------------------------------------------------------


def test_equal_scales_cancel() -> None:
    build = Build()
    x = activation(build, 2, 3)
    result = fuse(build.network(quantize(build, "again", x)), dequantize_quantize.RULE, tolerance=0)
    assert kinds(result) == ["Pointwise"]


@pytest.mark.parametrize(("scale", "zero", "dtype"), [(0.06, 0, INT8), (0.05, 1, INT8), (0.05, 0, UINT8)])
def test_other_scales_do_not_cancel(scale: float, zero: int, dtype: DataType) -> None:
    build = Build()
    y = quantize(build, "again", activation(build, 2, 3), scale, zero, dtype)
    assert refused(build.network(y), dequantize_quantize.RULE).condition in ("scale", "data type")
    assert kinds(fuse(build.network(y), dequantize_quantize.RULE, pointwise.RULE, tolerance=0)) == ["Pointwise"]


MOVERS = {
    "transpose": Shuffle(first=(0, 2, 3, 1)),
    "slice": Slice((0, 1, 0, 0), (1, 2, 4, 4), (1, 1, 1, 1)),
    "pool": Pooling("max", (2, 2), (2, 2), (0, 0), (1, 1), (1, 1)),
    "resize": Resize((1, 4, 8, 8), (1.0, 1.0, 2.0, 2.0), "nearest", "asymmetric", "floor"),
    "pad": Padding((0, 0, 1, 0), (0, 0, 0, 1)),
    "relu": Pointwise(apply("relu", X0)),
}


@pytest.mark.parametrize("zero", [0, -9])
@pytest.mark.parametrize("name", MOVERS)
def test_dequantisation_moves_forward(name: str, zero: int) -> None:
    build = Build()
    y = build.layer(name, MOVERS[name], activation(build, 1, 4, 4, 4, zero=zero))
    result = fuse(build.network(y), dequantize_forward.RULE, tolerance=0)
    moved = next(layer for layer in result.layers if layer.name == name)
    assert result.tensors[moved.outputs[0]].dtype is INT8
    assert result.layers[-1].name == "x_dq"


def test_an_embedding_table_stays_narrow() -> None:
    build = Build()
    table = weights(build, "table", (50, 8), None)
    y = build.layer("gather", Gather(0), table, build.input("i", 3, dtype=DataType.INT64))
    result = fuse(build.network(y), dequantize_forward.RULE, tolerance=0)
    assert kinds(result) == ["Gather", "Pointwise"]


@pytest.mark.parametrize(("other", "fits"), [(0.05, True), (0.04, False)])
def test_concatenation_wants_one_scale(other: float, fits: bool) -> None:
    build = Build()
    parts = activation(build, 1, 4, name="a"), activation(build, 1, 3, name="b", scale=other)
    network = build.network(build.layer("join", Concatenation(1), *parts))
    if not fits:
        assert refused(network, dequantize_forward.RULE).condition == "scale"
        return
    result = fuse(network, dequantize_forward.RULE, tolerance=0)
    assert kinds(result) == ["Pointwise", "Pointwise", "Concatenation", "Pointwise"]


def test_padding_with_another_value_is_refused() -> None:
    build = Build()
    y = build.layer("pad", Padding((0, 1), (0, 1), value=1.0), activation(build, 1, 4))
    assert refused(build.network(y), dequantize_forward.RULE).condition == "value"


@pytest.mark.parametrize("name", ["transpose", "slice", "pool", "resize"])
def test_quantisation_moves_backward(name: str) -> None:
    build = Build()
    y = quantize(build, "q", build.layer(name, MOVERS[name], build.input("x", 1, 4, 4, 4)))
    result = fuse(build.network(y), quantize_backward.RULE, tolerance=0)
    assert [layer.name for layer in result.layers] == ["q", name]


def test_quantisation_moves_before_a_concatenation() -> None:
    build = Build()
    y = build.layer("join", Concatenation(1), build.input("a", 1, 4), build.input("b", 1, 3))
    result = fuse(build.network(quantize(build, "q", y)), quantize_backward.RULE, tolerance=0)
    assert kinds(result) == ["Pointwise", "Pointwise", "Concatenation"]


def test_quantisation_stays_behind_a_tensor_that_others_read() -> None:
    build = Build()
    y = build.layer("turn", MOVERS["transpose"], build.input("x", 1, 4, 4, 4))
    assert refused(build.network(quantize(build, "q", y), y), quantize_backward.RULE).condition == "network output"


def test_softmax_average_and_sums_between_scales_stay_right() -> None:
    build = Build()
    x = activation(build, 1, 4, 6, 6)
    total = build.pointwise("sum", "add", x, activation(build, 1, 4, 6, 6, name="other", scale=0.03))
    total = dequantize(build, "sum_dq", quantize(build, "sum_q", total, 0.1), 0.1)
    mean = build.layer("mean", Pooling("average", (2, 2), (2, 2), (0, 0), (0, 0), (1, 1)), total)
    mean = dequantize(build, "mean_dq", quantize(build, "mean_q", mean, 0.02), 0.02)
    y = quantize(build, "y_q", build.layer("softmax", Softmax(1), mean), 1 / 255, -128)
    network = build.network(y)
    result = optimize(network)
    assert_same(network, result.network, 0)
    assert len(result.network.layers) < len(network.layers)


def test_half_precision_keeps_scales() -> None:
    build = Build()
    x = activation(build, 1, 4, 6, 6, scale=1e-6)  # a scale that float16 does not hold
    y = build.layer("conv", conv(), x, weights(build, "w", (4, 4, 3, 3)))
    network = build.network(quantize(build, "y_q", build.pointwise("relu", "relu", y), 1e-7))
    result = optimize(network, FusionOptions(precision=DataType.HALF)).network
    layer = only(result, Convolution)
    assert result.tensors[layer.outputs[0]].dtype is INT8
    x = {"x": (3e-5 * np.random.default_rng(0).standard_normal((1, 4, 6, 6))).astype(np.float32)}
    wanted = run(network, x)[network.outputs[0]]
    assert wanted.std() > 20
    np.testing.assert_array_equal(run(result, x)[network.outputs[0]], wanted)


STEPS = st.sampled_from(["conv", "depthwise", "pointwise conv", "relu", "pool", "average", "slice", "turn", "join", "sum", "scale", "requantise"])


@given(st.lists(STEPS, min_size=1, max_size=7), st.sampled_from([(0, INT8), (-3, INT8), (5, UINT8)]), st.sampled_from(["cpu", "cuda"]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_chain_stays_equal(steps: list[str], kind: tuple[int, DataType], device: str) -> None:
    """Layers with a Q/DQ pair behind most of them, as quantisers put them: the same results to the last step of the last Q."""
    zero, dtype = kind
    build = Build(len(steps))
    x = activation(build, 1, 4, 8, 8, zero=zero, dtype=dtype)
    earlier = x
    for number, step in enumerate(steps):
        name = f"{step}{number}"
        if step in ("conv", "depthwise", "pointwise conv"):
            groups, size = (4, 3) if step == "depthwise" else (1, 1 if "pointwise" in step else 3)
            w = weights(build, f"w{number}", (4, 4 // groups, size, size))
            x = build.layer(name, conv(groups, size // 2, epilogue=apply("add", X0, X1)), x, w, build.constant(f"b{number}", (4, 1, 1)))
        elif step in ("relu", "scale"):
            x = build.pointwise(name, apply("relu", X0) if step == "relu" else apply("mul", X0, Literal(0.7, FLOAT)), x)
        elif step in ("pool", "average"):
            x = build.layer(name, Pooling("max" if step == "pool" else "average", (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), x)
        elif step == "slice":
            x = build.layer(name, Slice((0, 2, 0, 0), (1, 2, 8, 8), (1, 1, 1, 1)), build.layer(f"{name}_all", Concatenation(1), x, x))
            x = build.layer(f"{name}_twice", Concatenation(1), x, x)
        elif step == "turn":
            x = build.layer(f"{name}_back", Shuffle(first=(0, 1, 3, 2)), build.layer(name, Shuffle(first=(0, 1, 3, 2)), x))
        elif step == "join":
            x = build.layer(f"{name}_cut", Slice((0, 1, 0, 0), (1, 4, 8, 8), (1, 1, 1, 1)), build.layer(name, Concatenation(1), x, earlier))
        elif step == "sum":
            x = build.pointwise(name, "add", x, earlier)
        if step not in ("turn", "scale"):
            q = quantize(build, f"{name}_q", x, 0.08, zero, dtype)
            x = dequantize(build, f"{name}_dq", q, 0.08, zero)
            earlier = x
    network = build.network(quantize(build, "y_q", x, 0.1, zero, dtype))
    result = optimize(network, FusionOptions(device=device)).network
    validate(result)
    assert set(result.fates) == set(network.fates)
    inputs = {"x": (4 * np.random.default_rng(0).standard_normal((1, 4, 8, 8))).astype(np.float32)}
    wanted, found = (run(one, inputs)[network.outputs[0]].astype(int) for one in (network, result))
    # Scales multiply integer sums, where the model sums scaled numbers: a value at an edge may round to the next step, and so on.
    assert np.abs(wanted - found).max() <= 1 + sum("conv" in step for step in steps)
    assert np.count_nonzero(wanted - found) <= wanted.size // 25
    if "scale" not in steps:  # behind which there is no Q
        assert all(result.tensors[layer.inputs[0]].dtype is dtype for layer in result.layers if isinstance(layer.op, Convolution))
