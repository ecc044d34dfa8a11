"""Shuffle(Shuffle(x)) -> Shuffle(x): two data movements become one, a reshape that moves nothing, or nothing at all."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule, joined_name
from fusion.rules._expressions import show
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
        return Refusal("shape", f"{_shapes(graph, match)}: the axes are split in ways that do not fit one permutation")
    if len(match.layers) == 2:
        source = graph.type(match.layers[0].inputs[0]).shape
        target = graph.type(match.layers[1].outputs[0]).shape
        new = emit(both, source, target)
        if (_cost(both), len(new)) >= (_cost(a) + _cost(b), 2):
            return Refusal("no gain", f"{_shapes(graph, match)}: one permutation of split axes, which takes a transpose and a reshape anyway")
    return None


def _shapes(graph: Graph, match: Match) -> str:
    before, layer = match.found["before"], match.layers[-1]
    return " -> ".join(show(graph.type(name).shape) for name in (before.inputs[0], layer.inputs[0], layer.outputs[0]))


def _rewrite(graph: Graph, match: Match) -> Replacement:
    before, layer = match.found["before"], match.layers[-1]
    source, target = before.inputs[0], layer.outputs[0]
    both = match.found["both"]
    ops = emit(both, graph.type(source).shape, graph.type(target).shape)
    keep = len(match.layers) == 1
    if not ops and target in graph.outputs and (source in graph.outputs or graph.producer(source) is None):
        ops = (Shuffle(reshape=graph.type(target).shape),)  # the caller wants both: a copy
    if not ops:
        return Replacement(aliases={target: source}, fate="no-op")
    origins = tuple(dict.fromkeys((*(() if keep else before.origins), *layer.origins)))
    fusions = _fusions(match, keep)
    name = layer.name if keep else joined_name([before, layer], pointwise=False)
    if len(ops) == 1:
        return Replacement((Layer(name, ops[0], (source,), (target,), origins, fusions),))
    middle = graph.fresh(f"{target}.moved")
    view_fusions = tuple(item for item in fusions if item != "reformat")
    return Replacement(
        (
            Layer(name, ops[0], (source,), (middle,), origins, fusions),
            Layer(f"{layer.name} reshape", ops[1], (middle,), (target,), layer.origins, view_fusions),
        )
    )


def _fusions(match: Match, keep: bool) -> tuple[str, ...]:
    """The result is a reformat only when the model itself moves nothing here."""
    a, b, both = (match.found[key] for key in ("a", "b", "both"))
    before, layer = match.found["before"], match.layers[-1]
    models_own = (before.origins and not a.is_view) or (layer.origins and not b.is_view)
    made_by = (*(() if keep else before.fusions), *layer.fusions, RULE.name)
    drop = both.is_view or models_own
    return tuple(dict.fromkeys(item for item in made_by if not (drop and item == "reformat")))


def _cost(move: Movement) -> int:
    return 0 if move.is_view else 1


RULE = Rule("shuffle-shuffle", __doc__.splitlines()[0], (Shuffle,), _match, _rewrite, _check)
