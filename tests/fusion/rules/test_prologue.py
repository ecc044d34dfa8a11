"""A function of the left operand joins the product that reads it, where the builder tries that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, apply
from fusion.graph import Limits
from fusion.network import Network
from fusion.ops import Convolution, MatrixMultiply, PrologueProduct
from fusion.ops.epilogue import IDENTITY
from fusion.passes import FusionOptions, optimize
from fusion.rules import convolution_prologue, convolution_sum, matmul_pointwise, matmul_prologue
from fusion.serial import from_json, to_json
from tests.fusion.fusing import assert_same, fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, X2, Build

HALF, INT8 = DataType.HALF, DataType.INT8
SCALED = apply("relu", apply("add", apply("mul", X0, X1), X2))
POINTWISE = Convolution((1, 1), (0, 0), (0, 0), (1, 1))


def product(function: object = "exp", *operands: tuple | str, x: tuple = (3, 5, 8), op: MatrixMultiply = MatrixMultiply(), shared: str = "",  # noqa: B008
            dtype: DataType = DataType.FLOAT, weights: tuple = (8, 4)) -> Network:  # fmt: skip
    """``function`` of x and operands (shapes of constants, or names of inputs of x's shape) times weights, then a bias."""
    build = Build()
    names = [build.input("x", *x, dtype=dtype)]
    for number, one in enumerate(operands):
        names.append(build.input(one, *x, dtype=dtype) if isinstance(one, str) else build.constant(f"c{number}", build.random.standard_normal(one).astype(dtype.numpy)))
    middle = build.pointwise("f", function, *names)  # type: ignore[arg-type]
    right = middle if shared == "square" else build.constant("w", build.random.standard_normal(weights).astype(build.tensors[middle].dtype.numpy))
    y = build.layer("matmul", op, middle, right)
    y = build.pointwise("bias", "add", y, build.constant("b", build.random.standard_normal(build.tensors[y].shape[-1:]).astype(dtype.numpy)))
    more = {"output": (middle,), "reader": (build.pointwise("other", "tanh", middle),) if shared == "reader" else ()}.get(shared, ())
    return build.network(y, *more)


@pytest.mark.parametrize(
    "function, operands, extra",
    [("exp", (), 0), (SCALED, ((8,), (1, 1, 8)), 2), ("mul", ("z",), 1), ("add", ((3, 1, 8),), 1), (apply("mul", X0, apply("sigmoid", X0)), (), 0)],
)
def test_a_function_of_each_element_joins_the_product(function: object, operands: tuple, extra: int) -> None:
    (layer,) = fuse(product(function, *operands), matmul_pointwise.RULE, matmul_prologue.RULE).layers
    assert layer.name == "f + matmul + bias"
    op = layer.op
    assert isinstance(op, PrologueProduct) and op.operands == extra and op.product.epilogue != IDENTITY
    assert len(layer.inputs) == 3 + extra and layer.inputs[:2] == ("x", "w")
    assert from_json(to_json(layer)) == layer


def test_the_first_operand_is_read_whatever_its_place() -> None:
    build = Build()
    middle = build.pointwise("f", "sub", build.constant("c", (5, 8)), build.input("x", 5, 8))
    network = build.network(build.layer("matmul", MatrixMultiply(), middle, build.constant("w", (8, 4))))
    (layer,) = fuse(network, matmul_prologue.RULE).layers
    assert layer.inputs == ("x", "w", "c") and layer.op.prologue == apply("sub", X1, X0)


def test_sizes_known_at_run_time() -> None:
    rows = symbol("rows")
    build = Build()
    middle = build.pointwise("f", SCALED, build.input("x", rows, 8), build.constant("s", (8,)), build.input("z", rows, 1))
    network = build.network(build.layer("matmul", MatrixMultiply(), middle, build.constant("w", (8, 4))))
    assert kinds(fuse(network, matmul_prologue.RULE, sizes={"rows": 5})) == ["PrologueProduct"]


@pytest.mark.parametrize(
    "options, condition",
    [
        ({"shared": "output"}, "network output"),
        ({"shared": "reader"}, "shared"),
        ({"shared": "square", "x": (8, 8)}, "operands"),
        ({"function": "add", "operands": ((5, 3, 5, 8),), "x": (3, 5, 8)}, "shape"),  # every batch of x is read five times
        ({"function": "add", "operands": ((8, 5),), "x": (8, 1), "weights": (5, 4)}, "shape"),  # x has no axis along the depth
        ({"op": MatrixMultiply(True), "weights": (5, 4)}, "layout"),
        ({"dtype": HALF}, "precision"),
        ({"function": Convert(DataType.FLOAT, X0), "dtype": DataType.DOUBLE}, "precision"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_near_misses(options: dict, condition: str) -> None:
    function, operands = options.pop("function", "exp"), options.pop("operands", ())
    if isinstance(function, Convert):
        build = Build()
        middle = build.pointwise("f", function, build.input("x", 5, 8, dtype=options["dtype"]))
        network = build.network(build.layer("matmul", MatrixMultiply(), middle, build.constant("w", (8, 4))))
    else:
        network = product(function, *operands, **options)
    assert refused(network, matmul_prologue.RULE).condition == condition


def test_a_constant_operand_is_read_as_it_is() -> None:
    build = Build()
    middle = build.pointwise("f", "mul", build.constant("c", (5, 8)), build.input("z", 8))
    network = build.network(build.layer("matmul", MatrixMultiply(), middle, build.constant("w", (8, 4))))
    assert refused(network, matmul_prologue.RULE).condition == "shape"


def test_dequantisation_is_no_prologue() -> None:
    build = Build()
    middle = build.pointwise("dequantize", apply("mul", Convert(DataType.FLOAT, X0), X1), build.input("q", 5, 8, dtype=INT8), build.constant("scale", np.float32([0.1])))
    network = build.network(build.layer("matmul", MatrixMultiply(), middle, build.constant("w", (8, 4))))
    miss = refused(network, matmul_prologue.RULE)
    assert miss.condition == "precision" and "INT8" in miss.detail


def image(op: Convolution = POINTWISE, function: object = SCALED, operands: tuple = ((6, 1, 1), (1, 6, 1, 1)), weights: tuple = (4, 6, 1, 1), constant: bool = True,
          dtype: DataType = DataType.FLOAT) -> Network:  # fmt: skip
    """A residual block before its sum: a normalisation and a ReLU, a convolution; what comes in is added to the result."""
    build = Build()
    x = build.input("x", 2, 6, 5, 7, dtype=dtype)
    constants = [build.constant(f"c{number}", build.random.standard_normal(shape).astype(dtype.numpy)) for number, shape in enumerate(operands)]
    y = build.pointwise("bn + relu", function, x, *constants)  # type: ignore[arg-type]
    w = build.constant("w", build.random.standard_normal(weights).astype(dtype.numpy)) if constant else build.input("w", *weights)
    y = build.layer("conv", op, y, w)
    if build.tensors[y].shape == (2, 6, 5, 7):
        y = build.pointwise("sum", "add", y, x)
    return build.network(y)


def test_pre_activation() -> None:
    (layer,) = fuse(image(weights=(6, 6, 1, 1)), convolution_sum.RULE, convolution_prologue.RULE).layers
    assert layer.inputs == ("x", "w", "x", "c0", "c1") and layer.op.product.epilogue == apply("add", X0, X1)


@pytest.mark.parametrize(
    "options, condition",
    [
        ({"op": replace(POINTWISE, stride=(2, 1))}, "window"),
        ({"op": replace(POINTWISE, post_padding=(0, 1))}, "window"),
        ({"op": replace(POINTWISE, groups=2), "weights": (4, 3, 1, 1)}, "groups"),
        ({"weights": (4, 6, 3, 1)}, "window"),
        ({"constant": False}, "weights"),
        ({"dtype": HALF}, "precision"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_near_misses_of_convolutions(options: dict, condition: str) -> None:
    assert refused(image(**options), convolution_prologue.RULE).condition == condition


def test_on_a_gpu_channels_last() -> None:
    network = image(dtype=HALF)
    assert refused(network, convolution_prologue.RULE, limits=Limits("cuda")).condition == "layout"
    options = FusionOptions(device="cuda", enabled=("convolution-prologue",))
    result = optimize(network, options).network
    layer = only(result, PrologueProduct)
    assert layer.op.product.channels_last and {result.tensors[name].shape[-1] for name in layer.inputs[2:]} == {6}
    assert_same(network, result, 2e-2)


@pytest.mark.parametrize(("window", "fuses"), [(1, True), (3, False)])
def test_on_a_gpu_with_a_stride_and_padding(window: int, fuses: bool) -> None:
    network = image(replace(POINTWISE, stride=(2, 1), pre_padding=(1, 0), post_padding=(1, 1)), apply("exp", X0), (), (4, 6, window, window), dtype=HALF)  # padding is not exp(0)
    result = optimize(network, FusionOptions(device="cuda", enabled=("convolution-prologue",)))
    assert ("PrologueProduct" in kinds(result.network)) == fuses
    assert fuses or any(miss.rule == "convolution-prologue" and miss.condition == "window" for near in result.misses.values() for miss in near)
    assert_same(network, result.network, 3e-2)


def test_only_where_asked_for() -> None:
    assert "PrologueProduct" not in kinds(optimize(product()).network)
    assert "PrologueProduct" in kinds(optimize(product(), FusionOptions(enabled=("matmul-prologue",))).network)
