"""Matrix products: MatMul, Gemm, their integer forms."""

from __future__ import annotations

from fusion.dtypes import DataType
from fusion.expression import Expression
from fusion.importer.builder import X0, X1, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.convolution import integer_product, widen
from fusion.importer.operators.quantization import quantize
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Determinant, MatrixMultiply


def product_of(b: Builder, left: Value, right: Value, op: MatrixMultiply | None = None) -> Value:
    """NumPy's matmul: vectors become matrices before, and lose that axis after."""
    op = op or MatrixMultiply()
    if left.rank == 0 or right.rank == 0:
        raise Unsupported("matrix product with a scalar")
    if left.rank >= 2 and right.rank >= 2:
        return b.layer(op, left, right)
    a = left if left.rank >= 2 else b.reshape(left, (1, left.shape[0]), "a")
    c = right if right.rank >= 2 else b.reshape(right, (right.shape[0], 1), "b")
    result = b.layer(op, a, c)
    shape = result.shape[:-2]
    shape += (result.shape[-2],) if left.rank >= 2 else ()
    shape += (result.shape[-1],) if right.rank >= 2 else ()
    return b.reshape(result, shape, "reshape")


@operator("MatMul")
def matmul(b: Builder, node: Node) -> Value:
    """Function bodies multiply types that differ (Attention's probabilities and values): the first is that of the result."""
    left, right = node.input(0), node.input(1)
    return product_of(b, left, b.convert(right, left.dtype, "type"))


@operator("Gemm")
def gemm(b: Builder, node: Node) -> Value:
    """``alpha * a b + beta * c``; scale and bias in the epilogue."""
    a, other, c = node.input(0), node.input(1), node.optional(2)
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    expression: Expression = X0 if alpha == 1.0 else call("mul", X0, literal(alpha, a.dtype))
    extras: tuple[Value, ...] = ()
    if c is not None and beta != 0.0:
        expression = call("add", expression, X1 if beta == 1.0 else call("mul", X1, literal(beta, c.dtype)))
        expression, extras = b.epilogue(expression, c)
    op = MatrixMultiply(bool(node.attr("transA", 0)), bool(node.attr("transB", 0)), expression)
    return b.layer(op, a, other, *extras)


@operator("MatMulInteger")
def matmul_integer(b: Builder, node: Node) -> Value:
    """Exact in int32: zero points are subtracted before the product."""
    a, other = node.input(0), node.input(1)
    zero_a, zero_b = node.optional(2), node.optional(3)
    if zero_a is not None and zero_a.rank == 1 and a.rank >= 2:
        zero_a = b.reshape(zero_a, (zero_a.shape[0], 1), "zero")  # one per row
    return integer_matmul(b, a, other, zero_a, zero_b)


def integer_matmul(
    b: Builder, a: Value, other: Value, zero_a: Value | None, zero_b: Value | None, op: MatrixMultiply | None = None
) -> Value:
    """The product of ``a - zero_a`` and ``other - zero_b``, exact in int32."""
    if a.rank >= 2 and other.rank >= 2:
        return integer_product(b, op or MatrixMultiply(), a, other, zero_a, zero_b)
    return product_of(b, widen(b, a, zero_a, "a32"), widen(b, other, zero_b, "b32"), op)


@operator("QLinearMatMul")
def qlinear_matmul(b: Builder, node: Node) -> Value:
    """The int32 product, scaled and rounded in the epilogue."""
    a, a_scale, a_zero, other, b_scale, b_zero, scale, zero = (node.input(index) for index in range(8))
    rows = a_scale.rank == 1 and a_scale.shape != (1,)
    if rows:
        a_scale = b.reshape(a_scale, (a_scale.shape[0], 1), "a_scale")
        a_zero = b.reshape(a_zero, (a_zero.shape[0], 1), "a_zero")
    ratio = b.pointwise(call("mul", X0, X1), a_scale, b_scale, suffix="scale")
    total = integer_matmul(b, a, other, a_zero, b_zero)
    real = b.convert(total, DataType.FLOAT, "float")
    real = b.pointwise(call("mul", X0, X1), real, b.convert(ratio, DataType.FLOAT, "ratio"), suffix="product")
    return quantize(b, real, b.convert(scale, DataType.FLOAT, "y_scale"), zero, zero.dtype)


@operator("Det")
def det(b: Builder, node: Node) -> Value:
    return b.layer(Determinant(), node.input(0))
