"""Bits under another type: a copy."""

from __future__ import annotations

from fusion.ops import Reinterpret
from tactics.tactic import Buffer, Config, Copy, DeviceSpec, Plan, Refusal, Tactic, Workload, tensor_bytes


class ReinterpretCopy(Tactic):
    """The driver's copy."""

    id = "cuda.reinterpret.copy"
    device = "cuda"
    ops = (Reinterpret,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        size = tensor_bytes(workload.inputs[0])
        return Plan((Copy(Buffer("input"), Buffer("output"), size),) if size else ())


TACTICS = (ReinterpretCopy(),)
