"""MatMul(x, w) * s + b -> MatMul(x, w * s) + b', for constant w, and s and b uniform or per column."""

from __future__ import annotations

from fusion.ops import MatrixMultiply
from fusion.rules.convolution_scale import scale_rule

RULE = scale_rule("matmul-scale", __doc__.splitlines()[0], (MatrixMultiply,))
