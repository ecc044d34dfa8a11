from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Literal, apply
from fusion.graph import Graph, Limits
from fusion.network import Fate, Layer
from fusion.ops import Pointwise, Shuffle, Softmax
from fusion.rewrite import Match, Record, Refusal, Replacement, Rule, apply_rules, joined_name
from fusion.rules import no_op, pointwise
from fusion.validation import InvalidNetwork, validate
from tests.fusion.fusing import fuse, refused
from tests.fusion.networks import X0, Build


def chain(*functions: str, outputs: tuple[int, ...] = (-1,)):  # type: ignore[no-untyped-def]
    build = Build()
    x = build.input("x", 2, 3)
    tensors = []
    for index, function in enumerate(functions):
        x = build.pointwise(f"{function}{index}", function, x)
        tensors.append(x)
    return build.network(*(tensors[index] for index in outputs))


def test_a_chain_gets_one_flat_name_and_all_origins() -> None:
    record = Record()
    network = fuse(chain("relu", "tanh", "abs"), pointwise.RULE, record=record)
    (layer,) = network.layers
    assert layer.name == "fusedPointwiseNode(relu0, tanh1, abs2)"
    assert layer.origins == ("relu0", "tanh1", "abs2")
    assert layer.fusions == ("pointwise",)
    assert set(network.fates.values()) == {Fate("layer", layer.name)}
    assert record.counts() == {"pointwise": 2}
    assert record.applied[0].layers == ("relu0", "tanh1")


def test_a_network_output_stays() -> None:
    miss = refused(chain("relu", "tanh", outputs=(0, 1)), pointwise.RULE)
    assert (miss.rule, miss.condition) == ("pointwise", "network output")
    assert miss.layers == ("relu0", "tanh1")
    assert miss.tensors == ("relu0:out",)
    assert "relu0:out" in miss.detail


def test_another_reader_is_named() -> None:
    build = Build()
    x = build.pointwise("first", "relu", build.input("x", 2, 3))
    a = build.pointwise("second", "tanh", x)
    b = build.layer("softmax", Softmax(1), x)
    miss = refused(build.network(a, b), pointwise.RULE)
    assert miss.condition == "shared"
    assert "softmax" in miss.detail


@pytest.mark.parametrize("item", ["pointwise", "all", "pointwise@relu0", "pointwise@tanh1"])
def test_a_rule_can_be_switched_off(item: str) -> None:
    record = Record()
    network = fuse(chain("relu", "tanh"), pointwise.RULE, disabled=(item,), record=record)
    assert len(network.layers) == 2
    assert record.nearest()["relu0"][0].condition == "disabled"


def test_a_rule_is_switched_off_at_one_layer_only() -> None:
    network = fuse(chain("relu", "tanh", "abs", "exp"), pointwise.RULE, disabled=("pointwise@relu0",))
    assert [layer.name for layer in network.layers] == ["relu0", "fusedPointwiseNode(tanh1, abs2, exp3)"]


def test_the_nearest_miss_wins() -> None:
    build = Build()
    x = build.pointwise("first", "relu", build.input("x", 2, 3))
    network = build.network(build.pointwise("second", "tanh", x), x)
    far = Rule(
        "far", "", (Pointwise,), _pair, lambda graph, match: Replacement(), lambda graph, match: Refusal("never", "")
    )
    record = Record()
    fuse(network, pointwise.RULE, far, record=record)
    assert record.nearest()["first"][0].condition == "network output"


def _pair(graph: Graph, layer: Layer) -> Match | None:
    reader = graph.only_reader(layer.outputs[0])
    return Match((layer, reader), layer.outputs) if reader is not None else None


def test_types_that_do_not_fit_are_a_refusal() -> None:
    def rewrite(graph: Graph, match: Match) -> Replacement:
        (layer,) = match.layers
        return Replacement((Layer("", Shuffle(reshape=(7,)), layer.inputs, layer.outputs),))

    rule = Rule("broken", "", (Pointwise,), lambda graph, layer: Match((layer,)), rewrite)
    miss = refused(chain("relu"), rule)
    assert miss.condition == "types"
    assert "7" in miss.detail


def test_a_no_op_before_a_network_output_passes_its_name_on() -> None:
    build = Build()
    x = build.pointwise("relu", "relu", build.input("x", 2, 3))
    y = build.layer("same", Shuffle(reshape=(2, 3)), x)
    network = fuse(build.network(y), no_op.RULE)
    assert [layer.name for layer in network.layers] == ["relu"]
    assert network.layers[0].outputs == (y,)
    assert network.fates["same"] == Fate("no-op")


def test_a_no_op_between_input_and_output_is_a_copy() -> None:
    build = Build()
    network = build.network(build.layer("same", Shuffle(reshape=(2, 3)), build.input("x", 2, 3)))
    miss = refused(network, no_op.RULE)
    assert miss.condition == "types"
    assert "network input" in miss.detail


def test_dead_layers_go_with_what_only_they_read() -> None:
    build = Build()
    x = build.input("x", 2, 3)
    y = build.pointwise("alive", "relu", x)
    build.pointwise("dead2", "tanh", build.pointwise("dead1", "abs", x))
    network = fuse(build.network(y))
    assert [layer.name for layer in network.layers] == ["alive"]
    assert network.fates["dead1"] == network.fates["dead2"] == Fate("dead")
    assert set(network.tensors) == {"x", y}


def test_layers_of_one_name_are_told_apart() -> None:
    network = chain("relu", "tanh")
    renamed = replace(network, layers=tuple(replace(layer, name="same") for layer in network.layers))
    with pytest.raises(InvalidNetwork, match="same"):
        validate(renamed)
    assert [layer.name for layer in Graph(renamed).rebuild().layers] == ["same", "same #2"]


def test_joined_names() -> None:
    layers = [Layer(name, Softmax(0), (), (), (name,)) for name in ("conv1", "relu1")]
    helper = Layer("reformat x", Shuffle(), (), ())
    assert joined_name(layers, pointwise=False) == "conv1 + relu1"
    assert joined_name([helper, *layers], pointwise=False) == "conv1 + relu1"
    assert joined_name([helper], pointwise=False) == "reformat x"
    nested = Layer("fusedPointwiseNode(a, b)", Pointwise(X0), (), (), ("a", "b"))
    assert joined_name([nested, layers[1]], pointwise=True) == "fusedPointwiseNode(a, b, relu1)"


def test_rules_that_undo_each_other_are_stopped() -> None:
    def flip(graph: Graph, match: Match) -> Replacement:
        (layer,) = match.layers
        function = "abs" if layer.op.expression.function == "relu" else "relu"
        return Replacement((Layer("", Pointwise(apply(function, X0)), layer.inputs, layer.outputs),), keep_name=True)

    rule = Rule("flip", "", (Pointwise,), lambda graph, layer: Match((layer,)), flip)
    with pytest.raises(AssertionError, match="flip"):
        apply_rules(Graph(chain("relu")), [rule])


@pytest.mark.parametrize("limits, condition", [(Limits(functions=1), "size"), (Limits(operands=1), "operands")])
def test_large_expressions_are_refused(limits: Limits, condition: str) -> None:
    build = Build()
    x, y = build.input("x", 2, 3), build.input("y", 2, 3)
    network = build.network(build.pointwise("tanh", "tanh", build.pointwise("add", "add", x, y)))
    miss = refused(network, pointwise.RULE, limits=limits)
    assert miss.condition == condition


# --- validation ------------------------------------------------------------------------------------------------------


def _broken(kind: str):  # type: ignore[no-untyped-def]
    build = Build()
    x = build.pointwise("a", "relu", build.input("x", 2, 3))
    y = build.pointwise("b", "add", x, build.constant("c", (3,)))
    network = build.network(y)
    first, second = network.layers
    changes = {
        "order": {"layers": (second, first)},
        "twice": {"layers": (first, replace(first, name="again"), second)},
        "type": {"tensors": {**network.tensors, y: replace(network.tensors[y], dtype=DataType.HALF)}},
        "shape": {"tensors": {**network.tensors, y: replace(network.tensors[y], shape=(2, 4))}},
        "constant": {"constants": {"c": np.zeros(4, np.float32)}},
        "output": {"outputs": ("nothing",)},
        "fate": {"fates": {**network.fates, "a": Fate("layer", "gone")}},
        "lost": {"fates": {**network.fates, "a": Fate("dead")}},
    }
    return replace(network, **changes[kind])


@pytest.mark.parametrize(
    "kind, text",
    [
        ("order", "nothing before it defines"),
        ("twice", "already defined"),
        ("type", "float16"),
        ("shape", "4"),
        ("constant", "declared"),
        ("output", "nothing defines"),
        ("fate", "does not exist"),
        ("lost", "fate"),
    ],
)
def test_validation_finds(kind: str, text: str) -> None:
    with pytest.raises(InvalidNetwork, match=text):
        validate(_broken(kind))


def test_a_literal_reads_no_tensor() -> None:
    build = Build()
    x = build.input("x", 2)
    y = build.pointwise("add", apply("add", X0, Literal(1.0, DataType.FLOAT)), x)
    validate(build.network(y))
