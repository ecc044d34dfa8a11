"""Attention: checks, and times beside torch's scaled_dot_product_attention."""

from __future__ import annotations

import math

from benchmarks.gpu.portable.cases import Cases
from benchmarks.gpu.portable.device import Gpu
from fusion.dtypes import DataType
from fusion.network import TensorType
from fusion.ops import Attention
from tactics.cuda.attention.attention import MmaAttention, SimtAttention
from tactics.tactic import Workload


def attention_case(gpu: Gpu, b, h, s_q, s_k, d, kind="f16", mask=None, causal=False, layout="bhsd", kv_heads=None, d_v=None):
    """(workload, inputs, float64 result); ``mask`` is a shape for an additive one, ("bool", shape) for a boolean one."""
    torch = gpu.torch
    kv_heads, d_v = kv_heads or h, d_v or d
    inputs, seen = [], []
    for heads, length, size in ((h, s_q, d), (kv_heads, s_k, d), (kv_heads, s_k, d_v)):
        one = gpu.normal((b, heads, length, size), kind)
        seen.append(one.double())
        inputs.append(one.permute(["bhsd".index(axis) for axis in layout]).contiguous())
    score = seen[0] @ seen[1].repeat_interleave(h // kv_heads, 1).mT * d**-0.5
    types = [TensorType(gpu.types[kind], tuple(one.shape)) for one in inputs]
    if mask is not None:
        if mask[0] == "bool":
            values = torch.rand(mask[1], device="cuda", generator=gpu.generator) > 0.3
            values[..., 0] = True
            score = score.masked_fill(~values, -math.inf)
            types.append(TensorType(DataType.BOOL, tuple(values.shape)))
        else:
            values = gpu.normal(mask, kind)
            values[..., -1] = -10000.0 if kind != "f16" else -65504.0
            score = score + values.double()
            types.append(TensorType(gpu.types[kind], tuple(values.shape)))
        inputs.append(values)
    if causal:
        keep = torch.ones(s_q, s_k, dtype=torch.bool, device="cuda").tril(s_k - s_q)
        score = score.masked_fill(~keep, -math.inf)
    weight = torch.nan_to_num(torch.softmax(score, -1))
    result = (weight @ seen[2].repeat_interleave(h // kv_heads, 1)).permute(["bhsd".index(axis) for axis in layout])
    op = Attention(d**-0.5, causal, mask is not None, (layout,) * 4)
    return Workload(op, tuple(types), op.infer(types)), inputs, result


def check_attention(cases: Cases) -> None:
    both = (MmaAttention(), SimtAttention())

    def case(*sizes, count=3, **more):
        cases.verify(f"{sizes} {more}", both, *attention_case(cases.gpu, *sizes, **more), count)

    case(2, 3, 130, 197, 64, count=None)
    case(2, 3, 130, 197, 64, count=None, mask=(2, 1, 1, 197), layout="bshd")
    for kind in ("f16", "bf16"):
        for d in (32, 64, 96, 128, 40, 100, 33, 160) if kind == "f16" else (64, 72):
            case(2, 3, 77, 150, d, kind=kind)
            case(1, 2, 130, 65, d, kind=kind, layout="bshd", mask=(1, 2, 130, 65))
        case(1, 2, 100, 100, 64, kind=kind, causal=True)
        case(2, 4, 65, 190, 64, kind=kind, causal=True, kv_heads=2)
        case(2, 4, 190, 65, 32, kind=kind, causal=True)
        case(2, 4, 1, 333, 64, kind=kind, mask=("bool", (2, 1, 1, 333)))
        case(2, 4, 66, 66, 64, kind=kind, mask=("bool", (1, 1, 66, 66)), d_v=32)
        case(1, 1, 1, 1, 64, kind=kind)
        case(1, 1, 3, 2, 64, kind=kind, layout="sbhd")


def time_attention(cases: Cases) -> None:
    functional = cases.gpu.torch.nn.functional
    for b, h, s, d in ((1, 12, 128, 64), (32, 12, 128, 64), (32, 12, 197, 64), (4, 16, 1024, 64), (1, 16, 4096, 64), (4, 16, 1024, 128)):
        workload, inputs, expected = attention_case(cases.gpu, b, h, s, s, d)
        cases.timing(f"attention b{b} h{h} s{s} d{d}", (MmaAttention(),), workload, inputs, expected,
                     lambda one: functional.scaled_dot_product_attention(*one), 14, alone=2)  # fmt: skip
    workload, inputs, expected = attention_case(cases.gpu, 1, 12, 128, 128, 64, mask=(1, 1, 1, 128), layout="bshd")
    cases.timing("attention b1 h12 s128 d64 masked bshd", (MmaAttention(),), workload, inputs, expected, None, 14)
