"""f(Softmax(x), y ...) -> Softmax(x, y ..., epilogue=f)."""

from __future__ import annotations

from fusion.ops import Softmax
from fusion.rules._epilogue import epilogue_rule

RULE = epilogue_rule("softmax-pointwise", __doc__.splitlines()[0], (Softmax,), lambda graph, layer, reader: True)
