"""f(Pooling(x), y ...) -> Pooling(x, y ..., epilogue=f)."""

from __future__ import annotations

from fusion.ops import Pooling
from fusion.rules._epilogue import epilogue_rule

RULE = epilogue_rule("pooling-pointwise", __doc__.splitlines()[0], (Pooling,), lambda graph, layer, reader: True)
