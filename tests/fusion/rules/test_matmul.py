"""Matrix products with scale, bias, activation and residual."""

from __future__ import annotations

import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Literal, apply
from fusion.ops import MatrixMultiply
from fusion.rules import matmul_pointwise, matmul_scale
from tests.fusion.fusing import fuse, kinds, refused
from tests.fusion.networks import X0, X1, Build

BATCH = symbol("batch")
RULES = (matmul_scale.RULE, matmul_pointwise.RULE)


def linear(*shape: object, transposed: bool = False) -> tuple[Build, str]:
    build = Build()
    w = build.constant("w", (8, 6) if transposed else (6, 8))
    return build, build.layer(
        "matmul", MatrixMultiply(transpose_b=transposed), build.input("x", *(shape or (2, 5, 6))), w
    )


def test_bias_activation_and_residual() -> None:
    build, y = linear(BATCH, 5, 6)
    y = build.pointwise("bias", "add", y, build.constant("b", (8,)))
    y = build.pointwise("gelu", "gelu", y)
    y = build.pointwise("residual", "add", build.input("r", BATCH, 5, 8), y)
    network = fuse(build.network(y), *RULES, sizes={"batch": 3})
    (layer,) = network.layers
    assert layer.name == "matmul + bias + gelu + residual"
    assert layer.inputs == ("x", "w", "r", "b") or layer.inputs == ("x", "w", "b", "r")


@pytest.mark.parametrize("transposed", [False, True])
def test_a_scale_goes_into_the_weights(transposed: bool) -> None:
    build, y = linear(transposed=transposed)
    y = build.pointwise("bias", "add", y, build.constant("b", (8,)))
    y = build.pointwise("scale", apply("mul", X0, Literal(0.125, DataType.FLOAT)), y)
    y = build.pointwise("columns", "mul", y, build.constant("c", (8,)))
    (layer,) = fuse(build.network(y), *RULES, tolerance=1e-4).layers
    assert layer.op.epilogue == apply("add", X0, X1)
    assert layer.fusions == ("matmul-pointwise", "matmul-scale")


def test_a_bias_alone_is_an_epilogue() -> None:
    build, y = linear()
    y = build.pointwise("bias", "add", y, build.constant("b", (8,)))
    assert fuse(build.network(y), *RULES).layers[0].fusions == ("matmul-pointwise",)


def test_a_scale_by_row_is_an_epilogue() -> None:
    build, y = linear()
    y = build.pointwise("rows", "mul", y, build.constant("r", (5, 1)))
    (layer,) = fuse(build.network(y), *RULES).layers
    assert layer.fusions == ("matmul-pointwise",)


def test_a_product_of_two_variables_is_not_scaled() -> None:
    build = Build()
    y = build.layer("matmul", MatrixMultiply(), build.input("a", 2, 4, 6), build.input("b", 2, 6, 5))
    y = build.pointwise("scale", apply("mul", X0, Literal(0.125, DataType.FLOAT)), y)
    assert refused(build.network(y), matmul_scale.RULE).condition == "weights"
    assert kinds(fuse(build.network(y), *RULES)) == ["MatrixMultiply"]


def test_a_sum_that_is_read_twice_stays() -> None:
    build, y = linear()
    z = build.pointwise("bias", "add", y, build.constant("b", (8,)))
    miss = refused(build.network(z, build.layer("again", MatrixMultiply(transpose_b=True), y, y)), *RULES)
    assert miss.condition == "shared"
    assert "again" in miss.detail
