"""Kernels that may spill registers, and why. Everything else must not (test_compile_gates.py and the gates of single families)."""

from __future__ import annotations

# By entry: bytes of spill stores, the architectures (empty: all), the reason.
_ROUND = "ptxas keeps to a number of registers that lets one more block in, and parks set-up values (addresses, sizes), never a sum"
SPILLS: dict[str, tuple[int, tuple[str, ...], str]] = {
    "mma_gemm": (12, ("sm_75",), _ROUND),
    "mma_conv": (12, ("sm_75", "sm_90a"), _ROUND + "; tiles of 16 rows whose warps share the depth"),
    "topk_sort": (8, ("sm_120a",), _ROUND),
    "pool": (4, ("sm_100a",), _ROUND + "; with a prologue"),
}


def may_spill(entry: str, arch: str) -> int:
    """Bytes that the kernel ``entry`` may spill on ``arch``."""
    size, archs, _ = SPILLS.get(entry, (0, (), ""))
    return size if not archs or arch in archs else 0
