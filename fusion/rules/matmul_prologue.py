"""MatMul(f(x, y ...), b) -> MatMul(x, b, y ..., prologue=f): each element goes through f as it is read. Optional."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply
from fusion.rewrite import Refusal
from fusion.rules._product_prologue import product_prologue_rule


def _refuse(graph: Graph, layer: Layer) -> Refusal | None:
    assert isinstance(layer.op, MatrixMultiply)
    if layer.op.transpose_a:
        return Refusal("layout", f"{layer.name} reads its first operand transposed")
    return None


RULE = product_prologue_rule("matmul-prologue", __doc__.splitlines()[0], MatrixMultiply, _refuse)
