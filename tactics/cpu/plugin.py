"""Custom operators on the CPU: the plugin's NumPy function."""

from __future__ import annotations

from fusion.ops import Custom
from tactics.cpu.reference import reference_plan
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload


class PluginFunction(Tactic):
    """``evaluate`` of the plugin, which must be loaded in this process: an engine file holds no code."""

    id = "cpu.plugin.numpy"
    device = "cpu"
    ops = (Custom,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, Custom)
        op.plugin()  # says in words when it is missing
        return reference_plan(workload)


TACTICS: tuple[Tactic, ...] = (PluginFunction(),)
