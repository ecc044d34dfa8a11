"""f(Attention(q, k, v)) -> Attention(q, k, v, epilogue=f), for f of one tensor into its type or a narrower one: a quantisation."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention
from fusion.rules._epilogue import epilogue_rule


def _accepts(graph: Graph, layer: Layer, reader: Layer) -> bool:
    """Wider results are left to a layer of their own: the kernels that overlap most store 16 bits or less."""
    made, out = (graph.type(one.outputs[0]).dtype for one in (layer, reader))
    return len(set(reader.inputs)) == 1 and out.itemsize <= made.itemsize


RULE = epilogue_rule("attention-pointwise", __doc__.splitlines()[0], (Attention,), _accepts)
