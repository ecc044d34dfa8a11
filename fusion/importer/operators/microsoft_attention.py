"""ONNX Runtime's attention operators (domain com.microsoft) and rotary embedding, as one Attention layer with what it reads.

What comes in as padding masks, lengths, caches and biases becomes one additive mask, as ONNX Runtime does it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fusion.dims import Dim, Shape, dim_max, product
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression
from fusion.importer.builder import X0, X1, X2, X3, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.movement import expand_to
from fusion.importer.operators.normalization import layer_norm
from fusion.importer.operators.slicing import cut
from fusion.importer.registry import MICROSOFT, operator
from fusion.importer.values import Value
from fusion.ops import (
    Attention,
    CacheAppend,
    Concatenation,
    Fill,
    Gather,
    MatrixMultiply,
    Range,
    RotaryEmbedding,
    ShapeValue,
    Softmax,
)

INT64 = DataType.INT64


@operator("Attention", domain=MICROSOFT)
def attention(b: Builder, node: Node) -> tuple[Value, ...]:
    """The projection of q, k and v in one product, then attention over them (and the past)."""
    x, weights, bias = node.input(0), node.input(1), node.optional(2)
    if node.attr("do_rotary", 0) or node.attr("past_present_share_buffer", 0):
        raise Unsupported("do_rotary and past_present_share_buffer are not supported")
    heads = node.required("num_heads")
    total = weights.shape[1]
    if not isinstance(total, int):
        raise Unsupported("the width of its weights must be known")
    widths = node.attr("qkv_hidden_sizes") or (total // 3,) * 3
    if bias is None:
        epilogue, extras = X0, ()
    else:
        epilogue, extras = b.epilogue(call("add", X0, X1), bias)  # type: ignore[assignment]
    projected = b.layer(MatrixMultiply(epilogue=epilogue), x, weights, *extras, suffix="projection")
    q, k, v = (
        _heads(b, part, heads, name) for part, name in zip(_parts(b, projected, widths, ("q", "k", "v")), ("q", "k", "v"), strict=True)
    )
    past = node.optional(4)
    past_k = past_v = None
    if past is not None:
        shape = past.shape[1:]
        past_k, past_v = (
            b.reshape(cut(b, past, (index, 0, 0, 0, 0), (1, *shape), (1,) * 5, f"past_{name}"), shape, f"past_{name}_4d")
            for index, name in enumerate("kv")
        )
    k, v, layout = _with_past(b, k, v, past_k, past_v)
    mask = _mask(b, node, node.optional(3), node.optional(5), q, k, layout)
    out = attend(b, node, q, k, v, layout, mask, bool(node.attr("unidirectional", 0)))
    if not node.wants(1):
        return (out,)
    both = [b.transpose(one, (0, 2, 1, 3), f"{name}_bhsd") if layout == "bshd" else one for one, name in ((k, "k"), (v, "v"))]
    stacked = [b.reshape(one, (1, *one.shape), f"present_{name}") for one, name in zip(both, "kv", strict=True)]
    return out, b.layer(Concatenation(0), *stacked, suffix="present")


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(b: Builder, node: Node) -> tuple[Value, ...]:
    query, key, value, bias = node.input(0), node.optional(1), node.optional(2), node.optional(3)
    heads = node.required("num_heads")
    if any(node.optional(index) is not None for index in (8, 9)):
        raise Unsupported("buffers shared between past and present, and beams, are not supported")
    node.refuse_outputs(3, what="scores")
    if query.rank == 5:
        q, k, v = _stacked(b, query, ("q", "k", "v"))
    elif key is not None and key.rank == 5:
        q, (k, v) = _heads(b, query, heads, "q"), _stacked(b, key, ("k", "v"))
    else:
        if key is None or value is None:
            raise Unsupported("key and value are missing")
        q = _heads(b, query, heads, "q")
        k, v = (_heads(b, one, heads, name) if one.rank == 3 else one for one, name in ((key, "k"), (value, "v")))
    layout = "bhsd" if key is not None and key.rank == 4 else "bshd"
    if bias is not None:
        sizes = [q.shape[2] * q.shape[3], q.shape[2] * q.shape[3], v.shape[2 if layout == "bshd" else 1] * v.shape[3]]
        parts = _parts(b, bias, sizes, ("q_bias", "k_bias", "v_bias"))
        added = []
        for one, part, name in zip((q, k, v), parts, ("q", "k", "v"), strict=True):
            if layout == "bhsd" and name != "q":  # a key that comes with its heads has its bias already
                added.append(one)
                continue
            shaped = b.reshape(part, one.shape[2:], f"{name}_bias_heads")
            added.append(b.pointwise(call("add", X0, X1), one, shaped, suffix=f"{name}_biased"))
        q, k, v = added
    if layout == "bhsd":
        past_k = past_v = None
    else:
        past_k, past_v = node.optional(6), node.optional(7)
        k, v, layout = _with_past(b, k, v, past_k, past_v)
    mask = _mask(b, node, node.optional(4), node.optional(5), q, k, layout)
    out = attend(b, node, q, k, v, layout, mask, bool(node.attr("unidirectional", 0)))
    present = [b.transpose(one, (0, 2, 1, 3), f"present_{name}") if layout == "bshd" else one
               for one, name, index in ((k, "k", 1), (v, "v", 2)) if node.wants(1) or node.wants(2)]  # fmt: skip
    return (out, *present)


@operator("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(b: Builder, node: Node) -> tuple[Value, ...]:
    """New keys and values go behind each sequence's own past, whose length is ``seqlens_k + 1`` less the new ones."""
    kv_heads = node.required("kv_num_heads")
    if node.attr("sliding_window_cache", 0):
        raise Unsupported("sliding_window_cache is set: a cache of the window's size is not supported; give one of the sequence's")
    if node.optional(16) is not None:
        raise Unsupported("input query_seqlens is not supported")
    q, k, v = _grouped_heads(b, node, kv_heads)
    batch, steps = q.shape[:2]
    past_k, past_v = node.optional(3), node.optional(4)
    lengths = b.reshape(b.convert(node.input(5), INT64, "lengths"), (batch, 1), "lengths_column")
    # A first prompt stands at the start of its cache, whatever its length.
    first_prompt = past_k is None or past_k.shape[2] == 0
    places = _new_places(b, steps, None if first_prompt else lengths)
    if node.attr("do_rotary", 0):
        given = node.optional(9)
        positions = places if given is None else b.convert(given, INT64, "positions")
        cos, sin = node.input(7), node.input(8)
        interleaved = bool(node.attr("rotary_interleaved", 0))
        q, k = (rotate(b, one, cos, sin, positions, interleaved, name) for one, name in ((q, "q"), (k, "k")))
    layout = "bshd"
    caches = [_cache(b, node, index, kv_heads, name) for index, name in ((12, "k"), (13, "v"))]
    k, v = (cache.stored(one) for cache, one in zip(caches, (k, v), strict=True))
    keys, values = k, v
    total: Dim = steps
    if not first_prompt:
        assert past_k is not None and past_v is not None
        longest = b.dims(node.input(6), "total_sequence_length")[0]
        have = past_k.shape[2]
        total = dim_max(have, longest) if not (isinstance(have, int) and isinstance(longest, int)) else max(have, longest)
        keys, values = _appended(b, (past_k, past_v), (k, v), places, total)
        layout = "bhsd"
    present_k, present_v = keys, values
    keys, values = (cache.read(one, layout, q.dtype) for cache, one in zip(caches, (keys, values), strict=True))
    cap, sink = node.attr("softcap", 0.0), node.optional(11)
    shown = node.attr("qk_output", 0) if node.wants(3) else 0
    plain = sink is None and not node.attr("smooth_softmax", 0) and not shown
    mask = _causal_mask(b, node, places, total, lengths, node.optional(10), q.dtype, first_prompt and plain)
    if plain:
        window = max(0, node.attr("local_window_size", -1)) if mask is None else 0
        out = attend(b, node, q, keys, values, layout, mask, mask is None and bool(node.attr("causal", 1)), cap, window)
    else:
        assert mask is not None
        out, *scores = _in_parts(b, node, q, keys, values, layout, mask, cap, sink)
    present = [
        present_k if layout == "bhsd" else b.transpose(present_k, (0, 2, 1, 3), "present_key"),
        present_v if layout == "bhsd" else b.transpose(present_v, (0, 2, 1, 3), "present_value"),
    ] if node.wants(1) or node.wants(2) or shown else []  # fmt: skip
    if not shown:
        return (out, *present)
    longest = steps if first_prompt else b.dims(node.input(6), "total_sequence_length")[0]
    return (out, *present, _shown_scores(b, scores[shown - 1], shown == 1, longest))


def _grouped_heads(b: Builder, node: Node, kv_heads: int) -> tuple[Value, ...]:
    """Queries, keys and values by heads, normalised where that is asked for; they may come in one packed tensor."""
    query, key, value = node.input(0), node.optional(1), node.optional(2)
    heads = node.required("num_heads")
    if key is None or value is None:
        width = query.shape[-1]
        if not isinstance(width, int):
            raise Unsupported("the width of a packed query must be known")
        size = width // (heads + 2 * kv_heads)
        query, key, value = _parts(b, query, (heads * size, kv_heads * size, kv_heads * size), ("q", "k", "v"))
    q, k, v = (_heads(b, one, count, name) for one, count, name in ((query, heads, "q"), (key, kv_heads, "k"), (value, kv_heads, "v")))
    if node.optional(14) is not None:
        usual = node.attr("qk_norm_epsilon", 1e-6)
        q = layer_norm(b, q, 3, node.attr("q_norm_epsilon", usual), node.input(14), None, center=False)
        k = layer_norm(b, k, 3, node.attr("k_norm_epsilon", usual), node.input(15), None, center=False)
    return q, k, v


def _new_places(b: Builder, steps: Dim, lengths: Value | None) -> Value:
    """The positions ``[B, S]`` of new keys in their caches: 0, 1, 2 ... ``[1, S]`` without ``lengths`` (``[B, 1]``), those of the sequences less one."""
    new = b.layer(Range(0, 1, steps, INT64), suffix="new")
    places = b.reshape(new, (1, steps), "places")
    if lengths is None:
        return places
    first = b.pointwise(call("add", X0, literal(1, INT64)), lengths, suffix="total")
    count = b.layer(ShapeValue((steps,), (), INT64), suffix="steps")
    return b.pointwise(call("sub", call("add", X1, X0), X2), new, first, count, suffix="places")


def _shown_scores(b: Builder, scores: Value, masked: bool, longest: Dim) -> Value:
    """The scores that the node gives as an output: of as many keys as there are; what is ``masked`` is shown as 0."""
    if masked:
        nothing, hidden = literal(0.0, scores.dtype), literal(float("-inf"), scores.dtype)
        scores = b.pointwise(call("where", call("equal", X0, hidden), nothing, X0), scores, suffix="scores_shown")
    return cut(b, scores, (0,) * 4, (*scores.shape[:3], longest), (1,) * 4, "shown_scores")


@dataclass(frozen=True)
class _Cache:
    """How a cache holds keys or values: as they are, or as integers of 8 or 4 bits (two to a byte, the low one first) times a scale."""

    builder: Builder
    name: str
    bits: int = 0
    scale: Value | None = None  # [1], or [KV, 1, D]

    def stored(self, x: Value) -> Value:
        """New rows ``[B, S, KV, D]`` as the cache holds them."""
        b, name, scale = self.builder, self.name, self._scale("bshd")
        if scale is None:
            return x
        most = 1 << (self.bits - 1)
        real = call("round", call("div", Convert(DataType.FLOAT, X0), X1))
        limited = call("min", call("max", real, literal(-most, DataType.FLOAT)), literal(most - 1, DataType.FLOAT))
        if self.bits == 8:
            return b.pointwise(Convert(DataType.INT8, limited), x, scale, suffix=f"{name}_stored")
        nibbles = b.pointwise(Convert(DataType.UINT8, call("add", limited, literal(most, DataType.FLOAT))), x, scale, suffix=f"{name}_nibbles")
        *lead, size = nibbles.shape
        pairs = b.reshape(nibbles, (*lead, size // 2, 2), f"{name}_pairs")
        low, high = (cut(b, pairs, (0, 0, 0, 0, part), (*lead, size // 2, 1), (1,) * 5, f"{name}_nibble{part}") for part in (0, 1))
        packed = b.pointwise(call("add", X0, call("mul", X1, literal(16, DataType.UINT8))), low, high, suffix=f"{name}_packed")
        return b.reshape(packed, (*lead, size // 2), f"{name}_stored")

    def read(self, x: Value, layout: str, dtype: DataType) -> Value:
        """The rows of the cache as numbers."""
        b, name, scale = self.builder, self.name, self._scale(layout)
        if scale is None:
            return x
        if self.bits == 4:
            *lead, size = x.shape
            column = b.reshape(x, (*lead, size, 1), f"{name}_bytes")
            sixteen = literal(16, DataType.UINT8)
            parts = [b.pointwise(part, column, suffix=f"{name}_part{index}") for index, part in enumerate((call("mod", X0, sixteen), call("div", X0, sixteen)))]
            x = b.reshape(b.layer(Concatenation(4), *parts, suffix=f"{name}_both"), (*lead, size * 2), f"{name}_unpacked")
        number: Expression = Convert(DataType.FLOAT, X0)
        number = number if self.bits == 8 else call("sub", number, literal(8.0, DataType.FLOAT))
        return b.pointwise(Convert(dtype, call("mul", number, X1)), x, scale, suffix=f"{name}_read")

    def _scale(self, layout: str) -> Value | None:
        if self.scale is None or self.scale.rank == 1 or layout == "bhsd":
            return self.scale
        return self.builder.transpose(self.scale, (1, 0, 2), f"{self.name}_scale_{layout}")


def _cache(b: Builder, node: Node, index: int, heads: int, name: str) -> _Cache:
    kind, bits, scale = node.attr(f"{name}_quant_type", "NONE"), node.attr("kv_cache_bit_width", 0), node.optional(index)
    if kind == "NONE":
        return _Cache(b, name)
    past = node.optional(3 if name == "k" else 4)
    if scale is None or bits not in (4, 8) or (past is not None and past.dtype is not (DataType.INT8 if bits == 8 else DataType.UINT8)):
        held = "nothing" if past is None else past.dtype.value
        raise Unsupported(f"a cache of {held} with {name}_quant_type {kind!r} and {bits} bits; it takes int8 (8 bits) or uint8 (4 bits) and a scale")
    wide = b.convert(scale, DataType.FLOAT, f"{name}_scale_type")
    count = product(scale.shape)
    if kind == "PER_TENSOR":
        return _Cache(b, name, bits, b.reshape(wide, (1,), f"{name}_scale"))
    return _Cache(b, name, bits, b.reshape(wide, (heads, 1, count // heads), f"{name}_scale"))


@operator("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(b: Builder, node: Node) -> Value:
    x, positions, cos, sin = (node.input(index) for index in range(4))
    if node.attr("scale", 1.0) != 1.0 or node.attr("is_packed_batching", 0):
        raise Unsupported("scale other than 1 and packed batches are not supported")
    half = cos.shape[1]
    if not isinstance(half, int):
        raise Unsupported("the width of its cosines must be known")
    heads_first = x.rank == 4
    if heads_first:
        x = b.transpose(x, (0, 2, 1, 3), "bshd")
        split = x
    else:
        width = x.shape[2]
        size = width // node.attr("num_heads", 0) if node.attr("rotary_embedding_dim", 0) else 2 * half
        split = b.reshape(x, (*x.shape[:2], width // size, size), "heads")
    batch, steps = split.shape[:2]
    if positions.rank == 1:
        new = b.layer(Range(0, 1, steps, INT64), suffix="new")
        positions = b.reshape(b.pointwise(call("add", X0, X1), new, positions, suffix="places"), (1, steps), "places_row")
    turned = rotate(b, split, cos, sin, positions, bool(node.attr("interleaved", 0)), "x")
    return b.transpose(turned, (0, 2, 1, 3), "bhsd") if heads_first else b.reshape(turned, x.shape, "merge")


def rotate(b: Builder, x: Value, cos: Value, sin: Value, positions: Value, interleaved: bool, name: str) -> Value:
    """x ``[B, S, H, D]``, pairs of its first ``2 * cos.shape[1]`` elements turned by the angles at ``positions`` ``[B or 1, S]``."""
    half = cos.shape[1]
    if not isinstance(half, int) or not isinstance(x.shape[3], int):
        raise Unsupported("the width of heads and cosines must be known")
    batch, steps = positions.shape
    c, s = (
        b.reshape(b.layer(Gather(0), table, positions, suffix=f"{name}_{which}"), (batch, steps, 1, half), f"{name}_{which}_row")
        for table, which in ((cos, "cos"), (sin, "sin"))
    )
    width = 2 * half
    rotated = 0 if x.shape[3] == width else width
    return b.layer(RotaryEmbedding(interleaved, rotated), x, c, s, suffix=f"{name}_rotated")


def attend(
    b: Builder, node: Node, q: Value, k: Value, v: Value, layout: str, mask: Value | None, causal: bool, cap: float = 0.0, window: int = 0
) -> Value:
    """Attention of q ``[B, S, H, D]``; k and v stand in ``layout``. The result is ``[B, S, H * D]``."""
    depth = q.shape[3]
    if not isinstance(depth, int):
        raise Unsupported("the head size must be known")
    scale = node.attr("scale", 0.0) or 1.0 / math.sqrt(depth)
    op = Attention(scale, causal, mask is not None, ("bshd", layout, layout, "bshd"), softcap=cap, window=window)
    out = b.layer(op, q, k, v, *([] if mask is None else [mask]))
    return b.reshape(out, (*out.shape[:2], out.shape[2] * out.shape[3]), "merge")


def _in_parts(b: Builder, node: Node, q: Value, k: Value, v: Value, layout: str, mask: Value, cap: float, sink: Value | None) -> tuple[Value, ...]:
    """Attention with scores capped, ``cap * tanh(scores / cap)``, whose scores are an output, or with one more score per head (``sink``, or 0) that takes no value.
    The result, the scores before the softmax, and those behind it."""
    batch, steps, heads, depth = q.shape
    if layout == "bshd":
        k, v = (b.transpose(one, (0, 2, 1, 3), f"{name}_bhsd") for one, name in ((k, "k"), (v, "v")))
    shared, total = k.shape[1], k.shape[2]
    group = heads // shared
    scale = node.attr("scale", 0.0) or 1.0 / math.sqrt(depth)
    rows = b.reshape(b.transpose(q, (0, 2, 1, 3), "q_bhsd"), (batch, shared, group * steps, depth), "q_groups")
    scores = b.layer(MatrixMultiply(transpose_b=True), rows, k, suffix="scores")
    scores = b.reshape(scores, (batch, heads, steps, total), "scores_by_head")
    value: Expression = call("mul", X0, literal(scale, q.dtype))
    if cap:
        value = call("mul", call("tanh", call("div", value, literal(cap, q.dtype))), literal(cap, q.dtype))
    scores = b.pointwise(call("add", value, X1), scores, mask, suffix="masked")
    if sink is None and not node.attr("smooth_softmax", 0):
        weights = b.layer(Softmax(3), scores, suffix="weights")
    else:
        if sink is None:
            column = b.layer(Fill((batch, heads, steps, 1), q.dtype, 0.0), suffix="sink")
        else:
            column = expand_to(b, b.reshape(sink, (heads, 1, 1), "sink_heads"), (batch, heads, steps, 1), "sink")
        joined = b.layer(Concatenation(3), scores, column, suffix="with_sink")
        weights = cut(b, b.layer(Softmax(3), joined, suffix="weights"), (0,) * 4, (batch, heads, steps, total), (1,) * 4, "without_sink")
    grouped = b.reshape(weights, (batch, shared, group * steps, total), "weight_groups")
    out = b.reshape(b.layer(MatrixMultiply(), grouped, v), (batch, heads, steps, v.shape[3]), "out_heads")
    return b.reshape(b.transpose(out, (0, 2, 1, 3), "out_bshd"), (batch, steps, heads * v.shape[3]), "merge"), scores, weights


# --- parts -----------------------------------------------------------------------------------------------------------


def _parts(b: Builder, x: Value, widths: Sequence[Dim], names: Sequence[str]) -> list[Value]:
    """x cut along its last axis."""
    found, start = [], 0
    lead = x.shape[:-1]
    for width, name in zip(widths, names, strict=True):
        found.append(cut(b, x, (*(0,) * len(lead), start), (*lead, width), (1,) * x.rank, name))
        start = start + width  # type: ignore[assignment]
    return found


def _heads(b: Builder, x: Value, heads: int, name: str) -> Value:
    return b.reshape(x, (*x.shape[:2], heads, x.shape[2] // heads), f"{name}_heads")


def _stacked(b: Builder, x: Value, names: Sequence[str]) -> list[Value]:
    """The parts of ``[B, S, H, parts, D]``."""
    batch, steps, heads, _, size = x.shape
    return [
        b.reshape(cut(b, x, (0, 0, 0, index, 0), (batch, steps, heads, 1, size), (1,) * 5, name), (batch, steps, heads, size), f"{name}_4d")
        for index, name in enumerate(names)
    ]


def _with_past(b: Builder, k: Value, v: Value, past_k: Value | None, past_v: Value | None) -> tuple[Value, Value, str]:
    """k and v ``[B, S, H, D]`` behind the past ``[B, H, P, D]``, and their layout."""
    if past_k is None or past_v is None:
        return k, v, "bshd"
    joined = [
        b.layer(Concatenation(2), past, b.transpose(one, (0, 2, 1, 3), f"{name}_bhsd"), suffix=f"{name}_with_past")
        for past, one, name in ((past_k, k, "k"), (past_v, v, "v"))
    ]
    return joined[0], joined[1], "bhsd"


def _appended(b: Builder, pasts: Sequence[Value], news: Sequence[Value], places: Value, total: Dim) -> list[Value]:
    """The pasts ``[B, H, P, D]``, grown to ``total``, with the new rows ``[B, S, H, D]`` at ``places`` ``[B, S]``, which follow each other."""
    batch = places.shape[0]
    starts = b.reshape(cut(b, places, (0, 0), (batch, 1), (1, 1), "first_places"), (batch,), "starts")
    if pasts[0].dtype is pasts[1].dtype:
        return list(b.layers(CacheAppend(((2, 0), (3, 0)), total), [*pasts, *news, starts], suffix="caches"))
    return [b.layer(CacheAppend(((1, 0),), total), past, new, starts, suffix=name) for past, new, name in zip(pasts, news, ("k_cache", "v_cache"), strict=True)]


def _causal_mask(
    b: Builder, node: Node, places: Value, total: Dim, lengths: Value, bias: Value | None, dtype: DataType, first_prompt: bool
) -> Value | None:
    """What a query at ``places`` may see of ``total`` keys, as an additive mask; None when plain causality (and a window) says it all."""
    window, causal = node.attr("local_window_size", -1), bool(node.attr("causal", 1))
    if first_prompt and bias is None and window != 0 and causal:
        return None
    keys = b.layer(Range(0, 1, total, INT64), suffix="keys")
    batch, steps = places.shape
    column = b.reshape(places, (batch, 1, steps, 1), "query_places")
    ends = b.reshape(lengths, (lengths.shape[0], 1, 1, 1), "ends")
    seen: Expression = call("less_or_equal", X0, X1 if causal else X2)
    if window >= 0:
        seen = call("and", seen, call("greater", X0, call("sub", X1, literal(window, INT64))))
    least = literal(float("-inf"), dtype)
    operands = [keys, column, ends]
    result: Expression = call("where", seen, literal(0.0, dtype), least)
    if bias is not None:
        operands.append(bias)
        result = call("where", seen, X3, least)
    return b.pointwise(result, *operands, suffix="mask")


def _mask(b: Builder, node: Node, mask: Value | None, bias: Value | None, q: Value, k: Value, layout: str) -> Value | None:
    """Padding mask (or lengths) and attention bias as one additive mask ``[B or 1, H or 1, S or 1, T]``."""
    steps, total = q.shape[1], k.shape[1 if layout == "bshd" else 2]
    hidden = literal(node.attr("mask_filter_value", -10000.0), q.dtype)
    zero = literal(0.0, q.dtype)
    if mask is None:
        return bias
    batch = q.shape[0]
    if mask.rank == 1:
        keys = b.layer(Range(0, 1, total, INT64), suffix="keys")
        ends = b.convert(mask, INT64, "lengths")
        starts = None
        if mask.shape[0] == 2 * batch:
            ends, starts = (cut(b, ends, (index * batch,), (batch,), (1,), name) for index, name in ((0, "ends"), (1, "starts")))
        elif mask.shape[0] != batch:
            raise Unsupported(f"a mask of shape {mask.shape} over a batch of {batch}")
        column: Shape = (batch, 1, 1, 1)
        seen: Expression = call("less", X0, X1)
        operands = [keys, b.reshape(ends, column, "ends_column")]
        if starts is not None:
            seen = call("and", seen, call("greater_or_equal", X0, X2))
            operands.append(b.reshape(starts, column, "starts_column"))
    else:
        if mask.rank == 2:
            shaped = b.reshape(mask, (mask.shape[0], 1, 1, mask.shape[1]), "mask_4d")
        elif mask.rank == 3:
            shaped = b.reshape(mask, (mask.shape[0], 1, *mask.shape[1:]), "mask_4d")
        else:  # [B, 1, longest, longest]: the rows of these queries, the columns of these keys
            shaped = cut(b, mask, (0, 0, total - steps, 0), (*mask.shape[:2], steps, total), (1,) * 4, "mask_4d")
        operands = [b.convert(shaped, DataType.BOOL, "mask_bool")]
        seen = X0
    additive: Expression = call("where", seen, zero, hidden)
    made = b.pointwise(additive, *operands, suffix="mask")
    return made if bias is None else b.pointwise(call("add", X0, X1), made, bias, suffix="mask_and_bias")
