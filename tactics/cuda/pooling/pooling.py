"""Windowed pooling; a pooling over the whole image is a reduction and runs as one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

from fusion.dtypes import DataType
from fusion.expression import compute_type, type_of
from fusion.ops import Pooling
from tactics.cuda.codegen import literal, storage_type
from tactics.cuda.epilogue import EpilogueCode, epilogue_argument, in_namespace, moved_argument, prologue_code
from tactics.cuda.reduce.reduce import (
    Reduction,
    columns_configs,
    columns_pitched,
    columns_plan,
    is_columns,
    is_rows,
    reduction,
    refusal_of,
    rows_configs,
    rows_plan,
)  # fmt: skip
from tactics.cuda.simple import (
    OUT,
    ceil_div,
    defines,
    dims,
    divider,
    known,
    launch,
    out_pitch,
    refuse_large,
    vector_width,
    wrap_code,
)
from tactics.tactic import (
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
    every_tensor,
)

KINDS = {"max": 0, "average": 1, "lp": 2}


def _spatial(workload: Workload) -> tuple[int, ...]:
    op: Pooling = workload.op  # type: ignore[assignment]
    rank = len(workload.inputs[0].shape)
    return tuple(range(1, rank - 1)) if op.channels_last else tuple(range(2, rank))


def _work(workload: Workload) -> DataType:
    """The type in which what is pooled is computed."""
    op: Pooling = workload.op  # type: ignore[assignment]
    operands, _ = op.split(workload.inputs)
    return compute_type(type_of(op.prologue, [tensor.dtype for tensor in operands]))


def _code(workload: Workload) -> tuple[str, EpilogueCode, EpilogueCode | None] | Refusal:
    """The prelude, the epilogue, and a prologue that reads further tensors: that one is an epilogue of what is read."""
    op: Pooling = workload.op  # type: ignore[assignment]
    if not op.operands:
        found = wrap_code(workload, op.prologue)
        return found if isinstance(found, Refusal) else (*found, None)
    if not op.channels_last:
        return Refusal("the prologue reads further tensors, and the image is channels first")
    operands, _ = op.split(workload.inputs)
    made = replace(workload.inputs[0], dtype=type_of(op.prologue, [tensor.dtype for tensor in operands]))
    if compute_type(made.dtype) is not compute_type(workload.inputs[0].dtype):
        return Refusal(f"a prologue of {workload.inputs[0].dtype.label} to {made.dtype.label} with further tensors")
    constant = op.split(workload.constant)[0] if workload.constant else ()
    varies = op.split(workload.varies[: len(workload.inputs)])[0] if workload.varies else ()
    first = prologue_code(replace(workload, inputs=operands, outputs=(made,), constant=constant, varies=(*varies, *varies[:1])), op.prologue)
    rest = wrap_code(workload)
    if isinstance(first, Refusal) or isinstance(rest, Refusal):
        return first if isinstance(first, Refusal) else rest  # type: ignore[return-value]
    return in_namespace(first, "before") + rest[0], rest[1], first


class WindowPooling(Tactic):
    """Any window, one thread per output position and vector of channels (channels last) or per output (channels first)."""

    id = "cuda.pooling.window"
    device = "cuda"
    ops = (Pooling,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op: Pooling = workload.op  # type: ignore[assignment]
        if op.kind not in KINDS:
            return Refusal(f"pooling kind {op.kind!r}; this kernel has {', '.join(KINDS)}")
        if not 1 <= len(op.stride) <= 3:
            return Refusal(f"pooling over {len(op.stride)} dimensions; this kernel has 1 to 3")
        work = _work(workload)
        if op.kind != "max" and not work.is_float:
            return Refusal(f"{op.kind} pooling of {work.value}; it needs a floating-point type")
        code = _code(workload)
        return code if isinstance(code, Refusal) else refuse_large(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload) if workload.op.channels_last else ()  # type: ignore[attr-defined]

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        op: Pooling = workload.op  # type: ignore[assignment]
        widest = 1
        if op.channels_last:
            item = min(workload.inputs[0].dtype.itemsize, workload.outputs[0].dtype.itemsize)
            widest = vector_width(item, known(workload, 0, (-1,)))
        outputs = prod(dims(workload.outputs[0]))
        choices = [widest, max(1, widest // 2), max(1, widest // 4)]
        if outputs // widest < device.multiprocessors * 256:  # small: more threads rather than wider ones
            choices.reverse()
        return [config(v=v, threads=threads) for v in dict.fromkeys(choices) for threads in (128, 256)][:4]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op: Pooling = workload.op  # type: ignore[assignment]
        chosen = dict(config)
        v, threads = chosen["v"], chosen["threads"]
        x, out = dims(workload.inputs[0]), dims(workload.outputs[0])
        axes = _spatial(workload)
        channels = x[-1] if op.channels_last else 1
        code = _code(workload)
        assert not isinstance(code, Refusal)
        prelude, epilogue, before = code
        work = _work(workload)
        lowest = literal(0, work)
        if op.kind == "max":
            import numpy as np

            lowest = literal(float("-inf") if work.is_float else False if work is DataType.BOOL else int(np.iinfo(work.numpy).min), work)
        prelude += f"#define LOWEST ({lowest})\n"
        names = defines(
            device, IN_T=storage_type(workload.inputs[0].dtype), OUT_T=storage_type(workload.outputs[0].dtype), KIND=KINDS[op.kind],
            P=op.p, VEC=v, THREADS=threads, AXES=len(axes), COUNT_PAD=op.count_include_pad,
            **({} if before is None else {"HAS_PROLOGUE": 1}), **out_pitch(workload))  # fmt: skip
        kernel = Kernel("pooling/pooling.cu", "pool", (*names, *epilogue.defines), prelude)
        fields: list[Buffer | Scalar] = []
        for size in _three([out[axis] for axis in axes], 1):
            fields += divider(size)
        fields += divider(channels // v)
        columns = ([x[axis] for axis in axes], op.window, op.stride, op.pre_padding, op.post_padding, op.dilation)
        for column, missing in zip(columns, (1, 1, 1, 0, 0, 1), strict=True):
            fields += [Scalar(int(value)) for value in _three([int(one) for one in column], missing)]  # type: ignore[arg-type]
        count = prod(out) // v
        arguments = (Buffer("input"), OUT, Scalar(count, "u32"), Scalar(workload.inputs[0].pitch or channels), Scalar(out[-1]), Struct(tuple(fields)),
                     epilogue_argument(epilogue), *(() if before is None else (moved_argument(before, len(workload.inputs) - op.operands - 1),)))  # fmt: skip
        return Plan((launch(kernel, ceil_div(count, threads), threads, arguments),))


def _three(values: Sequence[int], missing: int) -> tuple[int, ...]:
    return (*(missing,) * (3 - len(values)), *values)


class GlobalPooling(Tactic):
    """A maximum or average over the whole image, as a reduction."""

    id = "cuda.pooling.global"
    device = "cuda"
    ops = (Pooling,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op: Pooling = workload.op  # type: ignore[assignment]
        shape = dims(workload.inputs[0])
        whole = all(
            int(window) == shape[axis] and not int(pre) and not int(post) and dilation == 1  # type: ignore[arg-type]
            for axis, window, pre, post, dilation in zip(
                _spatial(workload), op.window, op.pre_padding, op.post_padding, op.dilation, strict=True
            )
        )
        if not whole or op.kind not in ("max", "average"):
            return Refusal(f"{op.kind} pooling with window {op.window} is not one over the whole image {shape}")
        if any(workload.axis_varies(0, axis) for axis in _spatial(workload)) and any(
            not workload.axis_varies(0, axis) for axis in _spatial(workload)
        ):
            return Refusal("some spatial sizes vary and others do not, so the window may differ from the image at another size")
        if op.operands:
            return Refusal("the prologue reads further tensors")
        found = self._reduction(workload)
        if not is_rows(found) and not is_columns(found):
            return Refusal("the image has one element")
        if found.kind == "mean" and not _work(workload).is_float:
            return Refusal("average pooling needs a floating-point type")
        return refusal_of(workload, found)

    @staticmethod
    def _reduction(workload: Workload) -> Reduction:
        op: Pooling = workload.op  # type: ignore[assignment]
        return reduction(workload, _spatial(workload), "max" if op.kind == "max" else "mean", op.prologue)

    def pitched(self, workload: Workload) -> Collection[int]:
        return columns_pitched(workload, self._reduction(workload))

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        found = self._reduction(workload)
        return rows_configs(workload, found, device) if is_rows(found) else columns_configs(workload, found, device)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        found = self._reduction(workload)
        build = rows_plan if is_rows(found) else columns_plan
        return build(workload, found, config, device)


TACTICS = (GlobalPooling(), WindowPooling())
