"""For tests of rules: apply them with the network validated after every rewrite, and results compared."""

from __future__ import annotations

from collections.abc import Mapping

from fusion.graph import Graph, Limits
from fusion.network import Layer, Network, Op
from fusion.rewrite import Miss, Record, Rule, apply_rules
from fusion.validation import validate
from tests.fusion.networks import assert_same


def fuse(
    network: Network,
    *rules: Rule,
    disabled: tuple[str, ...] = (),
    limits: Limits = Limits(),  # noqa: B008
    tolerance: float = 2e-5,
    sizes: Mapping[str, int] | None = None,
    record: Record | None = None,
) -> Network:
    """``network`` after ``rules``; checked to be valid at every step and to compute the same in the end."""
    validate(network)
    graph = Graph(network, limits)
    apply_rules(graph, rules, disabled, record, after=lambda graph: validate(graph.rebuild()))
    graph.prune()
    result = graph.rebuild()
    validate(result)
    assert set(result.fates) == set(network.fates)
    assert_same(network, result, tolerance, sizes)
    return result


def refused(network: Network, *rules: Rule, limits: Limits = Limits(), sizes: Mapping[str, int] | None = None) -> Miss:  # noqa: B008
    """The near miss of rules that must not change ``network``."""
    record = Record()
    result = fuse(network, *rules, limits=limits, record=record, sizes=sizes)
    assert [layer.op for layer in result.layers] == [layer.op for layer in network.layers]
    assert record.misses, "nothing was refused: the rule did not even match"
    return next(iter(record.nearest().values()))[0]


def only(network: Network, op: type[Op]) -> Layer:
    """The one layer of this kind."""
    (layer,) = [layer for layer in network.layers if isinstance(layer.op, op)]
    return layer


def kinds(network: Network) -> list[str]:
    """The kinds of the layers, in order."""
    return [type(layer.op).__name__ for layer in network.layers]
