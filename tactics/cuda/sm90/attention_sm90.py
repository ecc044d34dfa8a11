"""Fused attention on Hopper with TMA and wgmma (``attention_sm90.cu``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusion.dtypes import DataType
from fusion.ops import Attention
from tactics.cuda.attention.attention import Heads, _operands, _refuse, heads_of
from tactics.cuda.gemm.common import C_TYPES, ceil_div, defines, pdl
from tactics.cuda.sm90.tile_sm90 import SHARED, refused
from tactics.tactic import (
    Argument,
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Struct,
    Tactic,
    TensorMap,
    Workload,
    config,
)

BLOCK_Q = 128
THREADS = 384
PANEL = 64  # columns of the head that lie together in shared memory, 128 bytes a row


class Sm90Attention(Tactic):
    """FlashAttention's schedule: 128 query rows a block, keys and values streamed by TMA, softmax beside the tensor cores."""

    id = "cuda.attention.sm90"
    device = "cuda"
    ops = (Attention,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        types = (DataType.HALF, DataType.BF16)
        if refusal := _refuse(workload, types) or refused(device, workload.inputs[0].dtype, True):
            return refusal
        heads, op = heads_of(workload), workload.op
        assert isinstance(heads, Heads) and isinstance(op, Attention)
        if heads.mask:
            return Refusal("the scores have a mask; this kernel knows only causal ones")
        if heads.d != heads.d_v or heads.d not in (64, 128):
            return Refusal(f"head sizes {heads.d} and {heads.d_v}; this kernel takes 64 or 128 for both")
        if op.scale <= 0:
            return Refusal(f"a scale of {op.scale:g}; this kernel takes positive ones")
        if any(strides[3] != 1 for strides in heads.strides):
            return Refusal("the head dimension is not the innermost one")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        d = _heads(workload).d
        found = [config(block_kv=block, stages=stages(d, block)) for block in ((128, 176, 96, 64) if d == 64 else (128, 96, 64))]
        return sorted(found, key=lambda one: self.estimate(workload, one, device))

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        heads, block = _heads(workload), dict(config)["block_kv"]
        blocks = ceil_div(heads.s_q, BLOCK_Q) * heads.heads * heads.batch
        steps = ceil_div(heads.s_k, block)
        waves = ceil_div(blocks, device.multiprocessors)
        if workload.op.causal:  # type: ignore[attr-defined]
            waves, steps = max(1, ceil_div(waves, 2)), steps + 1
        peak = (device.flops.get(workload.inputs[0].dtype.value) or 8e14) / device.multiprocessors * (0.5 if heads.d == 64 else 0.6)
        return 3.5e-6 + waves * (steps * (4 * BLOCK_Q * block * heads.d / peak + 2e-7) + 1e-6)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        heads, chosen = _heads(workload), dict(config)
        block = chosen["block_kv"]
        kernel = Kernel("sm90/attention_sm90.cu", "attention_sm90", defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], HEAD=heads.d, BLOCK_KV=block, STAGES=chosen["stages"],
            CAUSAL=workload.op.causal, PDL=1 if pdl(device) else None,  # type: ignore[attr-defined]
        ))  # fmt: skip
        q, k, v, _ = _operands(workload, heads)
        sides = ((q, heads.heads, heads.s_q, BLOCK_Q), (k, heads.kv_heads, heads.s_k, block), (v, heads.kv_heads, heads.s_k, block))
        maps = tuple(
            _map(buffer, workload.inputs[0].dtype, (heads.d, length, count, heads.batch), strides, rows)
            for (buffer, count, length, rows), strides in zip(sides, heads.strides[:3], strict=True)
        )
        arguments: tuple[Argument, ...] = (
            *maps, Buffer("output"), *map(Scalar, (heads.heads // heads.kv_heads, heads.s_q, heads.s_k)),
            Struct(tuple(Scalar(stride, "i64") for stride in heads.strides[3][:3])),
            Scalar(workload.op.scale * math.log2(math.e), "f32"),  # type: ignore[attr-defined]
        )  # fmt: skip
        grid = (ceil_div(heads.s_q, BLOCK_Q), heads.heads, heads.batch)
        return Plan((Launch(kernel, grid, (THREADS, 1, 1), arguments, shared_memory=shared_bytes(heads.d, block, chosen["stages"]),
                            dependent=pdl(device)),))  # fmt: skip


def _heads(workload: Workload) -> Heads:
    heads = heads_of(workload)
    assert isinstance(heads, Heads)
    return heads


def _map(buffer: Argument, dtype: DataType, dims: tuple[int, ...], strides: tuple[int, ...], rows: int) -> TensorMap:
    """The tiled map (head dimension, position, head, batch) of an operand; ``strides`` of b, h, s in elements."""
    assert isinstance(buffer, Buffer)
    size = dtype.itemsize
    return TensorMap(buffer, dtype, dims, (strides[2] * size, strides[1] * size, strides[0] * size), (PANEL, rows, 1, 1), swizzle=128)


def shared_bytes(d: int, block: int, count: int) -> int:
    """Dynamic shared memory: the queries, the rings of keys and values, barriers."""
    return BLOCK_Q * d * 2 + 2 * count * block * d * 2 + 8 * (1 + 4 * count)


def stages(d: int, block: int) -> int:
    """Blocks of keys, and of values, under way."""
    return next(count for count in (4, 3, 2) if shared_bytes(d, block, count) <= SHARED)


TACTICS = (Sm90Attention(),)
