"""What the prologue rules of products share: ``f(x, y ...) @ b`` reads x and computes f as it reads it; f is never stored. Optional rules.

It saves writing and reading what f makes. It costs a function that tiles of many columns compute again, and the freedom to choose a kernel that
copies its operands without looking at them (Hopper's); what wins only a measurement tells.
"""

from __future__ import annotations

from collections.abc import Callable

from fusion.dtypes import DataType
from fusion.expression import Operand, substitute
from fusion.graph import Graph
from fusion.network import Layer, Op
from fusion.ops import Pointwise, PrologueProduct
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import equal_shape, show, too_large

FLOATS = {"cuda": (DataType.HALF, DataType.BF16, DataType.FLOAT), "cpu": (DataType.FLOAT, DataType.DOUBLE)}


def product_prologue_rule(name: str, equation: str, product: type[Op], refuse: Callable[[Graph, Layer], Refusal | None]) -> Rule:
    """The rule that moves a pointwise layer into the product that reads it as its first operand, unless ``refuse`` says why not."""

    def match(graph: Graph, layer: Layer) -> Match | None:
        before = graph.producer(layer.inputs[0])
        if before is None or not isinstance(before.op, Pointwise):
            return None
        return Match((before, layer), (before.outputs[0],))

    def check(graph: Graph, match: Match) -> Refusal | None:
        return _check(graph, match) or refuse(graph, match.layers[1])

    return Rule(name, equation, (product,), match, _rewrite, check)


def _read(graph: Graph, before: Layer) -> str | None:
    """The tensor that the product reads in place of what ``before`` makes: its first input of that shape that is no constant."""
    shape = graph.type(before.outputs[0]).shape
    return next((name for name in before.inputs if equal_shape(graph.type(name).shape, shape) and graph.constant(name) is None), None)


def _check(graph: Graph, match: Match) -> Refusal | None:
    before, layer = match.layers
    made = before.outputs[0]
    if layer.inputs.count(made) != 1:
        return Refusal("operands", f"{layer.name} reads {made} more than once")
    x = _read(graph, before)
    if x is None:
        return Refusal("shape", f"no input of {before.name}, but for constants, has the shape {show(graph.type(made).shape)} of what it makes")
    kinds = [graph.type(name).dtype for name in (x, made, layer.inputs[1])]
    allowed = FLOATS.get(graph.limits.device, ())
    if len(set(kinds)) > 1 or kinds[0] not in allowed:
        found = ", ".join(kind.label for kind in kinds)
        return Refusal("precision", f"{x}, {made} and {layer.inputs[1]} are {found}; one of {', '.join(kind.label for kind in allowed)} is allowed")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    before, layer = match.layers
    x = _read(graph, before)
    assert x is not None and isinstance(before.op, Pointwise)
    names = (x, *(name for name in before.inputs if name != x))
    prologue = substitute(before.op.expression, {number: Operand(names.index(name)) for number, name in enumerate(before.inputs)})
    refusal = too_large(prologue, len(layer.inputs) + len(names) - 1, graph.limits)
    if refusal is not None:
        return refusal
    op = PrologueProduct(layer.op, prologue, len(names) - 1)  # type: ignore[arg-type]
    return Replacement((Layer("", op, (x, *layer.inputs[1:], *names[1:]), layer.outputs),))
