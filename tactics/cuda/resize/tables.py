"""The axes of a Resize as the kernels see them, and the tables of what each coordinate reads."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from fusion.ops import Resize
from fusion.ops.interpolation import AxisTaps
from tactics.cuda.simple import dims
from tactics.tactic import Workload

COORDINATES = {
    "half_pixel": 0, "pytorch_half_pixel": 0, "half_pixel_symmetric": 0, "align_corners": 1, "tf_crop_and_resize": 1,
    "asymmetric": 2, "tf_half_pixel_for_nn": 3,
}  # fmt: skip
ROUNDINGS = {"round_prefer_floor": 0, "round_prefer_ceil": 1, "floor": 2, "ceil": 3}
MODES = {"nearest": 0, "linear": 1, "cubic": 2}
TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


@dataclass(frozen=True)
class MergedAxis:
    """One output axis (kept neighbours are merged): ``size`` elements, ``step`` elements of the input, ``divisor`` surely
    divides the size. ``number`` is the position among the resized axes, or -1."""

    size: int
    step: int
    divisor: int
    number: int


def axis_varies(workload: Workload, axis: int) -> bool:
    """Whether the input's or output's size along ``axis`` may vary."""
    return workload.axis_varies(0, axis) or workload.axis_varies(1, axis)


def resized_axes(workload: Workload) -> tuple[int, ...]:
    """The axes that may have to be interpolated, the same ones at every size; at least one.

    An axis whose size varies counts unless its ratio is 1: its sizes may be equal by chance.
    """
    op: Resize = workload.op  # type: ignore[assignment]
    found = []
    for axis, tap in enumerate(fixed_taps(workload)):
        if axis_varies(workload, axis):
            told = bool(op.told_scales) and op.told_scales[axis] is not None
            same = not told and bool(op.scales) and op.scales[axis] == 1.0 and op.coordinates != "tf_crop_and_resize"
            if not same:
                found.append(axis)
        elif tap is not None:
            found.append(axis)
    return tuple(found) or (len(op.shape) - 1,)


def fixed_taps(workload: Workload) -> tuple[AxisTaps | None, ...]:
    """What each axis reads at these sizes (None: the axis stays)."""
    return workload.op.taps(dims(workload.inputs[0]))  # type: ignore[attr-defined]


def merged_axes(workload: Workload, resized: tuple[int, ...]) -> tuple[MergedAxis, ...]:
    """The output's axes, innermost first."""
    x, out = dims(workload.inputs[0]), dims(workload.outputs[0])
    pitch = workload.inputs[0].pitch
    found: list[MergedAxis] = []
    for axis in reversed(range(len(out))):
        step, sure = prod(x[axis + 1 :]) if axis == len(out) - 1 or not pitch else prod(x[axis + 1 : -1]) * pitch, 1 if workload.axis_varies(1, axis) else out[axis]
        if axis in resized:
            found.append(MergedAxis(out[axis], step, sure, resized.index(axis)))
        elif found and found[-1].number < 0 and not (pitch and axis == len(out) - 2):
            inner = found[-1]
            found[-1] = MergedAxis(inner.size * out[axis], inner.step, inner.divisor * sure, -1)
        elif sure != 1 or out[axis] != 1 or axis_varies(workload, axis):
            found.append(MergedAxis(out[axis], step, sure, -1))
    return tuple(found)


def table(taps: AxisTaps | None, out: int, work: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int32, negative where the coordinate is outside) and weights, both ``[out, taps]``; the identity for None."""
    if taps is None:
        return np.arange(out, dtype=np.int32).reshape(out, 1), np.ones((out, 1), work)
    indices = taps.indices.astype(np.int32)
    if taps.outside is not None:
        indices[taps.outside] = -1
    return np.ascontiguousarray(indices), np.ascontiguousarray(taps.weights.astype(work))


def coordinate_numbers(op: Resize, axis: int, size: int, out: int) -> dict[str, float | int]:
    """The numbers with which ``resize_taps`` computes an axis' coordinates: as ``_source`` in fusion/ops/interpolation.py."""
    scale = op.ratio(axis)
    ratio = out / size if scale is None else scale
    length, name = ratio * size, op.coordinates
    start, end = op.region(axis)
    base = {"half_pixel_symmetric": size / 2 * (1 - out / length), "tf_crop_and_resize": start * (size - 1)}.get(name, 0.0)
    fixed = (name == "pytorch_half_pixel" and out <= 1) or (COORDINATES[name] == 1 and length == 1)
    if fixed and name == "tf_crop_and_resize":
        base = (start + end) * (size - 1) / 2
    crop = name == "tf_crop_and_resize"
    return {
        "scale": ratio, "base": base, "first": end - start if crop else 1.0, "second": float(size - 1), "over": length - 1,
        "size": size, "out": out, "fixed": int(fixed), "identity": int(out == size and ratio == 1 and not crop),
    }  # fmt: skip
