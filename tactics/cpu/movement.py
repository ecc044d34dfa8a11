"""Layers that only move data: one copy between strided views, cut into parts for threads or caches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from fusion.network import Op
from fusion.ops import Concatenation, Expand, Padding, Shuffle, Slice, Tile
from tactics.cpu.reference import reference_plan
from tactics.cpu.steps import Arrays, Call, blocks, one_step, shape_of, size_of, spans, threads_of
from tactics.cpu.threads import Action, parallel
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config

Pair = tuple[np.ndarray, np.ndarray]  # target, source: two views of one shape
Pairs = Callable[[Arrays, np.ndarray], list[Pair]]


class _Copies(Tactic):
    """A layer that is a list of copies. ``block`` elements are copied at once (0: everything)."""

    device = "cpu"

    def pairs(self, op: Op, inputs: Arrays, out: np.ndarray) -> list[Pair]:
        """The copies."""
        raise NotImplementedError

    def fills(self, op: Op, inputs: Arrays, out: np.ndarray) -> list[Action]:
        """What is written besides, before the copies."""
        return []

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        threads = threads_of(device)
        size = size_of(workload.outputs[0])
        if size < 1 << 15:
            return (config(block=0, threads=1),)
        found = [config(block=1 << 14, threads=threads), config(block=0, threads=1), config(block=1 << 14, threads=1)]
        return tuple(dict.fromkeys(found))

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, values = workload.op, dict(config)
        if self.supports(workload, device) is not None:
            return reference_plan(workload)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            out = outputs[0]
            first = self.fills(op, inputs, out)
            actions: list[Action] = []
            for target, source in self.pairs(op, inputs, out):
                limit = values["block"] or max(target.size, 1)
                actions += [partial(np.copyto, target[cut], source[cut]) for cut in blocks(target.shape, limit)]
            jobs = [actions[low:high] for low, high in spans(len(actions), values["threads"])]
            copies = parallel(jobs, values["threads"])
            if not first:
                return copies
            fill = parallel([first], 1)

            def call() -> None:
                fill()
                copies()

            return call

        return one_step(bind, self.id)


class ShuffleCopy(_Copies):
    """Transpose, reshape, transpose. Without a copy in the middle when NumPy can express the result as a view of the
    input, or the input's reading order as a view of the output."""

    id = "cpu.shuffle.copy"
    ops = (Shuffle,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Shuffle)
        if shuffle_views(op, shape_of(workload.inputs[0])) is None:
            return Refusal("the reshape between the two transposes cannot be a view: cpu.shuffle.twice copies twice")
        return None

    def pairs(self, op: Op, inputs: Arrays, out: np.ndarray) -> list[Pair]:
        assert isinstance(op, Shuffle)
        views = shuffle_views(op, inputs[0].shape)
        assert views is not None
        return [views(inputs[0], out)]


class ShuffleTwice(Tactic):
    """Transpose into scratch memory, then reshape and transpose into the output."""

    id = "cpu.shuffle.twice"
    device = "cpu"
    ops = (Shuffle,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Shuffle)
        if shuffle_views(op, shape_of(workload.inputs[0])) is not None:
            return Refusal("one copy is enough: see cpu.shuffle.copy")
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, Shuffle)
        if self.supports(workload, device) is not None:
            return reference_plan(workload)
        assert op.first is not None and op.reshape is not None and op.second is not None
        first, middle, second = op.first, op.reshape, op.second
        size = workload.inputs[0].dtype.itemsize * size_of(workload.inputs[0])

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            source = inputs[0].transpose(first)
            held = workspace[:size].view(source.dtype)
            actions: list[Action] = []
            for target, from_ in (
                (held.reshape(source.shape), source),
                (outputs[0], held.reshape(middle).transpose(second)),  # type: ignore[arg-type]
            ):
                actions += [partial(np.copyto, target[cut], from_[cut]) for cut in blocks(target.shape, 1 << 14)]
            return parallel([actions], 1)

        return one_step(bind, self.id, size)


def shuffle_views(op: Shuffle, shape: tuple[int, ...]) -> Callable[[np.ndarray, np.ndarray], Pair] | None:
    """How the output (or a view of it) is a view of the input (or the other way round), or None."""
    first = op.first or tuple(range(len(shape)))
    before = tuple(shape[axis] for axis in first)
    middle = before if op.reshape is None else tuple(int(dim) for dim in op.reshape)  # type: ignore[arg-type]
    second = op.second or tuple(range(len(middle)))
    back = tuple(int(axis) for axis in np.argsort(second))
    if _is_view_reshape(before, tuple(_strides(shape)[axis] for axis in first), middle):
        return lambda x, out: (out, x.transpose(first).reshape(middle).transpose(second))
    after = tuple(middle[axis] for axis in second)
    if _is_view_reshape(middle, tuple(_strides(after)[axis] for axis in back), before):
        return lambda x, out: (out.transpose(back).reshape(before), x.transpose(first))
    return None


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _is_view_reshape(shape: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> bool:
    """Whether an array of ``shape`` and ``strides`` (elements) reshapes to ``new`` without a copy: axes that are merged, or
    cut anew together, must lie densely one inside the other."""
    if math.prod(shape) == 0:
        return True
    old = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size != 1]
    sizes = [size for size in new if size != 1]
    while old and sizes:
        group, left, right = [old.pop(0)], 0, sizes.pop(0)
        left = group[0][0]
        while left != right:
            if left < right:
                group.append(old.pop(0))
                left *= group[-1][0]
            else:
                right *= sizes.pop(0)
        if any(outer[1] != inner[0] * inner[1] for outer, inner in pairwise(group)):
            return False
    return True


class ConcatenationCopies(_Copies):
    """Each input into its part of the output."""

    id = "cpu.concatenation.copies"
    ops = (Concatenation,)

    def pairs(self, op: Op, inputs: Arrays, out: np.ndarray) -> list[Pair]:
        assert isinstance(op, Concatenation)
        found, start = [], 0
        for array in inputs:
            size = array.shape[op.axis]
            found.append((out[(slice(None),) * op.axis + (slice(start, start + size),)], array))
            start += size
        return found


class SliceCopy(_Copies):
    """A strided view of the input into the output."""

    id = "cpu.slice.copy"
    ops = (Slice,)

    def pairs(self, op: Op, inputs: Arrays, out: np.ndarray) -> list[Pair]:
        assert isinstance(op, Slice)
        return [(out, inputs[0][op.slices()])]


class ExpandCopy(_Copies):
    """A broadcast view of the input into the output."""

    id = "cpu.expand.copy"
    ops = (Expand,)

    def pairs(self, op: Op, inputs: Arrays, out: np.ndarray) -> list[Pair]:
        return [(out, np.broadcast_to(inputs[0], out.shape))]


class TileCopy(_Copies):
    """The output as [repeats, size] per axis, the input broadcast over the repeats."""

    id = "cpu.tile.copy"
    ops = (Tile,)

    def pairs(self, op: Op, inputs: Arrays, out: np.ndarray) -> list[Pair]:
        assert isinstance(op, Tile)
        split = [part for times, size in zip(op.repeats, inputs[0].shape, strict=True) for part in (times, size)]
        source = inputs[0].reshape([part for size in inputs[0].shape for part in (1, size)])
        target = out.reshape(split)  # type: ignore[arg-type]
        return [(target, np.broadcast_to(source, target.shape))]


class PaddingCopies(_Copies):
    """The inside, and per axis the parts before and after it, read from what is already written."""

    id = "cpu.padding.copies"
    ops = (Padding,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Padding)
        for size, pre, post in zip(workload.inputs[0].shape, op.pre, op.post, strict=True):
            assert isinstance(size, int) and isinstance(pre, int) and isinstance(post, int)
            inner = size + min(pre, 0) + min(post, 0)
            room = {"reflect": inner - 1, "wrap": inner}.get(op.mode, max(pre, post))
            if max(pre, post) > room or (inner < 1 and op.mode != "constant"):
                return Refusal(
                    f"{op.mode} padding of {max(pre, post)} elements repeats an axis of {inner} more than once"
                )
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, values = workload.op, dict(config)
        assert isinstance(op, Padding)
        if op.mode == "constant" or self.supports(workload, device) is not None:
            return super().plan(workload, config, device)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            out = outputs[0]
            target, source = self.pairs(op, inputs, out)[0]
            limit = values["block"] or max(target.size, 1)
            copies = [partial(np.copyto, target[cut], source[cut]) for cut in blocks(target.shape, limit)]
            inside = parallel([copies[a:b] for a, b in spans(len(copies), values["threads"])], values["threads"])
            rims = parallel([_rims(op, target.shape, out)], 1)

            def call() -> None:
                inside()
                rims()

            return call

        return one_step(bind, self.id)

    def pairs(self, op: Op, inputs: Arrays, out: np.ndarray) -> list[Pair]:
        assert isinstance(op, Padding)
        x = inputs[0][tuple(
            slice(max(-int(a), 0), size - max(-int(b), 0))  # type: ignore[arg-type, misc]
            for a, b, size in zip(op.pre, op.post, inputs[0].shape, strict=True)
        )]  # fmt: skip
        place = tuple(slice(max(int(a), 0), max(int(a), 0) + size) for a, size in zip(op.pre, x.shape, strict=True))  # type: ignore[arg-type]
        return [(out[place], x)]

    def fills(self, op: Op, inputs: Arrays, out: np.ndarray) -> list[Action]:
        assert isinstance(op, Padding)
        value = np.asarray(op.value).astype(out.dtype)
        found: list[Action] = []
        for axis, (pre, post) in enumerate(zip(op.pre, op.post, strict=True)):
            assert isinstance(pre, int) and isinstance(post, int)
            lead = (slice(None),) * axis
            if pre > 0:
                found.append(partial(np.copyto, out[(*lead, slice(0, pre))], value))
            if post > 0:
                found.append(partial(np.copyto, out[(*lead, slice(out.shape[axis] - post, None))], value))
        return found


def _rims(op: Padding, inner: Sequence[int], out: np.ndarray) -> list[Action]:
    """Per axis, the copies into the parts before and after the inside. Axes before it are whole by then, axes behind it
    are read and written inside only."""
    found: list[Action] = []
    for axis, size in enumerate(inner):
        pre, post = max(int(op.pre[axis]), 0), max(int(op.post[axis]), 0)  # type: ignore[arg-type]
        behind = tuple(
            slice(max(int(op.pre[later]), 0), max(int(op.pre[later]), 0) + inner[later])  # type: ignore[arg-type]
            for later in range(axis + 1, len(inner))
        )
        lead = (slice(None),) * axis
        view = out[(*lead, slice(None), *behind)]

        def part(low: int, high: int, step: int = 1, view: np.ndarray = view, lead: tuple = lead) -> np.ndarray:
            if step < 0:  # low down to high, both inside the array
                return np.flip(view[(*lead, slice(high, low + 1))], len(lead))
            return view[(*lead, slice(low, high))]

        end = pre + size
        if op.mode == "edge":
            sources = part(pre, pre + 1), part(end - 1, end)
        elif op.mode == "reflect":
            sources = part(pre + pre, pre + 1, -1), part(end - 2, end - 1 - post, -1)
        else:
            sources = part(end - pre, end), part(pre, pre + post)
        if pre:
            found.append(partial(np.copyto, part(0, pre), sources[0]))
        if post:
            found.append(partial(np.copyto, part(end, end + post), sources[1]))
    return found


TACTICS: tuple[Tactic, ...] = (
    ShuffleCopy(), ShuffleTwice(), ConcatenationCopies(), SliceCopy(), ExpandCopy(), TileCopy(), PaddingCopies(),
)  # fmt: skip
