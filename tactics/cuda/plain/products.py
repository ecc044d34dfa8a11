"""Products of float64 and wide integers, one thread per output element: right everywhere, fast nowhere.

Tensor cores multiply neither, and networks rarely hold them; the kernels are there so that such networks run.
"""

from __future__ import annotations

from math import prod

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import compute_type
from fusion.network import TensorType
from fusion.ops import Attention, Convolution, Deconvolution, MatrixMultiply
from fusion.ops.epilogue import product_type
from tactics.cuda.codegen import STORAGE_TYPES, storage_type
from tactics.cuda.epilogue import EpilogueCode, epilogue_argument, finish_code
from tactics.cuda.simple import OUT, ceil_div, count, defines, dims, divider, launch, refuse_large
from tactics.tactic import Argument, Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Struct, Tactic, Workload

FILE = "plain/products.cu"
THREADS = 128
TYPES = (
    DataType.DOUBLE, DataType.INT16, DataType.INT32, DataType.INT64, DataType.UINT16, DataType.UINT32, DataType.UINT64
)  # fmt: skip
A, B = Buffer("input", 0), Buffer("input", 1)


def _refusal(workload: Workload, operands: int, types: tuple[DataType, ...] = TYPES) -> Refusal | None:
    found = [tensor.dtype for tensor in workload.inputs[:operands]]
    if len(set(found)) > 1 or found[0] not in types:
        return Refusal(f"inputs are {', '.join(one.label for one in found)}; this kernel takes {', '.join(one.label for one in types)}")
    if workload.outputs[0].dtype not in STORAGE_TYPES:
        return Refusal(f"the output is {workload.outputs[0].dtype.label}, which this kernel cannot store")
    return refuse_large(workload)


def _types(dtype: DataType, out: DataType) -> dict[str, object]:
    total = np.dtype(np.int32) if dtype.is_integer and dtype.itemsize < 4 else dtype.numpy
    return {"IN_T": storage_type(dtype), "OUT_T": storage_type(out), "SUM": storage_type(DataType(total.name)),
            "RESULT": storage_type(compute_type(product_type(dtype))), "THREADS": THREADS}  # fmt: skip


def _epilogue(workload: Workload) -> EpilogueCode | Refusal:
    return finish_code(workload, product_type(workload.inputs[0].dtype))


def _product_refusal(workload: Workload) -> Refusal | None:
    code = _epilogue(workload)
    return _refusal(workload, 2) or (code if isinstance(code, Refusal) else None)


class PlainMatmul(Tactic):
    """Matrix products."""

    id = "cuda.plain.matmul"
    device = "cuda"
    ops = (MatrixMultiply,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return _product_refusal(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (a, b, *_), out = workload.op, map(dims, workload.inputs), dims(workload.outputs[0])
        code = _epilogue(workload)
        assert isinstance(op, MatrixMultiply) and isinstance(code, EpilogueCode)
        total = prod(out)
        if not total:
            return Plan(())
        depth = a[-2] if op.transpose_a else a[-1]
        steps = [(1, a[-1]) if op.transpose_a else (a[-1], 1), (b[-1], 1) if op.transpose_b else (1, b[-1])]
        sizes: list[Scalar] = []
        strides: list[list[Scalar]] = [[], []]
        for axis in range(-3, -1 - len(out), -1):
            sizes += divider(out[axis])
            for number, shape in enumerate((a, b)):
                own = len(shape) >= -axis and shape[axis] > 1
                strides[number].append(Scalar(prod(shape[axis + 1 :]) if own else 0, "i64"))
        if not strides[0]:
            sizes, strides = list(divider(1)), [[Scalar(0, "i64")], [Scalar(0, "i64")]]
        names = defines(device, KIND=0, RANK=len(strides[0]), **_types(workload.inputs[0].dtype, workload.outputs[0].dtype))
        arguments: tuple[Argument, ...] = (
            A, B, OUT, Scalar(total, "u32"), Scalar(depth), *(Scalar(step, "i64") for pair in steps for step in pair),
            Struct(divider(out[-1])), Struct(divider(out[-2])), Struct((*sizes, *strides[0], *strides[1])), epilogue_argument(code),
        )  # fmt: skip
        kernel = Kernel(FILE, "plain_matmul", (*names, *code.defines), code.prelude)
        return Plan((launch(kernel, ceil_div(total, THREADS), THREADS, arguments),))


def _windowed(workload: Workload, device: DeviceSpec, kind: int, entry: str, reads_last: bool, channels: int, per_group: int) -> Plan:
    """A convolution (``kind`` 1) or transposed convolution (3); ``channels`` are those that an output element sums."""
    op, (x, weights, *_), out = workload.op, map(dims, workload.inputs), dims(workload.outputs[0])
    code = _epilogue(workload)
    assert isinstance(op, Convolution | Deconvolution) and isinstance(code, EpilogueCode)
    total, window = prod(out), weights[2:]
    if not total:
        return Plan(())
    spatial = x[1:-1] if reads_last else x[2:]
    places = out[1:-1] if op.channels_last else out[2:]
    inner = x[-1] if reads_last else 1
    axes: list[Scalar | Buffer] = []
    for axis, size in enumerate(spatial):
        axes += [*divider(places[axis]), Scalar(size), Scalar(window[axis]), Scalar(op.stride[axis]),
                 Scalar(int(op.pre_padding[axis])), Scalar(op.dilation[axis]), Scalar(prod(spatial[axis + 1 :]) * inner)]  # type: ignore[arg-type] # fmt: skip
    names = defines(device, KIND=kind, RANK=len(spatial), CHANNELS_LAST=op.channels_last,
                    **_types(workload.inputs[0].dtype, workload.outputs[0].dtype))  # fmt: skip
    arguments: tuple[Argument, ...] = (
        A, B, OUT, Scalar(total, "u32"), Scalar(out[-1]), Scalar(channels), Scalar(1 if reads_last else prod(spatial)),
        Scalar(prod(window)), Scalar(prod(x[1:]), "i64"), Struct(divider(per_group * op.groups)), Struct(divider(per_group)),
        Struct(tuple(axes)), epilogue_argument(code),
    )  # fmt: skip
    kernel = Kernel(FILE, entry, (*names, *code.defines), code.prelude)
    return Plan((launch(kernel, ceil_div(total, THREADS), THREADS, arguments),))


class PlainConvolution(Tactic):
    """Convolutions of one to three spatial axes, in any layout."""

    id = "cuda.plain.convolution"
    device = "cuda"
    ops = (Convolution,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return _product_refusal(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (outputs, channels, *_) = workload.op, dims(workload.inputs[1])
        assert isinstance(op, Convolution)
        return _windowed(workload, device, 1, "plain_convolution", op.reads_channels_last, channels, outputs // op.groups)


class PlainDeconvolution(Tactic):
    """Transposed convolutions of one to three spatial axes, in any layout."""

    id = "cuda.plain.deconvolution"
    device = "cuda"
    ops = (Deconvolution,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return _product_refusal(workload)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (channels, per_group, *_) = workload.op, dims(workload.inputs[1])
        assert isinstance(op, Deconvolution)
        return _windowed(workload, device, 3, "plain_deconvolution", op.channels_last, channels // op.groups, per_group)


class PlainAttention(Tactic):
    """Attention in float64: a block per row of the scores, which lie in scratch memory."""

    id = "cuda.plain.attention"
    device = "cuda"
    ops = (Attention,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Attention)
        return _refusal(workload, op.sources, (DataType.DOUBLE,))

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, Attention)
        parts = op.stored(workload.inputs)
        q, k, v = (dict(zip(part.layout, dims(part.type), strict=True)) for part in parts)
        rows, keys = q["s"], k["s"]
        if not count(workload.outputs[0]):
            return Plan(())
        stored = [(part.layout, workload.inputs[part.number]) for part in parts]
        strides = [self._strides(layout, tensor) for layout, tensor in (*stored, (op.layouts[3], workload.outputs[0]))]
        mask = workload.inputs[op.arity - 1] if op.masked else workload.inputs[0]
        named = Struct(tuple(Scalar(step, "i64") for step in self._mask_strides(mask) if op.masked) or (Scalar(0, "i64"),) * 4)
        kind = 0 if not op.masked else 2 if mask.dtype is DataType.BOOL else 1
        extra = {name: value for name, value in (("SOFTCAP", op.softcap), ("WINDOW", op.window)) if value}
        names = defines(device, KIND=2, MASKED=kind, MASK_T=storage_type(mask.dtype), CAUSAL=op.causal, **extra,
                        **_types(DataType.DOUBLE, DataType.DOUBLE))  # fmt: skip
        buffers = [Buffer("input", part.number, part.first * step["h"] * 8) for part, step in zip(parts, strides, strict=False)]
        fields = [Struct(tuple(Scalar(one[axis], "i64") for axis in "bhsd")) for one in strides]
        blocks = q["b"] * q["h"] * rows
        arguments: tuple[Argument, ...] = (
            *buffers, Buffer("input", op.arity - 1) if op.masked else A, OUT, Buffer("workspace"), Scalar(q["h"]), Scalar(q["h"] // k["h"]),
            Scalar(rows), Scalar(keys), Scalar(q["d"]), Scalar(v["d"]), Scalar(op.scale, "f64"), *fields[:3], named, fields[3],
        )  # fmt: skip
        kernel = Kernel(FILE, "plain_attention", names)
        return Plan((launch(kernel, blocks, THREADS, arguments),), max(1, blocks * keys) * 8)

    @staticmethod
    def _strides(layout: str, tensor: TensorType) -> dict[str, int]:
        shape = dims(tensor)
        return {axis: prod(shape[number + 1 :]) for number, axis in enumerate(layout)}

    @staticmethod
    def _mask_strides(mask: TensorType) -> list[int]:
        """Of batch, head, row and column; 0 where the mask is broadcast."""
        shape = (*(1,) * (4 - len(mask.shape)), *dims(mask))
        return [prod(shape[axis + 1 :]) if shape[axis] > 1 else 0 for axis in range(4)]


TACTICS = (PlainMatmul(), PlainConvolution(), PlainDeconvolution(), PlainAttention())
