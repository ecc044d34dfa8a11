"""Packed weights dequantised at build, for every CUDA tactic of ordinary products (see :mod:`tactics.dequantized`)."""

from tactics.cuda.gemm.gemv import Gemv
from tactics.cuda.gemm.mma_gemm import MmaGemm
from tactics.cuda.gemm.simt_gemm import SimtGemm
from tactics.cuda.sm90.gemm_sm90 import Sm90Gemm
from tactics.dequantized import Dequantized

TACTICS = tuple(Dequantized(inner) for inner in (SimtGemm(), MmaGemm(), Gemv(), Sm90Gemm()))
