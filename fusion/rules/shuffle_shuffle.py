"""Shuffle(Shuffle(x)) -> Shuffle(x): two data movements become one, a reshape that moves nothing, or nothing at all."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import Movement, compose, emit, movement


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` is the second one. When others read the first one's result, it may still read past it."""
    before = graph.producer(layer.inputs[0])
    if before is None or not isinstance(before.op, Shuffle):
        return None
    source, middle = graph.type(before.inputs[0]).shape, graph.type(layer.inputs[0]).shape
    a, b = movement(source, before.op), movement(middle, layer.op)
    both = compose(a, b) if a is not None and b is not None else None
    found = {"before": before, "a": a, "b": b, "both": both}
    if graph.only_reader(before.outputs[0]) is None and both is not None and _cost(both) < _cost(b):
        return Match((layer,), found=found)
    return Match((before, layer), (before.outputs[0],), found)


def _check(graph: Graph, match: Match) -> Refusal | None:
    a, b, both = (match.found[key] for key in ("a", "b", "both"))
    if a is None or b is None or both is None:
        return Refusal("shape", "the two reshapes split their axes in ways that do not fit one permutation")
    if len(match.layers) == 2:
        source = graph.type(match.layers[0].inputs[0]).shape
        target = graph.type(match.layers[1].outputs[0]).shape
        new = emit(both, source, target)
        if (_cost(both), len(new)) >= (_cost(a) + _cost(b), 2):
            return Refusal("no gain", "a transpose and a reshape that are one permutation of split axes")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    before, layer = match.found["before"], match.layers[-1]
    source, target = before.inputs[0], layer.outputs[0]
    both = match.found["both"]
    ops = emit(both, graph.type(source).shape, graph.type(target).shape)
    keep = len(match.layers) == 1
    if not ops:
        return Replacement(aliases={target: source}, fate="no-op")
    if len(ops) == 1 and both.is_view:
        # What nothing moves is no reformat any more, whatever it was made of.
        named = [item for item in (before, layer) if "reformat" not in item.fusions] or [layer]
        fusions = tuple(name for name in (*before.fusions, *layer.fusions) if name != "reformat")
        origins = tuple(dict.fromkeys((*(before.origins if not keep else ()), *layer.origins)))
        view = Layer(named[-1].name, ops[0], (source,), (target,), origins, tuple(dict.fromkeys((*fusions, RULE.name))))
        return Replacement((view,))
    if len(ops) == 1:
        return Replacement((Layer("", ops[0], (source,), (target,)),), keep_name=keep)
    middle = graph.fresh(f"{target}.moved")
    view = replace(layer, name=f"{layer.name} reshape", op=ops[1], inputs=(middle,))
    return Replacement((Layer("", ops[0], (source,), (middle,)), view), keep_name=keep)


def _cost(move: Movement) -> int:
    return 0 if move.is_view else 1


RULE = Rule("shuffle-shuffle", __doc__.splitlines()[0], (Shuffle,), _match, _rewrite, _check)
