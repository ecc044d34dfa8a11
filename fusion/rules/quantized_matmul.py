"""MatMul(DQ(a), DQ(b)) -> f(MatMul(a, b)) on 8-bit numbers, with the scales in the epilogue f.

See ``quantized-convolution``. Two activations may be multiplied as well (attention's products), when both have zero point 0."""

from __future__ import annotations

from fusion.ops import MatrixMultiply
from fusion.rules.quantized_convolution import quantized_rule

RULE = quantized_rule("quantized-matmul", __doc__.splitlines()[0], (MatrixMultiply,))
