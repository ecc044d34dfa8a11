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
from fusion.ops import Attention, LinearAttention


@operator("Attention", since=23)
def attention(b: Builder, node: Node) -> Value:
    q, k, v, mask = node.input(0), node.input(1), node.input(2), node.optional(3)
    node.refuse_outputs(1, 2, 3, what="key and value caches or scores")
    if any(node.optional(index) is not None for index in (4, 5, 6)):
        raise Unsupported("past keys and values, or lengths, are given")
    if node.attr("softcap", 0.0):
        raise Unsupported("softcap is set")
    if node.attr("left_window_size", -1) >= 0 or node.attr("right_window_size", -1) >= 0:
        raise Unsupported("a window is set")
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
    layout = "bshd" if heads_last else "bhsd"
    sizes_q, sizes_k = (dict(zip(layout, x.shape, strict=True)) for x in (q, k))
    shared = isinstance(sizes_q["h"], int) and isinstance(sizes_k["h"], int) and sizes_q["h"] % sizes_k["h"] == 0
    if sizes_q["h"] != sizes_k["h"] and not shared:
        raise Unsupported(f"{sizes_q['h']} query heads over {sizes_k['h']} key heads")
    causal = bool(node.attr("is_causal", 0))
    if causal and sizes_q["s"] != sizes_k["s"]:
        raise Unsupported("causal with other lengths of queries and keys")
    depth = sizes_q["d"]
    if not isinstance(depth, int):
        raise Unsupported("the head size must be known")
    inputs = [q, k, v]
    if mask is not None:
        _check_mask(mask, (sizes_q["b"], sizes_q["h"], sizes_q["s"], sizes_k["s"]))
        inputs.append(mask)
    scale = node.attr("scale", 1.0 / math.sqrt(depth))
    out = b.convert(b.layer(Attention(scale, causal, mask is not None, (layout, layout, layout, layout)), *inputs), dtype, "type")
    if not heads_last:
        return out
    batch, length, heads_out, width = out.shape
    return b.reshape(out, (batch, length, heads_out * width), "merge")


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
