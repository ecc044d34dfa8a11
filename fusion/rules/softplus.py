"""log(1 + exp(x)) -> softplus(x), which does not overflow where exp(x) does."""

from __future__ import annotations

from fusion.expression import FUNCTIONS
from fusion.rules._recognise import Idiom, fixed, idiom_rule

_NEEDS = (frozenset({"exp"}), frozenset({"log"}))
RULE = idiom_rule(
    "softplus", __doc__.splitlines()[0], Idiom(_NEEDS, fixed("softplus", FUNCTIONS["softplus"].numpy), least=3)
)
