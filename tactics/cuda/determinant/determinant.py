"""Determinants and inverses: a block per matrix, in scratch memory."""

from __future__ import annotations

from fusion.expression import compute_type
from fusion.ops import Determinant, Inverse
from tactics.cuda.codegen import storage_type
from tactics.cuda.simple import OUT, count, defines, dims, launch, refuse_input
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Tactic, Workload

THREADS = 128


class Elimination(Tactic):
    """Gaussian elimination with partial pivoting."""

    id = "cuda.determinant.elimination"
    device = "cuda"
    ops = (Determinant,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refuse_input(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        x, total = workload.inputs[0], count(workload.outputs[0])
        if not total:
            return Plan(())
        work = compute_type(x.dtype)
        names = defines(device, IN_T=storage_type(x.dtype), WORK=storage_type(work), THREADS=THREADS)
        arguments = (Buffer("input"), OUT, Buffer("workspace"), Scalar(dims(x)[-1]))
        kernel = Kernel("determinant/determinant.cu", "determinant", names)
        return Plan((launch(kernel, total, THREADS, arguments),), max(1, count(x)) * work.itemsize)


class Inversion(Tactic):
    """Gauss-Jordan elimination with partial pivoting."""

    id = "cuda.inverse.elimination"
    device = "cuda"
    ops = (Inverse,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refuse_input(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        x = workload.inputs[0]
        if not count(x):
            return Plan(())
        work, n = compute_type(x.dtype), dims(x)[-1]
        names = defines(device, IN_T=storage_type(x.dtype), WORK=storage_type(work), THREADS=THREADS)
        arguments = (Buffer("input"), OUT, Buffer("workspace"), Scalar(n))
        kernel = Kernel("determinant/inverse.cu", "inverse", names)
        return Plan((launch(kernel, count(x) // (n * n), THREADS, arguments),), 2 * count(x) * work.itemsize)


TACTICS = (Elimination(), Inversion())
