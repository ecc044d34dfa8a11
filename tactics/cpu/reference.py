"""The NumPy meaning of every operation as a tactic: slow, and what all other CPU tactics are checked against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion.ops import OPS, Custom
from tactics.tactic import Config, CpuCall, DeviceSpec, Plan, Refusal, Tactic, Workload


def reference_plan(workload: Workload) -> Plan:
    """``op.evaluate``, copied into the outputs. Tactics fall back on it for sizes of varying axes that they cannot serve."""
    op = workload.op

    def evaluate(
        inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], packed: Sequence[np.ndarray], _: np.ndarray
    ) -> None:
        for target, value in zip(outputs, op.evaluate(inputs), strict=True):
            np.copyto(target, value)

    return Plan((CpuCall(evaluate, f"{type(op).__name__}.evaluate"),))


class NumpyReference(Tactic):
    """``op.evaluate``, copied into the outputs. It allocates."""

    id = "cpu.reference.numpy"
    device = "cpu"
    ops = tuple(op for op in OPS.values() if op is not Custom)  # see tactics/cpu/plugin.py
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return reference_plan(workload)

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return (
            10 * super().estimate(workload, config, device) + 1e-4
        )  # after every tactic that was made for its operation


TACTICS: tuple[Tactic, ...] = (NumpyReference(),)
