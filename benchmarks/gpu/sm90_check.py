"""Checks and times the sm_90a matrix kernels on a Hopper GPU, beside torch (cuBLASLt, cuDNN) in the same run.

    python3 benchmarks/gpu/sm90_check.py [--seconds 100] [--only REGEX] [--out results.jsonl] [--top 8] [--record results/kernels-h100.jsonl]
                                         [--groups check-gemm,check-conv,check-window,check-stem,check-attention,check-short,time-stem,time-attention,
                                                   time-short,time-epilogue,time-nets,time]
    python3 benchmarks/gpu/sm90_check.py --judge results.jsonl

Needs torch and cuda.bindings; compiles with NVRTC in parallel first. ``time`` measures what the tactics would offer first (``--top``
configurations of tile_sm90.candidates), the most important shapes first, until the time is up; ``time-nets`` the layers of whole networks, with sums
over the network; it is not among the groups that run by default. The best and torch then take turns, replay by replay. The groups run in a child process: a
variant that crashes or hangs is noted, and a new child goes on after it. Every timed result is compared with torch's first.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from fusion.dtypes import DataType  # noqa: E402
from tactics.cuda.sm90 import attention_sm90, conv_window_sm90, stem_sm90, tile_sm90  # noqa: E402
from tactics.cuda.sm90.tile_sm90 import Tile  # noqa: E402
from tactics.tactic import DeviceSpec  # noqa: E402

CUDA = ROOT / "tactics" / "cuda"
H200 = DeviceSpec("cuda", "H200", "sm_90a", 90, 132, 227 * 1024, 50 << 20, 140 << 30, 4.0e12, {"float16": 8e14})
CACHE = Path(os.environ.get("SM90_CACHE", "/tmp/sm90_cubins"))

# As the tactics' epilogues: the bias, operand 0, is a constant that kernels ask for early.
BIAS = """
#define HAS_EPILOGUE 1
#define EPILOGUE_CONSTANTS 1
#include "epilogue.cuh"
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
template <int V> __device__ __forceinline__ void epilogue(float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  for (int i = 0; i < V; ++i) v[i] += b[i];
}
""",
    "bias_relu": BIAS + """
struct EpilogueArgs { const void* operand[1]; };
template <int V> __device__ __forceinline__ void epilogue(float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  for (int i = 0; i < V; ++i) v[i] = fmaxf(v[i] + b[i], 0.f);
}
""",
    "bias_gelu": BIAS + """
struct EpilogueArgs { const void* operand[1]; };
#include "functions.cuh"
template <int V> __device__ __forceinline__ void epilogue(float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  for (int i = 0; i < V; ++i) v[i] = fx::fast::gelu(v[i] + b[i]);
}
""",
    "bias_residual": BIAS + """
struct EpilogueArgs { const void* operand[2]; };
template <int V> __device__ __forceinline__ void epilogue(float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V], r[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  load_vector<V>(r, (const OUT_T*)a.operand[1] + m * ld + n);
  for (int i = 0; i < V; ++i) v[i] += b[i] + r[i];
}
""",
    "bias_residual_relu": BIAS + """
struct EpilogueArgs { const void* operand[2]; };
template <int V> __device__ __forceinline__ void epilogue(float (&v)[V], const EpilogueArgs& a, long long m, int n, int ld) {
  float b[V], r[V];
  load_vector<V>(b, (const OUT_T*)a.operand[0] + n);
  load_vector<V>(r, (const OUT_T*)a.operand[1] + m * ld + n);
  for (int i = 0; i < V; ++i) v[i] = fmaxf(v[i] + b[i] + r[i], 0.f);
}
""",
}
C_TYPE = {"f16": "half", "bf16": "__nv_bfloat16", "f32": "float"}
SIZE = {"f16": 2, "bf16": 2, "f32": 4}
SHARED_LIMIT = 227 * 1024


# ------------------------------------------------------------------------------------------------------------ configurations
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
                c["MIN_BLOCKS"], c["CHUNK"], c["DIRECT"])


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
    for key in ("B_KN", "A_KM", "MN_FLIP", "DIRECT"):
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
    return [dict(BN=dict(one)["bn"], PATCHES=dict(one)["patches"], SLABS=channels // 64, FILTER_H=taps[0], FILTER_W=taps[1], PDL=1)
            for one in conv_window_sm90.choices(patch, channels, outputs)]


def window_name(c):
    return f"window bn{c['BN']} patches{c['PATCHES']}"


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


# -------------------------------------------------------------------------------------------------------------------- cases
def check_gemm_cases():
    """(label, config, shape, options): shape = (batch, m, n, k)."""
    big = (1, 300, 328, 200)
    yield "plain", make(128, 128), big, {}
    yield "one wg", make(64, 64), big, {}
    yield "tails V=1", make(64, 64), (1, 77, 67, 136), {"vec": 1, "epilogue": "bias_residual_relu"}
    yield "tails V=4", make(128, 64), (1, 130, 68, 136), {"vec": 4, "epilogue": "bias_residual_relu"}
    yield "epilogue", make(128, 256), (1, 333, 520, 520), {"epilogue": "bias_residual_relu"}
    yield "two row blocks", make(256, 128), (1, 333, 520, 520), {"epilogue": "bias"}
    yield "pingpong", make(128, 128, pp=1), (1, 1111, 1304, 328), {"epilogue": "bias"}
    yield "pingpong 64", make(64, 256, pp=1), (1, 1111, 1304, 328), {"epilogue": "bias"}
    yield "cluster x", make(128, 128, clx=2), (1, 333, 520, 520), {"epilogue": "bias"}
    yield "cluster y", make(128, 128, cly=2), (1, 333, 520, 520), {"epilogue": "bias"}
    yield "cluster x big", make(128, 256, clx=2), (1, 1500, 1304, 520), {"epilogue": "bias"}
    yield "cluster pingpong", make(128, 128, pp=1, clx=2), (1, 3333, 1304, 520), {"epilogue": "bias"}
    for split in (2, 4, 8):
        yield f"split {split}", make(64, 64, split=split), (1, 200, 200, 1032), {"epilogue": "bias_residual_relu"}
    yield "split wg2", make(128, 64, split=4), (1, 200, 200, 1032), {"epilogue": "bias_residual_relu"}
    yield "split few k", make(64, 64, split=8), (1, 100, 72, 136), {}
    yield "swap", make(64, 16, swap=1), (1, 9, 328, 520), {"epilogue": "bias_residual_relu"}
    yield "swap 8", make(64, 8, swap=1), (1, 1, 1000, 2048), {"epilogue": "bias"}
    yield "swap 64", make(128, 64, swap=1), (1, 100, 328, 520), {"epilogue": "bias_residual_relu"}
    yield "swap split", make(64, 32, swap=1, split=4), (1, 25, 328, 520), {"epilogue": "bias_residual_relu"}
    yield "batch", make(128, 64), (5, 77, 72, 136), {}
    yield "batch shared", make(128, 64), (5, 77, 72, 136), {"shared_b": True}
    yield "b_kn", make(64, 64, B_KN=1), (1, 77, 72, 136), {}
    yield "b_kn 128", make(128, 128, B_KN=1), (3, 200, 200, 136), {}
    yield "b_kn 256", make(128, 256, B_KN=1), (1, 200, 600, 520), {}
    yield "b_kn 32", make(64, 32, B_KN=1), (3, 200, 200, 136), {}
    yield "b_kn cluster", make(128, 128, B_KN=1, clx=2), (1, 520, 200, 136), {}
    yield "b_kn swap", make(64, 32, B_KN=1, swap=1), (3, 20, 200, 136), {}
    yield "a_km", make(128, 64, A_KM=1), (2, 200, 72, 136), {}
    yield "swizzle 64", make(64, 64, sw=64), (1, 77, 72, 40), {}
    yield "swizzle 32", make(64, 64, sw=32), (1, 77, 72, 16), {}
    yield "bf16", make(128, 128), big, {"in_type": "bf16", "out_type": "bf16"}
    yield "f32 out", make(128, 128), big, {"out_type": "f32"}
    yield "tf32", make(128, 128), big, {"in_type": "f32", "out_type": "f32", "epilogue": "bias_residual_relu"}
    yield "pdl", make(128, 128, pdl=1), big, {"epilogue": "bias"}
    yield "pdl split", make(64, 64, split=4, pdl=1), (1, 200, 200, 1032), {"epilogue": "bias"}
    yield "many tiles", make(64, 32), (1, 2000, 2000, 72), {}
    residual = {"epilogue": "bias_residual_relu"}
    yield "columns 144", make(128, 144, pdl=1), (1, 333, 1160, 520), residual
    yield "columns 72, V=4", make(64, 72, pdl=1), (1, 333, 1164, 520), {"vec": 4, **residual}
    yield "columns 176, cluster y", make(128, 176, cly=2, pdl=1), (1, 777, 1160, 1032), residual
    yield "columns 224, cluster x", make(128, 224, clx=2, pdl=1), (1, 777, 1160, 1032), residual
    yield "chunk 64", make(128, 128, chunk=64, pdl=1), (1, 777, 1160, 520), residual
    yield "chunk 64, odd", make(64, 128, chunk=64, pdl=1), (1, 777, 1157, 520), {"vec": 1, **residual}
    yield "two blocks", make(128, 128, blocks=2, pdl=1), (1, 3333, 2056, 136), residual
    yield "three blocks, chunk 64", make(128, 64, blocks=3, chunk=64, pdl=1), (1, 3333, 2056, 136), residual
    yield "three warpgroups", make(192, 128, wg=3, cly=2, pdl=1), (1, 1999, 1160, 520), residual
    yield "overlaid partial sums", make(128, 192, split=4, pdl=1), (1, 333, 392, 2056), residual
    yield "overlaid, 192 columns", make(128, 192, split=2, clx=2, pdl=1), (1, 333, 392, 2056), residual
    yield "overlaid, uneven", make(192, 128, wg=3, split=3, pdl=1), (1, 333, 392, 2056), residual
    yield "overlaid, few stages", make(256, 128, split=8, stages=2, pdl=1), (1, 333, 392, 2056), residual
    yield "long k ahead", make(64, 64, split=2, pdl=1), (1, 200, 200, 8200), residual
    yield "pingpong one stage", make(128, 64, pp=1, pdl=1), (1, 30000, 264, 64), residual
    yield "pingpong long k", make(128, 128, pp=1, chunk=64, pdl=1), (1, 5000, 520, 2056), residual
    yield "pingpong two blocks", make(128, 64, pp=1, stages=3, pdl=1), (1, 9999, 520, 328), residual
    yield "pingpong cluster y", make(128, 128, pp=1, cly=2, pdl=1), (1, 3333, 1304, 520), residual
    for bm, bn, wg, pp in ((64, 32, 1, 0), (128, 64, 2, 0), (128, 128, 2, 1), (128, 160, 2, 1), (128, 192, 2, 1), (192, 192, 3, 0), (256, 128, 2, 0), (128, 256, 2, 0)):
        yield f"direct {bm}x{bn} pp{pp}", make(bm, bn, wg, pp, direct=1, pdl=1), (1, 1333, 1184, 520), residual
    yield "direct one row", make(64, 64, direct=1, pdl=1), (1, 1, 96, 136), residual
    yield "direct cluster x", make(192, 192, 3, clx=2, direct=1, pdl=1), (1, 1111, 1184, 520), residual
    yield "direct cluster y", make(192, 192, 3, cly=2, direct=1, pdl=1), (1, 1111, 1184, 520), residual
    yield "direct pingpong cluster", make(128, 192, 2, 1, clx=2, direct=1, pdl=1), (1, 5000, 1184, 520), {"debug": 0, **residual}
    yield "cluster 2x2", make(128, 192, clx=2, cly=2, direct=1, pdl=1), (1, 1111, 1184, 520), residual
    yield "cluster 2x2 pingpong", make(128, 128, pp=1, clx=2, cly=2, direct=1, pdl=1), (1, 5000, 1184, 520), residual
    yield "cluster 4x1", make(128, 128, clx=4, pdl=1), (1, 1111, 1184, 520), residual
    yield "cluster 1x4", make(128, 128, cly=4, pdl=1), (1, 1111, 1184, 520), residual
    yield "cluster 2x4", make(64, 64, clx=2, cly=4, pdl=1), (1, 1111, 1184, 520), residual
    yield "cluster x and split", make(128, 128, clx=2, split=2, pdl=1), (1, 1111, 1184, 1032), residual
    yield "cluster y and split", make(128, 64, cly=2, split=2, pdl=1), (1, 1111, 1184, 1032), residual
    yield "cluster x and split 4", make(64, 64, clx=2, split=4, pdl=1), (1, 333, 392, 2056), residual
    yield "cluster 2x2 and split, bf16", make(64, 96, clx=2, cly=2, split=2, pdl=1), (1, 333, 392, 2056), {"in_type": "bf16", "out_type": "bf16", **residual}
    yield "cluster y, small", make(64, 96, cly=2, pdl=1), (1, 1111, 1184, 1032), residual
    yield "cluster x, small", make(64, 104, clx=2, pdl=1), (1, 1111, 1184, 1032), residual
    yield "direct f32 out", make(128, 128, direct=1), big[:2] + (352, 200), {"out_type": "f32"}
    yield "direct tf32", make(128, 64, direct=1), big[:2] + (352, 200), {"in_type": "f32", "out_type": "f32", "epilogue": "bias_residual_relu"}
    yield "direct bf16, two blocks", make(128, 128, blocks=2, direct=1, pdl=1), (1, 3333, 2080, 136), {"in_type": "bf16", "out_type": "bf16", **residual}
    yield "pingpong odd tiles", make(128, 128, pp=1, pdl=1), (3, 200, 200, 136), {}


def check_conv_cases():
    """(label, config, shape, options): shape = (n, h, w, c, o, (r, s), (stride_h, stride_w), (pads), (dilations)); with several blocks of
    channels in both orders of K."""
    for label, c, shape, options in _conv_cases():
        yield label, c, shape, options
        if shape[3] > 64:
            yield f"{label}, taps first", {**c, "TAPS_INNER": 1}, shape, options


def _conv_cases():
    yield "1x1", make(128, 64), (2, 14, 14, 64, 64, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), {}
    yield "3x3", make(128, 64), (3, 14, 14, 64, 72, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "rectangular", make(128, 64), (3, 11, 17, 72, 72, (3, 5), (1, 1), (1, 2, 1, 2), (1, 1)), {}
    yield "uneven pads", make(64, 64), (2, 11, 17, 64, 64, (3, 3), (1, 1), (0, 1, 2, 0), (1, 1)), {}
    yield "stride 2", make(128, 64), (3, 15, 14, 64, 64, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), {}
    yield "stride 2x1", make(128, 64), (3, 15, 14, 64, 64, (3, 3), (2, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "1x1 stride 2", make(128, 64), (3, 15, 15, 64, 64, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)), {}
    yield "dilation", make(128, 64), (2, 15, 19, 64, 64, (3, 3), (1, 1), (2, 4, 2, 4), (2, 4)), {}
    yield "5x5 no pad", make(64, 32), (2, 15, 19, 40, 40, (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)), {}
    yield "c 24", make(64, 64, sw=64), (2, 15, 19, 24, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "c 16", make(64, 64, sw=32), (2, 15, 19, 16, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "c 96", make(128, 96), (2, 15, 19, 96, 96, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    for split in (2, 4, 8):
        yield f"split {split}", make(64, 64, split=split), (1, 7, 7, 192, 72, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "split wg2", make(128, 64, split=4), (1, 14, 14, 128, 72, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "pingpong", make(128, 128, pp=1), (9, 28, 28, 64, 136, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "pingpong cluster", make(128, 128, pp=1, clx=2, pdl=1), (32, 28, 28, 64, 264, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "pingpong 1x1", make(128, 64, pp=1, chunk=64, pdl=1), (32, 28, 28, 64, 136, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), {}
    yield "columns 80", make(256, 80, cly=2, pdl=1), (9, 28, 28, 64, 264, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    for bm, bn, wg, pp in ((128, 64, 2, 0), (128, 128, 2, 1), (192, 192, 3, 0), (64, 64, 1, 0)):
        yield f"direct {bm}x{bn}", make(bm, bn, wg, pp, direct=1, pdl=1), (9, 28, 28, 64, 288, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "cluster 2x2", make(128, 128, clx=2, cly=2, direct=1, pdl=1), (5, 27, 28, 64, 288, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), {}
    yield "cluster x and split", make(128, 64, clx=2, split=2, pdl=1), (5, 14, 14, 256, 160, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), {}
    yield "cluster y and split", make(64, 64, cly=2, split=2, pdl=1), (5, 14, 14, 256, 160, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "direct cluster", make(128, 128, clx=2, direct=1, pdl=1), (5, 27, 28, 64, 160, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), {}
    yield "overlaid partial sums", make(128, 160, split=4, pdl=1), (3, 14, 14, 512, 264, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "coop 256", make(128, 256), (9, 28, 28, 64, 264, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "256 rows", make(256, 64), (9, 28, 28, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "cluster x", make(128, 128, clx=2), (5, 28, 28, 64, 136, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "cluster y", make(128, 128, cly=2), (5, 28, 28, 64, 264, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}
    yield "bf16", make(128, 64), (2, 14, 14, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {"in_type": "bf16", "out_type": "bf16"}
    yield "tf32", make(128, 64), (2, 14, 14, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {"in_type": "f32", "out_type": "f32"}
    yield "odd outputs", make(64, 32), (2, 14, 14, 64, 21, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {"vec": 1}
    yield "pdl", make(64, 64, pdl=1, split=2), (2, 14, 14, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), {}


def check_window_cases():
    """(label, (n, h, w, c, o, (r, s), (pads)), type): stride and dilation 1."""
    yield "3x3", (3, 14, 14, 64, 64, (3, 3), (1, 1, 1, 1)), "f16"
    yield "56", (5, 56, 56, 64, 64, (3, 3), (1, 1, 1, 1)), "f16"
    yield "many tiles", (33, 56, 56, 64, 64, (3, 3), (1, 1, 1, 1)), "f16"
    yield "two slabs, 32 outputs", (3, 28, 28, 128, 32, (3, 3), (1, 1, 1, 1)), "f16"
    yield "wide, no pads, bf16", (2, 20, 259, 64, 96, (3, 3), (0, 0, 0, 0)), "bf16"
    yield "uneven pads", (2, 13, 37, 64, 160, (3, 5), (0, 1, 2, 3)), "f16"
    yield "column of taps", (2, 31, 9, 64, 64, (3, 1), (1, 0, 1, 0)), "f16"
    yield "5x5", (2, 17, 23, 64, 32, (5, 5), (2, 2, 2, 2)), "f16"
    yield "small", (7, 5, 3, 64, 64, (3, 3), (1, 1, 1, 1)), "f16"
    yield "128 outputs", (2, 30, 30, 64, 128, (3, 3), (1, 1, 1, 1)), "f16"


def check_stem_cases():
    """(label, config, (n, h, w, o), options)."""
    for nchw in (0, 1):
        tag = "nchw" if nchw else "nhwc"
        yield f"{tag} 7x7", stem(nchw=nchw), (2, 45, 51, 64), {}
        yield f"{tag} 7x7 two", stem(nchw=nchw, wg=2, blocks=2), (3, 224, 224, 64), {}
        yield f"{tag} 3x3", stem(3, 3, 3, (2, 2), (1, 1), 32, 2, nchw), (2, 33, 70, 32), {}
        yield f"{tag} f32 image", stem(nchw=nchw), (2, 45, 51, 64), {"image": "f32"}
        yield f"{tag} one channel", stem(1, 5, 5, (1, 1), (2, 2), 16, 1, nchw), (2, 28, 28, 16), {}
        yield f"{tag} 4 channels rect", stem(4, 3, 5, (1, 2), (0, 2), 32, 1, nchw), (2, 30, 41, 24), {}
        yield f"{tag} rows 7x7", stem(nchw=nchw, patches=3, direct=1), (2, 45, 56, 64), {}
        yield f"{tag} rows 7x7, staged, bf16", stem(nchw=nchw, patches=2, blocks=5), (3, 61, 40, 64), {"in_type": "bf16", "image": "bf16", "out_type": "bf16"}
        yield f"{tag} rows 7x7 two", stem(nchw=nchw, wg=2, blocks=2, patches=3, direct=1), (9, 224, 224, 64), {}
        yield f"{tag} rows 3x3", stem(3, 3, 3, (2, 2), (1, 1), 32, 1, nchw, 6, patches=4, direct=1), (5, 333, 72, 32), {}
        yield f"{tag} rows 4 channels", stem(4, 3, 5, (1, 2), (0, 2), 32, 1, nchw, patches=3), (2, 30, 48, 24), {}
        yield f"{tag} rows, outputs in tiles", stem(2, 3, 3, (1, 2), (1, 1), 64, 1, nchw, patches=3, direct=1), (1, 30, 48, 160), {}
        yield f"{tag} outputs in tiles", stem(3, 3, 3, (1, 1), (1, 1), 64, 1, nchw), (1, 30, 41, 136), {"in_type": "bf16", "image": "bf16", "out_type": "bf16"}


STEM_SHAPES = [(32, 224, 224, 64, 7), (1, 224, 224, 64, 7), (32, 224, 224, 32, 3)]


def stem_candidates(n, h, w, o, f):
    for nchw in (0, 1):
        for wg, blocks, patches in ((1, 4, 3), (1, 5, 3), (1, 5, 4), (2, 2, 3), *(((1, 8, 3), (2, 4, 3)) if o < 64 else ())):
            yield stem(3, f, f, (2, 2), (f // 2, f // 2), o, wg, nchw, blocks, patches=patches, direct=1)
        yield stem(3, f, f, (2, 2), (f // 2, f // 2), o, 1, nchw, 5)


GEMM_SHAPES = [(1024, n, k) for n, k in ((2304, 768), (768, 768), (3072, 768), (768, 3072))]
GEMM_SHAPES += [(4096, 2304, 768), (4096, 4096, 4096), (4096, 768, 3072), (6304, 768, 768), (6304, 3072, 768), (8192, 8192, 8192)]
GEMM_SHAPES += [(197, 3072, 768), (197, 2304, 768), (197, 768, 3072)]
EPILOGUE_SHAPES = [(4096, 3072, 768, "bias_gelu"), (6304, 3072, 768, "bias_gelu"), (4096, 768, 3072, "bias_residual"), (6304, 768, 3072, "bias_residual"),
                   (4096, 768, 768, "bias_residual"), (6304, 768, 768, "bias_residual")]
LATER_GEMM_SHAPES = [(4096, 3072, 768), (4096, 768, 768), (6304, 2304, 768), (6304, 768, 3072), (2048, 2048, 2048), (128, 768, 3072), (128, 2304, 768),
                     (32, 1000, 2048), (1, 1000, 2048), (128, 768, 768), (128, 3072, 768), (197, 768, 768)]


SWEEP_GEMM = {
    (4096, 768, 3072): "128x192c2x1 192x128w3c1x2 192x128w3c2x1", (6304, 768, 3072): "192x192w3 192x192w3c1x2 192x192w3c2x1 192x96w3c1x2",
    (4096, 2304, 768): "128x192p1c2x1 192x192w3c1x2", (6304, 3072, 768): "128x128p1c1x2 192x192w3c2x1", (4096, 4096, 4096): "128x256c2x1 256x128c1x2",
    (1568, 512, 2048): "128x128k2 64x128c2x1 64x128c1x2", (6272, 512, 1024): "192x128w3c1x2 128x192c2x1", (6272, 256, 1024): "128x128c2x1 128x96c1x2",
    (1024, 768, 3072): "128x96k2 64x96c1x2 64x96c2x1", (6304, 768, 768): "128x160p1c2x1 192x192w3c1x2", (6304, 2304, 768): "128x128p1c1x2",
}
CLUSTERED = {
    (4096, 768, 3072): "128x192c2x2 128x96c2x2 192x128w3c2x2 128x192p1c2x2", (6304, 768, 3072): "128x192c2x2 192x192w3c2x2 192x96w3c2x2 192x96w3c1x4 128x160c2x2 192x192w3c4x1",
    (4096, 2304, 768): "128x192p1c2x2 128x128p1c2x2", (6304, 3072, 768): "128x192p1c2x2 128x128p1c2x2", (4096, 4096, 4096): "128x256c2x2 128x192p1c2x2 128x256c4x1",
    (1568, 512, 2048): "128x128c2x1k2 128x128c1x2k2 64x104c2x1 64x104c1x2 128x64c2x1 128x64c1x2 64x128c2x2 64x64c2x2 128x128c2x2k2 64x128c2x1k2",
    (6272, 512, 1024): "128x128c2x2 128x192c2x2 128x128p1c2x2", (6272, 256, 1024): "128x128c2x2 128x64c2x2 192x128w3c2x1 128x96c2x1",
    (1024, 768, 3072): "128x128c2x1k2 128x128c1x2k2 64x96c2x2 128x64c1x2 128x64c2x1 128x96c2x1k2 128x96c1x2k2 64x96c1x4 128x64c2x2 128x192c2x1k2 128x128c2x1k4",
    (6304, 768, 768): "128x160p1c2x2 128x128p1c2x2", (6304, 2304, 768): "128x128p1c2x2 128x192p1c2x2",
}
SWEEP_CONV = {
    (32, 512, 14, 14, 512, 3, 2): "128x128k2 128x128c2x1k2 128x128c1x2k2 128x64c2x1 128x64c1x2 64x104c2x1 64x128c2x1 64x128c1x2 64x128c2x1k2 128x128c2x2k2 128x64c2x2",
    (32, 512, 7, 7, 512, 3, 1): "128x128k2 128x128c2x1k2 128x128c1x2k2 128x64c2x1 128x64c1x2 64x104c2x1 64x128c2x1 64x128c1x2 64x128c2x1k2 128x128c2x2k2 128x64c2x2",
    (32, 256, 28, 28, 256, 3, 2): "128x128p1c2x1 128x128c2x1 128x128c2x2 128x64c2x2",
    (32, 256, 14, 14, 256, 3, 1): "128x128p1c1x2 128x128c2x2",
}


def written(text, problem):
    """A tile from 'BMxBN[wWARPGROUPS][pPINGPONG][cXxY][kSPLIT]', direct where that is legal."""
    bm, bn, wg, pp, cx, cy, split = re.fullmatch(r"(\d+)x(\d+)(?:w(\d))?(?:p(\d))?(?:c(\d)x(\d))?(?:k(\d))?", text).groups()
    shape = Tile(int(bm), int(bn), int(wg or (1 if bm == "64" else 2)), 2, int(pp or 0), cluster_x=int(cx or 1), cluster_y=int(cy or 1), split=int(split or 1))
    direct = replace(shape, direct=1)
    return tile_sm90.with_stages(shape if tile_sm90.illegal(direct, problem) else direct, problem)


def swept(kind, shape):
    """Configurations of the groups time-sweep: the order of tiles and L2's promotion for known tiles, and larger clusters."""
    problem = (gemm_problem if kind == "gemm" else conv_problem)(*shape)
    table = SWEEP_GEMM if kind == "gemm" else SWEEP_CONV
    found = []
    for text in table[shape].split():
        for group, promotion in ((8, 256), (8, 128), (8, 0), (1, 128), (2, 128), (4, 128), (16, 128), (64, 128)):
            found.append(from_tile(written(text, problem), GROUP=group, PROMOTION=promotion))
            if kind == "conv" and group == 2:
                break
    for text in CLUSTERED.get(shape, "").split() if kind == "gemm" else ():
        found += [from_tile(written(text, problem), GROUP=group, PROMOTION=128) for group in (2, 8)]
    if kind == "gemm" and shape[2] * shape[1] > 2000 * 1000:
        found += [from_tile(written(f"{text}c{x}x{y}", problem), GROUP=group, PROMOTION=128) for group in (2, 8)
                  for x, y in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4))
                  for text in ("128x192p1", "128x128p1", "192x192w3", "192x128w3", "192x96w3", "128x192", "128x256", "256x128")]
    found = list({name(c): c for c in found if not tile_sm90.illegal(tile_of(c), problem)}.values())
    guess = {name(c): tile_sm90.estimate(tile_of(c), problem, H200) for c in found}
    return [c for c in found if guess[name(c)] < 1.7 * min(guess.values())]


def offered(problem, top, extra):
    """The first ``top`` configurations that a tactic would offer, and ``extra`` ones (Tile without stages) where legal."""
    found = tile_sm90.candidates(problem, H200)[:top]
    for tile in extra:
        tile = tile_sm90.with_stages(tile, problem)
        if not tile_sm90.illegal(tile, problem) and tile not in found:
            found.append(tile)
    return [from_tile(tile) for tile in found]


def staged(problem, count):
    """The first ``count`` configurations again, with results turned through shared memory."""
    return [replace(tile, direct=0) for tile in tile_sm90.candidates(problem, H200)[:count] if tile.direct]


def large(problem, slack=1.35):
    """Large tiles, with and without clusters, that should not take longer than ``slack`` times the best of them."""
    found = {}
    for bm, bn, wg, pp in ((128, 192, 2, 1), (128, 160, 2, 1), (128, 128, 2, 1), (192, 192, 3, 0), (192, 160, 3, 0), (192, 128, 3, 0), (128, 192, 2, 0),
                           (128, 256, 2, 0), (256, 128, 2, 0)):
        for cx, cy in ((1, 1), (2, 1), (1, 2)):
            tile = tile_sm90.with_stages(Tile(bm, bn, wg, pingpong=pp, cluster_x=cx, cluster_y=cy, direct=1), problem)
            if not tile_sm90.illegal(tile, problem):
                found[tile] = tile_sm90.estimate(tile, problem, H200)
    return [tile for tile, seconds in found.items() if seconds < slack * min(found.values())]


def gemm_problem(m, n, k):
    return tile_sm90.Problem(m, n, 1, 1, k, DataType.HALF, 2.0 * (m * k + n * k + m * n), permutable=True)


def gemm_candidates(m, n, k):
    extra = []
    if m >= 1024:
        extra = [*large(gemm_problem(m, n, k)), *staged(gemm_problem(m, n, k), 2)]
    elif m > 64:
        extra = [Tile(64, 64, 1), Tile(64, 64, 1, split=2), Tile(64, 32, 1, split=2)]
    return offered(gemm_problem(m, n, k), TOP, extra)


def _resnet():
    for text in """3x224x224 64 7 2|64x56x56 64 1 1|64x56x56 64 3 1|64x56x56 256 1 1|256x56x56 64 1 1|256x56x56 128 1 1|128x56x56 128 3 2
128x28x28 512 1 1|256x56x56 512 1 2|512x28x28 128 1 1|128x28x28 128 3 1|512x28x28 256 1 1|256x28x28 256 3 2|256x14x14 1024 1 1
512x28x28 1024 1 2|1024x14x14 256 1 1|256x14x14 256 3 1|1024x14x14 512 1 1|512x14x14 512 3 2|512x7x7 2048 1 1|1024x14x14 2048 1 2
2048x7x7 512 1 1|512x7x7 512 3 1""".replace("\n", "|").split("|"):
        image, o, f, stride = text.split()
        c, h, w = map(int, image.split("x"))
        yield c, h, w, int(o), int(f), int(stride)


CONV_SHAPES = [(32, *layer) for layer in sorted((layer for layer in _resnet() if layer[0] >= 8), key=lambda layer: (-layer[4], layer[5]))]
LATER_CONV_SHAPES = [(1, *layer) for layer in _resnet() if layer[0] >= 8]
TOP = 8


def items():
    """(kind, shape) of everything timed, the most important first: large products and convolutions with windows, 1x1 ones, small ones."""
    windows = [shape for shape in CONV_SHAPES if shape[5] > 1]
    first = [("gemm", shape) for shape in GEMM_SHAPES[:6]] + [("conv", shape) for shape in windows]
    first += [("gemm", shape) for shape in GEMM_SHAPES[6:]] + [("conv", shape) for shape in CONV_SHAPES if shape[5] == 1]
    return first + [("gemm", shape) for shape in LATER_GEMM_SHAPES] + [("conv", shape) for shape in LATER_CONV_SHAPES]


@dataclass(frozen=True)
class Layer:
    """A layer of a network: how often it occurs there, and what follows the products. Shapes as in ``items``; stem: (n, h, w, o, f)."""

    network: str
    times: int
    kind: str  # gemm, conv or stem
    shape: tuple[int, ...]
    epilogue: str

    @property
    def label(self):
        if self.kind == "gemm":
            return gemm_label(self.shape, self.epilogue)
        text = stem_label(self.shape) if self.kind == "stem" else conv_label(self.shape)
        return text + (" residual" if "residual" in self.epilogue else "")

    @property
    def floor_us(self):
        """The larger of the operations at 800 TFLOP/s, the bytes at 3.0 TB/s and 1 us (what peers-h100 measured as ceilings)."""
        if self.kind == "stem":
            n, h, w, o, f = self.shape
            flops, size = 2.0 * n * (h // 2) * (w // 2) * o * f * f * 3, 2.0 * n * (3 * h * w + h * w // 4 * o)
        else:
            problem = (gemm_problem if self.kind == "gemm" else conv_problem)(*self.shape)
            flops = 2.0 * problem.m * problem.n * problem.taps * problem.depth
            size = problem.bytes + (2.0 * problem.m * problem.n if "residual" in self.epilogue else 0)
        return max(flops / 800e6, size / 3e6, 1.0)


def nets():
    """The layers of ResNet-50 at batch 1, 8, 32 and 128 (bias and ReLU; those that add a residual once more with it), of BERT-base
    (sequence 128) and ViT-B/16 (197 tokens) at batch 1, 8 and 32. The largest batches last."""
    found = []
    for batch in (1, 8, 32, 128):
        for (c, h, w, o, f, stride), times in zip(_resnet(), RESNET_TIMES, strict=True):
            shape = (batch, h, w, o, f) if c == 3 else (batch, c, h, w, o, f, stride)
            found.append(Layer(f"ResNet-50 b{batch}", times, "stem" if c == 3 else "conv", shape, "bias_relu"))
            if f == stride == 1 and o == 4 * c:
                found.append(Layer(f"ResNet-50 b{batch} residual", times - (c == 64), "conv", shape, "bias_residual_relu"))
        for network, tokens in (("BERT-base", 128), ("ViT-B/16", 197)):
            for n, k, epilogue in TRANSFORMER if batch <= 32 else ():
                found.append(Layer(f"{network} b{batch}", 12, "gemm", (batch * tokens, n, k), epilogue))
    return found


TRANSFORMER = ((2304, 768, "bias"), (768, 768, "bias_residual"), (3072, 768, "bias_gelu"), (768, 3072, "bias_residual"))
RESNET_TIMES = (1, 1, 3, 4, 2, 1, 1, 4, 1, 3, 3, 1, 1, 6, 1, 5, 5, 1, 1, 3, 1, 2, 2)


def layer_candidates(layer):
    """What the tactics would try first."""
    if layer.kind == "stem":
        return list(stem_candidates(*layer.shape))
    problem = (gemm_problem if layer.kind == "gemm" else conv_problem)(*layer.shape)
    found = [from_tile(tile) for tile in tile_sm90.candidates(problem, H200)[:TOP]]
    if layer.kind == "conv":
        found = [ordered(one, layer.shape) for one in found]
    return found + (window_candidates(*layer.shape) if layer.kind == "conv" else [])


def layer_unit(layer, c):
    if layer.kind == "stem":
        return stem_unit(c, layer.epilogue)
    return unit("gemm", c, layer.epilogue) if layer.kind == "gemm" else conv_unit(layer.shape, c, layer.epilogue)


def item_label(kind, shape):
    return "x".join(map(str, shape)) if kind == "gemm" else conv_label(shape)


def kernel_of(kind, shape):
    """Which kernel serves it: a 1x1 convolution with stride 1 is a product."""
    return "gemm" if kind == "gemm" or (shape[5] == 1 and shape[6] == 1) else "conv"


def conv_problem(n, c, h, w, o, f, stride):
    p = -(-h // stride)
    read = n * h * w * c // (stride**2 if f == 1 else 1)
    return tile_sm90.Problem(n * p * p, o, 1, f * f, c, DataType.HALF, 2.0 * (read + f * f * c * o + n * p * p * o), may_swap=f == stride == 1,
                             permutable=True)


def ordered(c, shape):
    """A configuration with the order of K that the tactic takes for a convolution (conv_sm90.taps_inner)."""
    n, _, h, w, o, f, _ = shape
    return {**c, "TAPS_INNER": int(n * h * w >= f * f * o)}


def conv_candidates(n, c, h, w, o, f, stride):
    problem = conv_problem(n, c, h, w, o, f, stride)
    extra = [Tile(128, 64, 2, blocks=3, chunk=64), Tile(128, 128, 2, pingpong=1, chunk=64), Tile(128, 128, 2, pingpong=1, direct=1),
             Tile(192, 192, 3, direct=1), *staged(problem, 3)] if n > 1 else staged(problem, 1)
    found = offered(conv_problem(n, c, h, w, o, f, stride), TOP if n > 1 else 5, extra)
    return [ordered(one, (n, c, h, w, o, f, stride)) for one in found] + window_candidates(n, c, h, w, o, f, stride)


def window_candidates(n, c, h, w, o, f, stride):
    return window_configs(c, o, h, w, (f, f)) if f > 1 and stride == 1 and c % 64 == o % 32 == 0 else []


def conv_unit(shape, c, epilogue):
    return window_unit(c, epilogue) if "SLABS" in c else unit(kernel_of("conv", shape), c, epilogue)


def units_of(group, only):
    """Every translation unit that a group may need."""
    result = []
    if group == "check-gemm":
        for label, c, _, o in check_gemm_cases():
            if re.search(only, f"{group} {label}"):
                result.append(unit("gemm", c, o.get("epilogue", ""), o.get("in_type", "f16"), o.get("out_type", "f16"), o.get("vec", 8),
                                   o.get("debug", 1)))
    if group == "check-conv":
        for label, c, _, o in check_conv_cases():
            if re.search(only, f"{group} {label}"):
                result.append(unit("conv", c, "bias_residual_relu", o.get("in_type", "f16"), o.get("out_type", "f16"), o.get("vec", 8), 1))
    if group == "check-window":
        for label, (_, h, w, c, o, f, pads), kind in check_window_cases():
            if re.search(only, f"{group} {label}"):
                size = h + pads[0] + pads[2] - f[0] + 1, w + pads[1] + pads[3] - f[1] + 1
                result += [window_unit(one, "bias_residual_relu", kind, kind, 1) for one in window_configs(c, o, *size, f)]
    if group == "time":
        for kind, shape in items():
            if re.search(only, f"{group} {item_label(kind, shape)}"):
                candidates = gemm_candidates if kind == "gemm" else conv_candidates
                result += [unit("gemm", c, "bias") if kind == "gemm" else conv_unit(shape, c, "bias_relu") for c in candidates(*shape)]
    if group == "time-nets":
        for layer in nets():
            if re.search(only, f"{group} {layer.network} {layer.label}"):
                result += [layer_unit(layer, c) for c in layer_candidates(layer)]
    if group == "check-attention":
        for label, (*_, s_k, d, causal, kind, _, _, mask) in ATTENTION_CHECKS.items():
            if re.search(only, f"{group} {label}"):
                result += [attention_unit(d, *how, causal, kind, mask, s_k) for how in attention_kinds(d, mask)]
    if group == "time-attention":
        result += [attention_unit(d, *how, causal) for d in sorted({d for *_, d in ATTENTION_SHAPES}) for how in attention_kinds(d) for causal in (0, 1)]
    if group == "check-short":
        for label, (*_, s_k, d, causal, kind, _, mask) in SHORT_CHECKS.items():
            if re.search(only, f"{group} {label}"):
                result.append(short_unit(d, -(-s_k // 16) * 16, causal, kind, mask, 1))
    if group == "time-short":
        result += [short_unit(d, -(-s // 16) * 16, 0, "f16", mask) for *_, s, d, mask in SHORT_SHAPES]
    if group == "time-sweep":
        result += [unit("gemm", c, "bias") for shape in SWEEP_GEMM for c in swept("gemm", shape)]
        result += [unit("conv", c, "bias_relu") for shape in SWEEP_CONV for c in swept("conv", shape)]
    if group == "time-epilogue":
        for *shape, epilogue in EPILOGUE_SHAPES:
            result += [unit("gemm", c, epilogue) for c in gemm_candidates(*shape)]
    if group == "check-stem":
        for label, c, _, o in check_stem_cases():
            if re.search(only, f"{group} {label}"):
                result.append(stem_unit(c, "bias_residual_relu", o.get("image", "f16"), o.get("in_type", "f16"), o.get("out_type", "f16"), 8, 1))
    if group == "time-stem":
        for shape in STEM_SHAPES:
            if re.search(only, f"{group} {stem_label(shape)}"):
                result += [stem_unit(c, "bias_relu") for c in stem_candidates(*shape)]
    return result


def attention_unit(d, block_kv, steady, turns, causal, in_type="f16", mask="", s_k=0):
    head = -(-d // 16) * 16
    queries, count = attention_sm90.stages(head, block_kv)
    defines = {"IN_T": C_TYPE[in_type], "HEAD": head, "BLOCK_KV": block_kv, "Q_STAGES": queries, "STAGES": count, "CAUSAL": causal, "PDL": 1, "TURNS": turns}
    if steady:
        defines |= {"COLUMNS": d, "MASK": 0 if not mask else 2 if "bool" in mask else 1, "MASK_ROWS": int("row" not in mask),
                    "MASK_PAIRS": int(s_k % 2 == 0), "MASK_T": "float" if mask == "float" else C_TYPE[in_type]}
    else:
        defines["CONSUMERS"] = 2
    return "sm90/attention_steady_sm90.cu" if steady else "sm90/attention_sm90.cu", tuple(sorted((k, str(v)) for k, v in defines.items())), ""


def attention_kinds(d, mask=""):
    """(keys of a step, whether against a steady largest score, whether the warpgroups take turns) that the tactic offers."""
    held = 0 if not mask else 4 if "row" not in mask else 2  # registers for two keys of the widest mask of a kind
    kinds = [(block, 1) for block in attention_sm90.blocks(-(-d // 16) * 16, held)] + [(128, 0)] * (d == 128 and not mask)
    return [(*kind, turns) for kind in kinds for turns in (1, 0)]


def attention_name(block_kv, steady, turns):
    return f"kv{block_kv} s{steady} t{turns}"


# label: (batch, heads, key heads, queries, keys, head size, causal, type, positions first, data, mask)
ATTENTION_CHECKS = {
    "plain 64": (2, 3, 3, 200, 200, 64, 0, "f16", 0, "", ""), "plain 128": (1, 2, 2, 1000, 1000, 128, 0, "f16", 0, "", ""), "one": (1, 1, 1, 1, 1, 64, 0, "f16", 0, "", ""),
    "shared heads bf16": (1, 4, 2, 77, 300, 64, 0, "bf16", 0, "", ""), "positions first": (2, 4, 4, 333, 333, 64, 0, "f16", 1, "", ""),
    "causal 64": (1, 2, 2, 900, 900, 64, 1, "f16", 1, "", ""), "causal more keys": (1, 2, 2, 128, 500, 128, 1, "f16", 0, "", ""),
    "several tiles a block": (3, 8, 4, 1531, 700, 64, 0, "f16", 1, "", ""), "several causal tiles a block": (5, 16, 16, 701, 701, 64, 1, "bf16", 1, "", ""),
    "several tiles of few keys": (7, 24, 24, 300, 90, 128, 0, "f16", 0, "", ""), "several causal tiles without keys": (9, 16, 8, 600, 333, 64, 1, "f16", 0, "", ""),
    "causal rows without keys": (1, 2, 2, 500, 200, 64, 1, "f16", 0, "", ""), "whole blocks": (2, 2, 2, 1024, 1024, 128, 0, "bf16", 0, "", ""),
    "head 32": (2, 3, 3, 300, 500, 32, 0, "f16", 1, "", ""), "head 40": (2, 3, 3, 300, 500, 40, 0, "f16", 0, "", ""), "head 72 causal": (2, 3, 3, 300, 300, 72, 1, "bf16", 1, "", ""),
    "head 96": (4, 16, 16, 300, 500, 96, 0, "f16", 0, "", ""), "head 192": (2, 3, 3, 300, 500, 192, 0, "f16", 0, "", ""), "head 256": (2, 3, 3, 500, 500, 256, 1, "f16", 0, "", ""),
    "rising": (2, 4, 4, 700, 900, 64, 0, "f16", 0, "rising", ""), "falling": (2, 4, 4, 700, 900, 64, 0, "f16", 0, "falling", ""),
    "bursts": (2, 4, 4, 700, 900, 64, 0, "bf16", 0, "bursts", ""), "large": (1, 4, 4, 1500, 1500, 64, 0, "f16", 0, "large", ""), "rising 128": (2, 4, 4, 700, 900, 128, 1, "f16", 0, "rising", ""),
    "key padding": (3, 8, 4, 531, 700, 64, 0, "f16", 1, "", "row"), "mask": (3, 8, 4, 531, 700, 64, 0, "f16", 1, "", "full"), "odd mask": (3, 8, 4, 531, 701, 64, 0, "f16", 1, "", "full"),
    "float mask": (2, 3, 3, 300, 500, 64, 0, "bf16", 0, "", "float"), "boolean": (2, 3, 3, 300, 500, 64, 0, "f16", 0, "", "bool"), "boolean row": (2, 3, 3, 300, 501, 128, 0, "f16", 0, "", "boolrow"),
    "masked causal": (2, 3, 3, 500, 500, 64, 1, "f16", 0, "", "row"),
}  # fmt: skip
ATTENTION_SHAPES = [(4, 16, 1024, 64), (1, 16, 4096, 64), (4, 16, 1024, 128), (32, 12, 197, 64), (32, 12, 128, 64), (1, 16, 2048, 64), (16, 16, 512, 64), (4, 16, 1024, 32),
                    (4, 16, 1024, 96), (1, 16, 2048, 256)]
# label: (batch, heads, key heads, queries, keys, head size, causal, type, positions first, mask)
SHORT_CHECKS = {
    "plain": (2, 3, 3, 128, 128, 64, 0, "f16", 0, ""), "197": (3, 5, 5, 197, 197, 64, 0, "f16", 1, ""), "one": (1, 1, 1, 1, 1, 64, 0, "f16", 0, ""),
    "shared heads bf16": (1, 4, 2, 77, 250, 64, 0, "bf16", 0, ""), "causal": (1, 2, 2, 77, 77, 64, 1, "f16", 1, ""),
    "causal more keys": (1, 2, 2, 70, 200, 128, 1, "f16", 0, ""), "causal rows without keys": (1, 2, 2, 200, 90, 64, 1, "f16", 0, ""),
    "head 32": (2, 3, 3, 49, 49, 32, 0, "f16", 0, ""), "head 32 masked": (2, 3, 3, 49, 49, 32, 0, "f16", 0, "full"),
    "head 128": (2, 2, 2, 130, 255, 128, 0, "bf16", 0, ""), "key padding": (3, 4, 4, 128, 128, 64, 0, "f16", 1, "row"),
    "key padding 197": (3, 4, 4, 197, 197, 64, 0, "f16", 1, "row"), "mask": (2, 3, 3, 77, 131, 64, 0, "f16", 0, "full"),
    "float mask": (2, 3, 3, 77, 131, 64, 0, "bf16", 0, "float"), "boolean": (2, 3, 3, 77, 131, 64, 0, "f16", 0, "bool"),
    "boolean row": (2, 3, 3, 77, 131, 64, 0, "f16", 0, "boolrow"), "masked causal": (2, 3, 3, 131, 131, 64, 1, "f16", 0, "row"),
}  # fmt: skip
SHORT_SHAPES = [(32, 12, 128, 64, ""), (32, 12, 128, 64, "row"), (32, 12, 197, 64, ""), (1, 12, 128, 64, ""), (1, 12, 128, 64, "row"), (1, 12, 197, 64, ""),
                (8, 12, 128, 64, "row"), (8, 12, 256, 64, ""), (64, 3, 49, 32, "full")]


def short_unit(d, keys, causal, in_type, mask, debug=0):
    defines = {"IN_T": C_TYPE[in_type], "HEAD": d, "KEYS": keys, "MIN_BLOCKS": attention_sm90.short_blocks(d, keys),
               "CAUSAL": causal, "PDL": 1, "DEBUG_TIMEOUT": debug, "MASK": 0 if not mask else 2 if "bool" in mask else 1,
               "MASK_ROWS": int("row" not in mask), "MASK_T": "float" if mask == "float" else C_TYPE[in_type]}
    return "sm90/attention_short_sm90.cu", tuple(sorted((k, str(v)) for k, v in defines.items())), ""


def make_mask(torch, kind, batch, heads, s_q, s_k, dtype):
    """(mask, what to add to the scores in float64) for a kind of SHORT_CHECKS."""
    shape = (batch, 1, 1, s_k) if "row" in kind else (1, heads, s_q, s_k)
    keep = torch.rand(shape, device="cuda") > 0.3
    keep[..., 0] = True
    if "bool" in kind:
        return keep, torch.where(keep, 0.0, float("-inf")).double()
    low = torch.finfo(torch.float16).min if kind == "row" else float("-inf")
    mask = torch.where(keep, torch.randn(shape, device="cuda"), low).to(torch.float32 if kind == "float" else dtype)
    return mask, mask.double()


def stem_label(shape):
    n, h, w, o, f = shape
    return f"b{n} 3x{h}x{w}->{o} k{f} s2"


def pack_stem(torch, weight, c):
    """[o, r, s, c] -> the order that stem_sm90.cu or stem_rows_sm90.cu asks for."""
    if c["PATCHES"]:
        packed = stem_rows(c).pack(weight.permute(0, 3, 1, 2).float().cpu().numpy(), c["BN"], c["DIRECT"])
        return torch.from_numpy(packed).to(weight.device, weight.dtype)
    o, r, s, ch = weight.shape
    taps, bn = -(-s // 4), c["BN"]
    tiles = -(-o // bn)
    full = torch.zeros(tiles * bn, r, taps * 4, 4, device=weight.device, dtype=weight.dtype)
    full[:o, :, :s, :ch] = weight
    full = full.view(tiles, bn // 8, 8, r, taps, 4, 2, 2)  # tile, eights, output, r, group, tap, channel / 2, channel % 2
    return full.permute(0, 3, 4, 6, 1, 2, 5, 7).contiguous()


def conv_label(shape):
    n, c, h, w, o, f, stride = shape
    return f"b{n} {c}x{h}x{w}->{o} k{f} s{stride}"


def permuted(rows):
    """tile_sm90.permute_rows of a tensor."""
    return rows.reshape(-1, 4, 4, 2, *rows.shape[1:]).transpose(1, 2).contiguous().view(rows.shape)


# ------------------------------------------------------------------------------------------------------------------ the GPU
class Gpu:
    """Loads and launches kernels through the driver, on torch's context and stream."""

    def __init__(self):
        import torch
        from cuda.bindings import driver

        self.torch, self.driver = torch, driver
        torch.cuda.init()
        torch.zeros(1, device="cuda")
        self.functions, self.promoted, self.surprises = {}, 128, {}
        self.multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count

    def ok(self, result):
        if int(result[0]) != 0:
            raise RuntimeError(str(result[0]))
        return result[1] if len(result) > 1 else None

    def function(self, one, entry, shared):
        key = (one, entry)
        if key not in self.functions:
            path = cubin_path(one)
            if not path.exists():
                raise RuntimeError("not compiled")
            module = self.ok(self.driver.cuModuleLoadData(path.read_bytes()))
            self.functions[key] = self.ok(self.driver.cuModuleGetFunction(module, entry.encode()))
        attribute = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.ok(self.driver.cuFuncSetAttribute(self.functions[key], attribute, shared))  # one kernel may need more for another shape
        return self.functions[key]

    def blocks_per_multiprocessor(self, function, block, shared):
        return max(1, int(self.ok(self.driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, block, shared))))

    def occupancy(self, c, function, shared):
        """What the tactic takes for the blocks of a multiprocessor; notes where the driver says otherwise."""
        expected, actual = tile_sm90.per_multiprocessor(tile_of(c)), self.blocks_per_multiprocessor(function, threads(c), shared)
        self.surprises = {} if expected == actual else {"occupancy": actual, "expected": expected}
        return expected

    def tiled(self, pointer, in_type, dims, strides, box, swizzle):
        d = self.driver
        kinds = {"f16": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16, "bf16": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                 "f32": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_TFLOAT32}
        modes = {128: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B, 64: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B,
                 32: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_32B, 0: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_NONE}
        made = self.ok(d.cuTensorMapEncodeTiled(
            kinds[in_type], len(dims), pointer, [d.cuuint64_t(v) for v in dims], [d.cuuint64_t(v) for v in strides],
            [d.cuuint32_t(v) for v in box], [d.cuuint32_t(1)] * len(dims), d.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            modes[swizzle], self.promotion(),
            d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
        return ctypes.string_at(made.getPtr(), 128)

    def promotion(self):
        """How many bytes around what a box asks for L2 fetches."""
        kinds = self.driver.CUtensorMapL2promotion
        return {0: kinds.CU_TENSOR_MAP_L2_PROMOTION_NONE, 64: kinds.CU_TENSOR_MAP_L2_PROMOTION_L2_64B, 128: kinds.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                256: kinds.CU_TENSOR_MAP_L2_PROMOTION_L2_256B}[self.promoted]

    def im2col(self, pointer, in_type, dims, strides, lower, upper, channels, pixels, steps, swizzle):
        d = self.driver
        kinds = {"f16": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16, "bf16": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                 "f32": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_TFLOAT32}
        modes = {128: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B, 64: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B,
                 32: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_32B}
        made = self.ok(d.cuTensorMapEncodeIm2col(
            kinds[in_type], len(dims), pointer, [d.cuuint64_t(v) for v in dims], [d.cuuint64_t(v) for v in strides],
            list(lower), list(upper), channels, pixels, [d.cuuint32_t(v) for v in steps],
            d.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE, modes[swizzle],
            self.promotion(), d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
        return ctypes.string_at(made.getPtr(), 128)

    def launcher(self, function, grid, block, shared, arguments, pdl=False):
        """A function that launches on torch's current stream; arguments are bytes (by value), ints (i32) or pointers (('p', v))."""
        buffers = []
        for value in arguments:
            if isinstance(value, bytes):
                buffers.append(ctypes.create_string_buffer(value, len(value)))
            elif isinstance(value, tuple):
                buffers.append(ctypes.c_uint64(value[1]))
            else:
                buffers.append(ctypes.c_int32(value))
        # a by-value TensorMap must not straddle: the driver copies it, alignment of the host copy does not matter
        array = (ctypes.c_void_p * len(buffers))(*[ctypes.addressof(b) for b in buffers])
        driver, torch = self.driver, self.torch
        config = driver.CUlaunchConfig()
        grid = (*grid, 1, 1)[:3] if isinstance(grid, tuple) else (grid, 1, 1)
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
        config.sharedMemBytes = shared
        if pdl:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            value = driver.CUlaunchAttributeValue()
            value.programmaticStreamSerializationAllowed = 1
            attribute.value = value
            config.attrs, config.numAttrs = [attribute], 1

        def launch():
            config.hStream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
            (error,) = driver.cuLaunchKernelEx(config, function, ctypes.addressof(array), 0)
            if int(error):
                raise RuntimeError(str(error))

        launch.keep = (buffers, array)
        return launch

    # -- the two kernels
    def gemm(self, c, a, b, out, operands, in_type, out_type, epilogue, vec, debug=0, constant=1):
        """Launcher of out[batch, m, n] from a [batch, m, k] (or [batch, k, m]) and b [batch or 1, n, k] (or [.., k, n])."""
        es = SIZE[in_type]
        self.promoted = c.get("PROMOTION", 128)
        one = unit("gemm", c, epilogue, in_type, out_type, vec, debug, constant)
        shared = shared_bytes(c)
        function = self.function(one, "gemm", shared)
        batches, m, n = out.shape
        bk = c["SWIZZLE"] // es
        k = a.shape[1] if c.get("A_KM") else a.shape[2]

        def operand(tensor, rows, mn, x_side):
            batch = tensor.shape[0]
            if mn:
                width = 128 if x_side else (128 if c["BN"] % 64 == 0 else 64 if c["BN"] % 32 == 0 else 32)
                return self.tiled(tensor.data_ptr(), in_type, (rows, k, batch), (rows * es, rows * k * es), (width // es, bk, 1), width)
            box = c["BM"] // c["CLUSTER_Y"] if x_side else c["BN"] // c["CLUSTER_X"]
            return self.tiled(tensor.data_ptr(), in_type, (k, rows, batch), (k * es, rows * k * es), (bk, box, 1), c["SWIZZLE"])

        if c["DIRECT"]:
            b = permuted(b[0])[None]
        maps = operand(a, m, c.get("A_KM", 0), not c["SWAP"]), operand(b, n, c.get("B_KN", 0), bool(c["SWAP"]))
        x, y = (n, m) if c["SWAP"] else (m, n)
        cluster = c["CLUSTER_X"] * c["CLUSTER_Y"] * c["SPLIT"]
        tiles = -(-x // (c["BM"] * c["CLUSTER_X"])) * -(-y // (c["BN"] * c["CLUSTER_Y"])) * batches * cluster
        per = self.occupancy(c, function, shared)
        grid = tiles if c["SPLIT"] > 1 else min(tiles, self.multiprocessors * per // cluster * cluster)
        pointers = b"".join(int(t.data_ptr()).to_bytes(8, "little") for t in operands) or bytes(8)
        arguments = (*maps, ("p", out.data_ptr()), m, n, k, batches, int(a.shape[0] > 1), int(b.shape[0] > 1), pointers)
        launch = self.launcher(function, grid, threads(c), shared, arguments, bool(c["PDL"]))
        launch.keep += (b,)
        return launch

    def conv(self, c, image, weight, out, operands, stride, pads, dilation, in_type, out_type, epilogue, vec, corner="wh", debug=0):
        """Launcher of an NHWC convolution; weight is [o, r, s, c], pads (top, left, bottom, right)."""
        es = SIZE[in_type]
        self.promoted = c.get("PROMOTION", 128)
        one = unit("conv", c, epilogue, in_type, out_type, vec, debug)
        shared = shared_bytes(c)
        function = self.function(one, "convolution", shared)
        n, h, w, ch = image.shape
        o, r, s, _ = weight.shape
        _, p, q, _ = out.shape
        bk = c["SWIZZLE"] // es
        lower = (-pads[1], -pads[0])
        upper = ((q - 1) * stride[1] - pads[1] - (w - 1), (p - 1) * stride[0] - pads[0] - (h - 1))  # the last place of the first tap
        if corner == "hw":
            lower, upper = lower[::-1], upper[::-1]
        if c["DIRECT"]:
            weight = permuted(weight)
        image_map = self.im2col(image.data_ptr(), in_type, (ch, w, h, n), (ch * es, w * ch * es, h * w * ch * es), lower, upper, bk,
                                c["BM"] // c["CLUSTER_Y"], (1, stride[1], stride[0], 1), c["SWIZZLE"])
        weight_map = self.tiled(weight.data_ptr(), in_type, (ch, r * s, o), (ch * es, r * s * ch * es), (bk, 1, c["BN"] // c["CLUSTER_X"]),
                                c["SWIZZLE"])
        pixels = n * p * q
        cluster = c["CLUSTER_X"] * c["CLUSTER_Y"] * c["SPLIT"]
        tiles = -(-pixels // (c["BM"] * c["CLUSTER_X"])) * -(-o // (c["BN"] * c["CLUSTER_Y"])) * cluster
        per = self.occupancy(c, function, shared)
        grid = tiles if c["SPLIT"] > 1 else min(tiles, self.multiprocessors * per // cluster * cluster)
        pointers = b"".join(int(t.data_ptr()).to_bytes(8, "little") for t in operands)
        arguments = (image_map, weight_map, ("p", out.data_ptr()), pixels, p, q, o, ch, r, s, *stride, pads[0], pads[1], *dilation, c.get("TAPS_INNER", 0), pointers)
        launch = self.launcher(function, grid, threads(c), shared, arguments, bool(c["PDL"]))
        launch.keep += (weight,)
        return launch

    def window(self, c, image, weight, out, operands, pads, in_type, out_type, epilogue, debug=0):
        """Launcher of conv_window_sm90.cu; weight is [o, r, s, c], pads (top, left, bottom, right)."""
        n, h, w, ch = image.shape
        o, r, s, _ = weight.shape
        _, p, q, _ = out.shape
        patch = conv_window_sm90.patch_of(p, q, (r, s))
        one = window_unit(c, epilogue, in_type, out_type, debug)
        shared = conv_window_sm90.shared_bytes(patch, ch, c["BN"], c["PATCHES"])
        function = self.function(one, "convolution_window", shared)
        weight = permuted(weight)
        image_map = self.tiled(image.data_ptr(), in_type, (ch, w, h, n), (ch * 2, w * ch * 2, h * w * ch * 2), (64, patch.pitch, patch.rows, 1), 128)
        weight_map = self.tiled(weight.data_ptr(), in_type, (ch, r * s, o), (ch * 2, r * s * ch * 2), (64, 1, c["BN"]), 128)
        tiles, ranges = n * -(-p // patch.height) * -(-q // patch.width), -(-o // c["BN"])
        pointers = b"".join(int(t.data_ptr()).to_bytes(8, "little") for t in operands)
        arguments = (image_map, weight_map, ("p", out.data_ptr()), n, p, q, o, patch.height, patch.width, pads[0], pads[1], patch.bytes, pointers)
        launch = self.launcher(function, (min(tiles, self.multiprocessors // ranges), ranges), 2 * 128 + 32, shared, arguments, bool(c["PDL"]))
        launch.keep += (weight,)
        return launch

    def stem(self, c, image, packed, out, operands, image_type, in_type, out_type, epilogue, debug=0):
        one = stem_unit(c, epilogue, image_type, in_type, out_type, 8, debug)
        shared = stem_shared_bytes(c)
        function = self.function(one, "convolution_stem_rows" if c["PATCHES"] else "convolution_stem", shared)
        n, p, q, o = out.shape
        h, w = image.shape[2:] if c["NCHW"] else image.shape[1:3]
        tiles = -(-p // (4 * c["WARPGROUPS"])) * -(-q // 16) * n
        threads_ = 128 * c["WARPGROUPS"]
        per = self.blocks_per_multiprocessor(function, threads_, shared)
        pointers = b"".join(int(t.data_ptr()).to_bytes(8, "little") for t in operands)
        if c["PATCHES"]:
            rows, ch = stem_rows(c), c["CHANNELS"]
            row, high = w * rows.together * 2, rows.height(c["WARPGROUPS"])
            dims, strides, box = ((w, h, ch, n), (row, row * h, row * h * ch), (high, ch, 1)) if c["NCHW"] else ((w * ch, h, n), (row, row * h), (high, 1))
            image_map = self.tiled(image.data_ptr(), image_type, dims, strides, (rows.width, *box), 0)
            arguments = (image_map, ("p", packed.data_ptr()), ("p", out.data_ptr()), n, p, q, o, pointers)
        else:
            arguments = (("p", image.data_ptr()), ("p", packed.data_ptr()), ("p", out.data_ptr()), n, h, w, p, q, o, pointers)
        return self.launcher(function, (min(tiles, self.multiprocessors * per), -(-o // c["BN"])), threads_, shared, arguments, bool(c["PDL"]))

    def attention(self, q, k, v, out, how, causal, in_type="f16", mask=None, kind=""):
        """Launcher of softmax(q k^T / sqrt(d) + mask) v on [b, h, s, d] views whose head dimension is contiguous; the mask of a kind of SHORT_CHECKS."""
        (batch, heads, s_q, d), (_, kv_heads, s_k, _) = q.shape, k.shape
        one, (block_kv, steady, _) = attention_unit(d, *how, causal, in_type, kind, s_k), how
        head = -(-d // 16) * 16
        shared = attention_sm90.shared_bytes(head, block_kv, *attention_sm90.stages(head, block_kv))
        function = self.function(one, "attention_steady_sm90" if steady else "attention_sm90", shared)
        maps = [self.tiled(t.data_ptr(), in_type, (d, t.shape[2], t.shape[1], batch), (t.stride(2) * 2, t.stride(1) * 2, t.stride(0) * 2),
                           (64, rows, 1, 1), 128) for t, rows in ((q, attention_sm90.ROWS), (k, block_kv), (v, block_kv))]
        strides = b"".join(int(out.stride(axis)).to_bytes(8, "little") for axis in range(3))
        scale = struct.pack("f", d**-0.5 * 1.4426950408889634)
        steps = [0 if mask is None or mask.shape[axis] == 1 else mask.stride(axis) for axis in range(4)]
        mask_strides = b"".join(int(step).to_bytes(8, "little") for step in steps[:3])
        arguments = (*maps, *([("p", 0 if mask is None else mask.data_ptr())] if steady else []), ("p", out.data_ptr()), heads // kv_heads, s_q, s_k,
                     heads, batch, strides, *([mask_strides, steps[3]] if steady else []), scale)
        tiles = -(-s_q // attention_sm90.ROWS) * heads * batch
        return self.launcher(function, (min(tiles, self.multiprocessors), 1, 1), 384, shared, arguments, True)

    def short(self, q, k, v, out, mask, kind, causal, in_type="f16", debug=0):
        """The same for up to 256 keys, with a mask of a kind of SHORT_CHECKS."""
        (batch, heads, s_q, d), (_, kv_heads, s_k, _) = q.shape, k.shape
        keys, panel = -(-s_k // 16) * 16, min(d, 64)
        shared = attention_sm90.short_bytes(d, keys, "row" in kind)
        function = self.function(short_unit(d, keys, causal, in_type, kind, debug), "attention_short_sm90", shared)
        maps = [self.tiled(t.data_ptr(), in_type, (d, t.shape[2], t.shape[1], batch), (t.stride(2) * 2, t.stride(1) * 2, t.stride(0) * 2),
                           (panel, rows, 1, 1), 2 * panel) for t, rows in ((q, 64), (k, keys), (v, keys))]
        strides = b"".join(int(out.stride(axis)).to_bytes(8, "little") for axis in range(3))
        steps = [0 if mask is None or mask.shape[axis] == 1 else mask.stride(axis) for axis in range(4)]
        mask_strides = b"".join(int(step).to_bytes(8, "little") for step in steps[:3])
        scale = struct.pack("f", d**-0.5 * 1.4426950408889634)
        arguments = (*maps, ("p", 0 if mask is None else mask.data_ptr()), ("p", out.data_ptr()), heads // kv_heads, s_q, s_k, strides, mask_strides,
                     steps[3], scale)
        return self.launcher(function, (heads, -(-s_q // 64), batch), 128, shared, arguments, True)

    # -- judging
    def compare(self, out, reference):
        """(relative error of the norms, largest error over the reference's rms); NaN counts as infinite."""
        difference = (out.double() - reference).abs()
        if not bool(self.torch.isfinite(difference).all()):
            return float("inf"), float("inf")
        rms = reference.pow(2).mean().sqrt().item() + 1e-30
        return difference.pow(2).mean().sqrt().item() / rms, difference.max().item() / rms

    def graph(self, launches, count):
        """A graph of ``count`` launches that rotate over ``launches``."""
        torch = self.torch
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for launch in launches:
                launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin()
            for i in range(count):
                launches[i % len(launches)]()
            graph.capture_end()
        return graph

    def replay(self, graphs, count, replays):
        """Microseconds a launch of every replay of every graph. The graphs take turns, so that all meet the same clocks."""
        torch = self.torch
        events = [[] for _ in graphs]
        with torch.cuda.stream(torch.cuda.Stream()):
            for graph in graphs:
                graph.replay()
            for _ in range(replays):
                for graph, own in zip(graphs, events, strict=True):
                    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    start.record()
                    graph.replay()
                    end.record()
                    own.append((start, end))
        torch.cuda.synchronize()
        return [[a.elapsed_time(b) * 1e3 / count for a, b in own] for own in events]

    def graph_time(self, launches, count=24, replays=10):
        """Median seconds a launch, from replays of a graph of its own."""
        return statistics.median(self.replay([self.graph(launches, count)], count, replays)[0]) * 1e-6


def effort(flops):
    """(launches in a graph, replays): fewer for launches of more than about 0.3 ms."""
    return (24, 10) if flops < 6e10 else (6, 7)


def poisoned(torch, shape, dtype):
    """A NaN-filled tensor inside a larger sentinel buffer: (tensor, function that says whether the margins are intact)."""
    count = 1
    for d in shape:
        count *= d
    margin = 4096
    whole = torch.full((count + 2 * margin,), float("nan"), device="cuda", dtype=dtype)
    whole[:margin] = 7.0
    whole[-margin:] = 7.0
    return whole[margin : margin + count].view(shape), lambda: bool((whole[:margin] == 7).all() and (whole[-margin:] == 7).all())


def contest(gpu, attempt, label, library, variants, out, reference, flops, **about):
    """Times torch's launches ``library`` and those of every variant (name, function that makes them, columns of its row), then the best
    variant and torch in turns: a GPU at its power limit slows down from replay to replay, so that only turns compare the two.

    A variant counts when what its first launch writes to ``out`` equals ``reference``.
    """
    count, replays = effort(flops)
    graphs = {}
    row = {"shape": label, **about}

    def baseline():
        graphs["torch"] = gpu.graph(library, count)
        us = statistics.median(gpu.replay([graphs["torch"]], count, replays)[0])
        return {**row, "us": us, "tflops": flops / us * 1e-6, "who": "torch"}
    attempt(f"{label} torch", baseline)
    best = float("inf")
    for title, make_launches, columns in variants:
        def one(make_launches=make_launches, columns=columns, title=title):
            nonlocal best
            gpu.surprises = {}
            launches = make_launches()
            out.fill_(float("nan"))
            graph = gpu.graph(launches, count)
            us = statistics.median(gpu.replay([graph], count, replays)[0])
            error, _ = gpu.compare(out, reference)
            result = {**row, "config": title, "ok": error < 2e-3, "relative": error, **columns, **gpu.surprises}
            if result["ok"]:
                result |= {"us": us, "tflops": flops / us * 1e-6, "who": "ours"}
                if us < best:
                    best, graphs["ours"] = us, graph
                    graphs["launches"], graphs["title"] = launches, title
            return result
        attempt(f"{label} {title}", one)

    def turns():
        ours, theirs = gpu.replay([graphs["ours"], graphs["torch"]], count, replays)
        us = statistics.median(ours)
        return {**row, "config": graphs["title"], "us": us, "tflops": flops / us * 1e-6, "who": "turns", "ours_us": ours, "torch_us": theirs}
    if "torch" in graphs and "ours" in graphs:
        attempt(f"{label} in turns", turns)


def gemm_label(shape, epilogue="bias"):
    return "x".join(map(str, shape)) + ("" if epilogue == "bias" else f" {epilogue}")


def time_gemm(gpu, attempt, shape_label, shape, epilogue="bias", candidates=None, **about):
    torch = gpu.torch
    m, n, k = shape
    sets = max(2, min(24, int(200e6 / (2 * (m * k + n * k + m * n)))))
    a = [torch.randn(1, m, k, device="cuda").half() for _ in range(sets)]
    b = [(torch.randn(1, n, k, device="cuda") * k**-0.5).half() for _ in range(sets)]
    bias = torch.randn(n, device="cuda").half()
    outs = [torch.empty(1, m, n, device="cuda", dtype=torch.float16) for _ in range(sets)]
    residual = torch.randn(m, n, device="cuda").half()
    after = {"bias": lambda x: x, "bias_gelu": torch.nn.functional.gelu, "bias_residual": lambda x: x + residual}[epilogue]
    operands = [bias, residual] if "residual" in epilogue else [bias]
    linear = [lambda i=i: after(torch.addmm(bias, a[i][0], b[i][0].t(), out=outs[i][0])) for i in range(sets)]
    reference = after(torch.addmm(bias.float(), a[0][0].float(), b[0][0].float().t())).double()
    variants = [(name(c), lambda c=c: [gpu.gemm(c, a[i], b[i], outs[i], operands, "f16", "f16", epilogue, 8) for i in range(sets)],
                 {"tile": tile_of(c).__dict__}) for c in candidates or gemm_candidates(m, n, k)]
    contest(gpu, attempt, shape_label, linear, variants, outs[0][0], reference, 2.0 * m * n * k, **{"epilogue": epilogue, **about})


def time_conv(gpu, attempt, shape_label, shape, candidates=None, epilogue="bias_relu", **about):
    torch = gpu.torch
    n, ch, h, w, o, f, stride = shape
    p = -(-h // stride)
    pad = f // 2
    sets = max(2, min(24, int(200e6 / (2 * (n * h * w * ch + f * f * ch * o + n * p * p * o)))))
    images = [torch.randn(n, h, w, ch, device="cuda").half() for _ in range(sets)]
    weights = [(torch.randn(o, f, f, ch, device="cuda") * (ch * f * f) ** -0.5).half() for _ in range(sets)]
    bias = torch.randn(o, device="cuda").half()
    residuals = [torch.randn(n, p, p, o, device="cuda").half() for _ in range(sets)] if "residual" in epilogue else []
    outs = [torch.empty(n, p, p, o, device="cuda", dtype=torch.float16) for _ in range(sets)]
    window = ((stride, stride), (pad, pad), (1, 1), 1)

    def library(i):
        image, weight = images[i].permute(0, 3, 1, 2), weights[i].permute(0, 3, 1, 2)
        if residuals:
            return torch.cudnn_convolution_add_relu(image, weight, residuals[i].permute(0, 3, 1, 2), 1.0, bias, *window)
        return torch.cudnn_convolution_relu(image, weight, bias, *window)

    def launch(c, i):
        operands = [bias, residuals[i]] if residuals else [bias]
        if "SLABS" in c:
            return gpu.window(c, images[i], weights[i], outs[i], operands, (pad,) * 4, "f16", "f16", epilogue)
        if kernel_of("conv", shape) == "gemm":
            return gpu.gemm(c, images[i].view(1, -1, ch), weights[i].view(1, o, ch), outs[i].view(1, -1, o), operands, "f16", "f16", epilogue, 8)
        return gpu.conv(c, images[i], weights[i], outs[i], operands, (stride, stride), (pad,) * 4, (1, 1), "f16", "f16", epilogue, 8)
    reference = library(0).permute(0, 2, 3, 1).double()
    variants = [(window_name(c), lambda c=c: [launch(c, i) for i in range(sets)], {}) if "SLABS" in c else
                (name(c), lambda c=c: [launch(c, i) for i in range(sets)], {"tile": tile_of(c).__dict__})
                for c in candidates or conv_candidates(*shape)]
    contest(gpu, attempt, shape_label, [lambda i=i: library(i) for i in range(sets)], variants, outs[0], reference,
            2.0 * n * p * p * o * f * f * ch, **{"epilogue": epilogue, **about})


def time_stem(gpu, attempt, shape_label, shape, **about):
    torch = gpu.torch
    n, h, w, o, f = shape
    p = h // 2
    sets = max(2, min(24, int(200e6 / (2 * n * (3 * h * w + p * p * o)))))
    images = [torch.randn(n, 3, h, w, device="cuda").half() for _ in range(sets)]
    last = [i.contiguous(memory_format=torch.channels_last) for i in images]
    weight = (torch.randn(o, f, f, 3, device="cuda") * (3 * f * f) ** -0.5).half()
    bias = torch.randn(o, device="cuda").half()
    outs = [torch.empty(n, p, p, o, device="cuda", dtype=torch.float16) for _ in range(sets)]
    library = [lambda i=i: torch.cudnn_convolution_relu(last[i], weight.permute(0, 3, 1, 2), bias, (2, 2), (f // 2, f // 2), (1, 1), 1)
               for i in range(sets)]
    reference = library[0]().permute(0, 2, 3, 1).double()

    def launches(c):
        packed = pack_stem(torch, weight, c)
        stored = [i if c["NCHW"] else j.permute(0, 2, 3, 1) for i, j in zip(images, last, strict=True)]
        return [gpu.stem(c, stored[i], packed, outs[i], [bias], "f16", "f16", "f16", "bias_relu") for i in range(sets)]
    variants = [(stem_name(c), lambda c=c: launches(c), {}) for c in stem_candidates(*shape)]
    contest(gpu, attempt, shape_label, library, variants, outs[0], reference, 2.0 * n * p * p * o * f * f * 3, **{"epilogue": "bias_relu", **about})


def run_group(gpu, group, only, skip, deadline, emit):
    torch = gpu.torch
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    torch.manual_seed(0)
    types = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
    limit = {"f16": 1.5e-3, "bf16": 1e-2, "f32": 1.5e-3}
    def attempt(label, function):
        key = f"{group} {label}"
        if not re.search(only, key) or key in skip or time.monotonic() > deadline:
            return
        emit({"begin": key})
        try:
            emit({"label": label, "group": group, **function()})
        except Exception as error:  # noqa: BLE001 - one variant must not end the others
            emit({"label": label, "group": group, "error": f"{type(error).__name__}: {error}"[:300]})
            if "ILLEGAL" in str(error) or "launch failure" in str(error).lower() or "LAUNCH" in str(error) or "illegal" in str(error):
                emit({"died": label})
                os._exit(3)  # the context is lost; the parent starts again after this case

    if group == "check-gemm":
        for label, c, (batch, m, n, k), o in check_gemm_cases():
            def one(c=c, batch=batch, m=m, n=n, k=k, o=o):
                it, ot = o.get("in_type", "f16"), o.get("out_type", "f16")
                a = torch.randn(batch, m, k, device="cuda").to(types[it])
                b = torch.randn(1 if o.get("shared_b") else batch, n, k, device="cuda").to(types[it])
                bias = torch.randn(n, device="cuda").to(types[ot])
                residual = torch.randn(batch, m, n, device="cuda").to(types[ot]) * 10
                reference = a.double() @ b.double().transpose(1, 2)
                kind = o.get("epilogue", "")
                if "bias" in kind:
                    reference += bias.double()
                if "residual" in kind:
                    reference += residual.double()
                if "relu" in kind:
                    reference = reference.relu()
                out, intact = poisoned(torch, (batch, m, n), types[ot])
                at = a.transpose(1, 2).contiguous() if c.get("A_KM") else a
                bt = b.transpose(1, 2).contiguous() if c.get("B_KN") else b
                operands = [bias, residual] if "residual" in kind else [bias] if kind else []
                launch = gpu.gemm(c, at, bt, out, operands, it, ot, kind, o.get("vec", 8), debug=o.get("debug", 1))
                for _ in range(3):
                    out.fill_(float("nan"))
                    launch()
                torch.cuda.synchronize()
                error, worst = gpu.compare(out, reference)
                good = error < limit[it] and intact()
                return {"config": name(c), "shape": [batch, m, n, k], "relative": error, "worst": worst, "intact": intact(), "ok": good,
                        "may_fail": o.get("may_fail", False)}
            attempt(label, one)
    if group == "check-conv":
        for label, c, (n, h, w, ch, oc, f, stride, pads, dil), o in check_conv_cases():
            def one(c=c, n=n, h=h, w=w, ch=ch, oc=oc, f=f, stride=stride, pads=pads, dil=dil, o=o):
                it, ot = o.get("in_type", "f16"), o.get("out_type", "f16")
                image = torch.randn(n, h, w, ch, device="cuda").to(types[it])
                weight = torch.randn(oc, *f, ch, device="cuda").to(types[it])
                bias = torch.randn(oc, device="cuda").to(types[ot])
                padded = torch.nn.functional.pad(image.double().permute(0, 3, 1, 2), (pads[1], pads[3], pads[0], pads[2]))
                reference = torch.nn.functional.conv2d(padded.cpu(), weight.double().permute(0, 3, 1, 2).cpu(), None, stride, 0, dil)
                reference = reference.permute(0, 2, 3, 1).cuda()
                residual = torch.randn(reference.shape, device="cuda").to(types[ot]) * 10
                reference = (reference + bias.double() + residual.double()).relu()
                out, intact = poisoned(torch, tuple(reference.shape), types[ot])
                launch = gpu.conv(c, image, weight, out, [bias, residual], stride, pads, dil, it, ot, "bias_residual_relu",
                                  o.get("vec", 8), o.get("corner", "wh"), debug=1)
                for _ in range(3):
                    out.fill_(float("nan"))
                    launch()
                torch.cuda.synchronize()
                error, worst = gpu.compare(out, reference)
                good = error < limit[it] and intact()
                return {"config": name(c), "relative": error, "worst": worst, "intact": intact(), "ok": good,
                        "may_fail": o.get("may_fail", False)}
            attempt(label, one)
    if group == "check-window":
        for label, (n, h, w, ch, oc, f, pads), kind in check_window_cases():
            p, q = h + pads[0] + pads[2] - f[0] + 1, w + pads[1] + pads[3] - f[1] + 1
            for c in window_configs(ch, oc, p, q, f):
                def one(c=c, n=n, h=h, w=w, ch=ch, oc=oc, f=f, pads=pads, kind=kind):
                    image = torch.randn(n, h, w, ch, device="cuda").to(types[kind])
                    weight = torch.randn(oc, *f, ch, device="cuda").to(types[kind])
                    bias = torch.randn(oc, device="cuda").to(types[kind])
                    padded = torch.nn.functional.pad(image.double().permute(0, 3, 1, 2), (pads[1], pads[3], pads[0], pads[2]))
                    columns = torch.nn.functional.unfold(padded, f)  # torch has no float64 convolution on the GPU that is fast
                    product_ = weight.double().permute(0, 3, 1, 2).reshape(oc, -1) @ columns
                    reference = product_.view(n, oc, padded.shape[2] - f[0] + 1, padded.shape[3] - f[1] + 1).permute(0, 2, 3, 1)
                    residual = torch.randn(reference.shape, device="cuda").to(types[kind]) * 10
                    reference = (reference + bias.double() + residual.double()).relu()
                    out, intact = poisoned(torch, tuple(reference.shape), types[kind])
                    launch = gpu.window(c, image, weight, out, [bias, residual], pads, kind, kind, "bias_residual_relu", 1)
                    for _ in range(3):
                        out.fill_(float("nan"))
                        launch()
                    torch.cuda.synchronize()
                    error, worst = gpu.compare(out, reference)
                    return {"config": window_name(c), "relative": error, "worst": worst, "intact": intact(), "ok": error < limit[kind] and intact()}
                attempt(f"{label} {window_name(c)}", one)
    if group == "check-stem":
        for label, c, (n, h, w, oc), o in check_stem_cases():
            def one(c=c, n=n, h=h, w=w, oc=oc, o=o):
                it, ot, im = o.get("in_type", "f16"), o.get("out_type", "f16"), o.get("image", "f16")
                image = torch.randn(n, c["CHANNELS"], h, w, device="cuda").to(types[im])
                weight = torch.randn(oc, c["FILTER_H"], c["FILTER_W"], c["CHANNELS"], device="cuda").to(types[it])
                bias = torch.randn(oc, device="cuda").to(types[ot])
                reference = torch.nn.functional.conv2d(image.to(types[it]).double().cpu(), weight.double().permute(0, 3, 1, 2).cpu(), None,
                                                       (c["STRIDE_H"], c["STRIDE_W"]), (c["PAD_H"], c["PAD_W"]))
                reference = reference.permute(0, 2, 3, 1).cuda()
                residual = torch.randn(reference.shape, device="cuda").to(types[ot]) * 10
                reference = (reference + bias.double() + residual.double()).relu()
                out, intact = poisoned(torch, tuple(reference.shape), types[ot])
                stored = image if c["NCHW"] else image.permute(0, 2, 3, 1).contiguous()
                packed = pack_stem(torch, weight, c)
                launch = gpu.stem(c, stored, packed, out, [bias, residual], im, it, ot, "bias_residual_relu", 1)
                for _ in range(3):
                    out.fill_(float("nan"))
                    launch()
                torch.cuda.synchronize()
                error, worst = gpu.compare(out, reference)
                good = error < limit[it] and intact()
                return {"config": stem_name(c), "relative": error, "worst": worst, "intact": intact(), "ok": good}
            attempt(label, one)
    if group == "time-stem":
        for shape in STEM_SHAPES:
            if re.search(only, f"{group} {stem_label(shape)}") and time.monotonic() < deadline:
                time_stem(gpu, attempt, stem_label(shape), shape)
    if group == "check-attention":
        for label, (batch, heads, kv_heads, s_q, s_k, d, causal, kind, first, data, mask_kind) in ATTENTION_CHECKS.items():
            if not re.search(only, f"{group} {label}"):
                continue

            def make_side(count, length, factor=1.0, batch=batch, d=d, kind=kind, first=first, data=data):
                shape = (batch, length, count, d) if first else (batch, count, length, d)
                side = torch.randn(shape, device="cuda")
                side = ((side.abs() if data in ("rising", "falling") else side) * factor).to(types[kind])
                return side.transpose(1, 2) if first else side
            ramp = torch.linspace(0, 30, s_k, device="cuda")[:, None]
            bursts = torch.ones(s_k, 1, device="cuda")
            bursts[s_k // 3], bursts[s_k // 2] = 100, 300  # scores beyond what a float's exponential holds
            on_keys = {"rising": ramp, "falling": 30 - ramp, "bursts": bursts, "large": 20.0}.get(data, 1.0)
            for how in attention_kinds(d, mask_kind):
                def one(batch=batch, heads=heads, kv_heads=kv_heads, s_q=s_q, s_k=s_k, d=d, causal=causal, kind=kind, how=how, make_side=make_side,
                        on_keys=on_keys, data=data, mask_kind=mask_kind):
                    q, k, v, out = make_side(heads, s_q, 20.0 if data == "large" else 1.0), make_side(kv_heads, s_k, on_keys), make_side(kv_heads, s_k), make_side(heads, s_q)
                    k_all, v_all = (side.double().repeat_interleave(heads // kv_heads, 1) for side in (k, v))
                    scores = q.double() @ k_all.transpose(2, 3) * d**-0.5
                    mask = None
                    if mask_kind:
                        mask, added = make_mask(torch, mask_kind, batch, heads, s_q, s_k, types[kind])
                        scores = scores + added
                    if causal:
                        scores = scores.masked_fill(torch.ones(s_q, s_k, device="cuda").tril(s_k - s_q) == 0, float("-inf"))
                    reference = scores.softmax(-1).nan_to_num(0) @ v_all
                    launch = gpu.attention(q, k, v, out, how, causal, kind, mask, mask_kind)
                    for _ in range(3):
                        out.fill_(float("nan"))
                        launch()
                    torch.cuda.synchronize()
                    error, worst = gpu.compare(out, reference)
                    return {"config": attention_name(*how), "relative": error, "worst": worst, "ok": error < limit[kind]}
                attempt(f"{label} {attention_name(*how)}", one)
    if group == "check-short":
        for label, (batch, heads, kv_heads, s_q, s_k, d, causal, kind, first, mask_kind) in SHORT_CHECKS.items():
            def make_side(count, length, batch=batch, d=d, kind=kind, first=first):
                shape = (batch, length, count, d) if first else (batch, count, length, d)
                side = torch.randn(shape, device="cuda").to(types[kind])
                return side.transpose(1, 2) if first else side
            def one(batch=batch, heads=heads, kv_heads=kv_heads, s_q=s_q, s_k=s_k, d=d, causal=causal, kind=kind, mask_kind=mask_kind,
                    make_side=make_side):
                q, k, v, out = make_side(heads, s_q), make_side(kv_heads, s_k), make_side(kv_heads, s_k), make_side(heads, s_q)
                k_all, v_all = (side.double().repeat_interleave(heads // kv_heads, 1) for side in (k, v))
                scores = q.double() @ k_all.transpose(2, 3) * d**-0.5
                mask = None
                if mask_kind:
                    mask, added = make_mask(torch, mask_kind, batch, heads, s_q, s_k, types[kind])
                    scores = scores + added
                if causal:
                    scores = scores.masked_fill(torch.ones(s_q, s_k, device="cuda").tril(s_k - s_q) == 0, float("-inf"))
                reference = scores.softmax(-1).nan_to_num(0) @ v_all
                launch = gpu.short(q, k, v, out, mask, mask_kind, causal, kind, 1)
                for _ in range(3):
                    out.fill_(float("nan"))
                    launch()
                torch.cuda.synchronize()
                error, worst = gpu.compare(out, reference)
                return {"config": "short", "relative": error, "worst": worst, "ok": error < limit[kind]}
            attempt(label, one)
    if group == "time-short":
        for batch, heads, length, d, mask_kind in SHORT_SHAPES:
            label = f"attention b{batch} h{heads} s{length} d{d}" + (f" {mask_kind} mask" if mask_kind else "")
            if not re.search(only, f"{group} {label}"):
                continue
            count = max(2, min(12, int(150e6 / (8 * batch * heads * length * d))))
            # packed as networks have them: [b, s, 3, h, d], results [b, s, h, d]
            packed = [torch.randn(batch, length, 3, heads, d, device="cuda").half() for _ in range(count)]
            sides = [[p[:, :, i].transpose(1, 2) for i in range(3)] + [torch.empty(batch, length, heads, d, device="cuda").half().transpose(1, 2)] for p in packed]
            mask = make_mask(torch, mask_kind, batch, heads, length, length, torch.float16)[0] if mask_kind else None
            flops = 4.0 * batch * heads * length * length * d
            library = [lambda s=s: torch.nn.functional.scaled_dot_product_attention(*s[:3], attn_mask=mask) for s in sides]
            reference = library[0]().double()

            def baseline(library=library, label=label, flops=flops):
                seconds_ = gpu.graph_time(library, *effort(flops))
                return {"shape": label, "us": seconds_ * 1e6, "tflops": flops / seconds_ * 1e-12, "who": "torch"}
            attempt(f"{label} torch", baseline)

            def one(sides=sides, reference=reference, label=label, flops=flops, mask=mask, mask_kind=mask_kind):
                launches = [gpu.short(*s, mask, mask_kind, 0) for s in sides]
                sides[0][3].fill_(float("nan"))
                seconds_ = gpu.graph_time(launches, *effort(flops))
                error, _ = gpu.compare(sides[0][3], reference)
                return {"shape": label, "config": "short", "ok": error < 2e-3, "relative": error, "us": seconds_ * 1e6,
                        "tflops": flops / seconds_ * 1e-12, "who": "ours"}
            attempt(f"{label} short", one)
    if group == "time-sweep":
        for shape in SWEEP_GEMM:
            time_gemm(gpu, attempt, "x".join(map(str, shape)) + " sweep", shape, "bias", swept("gemm", shape))
        for shape in SWEEP_CONV:
            time_conv(gpu, attempt, conv_label(shape) + " sweep", shape, swept("conv", shape))
    if group == "time-epilogue":
        for m, n, k, epilogue in EPILOGUE_SHAPES:
            if time.monotonic() < deadline:
                time_gemm(gpu, attempt, gemm_label((m, n, k), epilogue), (m, n, k), epilogue)
    if group == "time-attention":
        for batch, heads, length, d in ATTENTION_SHAPES:
            for causal in (0, 1):
                label = f"attention b{batch} h{heads} s{length} d{d}" + (" causal" if causal else "")
                if causal and length < 1024 or not re.search(only, f"{group} {label}"):
                    continue
                sides = [[torch.randn(batch, heads, length, d, device="cuda").half() for _ in range(4)] for _ in range(2)]
                flops = 4.0 * batch * heads * length * length * d / (1 + causal)
                library = [lambda s=s: torch.nn.functional.scaled_dot_product_attention(*s[:3], is_causal=bool(causal)) for s in sides]
                reference = library[0]().double()
                variants = [(attention_name(*how), lambda how=how: [gpu.attention(*s, how, causal) for s in sides], {}) for how in attention_kinds(d)]
                contest(gpu, attempt, label, library, variants, sides[0][3], reference, flops)
    if group == "time-nets":
        for layer in nets():
            if not re.search(only, f"{group} {layer.network} {layer.label}") or time.monotonic() > deadline:
                continue
            about = {"network": layer.network, "times": layer.times, "floor_us": layer.floor_us, "epilogue": layer.epilogue}
            label, candidates = f"{layer.network} {layer.label}", layer_candidates(layer)
            if layer.kind == "stem":
                time_stem(gpu, attempt, label, layer.shape, **about)
            else:
                (time_gemm if layer.kind == "gemm" else time_conv)(gpu, attempt, label, layer.shape, candidates=candidates, **about)
            torch.cuda.empty_cache()
    if group == "time":
        for kind, shape in items():
            label = item_label(kind, shape)
            if re.search(only, f"{group} {label}") and time.monotonic() < deadline:
                (time_gemm if kind == "gemm" else time_conv)(gpu, attempt, label, shape)


# ------------------------------------------------------------------------------------------------------------------- parent
def drive(groups, arguments, sink, deadline):
    """Runs the groups in a child process until they end; a new child goes on after what killed or hung the last one."""
    skip, rows = [], []
    for _ in range(8):
        left = deadline - time.monotonic()
        if left < 3:
            break
        command = [sys.executable, __file__, "--child", ",".join(groups), "--only", arguments.only, "--seconds", str(left - 2), "--top",
                   str(arguments.top), "--skip", json.dumps(skip)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        begun = None
        state = {"last": time.monotonic() + 40}  # torch's import and the context take their time

        def watch(child=child, state=state):
            while child.poll() is None:
                if time.monotonic() - state["last"] > 10:
                    child.kill()
                    return
                time.sleep(0.5)

        errors = []
        threading.Thread(target=watch, daemon=True).start()
        reader = threading.Thread(target=lambda child=child: errors.append(child.stderr.read()), daemon=True)
        reader.start()
        for line in child.stdout:
            state["last"] = max(state["last"], time.monotonic()) if begun is None else time.monotonic()
            if not line.startswith("{"):
                continue
            row = json.loads(line)
            if "begin" in row:
                begun = row["begin"]
            elif "label" in row:
                rows.append(row)
                skip.append(f"{row['group']} {row['label']}")
                sink.write(json.dumps(row) + "\n")
                sink.flush()
        child.wait()
        reader.join(2)
        if child.returncode == 0:
            break
        if begun is None:
            print("child did not start:", "".join(errors)[-800:], flush=True)
            break
        if begun not in skip:
            group, label = begun.split(" ", 1)
            rows.append({"group": group, "label": label, "error": f"child ended with {child.returncode}", "stderr": "".join(errors)[-600:]})
            sink.write(json.dumps(rows[-1]) + "\n")
            skip.append(begun)
    return rows


@dataclass(frozen=True)
class Final:
    """What was measured of one shape in the end: the best variant and torch, in turns where both were raced."""

    shape: str
    torch: float  # us, median
    ours: float
    tflops: float
    config: str
    epilogue: str
    torch_us: tuple[float, ...]
    ours_us: tuple[float, ...]
    network: str = ""
    times: int = 1
    floor: float = 0.0

    @property
    def ratio(self):
        return self.torch / self.ours


def finished(rows):
    """One Final a shape that both sides were timed for."""
    found = []
    for shape in dict.fromkeys(r["shape"] for r in rows if "shape" in r):
        own = {who: [r for r in rows if r["shape"] == shape and r.get("who") == who] for who in ("torch", "ours", "turns")}
        if not own["torch"] or not own["ours"]:
            continue
        best = min(own["ours"], key=lambda r: r["us"])
        last = own["turns"][-1] if own["turns"] else {**best, "ours_us": [best["us"]], "torch_us": [own["torch"][0]["us"]]}
        found.append(Final(shape, statistics.median(last["torch_us"]), statistics.median(last["ours_us"]), last["tflops"], last["config"],
                           last.get("epilogue", ""), tuple(last["torch_us"]), tuple(last["ours_us"]), last.get("network", ""), last.get("times", 1),
                           last.get("floor_us", 0.0)))
    return found


WRITTEN = {"": "", "bias": ", bias", "bias_relu": ", bias + ReLU", "bias_gelu": ", bias + GELU", "bias_residual": ", bias + residual",
           "bias_residual_relu": ", bias + residual + ReLU"}


def keep(path, rows):
    """Appends one line a shape to a file of results (benchmarks/runner.py)."""
    from importlib.metadata import version

    from cuda.bindings import nvrtc

    from benchmarks.runner import compare, record, versions

    device, driver = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True,
                                    text=True, check=True).stdout.splitlines()[0].split(", ")
    peer = f"torch {version('torch')} (cuDNN/cuBLASLt/SDPA)"
    tools = versions() | {"nvrtc": ".".join(map(str, nvrtc.nvrtcVersion()[1:]))}
    lines = []
    for one in finished(rows):
        label = one.shape.removeprefix(one.network).removesuffix(one.epilogue).removesuffix("residual").strip()
        line = compare(f"{label} fp16{WRITTEN[one.epilogue]}", one.ours_us, "us", one.torch_us, peer, device=device, driver=driver,
                       note=f"sm90 {one.config}" + (f"; {one.times}x in {one.network}" if one.network else ""))
        lines.append(replace(line, versions=tools))
    record(path.stem, lines, path.parent)


SHOWN = 3  # configurations that a report's line names


def report(group, rows):
    print(f"== {group}: {len(rows)} rows")
    if group.startswith("check"):
        bad = [r for r in rows if not r.get("ok")]
        print(f"passed {sum(bool(r.get('ok')) for r in rows)}, not {len(bad)}; largest relative error of the passed "
              f"{max((r['relative'] for r in rows if r.get('ok')), default=0):.2e}")
        for r in bad:
            print("  FAILED" + (" (expected)" if r.get("may_fail") else ""), r.get("label"), r.get("config", ""), r.get("error", ""),
                  *(f"{k}={r[k]:.3g}" for k in ("relative", "worst") if k in r), "" if r.get("intact", True) else "MARGINS TOUCHED",
                  r.get("stderr", "")[-200:].replace("\n", " | "))
        for r in rows:
            if r.get("may_fail") and r.get("ok"):
                print("  passed, though an alternative:", r["label"])
        return
    finals = finished(rows)
    for one in finals:
        ours = sorted((r for r in rows if r.get("shape") == one.shape and r.get("who") == "ours"), key=lambda r: r["us"])
        print(f"{one.shape:34s} torch {one.torch:8.2f}  ours {one.ours:8.2f} {one.tflops:6.0f}TF x{one.ratio:4.2f} | "
              + "  ".join(f"{r['config']} {r['us']:.2f}" for r in ours[:SHOWN]))
    print(f"sum: torch {sum(one.torch for one in finals):.1f} us, ours {sum(one.ours for one in finals):.1f} us")
    for network in dict.fromkeys(one.network for one in finals if one.network):
        own = [one for one in finals if one.network == network]
        theirs, mine, floor = (sum(getattr(one, key) * one.times for one in own) for key in ("torch", "ours", "floor"))
        print(f"{network}: {len(own)} shapes, {sum(one.times for one in own)} layers: torch {theirs:.0f} us, ours {mine:.0f} ({mine / theirs:.2f} of it), "
              f"floor {floor:.0f}; geometric mean x{statistics.geometric_mean([one.ratio for one in own]):.2f}, least x{min(one.ratio for one in own):.2f}")
    for family in ("gemm", "conv"):
        ratios = [one.ratio for one in finals if one.network and one.network.startswith("ResNet") == (family == "conv")]
        if ratios:
            print(f"{family}: {len(ratios)} shapes, geometric mean x{statistics.geometric_mean(ratios):.3f}, {sum(r < 1 for r in ratios)} under 1, least x{min(ratios):.2f}")
    for r in [r for r in rows if "error" in r or r.get("ok") is False][:12]:
        print("  FAILED", r.get("label"), r.get("error", ""), r.get("relative", ""), r.get("stderr", "")[-150:].replace("\n", " | "))


def judge(path):
    """Prints how well the estimate orders what was measured: the loss when only the first 1, 3, 6, 10 are timed, and the ratios."""
    shapes = {item_label(kind, shape): (gemm_problem if kind == "gemm" else conv_problem)(*shape) for kind, shape in items()}
    shapes |= {f"{m}x{n}x{k} {kind}": gemm_problem(m, n, k) for m, n, k, kind in EPILOGUE_SHAPES}
    measured = {}
    for row in map(json.loads, Path(path).read_text().splitlines()):
        if row.get("ok") and "tile" in row:
            measured.setdefault(row["shape"], {})[Tile(**row["tile"])] = row["us"]
    ratios, losses = [], {count: [] for count in (1, 3, 6, 10)}
    for shape, times in measured.items():
        guess = {tile: tile_sm90.estimate(tile, shapes[shape], H200) * 1e6 for tile in times}
        order, best = sorted(times, key=guess.__getitem__), min(times, key=times.__getitem__)
        ratios += [guess[tile] / times[tile] for tile in times]
        for count, found in losses.items():
            found.append(min(times[tile] for tile in order[:count]) / times[best])
        print(f"{shape:34s} best {times[best]:8.2f} estimated {guess[best]:8.2f}, rank {order.index(best)} of {len(order)}: {best.config()}")
    print("estimate / measured, deciles:", [round(ratio, 2) for ratio in statistics.quantiles(ratios, n=10)])
    for count, found in losses.items():
        print(f"timing the first {count}: {statistics.mean(found):.3f} of the best on average, {max(found):.2f} at worst")


def main():
    global TOP
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--only", default="")
    parser.add_argument("--top", type=int, default=TOP)
    parser.add_argument("--groups", default="check-gemm,check-conv,check-window,check-stem,check-attention,check-short,time-stem,time-attention,"
                        "time-short,time-epilogue,time")
    parser.add_argument("--out", default=str(Path(os.environ.get("OUT", "/tmp")) / "sm90.jsonl"))
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--record", type=Path, help="append one line a timed shape to this file, as benchmarks/results has them")
    parser.add_argument("--judge", default="", help="a file of results: compare the estimate with it, without a GPU")
    parser.add_argument("--child", default="")
    parser.add_argument("--skip", default="[]")
    arguments = parser.parse_args()
    TOP = arguments.top
    if arguments.judge:
        judge(arguments.judge)
        return
    begin = time.monotonic()
    deadline = begin + arguments.seconds
    if arguments.child:
        gpu = Gpu()
        for group in arguments.child.split(","):
            run_group(gpu, group, arguments.only, set(json.loads(arguments.skip)), deadline, lambda row: print(json.dumps(row), flush=True))
        return
    groups = arguments.groups.split(",")
    units = list(dict.fromkeys(u for g in groups for u in units_of(g, arguments.only)))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        notes = [note for note in pool.map(compile_one, units, chunksize=2) if note]
    for note in notes[:8]:
        print("COMPILE", note)
    if len(notes) > 8:
        print(f"COMPILE ... {len(notes)} in all")
    print(f"compiled {len(units)} kernels in {time.monotonic() - begin:.1f} s", flush=True)
    if arguments.compile_only:
        return
    with open(arguments.out, "w") as sink:
        rows = drive(groups, arguments, sink, deadline)
    print(f"done at {time.monotonic() - begin:.0f} s", flush=True)
    for group in groups:
        report(group, [row for row in rows if row["group"] == group])
    if arguments.record:
        keep(arguments.record, [row for row in rows if row["group"].startswith("time")])


if __name__ == "__main__":
    main()
