"""Reduce(Reduce(x, axes), more) -> Reduce(x, axes and more), for sums, means, products, maxima and minima: ``x.mean(3).mean(2)`` reads x once."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Reduce
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, outer: Layer) -> Match | None:
    inner = graph.producer(outer.inputs[0])
    if inner is None or not isinstance(inner.op, Reduce):
        return None
    return Match((inner, outer), (inner.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    inner, outer = match.layers
    if inner.op.kind != outer.op.kind or outer.op.kind == "logsumexp":
        return Refusal("kind", f"a {outer.op.kind} of a {inner.op.kind}")
    if inner.op.epilogue != IDENTITY or outer.op.prologue != IDENTITY:
        return Refusal("function", f"a function stands between {inner.name} and {outer.name}")
    if inner.op.keep_dims != outer.op.keep_dims:
        first, second = ("keeps", "drops") if inner.op.keep_dims else ("drops", "keeps")
        return Refusal("keepdims", f"{inner.name} {first} the axes that it reduces, {outer.name} {second} its own")
    if not graph.type(inner.inputs[0]).dtype.is_float and outer.op.kind == "mean":
        return Refusal("data type", f"means of {graph.type(inner.inputs[0]).dtype.value} are rounded twice")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    inner, outer = match.layers
    left = [axis for axis in range(len(graph.type(inner.inputs[0]).shape)) if inner.op.keep_dims or axis not in inner.op.axes]
    axes = tuple(sorted({*inner.op.axes, *(left[axis] for axis in outer.op.axes)}))
    op = replace(outer.op, axes=axes, prologue=inner.op.prologue)
    return Replacement((Layer("", op, (inner.inputs[0], *outer.inputs[1:]), outer.outputs),))


RULE = Rule("reduce-reduce", __doc__.splitlines()[0], (Reduce,), _match, _rewrite, _check)
