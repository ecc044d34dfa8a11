"""Tactics of the CPU device: NumPy and its BLAS, writing into memory that the runtime gives them."""
