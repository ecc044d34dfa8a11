"""Attention of few queries over many keys on Hopper, with keys and values through TMA (``attention_decode_sm90.cu``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from fusion.ops import Attention
from tactics.cuda.attention.attention import (
    MOST_QUERIES,
    Heads,
    _mask_defines,
    _operands,
    combined_bytes,
    combining,
    finished,
)
from tactics.cuda.gemm.common import C_TYPES, STORED_TYPES, ceil_div, defines, pdl, round_up
from tactics.cuda.sm90.attention_sm90 import PANEL, _common_refusal, _heads, _in_pairs, _maps, _scale, _strides
from tactics.cuda.sm90.tile_sm90 import SHARED, SHARED_RESERVED, SHARED_SM
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
    Tactic,
    Workload,
    config,
)

ROWS = 16  # of a block: queries of heads that share keys
MOST_SPLITS = 64


class Sm90DecodeAttention(Tactic):
    """Flash-Decoding with a ring of keys and values for each warp, which the copy engine fills; blocks share the keys of a head."""

    id = "cuda.attention.decode_sm90"
    device = "cuda"
    ops = (Attention,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := _common_refusal(workload, device, range(8, 129, 8), "multiples of 8 up to 128"):
            return refusal
        heads, op = _heads(workload), workload.op
        assert isinstance(op, Attention)
        queries = op.stored(workload.inputs)[0]
        if workload.axis_varies(queries.number, queries.layout.index("s")) or heads.s_q > MOST_QUERIES:
            return Refusal(f"{heads.s_q} queries, or a number that varies; this kernel is for up to {MOST_QUERIES}")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        heads = _heads(workload)
        head, sides = round_up(heads.d, PANEL), blocks_of(heads)
        found = []
        for blocks, warps, keys in product((1, 2), (4, 8), (16, 32)):
            stages, steps = stages_of(head, warps, keys, blocks), ceil_div(heads.s_k, keys)
            slots, most = blocks * device.multiprocessors, min(MOST_SPLITS, ceil_div(steps, warps))
            wanted = {1, ceil_div(slots // sides, 2), *(waves * slots // sides for waves in (1, 2, 3, 4))}
            for splits in {max(1, min(one, most)) for one in wanted}:
                needed = max(min(2, ceil_div(ceil_div(steps, splits), warps)), ceil_div(ROWS * (head + 8), keys * head))  # results lie there at the end
                if stages >= needed:
                    found.append(config(blocks=blocks, warps=warps, keys=keys, stages=stages, splits=splits))
        return sorted(found, key=lambda one: (self.estimate(workload, one, device), one))[:10]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        heads, chosen = _heads(workload), dict(config)
        head, splits, keys = round_up(heads.d, PANEL), chosen["splits"], chosen["keys"]
        blocks = blocks_of(heads) * splits
        waves = ceil_div(blocks, device.multiprocessors * chosen["blocks"])
        steps = ceil_div(ceil_div(heads.s_k, keys), splits)
        each = steps * keys * head * 4  # bytes of a block
        busy = min(chosen["blocks"], ceil_div(blocks, device.multiprocessors))
        moved = waves * busy * each / (0.93 * device.bandwidth / device.multiprocessors)
        under_way = min(chosen["stages"], ceil_div(steps, chosen["warps"])) * chosen["warps"] * keys * head * 4 * busy
        latency = waves * busy * each / under_way * 1e-6
        chains = waves * ceil_div(steps, chosen["warps"]) * (2e-7 + 1.5e-8 * keys * head / 128)
        joined = 1.5e-6 + splits * blocks_of(heads) * ROWS * head * 8 / device.bandwidth if splits > 1 else 0.0
        return 3e-6 + waves * 1e-6 + max(moved, latency, chains) + joined

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        heads, chosen = _heads(workload), dict(config)
        head, splits = round_up(heads.d, PANEL), chosen["splits"]
        code = finished(workload)
        kernel = Kernel("sm90/attention_decode_sm90.cu", "attention_decode_sm90", (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], HEAD=head, WARPS=chosen["warps"], KEYS=chosen["keys"], STAGES=chosen["stages"], BLOCKS=chosen["blocks"],
            SPLIT=1 if splits > 1 else None, PDL=1 if pdl(device) else None, **_mask_defines(workload, heads),
            MASK_PAIRS=int(_in_pairs(workload, heads) and not any(step % 2 for step in heads.mask_strides[:3])) if heads.mask else None,
        ), *code.defines), code.prelude)  # fmt: skip
        q, *_, mask = _operands(workload, heads)
        group = heads.heads // heads.kv_heads
        arguments: tuple[Argument, ...] = (
            q, *_maps(workload, heads, ROWS, chosen["keys"], PANEL)[1:], mask, Buffer("output"), *map(Scalar, (group, heads.s_q, heads.s_k, heads.d)),
            _strides(heads.strides[0]), _strides(heads.strides[3]), _strides(heads.mask_strides), Scalar(heads.mask_strides[3]), _scale(workload),
            Buffer("workspace") if splits > 1 else Scalar(0, "u64"), Scalar(splits),
        )  # fmt: skip
        rows = heads.s_q * group
        one = Launch(kernel, (ceil_div(rows, ROWS) * splits, heads.kv_heads, heads.batch), (32 * chosen["warps"], 1, 1), arguments,
                     shared_memory=shared_bytes(head, chosen["warps"], chosen["keys"], chosen["stages"]), dependent=pdl(device))  # fmt: skip
        if splits == 1:
            return Plan((one,))
        joining = combining(workload, heads, device, head, rows, heads.kv_heads, splits)
        return Plan((one, joining), combined_bytes(heads, head, rows, heads.kv_heads, splits))


def blocks_of(heads: Heads) -> int:
    """That read all keys of a head each, without splits."""
    return heads.batch * heads.kv_heads * ceil_div(heads.s_q * heads.heads // heads.kv_heads, ROWS)


def shared_bytes(head: int, warps: int, keys: int, stages: int) -> int:
    """Dynamic shared memory: the warps' rings, barriers, and what warps tell each other."""
    return warps * (stages * (keys * head * 4 + 16) + ROWS * 8)


def stages_of(head: int, warps: int, keys: int, blocks: int) -> int:
    """Steps of a warp under way, with ``blocks`` of a multiprocessor."""
    room = min(SHARED, SHARED_SM // blocks - SHARED_RESERVED) - warps * ROWS * 8
    return min(8, room // (warps * (keys * head * 4 + 16)))


TACTICS = (Sm90DecodeAttention(),)
