"""x ** 2, x * x -> square(x); x ** 0.5 -> sqrt(x); 1 / sqrt(x), x ** -0.5 -> rsqrt(x); 1 / x -> reciprocal(x); max(x, 0) -> relu(x)."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.dtypes import DataType
from fusion.expression import Apply, Expression, Literal, apply, type_of
from fusion.rules._local import bottom_up, expression_rule

_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


def _improve(expression: Expression, types: Sequence[DataType]) -> Expression:
    def step(node: Expression) -> Expression:
        if not isinstance(node, Apply) or not type_of(node, types).is_float:
            return node
        first, second = (*node.arguments, None)[:2]
        if node.function == "pow" and isinstance(second, Literal) and second.value in _POWERS:
            return apply(_POWERS[second.value], first)
        if node.function == "mul" and first == second:
            return apply("square", first)
        if node.function == "max" and isinstance(second, Literal) and second.value == 0:
            return apply("relu", first)
        if node.function == "div" and isinstance(first, Literal) and first.value == 1 and second is not None:
            if type_of(second, types) is first.dtype:
                node = apply("reciprocal", second)
        if node.function in ("reciprocal", "sqrt") and isinstance(node.arguments[0], Apply):
            inner = node.arguments[0]
            if {node.function, inner.function} == {"reciprocal", "sqrt"}:
                return apply("rsqrt", inner.arguments[0])
        return node

    return bottom_up(expression, step)


RULE = expression_rule("power", __doc__.splitlines()[0], _improve, canonical=True)
