"""The walk over the graph: nodes in order, each to its importer; functions and constant branches are followed into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion import plugins
from fusion.importer import computed, functions, registry, symbolic
from fusion.importer.builder import Builder
from fusion.importer.custom import custom
from fusion.importer.errors import ModelError, Problem, Unsupported
from fusion.importer.node import Node, decode_attribute
from fusion.importer.schemas import check_attributes, check_inputs
from fusion.importer.sequences import SEQUENCE_OPERATORS, StackedSequence, TensorSequence, concerns, import_sequence
from fusion.importer.tensors import array_of, external_location, is_external, sparse_array, tensor_type
from fusion.importer.values import Value, constant

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto

DEEPEST_CALL = 64
CONTROL = ("If", "Loop", "Scan")
# What importing a malformed node may raise: reported with the node's name, like any other node that cannot be imported.
MALFORMED = (ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)


@dataclass
class Scope:
    """The tensors that nodes of one graph or function body may read.

    ``origin`` is the node that everything here is attributed to, "" when each node stands for itself. ``values`` maps to
    None what a node that could not be imported would have made.
    """

    opsets: Mapping[str, int]
    prefix: str = ""
    origin: str = ""
    parent: Scope | None = None
    depth: int = 0
    attributes: Mapping[str, AttributeProto] = field(default_factory=dict)
    values: dict[str, Value | None] = field(default_factory=dict)

    def find(self, name: str) -> Value | None:
        """The value of a tensor.

        Raises:
            KeyError: nothing makes it.
        """
        if name in self.values:
            return self.values[name]
        if self.parent is None:
            raise KeyError(name)
        return self.parent.find(name)


@dataclass
class Record:
    """What importing a node gave: its results, and whether they come from nodes inside it that have records themselves."""

    results: tuple[Value | None, ...] = ()
    inputs: tuple[Value | None, ...] = ()
    is_call: bool = False
    reached: bool = True


@dataclass(frozen=True)
class Mark:
    """How far an import was: :meth:`Walk.forget` goes back there."""

    steps: int
    holds: int
    problems: int
    unrolled: int
    records: frozenset[str]
    sizes: frozenset[str]


class Walk:
    """One import: the builder, the records of nodes by name, and the problems met."""

    def __init__(self, name: str, local: Mapping[tuple[str, str, str], FunctionProto], folder: Path | None) -> None:
        self.name = name
        self.builder = Builder()
        self.records: dict[str, Record] = {}
        self.problems: list[Problem] = []
        self.unrolled = 0  # nodes in all iterations of loops that became plain layers
        self._functions = local
        self._folder = folder

    def mark(self) -> Mark:
        """Where the import is."""
        b = self.builder
        return Mark(len(b.steps), len(b.holds), len(self.problems), self.unrolled, frozenset(self.records), frozenset(b.own_sizes))

    def forget(self, mark: Mark) -> None:
        """Undo all that was imported since."""
        b = self.builder
        del b.steps[mark.steps :], b.holds[mark.holds :], self.problems[mark.problems :]
        for size in b.own_sizes - mark.sizes:
            b.own_sizes.discard(size)
            b.readings.pop(size, None)
        for name in self.records.keys() - mark.records:
            del self.records[name]
        self.unrolled = mark.unrolled

    def initializers(self, graph: GraphProto, scope: Scope, needed: set[str]) -> None:
        """Puts the graph's weights into ``scope``; they are decoded when something reads them."""
        for tensor in graph.initializer:
            if tensor.name in needed:
                scope.values[tensor.name] = self._initializer(tensor)
        for sparse in graph.sparse_initializer:
            if sparse.values.name in needed:
                scope.values[sparse.values.name] = self._initializer(sparse.values, sparse)

    def _initializer(self, tensor: TensorProto, sparse: SparseTensorProto | None = None) -> Value | None:
        """A weight; ``tensor`` may be the values of a ``sparse`` one."""
        try:
            type_ = tensor_type(tensor)
            if sparse is not None:
                return constant(sparse_array(sparse), tensor.name)
            if is_external(tensor):
                external_location(tensor, self._folder)
        except Unsupported as error:
            self.problems.append(Problem(tensor.name, "initializer", "", 0, str(error)))
            return None
        return Value(tensor.name, type_, load=lambda: array_of(tensor, self._folder))

    def run(self, nodes: Sequence[NodeProto], names: Sequence[str], scope: Scope, outputs: Iterable[str]) -> None:
        """Imports the nodes that ``outputs`` need."""
        order, needed = plan(self.name, nodes, names, set(outputs))
        for index in order:
            proto, name = nodes[index], names[index]
            if not any(output in needed for output in proto.output if output):
                if not scope.origin:
                    self._leave_out(proto, name)
                continue
            self._node(proto, name, scope, needed)

    def _leave_out(self, proto: NodeProto, name: str) -> None:
        """Records a node that is never computed, and those inside of it."""
        self.records[name] = Record(reached=False)
        for attribute in proto.attribute:
            if attribute.HasField("g"):
                inner = attribute.g.node
                for one, its_name in zip(inner, names_in(inner, f"{name}/{attribute.name}/"), strict=True):
                    self._leave_out(one, its_name)

    def _node(self, proto: NodeProto, name: str, scope: Scope, needed: set[str]) -> None:
        proto = _with_attributes(proto, scope)
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        opset = scope.opsets.get(domain, 1 if domain else 0)
        inputs, unknown = self._inputs(proto, name, scope)
        outputs = tuple(output if output in needed else "" for output in proto.output)
        origin = scope.origin or name
        results: tuple[Value | None, ...] = ()
        record = Record()
        try:
            if unknown:
                self._check_known(proto, domain, opset)
            else:
                attributes = {attribute.name: decode_attribute(attribute) for attribute in proto.attribute}
                node = Node(name, proto.op_type, domain, opset, inputs, outputs, attributes, proto)
                results, record.is_call = self._import(node, scope, origin)
                for index, output in enumerate(outputs):
                    if output and (index >= len(results) or results[index] is None):
                        raise Unsupported(f"output {index} ({output!r}) is not supported")
        except Unsupported as error:
            problem = Problem(origin, proto.op_type, domain, opset, str(error))
            if problem not in self.problems[-8:]:  # bodies of functions may repeat one
                self.problems.append(problem)
            results = ()
        except ModelError as error:
            if str(error).startswith(f"{self.name}: "):
                raise
            raise ModelError(f"{self.name}: node {name!r}: {error}") from error
        except MALFORMED as error:
            reason = f"its inputs or attributes do not fit the operator ({type(error).__name__}: {error})"
            self.problems.append(Problem(origin, proto.op_type, domain, opset, reason))
            results = ()
        for index, output in enumerate(outputs):
            result = results[index] if index < len(results) else None
            if output:
                scope.values[output] = result
            if isinstance(result, Value) and output and all(result is not value for value in inputs):
                made_here = result.origin == origin or (record.is_call and result.origin.startswith(f"{name}/"))
                result.name = f"{scope.prefix}{output}" if made_here else result.name
        if not scope.origin:
            record.results, record.inputs = _tensors(results), _tensors(inputs)
            self.records[name] = record

    def _inputs(self, proto: NodeProto, name: str, scope: Scope) -> tuple[tuple[Value | None, ...], bool]:
        inputs: list[Value | None] = []
        unknown = False
        for tensor in proto.input:
            if not tensor:
                inputs.append(None)
                continue
            try:
                value = scope.find(tensor)
            except KeyError:
                raise ModelError(f"{self.name}: node {name!r} reads tensor {tensor!r}, which nothing makes") from None
            unknown = unknown or value is None
            inputs.append(value)
        return tuple(inputs), unknown

    def _check_known(self, proto: NodeProto, domain: str, opset: int) -> None:
        """Raises Unsupported when the operator is unknown, whatever its inputs."""
        if plugins.find(domain, proto.op_type) is not None:
            return
        if registry.find(domain, proto.op_type, opset) or (not domain and proto.op_type in (*CONTROL, *SEQUENCE_OPERATORS, *symbolic.ALWAYS)):
            return
        if (domain, proto.op_type, proto.overload) not in self._functions and not functions.exists(domain, proto.op_type, opset):
            raise Unsupported(functions.absence(domain, proto.op_type, opset))

    def _import(self, node: Node, scope: Scope, origin: str) -> tuple[tuple[Value | None, ...], bool]:
        builder = self.builder
        builder.origin, builder.prefix = origin, node.name
        assert node.proto is not None
        plugin = plugins.find(node.domain, node.op)
        if plugin is not None:
            return custom(builder, node, plugin), False
        local = self._functions.get((node.domain, node.op, node.proto.overload))
        if local is not None:
            opsets = {("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in local.opset_import}
            return self._body(local, node, Scope(opsets, f"{node.name}/", scope.origin, depth=scope.depth + 1)), True
        if not scope.origin:  # ONNX's own definitions of operators add float32 constants to whatever they are given
            check_attributes(node)
            check_inputs(node)
        if node.op == "If" and not node.domain and node.input(0).is_constant:
            return self.branch(node, scope, bool(node.input(0).array.reshape(-1)[0])), True
        if concerns(node):
            return import_sequence(self, node, scope), True
        if node.op in CONTROL and not node.domain:
            from fusion.importer.control import IMPORTERS

            return IMPORTERS[node.op](self, node, scope)
        hints = symbolic.evaluate(node, origin)
        known = tuple(hint for hint in hints or () if isinstance(hint, Value))
        if hints is not None and len(known) == len(hints):
            return known, False
        importer = registry.find(node.domain, node.op, node.opset)
        try:
            if importer is None:
                raise Unsupported(functions.absence(node.domain, node.op, node.opset))
            result = importer(builder, node)
            results = (result,) if isinstance(result, Value) else tuple(result)
        except Unsupported as error:
            return self._fallback(node, scope, origin, error), False
        if hints is not None:
            for hint, value in zip(hints, results, strict=False):
                if value.step is not None and value.elements is None and not isinstance(hint, Value):
                    value.elements = hint
        return results, False

    def _fallback(self, node: Node, scope: Scope, origin: str, error: Unsupported) -> tuple[Value | None, ...]:
        """Without an importer that takes this node: folded by onnx, or through the operator's function body.

        Raises:
            Unsupported: neither is possible; ``error``, unless there is more to say.
        """
        folded = functions.folded(node, origin)
        if folded is not None:
            return folded
        body = computed.body(node) or functions.body(node)
        if body is None:
            raise error
        opsets = {**scope.opsets, **{entry.domain: entry.version for entry in body.opset_import}}
        before = len(self.problems)
        results = self._body(body, node, Scope(opsets, f"{node.name}/", origin, depth=scope.depth + 1))
        inner = [problem.operator for problem in self.problems[before:]]
        del self.problems[before:]
        if inner and registry.find(node.domain, node.op, node.opset) is None:
            raise Unsupported(f"its definition needs {', '.join(sorted(set(inner)))}, which trtcli does not support")
        if inner:
            raise error
        return results

    def _body(self, body: FunctionProto, node: Node, scope: Scope) -> tuple[Value | None, ...]:
        if scope.depth > DEEPEST_CALL:
            raise ModelError(f"functions call each other more than {DEEPEST_CALL} deep")
        assert node.proto is not None
        defaults = (*functions.defaults(node), *body.attribute_proto)
        scope.attributes = {item.name: item for item in (*defaults, *node.proto.attribute)}
        for name in body.input:
            scope.values[name] = None
        given = dict(zip(body.input, node.inputs, strict=False))
        missing = {name for name in body.input if given.get(name) is None}
        scope.values.update({name: value for name, value in given.items() if value is not None})
        nodes = [_without(proto, missing) for proto in body.node]
        wanted = [name for index, name in enumerate(body.output) if node.wants(index)]
        names = names_in(nodes, scope.prefix)
        self.run(nodes, names, scope, wanted)
        return tuple(scope.values.get(name) for name in body.output)

    def branch(self, node: Node, scope: Scope, chosen: bool) -> tuple[Value | None, ...]:
        """An If of which one branch is always ``chosen``: its nodes join those around it, those of the other are dead."""
        parts = ("else_branch", "then_branch")
        graph, other = (node.required(parts[one]) for one in (chosen, not chosen))
        if not scope.origin:
            for proto, name in zip(other.node, names_in(other.node, f"{node.name}/{parts[not chosen]}/"), strict=True):
                self._leave_out(proto, name)
        wanted = {output.name for index, output in enumerate(graph.output) if node.wants(index)}
        return self._inlined(graph, Scope(scope.opsets, f"{node.name}/", scope.origin, scope, scope.depth + 1, scope.attributes), wanted)

    def subgraph(self, graph: GraphProto, given: Sequence[Any], scope: Scope, prefix: str) -> tuple[Any, ...]:
        """The results of a subgraph whose inputs are ``given``: its nodes join those around it."""
        inner = Scope(scope.opsets, prefix, scope.origin, scope, scope.depth + 1, scope.attributes)
        inner.values.update(zip((entry.name for entry in graph.input), given, strict=True))
        return self._inlined(graph, inner, {output.name for output in graph.output})

    def _inlined(self, graph: GraphProto, inner: Scope, wanted: set[str]) -> tuple[Value | None, ...]:
        """The outputs of a graph whose nodes are imported into ``inner``; None for those that are not ``wanted``."""
        self.initializers(graph, inner, wanted | {name for proto in graph.node for name in read_names(proto)})
        self.run(graph.node, names_in(graph.node, inner.prefix), inner, wanted)
        return tuple(inner.find(output.name) if output.name in wanted else None for output in graph.output)


def _tensors(values: Iterable[Any]) -> tuple[Value | None, ...]:
    """``values`` with sequences laid open."""
    found: list[Value | None] = []
    for value in values:
        value = value.value if isinstance(value, StackedSequence) else value
        found += value.items if isinstance(value, TensorSequence) else [value] if value is None or isinstance(value, Value) else []
    return tuple(found)


def _with_attributes(proto: NodeProto, scope: Scope) -> NodeProto:
    """A node of a function body with its references to the call's attributes replaced by their values."""
    if not any(attribute.ref_attr_name for attribute in proto.attribute):
        return proto
    copy = type(proto)()
    copy.CopyFrom(proto)
    del copy.attribute[:]
    for attribute in proto.attribute:
        given = scope.attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
        if given is not None:
            entry = copy.attribute.add()
            entry.CopyFrom(given)
            entry.name = attribute.name
    return copy


def _without(proto: NodeProto, missing: set[str]) -> NodeProto:
    """A node of a function body without the inputs that the call leaves out."""
    if not any(name in missing for name in proto.input):
        return proto
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.input[:] = ["" if name in missing else name for name in proto.input]
    return copy


def node_names(nodes: Sequence[NodeProto]) -> list[str]:
    """A unique name for each node: its own, else ``OpType_index``."""
    return names_in(nodes, "")


def names_in(nodes: Sequence[NodeProto], prefix: str) -> list[str]:
    """As :func:`node_names`, each with ``prefix``."""
    taken: set[str] = set()
    counts: dict[str, int] = {}
    found = []
    for index, node in enumerate(nodes):
        name = unique = f"{prefix}{node.name or f'{node.op_type}_{index}'}"
        while unique in taken:
            counts[name] = counts.get(name, 0) + 1
            unique = f"{name}_{counts[name]}"
        taken.add(unique)
        found.append(unique)
    return found


def read_names(node: NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those that its subgraphs capture included."""
    yield from (name for name in node.input if name)
    if node.op_type not in ("If", "Loop", "Scan", "SequenceMap"):
        return
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from read_names(inner)
            yield from (output.name for output in attribute.g.output)


def plan(
    model: str, nodes: Sequence[NodeProto], names: Sequence[str], outputs: set[str]
) -> tuple[list[int], set[str]]:
    """An order in which every node comes after those it reads, and the tensors that ``outputs`` need.

    Raises:
        ModelError: the graph has a cycle.
    """
    reads = [tuple(read_names(node)) for node in nodes]
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for output in filter(None, node.output):
            if producer.setdefault(output, index) != index:
                first = names[producer[output]]
                raise ModelError(f"{model}: tensor {output!r} is made by two nodes, {first!r} and {names[index]!r}")
    order = list(range(len(nodes)))
    if any(producer.get(name, -1) >= index for index, read in enumerate(reads) for name in read):
        order = _sorted(model, names, reads, producer)
    needed = set(outputs)
    for index in reversed(order):
        if any(output in needed for output in nodes[index].output):
            needed.update(reads[index])
    return order, needed


def _sorted(
    model: str, names: Sequence[str], reads: Sequence[tuple[str, ...]], producer: Mapping[str, int]
) -> list[int]:
    before = [{producer[name] for name in read if name in producer} for read in reads]
    after: dict[int, list[int]] = {}
    for index, sources in enumerate(before):
        for source in sources:
            after.setdefault(source, []).append(index)
    ready = [index for index, sources in enumerate(before) if not sources]
    order: list[int] = []
    while ready:
        index = ready.pop(0)
        order.append(index)
        for reader in after.get(index, ()):
            before[reader].discard(index)
            if not before[reader]:
                ready.append(reader)
    if len(order) < len(names):
        stuck = next(names[index] for index in range(len(names)) if before[index])
        raise ModelError(f"{model}: the graph has a cycle through node {stuck!r}")
    return order
