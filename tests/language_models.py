"""Blocks of language and diffusion models as exporters write them, small and with random weights, for tests of fusions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser


@dataclass(frozen=True)
class Block:
    """One model.

    Attributes:
        nodes: its nodes in ONNX's text form, one a line.
        inputs: shapes; a text is a named size. Integer inputs are those in ``integers``.
        outputs: names.
        weights: shapes of random matrices and vectors (scaled so that results stay near 1), or arrays.
        layers: how many layers work on a GPU when all is fused.
        rank: of the output ``y``.
    """

    nodes: str
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]
    weights: Mapping[str, tuple[int, ...] | np.ndarray | float | list[int]]
    layers: int
    integers: tuple[str, ...] = ()
    rank: int = 3
    sizes: Mapping[str, int] = field(default_factory=dict)


def model(block: Block, dtype: type = np.float32) -> ModelProto:
    """The ONNX model of ``block``; its real numbers are of ``dtype``."""
    random = np.random.default_rng(3)
    constants = []
    for name, value in block.weights.items():
        if isinstance(value, tuple):
            array = random.standard_normal(value) * (value[0] ** -0.5 if len(value) > 1 else 0.1) + (1 if name.startswith("g_") else 0)
        else:
            array = np.asarray(value)
        array = array.astype(dtype) if array.dtype.kind == "f" else array
        constants.append(numpy_helper.from_array(np.asarray(array), name))
    nodes = [parser.parse_node(line.strip()) for line in block.nodes.strip().splitlines() if line.strip()]
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64 if name in block.integers else kind, shape) for name, shape in block.inputs.items()]
    outputs = [helper.make_tensor_value_info(name, kind, [None] * (4 if name.startswith("present") else block.rank)) for name in block.outputs]
    graph = helper.make_graph(nodes, "block", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def inputs_of(block: Block, dtype: type = np.float32, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Random inputs; integers are positions 0, 1, 2 ... behind the past where there is one."""
    random, sizes = np.random.default_rng(4), {**block.sizes, **(sizes or {})}
    found = {}
    for name, shape in block.inputs.items():
        concrete = [one if isinstance(one, int) else sizes[one] for one in shape]
        if name in block.integers:
            found[name] = np.broadcast_to(np.arange(concrete[-1]) + sizes.get("past", 0), concrete).astype(np.int64)
        else:
            found[name] = random.standard_normal(concrete).astype(dtype)
    return found


def _rms_norm(out: str, x: str, weight: str) -> str:
    """RMS normalisation in layers, statistics and all (T5LayerNorm, LlamaRMSNorm)."""
    return f"""
        {out}_s = Pow({x}, two)
        {out}_m = ReduceMean<keepdims=1>({out}_s, last)
        {out}_e = Add({out}_m, eps)
        {out}_r = Sqrt({out}_e)
        {out}_i = Div(one, {out}_r)
        {out}_n = Mul({x}, {out}_i)
        {out} = Mul({weight}, {out}_n)
    """


def _heads(out: str, x: str, heads: str) -> str:
    return f"""
        {out}_h = Reshape({x}, {heads})
        {out} = Transpose<perm=[0,2,1,3]>({out}_h)
    """


def _rotate(out: str, x: str) -> str:
    return f"""
        {out}_a = Slice({x}, zero_, half_, last)
        {out}_b = Slice({x}, half_, most, last)
        {out}_nb = Neg({out}_b)
        {out}_r = Concat<axis=-1>({out}_nb, {out}_a)
        {out}_c = Mul({x}, cos)
        {out}_d = Mul({out}_r, sin)
        {out} = Add({out}_c, {out}_d)
    """


def _repeat(out: str, x: str) -> str:
    """``repeat_kv``: every key head serves two query heads."""
    return f"""
        {out}_u = Unsqueeze({x}, two_)
        {out}_shape = Shape({x})
        {out}_b = Gather({out}_shape, zero_)
        {out}_t = Gather({out}_shape, two_)
        {out}_to = Concat<axis=0>({out}_b, kv, two_, {out}_t, size)
        {out}_e = Expand({out}_u, {out}_to)
        {out}_full = Concat<axis=0>({out}_b, all, {out}_t, size)
        {out} = Reshape({out}_e, {out}_full)
    """


def _attend(out: str, scores: str, v: str) -> str:
    """The probabilities of ``scores`` times ``v``, heads side by side again."""
    return f"""
        {out}_p = Softmax<axis=-1>({scores})
        {out}_o = MatMul({out}_p, {v})
        {out}_t = Transpose<perm=[0,2,1,3]>({out}_o)
        {out} = Reshape({out}_t, rows)
    """


def _gelu(out: str, x: str) -> str:
    """GELU by erf."""
    return f"""
        {out}_d = Div({x}, root)
        {out}_e = Erf({out}_d)
        {out}_a = Add({out}_e, one)
        {out}_m = Mul({x}, {out}_a)
        {out} = Mul({out}_m, half)
    """


def _folded(p: str, before: str, source: str, biased: bool, mask: bool, after: str) -> str:
    """Attention of ``before`` to ``source`` with heads folded into the batch, a normalisation before it, and the sum behind. Whisper has biases (none of
    keys) and the scale on the queries; diffusers have it on the scores."""
    return f"""
        {p}n = LayerNormalization<axis=-1>({before}, g_{p}, {p}b)
        {p}q0 = MatMul({p}n, {p}wq)
        {p}k0 = MatMul({source}, {p}wk)
        {p}v0 = MatMul({source}, {p}wv)
        {f"{p}q1 = Add({p}q0, {p}bq)" if biased else ""}
        {f"{p}q2 = Mul({p}q1, scale)" if biased else f"{p}q2 = Identity({p}q0)"}
        {f"{p}v1 = Add({p}v0, {p}bv)" if biased else f"{p}v1 = Identity({p}v0)"}
        {_heads(f"{p}q3", f"{p}q2", "heads")}
        {_heads(f"{p}k1", f"{p}k0", "heads")}
        {_heads(f"{p}v2", f"{p}v1", "heads")}
        {p}q = Reshape({p}q3, fold)
        {p}k = Reshape({p}k1, {p}fold)
        {p}v = Reshape({p}v2, {p}fold)
        {p}kt = Transpose<perm=[0,2,1]>({p}k)
        {p}s0 = MatMul({p}q, {p}kt)
        {f"{p}s1 = Reshape({p}s0, unfold_scores)" if mask else ""}
        {f"{p}s2 = Add({p}s1, triangle)" if mask else ""}
        {f"{p}s3 = Reshape({p}s2, fold_scores)" if mask else f"{p}s3 = Identity({p}s0)"}
        {p}s = {f"Identity({p}s3)" if biased else f"Mul({p}s3, scale)"}
        {p}p = Softmax<axis=-1>({p}s)
        {p}c0 = MatMul({p}p, {p}v)
        {p}c1 = Reshape({p}c0, unfold)
        {p}c2 = Transpose<perm=[0,2,1,3]>({p}c1)
        {p}c = Reshape({p}c2, rows)
        {p}o0 = MatMul({p}c, {p}wo)
        {p}o = Add({p}o0, {p}bo)
        {after} = Add({before}, {p}o)
    """


@dataclass(frozen=True)
class Widths:
    """Sizes of a decoder layer: model, query heads, key heads, elements of a head, feed-forward; positions in the tables of angles."""

    width: int = 64
    heads: int = 4
    kv: int = 2
    size: int = 16
    inner: int = 96
    positions: int = 64


def llama(cache: bool = True, batch: int | str = "batch", steps: int | str = "steps", normalised: str = "", widths: Widths = Widths()) -> Block:  # noqa: B008
    """A decoder layer of Llama: RMS norms, grouped queries, rotary embedding, SwiGLU; with ``cache``, keys and values go behind the past.

    ``normalised``: queries and keys have RMS norms, too: of each head before it is transposed (``head``, as Qwen3 has it) or behind (``transposed``,
    Gemma 3), or of all heads of a position (``position``, OLMo 2)."""
    width, heads, kv, size, inner = widths.width, widths.heads, widths.kv, widths.size, widths.inner
    angles = np.outer(np.arange(widths.positions), 0.5 ** np.arange(size // 2))

    def heads_of(out: str, x: str, shape: str, weight: str) -> str:
        if normalised == "head":
            return f"{out}_h = Reshape({x}, {shape})\n{_rms_norm(f'{out}_n', f'{out}_h', weight)}\n{out} = Transpose<perm=[0,2,1,3]>({out}_n)"
        if normalised == "transposed":
            return _heads(f"{out}_t", x, shape) + _rms_norm(out, f"{out}_t", weight)
        return _rms_norm(f"{out}_n", x, weight) + _heads(out, f"{out}_n", shape) if normalised else _heads(out, x, shape)

    nodes = f"""
        cos_ = Gather(cosines, positions)
        cos = Unsqueeze(cos_, one_)
        sin_ = Gather(sines, positions)
        sin = Unsqueeze(sin_, one_)
        {_rms_norm("n", "x", "g_1")}
        q0 = MatMul(n, wq)
        k0 = MatMul(n, wk)
        v0 = MatMul(n, wv)
        {heads_of("q1", "q0", "heads", "g_q")}
        {heads_of("k1", "k0", "kv_heads", "g_k")}
        {_heads("v1", "v0", "kv_heads")}
        {_rotate("q", "q1")}
        {_rotate("k2", "k1")}
        {"k3 = Concat<axis=2>(past_k, k2)" if cache else "k3 = Identity(k2)"}
        {"v3 = Concat<axis=2>(past_v, v1)" if cache else "v3 = Identity(v1)"}
        {_repeat("k", "k3")}
        {_repeat("v", "v3")}
        kt = Transpose<perm=[0,1,3,2]>(k)
        s0 = MatMul(q, kt)
        s1 = Mul(s0, scale)
        s2 = Add(s1, mask)
        {_attend("c", "s2", "v")}
        o = MatMul(c, wo)
        h = Add(x, o)
        {_rms_norm("m", "h", "g_2")}
        gate0 = MatMul(m, wg)
        gate1 = Sigmoid(gate0)
        gate = Mul(gate0, gate1)
        up = MatMul(m, wu)
        both = Mul(gate, up)
        down = MatMul(both, wd)
        y = Add(h, down)
        {"present_k = Identity(k3)" if cache else ""}
        {"present_v = Identity(v3)" if cache else ""}
    """
    past: dict[str, tuple[int | str, ...]] = dict.fromkeys(("past_k", "past_v"), (batch, kv, "past", size)) if cache else {}
    return Block(
        nodes, {"x": (batch, steps, width), "positions": (batch, steps), "mask": (batch, 1, steps, "total" if cache else steps), **past},
        ("y", *(("present_k", "present_v") if cache else ())),
        {
            "cosines": np.cos(np.concatenate((angles, angles), 1)), "sines": np.sin(np.concatenate((angles, angles), 1)),
            "wq": (width, heads * size), "wk": (width, kv * size), "wv": (width, kv * size), "wo": (heads * size, width),
            "wg": (width, inner), "wu": (width, inner), "wd": (inner, width), "g_1": (width,), "g_2": (width,),
            **({"g_q": (heads * size,), "g_k": (kv * size,)} if normalised == "position" else {"g_q": (size,), "g_k": (size,)} if normalised else {}),
            "two": 2.0, "one": 1.0, "eps": 1e-5, "scale": size**-0.5, "last": [-1], "zero_": [0], "half_": [size // 2], "most": [2**40],
            "one_": [1], "two_": [2], "kv": [kv], "all": [heads], "size": [size],
            "heads": [0, 0, heads, size], "kv_heads": [0, 0, kv, size], "rows": [0, 0, heads * size],
        },
        layers=(12 if cache else 11) + (3 if normalised == "position" else 0), integers=("positions",), sizes={"batch": 2, "steps": 3, "past": 5 if cache else 0, "total": 8},
    )  # fmt: skip


def gpt2() -> Block:
    """A layer of GPT-2: one packed projection, a constant causal mask chosen by Where, GELU by tanh."""
    width, heads, length = 64, 4, 8
    nodes = f"""
        n = LayerNormalization<axis=-1>(x, g_1, b1)
        flat = Reshape(n, matrix)
        qkv0 = Gemm(flat, wqkv, bqkv)
        qkv = Reshape(qkv0, packed)
        q0, k0, v0 = Split<axis=2, num_outputs=3>(qkv)
        {_heads("q", "q0", "heads")}
        k1 = Reshape(k0, heads)
        kt = Transpose<perm=[0,2,3,1]>(k1)
        {_heads("v", "v0", "heads")}
        s0 = MatMul(q, kt)
        s1 = Div(s0, root)
        s2 = Where(triangle, s1, lowest)
        p = Softmax<axis=-1>(s2)
        c0 = MatMul(p, v)
        c1 = Transpose<perm=[0,2,1,3]>(c0)
        c = Reshape(c1, matrix)
        o0 = Gemm(c, wo, bo)
        o = Reshape(o0, rows)
        h = Add(o, x)
        m = LayerNormalization<axis=-1>(h, g_2, b2)
        m1 = Reshape(m, matrix)
        f0 = Gemm(m1, w1, c1b)
        f = Reshape(f0, wide)
        t0 = Pow(f, three)
        t1 = Mul(t0, cubic)
        t2 = Add(f, t1)
        t3 = Mul(t2, steep)
        t4 = Tanh(t3)
        t5 = Add(t4, one)
        t6 = Mul(f, half)
        t7 = Mul(t6, t5)
        t8 = Reshape(t7, wide_matrix)
        d0 = Gemm(t8, w2, c2b)
        d = Reshape(d0, rows)
        y = Add(h, d)
    """
    return Block(
        nodes, {"x": ("batch", length, width)}, ("y",),
        {
            "g_1": (width,), "b1": (width,), "g_2": (width,), "b2": (width,), "wqkv": (width, 3 * width), "bqkv": (3 * width,), "wo": (width, width), "bo": (width,),
            "w1": (width, 4 * width), "c1b": (4 * width,), "w2": (4 * width, width), "c2b": (width,), "triangle": np.tril(np.ones((1, 1, length, length), bool)),
            "lowest": -3.0e4, "root": (width / heads) ** 0.5, "three": 3.0, "cubic": 0.044715, "steep": (2 / np.pi) ** 0.5, "one": 1.0, "half": 0.5,
            "matrix": [-1, width], "packed": [-1, length, 3 * width], "heads": [0, 0, heads, width // heads], "rows": [-1, length, width],
            "wide": [-1, length, 4 * width], "wide_matrix": [-1, 4 * width],
        },
        layers=7, sizes={"batch": 2},
    )  # fmt: skip


def t5() -> Block:
    """A decoder layer of T5: no scale, a relative position bias, cross-attention to an encoder's result, softmax of float32 scores."""
    width, heads, length, other = 64, 4, 6, 9
    self_attention, cross_attention = (
        f"""
        {_rms_norm(f"{p}n", before, f"g_{p}")}
        {p}q0 = MatMul({p}n, {p}wq)
        {p}k0 = MatMul({source}, {p}wk)
        {p}v0 = MatMul({source}, {p}wv)
        {_heads(f"{p}q", f"{p}q0", "heads")}
        {_heads(f"{p}k", f"{p}k0", "heads")}
        {_heads(f"{p}v", f"{p}v0", "heads")}
        {p}kt = Transpose<perm=[0,1,3,2]>({p}k)
        {p}s0 = MatMul({p}q, {p}kt)
        {p}s = Add({p}s0, {bias})
        {_attend(f"{p}c", f"{p}s", f"{p}v")}
        {p}o = MatMul({p}c, {p}wo)
        {after} = Add({before}, {p}o)
        """
        for p, before, source, bias, after in (("a", "x", "an", "bias", "h1"), ("b", "h1", "encoded", "mask", "h2"))
    )
    nodes = f"""
        b0 = Gather(table, buckets)
        b1 = Transpose<perm=[2,0,1]>(b0)
        b2 = Unsqueeze(b1, zero_)
        bias = Add(b2, triangle)
        {self_attention}
        {cross_attention}
        {_rms_norm("m", "h2", "g_m")}
        f0 = MatMul(m, w1)
        f = Relu(f0)
        d = MatMul(f, w2)
        y = Add(h2, d)
    """
    distance = np.clip(np.arange(length)[:, None] - np.arange(length), 0, 3)
    return Block(
        nodes, {"x": ("batch", length, width), "encoded": ("batch", other, width), "mask": ("batch", 1, 1, other)}, ("y",),
        {
            "table": (4, heads), "buckets": distance, "triangle": np.where(np.tril(np.ones((1, 1, length, length))), 0.0, -3e4),
            **{f"{p}w{side}": (width, width) for p in "ab" for side in "qkvo"}, "g_a": (width,), "g_b": (width,), "g_m": (width,),
            "w1": (width, 96), "w2": (96, width), "two": 2.0, "one": 1.0, "eps": 1e-6, "last": [-1], "zero_": [0],
            "heads": [0, 0, heads, width // heads], "rows": [0, 0, width],
        },
        layers=12, sizes={"batch": 2},
    )  # fmt: skip


def whisper() -> Block:
    """A decoder layer of Whisper: causal self-attention and cross-attention, both with the scale on the queries, heads folded into the batch."""
    width, heads, length, other = 64, 4, 6, 10
    size = width // heads
    nodes = f"""
        {_folded("a", "x", "an", True, True, "h1")}
        {_folded("b", "h1", "encoded", True, False, "h2")}
        m = LayerNormalization<axis=-1>(h2, g_m, mb)
        f0 = MatMul(m, w1)
        f1 = Add(f0, b1)
        {_gelu("e4", "f1")}
        d0 = MatMul(e4, w2)
        d = Add(d0, b2)
        y = Add(h2, d)
    """
    biases = {f"{p}{name}": (width,) for p in "ab" for name in ("bq", "bv", "bo", "b")}
    return Block(
        nodes, {"x": (2, length, width), "encoded": (2, other, width)}, ("y",),
        {
            **{f"{p}w{side}": (width, width) for p in "ab" for side in "qkvo"}, **biases, "g_a": (width,), "g_b": (width,), "g_m": (width,), "mb": (width,),
            "w1": (width, 4 * width), "b1": (4 * width,), "w2": (4 * width, width), "b2": (width,), "scale": size**-0.5, "root": 2**0.5, "one": 1.0, "half": 0.5,
            "heads": [0, 0, heads, size], "fold": [2 * heads, length, size], "afold": [2 * heads, length, size], "bfold": [2 * heads, other, size],
            "unfold": [2, heads, length, size], "unfold_scores": [2, heads, length, length], "fold_scores": [2 * heads, length, length], "rows": [2, length, width],
            "triangle": np.where(np.tril(np.ones((1, 1, length, length))), 0.0, -3e4),
        },
        layers=12,
    )  # fmt: skip


def unet_attention() -> Block:
    """A transformer block of Stable Diffusion's U-Net: an image's positions attend to themselves and to a text; GEGLU; heads in the batch."""
    width, heads, side, other = 64, 2, 4, 7
    size, length = width // heads, side * side
    nodes = f"""
        gr = Reshape(image, groups)
        gi = InstanceNormalization(gr, ones, zeros)
        gb = Reshape(gi, pixels)
        gs = Mul(gb, g_c)
        ga = Add(gs, shift)
        pi = Conv(ga, w_in, b_in)
        t = Transpose<perm=[0,2,3,1]>(pi)
        x = Reshape(t, rows)
        {_folded("a", "x", "an", False, False, "h1")}
        {_folded("b", "h1", "text", False, False, "h2")}
        m = LayerNormalization<axis=-1>(h2, g_m, mb)
        f0 = MatMul(m, w1)
        f1 = Add(f0, b1)
        value, gate = Split<axis=-1, num_outputs=2>(f1)
        {_gelu("e4", "gate")}
        e5 = Mul(value, e4)
        d0 = MatMul(e5, w2)
        d = Add(d0, b2)
        z0 = Add(d, h2)
        z1 = Reshape(z0, places)
        z2 = Transpose<perm=[0,3,1,2]>(z1)
        z3 = Conv(z2, w_out, b_out)
        y = Add(z3, image)
    """
    return Block(
        nodes, {"image": (2, width, side, side), "text": (2, other, 48)}, ("y",),
        {
            **{f"aw{name}": (width, width) for name in "qkvo"}, "bwq": (width, width), "bwk": (48, width), "bwv": (48, width), "bwo": (width, width),
            **{f"{p}{name}": (width,) for p in "ab" for name in ("b", "bo")}, "g_a": (width,), "g_b": (width,), "g_m": (width,), "mb": (width,),
            "w1": (width, 8 * width), "b1": (8 * width,), "w2": (4 * width, width), "b2": (width,), "w_in": (width, width, 1, 1), "b_in": (width,),
            "w_out": (width, width, 1, 1), "b_out": (width,), "ones": np.ones(8), "zeros": np.zeros(8), "g_c": np.full((width, 1, 1), 0.9), "shift": np.full((width, 1, 1), 0.1),
            "scale": size**-0.5, "root": 2**0.5, "one": 1.0, "half": 0.5, "groups": [2, 8, -1], "pixels": [2, width, side, side], "places": [2, side, side, width],
            "heads": [2, -1, heads, size], "fold": [2 * heads, length, size], "afold": [2 * heads, length, size], "bfold": [2 * heads, other, size],
            "unfold": [2, heads, length, size], "rows": [2, length, width],
        },
        layers=18, rank=4,
    )  # fmt: skip


def keras() -> Block:
    """Keras' MultiHeadAttention: projections, scores and result as Einsum, a bias per head, a mask of ones and zeros."""
    width, heads, length = 64, 4, 10
    size = width // heads
    nodes = """
        q0 = Einsum<equation="abc,cde->abde">(x, wq)
        q1 = Add(q0, bq)
        k0 = Einsum<equation="abc,cde->abde">(x, wk)
        k = Add(k0, bk)
        v0 = Einsum<equation="abc,cde->abde">(x, wv)
        v = Add(v0, bv)
        q = Mul(q1, scale)
        s0 = Einsum<equation="aecd,abcd->acbe">(k, q)
        hidden = Sub(one, mask)
        added = Mul(hidden, large)
        s = Add(s0, added)
        p = Softmax<axis=-1>(s)
        c = Einsum<equation="acbe,aecd->abcd">(p, v)
        o = Einsum<equation="abcd,cde->abe">(c, wo)
        y = Add(o, bo)
    """
    return Block(
        nodes, {"x": ("batch", length, width), "mask": ("batch", 1, 1, length)}, ("y",),
        {
            **{f"w{side}": (width, heads, size) for side in "qkv"}, "wo": (heads, size, width), "bq": (heads, size), "bk": (heads, size), "bv": (heads, size),
            "bo": (width,), "scale": size**-0.5, "one": 1.0, "large": -1e4,
        },
        layers=4, sizes={"batch": 2},
    )  # fmt: skip


def swin_v2(width: int = 64, heads: int = 4, window: int = 4, windows: int = 2, batch: int = 2) -> Block:
    """Attention of Swin V2 in shifted windows, ``windows`` of them along each axis: cosines of queries and keys times a learned number per head, a
    position bias, a mask for what the shift brought together."""
    size, length, side, rows, shift = width // heads, window * window, window * windows, batch * windows * windows, window // 2

    def unit(out: str, x: str) -> str:  # torch.nn.functional.normalize
        return f"""
        {out}_n = ReduceL2<keepdims=1>({x}, last)
        {out}_c = Clip({out}_n, tiny)
        {out}_s = Shape({x})
        {out}_e = Expand({out}_c, {out}_s)
        {out} = Div({x}, {out}_e)
        """

    def roll(out: str, x: str, start: str) -> str:  # torch.roll along both axes
        return f"""
        {out}_a = Slice({x}, {start}, most, one_)
        {out}_b = Slice({x}, zero_, {start}, one_)
        {out}_r = Concat<axis=1>({out}_a, {out}_b)
        {out}_c = Slice({out}_r, {start}, most, two_)
        {out}_d = Slice({out}_r, zero_, {start}, two_)
        {out} = Concat<axis=2>({out}_c, {out}_d)
        """

    nodes = f"""
        i0 = Reshape(x, image)
        {roll("i1", "i0", "shift")}
        i2 = Reshape(i1, cut)
        i3 = Transpose<perm=[0,1,3,2,4,5]>(i2)
        w = Reshape(i3, windows)
        q0 = MatMul(w, wq)
        q1 = Add(bq, q0)
        k0 = MatMul(w, wk)
        v0 = MatMul(w, wv)
        v1 = Add(bv, v0)
        {_heads("q2", "q1", "heads")}
        {_heads("k2", "k0", "heads")}
        {_heads("v", "v1", "heads")}
        {unit("q", "q2")}
        {unit("k", "k2")}
        kt = Transpose<perm=[0,1,3,2]>(k)
        s0 = MatMul(q, kt)
        g0 = Clip(logits, , largest)
        g = Exp(g0)
        s1 = Mul(s0, g)
        s2 = Add(s1, bias)
        s3 = Reshape(s2, in_windows)
        s4 = Add(s3, mask)
        s = Reshape(s4, scores)
        {_attend("c", "s", "v")}
        o0 = MatMul(c, wo)
        o1 = Add(bo, o0)
        o2 = Reshape(o1, uncut)
        o3 = Transpose<perm=[0,1,3,2,4,5]>(o2)
        o4 = Reshape(o3, image)
        {roll("o5", "o4", "back")}
        o = Reshape(o5, places)
        n = LayerNormalization<axis=-1>(o, g_n, bn)
        y = Add(x, n)
    """
    moved = np.roll(np.arange(side) < side - shift, -shift)
    parts = (2 * moved[:, None] + moved).reshape(windows, window, windows, window).transpose(0, 2, 1, 3).reshape(windows * windows, length)
    return Block(
        nodes, {"x": (batch, side * side, width)}, ("y",),
        {
            **{f"w{side}": (width, width) for side in "qkvo"}, "bq": (width,), "bv": (width,), "bo": (width,), "g_n": (width,), "bn": (width,),
            "logits": np.linspace(2, 5, heads).reshape(heads, 1, 1), "largest": np.log(100.0), "tiny": 1e-12, "bias": (1, heads, length, length),
            "mask": np.where(parts[:, :, None] == parts[:, None], 0.0, -100.0).reshape(1, -1, 1, length, length),
            "image": [batch, side, side, width], "cut": [batch, windows, window, windows, window, width], "windows": [rows, length, width],
            "uncut": [batch, windows, windows, window, window, width], "places": [batch, side * side, width], "heads": [rows, -1, heads, size],
            "in_windows": [batch, windows * windows, heads, length, length], "scores": [rows, heads, length, length], "rows": [rows, length, width],
            "shift": [shift], "back": [side - shift], "zero_": [0], "one_": [1], "two_": [2], "last": [-1], "most": [2**40],
        },
        layers=7,
    )  # fmt: skip


def falcon() -> Block:
    """A layer of Falcon-7B: all queries share one key and one value head; attention and the feed-forward part read one normalisation."""
    width, heads, size, length = 64, 4, 16, 8
    angles = np.outer(np.arange(length), 0.5 ** np.arange(size // 2))
    nodes = f"""
        n = LayerNormalization<axis=-1>(x, g_1, b1)
        qkv0 = MatMul(n, wqkv)
        qkv = Reshape(qkv0, packed)
        q0 = Slice(qkv, zero_, before_last, two_)
        k0 = Gather<axis=2>(qkv, before_last)
        v0 = Gather<axis=2>(qkv, last)
        q1 = Transpose<perm=[0,2,1,3]>(q0)
        k1 = Transpose<perm=[0,2,1,3]>(k0)
        v1 = Transpose<perm=[0,2,1,3]>(v0)
        q2 = Reshape(q1, queries)
        k2 = Reshape(k1, keys)
        v = Reshape(v1, keys)
        {_rotate("q", "q2")}
        {_rotate("k", "k2")}
        kt = Transpose<perm=[0,1,3,2]>(k)
        s0 = MatMul(q, kt)
        s1 = Div(s0, root_size)
        s2 = Add(s1, triangle)
        {_attend("c", "s2", "v")}
        o = MatMul(c, wo)
        f = MatMul(n, w1)
        {_gelu("e", "f")}
        d = MatMul(e, w2)
        a = Add(d, o)
        y = Add(x, a)
    """
    return Block(
        nodes, {"x": ("batch", length, width)}, ("y",),
        {
            "g_1": (width,), "b1": (width,), "wqkv": (width, (heads + 2) * size), "wo": (width, width), "w1": (width, 4 * width), "w2": (4 * width, width),
            "cos": np.cos(np.concatenate((angles, angles), 1)), "sin": np.sin(np.concatenate((angles, angles), 1)),
            "triangle": np.where(np.tril(np.ones((1, 1, length, length))), 0.0, -3e4), "root_size": size**0.5, "root": 2**0.5, "one": 1.0, "half": 0.5,
            "packed": [0, 0, heads + 2, size], "queries": [-1, heads, length, size], "keys": [-1, 1, length, size], "rows": [0, length, width],
            "zero_": [0], "two_": [2], "half_": [size // 2], "most": [2**40], "last": [-1], "before_last": [-2],
        },
        layers=7, sizes={"batch": 2},
    )  # fmt: skip


def sam(width: int = 64, heads: int = 4, side: int = 4, batch: int = 2) -> Block:
    """Attention of SAM's image encoder (and ViTDet): one packed projection, relative positions along rows and columns."""
    size, length = width // heads, side * side
    nodes = """
        n = LayerNormalization<axis=-1>(x, g_1, b1)
        qkv0 = MatMul(n, wqkv)
        qkv1 = Add(bqkv, qkv0)
        qkv2 = Reshape(qkv1, packed)
        qkv3 = Transpose<perm=[2,0,3,1,4]>(qkv2)
        qkv = Reshape(qkv3, unpacked)
        q0, k0, v0 = Split<axis=0, num_outputs=3>(qkv)
        q = Squeeze(q0, zero_)
        k = Squeeze(k0, zero_)
        v = Squeeze(v0, zero_)
        qs = Mul(q, scale)
        kt = Transpose<perm=[0,2,1]>(k)
        s0 = MatMul(qs, kt)
        r = Reshape(q, grid)
        rh = Einsum<equation="bhwc,hkc->bhwk">(r, rel_h)
        rw = Einsum<equation="bhwc,wkc->bhwk">(r, rel_w)
        s1 = Reshape(s0, five)
        rh1 = Unsqueeze(rh, four_)
        s2 = Add(s1, rh1)
        rw1 = Unsqueeze(rw, three_)
        s3 = Add(s2, rw1)
        s4 = Reshape(s3, three)
        p = Softmax<axis=-1>(s4)
        c0 = MatMul(p, v)
        c1 = Reshape(c0, back)
        c2 = Transpose<perm=[0,2,3,1,4]>(c1)
        c = Reshape(c2, image)
        o0 = MatMul(c, wo)
        o = Add(bo, o0)
        y = Add(x, o)
    """
    return Block(
        nodes, {"x": (batch, side, side, width)}, ("y",),
        {
            "g_1": (width,), "b1": (width,), "wqkv": (width, 3 * width), "bqkv": (3 * width,), "wo": (width, width), "bo": (width,), "scale": size**-0.5,
            "rel_h": (side, side, size), "rel_w": (side, side, size), "packed": [batch, length, 3, heads, size], "unpacked": [3, batch * heads, length, size],
            "grid": [batch * heads, side, side, size], "five": [batch * heads, side, side, side, side], "three": [batch * heads, length, length],
            "back": [batch, heads, side, side, size], "image": [batch, side, side, width], "zero_": [0], "three_": [3], "four_": [4],
        },
        layers=13, rank=4,
    )  # fmt: skip


def detr() -> Block:
    """Self-attention of DETR, as torch's MultiheadAttention exports it: positions first, heads folded; only queries and keys know of positions."""
    width, heads, length, batch = 64, 4, 10, 2
    nodes = """
        a = Add(x, positions)
        q0 = MatMul(a, wq)
        q1 = Add(bq, q0)
        k0 = MatMul(a, wk)
        k1 = Add(bk, k0)
        v0 = MatMul(x, wv)
        v1 = Add(bv, v0)
        q2 = Reshape(q1, fold)
        q3 = Transpose<perm=[1,0,2]>(q2)
        k2 = Reshape(k1, fold)
        v2 = Reshape(v1, fold)
        v = Transpose<perm=[1,0,2]>(v2)
        q = Mul(q3, scale)
        kt = Transpose<perm=[1,2,0]>(k2)
        s = MatMul(q, kt)
        p = Softmax<axis=-1>(s)
        c0 = MatMul(p, v)
        c1 = Transpose<perm=[1,0,2]>(c0)
        c = Reshape(c1, rows)
        o0 = Gemm<transB=1>(c, wo, bo)
        o = Reshape(o0, whole)
        h = Add(x, o)
        y = LayerNormalization<axis=-1>(h, g_1, b1)
    """
    return Block(
        nodes, {"x": (length, batch, width), "positions": (length, batch, width)}, ("y",),
        {
            **{f"w{side}": (width, width) for side in "qkvo"}, **{f"b{side}": (width,) for side in "qkvo"}, "g_1": (width,), "b1": (width,),
            "scale": (width / heads) ** -0.5, "fold": [length, batch * heads, width // heads], "rows": [length * batch, width], "whole": [length, batch, width],
        },
        layers=6,
    )  # fmt: skip


def vit() -> Block:
    """torchvision's encoder block: images first around torch's MultiheadAttention, which has positions first, and all three projections in one."""
    width, heads, length, batch = 96, 4, 9, 2
    nodes = f"""
        n = LayerNormalization<axis=-1>(x, g_0, b0)
        t = Transpose<perm=[1,0,2]>(n)
        p0 = MatMul(t, w)
        p1 = Add(p0, b)
        p2 = Reshape(p1, sides)
        p3 = Unsqueeze(p2, first)
        p4 = Transpose<perm=[3,1,2,0,4]>(p3)
        p = Squeeze(p4, last)
        q0 = Gather<axis=0>(p, queries)
        q1 = Reshape(q0, fold)
        q2 = Transpose<perm=[1,0,2]>(q1)
        q3 = Reshape(q2, heads)
        q = Mul(q3, scale)
        k0 = Gather<axis=0>(p, keys)
        k1 = Reshape(k0, fold)
        k2 = Transpose<perm=[1,0,2]>(k1)
        k3 = Reshape(k2, heads)
        k4 = Transpose<perm=[0,1,3,2]>(k3)
        k = Mul(k4, scale)
        v0 = Gather<axis=0>(p, values)
        v1 = Reshape(v0, fold)
        v2 = Transpose<perm=[1,0,2]>(v1)
        v = Reshape(v2, heads)
        s0 = MatMul(q, k)
        s = Softmax<axis=-1>(s0)
        c0 = MatMul(s, v)
        c1 = Transpose<perm=[2,0,1,3]>(c0)
        c = Reshape(c1, rows)
        o0 = Gemm<transB=1>(c, wo, bo)
        o1 = Reshape(o0, whole)
        o = Transpose<perm=[1,0,2]>(o1)
        h = Add(o, x)
        m = LayerNormalization<axis=-1>(h, g_1, b1)
        f0 = MatMul(m, w1)
        f = Add(f0, bf)
        {_gelu("f2", "f")}
        f3 = MatMul(f2, w2)
        f4 = Add(f3, b2)
        y = Add(h, f4)
    """
    return Block(
        nodes, {"x": (batch, length, width)}, ("y",),
        {
            "w": (width, 3 * width), "b": (3 * width,), "wo": (width, width), "bo": (width,), "w1": (width, 4 * width), "bf": (4 * width,), "w2": (4 * width, width),
            "b2": (width,), "g_0": (width,), "b0": (width,), "g_1": (width,), "b1": (width,), "sides": [length, batch, 3, width], "first": [0], "last": [-2],
            "queries": np.int64(0), "keys": np.int64(1), "values": np.int64(2), "fold": [length, batch * heads, width // heads],
            "heads": [batch, heads, length, width // heads], "rows": [length * batch, width], "whole": [length, batch, width],
            "scale": (width / heads) ** -0.25, "root": 2**0.5, "one": 1.0, "half": 0.5,
        },
        layers=7,
    )  # fmt: skip


def mmdit(normalised: bool = False, turned: bool = False, batch: int = 1, width: int = 64, heads: int = 4, lengths: tuple[int, int] = (16, 6)) -> Block:
    """Attention of an image and a text to each other, with projections of their own (SD3): queries and keys may have RMS norms (SD3.5), and turn (Flux)."""
    size, total = width // heads, sum(lengths)

    def project(p: str, n: str) -> str:
        return f"""
        {p}{n}0 = MatMul({p}n, {p}w{n})
        {p}{n}1 = Add({p}b{n}, {p}{n}0)
        {p}{n}h = Reshape({p}{n}1, heads)
        {_rms_norm(f"{p}{n}", f"{p}{n}h", f"g_{p}{n}") if normalised and n != "v" else f"{p}{n} = Identity({p}{n}h)"}
        """

    def join(n: str) -> str:
        turn = f"""
        {n}_p = Reshape({n}j, pairs)
        {n}_e = Gather<axis=-1>({n}_p, even)
        {n}_o = Gather<axis=-1>({n}_p, odd)
        {n}_n = Neg({n}_o)
        {n}_nu = Unsqueeze({n}_n, last)
        {n}_eu = Unsqueeze({n}_e, last)
        {n}_s = Concat<axis=-1>({n}_nu, {n}_eu)
        {n}_r = Reshape({n}_s, heads)
        {n}_c = Mul({n}j, cos)
        {n}_d = Mul({n}_r, sin)
        {n}t = Add({n}_c, {n}_d)
        """
        return f"""
        {n}j = Concat<axis=1>(a{n}, b{n})
        {turn if turned and n != "v" else f"{n}t = Identity({n}j)"}
        {n} = Transpose<perm=[0,2,1,3]>({n}t)
        """

    nodes = f"""
        an = LayerNormalization<axis=-1>(a, g_a, ab)
        bn = LayerNormalization<axis=-1>(b, g_b, bb)
        {"".join(project(p, n) for p in "ab" for n in "qkv")}
        {"".join(map(join, "qkv"))}
        keys = Transpose<perm=[0,1,3,2]>(k)
        s0 = MatMul(q, keys)
        s = Mul(s0, scale)
        {_attend("c", "s", "v")}
        ca = Slice(c, zero_, middle, one_)
        cb = Slice(c, middle, end, one_)
        ao = MatMul(ca, awo)
        y = Add(a, ao)
        bo = MatMul(cb, bwo)
        z = Add(b, bo)
    """
    angles = np.repeat(np.outer(np.arange(total), 0.5 ** np.arange(size // 2)), 2, axis=1).reshape(total, 1, size)
    return Block(
        nodes, {"a": (batch, lengths[0], width), "b": (batch, lengths[1], width)}, ("y", "z"),
        {
            **{f"{p}w{n}": (width, width) for p in "ab" for n in "qkvo"}, **{f"{p}b{n}": (width,) for p in "ab" for n in "qkv"},
            **{f"g_{p}{n}": (size,) for p in "ab" for n in "qk" if normalised}, "g_a": (width,), "g_b": (width,), "ab": (width,), "bb": (width,),
            **({"cos": np.cos(angles), "sin": np.sin(angles), "pairs": [batch, total, heads, size // 2, 2], "even": np.int64(0), "odd": np.int64(1)} if turned else {}),
            **({"two": 2.0, "one": 1.0, "eps": 1e-6, "last": [-1]} if normalised else {}),
            "scale": size**-0.5, "heads": [batch, -1, heads, size], "rows": [batch, total, width], "zero_": [0], "middle": [lengths[0]], "end": [total], "one_": [1],
        },
        layers=9 if normalised else 7,
    )  # fmt: skip


def yolo11(channels: int = 64, heads: int = 2, side: int = 4, batch: int = 2) -> Block:
    """Attention of YOLO 11: one convolution makes queries, keys (half as wide) and values of every head, and a depthwise one positions of the values."""
    size, pixels = channels // heads, side * side
    nodes = f"""
        a = Conv(x, w_in, b_in)
        r = Reshape(a, heads)
        q, k, v = Split<axis=2>(r, parts)
        qt = Transpose<perm=[0,1,3,2]>(q)
        s0 = MatMul(qt, k)
        s = Mul(s0, scale)
        p = Softmax<axis=-1>(s)
        pt = Transpose<perm=[0,1,3,2]>(p)
        c0 = MatMul(v, pt)
        c = Reshape(c0, image)
        values = Reshape(v, image)
        e = Conv<group={channels}, pads=[1,1,1,1]>(values, w_pe, b_pe)
        u = Add(c, e)
        o = Conv(u, w_out, b_out)
        y = Add(x, o)
    """
    return Block(
        nodes, {"x": (batch, channels, side, side)}, ("y",),
        {
            "w_in": (2 * channels, channels, 1, 1), "b_in": (2 * channels,), "w_pe": (channels, 1, 3, 3), "b_pe": (channels,), "w_out": (channels, channels, 1, 1),
            "b_out": (channels,), "scale": (size // 2) ** -0.5, "heads": [batch, heads, 2 * size, pixels], "parts": [size // 2, size // 2, size],
            "image": [batch, channels, side, side],
        },
        layers=8, rank=4,
    )  # fmt: skip


BLOCKS = {
    "llama": llama(False), "llama with a cache": llama(), "qwen3": llama(False, normalised="head"), "qwen3 with a cache": llama(normalised="head"),
    "gemma3": llama(False, normalised="transposed"), "gemma3 with a cache": llama(normalised="transposed"), "olmo2": llama(False, normalised="position"),
    "falcon": falcon(), "gpt2": gpt2(), "t5": t5(), "whisper": whisper(), "unet attention": unet_attention(),
    "keras": keras(), "swin v2": swin_v2(), "sam": sam(), "detr": detr(), "vit": vit(),
    "sd3": mmdit(), "sd3.5": mmdit(True), "flux": mmdit(True, True), "yolo11": yolo11(),
}  # fmt: skip
