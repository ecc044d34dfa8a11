"""Conv(x, w1), Conv(x, w2) -> parts of Conv(x, [w1 w2]): convolutions of one tensor that differ in their weights only. Optional."""

from __future__ import annotations

from fusion.ops import Convolution
from fusion.rules._siblings import sibling_rule

RULE = sibling_rule("sibling-convolutions", __doc__.splitlines()[0], Convolution)
