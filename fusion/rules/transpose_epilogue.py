"""Transpose(op(x), whose epilogue ends in a cast to a wider type) -> Reformat(op(x)): the result is stored narrow and cast as it is transposed. On a GPU.

So a float32 output of a network that computes in float16 is stored with two bytes an element and changes type and layout in one layer, rather than
going through memory twice with four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusion.dtypes import DataType
from fusion.expression import Convert, Operand
from fusion.graph import Graph
from fusion.layout import REFORMAT
from fusion.network import Layer, Op, TensorType
from fusion.ops import Pointwise, Reduce, Reformat, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import show
from fusion.rules._shuffles import is_view, transpose_of

_NARROW = (DataType.HALF, DataType.BF16)


def stored_narrow(op: Op, inputs: Sequence[TensorType]) -> tuple[Op, DataType] | None:
    """``op`` without the cast to float32 that its epilogue (or expression) ends in, and the narrow type that it stores then; None when it ends in none."""
    field = "expression" if isinstance(op, Pointwise) else "epilogue"
    last = None if isinstance(op, Reduce) else getattr(op, field, None)  # sums and means are float32 on purpose
    if not isinstance(last, Convert) or last.dtype is not DataType.FLOAT:
        return None
    narrow: Op = replace(op, **{field: last.argument})  # type: ignore[type-var]
    outputs = narrow.infer(inputs)
    return (narrow, outputs[0].dtype) if len(outputs) == 1 and outputs[0].dtype in _NARROW else None


def _match(graph: Graph, layer: Layer) -> Match | None:
    before = graph.producer(layer.inputs[0])
    found = None if before is None else stored_narrow(before.op, graph.types(before.inputs))
    if before is None or found is None:
        return None
    return Match((before, layer), (before.outputs[0],), {"op": found[0], "dtype": found[1]})


def _check(graph: Graph, match: Match) -> Refusal | None:
    before, layer = match.layers
    shape = graph.type(layer.inputs[0]).shape
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU a movement is a copy of NumPy's, which computes nothing")
    if is_view(shape, layer.op):
        return Refusal("no gain", f"{layer.name} moves no element of {show(shape)}: {before.name} stores the wide type at once")
    if transpose_of(shape, layer.op) is None:
        return Refusal("shape", f"{layer.name} splits or joins axes of {show(shape)}; a transpose is allowed")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    before, layer = match.layers
    order = transpose_of(graph.type(layer.inputs[0]).shape, layer.op)
    assert order is not None
    dtype = match.found["dtype"]
    name = graph.fresh(f"{before.outputs[0]}.{dtype.value}")
    fusions = tuple(one for one in (*layer.fusions, RULE.name) if one != REFORMAT or not layer.origins)
    op = Reformat(order, Convert(DataType.FLOAT, Operand(0)))
    return Replacement((replace(before, op=match.found["op"], outputs=(name,)), replace(layer, op=op, inputs=(name,), fusions=fusions)))


RULE = Rule("transpose-epilogue", __doc__.splitlines()[0], (Shuffle,), _match, _rewrite, _check)
