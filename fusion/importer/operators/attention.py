"""ONNX Attention, in the forms that one attention layer covers; the rest goes through its ONNX function body."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusion.dims import Dim
from fusion.dtypes import DataType
from fusion.importer.builder import Builder
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.network import ShapeError, broadcast
from fusion.ops import Attention, Concatenation, Gather, LinearAttention, RotaryEmbedding


@operator("Attention", since=23)
def attention(b: Builder, node: Node) -> tuple[Value, ...]:
    q, k, v, mask = node.input(0), node.input(1), node.input(2), node.optional(3)
    past_k, past_v = node.optional(4), node.optional(5)
    node.refuse_outputs(3, what="scores")
    if node.optional(6) is not None:
        raise Unsupported("lengths are given")
    dtype = q.dtype
    wide = _common([q.dtype, k.dtype, v.dtype])
    q, k, v = (b.convert(x, wide, f"{name}_type") for x, name in ((q, "q"), (k, "k"), (v, "v")))
    if mask is not None and not (mask.dtype.is_float and mask.dtype.itemsize <= wide.itemsize or mask.dtype is DataType.BOOL):
        mask = b.convert(mask, DataType.DOUBLE if wide is DataType.DOUBLE else DataType.FLOAT, "mask_type")
    heads_last = q.rank == 3
    if heads_last:
        heads, kv_heads = node.required("q_num_heads"), node.required("kv_num_heads")
        q, k, v = (_split_heads(b, x, count, name)
                   for x, count, name in ((q, heads, "q"), (k, kv_heads, "k"), (v, kv_heads, "v")))  # fmt: skip
    layout = key_layout = "bshd" if heads_last else "bhsd"
    aligned = q.shape[layout.index("s")] == k.shape[layout.index("s")]
    if past_k is not None and past_v is not None:
        if past_k.dtype is not k.dtype or past_v.dtype is not v.dtype:
            raise Unsupported("the past has another type than new keys and values")
        k, v = (b.layer(Concatenation(2), past, _heads_first(b, new, layout, name), suffix=f"{name}_with_past")
                for past, new, name in ((past_k, k, "k"), (past_v, v, "v")))  # fmt: skip
        key_layout = "bhsd"
    sizes_q, sizes_k = dict(zip(layout, q.shape, strict=True)), dict(zip(key_layout, k.shape, strict=True))
    shared = isinstance(sizes_q["h"], int) and isinstance(sizes_k["h"], int) and sizes_q["h"] % sizes_k["h"] == 0
    if sizes_q["h"] != sizes_k["h"] and not shared:
        raise Unsupported(f"{sizes_q['h']} query heads over {sizes_k['h']} key heads")
    causal, window = _band(node)
    if (causal or window) and not aligned:
        raise Unsupported("causal or with a window, and other lengths of queries and keys")
    depth = sizes_q["d"]
    if not isinstance(depth, int):
        raise Unsupported("the head size must be known")
    inputs = [q, k, v]
    if mask is not None:
        _check_mask(mask, (sizes_q["b"], sizes_q["h"], sizes_q["s"], sizes_k["s"]))
        inputs.append(mask)
    scale = node.attr("scale", 1.0 / math.sqrt(depth))
    op = Attention(scale, causal, mask is not None, (layout, key_layout, key_layout, layout), softcap=node.attr("softcap", 0.0), window=window)
    out = b.convert(b.layer(op, *inputs), dtype, "type")
    if heads_last:
        batch, length, heads_out, width = out.shape
        out = b.reshape(out, (batch, length, heads_out * width), "merge")
    if not (node.wants(1) or node.wants(2)):
        return (out,)
    return (out, *(_heads_first(b, one, key_layout, f"present_{name}") for one, name in ((k, "k"), (v, "v"))))


def _band(node: Node) -> tuple[bool, int]:
    """Whether later keys are hidden, and how many of the earlier ones (with the query's own) are seen; 0 for all."""
    causal, left, right = bool(node.attr("is_causal", 0)), node.attr("left_window_size", -1), node.attr("right_window_size", -1)
    if right > 0 and not causal:
        raise Unsupported(f"right_window_size {right} without is_causal")
    return causal or right == 0, left + 1 if left >= 0 else 0


def _heads_first(b: Builder, x: Value, layout: str, name: str) -> Value:
    return x if layout == "bhsd" else b.transpose(x, (0, 2, 1, 3), f"{name}_bhsd")


@operator("RotaryEmbedding", since=23)
def rotary_embedding(b: Builder, node: Node) -> Value:
    x, cos, sin, positions = node.input(0), node.input(1), node.input(2), node.optional(3)
    heads_first = x.rank == 4
    heads = x.shape[1] if heads_first else node.required("num_heads")
    rows = x if heads_first else _split_heads(b, x, heads, "x")  # type: ignore[arg-type]
    width, half = rows.shape[3], cos.shape[-1]
    if not isinstance(width, int) or not isinstance(half, int):
        raise Unsupported("the width of heads and cosines must be known")
    tables = []
    for table, name in ((cos, "cos"), (sin, "sin")):
        if positions is not None:
            table = b.layer(Gather(0), table, positions, suffix=name)
        table = b.convert(table, x.dtype, f"{name}_type")
        batch, steps, _ = table.shape
        tables.append(b.reshape(table, (batch, 1, steps, half) if heads_first else (batch, steps, 1, half), f"{name}_rows"))
    op = RotaryEmbedding(bool(node.attr("interleaved", 0)), 0 if 2 * half == width else 2 * half)
    turned = b.layer(op, rows, *tables)
    return turned if heads_first else b.reshape(turned, x.shape, "merge")


def _common(dtypes: Sequence[DataType]) -> DataType:
    """The type that holds all values of these floating-point types (values and masks need not have the type of queries and keys)."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return DataType.DOUBLE if DataType.DOUBLE in dtypes else DataType.FLOAT


def _split_heads(b: Builder, x: Value, heads: int, name: str) -> Value:
    batch, length, width = x.shape
    return b.reshape(x, (batch, length, heads, width // heads), f"{name}_heads")


def _check_mask(mask: Value, scores: tuple[Dim, ...]) -> None:
    try:
        fits = broadcast([mask.shape, scores]) == scores
    except ShapeError:
        fits = False
    if not fits:
        raise Unsupported(f"a mask of shape {mask.shape} over scores of shape {scores}")


@operator("LinearAttention")
def linear_attention(b: Builder, node: Node) -> tuple[Value, ...]:
    rule, past, decay, beta = node.attr("update_rule", "gated_delta"), *(node.optional(index) for index in (3, 4, 5))
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        raise Unsupported(f"update_rule {rule!r}; it takes linear, gated, delta or gated_delta")
    gated, delta = rule.startswith("gated"), rule.endswith("delta")
    if gated != (decay is not None) or delta != (beta is not None):
        raise Unsupported(f"update_rule {rule!r} does not fit the inputs: gated rules need decay, delta rules need beta")
    op = LinearAttention(
        node.required("q_num_heads"), node.required("kv_num_heads"), gated, delta, past is not None, node.attr("scale", 0.0)
    )
    inputs = [node.input(index) for index in range(3)] + [one for one in (past, decay, beta) if one is not None]
    return b.layers(op, inputs)
