"""Layers without inputs."""

from __future__ import annotations

from functools import partial

import numpy as np

from fusion.ops import Fill, Random, Range, ShapeValue
from tactics.cpu.steps import Arrays, Call, one_step, shape_of
from tactics.cpu.threads import sequence
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload


def _shape(workload: Workload, number: int) -> tuple[int, ...]:
    return shape_of((*workload.inputs, *workload.outputs)[number])


class FillCopy(Tactic):
    """Values known at planning, copied into the output."""

    id = "cpu.fill.copy"
    device = "cpu"
    ops = (Fill, Random, Range, ShapeValue)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        if isinstance(op, Fill):
            value = np.asarray(op.value).astype(op.dtype.numpy)
        else:
            (value,) = op.evaluate([])

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            return sequence([partial(np.copyto, outputs[0], value)])

        return one_step(bind, self.id)


TACTICS: tuple[Tactic, ...] = (FillCopy(),)
