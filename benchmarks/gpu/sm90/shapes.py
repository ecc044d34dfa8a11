"""What is timed, the most important first, and the configurations that the tactics would offer for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from benchmarks.gpu.sm90.kernels import (
    H200,
    from_tile,
    name,
    stem,
    stem_unit,
    tile_of,
    unit,
    window_configs,
    window_unit,
)
from fusion.dtypes import DataType
from tactics.cuda.sm90 import tile_sm90
from tactics.cuda.sm90.tile_sm90 import Tile

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
    problem = replace((gemm_problem if layer.kind == "gemm" else conv_problem)(*layer.shape), adds_rows="residual" in layer.epilogue)
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


# (batch, heads, length, head size, mask of a kind of SHORT_CHECKS)
ATTENTION_SHAPES = [(4, 16, 1024, 64, ""), (1, 16, 4096, 64, ""), (4, 16, 1024, 128, ""), (32, 12, 197, 64, ""), (32, 12, 128, 64, ""), (1, 16, 2048, 64, ""),
                    (16, 16, 512, 64, ""), (4, 16, 1024, 32, ""), (4, 16, 1024, 96, ""), (1, 16, 2048, 256, ""), (4, 16, 1024, 64, "full"), (4, 16, 1024, 64, "bool"),
                    (4, 16, 1024, 64, "float"), (4, 16, 1024, 64, "row"), (4, 16, 1024, 128, "full"), (1, 16, 2048, 96, "full")]
SHORT_SHAPES = [(32, 12, 128, 64, ""), (32, 12, 128, 64, "row"), (32, 12, 197, 64, ""), (1, 12, 128, 64, ""), (1, 12, 128, 64, "row"), (1, 12, 197, 64, ""),
                (8, 12, 128, 64, "row"), (8, 12, 256, 64, ""), (64, 3, 49, 32, "full")]


def causals(length, mask):
    """Whether a shape of ATTENTION_SHAPES is timed without and with causal attention."""
    return (0, 1) if length >= 1024 and mask in ("", "row") else (0,)


def attention_label(batch, heads, length, d, mask, causal):
    return f"attention b{batch} h{heads} s{length} d{d}" + " causal" * causal + f" {mask} mask" * bool(mask)


def stem_label(shape):
    n, h, w, o, f = shape
    return f"b{n} 3x{h}x{w}->{o} k{f} s2"


def conv_label(shape):
    n, c, h, w, o, f, stride = shape
    return f"b{n} {c}x{h}x{w}->{o} k{f} s{stride}"


def gemm_label(shape, epilogue="bias"):
    return "x".join(map(str, shape)) + ("" if epilogue == "bias" else f" {epilogue}")
