"""0.5 * x * (1 + erf(x / sqrt(2))) -> gelu(x); 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))) -> gelu_tanh(x)."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.dtypes import DataType
from fusion.expression import FUNCTIONS, Expression
from fusion.rules._local import expression_rule
from fusion.rules._recognise import Idiom, fixed, nearly, recognise

_ERF = Idiom((frozenset({"erf"}), frozenset({"mul", "div"})), fixed("gelu", FUNCTIONS["gelu"].numpy), least=4)
_TANH = Idiom(
    (frozenset({"tanh"}), frozenset({"mul", "div"})), fixed("gelu_tanh", FUNCTIONS["gelu_tanh"].numpy), least=6
)


def _improve(expression: Expression, types: Sequence[DataType]) -> Expression:
    return recognise(recognise(expression, types, _ERF), types, _TANH)


RULE = expression_rule(
    "gelu",
    __doc__.splitlines()[0],
    _improve,
    pieces=(frozenset({"erf", "tanh"}), frozenset({"mul", "div"})),
    nearly=lambda expression, types: nearly("gelu", expression, types, _ERF, _TANH),
)
