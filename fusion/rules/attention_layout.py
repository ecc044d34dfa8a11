"""Attention(transpose(q), ...) -> Attention(q, ..., layouts): head transposes around attention become its strides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Shuffle
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._shuffles import inverse

# Kernels read rows of d elements; where the other axes stand is a matter of strides.
INNERMOST = "d"


def _match(graph: Graph, layer: Layer) -> Match | None:
    for side, shuffle, layout in _transposes(graph, layer):
        if layout[-1] != INNERMOST:
            continue
        found = {"side": side, "shuffle": shuffle, "layout": layout}
        if side == 3:
            return Match((layer, shuffle), (layer.outputs[0],), found)
        if graph.only_reader(shuffle.outputs[0]) is not None and layer.inputs.count(shuffle.outputs[0]) == 1:
            return Match((shuffle, layer), (shuffle.outputs[0],), found)
        return Match((layer,), found=found)
    return None


def _near(graph: Graph, layer: Layer) -> Near | None:
    """A transpose after which the elements of a head would not follow each other."""
    for side, shuffle, layout in _transposes(graph, layer):
        name = ("queries", "keys", "values", "results")[side]
        refusal = Refusal("innermost", f"with {shuffle.name} the {name} would be stored as {layout}; the elements of a head, {INNERMOST}, must be innermost")
        return Match((layer, shuffle) if side == 3 else (shuffle, layer), (layer if side == 3 else shuffle).outputs), refusal
    return None


def _transposes(graph: Graph, layer: Layer) -> Iterator[tuple[int, Layer, str]]:
    """(side, shuffle, layout that would take its place): the transposes of queries, keys, values (0 to 2) and the result (3)."""
    for side in () if layer.op.parts else range(3):
        shuffle = graph.producer(layer.inputs[side])
        last = _last_transpose(shuffle) if shuffle is not None and isinstance(shuffle.op, Shuffle) else None
        if shuffle is not None and last is not None:
            yield side, shuffle, "".join(layer.op.layouts[side][inverse(last)[axis]] for axis in range(4))
    after = graph.only_reader(layer.outputs[0]) or next(iter(graph.readers(layer.outputs[0])), None)
    first = _first_transpose(after) if after is not None and isinstance(after.op, Shuffle) else None
    if after is not None and first is not None:
        yield 3, after, "".join(layer.op.layouts[3][axis] for axis in first)


def _last_transpose(shuffle: Layer) -> tuple[int, ...] | None:
    """The transpose that ends ``shuffle``, when it moves something."""
    op = shuffle.op
    if op.second is not None:
        return None if op.second == tuple(range(len(op.second))) else op.second
    if op.reshape is None and op.first is not None:
        return op.first
    return None


def _first_transpose(shuffle: Layer) -> tuple[int, ...] | None:
    op = shuffle.op
    if op.first is not None:
        return None if op.first == tuple(range(len(op.first))) else op.first
    if op.reshape is None and op.second is not None:
        return op.second
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    side, shuffle, layout = (match.found[key] for key in ("side", "shuffle", "layout"))
    attention = next(layer for layer in match.layers if isinstance(layer.op, Attention))
    layouts = tuple(layout if index == side else text for index, text in enumerate(attention.op.layouts))
    op = replace(attention.op, layouts=layouts)
    if side == 3:
        rest = Shuffle(None, shuffle.op.reshape, shuffle.op.second) if shuffle.op.first is not None else Shuffle()
        if rest == Shuffle():
            return Replacement((Layer("", op, attention.inputs, shuffle.outputs),))
        middle = graph.fresh(f"{attention.outputs[0]}.{layout}")
        view = replace(shuffle, op=rest, inputs=(middle,))
        kept = Layer(attention.name, op, attention.inputs, (middle,), attention.origins, _with(attention.fusions))
        return Replacement((kept, view))
    rest = Shuffle(shuffle.op.first, shuffle.op.reshape) if shuffle.op.second is not None else Shuffle()
    source = shuffle.inputs[0]
    if rest == Shuffle():
        fused = Layer("", op, _put(attention.inputs, side, source), attention.outputs)
        return Replacement((fused,), keep_name=len(match.layers) == 1)
    middle = graph.fresh(f"{shuffle.outputs[0]}.{layout}")
    view = Layer(shuffle.name, rest, (source,), (middle,), shuffle.origins, shuffle.fusions)
    inputs = _put(attention.inputs, side, middle)
    kept = Layer(attention.name, op, inputs, attention.outputs, attention.origins, _with(attention.fusions))
    return Replacement((view, kept))


def _with(fusions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*fusions, "attention-layout")))


def _put(inputs: tuple[str, ...], side: int, tensor: str) -> tuple[str, ...]:
    return tuple(tensor if index == side else name for index, name in enumerate(inputs))


RULE = Rule("attention-layout", __doc__.splitlines()[0], (Attention,), _match, _rewrite, near=_near)
