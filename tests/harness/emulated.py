"""Plans with inline PTX on the CPU: the same kernels, their tensor-core instructions emulated (``mma_emulation.h``)."""

from __future__ import annotations

from dataclasses import replace

from tactics.tactic import Launch, Plan


def emulated(plan: Plan) -> Plan:
    """``plan`` with every kernel compiled against the emulation."""
    define = ("MMA_EMULATION", '"mma_emulation.h"')
    return replace(plan, steps=tuple(
        replace(step, kernel=replace(step.kernel, defines=(*step.kernel.defines, define))) if isinstance(step, Launch) else step
        for step in plan.steps
    ))  # fmt: skip
