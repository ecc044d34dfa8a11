"""The two convolutions of a :class:`SeparableConvolution` as workloads of their own."""

from __future__ import annotations

from dataclasses import replace

from fusion.ops import SeparableConvolution
from tactics.tactic import Workload


def parts(workload: Workload) -> tuple[Workload, Workload]:
    """The depthwise and the pointwise convolution. Input 0 of the second is what the first one makes."""
    op = workload.op
    assert isinstance(op, SeparableConvolution)
    first, second = op.split(workload.inputs)
    middle = op.depthwise.infer(first)
    known, later_known = op.split(workload.constant) if workload.constant else ((), ())
    varies, later_varies = op.split(workload.varies[: len(workload.inputs)]) if workload.varies else ((), ())
    outputs = workload.varies[len(workload.inputs) :]  # the middle has their batch and spatial axes; channels are the weights'
    return (
        replace(workload, op=op.depthwise, inputs=first, outputs=middle, constant=known, varies=(*varies, *outputs)),
        replace(
            workload, op=op.pointwise, inputs=(*middle, *second), constant=(False, *later_known) if known else (),
            varies=(*outputs, *later_varies, *outputs),
        ),
    )  # fmt: skip


def input_number(op: SeparableConvolution, part: int, number: int) -> int:
    """Which input of the whole is input ``number`` of part 0 (depthwise) or 1 (pointwise; its input 0 is none)."""
    if part == 0:
        return number if number < 2 else number + 1
    return 2 if number == 1 else number + 1 + op.operands
