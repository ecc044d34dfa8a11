"""1 / (1 + exp(-x)) -> sigmoid(x)."""

from __future__ import annotations

from fusion.expression import FUNCTIONS
from fusion.rules._recognise import Idiom, fixed, idiom_rule

_NEEDS = (frozenset({"exp"}), frozenset({"div", "reciprocal"}))
RULE = idiom_rule(
    "sigmoid", __doc__.splitlines()[0], Idiom(_NEEDS, fixed("sigmoid", FUNCTIONS["sigmoid"].numpy), least=3)
)
