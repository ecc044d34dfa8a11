from __future__ import annotations

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Literal, apply
from fusion.ops import (
    Convolution,
    Cumulative,
    Fill,
    Gather,
    GridSample,
    MatrixMultiply,
    Range,
    Reduce,
    RoiAlign,
    Softmax,
)
from fusion.passes import FusionOptions, optimize
from fusion.precision import LayerTypes, to_half
from fusion.reference import run
from fusion.rules._expressions import subtrees
from fusion.validation import validate
from tests.fusion.networks import X0, X1, Build, assert_same, random_inputs

FLOAT, HALF, BF16, INT64 = DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT64
TOLERANCE = {HALF: 1e-2, BF16: 8e-2}


def number(value: float) -> Literal:
    return Literal(value, FLOAT)


def mlp() -> Build:
    build = Build()
    y = build.layer("fc1", MatrixMultiply(), build.input("x", 4, 16), build.constant("w1", (16, 8)))
    y = build.pointwise("bias", "add", y, build.constant("b1", (8,)))
    y = build.pointwise("scale", apply("mul", X0, number(0.25)), y)
    y = build.layer("softmax", Softmax(1), y)
    build.last = y  # type: ignore[attr-defined]
    return build


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_inside_narrow_outside_as_it_was(dtype: DataType, device: str) -> None:
    build = mlp()
    network = build.network(build.last)  # type: ignore[attr-defined]
    plain, warnings = to_half(network, dtype)
    validate(plain)
    assert warnings == ()
    assert_same(network, plain, TOLERANCE[dtype])
    result = optimize(network, FusionOptions(precision=dtype, device=device))
    validate(result.network)
    assert_same(network, result.network, TOLERANCE[dtype])
    product = next(layer for layer in result.network.layers if isinstance(layer.op, MatrixMultiply))
    assert {result.network.tensors[name].dtype for name in product.inputs} == {dtype}
    # The cast at the end is the softmax's own.
    assert [type(layer.op).__name__ for layer in result.network.layers] == ["Pointwise", "MatrixMultiply", "Softmax"]


def test_a_network_without_float32_is_left_alone() -> None:
    build = Build()
    network = build.network(build.pointwise("relu", "relu", build.input("x", 3, dtype=HALF)))
    assert to_half(network, HALF) == (network, ())


@pytest.mark.parametrize("dtype", [FLOAT, DataType.INT8])
def test_other_types_are_refused(dtype: DataType) -> None:
    build = mlp()
    with pytest.raises(ValueError, match=dtype.value):
        to_half(build.network(build.last), dtype)  # type: ignore[attr-defined]


def test_weights_that_do_not_fit_are_clamped_and_told() -> None:
    build = Build()
    w = build.constant("w", np.array([1.0, -1e6, 3e5], np.float32))
    network = build.network(build.pointwise("mul", "mul", build.input("x", 3), w))
    result, warnings = to_half(network, HALF)
    assert len(warnings) == 1
    assert "w" in warnings[0]
    assert "1e+06" in warnings[0]
    assert "65504" in warnings[0]
    value = next(iter(result.constants.values()))
    np.testing.assert_array_equal(value, np.array([1, -65504, 65504], np.float16))
    assert to_half(network, BF16)[1] == ()


def test_infinite_values_stay_infinite() -> None:
    build = Build()
    mask = build.constant("mask", np.array([0, -np.inf, 0], np.float32))
    y = build.pointwise("add", "add", build.input("x", 3), mask)
    network = build.network(y)
    for precise in (to_half(network, HALF)[0], optimize(network, FusionOptions(precision=HALF)).network):
        result = run(precise, {"x": np.array([np.inf, 1, 1e9], np.float32)})[y]
        np.testing.assert_array_equal(result, np.array([np.inf, -np.inf, 65504], np.float32))
    assert to_half(network, HALF)[1] == ()


def test_masks_made_from_integers_stay_finite() -> None:
    """(1 - mask) * -1e9, the mask of many language models: -infinity would give NaN where 0 * -infinity stands."""
    build = Build()
    mask = build.pointwise("cast", Convert(FLOAT, X0), build.input("mask", 2, 5, dtype=INT64))
    mask = build.pointwise("invert", apply("mul", apply("sub", number(1.0), X0), number(-1e9)), mask)
    y = build.layer("softmax", Softmax(1), build.pointwise("add", "add", build.input("x", 2, 5), mask))
    network = build.network(y)
    for precise in (to_half(network, HALF)[0], optimize(network, FusionOptions(precision=HALF)).network):
        outputs = run(precise, {**random_inputs(network), "mask": np.ones((2, 5), np.int64)})
        assert np.isfinite(outputs[y]).all()
        assert_same(network, precise, 1e-2)


def test_large_literals_stay_finite() -> None:
    build = Build()
    y = build.pointwise(
        "where", apply("where", X1, X0, number(-1e9)), build.input("x", 4), build.input("c", 4, dtype=DataType.BOOL)
    )
    network, _ = to_half(build.network(y), HALF)
    assert np.isfinite(run(network, {"x": np.zeros(4, np.float32), "c": np.zeros(4, bool)})[y]).all()


def test_index_arithmetic_stays_float32() -> None:
    """Positions beyond 2048 do not exist in float16."""
    build = Build()
    x = build.input("x", 1, dtype=INT64)
    y = build.pointwise("float", apply("add", Convert(FLOAT, X0), number(3000.0)), x)
    y = build.pointwise("int", Convert(INT64, apply("add", X0, number(1.0))), y)
    network = build.network(build.layer("gather", Gather(0), build.constant("table", (4096,)), y))
    result = optimize(network, FusionOptions(precision=HALF)).network
    assert_same(network, result, 1e-2)


@pytest.mark.parametrize("op", [Cumulative(1), Reduce("sum", (1,), True)])
def test_long_sums_are_exact(op: object) -> None:
    build = Build()
    network = build.network(build.layer("sum", op, build.input("x", 1, 4096)))  # type: ignore[arg-type]
    result = optimize(network, FusionOptions(precision=HALF)).network
    ones = {"x": np.full((1, 4096), 1.0, np.float32)}
    np.testing.assert_array_equal(next(iter(run(result, ones).values()))[0, -1], 4096)


@pytest.mark.parametrize("regions", [False, True])
def test_what_is_read_at_coordinates_is_narrow_and_these_are_not(regions: bool) -> None:
    build = Build()
    x = build.layer("conv", Convolution((1, 1), (1, 1), (1, 1), (1, 1)), build.input("x", 1, 3, 6, 7), build.constant("w", (4, 3, 3, 3)))
    if regions:
        places = [build.pointwise("boxes", apply("abs", X0), build.input("b", 5, 4)), build.constant("images", np.zeros(5, np.int64))]
        y = build.layer("read", RoiAlign((2, 2), 2), x, *places)
    else:
        y = build.layer("read", GridSample(), x, build.input("grid", 1, 4, 5, 2))
    network = build.network(build.pointwise("tanh", "tanh", y))
    half, _ = to_half(network, HALF)
    validate(half)
    (layer,) = [layer for layer in half.layers if layer.name == "read"]
    assert [half.tensors[name].dtype for name in (*layer.inputs[:2], *layer.outputs)] == [HALF, FLOAT, HALF]
    assert_same(network, half, TOLERANCE[HALF])
    kept, _ = to_half(network, HALF, LayerTypes((("read", FLOAT),)))
    assert _types(kept, "read") == [FLOAT]


def test_ranges_are_exact() -> None:
    build = Build()
    y = build.layer("range", Range(0.0, 1.0, 4096, FLOAT))
    network = build.network(
        build.pointwise("int", Convert(INT64, X0), y), build.pointwise("x", "neg", build.input("x0", 2))
    )
    assert_same(network, optimize(network, FusionOptions(precision=HALF)).network, 1e-2)


def test_fill_takes_the_type() -> None:
    build = Build()
    y = build.pointwise("add", "add", build.input("x", 3), build.layer("fill", Fill((3,), FLOAT, 0.5)))
    network, _ = to_half(build.network(y), HALF)
    validate(network)
    assert_same(build.network(y), network, 1e-2)


def test_an_output_that_is_also_read_inside() -> None:
    build = Build()
    y = build.pointwise("tanh", "tanh", build.input("x", 3, 4))
    z = build.layer("softmax", Softmax(1), y)
    network = build.network(y, z)
    for device in ("cpu", "cuda"):
        result = optimize(network, FusionOptions(precision=HALF, device=device)).network
        validate(result)
        assert_same(network, result, 1e-2)


def test_an_input_that_is_an_output() -> None:
    build = Build()
    x = build.input("x", 3, 4)
    network = build.network(build.pointwise("tanh", "tanh", x), x)
    result, _ = to_half(network, HALF)
    validate(result)
    assert_same(network, result, 1e-2)


def test_a_convolution_network_on_a_gpu() -> None:
    build = Build()
    y = build.layer(
        "conv",
        Convolution((1, 1), (1, 1), (1, 1), (1, 1)),
        build.input("x", 2, 3, 6, 6),
        build.constant("w", (4, 3, 3, 3)),
    )
    y = build.pointwise("relu", "relu", build.pointwise("bias", "add", y, build.constant("b", (4, 1, 1))))
    network = build.network(y)
    result = optimize(network, FusionOptions(precision=BF16, device="cuda")).network
    validate(result)
    assert_same(network, result, 5e-2)


def test_a_variance_as_a_difference_of_means() -> None:
    """mean(x ** 2) - mean(x) ** 2 of data with a large mean cancels to noise in float16."""
    build = Build()
    x = build.pointwise("shift", apply("add", X0, number(20.0)), build.input("x", 4, 256))
    mean = build.layer("mean", Reduce("mean", (1,), True), x)
    squares = build.layer("squares", Reduce("mean", (1,), True, apply("square", X0)), x)
    deviation = apply("rsqrt", apply("add", apply("sub", X1, apply("square", X0)), number(1e-5)))
    inverse = build.pointwise("inverse", deviation, mean, squares)
    network = build.network(build.pointwise("scale", "mul", build.pointwise("centre", "sub", x, mean), inverse))
    for precise in (to_half(network, HALF)[0], optimize(network, FusionOptions(precision=HALF)).network):
        validate(precise)
        assert_same(network, precise, 3e-2)  # x itself is rounded to 11 bits of 20


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_mean_that_a_product_reads_is_narrow_without_a_cast_of_its_own(device: str) -> None:
    build = Build()
    y = build.layer("mean", Reduce("mean", (2,), False), build.pointwise("tanh", "tanh", build.input("x", 2, 8, 40)))
    y = build.layer("fc", MatrixMultiply(), y, build.constant("w", (8, 4)))
    network = build.network(y)
    result = optimize(network, FusionOptions(precision=HALF, device=device)).network
    validate(result)
    assert_same(network, result, 1e-2)
    assert len(result.layers) <= 3


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("kind", ["max", "min", "prod", "logsumexp"])
def test_the_cast_of_an_input_may_be_a_prologue(dtype: DataType, kind: str) -> None:
    build = Build()
    network = build.network(build.layer("reduce", Reduce(kind, (1,), True), build.input("x", 3, 4)))
    result = optimize(network, FusionOptions(precision=dtype)).network
    assert len(result.layers) == 1
    assert_same(network, result, TOLERANCE[dtype])


def _types(network, *names: str) -> list[DataType]:
    """The type that the layer with each node computes in: of its first real input."""
    by_node = {node: layer for layer in network.layers for node in (layer.name, *layer.origins)}
    return [network.tensors[by_node[name].inputs[0]].dtype for name in names]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_layers_by_name(device: str) -> None:
    build = mlp()
    network = build.network(build.last)  # type: ignore[attr-defined]
    for types, wanted in (
        (LayerTypes((("softmax", FLOAT),)), [HALF, FLOAT]),
        (LayerTypes((("fc*", HALF),), FLOAT), [HALF, FLOAT]),
        (LayerTypes((("*", FLOAT), ("fc1", HALF))), [HALF, FLOAT]),
        (LayerTypes((("*", HALF),), FLOAT), [HALF, HALF]),
    ):
        result = optimize(network, FusionOptions(precision=HALF, device=device, layer_types=types))
        validate(result.network)
        assert _types(result.network, "fc1", "softmax") == wanted, types
        assert not [text for text in result.warnings if "layerPrecisions" in text]
        assert_same(network, result.network, TOLERANCE[HALF])


def test_names_that_fit_nothing_and_layers_that_cannot() -> None:
    build = Build()
    total = build.layer("sum", Cumulative(1), build.input("x", 4, 16))
    network = build.network(total)
    result = optimize(network, FusionOptions(precision=HALF, layer_types=LayerTypes((("sum", HALF), ("nobody", FLOAT)))))
    assert result.warnings == (
        "sum stays in FP32: FP16 would spoil exact integers or coordinates", "--layerPrecisions: no layer or node is named 'nobody'",
    )  # fmt: skip
    with pytest.raises(ValueError, match="--precisionConstraints=obey: sum cannot be computed in FP16"):
        optimize(network, FusionOptions(precision=HALF, layer_types=LayerTypes((("sum", HALF),), obey=True)))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [HALF, BF16])
def test_results_stored_in_another_type(device: str, dtype: DataType) -> None:
    build = mlp()
    network = build.network(build.layer("most", Reduce("max", (0,), False), build.last))  # type: ignore[attr-defined]

    def types(found) -> dict[str, tuple[DataType, DataType]]:
        by_node = {node: layer for layer in found.layers for node in (layer.name, *layer.origins)}
        return {one: tuple(found.tensors[name[0]].dtype for name in (by_node[one].inputs, by_node[one].outputs)) for one in ("fc1", "softmax")}

    # A narrow product whose result is kept wide, for a softmax that is computed wide; and a wide softmax stored narrow.
    wide = LayerTypes((("softmax", FLOAT),), outputs=(("fc1", FLOAT),))
    result = optimize(network, FusionOptions(precision=dtype, device=device, layer_types=wide))
    validate(result.network)
    assert types(result.network) == {"fc1": (dtype, FLOAT), "softmax": (FLOAT, dtype)}  # the reduction reads it narrow
    assert_same(network, result.network, TOLERANCE[dtype])

    narrow = LayerTypes(others=FLOAT, outputs=(("fc1", dtype),))
    result = optimize(network, FusionOptions(precision=dtype, device=device, layer_types=narrow))
    validate(result.network)
    inputs = random_inputs(network)
    exact, rounded = (run(one, inputs)[network.outputs[0]] for one in (network, result.network))
    error = np.abs(exact - rounded).max()
    assert 0 < error < TOLERANCE[dtype]  # one rounding, of what lies between the two layers
    assert all(kind.dtype in (FLOAT, dtype) for kind in result.network.tensors.values())


@pytest.mark.parametrize("residual", [False, True])
def test_scales_inside_epilogues_are_not_rounded(residual: bool) -> None:
    """A tenth is another number in float16, which would move every step; the bias beside it is narrow."""
    build = Build()
    y = build.layer("fc", MatrixMultiply(), build.input("x", 4, 16), build.constant("w", (16, 8)))
    y = build.pointwise("bias", "add", y, build.constant("b", (8,)))
    if residual:
        y = build.pointwise("sum", apply("add", X0, apply("mul", Convert(FLOAT, X1), number(0.1))), y, build.input("r", 4, 8, dtype=DataType.INT8))
    steps = apply("clip", apply("round", apply("div", X0, number(0.1))), number(-128.0), number(127.0))
    network = optimize(build.network(build.pointwise("q", Convert(DataType.INT8, steps), y)), FusionOptions(precision=HALF, device="cuda")).network
    validate(network)
    (product,) = (layer for layer in network.layers if isinstance(layer.op, MatrixMultiply))
    assert {network.tensors[name].dtype for name in product.inputs} == ({HALF, DataType.INT8} if residual else {HALF})
    literals = {one for one in subtrees(product.op.epilogue) if isinstance(one, Literal)}
    assert {one.value: one.dtype for one in literals}[0.1] is FLOAT


def test_products_of_8_bits_add_what_is_narrow() -> None:
    """A residual sum moves half the bytes; its scale beside it is still float32."""
    build = Build()
    x = build.layer("softmax", Softmax(1), build.input("x", 4, 8))
    q, w = build.input("q", 4, 16, dtype=DataType.INT8), build.constant("w", (np.arange(128).reshape(16, 8) % 5 - 2).astype(np.int8))
    y = build.pointwise("scale", apply("mul", Convert(FLOAT, X0), number(0.1)), build.layer("fc", MatrixMultiply(), q, w))
    network = optimize(build.network(build.layer("last", Softmax(1), build.pointwise("sum", "add", y, x))), FusionOptions(precision=HALF)).network
    validate(network)
    (product,) = (layer for layer in network.layers if isinstance(layer.op, MatrixMultiply))
    assert [network.tensors[name].dtype for name in product.inputs] == [DataType.INT8, DataType.INT8, HALF]
    assert Literal(0.1, FLOAT) in set(subtrees(product.op.epilogue))
    assert_same(build.network("last:out"), network, TOLERANCE[HALF])


def test_every_reader_sees_the_rounded_result() -> None:
    build = Build()
    x = build.pointwise("scale", apply("mul", X0, number(1 / 3)), build.input("x", 5, 7))
    network = build.network(x, build.layer("soft", Softmax(1), x))
    types = LayerTypes(others=FLOAT, outputs=(("scale", HALF),))
    narrowed, warnings = to_half(network, HALF, types)
    validate(narrowed)
    assert not warnings
    inputs = random_inputs(network)
    found = run(narrowed, inputs)[network.outputs[0]]
    third = (np.asarray(inputs["x"]) * np.float32(1 / 3)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, third)


def test_output_types_that_cannot_be() -> None:
    build = Build()
    index = build.pointwise("index", Convert(INT64, X0), build.input("x", 4))
    network = build.network(index)
    types = LayerTypes(outputs=(("index", HALF), ("nobody", FLOAT)))
    warnings = optimize(network, FusionOptions(precision=HALF, layer_types=types)).warnings
    assert "--layerOutputTypes: the results of index are not FP32 in the model and stay as they are" in warnings
    assert "--layerOutputTypes: no layer or node is named 'nobody'" in warnings
    with pytest.raises(ValueError, match="results of index are not FP32 in the model"):
        optimize(network, FusionOptions(precision=HALF, layer_types=LayerTypes(outputs=(("index", HALF),), obey=True)))
