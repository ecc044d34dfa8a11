"""Fused attention on Hopper with TMA and wgmma: long sequences (``attention_steady_sm90.cu``; ``attention_sm90.cu`` for heads of 128) and short
ones (``attention_short_sm90.cu``)."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from fusion.dtypes import DataType
from fusion.ops import Attention
from tactics.cuda.attention.attention import Heads, _mask_defines, _operands, _refuse, finished, heads_of
from tactics.cuda.gemm.common import C_TYPES, STORED_TYPES, ceil_div, defines, pdl, round_up
from tactics.cuda.sm90.tile_sm90 import SHARED, SHARED_RESERVED, SHARED_SM, refused, register_limit
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

PANEL = 64  # columns of the head that lie together in shared memory, 128 bytes a row
SHORT_ROWS, SHORT_KEYS = 64, 256  # of the short kernel's one product
ROWS = 128  # queries of a tile of the long kernel
KEYS_A_STEP = (128, 96, 64, 112, 80, 48)
REGISTERS = 180  # a thread may hold of scores, weights, sums and mask without spills


@dataclass(frozen=True)
class Rings:
    """What is under way at once: tiles of queries, blocks of keys and of values, blocks of the mask (0: it does not come through TMA)."""

    queries: int
    keys: int
    masks: int = 0


@dataclass(frozen=True)
class MaskStep:
    """The mask of a step as the copy engine brings it: of ``size`` bytes a key, a row for all queries (``one_row``) or one for each."""

    size: int
    one_row: bool

    def fits(self, block: int) -> bool:
        """Whether rows of ``block`` keys are whole panels of the copy engine's swizzle."""
        return self.one_row or self.width(block) == 64 or self.width(block) == 128 and block * self.size % 128 == 0

    def width(self, block: int) -> int:
        """Bytes of a row that lie together."""
        return min(128, block * self.size)

    def bytes(self, block: int) -> int:
        return round_up(block * self.size, 128) if self.one_row else ROWS * block * self.size


def _common_refusal(workload: Workload, device: DeviceSpec, head_sizes: Container[int], words: str) -> Refusal | None:
    """What both kernels ask; ``words`` say what ``head_sizes`` are."""
    if refusal := _refuse(workload, (DataType.HALF, DataType.BF16), finishes=True) or refused(device, workload.inputs[0].dtype, True):
        return refusal
    heads, op = _heads(workload), workload.op
    assert isinstance(op, Attention)
    if op.softcap or workload.outputs[0].dtype.itemsize > 2:
        return Refusal("scores have a cap, or the result is wider than the inputs; this kernel knows neither")
    if heads.d != heads.d_v or heads.d not in head_sizes:
        return Refusal(f"head sizes {heads.d} and {heads.d_v}; this kernel takes {words} for both")
    if workload.op.scale <= 0:  # type: ignore[attr-defined]
        return Refusal(f"a scale of {workload.op.scale:g}; this kernel takes positive ones")  # type: ignore[attr-defined]
    if any(strides[3] != 1 for strides in heads.strides):
        return Refusal("the head dimension is not the innermost one")
    return None


class Sm90Attention(Tactic):
    """FlashAttention's schedule: 64 query rows a warpgroup, keys and values streamed by TMA, softmax beside the tensor cores."""

    id = "cuda.attention.sm90"
    device = "cuda"
    ops = (Attention,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return _common_refusal(workload, device, range(8, 257, 8), "multiples of 8 up to 256")

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        heads = _heads(workload)
        head = round_up(heads.d, 16)
        step = _mask_step(workload, heads)
        kinds = kinds_of(head, mask_registers(workload, heads), step) or kinds_of(head, mask_registers(workload, heads))
        if workload.op.window:  # type: ignore[attr-defined]
            kinds = [kind for kind in kinds if kind[1]]
        found = [
            config(block_kv=block, queries=rings.queries, stages=rings.keys, masks=rings.masks, turns=turns, steady=steady)
            for block, steady, rings in kinds
            for turns in (1, 0)
        ]
        return sorted(found, key=lambda one: self.estimate(workload, one, device))

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        heads, block = _heads(workload), dict(config)["block_kv"]
        tiles = ceil_div(heads.s_q, ROWS) * heads.heads * heads.batch
        op = workload.op
        assert isinstance(op, Attention)
        steps = ceil_div(heads.s_k, block)
        waves = ceil_div(tiles, device.multiprocessors)
        if op.window and op.causal and op.window + ROWS < heads.s_k:
            steps = ceil_div(op.window + ROWS, block) + 1
        elif op.causal:
            waves, steps = max(1, ceil_div(waves, 2)), steps + 1
        peak = (device.flops.get(workload.inputs[0].dtype.value) or 8e14) / device.multiprocessors
        products = 4 * ROWS * block * round_up(heads.d, 16) / peak
        exponentials = ROWS * block / 16 / 1.755e9
        return 3.5e-6 + waves * (steps * (1.2 * max(products, exponentials) + 2e-7) + 1e-6)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        heads, chosen = _heads(workload), dict(config)
        block, head, steady = chosen["block_kv"], round_up(heads.d, 16), chosen["steady"]
        code = finished(workload)
        shared = dict(IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], HEAD=head, BLOCK_KV=block, Q_STAGES=chosen["queries"], STAGES=chosen["stages"],
                      TURNS=chosen["turns"], PDL=1 if pdl(device) else None)  # fmt: skip
        if steady:
            kernel = Kernel("sm90/attention_steady_sm90.cu", "attention_steady_sm90", (*defines(
                **shared, COLUMNS=heads.d, **_mask_defines(workload, heads), MASK_ROWS=int(not _one_row(workload, heads)) if heads.mask else None,
                MASK_PAIRS=int(_in_pairs(workload, heads)) if heads.mask else None, MASK_STAGES=chosen["masks"] or None,
                BATCH_INSIDE=int(_batch_inside(workload, heads)) or None,
            ), *code.defines), code.prelude)  # fmt: skip
        else:
            kernel = Kernel("sm90/attention_sm90.cu", "attention_sm90", (*defines(**shared, CAUSAL=int(workload.op.causal)), *code.defines), code.prelude)  # type: ignore[attr-defined]
        *_, mask = _operands(workload, heads)
        if chosen["masks"]:
            mask = _mask_map(workload, heads, block)
        masks: tuple[Argument, ...] = (mask,) if steady else ()
        strides: tuple[Argument, ...] = (_strides(heads.mask_strides), Scalar(heads.mask_strides[3])) if steady else ()
        arguments: tuple[Argument, ...] = (
            *_maps(workload, heads, ROWS, block, PANEL), *masks, Buffer("output"),
            *map(Scalar, (heads.heads // heads.kv_heads, heads.s_q, heads.s_k, heads.heads, heads.batch, sides_together(workload, heads, device))), _strides(heads.strides[3]),
            *strides, _scale(workload),
        )  # fmt: skip
        tiles = ceil_div(heads.s_q, ROWS) * heads.heads * heads.batch
        return Plan((Launch(kernel, (min(tiles, device.multiprocessors), 1, 1), (384, 1, 1), arguments, dependent=pdl(device),
                            shared_memory=shared_bytes(head, block, Rings(chosen["queries"], chosen["stages"], chosen["masks"]), _mask_step(workload, heads))),))  # fmt: skip


class Sm90ShortAttention(Tactic):
    """Up to 256 keys: one product, one softmax over whole rows, one product; several blocks of a multiprocessor overlap each other."""

    id = "cuda.attention.short_sm90"
    device = "cuda"
    ops = (Attention,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := _common_refusal(workload, device, (32, 64, 128), "32, 64 or 128"):
            return refusal
        heads, op = _heads(workload), workload.op
        assert isinstance(op, Attention)
        keys = op.stored(workload.inputs)[1]
        if workload.axis_varies(keys.number, keys.layout.index("s")):
            return Refusal(f"the number of keys may vary; this kernel is compiled for it (up to {SHORT_KEYS})")
        if op.window:
            return Refusal(f"a window of {op.window} keys; this kernel reads all")
        if heads.s_k > SHORT_KEYS:
            return Refusal(f"{heads.s_k} keys; this kernel takes up to {SHORT_KEYS}")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        heads = _heads(workload)
        keys = round_up(heads.s_k, 16)
        return [config(keys=keys, blocks=short_blocks(heads.d, keys))]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        heads, chosen = _heads(workload), dict(config)
        keys = chosen["keys"]
        blocks = ceil_div(heads.s_q, SHORT_ROWS) * heads.heads * heads.batch
        resident = device.multiprocessors * chosen["blocks"]
        # Issue slots of a row: four to six a score; the whole chain of a block beside it.
        issue = blocks / device.multiprocessors * (keys / 2 * 6.5 + heads.d * 4 + 150)
        chain = ceil_div(blocks, resident) * (2200 + keys * (heads.d / 16 + 8))
        moved = 2 * heads.batch * heads.heads * heads.d * (2 * heads.s_q + 2 * heads.s_k * heads.kv_heads / heads.heads)
        return 1.5e-6 + max(max(issue, chain) / 1.755e9, moved / device.bandwidth)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        heads, chosen = _heads(workload), dict(config)
        keys = chosen["keys"]
        one_row, code = _one_row(workload, heads), finished(workload)
        kernel = Kernel("sm90/attention_short_sm90.cu", "attention_short_sm90", (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], HEAD=heads.d, KEYS=keys, MIN_BLOCKS=chosen["blocks"],
            PDL=1 if pdl(device) else None, **_mask_defines(workload, heads), MASK_ROWS=int(not one_row) if heads.mask else None,
        ), *code.defines), code.prelude)  # fmt: skip
        *_, mask = _operands(workload, heads)
        arguments: tuple[Argument, ...] = (
            *_maps(workload, heads, SHORT_ROWS, keys, min(heads.d, PANEL)), mask, Buffer("output"),
            *map(Scalar, (heads.heads // heads.kv_heads, heads.s_q, heads.s_k)), _strides(heads.strides[3]), _strides(heads.mask_strides),
            Scalar(heads.mask_strides[3]), _scale(workload),
        )  # fmt: skip
        grid = (heads.heads, ceil_div(heads.s_q, SHORT_ROWS), heads.batch)
        return Plan((Launch(kernel, grid, (128, 1, 1), arguments, dependent=pdl(device),
                            shared_memory=short_bytes(heads.d, keys, one_row)),))  # fmt: skip


def _heads(workload: Workload) -> Heads:
    heads = heads_of(workload)
    assert isinstance(heads, Heads)
    return heads


def _one_row(workload: Workload, heads: Heads) -> bool:
    """Whether one row of the mask serves all queries of a head, whatever sizes come."""
    if not heads.mask or heads.mask_strides[2]:
        return False
    rank = len(workload.inputs[-1].shape)
    return rank < 2 or not workload.axis_varies(len(workload.inputs) - 1, rank - 2)


def _batch_inside(workload: Workload, heads: Heads) -> bool:
    """Whether all batches have one mask, which heads have not, whatever sizes come: then a tile of it is read for all batches at once."""
    if not heads.mask or heads.mask_strides[0] or not heads.mask_strides[1]:
        return False
    rank = len(workload.inputs[-1].shape)
    return rank < 4 or not workload.axis_varies(len(workload.inputs) - 1, 0)


def sides_together(workload: Workload, heads: Heads, device: DeviceSpec) -> int:
    """Of how many sides (a head of a batch) neighbouring blocks take the same tile of queries: those whose mask is the same, or, where causal, all;
    but no more than L2 holds keys and values of."""
    wanted = 1
    if workload.op.causal:  # type: ignore[attr-defined]
        wanted = heads.heads * heads.batch
    elif heads.mask and heads.mask_strides[2]:
        wanted = (1 if heads.mask_strides[0] else heads.batch) * (1 if heads.mask_strides[1] else heads.heads)
    each = 2 * heads.s_k * heads.d * workload.inputs[0].dtype.itemsize * heads.kv_heads // heads.heads
    return max(1, min(wanted, device.l2_bytes // 2 // max(1, each)))


def _in_pairs(workload: Workload, heads: Heads) -> bool:
    """Whether two neighbouring keys of a row of the mask, the first one even, are one aligned word."""
    return heads.mask_strides[3] == 1 and heads.s_k % 2 == 0 and not workload.axis_varies(len(workload.inputs) - 1, -1)


def _mask_step(workload: Workload, heads: Heads) -> MaskStep | None:
    """How the copy engine may bring the mask; None where it cannot: it wants keys that are neighbours, rows of whole 16 bytes, and both to stay."""
    number, size = len(workload.inputs) - 1, workload.inputs[-1].dtype.itemsize
    if not heads.mask or heads.mask_strides[3] != 1 or any(stride * size % 16 for stride in heads.mask_strides[:3]):
        return None
    if any(workload.axis_varies(number, -axis) for axis in (1, 2)[: len(workload.inputs[-1].shape)]):
        return None
    return MaskStep(size, _one_row(workload, heads))


def _mask_map(workload: Workload, heads: Heads, block: int) -> TensorMap:
    """The tiled map (key, query, head, batch) of the mask; axes that it has not, or only one of, are of size 1."""
    *_, mask = _operands(workload, heads)
    step = _mask_step(workload, heads)
    assert isinstance(mask, Buffer) and step is not None
    strides = heads.mask_strides
    dims = tuple(size if stride else 1 for size, stride in zip((heads.s_k, heads.s_q, heads.heads, heads.batch), reversed(strides), strict=True))
    steps = tuple(stride * step.size or 16 for stride in reversed(strides[:3]))
    box = (block, 1, 1, 1) if step.one_row else (step.width(block) // step.size, ROWS, 1, 1)
    return TensorMap(mask, workload.inputs[-1].dtype, dims, steps, box, swizzle=0 if step.one_row else step.width(block))


def _maps(workload: Workload, heads: Heads, rows: int, keys: int, panel: int) -> tuple[TensorMap, ...]:
    """The tiled maps (head dimension, position, head, batch) of q, k and v; a box is ``panel`` columns by ``rows`` or ``keys``."""
    q, k, v, _ = _operands(workload, heads)
    dtype = workload.inputs[0].dtype
    sides = ((q, heads.heads, heads.s_q, rows), (k, heads.kv_heads, heads.s_k, keys), (v, heads.kv_heads, heads.s_k, keys))
    found = []
    for (buffer, count, length, box), strides in zip(sides, heads.strides[:3], strict=True):
        assert isinstance(buffer, Buffer)
        steps = tuple(strides[axis] * dtype.itemsize for axis in (2, 1, 0))
        found.append(TensorMap(buffer, dtype, (heads.d, length, count, heads.batch), steps, (panel, box, 1, 1), swizzle=panel * dtype.itemsize))
    return tuple(found)


def _strides(strides: tuple[int, ...]) -> Struct:
    """Of batch, head and position, in elements."""
    return Struct(tuple(Scalar(stride, "i64") for stride in strides[:3]))


def _scale(workload: Workload) -> Scalar:
    return Scalar(workload.op.scale * math.log2(math.e), "f32")  # type: ignore[attr-defined]


def kinds_of(head: int, held: int, step: MaskStep | None = None) -> list[tuple[int, int, Rings]]:
    """(keys of a step, whether against a steady largest score, rings) that the long kernels offer, at most three of the first sort.

    Two neighbouring keys of the mask take ``held`` registers (0: there is none), unless TMA copies it in ``step``s. Longer steps are worth the
    spills they cost there (up to 32 bytes), and beside the results of wide heads (4 to 28 bytes, 168 where causal): the longest ones without
    take 3 to 25 % more time.
    """
    held = 0 if step else held
    legal = [block for block in KEYS_A_STEP if registers(head, block, held) <= REGISTERS or (head > 192 and block == 64)]
    found = [(block, 1, rings) for block in legal if (rings := stages(head, block, step))][:3]
    if head == 128 and not held and not step and (rings := stages(head, 128)):
        found.append((128, 0, rings))
    return found


def registers(head: int, block: int, held: int) -> float:
    """Of a thread of the long kernel: results, scores, two sets of weights, ``held`` for every two keys of the mask and its addresses."""
    return head / 2 + block / 2 + block / 2 + (block / 8 * held + 20 if held else 0)


def mask_registers(workload: Workload, heads: Heads) -> int:
    """How many registers two neighbouring keys of the mask take beside a thread's two rows."""
    if not heads.mask:
        return 0
    words = max(1, workload.inputs[-1].dtype.itemsize // 2) if _in_pairs(workload, heads) else 2
    return words * (1 if _one_row(workload, heads) else 2)


def shared_bytes(head: int, block: int, rings: Rings, step: MaskStep | None = None) -> int:
    """Dynamic shared memory of the long kernel: the rings of queries, keys, values and the mask, barriers."""
    row = round_up(head, PANEL) * 2
    mask = rings.masks * step.bytes(block) if step else 0
    return ROWS * rings.queries * row + 2 * rings.keys * block * row + mask + 8 * (2 * rings.queries + 4 * rings.keys + 2 * rings.masks)


def stages(head: int, block: int, step: MaskStep | None = None) -> Rings | None:
    """As many as fit: queries come ahead where two blocks of keys still do. None where the mask's steps are no whole panels, or fit in no way."""
    if step and not step.fits(block):
        return None
    rings = (Rings(*ring, masks) for masks in ((4, 2) if step else (0,)) for ring in ((2, 4), (2, 2), (1, 2)))
    return next((one for one in rings if shared_bytes(head, block, one, step) <= SHARED), None)


def short_bytes(d: int, keys: int, one_row: bool) -> int:
    """Dynamic shared memory of the short kernel: queries, keys, values, the mask's row, barriers."""
    return 2 * d * (SHORT_ROWS + 2 * keys) + (4 * keys if one_row else 0) + 16


def short_blocks(d: int, keys: int) -> int:
    """Blocks of the short kernel that share a multiprocessor: as many as registers (scores, then results beside weights) and shared
    memory allow."""
    registers = max(keys // 2 + 60, keys // 4 + d // 2 + 48, 104)
    shared = SHARED_SM // (short_bytes(d, keys, True) + SHARED_RESERVED)
    return next((count for count in range(min(shared, 8), 1, -1) if register_limit(128, count) >= registers), 1)


TACTICS = (Sm90Attention(), Sm90ShortAttention())
