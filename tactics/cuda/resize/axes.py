"""Resize along any axes, sizes that vary included, with the rounding of NumPy step by step.

Tables of axes with fixed sizes are made at build, those of axes whose sizes vary by a small kernel before the main one.
With the channels innermost a thread moves a vector of them; otherwise it stores a vector of neighbours along the last axis.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import gcd

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Resize
from fusion.ops.interpolation import AxisTaps
from tactics.cuda.codegen import STORAGE_TYPES
from tactics.cuda.resize.tables import (
    COORDINATES,
    MODES,
    ROUNDINGS,
    TAPS,
    axis_varies,
    coordinate_numbers,
    fixed_taps,
    merged_axes,
    resized_axes,
    table,
)
from tactics.cuda.simple import LIMIT, OUT, ceil_div, count, defines, dims, divider, launch, out_pitch, raw_type
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Step,
    Struct,
    Tactic,
    Workload,
    config,
)

FILE = "resize/axes.cu"
PRELUDE = '#include "vector.cuh"\n'
THREADS = 256


def _work(workload: Workload) -> DataType:
    """What weights and sums are held in."""
    return DataType.DOUBLE if workload.inputs[0].dtype is DataType.DOUBLE else DataType.FLOAT


class AxisResize(Tactic):
    """Nearest, linear and cubic, along any axes, fixed or not."""

    id = "cuda.resize.axes"
    device = "cuda"
    ops = (Resize,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op, dtype = workload.op, workload.inputs[0].dtype
        assert isinstance(op, Resize)
        given = (("mode", op.mode, MODES), ("coordinates", op.coordinates, COORDINATES), ("rounding", op.rounding, ROUNDINGS))
        for name, value, allowed in given:
            if value not in allowed:
                return Refusal(f"{name} {value!r}; this kernel has {', '.join(allowed)}")
        for tensor in (workload.inputs[0], workload.outputs[0]):
            if not 0 < count(tensor) < LIMIT:
                return Refusal(f"a tensor has {count(tensor)} elements; this kernel takes 1 to {LIMIT - 1}")
        if op.mode != "nearest" and dtype not in STORAGE_TYPES:
            return Refusal(f"no CUDA code interpolates {dtype.value}")
        if op.antialias and any(axis_varies(workload, axis) for axis in resized_axes(workload)):
            return Refusal("antialias with sizes that vary: the number of elements that a coordinate reads would vary, too")
        return None

    def pitched(self, workload: Workload) -> Collection[int]:
        return () if len(dims(workload.inputs[0])) - 1 in resized_axes(workload) else (0, 1)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        op, item = workload.op, workload.inputs[0].dtype.itemsize
        assert isinstance(op, Resize)
        inner = merged_axes(workload, resized_axes(workload))[0]
        widest = gcd(max(1, 16 // item), inner.divisor)
        nearest = op.mode == "nearest"
        if nearest and op.coordinates == "tf_crop_and_resize" and inner.number < 0:
            widest = 1  # the extrapolation value is one element
        if not nearest:
            widest = min(widest, 8)
        many = count(workload.outputs[0]) // widest > device.multiprocessors * 2048
        order = [(widest, 1), (max(1, widest // 2), 1), (1, 1)]
        if nearest:
            order = [(widest, 2), (widest, 4), *order] if many else [*order, (widest, 2)]
        elif not many:
            order = order[::-1]
        return [config(v=v, items=items) for v, items in dict.fromkeys(order)]

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Per resized axis of fixed size its indices and its weights."""
        taps, out, work = fixed_taps(workload), dims(workload.outputs[0]), _work(workload).numpy
        fixed = [axis for axis in resized_axes(workload) if not axis_varies(workload, axis)]
        return tuple(array for axis in fixed for array in table(taps[axis], out[axis], work))

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, chosen = workload.op, dict(config)
        assert isinstance(op, Resize)
        v, items, dtype, work = chosen["v"], chosen["items"], workload.inputs[0].dtype, _work(workload)
        nearest, crop = op.mode == "nearest", op.coordinates == "tf_crop_and_resize"
        resized = resized_axes(workload)
        varying = [axis for axis in resized if axis_varies(workload, axis)]
        tables, used = _places(workload, resized, varying, work)
        axes = merged_axes(workload, resized)
        inner_kept = axes[0].number < 0
        found = [fixed_taps(workload)[axis] for axis in resized]
        taps = [1 if one is None else one.indices.shape[1] for one in found]
        sure_taps = [0 if axis in varying and not nearest else number for axis, number in zip(resized, taps, strict=True)]

        fields: list[Buffer | Scalar] = []
        for number, one in enumerate(axes):
            fields += divider(one.size // v if number == 0 else one.size)
        # Nearest counts the input in accesses of v when the last axis stays, in elements otherwise.
        moved = v if nearest and inner_kept else 1
        for number, one in enumerate(axes):
            step = one.step * v if number == 0 and inner_kept else one.step
            fields.append(Scalar(step // moved, "u32"))
        fields += [tables[axis][0] for axis in resized]
        fields += [tables[axis][1] for axis in resized]
        fields += [Scalar(number) for number in taps]
        last = resized[-1]
        repeat = _repeat(found[-1], dims(workload.inputs[0])[last]) if nearest and not inner_kept and not crop and last not in varying else 1
        names: dict[str, object] = {
            "RANK": len(axes),
            "RESIZED": len(resized),
            "NUMBERS": ",".join(str(one.number) for one in axes),
            "TAPS_OF": ",".join(map(str, sure_taps)),
            "THREADS": THREADS,
            "CROP": crop,
            "WORK": STORAGE_TYPES[work],
        }
        if nearest:
            names |= {"KIND": 0, "MOVE_T": raw_type(dtype.itemsize * moved), "VEC": v // moved, "ITEMS": items, "REPEAT": repeat if v % repeat == 0 else 1}
            bits = int.from_bytes(np.asarray(op.extrapolation).astype(dtype.numpy).tobytes(), "little") if crop else 0
            entry, outside = "resize_nearest", Scalar(bits, "u64")
        else:
            names |= {"KIND": 1, "IN_T": STORAGE_TYPES[dtype], "VEC": v}
            entry, outside = "resize_taps_sum", Scalar(float(op.extrapolation), "f64" if work is DataType.DOUBLE else "f32")
        total = count(workload.outputs[0]) // v
        arguments = (Buffer("input"), OUT, Scalar(total, "u32"), outside, Struct(tuple(fields)))
        kernel = Kernel(FILE, entry, defines(device, **names, **out_pitch(workload, v if nearest else 1)), PRELUDE)
        steps: list[Step] = [_table_launch(workload, device, work, varying, tables)] if varying else []
        steps.append(launch(kernel, ceil_div(total, THREADS * items), THREADS, arguments))
        return Plan(tuple(steps), used)


def _repeat(taps: AxisTaps | None, size: int) -> int:
    """How often a nearest axis repeats each of the ``size`` elements of its input, in order; 1 when it does anything else."""
    if taps is None or taps.indices.size % size:
        return 1
    times = taps.indices.size // size
    return times if np.array_equal(taps.indices.reshape(-1), np.arange(taps.indices.size) // times) else 1


Places = dict[int, tuple[Buffer, Buffer]]  # per resized axis its indices and its weights


def _places(workload: Workload, resized: Sequence[int], varying: Sequence[int], work: DataType) -> tuple[Places, int]:
    """Where the tables are (packed, or in the workspace for axes that vary), and the bytes of workspace."""
    out, taps = dims(workload.outputs[0]), TAPS[workload.op.mode]  # type: ignore[attr-defined]
    places: Places = {}
    used = packed = 0
    for axis in resized:
        if axis not in varying:
            places[axis] = (Buffer("packed", packed), Buffer("packed", packed + 1))
            packed += 2
            continue
        weights = used + ceil_div(out[axis] * taps * 4, 256) * 256
        places[axis] = (Buffer("workspace", 0, used), Buffer("workspace", 0, weights))
        used = weights + ceil_div(out[axis] * taps * work.itemsize, 256) * 256
    return places, used


def _table_launch(workload: Workload, device: DeviceSpec, work: DataType, varying: Sequence[int], places: Places) -> Launch:
    """The launch that computes the tables of axes whose sizes vary."""
    op, x, out = workload.op, dims(workload.inputs[0]), dims(workload.outputs[0])
    assert isinstance(op, Resize)
    names = defines(
        device,
        KIND=2,
        AXES=len(varying),
        THREADS=128,
        WORK=STORAGE_TYPES[work],
        MODE=MODES[op.mode],
        COORDINATES=COORDINATES[op.coordinates],
        ROUNDING=ROUNDINGS[op.rounding],
        EXCLUDE_OUTSIDE=op.exclude_outside,
        CROP=op.coordinates == "tf_crop_and_resize",
    )
    numbers = [coordinate_numbers(op, axis, x[axis], out[axis]) for axis in varying]
    fields: list[Buffer | Scalar] = [places[axis][0] for axis in varying]
    fields += [places[axis][1] for axis in varying]
    fields += [Scalar(one[name], "f64") for name in ("scale", "base", "first", "second", "over") for one in numbers]
    fields += [Scalar(int(one[name])) for name in ("size", "out", "fixed", "identity") for one in numbers]
    grid = (ceil_div(max(out[axis] for axis in varying), 128), len(varying))
    return launch(Kernel(FILE, "resize_taps", names, PRELUDE), grid, 128, (Struct(tuple(fields)), Scalar(op.cubic_a, "f64")))


TACTICS = (AxisResize(),)
