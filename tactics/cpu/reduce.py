"""Reductions over blocks of the kept axes, or as a product with ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import type_of
from fusion.ops import Reduce
from fusion.ops.epilogue import IDENTITY
from fusion.ops.pooling import least
from fusion.ops.reduce import greatest
from tactics.cpu.epilogue import make_epilogue
from tactics.cpu.rows import held_type, row_configs, row_reader, run_blocks
from tactics.cpu.steps import (
    Arrays,
    Call,
    Scratch,
    blocks,
    elements,
    one_step,
    shape_of,
)
from tactics.cpu.threads import Action, parallel
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload


class ReduceUfunc(Tactic):
    """``ufunc.reduce`` over blocks of the kept axes."""

    id = "cpu.reduce.ufunc"
    device = "cpu"
    ops = (Reduce,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Reduce)
        if not workload.inputs[0].shape:
            return Refusal("a scalar has no axes")
        if not _reduced_type(workload).is_float and op.kind in ("mean", "logsumexp"):
            return Refusal(f"a {op.kind} of integers is computed by cpu.reference.numpy")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return row_configs(workload, device)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, values = workload.op, dict(config)
        assert isinstance(op, Reduce)
        kind = _reduced_type(workload)
        held = kind.numpy if not kind.is_float else np.dtype(np.float64 if kind is DataType.DOUBLE else np.float32)
        shape = shape_of(workload.inputs[0])
        axes = op.axes
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
        cuts = list(blocks(shape, values["block"], whole=axes))
        largest = max((elements(cut, shape) for cut in cuts), default=0)
        epilogue = make_epilogue(op.epilogue, held, workload.inputs[1:], workload.outputs[0])
        scratch = Scratch()
        threads = values["threads"]
        readers = [
            row_reader(op.prologue, workload.inputs[0].dtype.numpy, held, largest, scratch) for _ in range(threads)
        ]
        total = scratch.take(kept, held)
        extra = scratch.take(kept if op.kind == "logsumexp" else (0,), held)
        powers = [scratch.take((largest if op.kind == "logsumexp" else 0,), held) for _ in range(threads)]
        temp = scratch.take((epilogue.scratch_bytes,), np.uint8)
        ufunc = {"sum": np.add, "mean": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}.get(op.kind)
        start = {"max": least(held), "min": greatest(held), "prod": 1}.get(op.kind, 0)
        count = math.prod(shape[axis] for axis in axes)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            x, out = inputs[0], outputs[0]
            direct = epilogue.in_place
            result = out.reshape(kept) if direct else total.view(workspace)
            small = tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(len(shape)))

            def make(thread: int, cut: tuple[slice, ...]) -> list[Action]:
                found, value = readers[thread].actions(x[cut], workspace)
                place = tuple(s if axis in axes else c for axis, (s, c) in enumerate(zip(small, cut, strict=True)))
                target = result[place]
                if ufunc is not None:
                    found.append(
                        partial(ufunc.reduce, value, axis=axes, out=target, keepdims=True, initial=start, dtype=held)
                    )
                    if op.kind == "mean":
                        found.append(partial(np.divide, target, held.type(count), out=target))
                    return found
                peak = extra.view(workspace)[place]
                power = powers[thread].view(workspace)[: value.size].reshape(value.shape)
                return [
                    *found,
                    partial(np.maximum.reduce, value, axis=axes, out=peak, keepdims=True, initial=-np.inf),
                    partial(_finite, peak),
                    partial(np.subtract, value, peak, out=power),
                    partial(np.exp, power, out=power),
                    partial(np.add.reduce, power, axis=axes, out=target, keepdims=True),
                    partial(np.log, target, out=target),
                    partial(np.add, target, peak, out=target),
                ]

            run = run_blocks(cuts, threads, make)
            if not cuts:
                run = parallel([[partial(result.fill, {"mean": np.nan, "logsumexp": -np.inf}.get(op.kind, start))]], 1)
            extras = [np.broadcast_to(one, out.shape) for one in inputs[1:]]
            finish = epilogue.actions(result.reshape(out.shape), extras, out, temp.view(workspace))
            if not finish:
                return run
            last = parallel([finish], 1)

            def call() -> None:
                run()
                last()

            return call

        return one_step(bind, self.id, scratch.size)


class ReduceProduct(Tactic):
    """A sum or mean over the last axes (or over the first): a matrix times a vector of ones."""

    id = "cpu.reduce.product"
    device = "cpu"
    ops = (Reduce,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op, source = workload.op, workload.inputs[0]
        assert isinstance(op, Reduce)
        if op.kind not in ("sum", "mean") or op.prologue != IDENTITY or source.dtype.numpy != held_type(source):
            return Refusal("only plain sums and means of float32 and float64 are matrix products")
        rank, count = len(source.shape), len(op.axes)
        if not op.axes or op.axes not in (tuple(range(count)), tuple(range(rank - count, rank))):
            return Refusal(f"axes {op.axes} of {rank} are neither the first nor the last ones")
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, shape = workload.op, shape_of(workload.inputs[0])
        assert isinstance(op, Reduce)
        held = held_type(workload.inputs[0])
        epilogue = make_epilogue(op.epilogue, held, workload.inputs[1:], workload.outputs[0])
        size = math.prod(shape[axis] for axis in op.axes)
        rows = math.prod(size for axis, size in enumerate(shape) if axis not in op.axes)
        last = op.axes[-1] == len(shape) - 1
        ones = np.full(size, 1 / max(size, 1) if op.kind == "mean" else 1, held)
        scratch = Scratch()
        total = scratch.take((0,) if epilogue.in_place else (rows,), held)
        temp = scratch.take((epilogue.scratch_bytes,), np.uint8)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            out = outputs[0]
            result = out.reshape(-1) if epilogue.in_place else total.view(workspace)
            if op.kind == "mean" and not size:
                product = partial(result.fill, np.nan)  # the product would be 0
            elif last:
                product = partial(np.matmul, inputs[0].reshape(rows, size), ones, out=result)
            else:
                product = partial(np.matmul, ones, inputs[0].reshape(size, rows), out=result)
            extras = [np.broadcast_to(extra, out.shape) for extra in inputs[1:]]
            finish = epilogue.actions(result.reshape(out.shape), extras, out, temp.view(workspace))
            return parallel([[product, *finish]], 1)

        return one_step(bind, self.id, scratch.size)


def _reduced_type(workload: Workload) -> DataType:
    op = workload.op
    assert isinstance(op, Reduce)
    return type_of(op.prologue, [workload.inputs[0].dtype])


def _finite(peak: np.ndarray) -> None:
    peak[~np.isfinite(peak)] = 0


TACTICS: tuple[Tactic, ...] = (ReduceUfunc(), ReduceProduct())
