"""f(Reduce(x), y ...) -> Reduce(x, y ..., epilogue=f): the square root of an L2 norm, the logarithm of a sum."""

from __future__ import annotations

from fusion.ops import Reduce
from fusion.rules._epilogue import epilogue_rule

RULE = epilogue_rule("reduce-pointwise", __doc__.splitlines()[0], (Reduce,), lambda graph, layer, reader: True)
