"""Products of a function of their first operand: piece by piece, so that what the function makes is multiplied while it is in the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Convolution, MatrixMultiply, PrologueProduct
from tactics.cpu.convolution import product_epilogue
from tactics.cpu.expressions import compile_expression
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel
from tactics.prologue import product, prologue
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config

BLOCKS = (1 << 15, 1 << 17)  # elements of a piece of what the prologue makes
Cut = tuple[slice, ...]


class PrologueBlocks(Tactic):
    """Rows of a matrix, or pixels of an image in [N, C, spatial], in pieces of ``block`` elements for ``threads`` threads."""

    id = "cpu.gemm.prologue"
    device = "cpu"
    ops = (PrologueProduct,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op, inner = workload.op, product(workload)
        assert isinstance(op, PrologueProduct)
        kinds = [workload.inputs[0].dtype, *(tensor.dtype for tensor in inner.inputs[:2])]
        if len(set(kinds)) > 1 or kinds[0] not in (DataType.FLOAT, DataType.DOUBLE):
            return Refusal(f"operands are {', '.join(kind.label for kind in kinds)}; one of FP32, FP64 is multiplied as it is")
        if math.prod(shape_of(workload.inputs[0])) * math.prod(shape_of(workload.outputs[0])) == 0:
            return Refusal("an empty tensor")
        x, out = shape_of(workload.inputs[0]), shape_of(workload.outputs[0])
        if isinstance(op.product, Convolution):
            plain = not op.product.channels_last and op.product.groups == 1 and set(shape_of(workload.inputs[1])[2:]) == {1} and x[2:] == out[2:]
            return None if plain else Refusal("only 1x1 convolutions of [N, C, spatial] with stride 1, no padding and one group are a matrix product")
        if op.product.transpose_a:
            return Refusal("a is stored [K, M]; a prologue wants [M, K]")
        return None if x[:-2] == out[:-2] else Refusal(f"the batch {x[:-2]} of a is repeated to {out[:-2]}: the prologue would be computed again")

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        size, threads = math.prod(shape_of(workload.inputs[0])), threads_of(device)
        blocks = [block for block in BLOCKS if block < size] or [BLOCKS[0]]
        counts = dict.fromkeys((threads, 1)) if size > BLOCKS[0] else (1,)
        return tuple(config(block=block, threads=count) for count in counts for block in blocks)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, inner, values = workload.op, product(workload), dict(config)
        assert isinstance(op, PrologueProduct)
        convolves = isinstance(op.product, Convolution)
        dtype = workload.inputs[0].dtype.numpy
        own = len(inner.inputs)
        x_shape, out_shape = shape_of(workload.inputs[0]), shape_of(workload.outputs[0])
        joined = not convolves and _joins(workload)
        if convolves:  # [N, C, pixels]
            x_shape, out_shape = ((*shape[:2], math.prod(shape[2:])) for shape in (x_shape, out_shape))
        elif joined:  # one matrix on the right for all: the batch joins the rows
            x_shape, out_shape = ((math.prod(shape[:-1]), shape[-1]) for shape in (x_shape, out_shape))
        cut_axis, depth = (2, x_shape[1]) if convolves else (len(x_shape) - 2, x_shape[-1])
        step = max(16, values["block"] // depth)
        cuts = _cuts(x_shape, cut_axis, step)
        epilogue = product_epilogue(inner)
        kinds = [tensor.dtype.numpy for tensor in prologue(workload).inputs]
        program = compile_expression(op.prologue, kinds, dtype, False)
        scratch = Scratch()
        length = min(step, x_shape[cut_axis])
        rooms = [
            (
                scratch.take((length * depth,), dtype), scratch.take((program.scratch_bytes(length * depth),), np.uint8),
                scratch.take((0 if epilogue.in_place else length * out_shape[1 if convolves else -1],), dtype), scratch.take((epilogue.scratch_bytes,), np.uint8),
            )
            for _ in range(values["threads"])
        ]  # fmt: skip

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            x, out = inputs[0].reshape(x_shape), outputs[0].reshape(out_shape)
            flat = _pixels if convolves else _rows if joined else _as_it_is
            others = [flat(array, shape_of(workload.inputs[0])) for array in inputs[own:]]
            extras = [flat(array, shape_of(workload.outputs[0])) for array in inputs[2:own]]
            right = inputs[1]
            if convolves:
                right = right.reshape(right.shape[:2])
            elif isinstance(op.product, MatrixMultiply) and op.product.transpose_b:
                right = right.swapaxes(-1, -2)
            if joined:
                right = right.reshape(right.shape[-2:])
            jobs = []
            for (first, last), slots in zip(spans(len(cuts), values["threads"]), rooms, strict=False):
                held, temp, sums, room = (slot.view(workspace) for slot in slots)
                job: list[Action] = []
                for cut in cuts[first:last]:
                    source, target = x[cut], _part(out, cut, cut_axis)
                    middle = held[: source.size].reshape(source.shape)
                    result = target if epilogue.in_place else sums[: target.size].reshape(target.shape)
                    job += program.bind([source, *(_part(one, cut) for one in others)], middle, temp)
                    if convolves:
                        job.append(partial(np.matmul, right, middle[0], out=result[0]))
                    else:
                        job.append(partial(np.matmul, middle, _part(right, (*cut[:-2], slice(None), slice(None))), out=result))
                    job += epilogue.actions(result, [np.broadcast_to(_part(one, cut, cut_axis), target.shape) for one in extras], target, room)
                jobs.append(job)
            return parallel(jobs, values["threads"])

        return one_step(bind, self.id, scratch.size)


def _cuts(shape: tuple[int, ...], axis: int, step: int) -> list[Cut]:
    """Pieces of an array: one place of the axes before the last two, ``step`` along ``axis``, the other of the last two whole."""
    found = []
    for place in np.ndindex(*shape[:-2]):
        for low in range(0, shape[axis], step):
            cut = [*(slice(index, index + 1) for index in place), slice(None), slice(None)]
            cut[axis] = slice(low, min(low + step, shape[axis]))
            found.append(tuple(cut))
    return found


def _part(array: np.ndarray, cut: Cut, axis: int | None = None) -> np.ndarray:
    """``cut`` of an array that broadcasts to what it cuts; with ``axis`` given, only that one of the last two axes is cut."""
    whole = [part if axis is None or number in (axis, *range(len(cut) - 2)) else slice(None) for number, part in enumerate(cut)]
    return array[tuple(slice(None) if size == 1 else part for size, part in zip(array.shape, whole[len(cut) - array.ndim :], strict=True))]


def _joins(workload: Workload) -> bool:
    """Whether the batch may join the rows: one matrix on the right for all, and operands that are whole or a row."""
    op = workload.op
    assert isinstance(op, PrologueProduct)
    own = len(workload.inputs) - op.operands
    whole = [workload.outputs[0].shape] * (own - 2) + [workload.inputs[0].shape] * op.operands
    plain = all(extra.shape == shape or set(extra.shape[:-1]) <= {1} for extra, shape in zip(workload.inputs[2:], whole, strict=True))
    return plain and math.prod(shape_of(workload.inputs[1])[:-2]) == 1


def _as_it_is(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array


def _rows(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An operand of a tensor of ``shape`` whose batch has joined its rows."""
    return array.reshape(-1, shape[-1]) if array.shape == shape else array.reshape(array.shape[-1:])


def _pixels(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An operand of images of ``shape`` as [N or 1, C or 1, pixels or 1]."""
    padded = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if set(padded.shape[2:]) != {1} and padded.shape[2:] != shape[2:]:
        padded = np.broadcast_to(padded, (*padded.shape[:2], *shape[2:]))
    return padded.reshape(*padded.shape[:2], -1)


TACTICS: tuple[Tactic, ...] = (PrologueBlocks(),)
