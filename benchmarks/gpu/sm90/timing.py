"""The groups that time, beside torch in the same run."""

from __future__ import annotations

import statistics

from benchmarks.gpu.sm90.device import effort, make_mask, pack_stem
from benchmarks.gpu.sm90.kernels import attention_kinds, attention_name, name, stem_name, tile_of, window_name
from benchmarks.gpu.sm90.shapes import (
    ATTENTION_SHAPES,
    EPILOGUE_SHAPES,
    SHORT_SHAPES,
    STEM_SHAPES,
    SWEEP_CONV,
    SWEEP_GEMM,
    attention_label,
    causals,
    conv_candidates,
    conv_label,
    gemm_candidates,
    gemm_label,
    item_label,
    items,
    kernel_of,
    layer_candidates,
    nets,
    stem_candidates,
    stem_label,
    swept,
)


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


def run_time_stem(run):
    gpu, attempt = run.gpu, run.attempt
    for shape in STEM_SHAPES:
        if run.wants(stem_label(shape)):
            time_stem(gpu, attempt, stem_label(shape), shape)


def run_time_short(run):
    gpu, torch, attempt = run.gpu, run.gpu.torch, run.attempt
    for batch, heads, length, d, mask_kind in SHORT_SHAPES:
        label = f"attention b{batch} h{heads} s{length} d{d}" + (f" {mask_kind} mask" if mask_kind else "")
        if not run.wants(label):
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


def run_time_sweep(run):
    gpu, attempt = run.gpu, run.attempt
    for shape in SWEEP_GEMM:
        time_gemm(gpu, attempt, "x".join(map(str, shape)) + " sweep", shape, "bias", swept("gemm", shape))
    for shape in SWEEP_CONV:
        time_conv(gpu, attempt, conv_label(shape) + " sweep", shape, swept("conv", shape))


def run_time_epilogue(run):
    gpu, attempt = run.gpu, run.attempt
    for m, n, k, epilogue in EPILOGUE_SHAPES:
        if run.in_time:
            time_gemm(gpu, attempt, gemm_label((m, n, k), epilogue), (m, n, k), epilogue)


def run_time_attention(run):
    gpu, torch, attempt = run.gpu, run.gpu.torch, run.attempt
    for batch, heads, length, d, mask_kind in ATTENTION_SHAPES:
        for causal in causals(length, mask_kind):
            label = attention_label(batch, heads, length, d, mask_kind, causal)
            if not run.wants(label):
                continue
            sides = [[torch.randn(batch, heads, length, d, device="cuda").half() for _ in range(4)] for _ in range(2)]
            mask, theirs = (make_mask(torch, mask_kind, batch, heads, length, length, torch.float16)[0] if mask_kind else None), None
            if mask is not None:  # torch wants float16 here, and causal attention in the mask
                theirs = mask if mask.dtype == torch.bool else mask.half()
                if causal:
                    theirs = torch.where(torch.ones(length, length, device="cuda").tril() == 1, theirs, float("-inf")).half()
            flops = 4.0 * batch * heads * length * length * d / (1 + causal)
            library = [lambda s=s, theirs=theirs, causal=causal: torch.nn.functional.scaled_dot_product_attention(
                *s[:3], attn_mask=theirs, is_causal=bool(causal) and theirs is None) for s in sides]
            reference = library[0]().double()
            variants = [(attention_name(*how), lambda how=how, mask=mask: [gpu.attention(*s, how, causal, "f16", mask, mask_kind) for s in sides], {})
                        for how in attention_kinds(d, mask_kind, length)]
            contest(gpu, attempt, label, library, variants, sides[0][3], reference, flops)


def run_time_nets(run):
    gpu, torch, attempt = run.gpu, run.gpu.torch, run.attempt
    for layer in nets():
        if not run.wants(f"{layer.network} {layer.label}"):
            continue
        about = {"network": layer.network, "times": layer.times, "floor_us": layer.floor_us, "epilogue": layer.epilogue}
        label, candidates = f"{layer.network} {layer.label}", layer_candidates(layer)
        if layer.kind == "stem":
            time_stem(gpu, attempt, label, layer.shape, **about)
        else:
            (time_gemm if layer.kind == "gemm" else time_conv)(gpu, attempt, label, layer.shape, candidates=candidates, **about)
        torch.cuda.empty_cache()


def run_time(run):
    gpu, attempt = run.gpu, run.attempt
    for kind, shape in items():
        label = item_label(kind, shape)
        if run.wants(label):
            (time_gemm if kind == "gemm" else time_conv)(gpu, attempt, label, shape)
