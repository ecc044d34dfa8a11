"""Gather and scatter: indices made into flat places in scratch memory, then one take or one assignment."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from fusion.ops import Gather, GatherElements, GatherND, ScatterElements, ScatterND
from tactics.cpu.reference import reference_plan
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, shape_of
from tactics.cpu.threads import Action, sequence
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload


def _shape(workload: Workload, number: int) -> tuple[int, ...]:
    return shape_of((*workload.inputs, *workload.outputs)[number])


def _wrapped(indices: np.ndarray, size: int, target: np.ndarray, spare: np.ndarray) -> list[Action]:
    """``indices`` as intp in ``target``: negative ones from the end, the rest clamped into ``size`` elements."""
    last = max(size - 1, 0)
    return [
        partial(np.copyto, target, indices, casting="unsafe"),
        partial(np.less, target, 0, out=spare),
        partial(np.add, target, size, out=target, where=spare),
        partial(np.maximum, target, 0, out=target),
        partial(np.minimum, target, last, out=target),
    ]


class _Indexed(Tactic):
    """Takes of the input at flat places; the places are computed into scratch memory in each call."""

    device = "cpu"

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if 0 in _shape(workload, 0):
            return Refusal("an empty input has nothing to gather")
        return None


class GatherTake(_Indexed):
    """``np.take`` along one axis, into the output."""

    id = "cpu.gather.take"
    ops = (Gather,)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, Gather)
        if self.supports(workload, device) is not None:
            return reference_plan(workload)
        size, shape = _shape(workload, 0)[op.axis], _shape(workload, 1)
        scratch = Scratch()
        places, spare = scratch.take(shape, np.intp), scratch.take(shape, bool)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            index = places.view(workspace)
            # mode="clip" writes straight into the output; the places are inside anyway.
            take = partial(np.take, inputs[0], index, op.axis, out=outputs[0], mode="clip")
            return sequence([*_wrapped(inputs[1], size, index, spare.view(workspace)), take])

        return one_step(bind, self.id, scratch.size)


class GatherFlat(_Indexed):
    """GatherElements and GatherND: flat places, one take."""

    id = "cpu.gather.flat"
    ops = (GatherElements, GatherND)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, shape, index_shape = workload.op, _shape(workload, 0), _shape(workload, 1)
        if self.supports(workload, device) is not None:
            return reference_plan(workload)
        scratch = Scratch()
        axes: tuple[int, ...]
        if isinstance(op, GatherElements):
            axes, outer = (op.axis,), index_shape
            # The other axes' part of the flat place does not depend on the indices.
            grid = np.indices(index_shape, np.intp, sparse=True)
            base = sum(
                (grid[a] * math.prod(shape[a + 1 :]) for a in range(len(shape)) if a != op.axis), np.zeros((), np.intp)
            )
            width = 1
        else:
            assert isinstance(op, GatherND)
            depth = index_shape[-1]
            axes = tuple(range(op.batch_dims, op.batch_dims + depth))
            outer, lead = index_shape[:-1], index_shape[: op.batch_dims]
            width = math.prod(shape[op.batch_dims + depth :])
            base = np.zeros((), np.intp)
            for axis, many in enumerate(lead):
                step = math.prod(shape[axis + 1 : op.batch_dims + depth])
                base = base + (np.arange(many, dtype=np.intp) * step).reshape(-1, *(1,) * (len(outer) - axis - 1))
        end = axes[-1] + 1 if isinstance(op, GatherND) and axes else len(shape)
        total, part, spare = (scratch.take(outer, kind) for kind in (np.intp, np.intp, bool))

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            place, one = total.view(workspace), part.view(workspace)
            actions: list[Action] = [partial(np.copyto, place, base)]
            for number, axis in enumerate(axes):
                indices = inputs[1] if isinstance(op, GatherElements) else inputs[1][..., number]
                step = math.prod(shape[axis + 1 : end])
                actions += _wrapped(indices, shape[axis], one, spare.view(workspace))
                actions += [partial(np.multiply, one, step, out=one), partial(np.add, place, one, out=place)]
            source = inputs[0].reshape(-1) if width == 1 else inputs[0].reshape(-1, width)
            out = outputs[0].reshape(outer) if width == 1 else outputs[0].reshape(*outer, width)
            actions.append(partial(np.take, source, place, 0, out=out, mode="clip"))
            return sequence(actions)

        return one_step(bind, self.id, scratch.size)


class ScatterPlaces(Tactic):
    """A copy of the input, then assignment or ``ufunc.at`` at the places. It allocates the index arrays."""

    id = "cpu.scatter.places"
    device = "cpu"
    ops = (ScatterElements, ScatterND)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        if op.reduction != "none":  # type: ignore[attr-defined]
            kind = workload.inputs[0].dtype
            if kind.itemsize < 4:
                return Refusal(f"{op.reduction} of {kind.label}: only 32 and 64 bits are reduced in place")  # type: ignore[attr-defined]
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, ScatterElements | ScatterND)
        shape, index_shape = _shape(workload, 0), _shape(workload, 1)
        depth = index_shape[-1] if isinstance(op, ScatterND) and index_shape else 1
        count = depth if isinstance(op, ScatterND) else 1
        outer = index_shape[:-1] if isinstance(op, ScatterND) else index_shape
        scratch = Scratch()
        places = [scratch.take(outer, np.intp) for _ in range(count)]
        spare = scratch.take(outer, bool)
        at = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}.get(op.reduction)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            out, indices, updates = outputs[0], inputs[1], inputs[2]
            views = [slot.view(workspace) for slot in places]
            actions: list[Action] = [partial(np.copyto, out, inputs[0])]
            if isinstance(op, ScatterElements):
                actions += _wrapped(indices, shape[op.axis], views[0], spare.view(workspace))
                grid = list(np.indices(outer, np.intp, sparse=True))
                grid[op.axis] = views[0]
                index = tuple(grid)
            else:
                for number, view in enumerate(views):
                    actions += _wrapped(indices[..., number], shape[number], view, spare.view(workspace))
                index = tuple(views)
            if at is None:
                actions.append(partial(out.__setitem__, index, updates))
            else:
                actions.append(partial(at.at, out, index, updates))
            return sequence(actions)

        return one_step(bind, self.id, scratch.size)


TACTICS: tuple[Tactic, ...] = (
    GatherTake(),
    GatherFlat(),
    ScatterPlaces(),
)
