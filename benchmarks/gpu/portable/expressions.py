"""Epilogues of the cases: operand 0 is the sum, the others follow the weights."""

from __future__ import annotations

from fusion.dtypes import DataType
from fusion.expression import Expression, Literal, Operand, apply

ADD = apply("add", Operand(0), Operand(1))
RELU_BIAS = apply("relu", ADD)
RELU_BIAS_RESIDUAL = apply("relu", apply("add", ADD, Operand(2)))


def activated(activation: str) -> Expression:
    """``activation``, "swish" or "relu", of the sum and its bias."""
    return apply("swish", ADD, Literal(1.0, DataType.FLOAT)) if activation == "swish" else RELU_BIAS
