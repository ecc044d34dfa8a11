"""Concat(x[0::2], x[1::2]) -> Shuffle(x): the phases of one tensor, joined along any axis, are a movement of its elements. So networks merge patches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from math import prod

from fusion.dims import Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Shuffle, Slice
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._expressions import show

_MOST = 3  # axes that are cut, and slices that follow each other


@dataclass(frozen=True)
class _Phase:
    """``tensor[starts::steps]`` to its end, and the slices that take it, one after the other."""

    tensor: str
    starts: tuple[int, ...]
    steps: tuple[int, ...]
    layers: tuple[Layer, ...]


def _phase(graph: Graph, tensor: str) -> _Phase | None:
    """``tensor`` as a phase of what it was cut out of; None when it is another part of it."""
    shape = graph.type(tensor).shape
    starts, steps = [0] * len(shape), [1] * len(shape)
    layers: tuple[Layer, ...] = ()
    while (layer := graph.producer(tensor)) is not None and isinstance(layer.op, Slice) and len(layers) < _MOST and max(layer.op.steps) > 1:
        op, source = layer.op, graph.type(layer.inputs[0]).shape
        for axis, (start, size, step) in enumerate(zip(op.starts, op.sizes, op.steps, strict=True)):
            if (start, size, step) == (0, source[axis], 1):
                continue
            if not isinstance(start, int) or step < 2 or start >= step or size * step != source[axis]:
                return None
            starts[axis], steps[axis] = start + starts[axis] * step, steps[axis] * step
        tensor, layers = layer.inputs[0], (layer, *layers)
    return _Phase(tensor, tuple(starts), tuple(steps), layers) if layers else None


def _phases(graph: Graph, layer: Layer) -> list[_Phase]:
    """The inputs of ``layer`` as phases of one tensor; none when they are not, or not as many as there are."""
    found = [phase for name in layer.inputs if (phase := _phase(graph, name)) is not None]
    if len(found) < len(layer.inputs) or len({(one.tensor, one.steps) for one in found}) > 1 or len(found) != prod(found[0].steps):
        return []
    return found if sum(step > 1 for step in found[0].steps) <= _MOST else []


def _order(phases: list[_Phase]) -> tuple[int, ...] | None:
    """The axes that are cut, the one whose phase changes last first; None when the phases stand in no such order."""
    steps = phases[0].steps
    axes = [axis for axis, step in enumerate(steps) if step > 1]
    for order in permutations(axes):
        wanted = list(product(*(range(steps[axis]) for axis in order)))
        if [tuple(phase.starts[axis] for axis in order) for phase in phases] == wanted:
            return order
    return None


def _match(graph: Graph, layer: Layer) -> Match | None:
    phases = _phases(graph, layer)
    order = _order(phases) if phases else None
    if order is None:
        return None
    layers = tuple(dict.fromkeys(one for phase in phases for one in phase.layers))
    return Match((*layers, layer), tuple(one.outputs[0] for one in layers), {"phases": phases, "order": order})


def _near(graph: Graph, layer: Layer) -> Near | None:
    phases = _phases(graph, layer)
    if not phases:
        return None
    layers = tuple(dict.fromkeys(one for phase in phases for one in phase.layers))
    return Match((*layers, layer)), Refusal("order", f"the phases of {phases[0].tensor} begin at {', '.join(show(phase.starts) for phase in phases)}, in no order of its axes")


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, phases, order = match.layers[-1], match.found["phases"], match.found["order"]
    source, steps, axis = phases[0].tensor, phases[0].steps, layer.op.axis
    shape: Shape = graph.type(source).shape
    split: list = []
    whole, phase = {}, {}  # where an axis, and its phase, stand when it is split
    for one, (dim, step) in enumerate(zip(shape, steps, strict=True)):
        whole[one] = len(split)
        split.append(dim if step == 1 else graph.type(layer.inputs[0]).shape[one])
        if step > 1:
            phase[one] = len(split)
            split.append(step)
    moved = [place for one in range(len(shape)) for place in (*((phase[cut] for cut in order) if one == axis else ()), whole[one])]
    middle = graph.fresh(f"{layer.outputs[0]}.split")
    return Replacement((
        Layer("", Shuffle(None, tuple(split), tuple(moved)), (source,), (middle,)),
        Layer(f"{layer.name} joined", Shuffle(reshape=graph.type(layer.outputs[0]).shape), (middle,), layer.outputs, layer.origins),
    ))  # fmt: skip


RULE = Rule("space-to-depth", __doc__.splitlines()[0], (Concatenation,), _match, _rewrite, near=_near)
