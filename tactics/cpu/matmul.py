"""Matrix products through NumPy's BLAS, written into the output (or float32 scratch memory), then the epilogue."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np

from fusion.ops import MatrixMultiply
from tactics.cpu.convolution import multiplied_types, product_epilogue, summed
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel, stages
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config, every_tensor


class Blas(Tactic):
    """``[..., M, K] @ [..., K, N]``: ``split`` 1 cuts M, 2 cuts N, 3 cuts the batch for the threads; 0 is one."""

    id = "cpu.gemm.blas"
    device = "cpu"
    ops = (MatrixMultiply,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return multiplied_types(workload.inputs[:2])

    def pitched(self, workload: Workload) -> Collection[int]:
        # BLAS takes row lengths; what is converted first is read as one run.
        return [number for number in every_tensor(workload) if number > 1 or workload.inputs[number].dtype.numpy == summed(workload)]

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        *batch, m, n = shape_of(workload.outputs[0])
        threads = threads_of(device)
        whole = config(split=0, threads=1)
        if threads == 1:
            return (whole,)
        found = []
        if math.prod(batch) >= threads:
            found.append(config(split=3, threads=threads))
        # A narrow side is left whole: cutting it would only make BLAS slower.
        if m >= 8 * threads:
            found.append(config(split=1, threads=threads))
        if n >= 32 * threads:
            found.append(config(split=2, threads=threads))
        return (*found, whole)

    def prepare(
        self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        total = summed(workload)
        return tuple(
            np.ascontiguousarray(constants[number], total) for number in _packed(workload, total) if number in constants
        )

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, MatrixMultiply)
        values = dict(config)
        total = summed(workload)
        packed_inputs = _packed(workload, total)
        epilogue = product_epilogue(workload)
        *batch, m, n = shape_of(workload.outputs[0])
        joined = values["split"] != 3 and _joins(workload, op, batch)
        scratch = Scratch()
        # Narrow operands that are not known at build are converted into scratch memory.
        converted = {
            number: scratch.take(shape_of(workload.inputs[number]), total)
            for number in (0, 1)
            if workload.inputs[number].dtype.numpy != total and number not in packed_inputs
        }
        held = None if epilogue.in_place else scratch.take((*batch, m, n), total)
        temps = [scratch.take((epilogue.scratch_bytes,), np.uint8) for _ in range(values["threads"])]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            sides, first = [], []
            for number in (0, 1):
                if number in packed_inputs:
                    side = packed[packed_inputs.index(number)]
                elif number in converted:
                    side = converted[number].view(workspace)
                    jobs = [
                        [partial(np.copyto, side.reshape(-1)[a:b], inputs[number].reshape(-1)[a:b], casting="unsafe")]
                        for a, b in spans(side.size, values["threads"] if side.size > 1 << 16 else 1)
                    ]
                    first.append(parallel(jobs, values["threads"]))
                else:
                    side = inputs[number]
                sides.append(side)
            a = sides[0].swapaxes(-1, -2) if op.transpose_a else sides[0]
            b = sides[1].swapaxes(-1, -2) if op.transpose_b else sides[1]
            out = outputs[0]
            result = out if held is None else held.view(workspace)
            extras = [np.broadcast_to(extra, out.shape) for extra in inputs[2:]]
            if joined:
                # One matrix on the right for all: the batch joins the rows.
                a, b = a.reshape(1, -1, a.shape[-1]), b.reshape(b.shape[-2:])
                result_, out_ = result.reshape(1, -1, n), out.reshape(1, -1, n)
                lead: tuple[int, ...] = (1,)
                extras = [_rows(extra, out.shape) for extra in inputs[2:]]
            else:
                result_, out_, lead = result, out, tuple(batch)
            rows, temp = out_.shape[-2], [slot.view(workspace) for slot in temps]
            a = np.broadcast_to(a, (*lead, *a.shape[-2:]))
            b = np.broadcast_to(b, (*lead, *b.shape[-2:]))
            parts: list[list[Action]] = []
            for number, (rank, low, high) in enumerate(_cuts(values, lead, rows, n)):
                cut = (*(slice(None),) * rank, slice(low, high))
                left = a[cut] if rank < len(lead) + 1 else a
                if rank < len(lead):
                    right = b[cut]
                else:
                    right = b[..., low:high] if rank == len(lead) + 1 else b
                parts.append([
                    partial(np.matmul, left, right, out=result_[cut]),
                    *epilogue.actions(result_[cut], [extra[cut] for extra in extras], out_[cut], temp[number]),
                ])  # fmt: skip
            return stages(*first, parallel(parts, values["threads"]))

        return one_step(bind, self.id, scratch.size, packed_inputs)


def _cuts(values: Mapping[str, int], lead: tuple[int, ...], m: int, n: int) -> list[tuple[int, int, int]]:
    """(axis, start, end) of each thread's part."""
    if values["split"] == 3:
        axis = max(range(len(lead)), key=lambda i: (lead[i], -i)) if lead else 0
        return [(axis, a, b) for a, b in spans(lead[axis], values["threads"])]
    if values["split"] == 2:
        return [(len(lead) + 1, a, b) for a, b in spans(n, values["threads"])]
    return [(len(lead), a, b) for a, b in spans(m, values["threads"] if values["split"] else 1)]


def _joins(workload: Workload, op: MatrixMultiply, batch: Sequence[int]) -> bool:
    """Whether the batch may join the rows: one matrix on the right for all, and epilogue operands that are whole or a row."""
    right = math.prod(shape_of(workload.inputs[1])[:-2])
    out = workload.outputs[0].shape
    plain = all(extra.shape == out or set(extra.shape[:-1]) <= {1} for extra in workload.inputs[2:])
    return math.prod(batch) > 1 and right == 1 and not op.transpose_a and plain


def _rows(extra: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An epilogue operand of a result of ``shape`` whose batch has joined its rows (a view)."""
    rows = (1, math.prod(shape[:-1]), shape[-1])
    return extra.reshape(rows) if extra.shape == shape else np.broadcast_to(extra.reshape(extra.shape[-1:]), rows)


def _packed(workload: Workload, total: np.dtype) -> tuple[int, ...]:
    """The operands that ``prepare`` converts."""
    known = workload.constant or (False, False)
    return tuple(i for i in (0, 1) if known[i] and workload.inputs[i].dtype.numpy != total)


TACTICS: tuple[Tactic, ...] = (Blas(),)
