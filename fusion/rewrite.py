"""The rewrite engine: matches fusion rules on a network, applies them, and records what was done and what was not.

A :class:`Rule` is data and pure functions. The engine, not the rule, makes sure that a tensor that a rewrite removes has
no other reader and is no network output; it names the fused layer, merges its origins, infers the new types and keeps
the fate of every ONNX node. Everything that was refused leaves a :class:`Miss` with its reason; of a finished network
:func:`nearest_misses` also asks each rule where it would have matched but for one thing (``Rule.near``).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from fusion.graph import Graph
from fusion.network import Layer, Op, ShapeError
from fusion.ops import Pointwise

_NOTHING: Mapping = MappingProxyType({})

VIEW_RULES = ("concatenation-view", "slice-view", "shuffle-view")  # layers that cost nothing where they lie in others' memory
LAYOUT_RULES = ("padded-channels",)  # what else :mod:`fusion.padded_channels` and measurements decide about memory
ALL = "all"  # in FusionOptions.disabled: every rule


@dataclass(frozen=True)
class Refusal:
    """Why a rule that found its pattern does not apply: a short ``condition`` and a ``detail`` with the values found."""

    condition: str
    detail: str


@dataclass(frozen=True)
class Match:
    """Where a rule fits.

    Attributes:
        layers: the layers that the rewrite replaces, producers before readers.
        vanishing: tensors between them that will no longer exist.
        found: what the match learned and the check and the rewrite need, by name.
    """

    layers: tuple[Layer, ...]
    vanishing: tuple[str, ...] = ()
    found: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True)
class Replacement:
    """What takes the place of the matched layers.

    Attributes:
        layers: a layer named ``""`` is the fused one: it gets the joined name, the origins and the fusions.
        constants: values of the new constant tensors.
        aliases: tensors that readers must replace by another one (an output of a layer that does nothing).
        fate: what became of the ONNX nodes when no layer is left (``no-op``, ``folded``, ``dead``).
        keep_name: the fused layer keeps the name of the first matched layer (a layer rewritten in place).
    """

    layers: tuple[Layer, ...] = ()
    constants: Mapping[str, np.ndarray] = field(default_factory=lambda: _NOTHING)
    aliases: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    fate: str = "no-op"
    keep_name: bool = False


# What nearly is a rule's pattern, and why it is not; None where only the engine's own conditions (another reader of a tensor
# between the layers, a network output) stand in the way.
Near = tuple[Match, Refusal | None]


@dataclass(frozen=True)
class Rule:
    """One fusion rule.

    Attributes:
        name: what ``--disableFusion`` and reports call it.
        equation: what it does, in one line.
        anchors: operations at which ``match`` is tried.
        match: the pattern around one layer, or None.
        rewrite: the replacement, or the reason why there is none.
        check: conditions on values and shapes; None when they hold.
        canonical: it only writes a layer in its usual form, so it is no fusion to report (and cannot be near a miss).
        local: where it does not fit a layer once it never will (it looks at the layer and its inputs' types and values only).
        near: where ``match`` finds nothing around a layer, what comes near the pattern. Only reports ask, never a pass.
        near_anchors: operations at which ``near`` is tried; empty for ``anchors``.
    """

    name: str
    equation: str
    anchors: tuple[type[Op], ...]
    match: Callable[[Graph, Layer], Match | None]
    rewrite: Callable[[Graph, Match], Replacement | Refusal]
    check: Callable[[Graph, Match], Refusal | None] = lambda graph, match: None
    canonical: bool = False
    local: bool = False
    near: Callable[[Graph, Layer], Near | None] | None = None
    near_anchors: tuple[type[Op], ...] = ()


@dataclass(frozen=True)
class Applied:
    """One applied rule: the layers that went in, and the name of the layer that came out ("" when none is left)."""

    rule: str
    layers: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class Miss:
    """A rule that nearly applied.

    Attributes:
        rule: its name.
        layers: the layers that it would have joined.
        condition, detail: why not (see :class:`Refusal`).
        tensors: the tensors that would not have gone through memory.
    """

    rule: str
    layers: tuple[str, ...]
    condition: str
    detail: str
    tensors: tuple[str, ...] = ()


@dataclass
class Record:
    """What the engine did: filled while rules run."""

    applied: list[Applied] = field(default_factory=list)
    misses: dict[str, dict[str, tuple[int, Miss]]] = field(default_factory=dict)  # per layer and rule: how near, and the miss
    # By identity of a layer: the layer (kept, so that its identity stays its own), and the local rules that do not fit it.
    settled: dict[int, tuple[Layer, set[str]]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How often each rule was applied."""
        return dict(Counter(item.rule for item in self.applied))

    def note(self, match: Match, miss: Miss, nearness: int) -> None:
        """Keeps ``miss`` for each of its layers unless one of the same rule as near is known."""
        for layer in match.layers:
            known = self.misses.setdefault(layer.name, {})
            if miss.rule not in known or nearness > known[miss.rule][0]:
                known[miss.rule] = nearness, miss

    def nearest(self, rules: Sequence[Rule] = ()) -> dict[str, tuple[Miss, ...]]:
        """Per layer its misses, the nearest first; of equally near ones that which would have joined more layers, then that whose
        rule stands earlier in ``rules``: rules that know more stand before general ones."""
        order = {rule.name: place for place, rule in enumerate(rules)}

        def key(item: tuple[int, Miss]) -> tuple[int, int, int]:
            return -item[0], -len(item[1].layers), order.get(item[1].rule, len(order))

        return {layer: tuple(miss for _, miss in sorted(found.values(), key=key)) for layer, found in self.misses.items()}


def apply_rules(
    graph: Graph,
    rules: Sequence[Rule],
    disabled: Iterable[str] = (),
    record: Record | None = None,
    after: Callable[[Graph], None] | None = None,
    once: bool = False,
) -> int:
    """Applies ``rules`` (earlier ones first at each layer) until none applies; returns how many rewrites were done.

    Changed layers and their neighbours are tried again at once. ``once`` trusts that to find everything; without it all layers
    are tried again until nothing changes. ``after`` is called after every rewrite (tests validate the network there).
    """
    record = record if record is not None else Record()
    switched_off = frozenset(disabled)
    by_op: dict[type[Op], list[Rule]] = {}
    for rule in rules:
        for anchor in rule.anchors:
            by_op.setdefault(anchor, []).append(rule)
    total = 0
    while True:
        done = _sweep(graph, by_op, switched_off, record, after)
        total += done
        if not done or once:
            return total


def _sweep(
    graph: Graph,
    by_op: Mapping[type[Op], list[Rule]],
    disabled: frozenset[str],
    record: Record,
    after: Callable[[Graph], None] | None,
) -> int:
    work = deque(layer.name for layer in graph.ordered())
    waiting = set(work)
    done, budget = 0, 100 * (len(work) + 10)
    while work:
        name = work.popleft()
        waiting.discard(name)
        layer = graph.layers.get(name)
        if layer is None:
            continue
        _, settled = record.settled.setdefault(id(layer), (layer, set()))
        for rule in by_op.get(type(layer.op), ()):
            if rule.name in settled:
                continue
            match = rule.match(graph, layer)
            if match is None:
                if rule.local:
                    settled.add(rule.name)
                continue
            touched = _attempt(graph, rule, match, disabled, record)
            if touched is not None:
                done += 1
                if done > budget:
                    raise AssertionError(f"rules undo each other at {name}; the last one is {rule.name}")
                if after is not None:
                    after(graph)
                # The changed place first, so that a chain is eaten from its head: conv + bn + relu, not bn + relu.
                for other in reversed(touched):
                    if other in graph.layers and other not in waiting:
                        work.appendleft(other)
                        waiting.add(other)
                break
    return done


def _attempt(graph: Graph, rule: Rule, match: Match, disabled: frozenset[str], record: Record) -> list[str] | None:
    """The names of the layers that the rewrite touched, or None after noting why there is none."""
    replacement = _judge(graph, rule, match, disabled, record)
    if replacement is None:
        return None
    try:
        fused = _named(graph, rule, match, replacement)
        touched = graph.replace(match.layers, fused, replacement.constants, replacement.aliases, replacement.fate)
    except ShapeError as error:
        _note(record, rule, match, Refusal("types", str(error)), _CONDITION)
        return None
    if not rule.canonical:
        names = tuple(item.name for item in match.layers)
        made = [new.name for old, new in zip(replacement.layers, fused, strict=True) if not old.name]
        record.applied.append(Applied(rule.name, names, (made or [layer.name for layer in fused] or [""])[-1]))
    return touched


# How near a rule came: to its pattern, to its own conditions, to the engine's (no other readers), to nothing but a switch.
_PATTERN, _CONDITION, _READERS, _SWITCH = range(4)


def _judge(graph: Graph, rule: Rule, match: Match, disabled: frozenset[str], record: Record) -> Replacement | None:
    """The replacement, or None after noting why there is none."""
    refusal = rule.check(graph, match)
    nearness = _CONDITION
    if refusal is None:
        refusal, nearness = _shared(graph, match), _READERS
    if refusal is None and (switch := disabled_by(rule.name, match.layers, disabled)):
        refusal, nearness = Refusal("disabled", f"switched off by --disableFusion={switch}"), _SWITCH
    if refusal is None:
        made = rule.rewrite(graph, match)
        if isinstance(made, Refusal):
            refusal, nearness = made, _CONDITION
        else:
            refusal, nearness = _read_twice(match, made), _READERS
            if refusal is None:
                return made
    _note(record, rule, match, refusal, nearness)
    return None


def _note(record: Record, rule: Rule, match: Match, refusal: Refusal, nearness: int) -> None:
    if not rule.canonical:
        names = tuple(item.name for item in match.layers)
        record.note(match, Miss(rule.name, names, refusal.condition, refusal.detail, match.vanishing), nearness)


def nearest_misses(graph: Graph, rules: Sequence[Rule], disabled: Iterable[str] = ()) -> dict[str, tuple[Miss, ...]]:
    """Per layer the rules that nearly apply to it and why they do not, the nearest first; nothing is changed."""
    record = Record()
    switched_off = frozenset(disabled)
    by_op: dict[type[Op], dict[str, Rule]] = {}
    for rule in rules:
        for anchor in (*rule.anchors, *rule.near_anchors) if not rule.canonical else ():
            by_op.setdefault(anchor, {})[rule.name] = rule
    for layer in graph.ordered():
        for rule in by_op.get(type(layer.op), {}).values():
            match = rule.match(graph, layer) if type(layer.op) in rule.anchors else None
            if match is not None:
                _judge(graph, rule, match, switched_off, record)
            elif rule.near is not None and type(layer.op) in (rule.near_anchors or rule.anchors):
                _note_near(graph, rule, layer, record)
    return record.nearest(rules)


def _note_near(graph: Graph, rule: Rule, layer: Layer, record: Record) -> None:
    assert rule.near is not None
    found = rule.near(graph, layer)
    if found is None:
        return
    match, refusal = found
    shared = None if refusal is not None else _shared(graph, match)
    if refusal is not None:
        _note(record, rule, match, refusal, _PATTERN)
    elif shared is not None:
        _note(record, rule, match, shared, _READERS)


def disabled_by(rule: str, layers: Sequence[Layer], disabled: frozenset[str]) -> str:
    """Which of ``disabled`` (``rule`` or ``rule@layer``, ``all`` for every rule) switches this one off, or nothing; a layer is also named by
    its ONNX nodes."""
    if not disabled:
        return ""
    names = (name for layer in layers for name in (layer.name, *layer.origins))
    named = (f"{one}@{name}" for name in names for one in (rule, ALL))
    return next((one for one in (rule, ALL, *named) if one in disabled), "")


def _shared(graph: Graph, match: Match) -> Refusal | None:
    inside = {layer.name for layer in match.layers}
    for tensor in match.vanishing:
        if tensor in graph.outputs:
            return Refusal("network output", f"{tensor} is a network output")
        for reader in graph.readers(tensor):
            if reader.name not in inside:
                return Refusal("shared", f"{tensor} is also read by {reader.name}")
    return None


def _read_twice(match: Match, made: Replacement) -> Refusal | None:
    """A refusal where what shall vanish is still read by the layers that are left: an epilogue adds the tensor that its product reads, too."""
    removed = {tensor for layer in match.layers for tensor in layer.outputs} - {tensor for layer in made.layers for tensor in layer.outputs}
    for layer in made.layers:
        tensor = next((name for name in layer.inputs if name in removed), None)
        if tensor is not None:
            return Refusal("shared", f"{tensor} is read twice by {match.layers[-1].name}")
    return None


def _named(graph: Graph, rule: Rule, match: Match, replacement: Replacement) -> tuple[Layer, ...]:
    def union(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item for part in parts for item in part))

    origins = union(layer.origins for layer in match.layers)
    fusions = union([*(layer.fusions for layer in match.layers), () if rule.canonical else (rule.name,)])
    result = []
    for layer in replacement.layers:
        if not layer.name:
            pointwise = all(isinstance(item.op, Pointwise) for item in match.layers)
            name = match.layers[0].name if replacement.keep_name else joined_name(match.layers, pointwise)
            layer = replace(layer, name=name, origins=origins, fusions=fusions)
        result.append(layer)
    return tuple(result)


def joined_name(layers: Sequence[Layer], pointwise: bool) -> str:
    """``conv1 + relu1``; for pointwise layers ``fusedPointwiseNode(add1, relu1)``, flattened. (TensorRT's spelling.)

    Layers that stand for no ONNX node (a reformat that a pass put in) are left out where others are there."""
    layers = [layer for layer in layers if layer.origins] or layers
    if len(layers) == 1:
        return layers[0].name
    if not pointwise:
        return " + ".join(layer.name for layer in layers)
    head = "fusedPointwiseNode("
    parts = [layer.name[len(head) : -1] if layer.name.startswith(head) else layer.name for layer in layers]
    return f"{head}{', '.join(parts)})"
