"""T(MatMul(S(x), w)) -> MatMul(T(S(x)), w), or T(S(MatMul(x, w))), when one of the shuffles S and T only permutes rows.

Two data movements around a product become one, which often is none (sequence-first attention modules).
"""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, Shuffle, Softmax
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import show
from fusion.rules._shuffles import Movement, compose, emit, is_view, movement


def _match(graph: Graph, layer: Layer) -> Match | None:
    before = graph.producer(layer.inputs[0])
    after = graph.only_reader(layer.outputs[0])
    if before is None or after is None or not isinstance(before.op, Shuffle) or not isinstance(after.op, Shuffle):
        return None
    if len(graph.type(layer.inputs[1]).shape) != 2 or layer.op.transpose_a:
        return None
    if all(is_view(graph.type(item.inputs[0]).shape, item.op) for item in (before, after)):
        return None
    # The shuffle before may have other readers: then it stays for them.
    alone = graph.only_reader(before.outputs[0]) is not None
    layers = (before, layer, after) if alone else (layer, after)
    vanishing = (layer.outputs[0], *((before.outputs[0],) if alone else ()))
    return Match(layers, vanishing, {"before": before, "product": layer, "after": after, "alone": alone})


def _moves(graph: Graph, match: Match) -> tuple[Movement, Movement] | None:
    before, after = match.found["before"], match.found["after"]
    a = movement(graph.type(before.inputs[0]).shape, before.op)
    b = movement(graph.type(after.inputs[0]).shape, after.op)
    return None if a is None or b is None else (a, b)


def _with_columns(move: Movement, old: int, new: int) -> Movement | None:
    """A row permutation for rows of ``new`` instead of ``old`` elements; None when it is more than a row permutation."""
    if not move.sizes or move.order[-1] != len(move.sizes) - 1 or move.sizes[-1] % old != 0:
        return None
    rows = move.sizes[-1] // old
    return Movement((*move.sizes[:-1], rows * new), move.order)


def _plan(graph: Graph, match: Match) -> tuple[str, Movement] | Refusal:
    """(``sink`` or ``lift``, the one movement that remains)."""
    before, layer, after = (match.found[key] for key in ("before", "product", "after"))
    moves = _moves(graph, match)
    if moves is None:
        shapes = (graph.type(name).shape for name in (before.inputs[0], before.outputs[0], after.inputs[0], after.outputs[0]))
        return Refusal("shape", f"{' -> '.join(map(show, shapes))}: a reshape splits axes in a way that is no permutation")
    a, b = moves
    source, k = graph.type(before.inputs[0]).shape, graph.type(before.outputs[0]).shape[-1]
    n, target = graph.type(layer.outputs[0]).shape[-1], graph.type(after.outputs[0]).shape
    if not isinstance(k, int) or not isinstance(n, int):
        return Refusal("dynamic", f"rows of {k} and {n} elements: their lengths are known at run time only")
    plans = []
    if not a.is_view and source[-1] == k:
        rows = _with_columns(a, k, n)
        both = compose(rows, b) if rows is not None else None
        plans += [("sink", both)] if both is not None else []
    if not b.is_view and target[-1] == n and match.found["alone"]:
        rows = _with_columns(b, n, k)
        both = compose(a, rows) if rows is not None else None
        plans += [("lift", both)] if both is not None else []
    if not plans:
        return Refusal("permutation", f"neither {before.name} nor {after.name} permutes whole rows")
    plan, both = min(plans, key=lambda item: not item[1].is_view)
    if a.is_view + b.is_view > both.is_view and not both.is_view:
        return Refusal("no gain", f"one data movement would remain, as now ({before.name}, {after.name})")
    heads = plan == "lift" and len(both.sizes) <= 4  # which attention takes as well
    if not (both.is_view or heads) and _of_probabilities(graph, graph.producer(before.inputs[0])):
        return Refusal("no gain", f"{before.name} moves what probabilities are multiplied to: attention takes it as strides")
    return plan, both


def _of_probabilities(graph: Graph, maker: Layer | None) -> bool:
    """Whether ``maker`` is what will be the last part of an attention."""
    if maker is None or not isinstance(maker.op, MatrixMultiply):
        return False
    factors = (graph.producer(name) for name in maker.inputs[:2])
    return any(one is not None and isinstance(one.op, Softmax) for one in factors)


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer = match.found["product"]
    for name in layer.inputs[2:]:
        if len([dim for dim in graph.type(name).shape if dim != 1]) > 1 or graph.type(name).shape[-1:] == (1,):
            return Refusal("operands", f"{name} of {layer.name} varies by row")
    plan = _plan(graph, match)
    return plan if isinstance(plan, Refusal) else None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    plan = _plan(graph, match)
    if isinstance(plan, Refusal):
        return plan
    direction, move = plan
    before, layer, after = (match.found[key] for key in ("before", "product", "after"))
    source, target = graph.type(before.inputs[0]).shape, graph.type(after.outputs[0]).shape
    k, n = graph.type(before.outputs[0]).shape[-1], graph.type(layer.outputs[0]).shape[-1]
    product = Layer(layer.name, layer.op, layer.inputs, layer.outputs, layer.origins, layer.fusions)
    shuffles = Layer("", Shuffle(), (), ())  # the engine names it after everything that it stands for
    layers: list[Layer] = []
    if direction == "sink":
        middle = graph.fresh(f"{layer.outputs[0]}.rows")
        layers.append(_put(product, (before.inputs[0], *layer.inputs[1:]), middle))
        return _chain(graph, layers, shuffles, emit(move, (*source[:-1], n), target), middle, after.outputs[0])
    middle = graph.fresh(f"{before.outputs[0]}.rows")
    chain = _chain(graph, [], shuffles, emit(move, source, (*target[:-1], k)), before.inputs[0], middle)
    final = _put(product, (middle if chain.layers else before.inputs[0], *layer.inputs[1:]), after.outputs[0])
    return Replacement((*chain.layers, final))


def _put(product: Layer, inputs: tuple[str, ...], output: str) -> Layer:
    return Layer(product.name, product.op, inputs, (output,), product.origins, (*product.fusions, RULE.name))


def _chain(
    graph: Graph, layers: list[Layer], fused: Layer, ops: tuple[Shuffle, ...], source: str, target: str
) -> Replacement:
    """The shuffles from ``source`` to ``target``; without any, the last of ``layers`` writes ``target`` itself."""
    if not ops and layers:
        last = layers.pop()
        layers.append(Layer(last.name, last.op, last.inputs, (target,), last.origins, last.fusions))
    for index, op in enumerate(ops):
        name = target if index == len(ops) - 1 else graph.fresh(f"{target}.moved")
        layers.append(Layer(fused.name if index == 0 else f"{target} reshape", op, (source,), (name,)))
        source = name
    return Replacement(tuple(layers))


RULE = Rule("shuffle-rows", __doc__.splitlines()[0], (MatrixMultiply,), _match, _rewrite, _check)
