"""MatMul(x, w)[..., i] -> MatMul(x, w[..., i]): a product that is only read in column slices becomes one product per slice.

Packed projections (query, key and value in one weight) are read this way, often through a transpose. Splitting the
weights at build costs nothing; slicing the result would go through memory.
"""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Gather, MatrixMultiply, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._split import (
    channels_of,
    part_of,
    refuse_operands,
    refuse_readers,
    selection_of,
    split,
)


def _match(graph: Graph, layer: Layer) -> Match | None:
    return part_of(graph, layer, MatrixMultiply)


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    source, taken = match.found["source"], match.found["taken"]
    refusal = refuse_readers(graph, layer, source, taken)
    if refusal is not None:
        return refusal
    if channels_of(graph, source, taken) is None:
        return Refusal("axes", f"{layer.name} does not take columns of {source.product.name}")
    found = source.factors(graph)
    inner = found.source[-1]
    if len(inner) > 1 and found.target[taken.axis] == (inner[-1],):  # parts alternate along the columns, as the halves of every head do in a rotary embedding
        counts = {part.count for reader in graph.readers(layer.inputs[0]) if (part := selection_of(graph, reader)) is not None}
        whole = graph.type(layer.inputs[0]).shape[taken.axis]
        if len(counts) > 1 or 3 * max(counts) > whole:
            return Refusal("parts", f"{layer.inputs[0]} is cut within each head, in parts of {sorted(counts)} of {whole}; equal thirds (q, k, v) are split")
    return refuse_operands(graph, source, source.product.inputs[source.product.op.arity :])


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    source = match.found["source"]
    taken = channels_of(graph, source, match.found["taken"])
    assert taken is not None
    return split(graph, layer, source, taken, -2 if source.product.op.transpose_b else -1, RULE.name)


RULE = Rule("matmul-split", __doc__.splitlines()[0], (Gather, Slice), _match, _rewrite, _check)
