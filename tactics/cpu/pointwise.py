"""Pointwise layers: the expression evaluated block by block, so that temporaries stay in the cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from fusion.ops import Pointwise
from tactics.cpu.expressions import compile_expression
from tactics.cpu.steps import Arrays, Call, Scratch, blocks, elements, one_step, shape_of, size_of, spans, threads_of
from tactics.cpu.threads import parallel
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, aligned_inputs, config, every_tensor


class PointwiseBlocks(Tactic):
    """Blocks of ``block`` elements, on ``threads`` threads."""

    id = "cpu.pointwise.blocks"
    device = "cpu"
    ops = (Pointwise,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload)  # NumPy steps through any strides

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return spread(size_of(workload.outputs[0]), device)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, Pointwise)
        values = dict(config)
        program = compile_expression(
            op.expression, [tensor.dtype.numpy for tensor in workload.inputs], workload.outputs[0].dtype.numpy
        )
        shape = shape_of(workload.outputs[0])
        cuts = list(blocks(shape, values["block"]))
        largest = max((elements(cut, shape) for cut in cuts), default=0)
        scratch = Scratch()
        temps = [scratch.take((program.scratch_bytes(largest),), np.uint8) for _ in range(values["threads"])]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            out = outputs[0]
            operands = [np.broadcast_to(array, shape) for array in inputs]
            jobs = []
            for (first, last), slot in zip(spans(len(cuts), values["threads"]), temps, strict=False):
                memory = slot.view(workspace)
                jobs.append([
                    action
                    for cut in cuts[first:last]
                    for action in program.bind([operand[cut] for operand in operands], out[cut], memory)
                ])  # fmt: skip
            return parallel(jobs, values["threads"])

        in_place = tuple(number for number in aligned_inputs(workload) if program.may_overwrite(number))
        return replace(one_step(bind, self.id, scratch.size), in_place=in_place)


def spread(elements: int, device: DeviceSpec) -> tuple[Config, ...]:
    """Block sizes and thread counts worth trying for ``elements`` elements: threads pay from some ten microseconds on."""
    threads = threads_of(device)
    alone = [config(block=16384, threads=1), config(block=65536, threads=1)]
    together = [config(block=16384, threads=threads), config(block=65536, threads=threads)]
    if elements < 16384 or threads == 1:
        return tuple(alone[:1])
    return tuple(together + alone if elements >= 1 << 17 else alone[:1] + together[:1])


TACTICS: tuple[Tactic, ...] = (PointwiseBlocks(),)
