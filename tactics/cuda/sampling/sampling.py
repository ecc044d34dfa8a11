"""Reads at computed positions: GridSample, deformable columns (a thread per position and run of channels), pooled regions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fusion.dtypes import DataType
from fusion.expression import compute_type
from fusion.network import TensorType
from fusion.ops import DeformableColumns, GridSample, RoiAlign, RoiPool
from tactics.cuda.codegen import STORAGE_TYPES, storage_type
from tactics.cuda.simple import OUT, ceil_div, count, defines, dims, divider, launch, refuse_large
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

THREADS = 128
MODES = {"nearest": 0, "linear": 1, "cubic": 2}
PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}
X, PLACES, THIRD = (Buffer("input", number) for number in range(3))


def _work(tensor: TensorType) -> str:
    return storage_type(compute_type(tensor.dtype))


def _refusal(workload: Workload) -> Refusal | None:
    for number, tensor in enumerate(workload.inputs):
        if tensor.dtype not in STORAGE_TYPES:
            return Refusal(f"input {number} is {tensor.dtype.value}; these kernels do not read it")
    if len(workload.inputs[0].shape) > 5:
        return Refusal(f"{len(workload.inputs[0].shape) - 2} spatial axes; these kernels have 1 to 3")
    return refuse_large(workload)


def _chunks(channels: int, positions: int, device: DeviceSpec) -> list[Config]:
    """Channels that a thread reads: as many as still fill the device first."""
    widths = [width for width in (256, 64, 16, 4, 1) if width < 2 * channels and channels < 65536 * width]
    full = device.multiprocessors * 1024
    widths.sort(key=lambda width: (positions * ceil_div(channels, width) < full, -width))
    return [config(chunk=width) for width in widths]


class GridSampling(Tactic):
    """GridSample of one to three spatial axes."""

    id = "cuda.sampling.grid"
    device = "cuda"
    ops = (GridSample,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return _refusal(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        out = dims(workload.outputs[0])
        return _chunks(out[1], out[0] * prod(out[2:]), device)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (x, grid), out = workload.op, workload.inputs, dims(workload.outputs[0])
        assert isinstance(op, GridSample)
        if not prod(out):
            return Plan(())
        chunk, spatial, places = dict(config)["chunk"], dims(x)[2:], prod(out[2:])
        names = defines(device, KIND=0, MODE=MODES[op.mode], PADDING=PADDINGS[op.padding], ALIGN=op.align_corners, RANK=len(spatial),
                        IN_T=storage_type(x.dtype), WORK=_work(x), GRID_T=storage_type(grid.dtype), POS=_work(grid), THREADS=THREADS)  # fmt: skip
        arguments = (X, PLACES, OUT, Scalar(out[0] * places, "u32"), Scalar(out[1]), Scalar(chunk), Scalar(prod(spatial)),
                     Struct(divider(places)), Struct(tuple(Scalar(size) for size in spatial)))  # fmt: skip
        blocks = (ceil_div(out[0] * places, THREADS), ceil_div(out[1], chunk))
        return Plan((launch(Kernel("sampling/grid.cu", "grid_sample", names), blocks, THREADS, arguments),))


class DeformableGather(Tactic):
    """Columns of a deformable convolution with one to three spatial axes."""

    id = "cuda.sampling.deformable"
    device = "cuda"
    ops = (DeformableColumns,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if len({tensor.dtype for tensor in workload.inputs[1:]}) > 1:
            return Refusal("offset and mask are of different types")
        return _refusal(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        op, x, out = workload.op, dims(workload.inputs[0]), dims(workload.outputs[0])
        assert isinstance(op, DeformableColumns)
        return _chunks(x[1] // op.groups, x[0] * op.groups * prod(op.window) * prod(out[2:]), device)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (x, offset, *_), out = workload.op, workload.inputs, dims(workload.outputs[0])
        assert isinstance(op, DeformableColumns)
        if not prod(out):
            return Plan(())
        chunk, (batch, channels, *spatial) = dict(config)["chunk"], dims(x)
        places, taps, each = prod(out[2:]), prod(op.window), channels // op.groups
        names = defines(device, KIND=1, MODE=1, PADDING=0, MASKED=op.masked, RANK=len(spatial), IN_T=storage_type(x.dtype),
                        WORK=_work(x), GRID_T=storage_type(offset.dtype), POS=_work(offset), THREADS=THREADS)  # fmt: skip
        axes: list[Scalar | Buffer] = []
        for axis, size in enumerate(spatial):
            axes += [Scalar(size), *divider(out[2 + axis]), *divider(op.window[axis]), Scalar(op.stride[axis]),
                     Scalar(int(op.pre_padding[axis])), Scalar(op.dilation[axis])]  # type: ignore[arg-type] # fmt: skip
        positions = batch * op.groups * taps * places
        arguments: tuple[Argument, ...] = (
            X, PLACES, THIRD if op.masked else PLACES, OUT, Scalar(positions, "u32"), Scalar(each), Scalar(chunk), Scalar(prod(spatial)),
            Struct(divider(places)), Struct(divider(taps)), Struct(tuple(axes)),
        )  # fmt: skip
        blocks = (ceil_div(positions, THREADS), ceil_div(each, chunk))
        return Plan((launch(Kernel("sampling/grid.cu", "deformable_columns", names), blocks, THREADS, arguments),))


class Regions(Tactic):
    """RoiAlign and RoiPool: one thread per output element."""

    id = "cuda.sampling.regions"
    device = "cuda"
    ops = (RoiAlign, RoiPool)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        x = workload.inputs[0].dtype
        if not x.is_float or not workload.inputs[1].dtype.is_float:
            return Refusal(f"x is {x.value}, regions are {workload.inputs[1].dtype.value}; real numbers are needed")
        if isinstance(workload.op, RoiAlign) and workload.inputs[2].dtype not in (DataType.INT32, DataType.INT64):
            return Refusal(f"image numbers are {workload.inputs[2].dtype.value}; int32 or int64 is needed")
        return _refusal(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (x, regions, *images), out = workload.op, workload.inputs, dims(workload.outputs[0])
        assert isinstance(op, RoiAlign | RoiPool)
        total, (batch, _, height, width) = count(workload.outputs[0]), dims(x)
        if not total:
            return Plan(())
        same: dict[str, object] = {"IN_T": storage_type(x.dtype), "WORK": _work(x), "ROI_T": storage_type(regions.dtype),
                                   "POS": _work(regions), "THREADS": THREADS}  # fmt: skip
        scale = Scalar(float(op.scale), "f64" if compute_type(regions.dtype).itemsize == 8 else "f32")
        cells = (Struct(divider(out[3])), Struct(divider(out[2])), Struct(divider(out[1])))
        sizes = (Scalar(total, "u32"), Scalar(batch), Scalar(height), Scalar(width))
        arguments: tuple[Argument, ...]
        if isinstance(op, RoiAlign):
            names = defines(device, KIND=0, HALF=op.half_pixel, MAXIMUM=op.maximum, INDEX_T=storage_type(images[0].dtype), **same)
            entry, arguments = "roi_align", (X, PLACES, THIRD, OUT, *sizes, Scalar(op.samples), scale, *cells)
        else:
            names = defines(device, KIND=1, **same)
            entry, arguments = "roi_pool", (X, PLACES, OUT, *sizes, scale, *cells)
        return Plan((launch(Kernel("sampling/regions.cu", entry, names), ceil_div(total, THREADS), THREADS, arguments),))


TACTICS = (GridSampling(), DeformableGather(), Regions())
