"""What an import does for loops: nodes that do the same in every iteration run once before it, and few iterations of a known number become plain layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.dims import Dim
from fusion.importer.errors import Unsupported
from fusion.importer.graph import Scope, names_in, plan, read_names
from fusion.importer.node import Node
from fusion.importer.values import Value, constant

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

    from fusion.importer.graph import Walk

UNROLLED = 128  # iterations at most
UNROLLED_NODES = 1024  # of all loops of a model together: a fused layer for each costs build time
_DRAW = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})


def hoisted(walk: Walk, node: Node, graph: GraphProto, scope: Scope, known: Mapping[str, Value], part: str = "") -> tuple[Scope, GraphProto]:
    """The nodes of a loop's body that read nothing that changes between iterations join those around the loop (loop-invariant code motion).

    ``known`` are the body's inputs that are the same in all iterations. Returns the scope that holds what these nodes make, and the body without them.
    """
    varying = {entry.name for entry in graph.input} - known.keys()
    names = names_in(graph.node, "")
    kept: list[int] = []
    for index in plan(walk.name, graph.node, names, set())[0]:
        proto = graph.node[index]
        if not _is_same(proto) or varying.intersection(read_names(proto)):
            kept.append(index)
            varying.update(proto.output)
    rest = type(graph)()
    rest.input.extend(graph.input)
    rest.output.extend(graph.output)
    for index in sorted(kept):
        rest.node.add().CopyFrom(graph.node[index])
        rest.node[-1].name = names[index]
    prefix = f"{node.name}/{part}" if part else f"{node.name}/"
    around = Scope(scope.opsets, prefix, scope.origin, scope, scope.depth + 1, scope.attributes)
    around.values.update(known)
    wanted = {name for proto in rest.node for name in read_names(proto)} | {entry.name for entry in graph.output}
    walk.initializers(graph, around, wanted | {name for proto in graph.node for name in read_names(proto)})
    moved = sorted(set(range(len(names))) - set(kept))
    walk.run([graph.node[index] for index in moved], [prefix + names[index] for index in moved], around, wanted)
    return around, rest


@dataclass(frozen=True)
class Scanned:
    """A tensor of which every iteration of a Scan gets a slice along ``axis``, the last one first with ``backward``; ``name`` is the slice's in the body."""

    name: str
    source: Value
    axis: int
    backward: bool


def products_of_slices(walk: Walk, graph: GraphProto, scope: Scope, sources: Sequence[Scanned]) -> list[Scanned]:
    """The MatMuls of a slice with a matrix that is the same in all iterations leave the body: one product of the whole tensor, of which the body gets
    slices. ``graph`` loses these nodes; ``scope`` is the one around it, of :func:`hoisted`."""
    varying = {entry.name for entry in graph.input} | {name for proto in graph.node for name in proto.output}
    known = {one.name: one for one in sources}
    found = []
    for proto in list(graph.node):
        one = known.get(proto.input[0]) if proto.op_type == "MatMul" and proto.domain in ("", "ai.onnx") and len(proto.input) == 2 else None
        if one is None or one.axis == one.source.rank - 1 or proto.input[1] in varying:
            continue
        weights = scope.find(proto.input[1])
        if weights is None or weights.rank != 2:
            continue
        whole = Scope(scope.opsets, scope.prefix, scope.origin, scope, scope.depth, scope.attributes, {one.name: one.source})
        walk.run([proto], [scope.prefix + proto.name], whole, [proto.output[0]])
        product = whole.find(proto.output[0])
        if product is not None:
            graph.node.remove(proto)
            found.append(replace(one, name=proto.output[0], source=product))
    return found


def passed_on(graph: GraphProto, given: Sequence[str], results: Sequence[str]) -> tuple[int, ...]:
    """The carried tensors (numbers) that the body hands on as it gets them: inputs ``given``, outputs ``results``."""
    makers = {name: proto for proto in graph.node for name in proto.output if proto.op_type == "Identity" and proto.domain in ("", "ai.onnx")}

    def source(name: str) -> str:
        seen: set[str] = set()
        while name in makers and name not in seen:
            seen.add(name)
            name = makers[name].input[0] if makers[name].input else ""
        return name

    return tuple(index for index, (name, result) in enumerate(zip(given, results, strict=False)) if source(result) == name)


def unrolled(
    walk: Walk,
    node: Node,
    graph: GraphProto,
    scope: Scope,
    trip: Dim | None,
    given: Callable[[int, Sequence[Any]], Mapping[str, Any]],
    carried: Sequence[Any],
    decides: bool,
    part: str = "",
    must: bool = False,
) -> tuple[Any, ...] | None:
    """The results of a loop with every iteration in the network around it; None where they are too many, or data decide how many there are or what
    shapes they make.

    ``given`` are the body's inputs in an iteration, with the carried tensors or sequences; ``decides``: the body's first output is whether to go on;
    without ``trip`` that alone ends it. Where it ``must`` be so (no layer carries a sequence), any number of nodes may come of it, and any shapes.
    """
    from fusion.importer.sequences import stacked

    size = sum(1 for _ in _all(graph.node))
    if not (trip is None or (isinstance(trip, int) and (must or trip > 0) and trip <= UNROLLED)):
        return None

    def too_many(iterations: int) -> bool:
        return iterations > UNROLLED or (not must and walk.unrolled + iterations * size > UNROLLED_NODES)

    if too_many(trip or 1):
        return None
    first, before = int(decides), walk.mark()
    scans = [index for index in range(len(carried), len(graph.output) - first) if node.wants(index)]
    names = [graph.output[index].name for index in (*range(first + len(carried)), *(first + index for index in scans))]
    states, goes_on = tuple(carried), True
    rows: list[list[Any]] = []
    while goes_on and (trip is None or len(rows) < trip):
        inner = Scope(scope.opsets, f"{node.name}/{part}{len(rows)}/", scope.origin, scope, scope.depth + 1, scope.attributes)
        inner.values.update(given(len(rows), states))
        walk.run(graph.node, names_in(graph.node, inner.prefix), inner, names)
        found: list[Any] = [inner.find(name) for name in names]
        if any(value is None for value in found):
            raise Unsupported("nodes inside it cannot be imported")
        known = not decides or (isinstance(found[0], Value) and found[0].is_constant)
        goes_on = not decides or (known and bool(found[0].array.reshape(-1)[0]))
        states = tuple(found[first : first + len(carried)])
        rows.append(found[first + len(carried) :])
        if not known or too_many(len(rows)) or (not must and walk.builder.own_sizes - before.sizes):
            walk.forget(before)
            return None
    walk.unrolled += len(rows) * size
    if scans and not rows:
        raise Unsupported("a loop without iterations whose scan outputs have no type")
    b = walk.builder
    b.origin, b.prefix = scope.origin or node.name, node.name
    made = {index: stacked(b, tuple(row[place] for row in rows), f"{part}scan{index}").value for place, index in enumerate(scans)}
    return (*states, *(made.get(index) for index in range(len(carried), len(graph.output) - first)))


def counted(graph: GraphProto) -> Callable[[int, Sequence[Any]], Mapping[str, Any]]:
    """The inputs of a Loop's body in an iteration: its number, that it goes on, and the carried values."""
    names = [entry.name for entry in graph.input]
    return lambda number, carried: dict(zip(names, (constant(np.asarray(number, np.int64)), constant(np.asarray(True)), *carried), strict=True))


def _is_same(proto: NodeProto) -> bool:
    """Whether a node gives the same results whenever its inputs are the same: none of ONNX's that draw, none whose definition is elsewhere."""
    return all(one.domain in ("", "ai.onnx", "com.microsoft") and one.op_type not in _DRAW for one in _all([proto]))


def _all(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    for proto in nodes:
        yield proto
        for attribute in proto.attribute:
            if attribute.HasField("g"):
                yield from _all(attribute.g.node)
