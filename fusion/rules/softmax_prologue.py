"""Softmax(f(x)) -> Softmax(x, prologue=f): scaled scores, a temperature, a cast."""

from __future__ import annotations

from fusion.ops import Softmax
from fusion.rules._prologue import prologue_rule

RULE = prologue_rule("softmax-prologue", __doc__.splitlines()[0], (Softmax,))
