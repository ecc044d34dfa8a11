"""Configurations of the sm_90a kernels: their defines, their names, and the translation units that compile them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from tactics.cuda.sm90 import attention_sm90, conv_window_sm90, stem_sm90
from tactics.cuda.sm90.tile_sm90 import Tile
from tactics.tactic import DeviceSpec

ROOT = Path(__file__).resolve().parents[3]
CUDA = ROOT / "tactics" / "cuda"
H200 = DeviceSpec("cuda", "H200", "sm_90a", 90, 132, 227 * 1024, 50 << 20, 140 << 30, 4.0e12, {"float16": 8e14})
CACHE = Path(os.environ.get("SM90_CACHE", "/tmp/sm90_cubins"))
# As the tactics' epilogues: the bias, operand 0, is a constant that kernels ask for early.
BIAS = """
#define HAS_EPILOGUE 1
#define EPILOGUE_CONSTANTS 1
#include "epilogue.cuh"
using FINISHED = float;
#include "pdl.cuh"
template <class Args> __device__ __forceinline__ void prefetch_constants(const Args& a, int ld, int thread, int threads) {
  pdl_prefetch(a.operand[0], ld * (int)sizeof(OUT_T), thread, threads);
}
template <class Args> __device__ __forceinline__ void prefetch_columns(const Args& a, int n, int count, int thread) {
  pdl_prefetch_near(a.operand[0], n * (int)sizeof(OUT_T), count * (int)sizeof(OUT_T), thread);
}
"""
EPILOGUES = {
    "": "",
    "bias": BIAS + """
struct EpilogueArgs { const void* operand[1]; };
template <int V> __device__ __forceinline__ void finish(const float (&x)[V], float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  for (int i = 0; i < V; ++i) v[i] = x[i] + b[i];
}
""",
    "bias_relu": BIAS + """
struct EpilogueArgs { const void* operand[1]; };
template <int V> __device__ __forceinline__ void finish(const float (&x)[V], float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  for (int i = 0; i < V; ++i) v[i] = fmaxf(x[i] + b[i], 0.f);
}
""",
    "bias_gelu": BIAS + """
struct EpilogueArgs { const void* operand[1]; };
#include "functions.cuh"
template <int V> __device__ __forceinline__ void finish(const float (&x)[V], float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  for (int i = 0; i < V; ++i) v[i] = fx::fast::gelu(x[i] + b[i]);
}
""",
    "bias_residual": BIAS + """
struct EpilogueArgs { const void* operand[2]; };
template <int V> __device__ __forceinline__ void finish(const float (&x)[V], float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V], r[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  load_vector<V>(r, (const OUT_T*)a.operand[1] + m * ld + n);
  for (int i = 0; i < V; ++i) v[i] = x[i] + b[i] + r[i];
}
""",
    "bias_residual_relu": BIAS + """
struct EpilogueArgs { const void* operand[2]; };
template <int V> __device__ __forceinline__ void finish(const float (&x)[V], float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V], r[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  load_vector<V>(r, (const OUT_T*)a.operand[1] + m * ld + n);
  for (int i = 0; i < V; ++i) v[i] = fmaxf(x[i] + b[i] + r[i], 0.f);
}
""",
}
for _kind in ("bias_residual", "bias_residual_relu"):
    EPILOGUES[_kind] = "#define EPILOGUE_ROWS 1\n" + EPILOGUES[_kind] + """
__device__ __forceinline__ void prefetch_tile(const EpilogueArgs& a, long long m, int rows, int n, int count, int ld, int thread, int threads) {
  pdl_prefetch_rows((const OUT_T*)a.operand[1] + m * ld + n, ld * (long long)sizeof(OUT_T), rows, count * (int)sizeof(OUT_T), thread, threads);
}
"""
C_TYPE = {"f16": "half", "bf16": "__nv_bfloat16", "f32": "float"}
SIZE = {"f16": 2, "bf16": 2, "f32": 4}
SHARED_LIMIT = 227 * 1024


def make(bm, bn, wg=None, pp=0, sw=128, stages=None, clx=1, cly=1, split=1, swap=0, chunk=None, group=8, blocks=1, pdl=0, direct=0, **more):
    """A configuration with its stages chosen to fill shared memory (at most 8)."""
    wg = wg or (1 if bm == 64 and not pp else 2)
    chunk = chunk or (next(size for size in (32, 16, 8) if bn % size == 0) if swap else 32)
    tile = Tile(bm, bn, wg, stages or 8, pp, sw, clx, cly, split, swap, blocks, chunk, direct)
    while not stages and tile.stages > 2 and tile.shared_bytes > (SHARED_LIMIT + 1024) // blocks - 1024:
        tile = replace(tile, stages=tile.stages - 1)
    return from_tile(tile, pdl, GROUP=group, **more)


def from_tile(tile, pdl=1, **more):
    """The defines of a tile."""
    return {"GROUP": 8, **tile.defines(), "PDL": pdl, **more}


def tile_of(c):
    return Tile(c["BM"], c["BN"], c["WARPGROUPS"], c["STAGES"], c["PINGPONG"], c["SWIZZLE"], c["CLUSTER_X"], c["CLUSTER_Y"], c["SPLIT"], c["SWAP"],
                c["MIN_BLOCKS"], c["CHUNK"], c["DIRECT"], c.get("AHEAD", 0))


def shared_bytes(c):
    return tile_of(c).shared_bytes


def threads(c):
    return tile_of(c).threads


def name(c):
    text = f"{c['BM']}x{c['BN']}s{c['STAGES']}w{c['WARPGROUPS']}"
    for key, tag in (("PINGPONG", "pp"), ("CLUSTER_X", "cx"), ("CLUSTER_Y", "cy"), ("SPLIT", "k"), ("SWAP", "swap"), ("MIN_BLOCKS", "b"), ("PDL", "pdl")):
        if c[key] > (1 if key in ("CLUSTER_X", "CLUSTER_Y", "SPLIT", "MIN_BLOCKS") else 0):
            text += f".{tag}{c[key]}"
    if c["CHUNK"] != 32:
        text += f".c{c['CHUNK']}"
    if c["SWIZZLE"] != 128:
        text += f".sw{c['SWIZZLE']}"
    if c["GROUP"] != 8:
        text += f".g{c['GROUP']}"
    if c.get("PROMOTION"):
        text += f".p{c['PROMOTION']}"
    for key in ("B_KN", "A_KM", "MN_FLIP", "DIRECT", "AHEAD"):
        if c.get(key):
            text += f".{key.lower()}"
    return text


def stem_rows(c):
    """The geometry of a configuration of stem_rows_sm90.cu."""
    return stem_sm90.Rows(c["CHANNELS"], (c["FILTER_H"], c["FILTER_W"]), (c["STRIDE_H"], c["STRIDE_W"]), (c["PAD_H"], c["PAD_W"]), bool(c["NCHW"]))


def stem_shared_bytes(c):
    if c["PATCHES"]:
        return stem_rows(c).shared_bytes(c["BN"], c["WARPGROUPS"], c["PATCHES"], c["DIRECT"])
    taps = -(-c["FILTER_W"] // 4)
    patch = ((4 * c["WARPGROUPS"] - 1) * c["STRIDE_H"] + c["FILTER_H"]) * (15 * c["STRIDE_W"] + taps * 4)
    return c["FILTER_H"] * taps * c["BN"] * 32 + (patch * 8 + 15) // 16 * 16 + c["WARPGROUPS"] * 4 * 16 * c["CHUNK"] * 4 + 16


def stem_unit(c, epilogue, image="f16", in_type="f16", out_type="f16", vec=8, debug=0):
    defines = {**c, "IN_T": C_TYPE[in_type], "IMAGE_T": C_TYPE[image], "OUT_T": C_TYPE[out_type], "VEC": vec, "DEBUG_TIMEOUT": debug}
    file = "sm90/stem_rows_sm90.cu" if c["PATCHES"] else "sm90/stem_sm90.cu"
    return file, tuple(sorted((k, str(v)) for k, v in defines.items())), EPILOGUES[epilogue]


def stem(c=3, r=7, s=7, stride=(2, 2), pad=(3, 3), bn=64, wg=1, nchw=0, blocks=4, chunk=32, pdl=1, patches=0, direct=0):
    return dict(CHANNELS=c, FILTER_H=r, FILTER_W=s, STRIDE_H=stride[0], STRIDE_W=stride[1], PAD_H=pad[0], PAD_W=pad[1], BN=bn, WARPGROUPS=wg, NCHW=nchw,
                MIN_BLOCKS=blocks, CHUNK=chunk, PDL=pdl, PATCHES=patches, DIRECT=direct)


def stem_name(c):
    return f"{'nchw' if c['NCHW'] else 'nhwc'} w{c['WARPGROUPS']} b{c['MIN_BLOCKS']} bn{c['BN']}" + (f" rows{c['PATCHES']}" if c["PATCHES"] else "")


def window_unit(c, epilogue, in_type="f16", out_type="f16", debug=0):
    """conv_window_sm90.cu for a configuration of window_candidates."""
    defines = {**c, "IN_T": C_TYPE[in_type], "OUT_T": C_TYPE[out_type], "VEC": 8, "DIRECT": 1, "DEBUG_TIMEOUT": debug}
    return "sm90/conv_window_sm90.cu", tuple(sorted((k, str(v)) for k, v in defines.items())), EPILOGUES[epilogue]


def window_configs(channels, outputs, height, width, taps):
    """What cuda.conv.sm90_window offers for an output of height x width."""
    patch = conv_window_sm90.patch_of(height, width, taps)
    return [dict(BN=dict(one)["bn"], PATCHES=dict(one)["patches"], EARLY=dict(one)["early"], SLABS=channels // 64, FILTER_H=taps[0], FILTER_W=taps[1], PDL=1)
            for one in conv_window_sm90.choices(patch, channels, outputs)]


def window_name(c):
    return f"window bn{c['BN']} patches{c['PATCHES']} early{c['EARLY']}"


def unit(kind, c, epilogue="", in_type="f16", out_type="f16", vec=8, debug=0, constant=1):
    """(file, defines, prelude) of a translation unit."""
    defines = {**c, "IN_T": C_TYPE[in_type], "OUT_T": C_TYPE[out_type], "VEC": vec, "DEBUG_TIMEOUT": debug, "CONSTANT_B": constant}
    for ours in ("PROMOTION", "TAPS_INNER"):
        defines.pop(ours, None)
    return f"sm90/{kind}_sm90.cu", tuple(sorted((k, str(v)) for k, v in defines.items())), EPILOGUES[epilogue]


def cubin_path(one):
    file, defines, prelude = one
    digest = hashlib.sha256(repr((defines, prelude, (CUDA / file).read_text())).encode())
    for header in sorted((CUDA / "include").glob("*.cuh")):
        digest.update(header.read_bytes())
    return CACHE / (digest.hexdigest()[:24] + ".cubin")


def compile_one(one):
    from tactics.compiler import compile_cubin

    path = cubin_path(one)
    if path.exists():
        return None
    file, defines, prelude = one
    try:
        cubin = compile_cubin(prelude + f'\n#line 1 "{file}"\n' + (CUDA / file).read_text(), defines, "sm_90a")
    except Exception as error:  # noqa: BLE001 - reported, and the variant is skipped
        return f"{dict(defines)}: {error}"[:1500]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(cubin.image)
    temporary.rename(path)
    r = cubin.resources
    return f"spills: {dict(defines)} {r}" if r.spill_stores and ("DEBUG_TIMEOUT", "1") not in defines else None


def mask_step(mask, s_k):
    """How the copy engine brings a mask of a kind of SHORT_CHECKS, or None."""
    size = 1 if "bool" in mask else 4 if mask == "float" else 2
    return attention_sm90.MaskStep(size, "row" in mask) if mask and s_k * size % 16 == 0 else None


def attention_rings(d, block_kv, mask="", s_k=0):
    """(what is under way at once, how the mask comes) of a step of ``block_kv`` keys."""
    head, step = -(-d // 16) * 16, mask_step(mask, s_k)
    if step and (found := attention_sm90.stages(head, block_kv, step)):
        return found, step
    return attention_sm90.stages(head, block_kv), None


def attention_unit(d, block_kv, steady, turns, causal, in_type="f16", mask="", s_k=0):
    rings, _ = attention_rings(d, block_kv, mask, s_k)
    defines = {"IN_T": C_TYPE[in_type], "OUT_T": C_TYPE[in_type], "HEAD": -(-d // 16) * 16, "BLOCK_KV": block_kv, "Q_STAGES": rings.queries, "STAGES": rings.keys, "CAUSAL": causal,
               "PDL": 1, "TURNS": turns}
    if steady:
        defines |= {"COLUMNS": d, "BATCH_INSIDE": int(bool(mask) and "row" not in mask), "MASK": 0 if not mask else 2 if "bool" in mask else 1, "MASK_ROWS": int("row" not in mask), "MASK_STAGES": rings.masks,
                    "MASK_PAIRS": int(not mask or s_k % 2 == 0), "MASK_T": "float" if mask == "float" else C_TYPE[in_type]}
    return "sm90/attention_steady_sm90.cu" if steady else "sm90/attention_sm90.cu", tuple(sorted((k, str(v)) for k, v in defines.items())), ""


def attention_kinds(d, mask="", s_k=0):
    """(keys of a step, whether against a steady largest score, whether the warpgroups take turns) that the tactic offers."""
    head, held = -(-d // 16) * 16, 0 if not mask else 4 if "row" not in mask else 2  # registers for two keys of the widest mask of a kind
    kinds = attention_sm90.kinds_of(head, held, mask_step(mask, s_k)) or attention_sm90.kinds_of(head, held)
    return [(block, steady, turns) for block, steady, _ in kinds for turns in (1, 0)]


def attention_name(block_kv, steady, turns):
    return f"kv{block_kv} s{steady} t{turns}"


def short_unit(d, keys, causal, in_type, mask, debug=0):
    defines = {"IN_T": C_TYPE[in_type], "OUT_T": C_TYPE[in_type], "HEAD": d, "KEYS": keys, "MIN_BLOCKS": attention_sm90.short_blocks(d, keys),
               "CAUSAL": causal, "PDL": 1, "DEBUG_TIMEOUT": debug, "MASK": 0 if not mask else 2 if "bool" in mask else 1,
               "MASK_ROWS": int("row" not in mask), "MASK_T": "float" if mask == "float" else C_TYPE[in_type]}
    return "sm90/attention_short_sm90.cu", tuple(sorted((k, str(v)) for k, v in defines.items())), ""
