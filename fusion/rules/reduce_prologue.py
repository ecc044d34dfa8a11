"""Reduce(f(x)) -> Reduce(x, prologue=f): L1 norm is the sum of abs(x), sum of squares the sum of square(x)."""

from __future__ import annotations

from fusion.ops import Reduce
from fusion.rules._prologue import prologue_rule

RULE = prologue_rule("reduce-prologue", __doc__.splitlines()[0], (Reduce,))
