"""f(Normalization(x), y ...) -> Normalization(x, y ..., epilogue=f): scale and bias, activation."""

from __future__ import annotations

from fusion.ops import GroupNormalization, Normalization
from fusion.rules._epilogue import epilogue_rule

RULE = epilogue_rule(
    "normalization-pointwise",
    __doc__.splitlines()[0],
    (Normalization, GroupNormalization),
    lambda graph, layer, reader: True,
)
