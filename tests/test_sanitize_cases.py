"""compute-sanitizer sees every CUDA kernel: none is forgotten in benchmarks/gpu/sanitize_cases.py."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.sanitize import kernels_of, runs
from benchmarks.gpu.sanitize_cases import FAMILIES, cases, values
from tactics.dequantized import Dequantized
from tactics.registry import tactics
from tests.harness.fiber import H100

ROOT = Path(__file__).resolve().parents[1] / "tactics" / "cuda"
# Without a kernel of ours: device copies, a vendor's libraries, the user's plugins.
WITHOUT_KERNEL = {"cuda.shuffle.copy", "cuda.reinterpret.copy", "cuda.cublas_lt", "cuda.cudnn", "cuda.plugin.kernel"}


@cache
def seen() -> tuple[frozenset[str], frozenset[str]]:
    """Tactics and files of kernels that run."""
    found = [(tactic.id, kernel.file) for family in FAMILIES for *_, tactic, _, plan in runs(family, 1, H100) for kernel in kernels_of(plan)]
    return frozenset(name for name, _ in found), frozenset(file for _, file in found)


def test_every_tactic_runs() -> None:
    known = {tactic.id for tactic in tactics("cuda") if not isinstance(tactic, Dequantized)}  # those run the kernels of others
    assert known - seen()[0] == WITHOUT_KERNEL


def test_every_kernel_file_runs() -> None:
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.cu")} == seen()[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_operation_takes_the_values(family: str) -> None:
    """The truth that results are compared with exists, and is no NaN (which would hide a wrong result)."""
    random = np.random.default_rng(1)
    for name, workload in cases(family):
        for array, tensor in zip(workload.op.evaluate(values(workload, random)), workload.outputs, strict=True):
            assert array.shape == tensor.shape and array.dtype == tensor.dtype.numpy, name
            assert np.isfinite(array.astype(np.float64)).all(), name
            assert tensor.dtype.label != "INT8" or np.count_nonzero(np.abs(array.astype(int)) < 127) > array.size // 2, name
