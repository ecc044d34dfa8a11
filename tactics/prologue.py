"""The product of a :class:`PrologueProduct`, and its prologue, as workloads of their own."""

from __future__ import annotations

from dataclasses import replace

from fusion.ops import PrologueProduct
from tactics.tactic import Workload


def product(workload: Workload) -> Workload:
    """The product. Its input 0 is what the prologue makes, its other inputs have the numbers that they have in the whole."""
    op = workload.op
    assert isinstance(op, PrologueProduct)
    end = len(workload.inputs) - op.operands
    (operands, _), varies = op.split(workload.inputs), workload.varies
    return replace(
        workload, op=op.product, inputs=(op.middle(operands), *workload.inputs[1:end]), constant=(False, *workload.constant[1:end]) if workload.constant else (),
        varies=(*varies[:end], *varies[len(workload.inputs) :]) if varies else (),
    )  # fmt: skip


def prologue(workload: Workload) -> Workload:
    """The prologue as the end of an operation of one input, which is the whole's: its operands are inputs 1 and on."""
    op = workload.op
    assert isinstance(op, PrologueProduct)
    operands, _ = op.split(workload.inputs)
    constant = op.split(workload.constant)[0] if workload.constant else ()
    varies = op.split(workload.varies[: len(workload.inputs)])[0] if workload.varies else ()
    return replace(workload, inputs=operands, outputs=(op.middle(operands),), constant=constant, varies=(*varies, *varies[:1]))
