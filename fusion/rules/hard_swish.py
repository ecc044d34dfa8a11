"""x * clip(x + 3, 0, 6) / 6 -> hard_swish(x)."""

from __future__ import annotations

from fusion.expression import FUNCTIONS
from fusion.rules._recognise import Idiom, fixed, idiom_rule

_NEEDS = (frozenset({"clip", "min", "hard_sigmoid"}), frozenset({"mul"}))
_FIT = fixed("hard_swish", FUNCTIONS["hard_swish"].numpy)
RULE = idiom_rule("hard-swish", __doc__.splitlines()[0], Idiom(_NEEDS, _FIT))
