"""The groups that check: every case on NaN-poisoned outputs with margins, against float64."""

from __future__ import annotations

from benchmarks.gpu.sm90.cases import (
    ATTENTION_CHECKS,
    SHORT_CHECKS,
    check_conv_cases,
    check_gemm_cases,
    check_stem_cases,
    check_window_cases,
)
from benchmarks.gpu.sm90.device import make_mask, pack_stem, poisoned
from benchmarks.gpu.sm90.kernels import (
    attention_kinds,
    attention_name,
    name,
    stem_name,
    window_configs,
    window_name,
)

LIMIT = {"f16": 1.5e-3, "bf16": 1e-2, "f32": 1.5e-3}  # of the relative error in the norm


def judged(gpu, launch, out, reference, limit, intact=lambda: True, **about):
    """The row of a kernel launched three times, each on an output full of NaN: how far it is from the reference, and whether the margins are intact."""
    for _ in range(3):
        out.fill_(float("nan"))
        launch()
    gpu.torch.cuda.synchronize()
    error, worst = gpu.compare(out, reference)
    return {**about, "relative": error, "worst": worst, "intact": intact(), "ok": error < limit and intact()}


def run_check_gemm(run):
    gpu, torch, attempt = run.gpu, run.gpu.torch, run.attempt
    types = run.gpu.types
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
            return judged(gpu, launch, out, reference, LIMIT[it], intact, config=name(c), shape=[batch, m, n, k], may_fail=o.get("may_fail", False))
        attempt(label, one)


def run_check_conv(run):
    gpu, torch, attempt = run.gpu, run.gpu.torch, run.attempt
    types = run.gpu.types
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
            return judged(gpu, launch, out, reference, LIMIT[it], intact, config=name(c), may_fail=o.get("may_fail", False))
        attempt(label, one)


def run_check_window(run):
    gpu, torch, attempt = run.gpu, run.gpu.torch, run.attempt
    types = run.gpu.types
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
                return judged(gpu, launch, out, reference, LIMIT[kind], intact, config=window_name(c))
            attempt(f"{label} {window_name(c)}", one)


def run_check_stem(run):
    gpu, torch, attempt = run.gpu, run.gpu.torch, run.attempt
    types = run.gpu.types
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
            return judged(gpu, launch, out, reference, LIMIT[it], intact, config=stem_name(c))
        attempt(label, one)


def attended(torch, q, k, v, causal, mask_kind, dtype):
    """The mask (none without a ``mask_kind``) and the attention in float64; k and v may have fewer heads than q."""
    (batch, heads, s_q, d), (_, kv_heads, s_k, _) = q.shape, k.shape
    k, v = (side.double().repeat_interleave(heads // kv_heads, 1) for side in (k, v))
    scores = q.double() @ k.transpose(2, 3) * d**-0.5
    mask = None
    if mask_kind:
        mask, added = make_mask(torch, mask_kind, batch, heads, s_q, s_k, dtype)
        scores = scores + added
    if causal:
        scores = scores.masked_fill(torch.ones(s_q, s_k, device="cuda").tril(s_k - s_q) == 0, float("-inf"))
    return mask, scores.softmax(-1).nan_to_num(0) @ v


def run_check_attention(run):
    gpu, torch, attempt = run.gpu, run.gpu.torch, run.attempt
    types = run.gpu.types
    for label, (batch, heads, kv_heads, s_q, s_k, d, causal, kind, first, data, mask_kind) in ATTENTION_CHECKS.items():
        if not run.wants(label):
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
        for how in attention_kinds(d, mask_kind, s_k):
            def one(heads=heads, kv_heads=kv_heads, s_q=s_q, s_k=s_k, causal=causal, kind=kind, how=how, make_side=make_side, on_keys=on_keys,
                    data=data, mask_kind=mask_kind):
                q, k, v, out = make_side(heads, s_q, 20.0 if data == "large" else 1.0), make_side(kv_heads, s_k, on_keys), make_side(kv_heads, s_k), make_side(heads, s_q)
                mask, reference = attended(torch, q, k, v, causal, mask_kind, types[kind])
                launch = gpu.attention(q, k, v, out, how, causal, kind, mask, mask_kind)
                return judged(gpu, launch, out, reference, LIMIT[kind], config=attention_name(*how))
            attempt(f"{label} {attention_name(*how)}", one)


def run_check_short(run):
    gpu, torch, attempt = run.gpu, run.gpu.torch, run.attempt
    types = run.gpu.types
    for label, (batch, heads, kv_heads, s_q, s_k, d, causal, kind, first, mask_kind) in SHORT_CHECKS.items():
        def make_side(count, length, batch=batch, d=d, kind=kind, first=first):
            shape = (batch, length, count, d) if first else (batch, count, length, d)
            side = torch.randn(shape, device="cuda").to(types[kind])
            return side.transpose(1, 2) if first else side
        def one(heads=heads, kv_heads=kv_heads, s_q=s_q, s_k=s_k, causal=causal, kind=kind, mask_kind=mask_kind, make_side=make_side):
            q, k, v, out = make_side(heads, s_q), make_side(kv_heads, s_k), make_side(kv_heads, s_k), make_side(heads, s_q)
            mask, reference = attended(torch, q, k, v, causal, mask_kind, types[kind])
            launch = gpu.short(q, k, v, out, mask, mask_kind, causal, kind, 1)
            return judged(gpu, launch, out, reference, LIMIT[kind], config="short")
        attempt(label, one)
