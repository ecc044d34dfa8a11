"""Fused attention: tensor cores (``mma_attention.cu``) and the reference (``simt_attention.cu``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fusion.dtypes import DataType
from fusion.ops import Attention
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.epilogue import EpilogueCode, finish_code
from tactics.cuda.gemm.common import (
    C_TYPES,
    STORED_TYPES,
    ceil_div,
    defines,
    pdl,
    refuse_types,
    round_up,
    sizes,
    vector_bytes,
)
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
    Workload,
    config,
)

AXES = "bhsd"
FILE = "attention/mma_attention.cu"
MOST_QUERIES = 16  # of GroupedAttention
SINGLE = 0  # splits of GroupedAttention: as many as there are steps of keys


@dataclass(frozen=True)
class Heads:
    """An attention layer's sizes, and per tensor (q, k, v, output) the strides of b, h, s, d in elements."""

    batch: int
    heads: int
    kv_heads: int
    s_q: int
    s_k: int
    d: int
    d_v: int
    strides: tuple[tuple[int, ...], ...]
    mask: int  # 0 none, 1 additive, 2 boolean
    mask_strides: tuple[int, ...]


def heads_of(workload: Workload) -> Heads | Refusal:
    """The workload's sizes and strides, or why these kernels cannot take it."""
    op = workload.op
    assert isinstance(op, Attention)
    parts = op.stored(workload.inputs)
    shapes = [tuple(int(dim) for dim in part.type.shape) for part in parts]  # type: ignore[arg-type]
    named, strides = [], []
    for layout, shape, whole in (
        *((part.layout, shape, sizes(workload, part.number)) for part, shape in zip(parts, shapes, strict=True)),
        (op.layouts[3], sizes(workload, len(workload.inputs)), sizes(workload, len(workload.inputs))),
    ):
        step, found = 1, {}
        for axis, size in zip(reversed(layout), reversed(whole), strict=True):
            found[axis] = step
            step *= size
        named.append(dict(zip(layout, shape, strict=True)))
        strides.append(tuple(found[axis] for axis in AXES))
    q, k, v, _ = named
    if q["h"] % k["h"] or k["h"] != v["h"] or k["s"] != v["s"] or q["d"] != k["d"]:
        return Refusal(f"shapes {shapes} do not fit: heads, keys or head sizes differ")
    mask = 0
    mask_strides: tuple[int, ...] = (0, 0, 0, 0)
    if op.masked:
        tensor = workload.inputs[op.arity - 1]
        if tensor.dtype is not DataType.BOOL and tensor.dtype not in C_TYPES:
            return Refusal(f"the mask is {tensor.dtype.label}")
        mask = 2 if tensor.dtype is DataType.BOOL else 1
        shape = (1,) * (4 - len(tensor.shape)) + sizes(workload, op.arity - 1)
        whole = (q["b"], q["h"], q["s"], k["s"])
        step, found_strides = 1, []
        for size, full in zip(reversed(shape), reversed(whole), strict=True):
            if size not in (1, full):
                return Refusal(f"a mask of {shape} does not broadcast to {whole}")
            found_strides.append(0 if size == 1 else step)
            step *= size
        mask_strides = tuple(reversed(found_strides))
    return Heads(q["b"], q["h"], k["h"], q["s"], k["s"], q["d"], v["d"], tuple(strides), mask, mask_strides)


def _rows(strides: tuple[int, ...]) -> Struct:
    """Strides of batch, head and position, in elements."""
    return Struct(tuple(Scalar(stride, "i64") for stride in strides[:3]))


def _head(heads: Heads) -> int:
    """The head size that kernels are compiled for."""
    head = round_up(max(heads.d, heads.d_v), 32)
    return 256 if head > 128 else head


def _refuse(workload: Workload, types: tuple[DataType, ...], finishes: bool = False) -> Refusal | None:
    """What all kernels ask, and that there is no epilogue unless the kernel ``finishes`` its results with one."""
    op = workload.op
    assert isinstance(op, Attention)
    if refusal := refuse_types(workload, op.sources, types):
        return refusal
    if op.epilogue != IDENTITY and not finishes:
        return Refusal("a function of the results, or a type of their own; this kernel stores them as they are")
    if isinstance(code := finish_code(workload), Refusal):
        return code
    heads = heads_of(workload)
    if isinstance(heads, Refusal):
        return heads
    if heads.batch > 65535 or heads.heads > 65535 or heads.batch * heads.heads * heads.s_q * heads.s_k == 0:
        return Refusal(f"batch {heads.batch}, {heads.heads} heads, {heads.s_q} queries, {heads.s_k} keys")
    for part in op.stored(workload.inputs):
        if workload.axis_varies(part.number, part.layout.index("d")):
            return Refusal("the head size may vary; it is compiled into this kernel")
    return None


def finished(workload: Workload) -> EpilogueCode:
    """The epilogue of a workload that :func:`_refuse` has let pass; it reads no tensor beside the results."""
    code = finish_code(workload)
    assert isinstance(code, EpilogueCode)
    return code


def _mask_defines(workload: Workload, heads: Heads) -> dict[str, object]:
    op = workload.op
    assert isinstance(op, Attention)
    return {
        "MASK": heads.mask, "CAUSAL": int(op.causal), "WINDOW": op.window or None, "SOFTCAP": f"{op.softcap!r}f" if op.softcap else None,
        "MASK_T": C_TYPES[workload.inputs[-1].dtype] if heads.mask == 1 else None,
    }  # fmt: skip


def _operands(workload: Workload, heads: Heads) -> tuple[Argument, ...]:
    """q, k, v and the mask: parts of one input differ by their offset."""
    op = workload.op
    assert isinstance(op, Attention)
    parts = [Buffer("input", part.number, part.first * strides[1] * part.type.dtype.itemsize)
             for part, strides in zip(op.stored(workload.inputs), heads.strides, strict=False)]  # fmt: skip
    mask: Argument = Buffer("input", op.arity - 1) if heads.mask else Scalar(0, "u64")
    return (*parts, mask)


class MmaAttention(Tactic):
    """FlashAttention-2 with mma.sync: ``warps`` x ``row_tiles`` x 16 query rows per block, ``block_kv`` keys at a time.

    float32 is multiplied as tf32, or, where that is not allowed, as three products of tf32 parts."""

    id = "cuda.attention.mma"
    device = "cuda"
    ops = (Attention,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if device.capability < 75:
            return Refusal(f"tensor cores of this kernel need sm_75; the device is {device.arch}")
        types = (DataType.HALF,) if device.capability < 80 else (DataType.HALF, DataType.BF16, DataType.FLOAT)
        if refusal := _refuse(workload, types, finishes=True):
            return refusal
        heads = heads_of(workload)
        assert isinstance(heads, Heads)
        if max(heads.d, heads.d_v) > 256:
            return Refusal(f"a head size of {max(heads.d, heads.d_v)}; this kernel takes up to 256")
        if any(strides[3] != 1 for strides in heads.strides):
            return Refusal("the head dimension is not the innermost one")
        if heads.mask and not workload.op.scale > 0:  # type: ignore[attr-defined]
            return Refusal(f"a mask with a scale of {workload.op.scale}; this kernel wants a positive one")  # type: ignore[attr-defined]
        return None if self.configs(workload, device) else Refusal("no configuration fits the shared memory")

    @staticmethod
    def _legal(warps: int, row_tiles: int, block_kv: int, head: int, size: int, device: DeviceSpec) -> bool:
        if MmaAttention._registers(row_tiles, block_kv, head, size) > 230:
            return False
        return MmaAttention._shared(warps, row_tiles, block_kv, head, size) <= device.shared_memory

    @staticmethod
    def _registers(row_tiles: int, block_kv: int, head: int, size: int) -> int:
        kept = head * size // 8 if row_tiles * head * size <= 256 else 4
        return row_tiles * (head // 2 + block_kv // 2 + kept) + (60 if size == 2 else 76)

    @staticmethod
    def _shared(warps: int, row_tiles: int, block_kv: int, head: int, size: int, buffers: int = 2) -> int:
        return (warps * row_tiles * 16 + 2 * buffers * block_kv) * head * size

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        heads = heads_of(workload)
        assert isinstance(heads, Heads)
        found = [
            config(warps=warps, row_tiles=row_tiles, block_kv=block_kv)
            for warps in (1, 2, 4, 8)
            for row_tiles in (1, 2)
            for block_kv in (32, 64, 128)
            if self._legal(warps, row_tiles, block_kv, _head(heads), workload.inputs[0].dtype.itemsize, device)
        ]
        return sorted(found, key=lambda one: (self.estimate(workload, one, device), one))

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        heads, chosen = heads_of(workload), dict(config)
        assert isinstance(heads, Heads)
        warps, row_tiles, block_kv = chosen["warps"], chosen["row_tiles"], chosen["block_kv"]
        rows, dtype = warps * row_tiles * 16, workload.inputs[0].dtype
        blocks = ceil_div(heads.s_q, rows) * heads.heads * heads.batch
        head = round_up(max(heads.d, heads.d_v), 32)
        registers = min(255, self._registers(row_tiles, block_kv, head, dtype.itemsize))
        shared = self._shared(warps, row_tiles, block_kv, head, dtype.itemsize)
        per_sm = max(1, min(device.shared_memory // shared, 65536 // (registers * warps * 32), 32))
        busy = min(per_sm, ceil_div(blocks, device.multiprocessors))
        waves = ceil_div(blocks, device.multiprocessors * busy)
        steps = ceil_div(heads.s_k, block_kv)
        share = 0.39 if device.capability in range(90, 110) else 0.6  # of the peak that mma.sync reaches here
        name, slower = (dtype.value, 1.0) if dtype.itemsize == 2 else ("tf32", 1.0 if workload.tf32 else 3.0)
        rate = (device.flops.get(name) or (1e14 if dtype.itemsize == 2 else 5e13)) / device.multiprocessors * share / slower
        throughput = busy * rows * block_kv * (4 * head / rate + 3.2e-11)  # products, and the softmax
        latency = (7.3e-7 + 1.07e-8 * block_kv * row_tiles * head / 64) * dtype.itemsize / 2 * slower
        # Fitted to 84 timings on an H200 (float16): the best was always among the first four.
        return 1e-7 + waves * (steps * max(throughput, latency) + 1.7e-6 * (1 + 1.3e-5 * rows * head))

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        heads, chosen, op = heads_of(workload), dict(config), workload.op
        assert isinstance(heads, Heads) and isinstance(op, Attention)
        head, dtype, grouped, single = _head(heads), workload.inputs[0].dtype, "splits" in chosen, chosen.get("splits") == SINGLE
        warps, row_tiles, block_kv = chosen["warps"], chosen["row_tiles"], chosen["block_kv"]
        splits = ceil_div(heads.s_k, block_kv) if single else chosen.get("splits", 1)
        split, buffers = single or splits > 1, chosen.get("buffers", 2)
        lengths = [stride for strides, size in zip(heads.strides, (heads.d, heads.d, heads.d_v, heads.d_v), strict=True)
                   for stride in (size, *(s for s in strides[:3]))]  # fmt: skip
        if not workload.is_static:  # strides that may change are multiples of the head size, or of a fixed packed row
            lengths = [heads.d, heads.d_v]
        out, narrow, code = workload.outputs[0].dtype, dtype.itemsize == 2, finished(workload)
        names = (*defines(
            IN_T=C_TYPES[dtype], OUT_T=STORED_TYPES[out], WIDE=None if narrow and out.itemsize <= 2 else 1, F32=None if narrow else 1,
            EXACT=None if narrow or workload.tf32 else 1, WARPS=warps, ROW_TILES=row_tiles, BLOCK_KV=block_kv, HEAD=head,
            GROUPED=1 if grouped else None, SPLIT=1 if split else None, BUFFERS=None if buffers == 2 else buffers,
            VEC_IN=vector_bytes(dtype.itemsize, *lengths), PDL=1 if pdl(device) else None, **_mask_defines(workload, heads),
            **self._mask_layout(workload, heads, grouped),
        ), *code.defines)  # fmt: skip
        group = heads.heads // heads.kv_heads
        workspace = Buffer("workspace")
        arguments: tuple[Argument, ...] = (
            *_operands(workload, heads), Buffer("output"), *map(Scalar, (group, heads.s_q, heads.s_k, heads.d, heads.d_v)),
            *(_rows(strides) for strides in heads.strides), _rows(heads.mask_strides), Scalar(heads.mask_strides[3]),
            Scalar(op.scale * math.log2(math.e), "f32"), workspace if split else Scalar(0, "u64"), Scalar(splits),
        )  # fmt: skip
        rows, parts = (heads.s_q * group, heads.kv_heads) if grouped else (heads.s_q, heads.heads)
        grid = (ceil_div(rows, warps * row_tiles * 16) * splits, parts, heads.batch)
        shared = self._shared(warps, row_tiles, block_kv, head, dtype.itemsize, buffers)
        one = Launch(Kernel(FILE, "mma_attention", names, code.prelude), grid, (warps * 32, 1, 1), arguments, shared_memory=shared, dependent=pdl(device))
        if not split:
            return Plan((one,))
        combine = combining(workload, heads, device, head, rows, parts, splits)
        return Plan((one, combine), combined_bytes(heads, head, rows, parts, splits))

    @staticmethod
    def _mask_layout(workload: Workload, heads: Heads, grouped: bool) -> dict[str, object]:
        """How the kernel may read the mask: one row for all rows of a block (queries, and where these are ``grouped`` heads), and keys in pairs."""
        if not heads.mask:
            return {}
        rank = len(workload.inputs[-1].shape)
        one_row = heads.mask_strides[2] == 0 and (rank < 2 or not workload.axis_varies(len(workload.inputs) - 1, rank - 2))
        pairs = workload.is_static and heads.s_k % 2 == 0 and heads.mask_strides[3] == 1 and all(s % 2 == 0 for s in heads.mask_strides[:3])
        one_row = one_row and not (grouped and heads.mask_strides[1])
        return {"MASK_ROWS": 0 if one_row else 1, "MASK_PAIRS": int(pairs)}


def combining(workload: Workload, heads: Heads, device: DeviceSpec, head: int, rows: int, parts: int, splits: int) -> Launch:
    """The launch that joins what ``splits`` blocks found for ``rows`` queries of each of ``parts`` key heads, kept in ``head`` columns."""
    code = finished(workload)
    kernel = Kernel("attention/attention_combine.cu", "attention_combine", (*defines(
        OUT_T=STORED_TYPES[workload.outputs[0].dtype], HEAD=head, PDL=1 if pdl(device) else None), *code.defines), code.prelude)  # fmt: skip
    arguments: tuple[Argument, ...] = (Buffer("workspace"), Buffer("output"), *map(Scalar, (heads.heads // heads.kv_heads, heads.s_q, heads.d_v)),
                                       _rows(heads.strides[3]), Scalar(splits))  # fmt: skip
    return Launch(kernel, (rows, parts, heads.batch), (256, 1, 1), arguments, dependent=pdl(device))


def combined_bytes(heads: Heads, head: int, rows: int, parts: int, splits: int) -> int:
    """Of the workspace between the two launches: sums, the largest score and the total of every row of every split."""
    return heads.batch * parts * splits * rows * (head + 2) * 4


class GroupedAttention(MmaAttention):
    """Few queries over many keys, as in generation: the queries of all heads that share keys are rows of one block, and blocks share the keys
    of a head; a second launch joins what they found. (Dao et al., "Flash-Decoding", 2023.)"""

    id = "cuda.attention.grouped"

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := super().supports(workload, device):
            return refusal
        heads, op = heads_of(workload), workload.op
        assert isinstance(heads, Heads) and isinstance(op, Attention)
        queries = op.stored(workload.inputs)[0]
        if workload.axis_varies(queries.number, queries.layout.index("s")) or heads.s_q > MOST_QUERIES:
            return Refusal(f"{heads.s_q} queries, or a number that varies; this kernel is for up to {MOST_QUERIES}")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        heads = heads_of(workload)
        assert isinstance(heads, Heads)
        size, rows = workload.inputs[0].dtype.itemsize, heads.s_q * heads.heads // heads.kv_heads
        found = []
        for block_kv in (32, 64, 128):
            row_tiles = 2 if rows > 16 and self._legal(1, 2, block_kv, _head(heads), size, device) else 1
            if not self._legal(1, row_tiles, block_kv, _head(heads), size, device):
                continue
            tiles = ceil_div(heads.s_k, block_kv)
            most = ceil_div(8 * device.multiprocessors, max(1, heads.batch * heads.kv_heads))
            kinds = [(SINGLE, 1)]
            if block_kv < 128:
                kinds += [(splits, buffers) for splits in (1, 2, 4, 8, 16, 32, 64) if splits == 1 or splits <= min(tiles, most) for buffers in (3, 2)]
            found += [config(warps=1, row_tiles=row_tiles, block_kv=block_kv, splits=splits, buffers=buffers) for splits, buffers in kinds
                      if self._shared(1, row_tiles, block_kv, _head(heads), size, buffers) <= device.shared_memory]  # fmt: skip
        return sorted(found, key=lambda one: (self.estimate(workload, one, device), one))[:10]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        heads, chosen = heads_of(workload), dict(config)
        assert isinstance(heads, Heads)
        size, block_kv, single = workload.inputs[0].dtype.itemsize, chosen["block_kv"], chosen["splits"] == SINGLE
        splits = ceil_div(heads.s_k, block_kv) if single else chosen["splits"]
        head, rows = _head(heads), heads.s_q * heads.heads // heads.kv_heads
        blocks = ceil_div(rows, 16 * chosen["row_tiles"]) * heads.kv_heads * heads.batch * splits
        shared = self._shared(1, chosen["row_tiles"], block_kv, head, size, chosen["buffers"])
        each = ceil_div(blocks, device.multiprocessors)  # of a multiprocessor, and how many at once
        busy = min(max(1, device.shared_memory // shared), each)
        steps = ceil_div(ceil_div(heads.s_k, block_kv), splits)
        # A step is a chain of products, and the more steps are under way, the less it waits for memory; or the bandwidth is the limit.
        # Fitted to sixty timings on an H100, 8 % off in the mean.
        chain = 9.5e-7 * block_kv * head * size / 8192 + 7.5e-7 / max(1, chosen["buffers"] - 1)
        moved = each * steps * 2 * block_kv * head * size / (0.95 * device.bandwidth / device.multiprocessors)
        joined = 2e-6 + splits * rows * head * 8 * heads.kv_heads * heads.batch / device.bandwidth if single or splits > 1 else 0.0
        chains = each / busy * steps * chain
        return 3.5e-6 + max(chains, moved) + 0.1 * min(chains, moved) + joined


class SimtAttention(Tactic):
    """One warp per query row, everything in fp32."""

    id = "cuda.attention.simt"
    device = "cuda"
    ops = (Attention,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := _refuse(workload, tuple(C_TYPES), finishes=True):
            return refusal
        heads = heads_of(workload)
        assert isinstance(heads, Heads)
        if max(heads.d, heads.d_v) > 512:
            return Refusal(f"a head size of {max(heads.d, heads.d_v)}; this kernel takes up to 512")
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        heads = heads_of(workload)
        assert isinstance(heads, Heads)
        code = finished(workload)
        kernel = Kernel("attention/simt_attention.cu", "simt_attention", (*defines(
            IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], D_PER_LANE=ceil_div(heads.d_v, 32), **_mask_defines(workload, heads),
        ), *code.defines), code.prelude)  # fmt: skip
        arguments = (
            *_operands(workload, heads),
            Buffer("output"), *map(Scalar, (heads.heads // heads.kv_heads, heads.s_q, heads.s_k, heads.d, heads.d_v)),
            *(Struct(tuple(Scalar(stride, "i64") for stride in strides)) for strides in heads.strides),
            Struct(tuple(Scalar(stride, "i64") for stride in heads.mask_strides)), Scalar(workload.op.scale, "f32"),  # type: ignore[attr-defined]
        )  # fmt: skip
        grid = (ceil_div(heads.s_q, 4), heads.heads, heads.batch)
        return Plan((Launch(kernel, grid, (128, 1, 1), arguments),))


TACTICS = (MmaAttention(), GroupedAttention(), SimtAttention())
