"""Resize in every mode of ONNX, from tables of taps that are made at build and packed with the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Resize
from fusion.ops.interpolation import AxisTaps
from tactics.cuda.codegen import STORAGE_TYPES, storage_type
from tactics.cuda.simple import OUT, ceil_div, defines, dims, divider, launch, raw_type, refuse_large
from tactics.tactic import (
    Argument,
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Plan,
    Refusal,
    Scalar,
    Struct,
    Tactic,
    Workload,
    config,
)

FILE = "resize/resize.cu"


@dataclass(frozen=True)
class _Axis:
    """One axis of the merged view, with its taps when it is resized."""

    out: int
    size: int
    step: int
    taps: AxisTaps | None
    sure: int  # what surely divides its size


def _view(workload: Workload) -> list[_Axis]:
    """The axes, innermost first; neighbours that stay are merged."""
    op: Resize = workload.op  # type: ignore[assignment]
    x, out = dims(workload.inputs[0]), dims(workload.outputs[0])
    found: list[_Axis] = []
    step = 1
    for axis in reversed(range(len(x))):
        taps = op.taps(x)[axis]
        sure = 1 if workload.axis_varies(0, axis) else x[axis]
        if taps is None and found and found[-1].taps is None:
            inner = found[-1]
            found[-1] = _Axis(inner.out * x[axis], inner.size * x[axis], inner.step, None, inner.sure * sure)
        else:
            found.append(_Axis(out[axis], x[axis], step, taps, sure))
        step *= x[axis]
    return found or [_Axis(1, 1, 1, None, 1)]


class TableResize(Tactic):
    """Nearest, linear and cubic along any axes whose sizes are fixed; in vectors when the channels are last."""

    id = "cuda.resize.table"
    device = "cuda"
    ops = (Resize,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op: Resize = workload.op  # type: ignore[assignment]
        x = dims(workload.inputs[0])
        try:
            taps = op.taps(x)
        except ValueError as reason:
            return Refusal(str(reason))
        for axis, tap in enumerate(taps):
            varies = workload.axis_varies(0, axis) or workload.axis_varies(1, axis)
            if varies and (tap is not None or x[axis] != dims(workload.outputs[0])[axis]):
                return Refusal(f"axis {axis} is resized and its size varies, but the table of taps is made at build")
        dtype = workload.inputs[0].dtype
        if op.mode != "nearest" and (dtype not in STORAGE_TYPES or dtype is DataType.BOOL):
            return Refusal(f"{op.mode} resize of {dtype.value}")
        return refuse_large(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        inner = _view(workload)[0]
        widest = max(1, 16 // workload.inputs[0].dtype.itemsize) if inner.taps is None else 1
        while inner.sure % widest:
            widest //= 2
        if workload.op.mode != "nearest":  # type: ignore[attr-defined]
            widest = min(widest, 8)
        choices = list(dict.fromkeys((widest, max(1, widest // 2), max(1, widest // 4))))
        if prod(dims(workload.outputs[0])) // widest < device.multiprocessors * 512:
            choices.reverse()
        return [config(v=v, threads=threads) for v in choices for threads in (256, 128)][:4]

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        """The tables of all resized axes, innermost axis first: indices as int32 (-1: outside), weights in the computed type."""
        indices, weights = [np.zeros(0, np.int32)], [np.zeros(0)]
        for axis in _view(workload):
            if axis.taps is not None:
                index = axis.taps.indices.astype(np.int32)
                if axis.taps.outside is not None:
                    index = np.where(axis.taps.outside[:, None], np.int32(-1), index)
                indices.append(index.reshape(-1))
                weights.append(axis.taps.weights.reshape(-1))
        table = np.concatenate([*indices, np.zeros(1, np.int32)])  # never empty
        if workload.op.mode == "nearest":  # type: ignore[attr-defined]
            return (table,)
        work = np.float64 if workload.inputs[0].dtype is DataType.DOUBLE else np.float32
        return table, np.concatenate([*weights, np.zeros(1)]).astype(work)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op: Resize = workload.op  # type: ignore[assignment]
        chosen, dtype, view = dict(config), workload.inputs[0].dtype, _view(workload)
        v, threads = chosen["v"], chosen["threads"]
        nearest = op.mode == "nearest"
        taps = [0 if axis.taps is None else axis.taps.indices.shape[1] for axis in view]
        tables, end = [], 0
        for axis, count in zip(view, taps, strict=True):
            tables.append(end)
            end += axis.out * count
        fields: list[Buffer | Scalar] = []
        for position, axis in enumerate(view):
            fields += divider(axis.out // v if position == 0 else axis.out)
        for position, axis in enumerate(view):
            step = axis.step * (v if position == 0 else 1)
            fields.append(Scalar(step // v if nearest else step, "u32"))
        fields += [Scalar(offset, "u32") for offset in tables]
        total = prod(axis.out for axis in view) // v
        same = {"RANK": len(view), "TAPS": ",".join(map(str, taps)), "THREADS": threads, "NEAREST": nearest}
        x, index_table, weight_table = Buffer("input"), Buffer("packed", 0), Buffer("packed", 1)
        arguments: tuple[Argument, ...]
        if nearest:
            names = defines(device, MOVE_T=raw_type(dtype.itemsize * v), ELEMENT=raw_type(dtype.itemsize), **same)
            kernel = Kernel(FILE, "resize_nearest", names, '#include "vector.cuh"\n')
            bits = int.from_bytes(np.asarray(op.extrapolation).astype(dtype.numpy).tobytes(), "little")
            arguments = (x, index_table, OUT, Scalar(total, "u32"), Scalar(bits, "u64"), Struct(tuple(fields)))
        else:
            work = "double" if dtype is DataType.DOUBLE else "float"
            names = defines(device, ELEM_T=storage_type(dtype), WORK=work, VEC=v, MANY=prod(max(1, tap) for tap in taps) > 16, **same)
            kernel = Kernel(FILE, "resize_weighted", names, '#include "vector.cuh"\n')
            arguments = (x, index_table, weight_table, OUT, Scalar(total, "u32"), Scalar(float(op.extrapolation), "f64"), Struct(tuple(fields)))
        return Plan((launch(kernel, ceil_div(total, threads), threads, arguments),))


TACTICS = (TableResize(),)
