"""f(MatMul(a, b), y ...) -> MatMul(a, b, y ..., epilogue=f): bias, activation, residual sum, mask, quantisation."""

from __future__ import annotations

from fusion.ops import MatrixMultiply, PackedMatrixMultiply
from fusion.rules._epilogue import epilogue_rule

RULE = epilogue_rule("matmul-pointwise", __doc__.splitlines()[0], (MatrixMultiply, PackedMatrixMultiply), lambda graph, layer, reader: True)
