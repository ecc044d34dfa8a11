"""Packed weights dequantised at build: then the product is BLAS's (see :mod:`tactics.dequantized`)."""

from tactics.cpu.matmul import Blas
from tactics.dequantized import Dequantized

TACTICS = (Dequantized(Blas()),)
