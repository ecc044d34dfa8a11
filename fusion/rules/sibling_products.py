"""x w1, x w2 -> parts of x [w1 w2]: matrix products of one row with several weights. Optional."""

from __future__ import annotations

from fusion.ops import MatrixMultiply, PackedMatrixMultiply
from fusion.rules._siblings import sibling_rule

RULE = sibling_rule("sibling-products", __doc__.splitlines()[0], MatrixMultiply, PackedMatrixMultiply)
