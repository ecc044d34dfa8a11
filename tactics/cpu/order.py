"""Layers that depend on the order of elements: top-k, argmax, running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fusion.ops import ArgReduce, Cumulative, TopK
from fusion.ops.order import softmax_values
from tactics.cpu.rows import held_type
from tactics.cpu.steps import Arrays, Call, Scratch, blocks, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel, sequence, stages
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config


def _shape(workload: Workload, number: int) -> tuple[int, ...]:
    return shape_of((*workload.inputs, *workload.outputs)[number])


class TopKSort(Tactic):
    """Sort along the axis, best first; equal elements by index. It allocates."""

    id = "cpu.topk.sort"
    device = "cpu"
    ops = (TopK,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return _topk_configs(workload, device)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, threads = workload.op, dict(config)["threads"]
        assert isinstance(op, TopK) and isinstance(op.k, int)
        shape = _shape(workload, 0)
        cuts = list(blocks(shape, max(1, math.prod(shape) // (4 * threads)), whole=(op.axis,)))

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            def make(cut: tuple[slice, ...]) -> Action:
                return partial(_topk, op, inputs[0][cut], outputs[0][cut], outputs[1][cut])

            jobs = [[make(cut) for cut in cuts[a:b]] for a, b in spans(len(cuts), threads)]
            return parallel(jobs, threads)

        return one_step(bind, self.id)


def _topk(op: TopK, x: np.ndarray, values: np.ndarray, indices: np.ndarray) -> None:
    best, order = op.evaluate([x])
    np.copyto(values, best)
    np.copyto(indices, order)


def _topk_configs(workload: Workload, device: DeviceSpec) -> tuple[Config, ...]:
    threads = threads_of(device)
    op, shape = workload.op, _shape(workload, 0)
    assert isinstance(op, TopK)
    rows = math.prod(shape) // max(1, shape[op.axis])
    one, many = config(threads=1), config(threads=threads)
    return (many, one) if threads > 1 and rows >= threads and math.prod(shape) > 1 << 14 else (one,)


class TopKPartition(Tactic):
    """Value and index joined into one 64-bit key, so that no two are equal; the keys partitioned, and the best sorted.

    Bits of a float, read as an integer, ascend with its value once those of negative numbers are mirrored.
    """

    id = "cpu.topk.partition"
    device = "cpu"
    ops = (TopK,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op, kind = workload.op, workload.inputs[0].dtype
        assert isinstance(op, TopK)
        if kind.itemsize > 4 or kind.value in ("bool", "uint32"):
            return Refusal(f"{kind.label} values do not fit into half of a 64-bit key")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return _topk_configs(workload, device)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, threads = workload.op, dict(config)["threads"]
        assert isinstance(op, TopK) and isinstance(op.k, int)
        kind, shape = workload.inputs[0].dtype, _shape(workload, 0)
        moved = tuple(np.moveaxis(np.empty(shape, np.uint8), op.axis, -1).shape)
        rows, size, k = math.prod(moved[:-1]), moved[-1], op.k
        scratch = Scratch()
        keys = scratch.take((rows, size), np.int64)
        bits = scratch.take((rows, size), np.int32)
        flags = scratch.take((rows, size), bool)
        first = np.arange(size, dtype=np.int64)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            source = np.moveaxis(inputs[0], op.axis, -1)
            key, bit, flag = (slot.view(workspace) for slot in (keys, bits, flags))
            values, indices = (np.moveaxis(array, op.axis, -1) for array in outputs)
            real = bit.view(np.float32)
            prepare: list[Action] = [
                partial(np.copyto, (real if kind.is_float else bit).reshape(moved), source, casting="unsafe")
            ]
            if kind.is_float:
                prepare += [
                    partial(np.add, real, np.float32(0), out=real),  # -0 counts as 0
                    partial(np.isnan, real, out=flag),
                    partial(np.copyto, real, np.float32(np.nan), where=flag),
                    partial(np.less, bit, 0, out=flag),
                    partial(np.bitwise_xor, bit, np.int32(0x7FFFFFFF), out=bit, where=flag),
                ]
            if op.largest:  # the best is the least key
                prepare.append(partial(np.invert, bit, out=bit))
            jobs = []
            for low, high in spans(rows, threads):
                part = key[low:high]
                best = part[:, :k]
                jobs.append([
                    partial(np.copyto, part, bit[low:high]),
                    partial(np.left_shift, part, 32, out=part),
                    partial(np.bitwise_or, part, first, out=part),
                    *((partial(part.partition, k - 1, 1),) if k < size else ()),
                    partial(best.sort, 1),
                    partial(np.bitwise_and, best, 0xFFFFFFFF, out=best),
                ])  # fmt: skip
            pick = sequence([partial(_pick, op, inputs[0], outputs[0], source, key[:, :k], values, indices)])
            return stages(parallel([prepare], 1), parallel(jobs, threads), pick)

        return one_step(bind, self.id, scratch.size)


def _pick(
    op: TopK, x: np.ndarray, out: np.ndarray, source: np.ndarray, best: np.ndarray, values: np.ndarray, indices: np.ndarray
) -> None:
    """``source``, ``values`` and ``indices`` are the input x and the outputs with the axis last."""
    chosen = best.reshape(values.shape)
    np.copyto(indices, chosen)
    np.copyto(values, np.take_along_axis(source, chosen, -1))
    if op.softmax:
        np.copyto(out, softmax_values(op, x, out))


class CumulativeAccumulate(Tactic):
    """``ufunc.accumulate`` into the output (or float32 scratch memory)."""

    id = "cpu.cumulative.accumulate"
    device = "cpu"
    ops = (Cumulative,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, Cumulative)
        kind, shape = workload.inputs[0].dtype, _shape(workload, 0)
        held = held_type(workload.inputs[0]) if kind.is_float else kind.numpy
        scratch = Scratch()
        converted = held != kind.numpy
        slots = [scratch.take(shape if converted else (0,), held) for _ in range(2)]
        ufunc = {"sum": np.add, "prod": np.multiply}[op.kind]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            x, out = inputs[0], outputs[0]
            actions: list[Action] = []
            if converted:
                x, out = (slot.view(workspace) for slot in slots)
                actions.append(partial(np.copyto, x, inputs[0], casting="unsafe"))
            source, target = np.moveaxis(x, op.axis, 0), np.moveaxis(out, op.axis, 0)
            if op.reverse:
                source, target = source[::-1], target[::-1]
            if op.exclusive:
                actions.append(partial(target[:1].fill, 0 if op.kind == "sum" else 1))
                source, target = source[:-1], target[1:]
            if len(target):
                actions.append(partial(ufunc.accumulate, source, 0, held, target))
            if converted:
                actions.append(partial(np.copyto, outputs[0], out, casting="unsafe"))
            return sequence(actions)

        return one_step(bind, self.id, scratch.size)


class ArgReduceCall(Tactic):
    """``np.argmax`` or ``np.argmin`` into the output."""

    id = "cpu.argreduce.call"
    device = "cpu"
    ops = (ArgReduce,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        kind = workload.inputs[0].dtype
        if kind.is_float and kind.itemsize < 4:
            return Refusal(f"{kind.label} is compared by cpu.reference.numpy")
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, shape = workload.op, _shape(workload, 0)
        assert isinstance(op, ArgReduce)
        choose: Callable[..., np.ndarray] = np.argmax if op.largest else np.argmin

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            x = np.flip(inputs[0], op.axis) if op.select_last else inputs[0]
            out = outputs[0].reshape([size for axis, size in enumerate(shape) if axis != op.axis])
            actions: list[Action] = [partial(choose, x, op.axis, out=out)]
            if op.select_last:
                actions.append(partial(np.subtract, shape[op.axis] - 1, out, out=out))
            return sequence(actions)

        return one_step(bind, self.id)


TACTICS: tuple[Tactic, ...] = (
    TopKSort(),
    TopKPartition(),
    CumulativeAccumulate(),
    ArgReduceCall(),
)
