"""x * tanh(softplus(x)) -> mish(x)."""

from __future__ import annotations

from fusion.expression import FUNCTIONS
from fusion.rules._recognise import Idiom, fixed, idiom_rule

_NEEDS = (frozenset({"tanh"}), frozenset({"softplus", "log"}), frozenset({"mul"}))
RULE = idiom_rule("mish", __doc__.splitlines()[0], Idiom(_NEEDS, fixed("mish", FUNCTIONS["mish"].numpy), least=3))
