"""Transposes that convert: the kernels of transposes, which read elements of one type and store a function of them in another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fusion.ops import Reformat, Shuffle
from tactics.cuda.codegen import Unsupported, device_function, storage_type
from tactics.cuda.shuffle.shuffle import passes, plane_axis, tiled_launch, tiled_widths
from tactics.cuda.shuffle.strides import Axis, Conversion, copy_choices, copy_launch, widest_vector
from tactics.cuda.simple import count, refuse_large
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config, every_tensor


def _axes(workload: Workload) -> tuple[Axis, ...]:
    op: Reformat = workload.op  # type: ignore[assignment]
    return passes(replace(workload, op=Shuffle(op.order)))[0]


def _conversion(workload: Workload) -> Conversion:
    """What becomes of each element.

    Raises:
        Unsupported: a data type or function has no CUDA code.
    """
    op: Reformat = workload.op  # type: ignore[assignment]
    source, target = workload.inputs[0].dtype, workload.outputs[0].dtype
    prelude = '#include "functions.cuh"\n' + device_function("value", op.epilogue, [source], stored=True)
    return Conversion(prelude, storage_type(source), storage_type(target))


def _sizes(workload: Workload) -> tuple[int, int]:
    """Bytes of an element on either side."""
    return workload.inputs[0].dtype.itemsize, workload.outputs[0].dtype.itemsize


class _Reformats(Tactic):
    """What both have in common."""

    device = "cuda"
    ops = (Reformat,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        try:
            _conversion(workload)
        except Unsupported as reason:
            return Refusal(str(reason))
        return refuse_large(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload)


class TiledReformat(_Reformats):
    """A transpose that moves the last axis, through shared memory: both sides in neighbouring elements."""

    id = "cuda.reformat.tiled"

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if plane_axis(_axes(workload)) is None:
            return Refusal("the last axis stays last: see cuda.reformat.strided")
        return super().supports(workload, device)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        axes = _axes(workload)
        read, write = _sizes(workload)
        widths = [tiled_widths(axes, (max(1, width // read), max(1, width // write))) for width in (4, 8)]  # bytes of an access
        spaces = [(tile, rows, *width) for width in widths for tile, rows in ((64, 8), (32, 8), (64, 16)) if tile * tile // max(width) >= 32 * rows]
        spaces += [(64, 8, 1, 1), (32, 8, 1, 1)]
        return [config(tile=tile, rows=rows, read=r, write=w) for tile, rows, r, w in dict.fromkeys(spaces)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        axes = _axes(workload)
        position = plane_axis(axes)
        assert position is not None
        return Plan((tiled_launch(axes, position, 0, dict(config), device, _conversion(workload)),))


class StridedReformat(_Reformats):
    """Any transpose, in vectors when the last axis stays last; the plainest of the family."""

    id = "cuda.reformat.strided"
    reference = True

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        widest = widest_vector(_axes(workload), min(_sizes(workload)))
        return [config(v=v, items=items) for v, items in copy_choices(min(8, widest), count(workload.inputs[0]), device)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        return Plan((copy_launch(_axes(workload), 0, chosen["v"], chosen["items"], device, conversion=_conversion(workload)),))


TACTICS = (TiledReformat(), StridedReformat())
