"""Kernels of custom operators: the launch that the plugin described, with the sizes filled in."""

from __future__ import annotations

from fusion.ops import Custom
from tactics.tactic import Argument, Buffer, Config, DeviceSpec, Kernel, Launch, Plan, Refusal, Scalar, Tactic, Workload


class PluginKernel(Tactic):
    """One launch of the plugin's kernel. It is compiled as any other, and nothing of the plugin is asked again."""

    id = "cuda.plugin.kernel"
    device = "cuda"
    ops = (Custom,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Custom)
        return None if op.source else Refusal(f"the plugin of {op.title} has no CUDA source and launch; it runs with --device=cpu")

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, Custom)
        if any(0 in output.shape for output in workload.outputs) and all(0 in output.shape for output in workload.outputs):
            return Plan(())
        arguments: list[Argument] = []
        for kind, value in op.arguments:
            arguments.append(Buffer(kind, value) if kind in ("input", "output", "workspace") else Scalar(value, kind))
        grid, block = ((*(int(size) for size in sizes), 1, 1)[:3] for sizes in (op.grid, op.block))  # type: ignore[arg-type]
        kernel = Kernel("", op.entry, op.defines, op.source)
        return Plan((Launch(kernel, grid, block, tuple(arguments), op.shared_memory),), int(op.workspace))  # type: ignore[arg-type]


TACTICS = (PluginKernel(),)
