"""What is checked: odd sizes, tails, clusters, splits, types."""

from __future__ import annotations

from benchmarks.gpu.sm90.kernels import make, stem


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
