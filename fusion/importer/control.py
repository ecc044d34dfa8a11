"""If, Loop and Scan: their subgraphs become networks inside a layer, what they read from around them becomes inputs of the layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fusion.dims import Dim, Shape, Sym, product, symbols
from fusion.dtypes import DataType
from fusion.importer import finish
from fusion.importer.builder import X0, X1, Builder, call
from fusion.importer.errors import Unsupported
from fusion.importer.graph import Scope, names_in, read_names
from fusion.importer.loops import Scanned, counted, hoisted, passed_on, products_of_slices, unrolled
from fusion.importer.node import Node
from fusion.importer.operators.slicing import cut
from fusion.importer.sequences import EmptyOptional, StackedSequence, TensorSequence
from fusion.importer.values import Value, constant
from fusion.network import Network, TensorType
from fusion.ops import Concatenation, Gather, If, Loop

if TYPE_CHECKING:
    from onnx import GraphProto

    from fusion.importer.graph import Walk

Prepare: TypeAlias = "Callable[[Builder, BodyScope], Mapping[str, Value]]"
Results: TypeAlias = "tuple[Value | None, ...]"

ENDLESS = 1 << 62  # models write "no limit" as INT64_MAX


@dataclass
class BodyScope(Scope):
    """The tensors of a subgraph. What it reads from around it becomes an input of its network: ``captured`` maps the outer value's id to
    both values. Constants and shapes are no inputs: they are known inside too."""

    captured: dict[int, tuple[Value, Value]] = field(default_factory=dict)

    def find(self, name: str) -> Value | None:
        if name not in self.values:
            assert self.parent is not None
            outer = self.parent.find(name)
            self.values[name] = None if outer is None else self.enter(outer)
        return self.values[name]

    def enter(self, outer: Value) -> Value:
        """The value inside for a value from around."""
        if isinstance(outer, TensorSequence):
            return TensorSequence(tuple(map(self.enter, outer.items)))  # type: ignore[return-value]
        if isinstance(outer, StackedSequence):
            return StackedSequence(self.enter(outer.value))  # type: ignore[return-value]
        if isinstance(outer, EmptyOptional):
            return outer
        if outer.is_constant:
            return outer
        if outer.elements is not None and not any(item is None for item in outer.elements.reshape(-1)):
            return Value(outer.name, outer.type, elements=outer.elements, origin=outer.origin)
        if id(outer) not in self.captured:
            self.captured[id(outer)] = outer, Value(f"{self.prefix}in{len(self.captured)}", outer.type)
        return self.captured[id(outer)][1]


@dataclass
class Body:
    """An imported subgraph that is not yet a network: ``inputs`` and ``outputs`` by their names in it."""

    builder: Builder
    records: dict
    scope: BodyScope
    outputs: list[Value]

    @property
    def captured(self) -> list[Value]:
        """The values from around that it reads."""
        return [outer for outer, _ in self.scope.captured.values()]

    def network(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> Network:
        """The network that computes ``outputs``; its inputs are ``inputs``, then what it captured."""
        given = {value.name: value for value in (*inputs, *(inner for _, inner in self.scope.captured.values()))}
        wanted = {f"{self.scope.prefix}out{index}": value for index, value in enumerate(outputs)}
        return finish.network(name, given, wanted, self.builder, self.records)


def import_body(
    walk: Walk, node: Node, graph: GraphProto, scope: Scope, wanted: Sequence[int], prepare: Prepare, part: str = ""
) -> Body:
    """``graph`` with the inputs that ``prepare`` gives, and those of its outputs that are ``wanted`` (numbers).

    Raises:
        Unsupported: something in it cannot be imported (the problems are recorded).
    """
    prefix = f"{node.name}/{part}/" if part else f"{node.name}/"
    inner = BodyScope(scope.opsets, prefix, scope.origin, scope, scope.depth + 1, scope.attributes)
    before, problems = (walk.builder, walk.records), len(walk.problems)
    builder = walk.builder = Builder(walk.builder)
    walk.records = {}
    try:
        builder.origin, builder.prefix = scope.origin, f"{prefix}inputs"
        inner.values.update(prepare(builder, inner))
        names = [graph.output[index].name for index in wanted]
        walk.initializers(graph, inner, {*names, *(name for proto in graph.node for name in read_names(proto))})
        walk.run(graph.node, names_in(graph.node, prefix), inner, names)
        found = [inner.find(name) for name in names]
        if len(walk.problems) > problems or any(value is None for value in found):
            raise Unsupported("nodes inside it cannot be imported")
        return Body(builder, walk.records, inner, [value for value in found if value is not None])
    finally:
        walk.builder, walk.records = before


# --- If --------------------------------------------------------------------------------------------------------------


def import_if(walk: Walk, node: Node, scope: Scope) -> tuple[Results, bool]:
    """An If whose condition the inference computes. Sizes in which the branches differ become known when one has run.

    Where the condition follows from shapes and the branches differ in their number of dimensions, it is how exporters write "squeeze if
    the dimension is 1": the branch with fewer dimensions is taken, and shapes for which it would not be are refused when they come.
    """
    b = walk.builder
    condition = node.input(0)
    graphs = [node.required(name) for name in ("then_branch", "else_branch")]
    wanted = [index for index in range(len(node.outputs)) if node.wants(index)]
    parts = ("then", "else")
    bodies = [import_body(walk, node, graph, scope, wanted, lambda *_: {}, part) for graph, part in zip(graphs, parts, strict=True)]
    lengths = _laid_open(bodies)
    pairs = [(one.shape, other.shape) for one, other in zip(bodies[0].outputs, bodies[1].outputs, strict=True)]
    squeezes = {len(one) < len(other) for one, other in pairs if len(one) != len(other)}
    if len(squeezes) == 1 and _follows_from_shapes(condition):
        b.holds += [(product(one), product(other)) for one, other in pairs if len(one) != len(other)]
        return walk.branch(node, scope, squeezes.pop()), True
    own = bodies[0].builder.own_sizes | bodies[1].builder.own_sizes
    types = [
        _joined(b, one.type, other.type, own, f"output {index}")
        for index, (one, other) in enumerate(zip(bodies[0].outputs, bodies[1].outputs, strict=True))
    ]
    inputs = list({id(value): value for body in bodies for value in body.captured}.values())
    place = {id(value): number for number, value in enumerate(inputs, 1)}
    takes = [tuple(place[id(value)] for value in body.captured) for body in bodies]
    networks = [body.network(f"{node.name}/{part}", (), body.outputs) for body, part in zip(bodies, parts, strict=True)]
    op = If(networks[0], networks[1], (takes[0], takes[1]), tuple(types))
    made = iter(b.layers(op, (condition, *inputs)))
    found: dict[int, Any] = {}
    for index, length in zip(wanted, lengths, strict=True):
        found[index] = next(made) if length is None else TensorSequence(tuple(next(made) for _ in range(length)))
    return tuple(found.get(index) for index in range(len(node.outputs))), False


def _laid_open(bodies: Sequence[Body]) -> list[int | None]:
    """Puts the elements of sequences among the outputs of both branches in their place; tells per output how many there are (None: a tensor).

    Raises:
        Unsupported: the sequences of the branches differ in length.
    """
    lengths: list[int | None] = []
    flat: tuple[list[Value], list[Value]] = ([], [])
    for index, pair in enumerate(zip(*(body.outputs for body in bodies), strict=True)):
        counts = {len(value.items) if isinstance(value, TensorSequence) else None if isinstance(value, Value) else -1 for value in pair}
        if len(counts) > 1 or -1 in counts:
            raise Unsupported(f"output {index} is a sequence; branches that data choose must make sequences of one known length")
        lengths.append(counts.pop())
        for target, value in zip(flat, pair, strict=True):
            target += value.items if isinstance(value, TensorSequence) else [value]
    for body, values in zip(bodies, flat, strict=True):
        body.outputs = values
    return lengths


def _follows_from_shapes(value: Value) -> bool:
    """Whether nothing but shapes and constants is in it."""
    if value.is_constant or (value.elements is not None and not any(item is None for item in value.elements.reshape(-1))):
        return True
    return value.step is not None and all(_follows_from_shapes(one) for one in value.step.inputs)


def _joined(b: Builder, one: TensorType, other: TensorType, own: set[str], what: str) -> TensorType:
    """The type of a result that has one of two types."""
    if one.dtype is not other.dtype:
        raise Unsupported(f"{what} is {one.dtype.value} in one branch and {other.dtype.value} in the other")
    if len(one.shape) != len(other.shape):
        raise Unsupported(f"{what} has {len(one.shape)} dimensions in one branch and {len(other.shape)} in the other")
    shape = tuple(
        left if left == right and not symbols(left) & own else b.size(f"{what}_{axis}")
        for axis, (left, right) in enumerate(zip(one.shape, other.shape, strict=True))
    )
    return TensorType(one.dtype, shape)


# --- Loop ------------------------------------------------------------------------------------------------------------


def import_loop(walk: Walk, node: Node, scope: Scope) -> tuple[Results, bool]:
    """A Loop. A trip count from data is read by the host, as sizes are."""
    b = walk.builder
    graph = node.required("body")
    states = len(node.inputs) - 2
    count, condition = node.inputs[0], node.inputs[1]
    trip: Dim | None = None if count is None else b.dims(count, "trip")[0]
    trip = None if isinstance(trip, int) and trip >= ENDLESS else trip
    if condition is not None and condition.is_constant:
        trip = trip if condition.array.reshape(-1)[0] else 0
        condition = None
    names = [entry.name for entry in graph.input]
    always = constant(np.asarray(True))
    initial = [node.input(2 + index) for index in range(states)]
    same = passed_on(graph, names[2:], [entry.name for entry in graph.output[1:]])
    scope, graph = hoisted(walk, node, graph, scope, {names[1]: always, **{names[2 + index]: initial[index] for index in same}})
    if condition is None and (found := unrolled(walk, node, graph, scope, trip, counted(graph), initial, decides=True)) is not None:
        return found, True

    def prepare(counter: Value, carried: Mapping[int, Value]) -> Prepare:
        def values(_: Builder, inner: BodyScope) -> dict[str, Value]:
            found = dict(zip(names[:2], (counter, always), strict=True))
            for index in range(states):
                found[names[2 + index]] = carried[index] if index in carried else inner.enter(node.input(2 + index))
            return found

        return values

    return _loop(walk, node, scope, Iterated(graph, prepare, initial, same, trip, condition, decides=True)), False


@dataclass(frozen=True)
class Iterated:
    """A body that is run again and again.

    Attributes:
        graph: the body, and ``prepare`` its inputs for a counter and the carried tensors.
        initial: the carried tensors' first values; ``same`` are those (numbers) that no iteration changes.
        trip: how often at most; None: the body decides. ``condition``: whether it runs at all.
        decides: its first output says whether to go on.
        part: what names of this loop begin with, where a node is several.
    """

    graph: GraphProto
    prepare: Callable[[Value, Mapping[int, Value]], Prepare]
    initial: Sequence[Value]
    same: Collection[int]
    trip: Dim | None
    condition: Value | None = None
    decides: bool = False
    part: str = ""


def _loop(walk: Walk, node: Node, scope: Scope, loop: Iterated) -> Results:
    """The layer for a body that is run again and again."""
    graph, initial, part = loop.graph, loop.initial, loop.part
    b = walk.builder
    b.origin, b.prefix = scope.origin or node.name, node.name  # nodes that left the body had names of their own
    first, states = int(loop.decides), len(initial)
    # Carried tensors that nobody reads afterwards are still carried; scan outputs that nobody reads are not made.
    scans = [index for index in range(states, len(graph.output) - first) if node.wants(index)]
    wanted = [*range(first + states), *(first + index for index in scans)]
    counter = Value(f"{node.name}/{part}iteration", TensorType(DataType.INT64, ()))
    types = {index: value.type for index, value in enumerate(initial) if index not in loop.same}
    changing: set[str] = set()
    while True:
        carried = {index: Value(f"{node.name}/{part}carried{index}", kind) for index, kind in types.items()}
        body = import_body(walk, node, graph, scope, wanted, loop.prepare(counter, carried), part.rstrip("/"))
        results = body.outputs[first : first + states]
        # What an iteration hands on as it got it is the same in all of them.
        wider = {
            index: _widened(b, kind, results[index].type, changing, index) for index, kind in types.items() if results[index] is not carried[index]
        }
        if wider == types:
            break
        types = wider
    goes_on = body.outputs[0] if loop.decides else None
    if goes_on is not None and goes_on.is_constant and goes_on.array.reshape(-1)[0]:
        goes_on = None
    if loop.trip is None and goes_on is None:
        raise Unsupported("it would never end: it has neither a trip count nor a condition that its body computes")
    used = [*(value for step in body.builder.steps for value in step.inputs), *(one.tensor for one in body.builder.readings.values())]
    counted = any(value is counter for value in used)
    kept = [results[index] for index in types]
    outputs = [*([goes_on] if goes_on is not None else []), *kept, *body.outputs[first + states :]]
    network = body.network(f"{node.name}/{part}body", [*([counter] if counted else []), *(carried[index] for index in types)], outputs)
    own = body.builder.own_sizes | changing
    finals = [_final(b, initial[index].type, kind, index) for index, kind in types.items()]
    trip, condition = loop.trip, loop.condition
    fixed = trip is not None and condition is None and goes_on is None and not b.is_read(trip)
    length: Dim = max(trip, 0) if fixed and isinstance(trip, int) else trip if fixed and trip is not None else b.size(f"{part}count")
    slices = [
        TensorType(value.dtype, (length, *_outer(b, value.shape, own, f"{part}scan{index}")))
        for index, value in zip(scans, body.outputs[first + states :], strict=True)
    ]
    op = Loop(network, len(types), (*finals, *slices), trip, condition is not None, counted, goes_on is not None)
    inputs = [*([condition] if condition is not None else []), *(initial[index] for index in types), *body.captured]
    made = b.layers(op, inputs, part.rstrip("/"))
    found: dict[int, Value] = dict(zip((*types, *scans), made, strict=True))
    found.update((index, initial[index]) for index in range(states) if index not in types)
    return tuple(found.get(index) for index in range(len(graph.output) - first))


def _widened(b: Builder, before: TensorType, after: TensorType, changing: set[str], index: int) -> TensorType:
    """The type of a carried tensor that an iteration gets as ``before`` and hands on as ``after``."""
    if before.dtype is not after.dtype:
        raise Unsupported(f"carried tensor {index} is {before.dtype.value}, its body makes {after.dtype.value} of it")
    if len(before.shape) != len(after.shape):
        raise Unsupported(f"carried tensor {index} has {len(before.shape)} dimensions, its body makes {len(after.shape)} of them")
    shape: list[Dim] = []
    for axis, (old, new) in enumerate(zip(before.shape, after.shape, strict=True)):
        if old == new or str(old) in changing:
            shape.append(old)
        else:
            shape.append(size := b.size(f"carried{index}_{axis}"))
            changing.add(str(size))
    return TensorType(before.dtype, tuple(shape))


def _final(b: Builder, initial: TensorType, inside: TensorType, index: int) -> TensorType:
    """The type of a carried tensor at the end."""
    shape = (old if old == new else b.size(f"final{index}_{axis}") for axis, (old, new) in enumerate(zip(initial.shape, inside.shape, strict=True)))
    return TensorType(initial.dtype, tuple(shape))


def _outer(b: Builder, shape: Shape, own: set[str], what: str) -> Shape:
    """A shape in terms of sizes that exist around the body."""
    return tuple(b.size(f"{what}_{axis}") if symbols(dim) & own else dim for axis, dim in enumerate(shape))


# --- Scan ------------------------------------------------------------------------------------------------------------


def import_scan(walk: Walk, node: Node, scope: Scope) -> tuple[Results, bool]:
    """A Scan is a Loop whose body takes its slice of every scan input."""
    if node.opset >= 9:
        return _scan(walk, node, scope, list(node.inputs), 0)
    b = walk.builder
    if node.optional(0) is not None:
        raise Unsupported("sequence_lens is given; Scan of opset 8 is supported with sequences of equal length only")
    values = [node.input(index) for index in range(1, len(node.inputs))]
    batch = values[0].shape[0]
    if not isinstance(batch, int) or batch < 1:
        raise Unsupported(f"its batch is {batch}; Scan of opset 8 needs a known number (convert the model to opset 9 or newer)")
    rows = []
    for row in range(batch):
        slices = []
        for index, value in enumerate(values):
            name = f"row{row}_input{index}"
            part = cut(b, value, (row, *[0] * (value.rank - 1)), (1, *value.shape[1:]), (1,) * value.rank, name)
            slices.append(b.reshape(part, value.shape[1:], f"{name}_squeeze"))
        rows.append(_scan(walk, node, scope, list(slices), row)[0])
    found: list[Value | None] = []
    for index, parts in enumerate(zip(*rows, strict=True)):
        given = [b.reshape(part, (1, *part.shape), f"unsqueeze{index}") for part in parts if part is not None]
        found.append(None if not given else given[0] if batch == 1 else b.layer(Concatenation(0), *given, suffix=f"batch{index}"))
    return tuple(found), False


def _scan(walk: Walk, node: Node, scope: Scope, inputs: list[Value | None], row: int) -> tuple[Results, bool]:
    b = walk.builder
    graph = node.required("body")
    scanned = node.required("num_scan_inputs")
    if not 0 < scanned <= len(inputs) or any(value is None for value in inputs):
        raise Unsupported(f"{len(inputs)} inputs, {scanned} of them to scan")
    values = [value for value in inputs if value is not None]
    states = len(values) - scanned
    names = [entry.name for entry in graph.input]
    backward = node.attr("scan_input_directions", node.attr("directions", (0,) * scanned))
    sources = [
        Scanned(name, value, node.axis(axis, value.rank), bool(back))
        for name, value, axis, back in zip(names[states:], values[states:], node.attr("scan_input_axes", (0,) * scanned), backward, strict=True)
    ]
    trip = sources[0].source.shape[sources[0].axis]
    part = f"row{row}/" if row else ""
    same = passed_on(graph, names[:states], [entry.name for entry in graph.output])
    scope, graph = hoisted(walk, node, graph, scope, {names[index]: values[index] for index in same}, part)
    sources += products_of_slices(walk, graph, scope, sources)

    def slices(number: int, carried: Sequence[Value]) -> dict[str, Value]:
        b.origin, b.prefix = scope.origin or node.name, node.name
        found = dict(zip(names[:states], carried, strict=True))
        for index, one in enumerate(sources):
            place, name = trip - 1 - number if one.backward else number, f"{part}slice{index}_{number}"  # type: ignore[operator]
            before, after = one.source.shape[: one.axis], one.source.shape[one.axis + 1 :]
            row = cut(b, one.source, (*[0] * len(before), place, *[0] * len(after)), (*before, 1, *after), (1,) * one.source.rank, name)
            found[one.name] = b.reshape(row, (*before, *after), f"{name}_squeeze")
        return found

    def prepare(counter: Value, carried: Mapping[int, Value]) -> Prepare:
        def inside(builder: Builder, inner: BodyScope) -> dict[str, Value]:
            found = {names[index]: carried[index] if index in carried else inner.enter(values[index]) for index in range(states)}
            for index, one in enumerate(sources):
                place = counter
                if one.backward:
                    last = builder.data(_dimension(trip - 1))
                    place = builder.pointwise(call("sub", X0, X1), last, counter, suffix=f"place{index}")
                found[one.name] = builder.layer(Gather(one.axis), inner.enter(one.source), place, suffix=f"slice{index}")
            return found

        return inside

    steps = unrolled(walk, node, graph, scope, trip, slices, values[:states], decides=False, part=part)
    results = steps
    if results is None:
        results = _loop(walk, node, scope, Iterated(graph, prepare, values[:states], same, trip, part=part))
    outputs: list[Value | None] = list(results[:states])
    made = len(results) - states
    places = node.attr("scan_output_axes", (0,) * made)
    reversed_ = node.attr("scan_output_directions", (0,) * made)
    for index, (value, axis, back) in enumerate(zip(results[states:], places, reversed_, strict=True)):
        if value is not None and back:
            starts = (value.shape[0] - 1, *[0] * (value.rank - 1))
            value = cut(b, value, starts, value.shape, (-1, *[1] * (value.rank - 1)), f"{part}reverse{index}")
        if value is not None and (axis := node.axis(axis, value.rank)):
            order = [*range(1, value.rank)]
            order.insert(axis, 0)
            value = b.transpose(value, order, f"{part}axis{index}")
        outputs.append(value)
    return tuple(outputs), steps is not None


def _dimension(dim: Dim) -> Value:
    """``dim`` as a tensor without dimensions."""
    if isinstance(dim, Sym):
        box = np.empty((), object)
        box[()] = dim
        return Value("", TensorType(DataType.INT64, ()), elements=box)
    return constant(np.asarray(dim, np.int64), "last")


# Results, and whether they come from nodes that have records themselves.
IMPORTERS: dict[str, Callable[[Walk, Node, Scope], tuple[Results, bool]]] = {"If": import_if, "Loop": import_loop, "Scan": import_scan}
