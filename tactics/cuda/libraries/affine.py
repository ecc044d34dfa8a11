"""Epilogues that libraries compute themselves: ``activation(scale * x + bias + residual)``."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fusion.expression import Apply, Convert, Expression, Literal, Operand
from fusion.ops import Convolution, MatrixMultiply
from tactics.cuda.gemm.common import sizes
from tactics.tactic import Workload

ACTIVATIONS = ("relu", "gelu_tanh")


@dataclass(frozen=True)
class Affine:
    """``activation(scale * x + bias + residual)``: ``bias`` (one value per last axis) and ``residual`` (of the output's shape) are
    input numbers of the layer, ``activation`` is one of ACTIVATIONS or empty."""

    scale: float = 1.0
    bias: int | None = None
    residual: int | None = None
    activation: str = ""


def affine_epilogue(workload: Workload) -> Affine | None:
    """The workload's epilogue in that form, or None when it is another. The output's type is floating point."""
    op = workload.op
    assert isinstance(op, MatrixMultiply | Convolution)
    expression: Expression = op.epilogue
    out = workload.outputs[0].dtype
    if not out.is_float:
        return None
    if isinstance(expression, Convert) and expression.dtype is out:
        expression = expression.argument
    activation = ""
    if isinstance(expression, Apply) and expression.function in ACTIVATIONS:
        activation, (expression,) = expression.function, expression.arguments
    scale, bias, residual = None, None, None
    for term in _terms(expression):
        scaled = _scaled(term)
        if scaled is not None:
            if scale is not None:
                return None
            scale = scaled
            continue
        number = _operand(term)
        if number is None or not 0 < number < 1 + len(workload.inputs) - op.arity:
            return None
        place = op.arity + number - 1
        kind = _kind(workload, place)
        if kind == "bias" and bias is None:
            bias = place
        elif kind == "residual" and residual is None:
            residual = place
        else:
            return None
    return None if scale is None else Affine(scale, bias, residual, activation)


def _terms(expression: Expression) -> list[Expression]:
    if isinstance(expression, Apply) and expression.function == "add":
        return [term for argument in expression.arguments for term in _terms(argument)]
    return [expression]


def _operand(expression: Expression) -> int | None:
    """The operand that the expression is, perhaps widened to float32."""
    if isinstance(expression, Convert) and expression.dtype.value == "float32":
        expression = expression.argument
    return expression.index if isinstance(expression, Operand) else None


def _scaled(expression: Expression) -> float | None:
    """The factor, where the expression is a factor times the layer's own result."""
    if _operand(expression) == 0:
        return 1.0
    if isinstance(expression, Apply) and expression.function == "mul":
        first, second = expression.arguments
        if isinstance(first, Literal):
            first, second = second, first
        if _operand(first) == 0 and isinstance(second, Literal):
            return float(second.value)
    return None


def _kind(workload: Workload, number: int) -> str:
    out, shape = sizes(workload, len(workload.inputs)), sizes(workload, number)
    if shape and shape[-1] == out[-1] and prod(shape[:-1]) == 1 and not workload.axis_varies(number, -1):
        return "bias"
    return "residual" if shape == out else ""
