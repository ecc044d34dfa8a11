"""The choice of layouts by times: never worse than any other assignment, and obeyed by the conversion."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.layout import back_for, estimated_layouts, order_for, to_channels_last
from fusion.layout_choice import LayoutTimes, best_layouts, border_tensors, cost_of, undecided_layers
from fusion.network import Network
from fusion.ops import Pooling, Shuffle, Softmax
from fusion.validation import validate
from tests.fusion.networks import assert_same
from tests.fusion.test_layout import Nets, reformats


def branches() -> Network:
    """Convolution -> pointwise -> softmax over channels -> pooling -> output, with a second reader that is a convolution."""
    build = Nets()
    y = build.pointwise("exp", "exp", build.conv("conv", build.input("x", 2, 8, 8, 8), 8))
    soft = build.layer("softmax", Softmax(1), y)
    pool = build.layer("pool", Pooling("max", (2, 2), (2, 2), (0, 0), (0, 0), (1, 1)), soft)
    z = build.pointwise("tanh", "tanh", build.pointwise("add", "add", soft, y))
    return build.network(pool, build.conv("conv2", z, 4))


def chain() -> Network:
    build = Nets()
    y = build.conv("conv", build.input("x", 2, 8, 8, 8), 8)
    for name in ("exp", "tanh", "sqrt"):
        y = build.pointwise(name, name if name != "sqrt" else "abs", y)
    return build.network(y)


def turned() -> Network:
    """A branch that the model itself takes channels-last and back, whose result the network's output needs, too."""
    build = Nets()
    y = build.pointwise("exp", "exp", build.conv("conv", build.input("x", 2, 8, 8, 8), 8))
    z = build.layer("turn", Shuffle(first=order_for(4)), y)
    z = build.layer("back", Shuffle(first=back_for(4)), build.layer("soft", Softmax(2), z))
    z = build.pointwise("add", "add", z, y)
    return build.network(z, build.layer("tops", Softmax(1), build.pointwise("tanh", "tanh", z)))


NETWORKS = {"branches": branches(), "chain": chain(), "turned": turned()}
SECONDS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda pair: (pair[0] * 1e-6, pair[1] * 1e-6))


def test_what_is_worth_a_measurement() -> None:
    assert [layer.name for layer in undecided_layers(NETWORKS["branches"])] == ["exp", "softmax", "pool", "add", "tanh"]
    assert [layer.name for layer in undecided_layers(NETWORKS["chain"])] == ["exp", "tanh", "sqrt"]
    build = Nets()
    y = build.conv("conv2", build.pointwise("exp", "exp", build.conv("conv", build.input("x", 2, 8, 8, 8), 8)), 4)
    assert undecided_layers(build.network(y)) == (), "between convolutions there is nothing to choose"
    build = Nets()
    assert undecided_layers(build.network(build.pointwise("exp", "exp", build.input("x", 2, 8, 8, 8)))) == ()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.data())
def test_no_assignment_is_cheaper(name: str, data: st.DataObject) -> None:
    network = NETWORKS[name]
    free = undecided_layers(network)
    times = LayoutTimes({layer.name: data.draw(SECONDS) for layer in free}, {tensor: data.draw(SECONDS) for tensor in border_tensors(network, free)})
    fixed = estimated_layouts(network, True) - set(times.layers)
    best = best_layouts(network, times)
    assert best - set(times.layers) == fixed
    costs = []
    for sides in product((False, True), repeat=len(free)):
        costs.append(cost_of(network, fixed | {layer.name for layer, last in zip(free, sides, strict=True) if last}, times))
    assert cost_of(network, best, times) == pytest.approx(min(costs), abs=1e-9)


def test_a_layer_without_a_kernel_takes_the_other_layout() -> None:
    network = NETWORKS["chain"]
    tensors = dict.fromkeys(border_tensors(network, undecided_layers(network)), (1e-6, 1e-6))
    for first, last in ((1e-3, math.inf), (math.inf, 1e-3)):
        times = LayoutTimes({"exp": (0.0, 0.0), "tanh": (first, last), "sqrt": (0.0, 0.0)}, tensors)
        assert ("tanh" in best_layouts(network, times)) == (last == 1e-3)


def test_the_conversion_obeys() -> None:
    network = NETWORKS["branches"]
    tensors = dict.fromkeys(border_tensors(network, undecided_layers(network)), (1e-6, 1e-6))
    for wanted, count in ((set(), 4), ({"exp", "softmax", "add", "tanh"}, 3)):
        times = LayoutTimes({layer.name: (0.0, 1e-3) if layer.name not in wanted else (1e-3, 0.0) for layer in undecided_layers(network)}, tensors)
        chosen = best_layouts(network, times)
        assert {layer.name for layer in undecided_layers(network)} & chosen == wanted
        result = to_channels_last(network, True, chosen)
        validate(result)
        assert_same(network, result, 1e-4)
        assert len(reformats(result)) == count
