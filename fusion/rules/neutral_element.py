"""x + 0, x - 0, x * 1, x / 1, x ** 1, max(x, -inf), min(x, inf), x and true, x or false -> x; also double negation, functions of literals, and literals put last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Apply, Expression, Literal, evaluate, type_of
from fusion.rules._expressions import literal_value, order_arguments
from fusion.rules._local import bottom_up, expression_rule

_RIGHT_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1, "pow": 1, "max": -np.inf, "min": np.inf}
_NEUTRAL_TRUTH = {"and": True, "or": False}


def _improve(expression: Expression, types: Sequence[DataType]) -> Expression:
    def step(node: Expression) -> Expression:
        if not isinstance(node, Apply):
            return node
        if all(isinstance(child, Literal) for child in node.arguments):
            value = evaluate(node, [])
            # Types narrower than float32 are computed wide inside an expression; a literal would round them early.
            return node if _narrow(node, types) else Literal(literal_value(np.asarray(value)), type_of(node, types))
        if node.function == "neg" and isinstance(node.arguments[0], Apply) and node.arguments[0].function == "neg":
            return node.arguments[0].arguments[0]
        if len(node.arguments) != 2:
            return node
        first, second = node.arguments
        if node.function in _NEUTRAL_TRUTH:
            other = next((b for a, b in ((first, second), (second, first)) if isinstance(a, Literal) and a.value == _NEUTRAL_TRUTH[node.function]), None)
            return node if other is None else other
        if isinstance(second, Literal) and node.function in _RIGHT_NEUTRAL:
            return first if second.value == _RIGHT_NEUTRAL[node.function] else node
        if isinstance(first, Literal) and node.function in ("add", "mul", "max", "min"):
            if first.value == _RIGHT_NEUTRAL[node.function] and type_of(second, types) is first.dtype:
                return second
        return node

    return bottom_up(order_arguments(expression, types), step)


def _narrow(node: Expression, types: Sequence[DataType]) -> bool:
    dtype = type_of(node, types)
    return dtype.is_float and dtype.itemsize < 4


RULE = expression_rule("neutral-element", __doc__.splitlines()[0], _improve, canonical=True)
