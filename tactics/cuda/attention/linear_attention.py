"""Linear attention: a thread per column of the state, the steps in order. Right and simple; slow for long sequences."""

from __future__ import annotations

import math

from fusion.expression import compute_type
from fusion.ops import LinearAttention
from tactics.cuda.codegen import STORAGE_TYPES, storage_type
from tactics.cuda.simple import OUT, ceil_div, count, defines, dims, launch, refuse_large
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Tactic, Workload

THREADS = 32


class LinearAttentionSteps(Tactic):
    """The recurrence as it is defined."""

    id = "cuda.attention.linear"
    device = "cuda"
    ops = (LinearAttention,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, LinearAttention)
        mixed = {tensor.dtype for number, tensor in enumerate(workload.inputs) if not (op.has_past and number == 3)}
        if len(mixed) > 1 or not all(tensor.dtype in STORAGE_TYPES and tensor.dtype.is_float for tensor in workload.inputs):
            return Refusal(f"types {', '.join(tensor.dtype.value for tensor in workload.inputs)}; one type of real numbers is needed")
        return refuse_large(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (query, _, value, *rest) = workload.op, workload.inputs
        assert isinstance(op, LinearAttention)
        batch, steps, width = dims(query)
        key_size, value_size = width // op.query_heads, dims(value)[2] // op.heads
        state = workload.outputs[1]
        if not count(state):
            return Plan(())
        work = compute_type(query.dtype)
        numbers = iter(range(3, 3 + len(rest)))
        past, decay, beta = (Buffer("input", next(numbers)) if there else Buffer("input") for there in (op.has_past, op.gated, op.delta))
        decay_size = dims(workload.inputs[decay.index])[2] // op.heads if op.gated else 0
        beta_heads = dims(workload.inputs[beta.index])[2] if op.delta else 0
        names = defines(device, IN_T=storage_type(query.dtype), STATE_T=storage_type(state.dtype), WORK=storage_type(work),
                        HAS_PAST=op.has_past, GATED=op.gated, DELTA=op.delta, THREADS=THREADS)  # fmt: skip
        scale = Scalar(op.scale or 1 / math.sqrt(key_size), "f64" if work.itemsize == 8 else "f32")
        arguments = (
            Buffer("input"), Buffer("input", 1), Buffer("input", 2), past, decay, beta, OUT, Buffer("output", 1), Buffer("workspace"),
            Scalar(steps), Scalar(op.heads), Scalar(op.query_heads // op.heads), Scalar(key_size), Scalar(value_size),
            Scalar(decay_size), Scalar(beta_heads), scale,
        )  # fmt: skip
        blocks = (batch * op.heads, ceil_div(value_size, THREADS))
        kernel = Kernel("attention/linear_attention.cu", "linear_attention", names)
        return Plan((launch(kernel, blocks, THREADS, arguments),), count(state) * work.itemsize)


TACTICS = (LinearAttentionSteps(),)
