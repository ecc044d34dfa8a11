"""The whole pipeline: options, records, random networks, real architectures, speed."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusion.rules
from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Literal, apply
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import (
    Concatenation,
    Convolution,
    MatrixMultiply,
    Normalization,
    Padding,
    Pooling,
    Reduce,
    Shuffle,
    Slice,
    Softmax,
)
from fusion.passes import OPTIONAL, PASSES, RULES, FusionOptions, optimize
from fusion.reference import run
from fusion.rewrite import LAYOUT_RULES, VIEW_RULES, Rule
from fusion.validation import validate
from tests.fusion.fates import check_fates
from tests.fusion.fusing import kinds
from tests.fusion.networks import X0, X1, X2, Build, assert_same, random_inputs
from tests.models import light

OPTIONS = [
    FusionOptions(),
    FusionOptions(device="cuda"),
    FusionOptions(disabled=("all",)),
    FusionOptions(disabled=("all",), device="cuda"),
    FusionOptions(functions=2, operands=3),
]


def residual_network() -> Network:
    build = Build()
    x = build.input("x", symbol("batch"), 3, 8, 8)
    for index in range(3):
        channels = 3 if index == 0 else 8
        w = build.constant(f"w{index}", (8, channels, 3, 3))
        y = build.layer(f"conv{index}", Convolution((1, 1), (1, 1), (1, 1), (1, 1)), x, w)
        scale = apply("add", apply("mul", X0, X1), X2)
        y = build.pointwise(
            f"bn{index}", scale, y, build.constant(f"s{index}", (8, 1, 1)), build.constant(f"t{index}", (8, 1, 1))
        )
        if index:
            y = build.pointwise(f"add{index}", "add", y, x)
        x = build.pointwise(f"relu{index}", "relu", y)
    x = build.layer("mean", Reduce("mean", (2, 3), True), x)
    x = build.layer("flatten", Shuffle(reshape=(symbol("batch"), 8)), x)
    x = build.layer("fc", MatrixMultiply(), x, build.constant("fc.w", (8, 5)))
    x = build.pointwise("fc_bias", "add", x, build.constant("fc.b", (5,)))
    return build.network(build.layer("softmax", Softmax(1), x))


SIZES = {"batch": 2}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_keep_the_results(options: FusionOptions) -> None:
    network = residual_network()
    result = optimize(network, options)
    validate(result.network)
    assert set(result.network.fates) == set(network.fates)
    assert_same(network, result.network, 1e-4, SIZES)


def test_a_residual_network_on_a_gpu() -> None:
    result = optimize(residual_network(), FusionOptions(device="cuda"))
    assert [layer.name for layer in result.network.layers] == [
        "conv0 + bn0 + relu0",
        "conv1 + bn1 + add1 + relu1",
        "conv2 + bn2 + add2 + relu2",
        "mean",
        "flatten",
        "fc + fc_bias",
        "softmax",
    ]
    assert result.counts["convolution-scale"] == 3
    assert result.counts["convolution-sum"] == 2
    assert result.counts["reduce-pooling"] == 1
    assert result.network.layers[0].op.input_channels_last is False


def test_switching_off_one_rule_at_one_node() -> None:
    result = optimize(residual_network(), FusionOptions(disabled=("convolution-activation@relu1", "pointwise")))
    names = [layer.name for layer in result.network.layers]
    assert "conv0 + bn0 + relu0" in names
    assert "conv1 + bn1 + add1" in names
    miss, *_ = result.misses["relu1"]
    assert miss.condition == "disabled"
    assert miss.rule == "convolution-activation"


def test_rows_behind_a_softmax_are_regrouped_once() -> None:
    """A product with weights of no batch: reshape-rows moves its reshape before it, and reshape-batch must not move it back."""
    build = Build()
    x = build.layer("softmax", Softmax(0), build.input("x", 2, 4, 6, 6))
    y = build.layer("product", MatrixMultiply(), x, build.constant("w", (6, 3)))
    network = build.network(build.layer("rows", Shuffle(reshape=(8, 6, 3)), y))
    result = optimize(network).network
    assert [type(layer.op) for layer in result.layers] == [Softmax, Shuffle, MatrixMultiply]
    assert_same(network, result)


@pytest.mark.parametrize("item", ["convolution_activation", "convolution-activaton", "relu@conv1"])
def test_rules_that_do_not_exist_are_refused(item: str) -> None:
    with pytest.raises(ValueError, match=r"convolution-activation|relu-relu"):
        optimize(residual_network(), FusionOptions(disabled=(item,)))


def test_optional_rules_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="no-op"):
        optimize(residual_network(), FusionOptions(enabled=("no-op",)))


def test_misses_name_layers_of_the_result() -> None:
    result = optimize(residual_network(), FusionOptions(device="cuda", disabled=("all",)))
    assert result.misses
    assert set(result.misses) <= {layer.name for layer in result.network.layers}


def test_the_result_is_the_same_every_time() -> None:
    first, second = (optimize(residual_network(), FusionOptions(device="cuda")).network for _ in range(2))
    assert first.layers == second.layers


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_a_second_time_changes_nothing(options: FusionOptions) -> None:
    once = optimize(residual_network(), options).network
    again = optimize(once, options).network
    assert [layer.op for layer in again.layers] == [layer.op for layer in once.layers]
    assert [layer.name for layer in again.layers] == [layer.name for layer in once.layers]


def test_every_rule_file_is_in_the_pipeline_and_states_its_equation() -> None:
    found = []
    for module in pkgutil.iter_modules(fusion.rules.__path__):
        if module.name.startswith("_"):
            continue
        rule = importlib.import_module(f"fusion.rules.{module.name}").RULE
        assert isinstance(rule, Rule)
        assert rule.name == module.name.replace("_", "-")
        assert RULES[rule.name] is rule
        assert "->" in rule.equation
        found.append(rule.name)
    assert set(found) == set(RULES)
    assert len({rule.name for rule in OPTIONAL} & {rule.name for _, rules in PASSES for rule in rules}) == 0


# --- random networks -------------------------------------------------------------------------------------------------

UNARY = ["relu", "sigmoid", "tanh", "abs", "neg", "square", "softplus", "exp"]
BINARY = ["add", "mul", "sub", "max", "min"]


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Images and rows through a random graph of the operations that rules know."""
    build = Build(draw(st.integers(0, 99)))
    pool = [build.input("x", 2, 4, 6, 6), build.input("y", 2, 4, 6, 6)]
    for index in range(draw(st.integers(3, 14))):
        x = draw(st.sampled_from(pool[-4:]))
        shape = build.tensors[x].shape
        kind = draw(st.sampled_from(["conv", "unary", "binary", "constant", "literal", "pool", "shuffle", "reduce", "slice", "concat", "pad", "norm", "softmax", "product"]))  # fmt: skip
        name = f"{kind}{index}"
        rank = len(shape)
        if kind == "conv" and rank == 4 and shape[2] >= 1:
            out, window = draw(st.sampled_from([1, 4, 6])), draw(st.sampled_from([1, 3]))
            pad = (window // 2,) * 2
            w = build.random.standard_normal((out, shape[1], window, window)).astype(np.float32) * 0.3
            y = build.layer(name, Convolution((1, 1), pad, pad, (1, 1)), x, build.constant(f"{name}.w", w))
        elif kind == "unary":
            y = build.pointwise(name, draw(st.sampled_from(UNARY)), x)
        elif kind == "binary":
            same = [tensor for tensor in pool if build.tensors[tensor].shape == shape]
            y = build.pointwise(name, draw(st.sampled_from(BINARY)), x, draw(st.sampled_from(same)))
        elif kind == "constant":
            full = draw(
                st.sampled_from([shape, (shape[-1],), (1,) * rank, (shape[1], *(1,) * (rank - 2)), (1, *shape[1:])])
            )
            y = build.pointwise(name, draw(st.sampled_from(BINARY)), x, build.constant(f"{name}.c", full))  # type: ignore[arg-type]
        elif kind == "literal":
            value = draw(st.sampled_from([0.0, 1.0, 0.5, -2.0]))
            y = build.pointwise(name, apply(draw(st.sampled_from(BINARY)), X0, Literal(value, DataType.FLOAT)), x)
        elif kind == "pool" and rank == 4 and shape[2] >= 2 and shape[3] >= 2:
            op = Pooling(draw(st.sampled_from(["max", "average"])), (2, 2), (1, 1), (0, 0), (0, 0), (1, 1))
            y = build.layer(name, op, x)
        elif kind == "shuffle":
            order = tuple(draw(st.permutations(range(rank))))
            flat = draw(st.booleans())
            target = (shape[order[0]], int(np.prod([shape[axis] for axis in order[1:]]))) if flat else None
            y = build.layer(name, Shuffle(order, target), x)
        elif kind == "reduce" and rank >= 2:
            axes = tuple(sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1, max_size=2))))
            y = build.layer(name, Reduce(draw(st.sampled_from(["mean", "max"])), axes, True), x)
        elif kind == "slice":
            axis = draw(st.integers(0, rank - 1))
            size = max(1, shape[axis] - 1)
            sizes = tuple(size if a == axis else dim for a, dim in enumerate(shape))
            y = build.layer(name, Slice((0,) * rank, sizes, (1,) * rank), x)
        elif kind == "concat":
            y = build.layer(name, Concatenation(draw(st.integers(0, rank - 1))), x, x)
        elif kind == "pad":
            amounts = tuple(draw(st.integers(0, 1)) if axis >= 2 else 0 for axis in range(rank))
            y = build.layer(name, Padding(amounts, amounts), x)
        elif kind == "norm":
            y = build.layer(name, Normalization((rank - 1,), 1e-2), x)
        elif kind == "softmax":
            y = build.layer(name, Softmax(draw(st.integers(0, rank - 1))), x)
        elif kind == "product" and rank >= 2:
            w = build.random.standard_normal((shape[-1], 5)).astype(np.float32) * 0.3
            y = build.layer(name, MatrixMultiply(), x, build.constant(f"{name}.w", w))
        else:
            continue
        # Keep magnitudes tame: results are compared in relative terms, but exp of exp overflows.
        y = build.pointwise(f"{name}_tame", "tanh", y) if draw(st.integers(0, 2)) == 0 else y
        if int(np.prod(build.tensors[y].shape)) <= 4096:
            pool.append(y)
    outputs = draw(st.lists(st.sampled_from(pool[2:] or pool), min_size=1, max_size=2, unique=True))
    return build.network(*outputs)


@given(networks(), st.sampled_from(OPTIONS))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_random_networks_keep_their_results(network: Network, options: FusionOptions) -> None:
    result = optimize(network, options).network
    validate(result)
    inputs = random_inputs(network)
    with np.errstate(all="ignore"):
        expected, found = run(network, inputs), run(result, inputs)
    for name in network.outputs:
        if np.isfinite(expected[name]).all() and np.abs(expected[name]).max(initial=0) < 1e4:
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, atol=2e-3)


@given(networks(), st.sampled_from([DataType.HALF, DataType.BF16]), st.sampled_from(["cpu", "cuda"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_random_networks_have_narrow_versions(network: Network, precision: DataType, device: str) -> None:
    """Valid, and close where nothing in the network amplifies rounding: judged by the median output."""
    result = optimize(network, FusionOptions(precision=precision, device=device)).network
    validate(result)
    inputs = random_inputs(network)
    with np.errstate(all="ignore"):
        expected, found = run(network, inputs), run(result, inputs)
    for name in network.outputs:
        assert found[name].dtype == expected[name].dtype
        if np.isfinite(expected[name]).all() and np.abs(expected[name]).max(initial=0) < 100:
            assert np.median(np.abs(found[name] - expected[name])) < 0.3


# --- real architectures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, layers", [("squeezenet", 41), ("shufflenet", 100)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_light_models_keep_their_results(name: str, layers: int, device: str) -> None:
    network = import_onnx(light(name))
    result = optimize(network, FusionOptions(device=device))
    validate(result.network)
    assert len(result.network.layers) <= layers
    check_fates(network, result.network)
    assert_same(network, result.network, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50"]  # VGG-19 and ZFNet have no layer that AlexNet has not
)
def test_large_light_models_keep_their_results(name: str) -> None:
    network = import_onnx(light(name))
    inputs = random_inputs(network)
    expected = run(network, inputs)
    for device in ("cpu", "cuda"):
        result = optimize(network, FusionOptions(device=device)).network
        validate(result)
        check_fates(network, result)
        found = run(result, inputs)
        for output in network.outputs:
            error = np.linalg.norm(found[output] - expected[output]) / np.linalg.norm(expected[output])
            assert error < 1e-4


def test_resnet50_is_convolutions() -> None:
    network = import_onnx(light("resnet50"))
    result = optimize(network, FusionOptions(device="cuda"))
    validate(result.network)
    assert kinds(result.network)[-1] == "Softmax"  # torch's ResNet-50 ends before it
    assert len(result.network.layers) - 1 <= 57
    assert result.counts["convolution-scale"] == 53
    assert result.counts["convolution-sum"] == 16
    assert not [layer.name for layer in result.network.layers if "reformat" in layer.fusions]
    assert "Pointwise" not in kinds(result.network)


def test_three_thousand_layers_take_two_seconds() -> None:
    build = Build()
    x = build.input("x", symbol("batch"), 16, 64)
    batch = symbol("batch")
    w = build.constant("w", (64, 64))
    b, g = build.constant("b", (64,)), build.constant("g", (64,))
    index = 0
    while len(build.layers) < 3000:
        y = build.layer(f"fc{index}", MatrixMultiply(), x, w)
        y = build.pointwise(f"bias{index}", "add", b, y)
        y = build.layer(f"view{index}", Shuffle(reshape=(batch, 16, 4, 16)), y)
        y = build.layer(f"heads{index}", Shuffle((0, 2, 1, 3)), y)
        y = build.layer(f"softmax{index}", Softmax(3), build.pointwise(f"exp{index}", "exp", y))
        y = build.layer(f"back{index}", Shuffle((0, 2, 1, 3)), y)
        y = build.layer(f"merge{index}", Shuffle(reshape=(batch, 16, 64)), y)
        y = build.pointwise(f"sigmoid{index}", "sigmoid", y)
        y = build.pointwise(f"gate{index}", "mul", y, x)
        mean = build.layer(f"mean{index}", Reduce("mean", (2,), True), y)
        y = build.pointwise(f"centre{index}", "sub", y, mean)
        x = build.pointwise(f"scale{index}", "mul", y, g)
        index += 1
    network = build.network(x)
    pairs = []
    for _ in range(3):  # the best of three: other tests run beside this one
        start = time.process_time()
        result = optimize(network).network
        middle = time.process_time()
        counts: dict[int, int] = {}
        for number in range(2_000_000):
            counts[number % 1000] = counts.get(number % 1000, 0) + 1
        pairs.append((middle - start, time.process_time() - middle))
        if pairs[-1][0] < 6.5 * pairs[-1][1]:
            break
    # 1.6 s where the loop above takes 0.25, as on the machines that we develop on; machines under load are slower at both.
    assert min(taken / loop for taken, loop in pairs) < 6.5
    assert len(result.layers) < 0.6 * len(network.layers)


def fan_out(readers: int) -> Network:
    """One tensor, and ``readers`` branches that scale it, each by a number of its own."""
    build = Build()
    x = build.pointwise("x", "tanh", build.input("in", symbol("batch"), 4, 8))
    branches = []
    for index in range(readers):
        scaled = build.pointwise(f"scale{index}", apply("mul", X0, Literal(index + 0.5, DataType.FLOAT)), x)
        branches.append(build.pointwise(f"relu{index}", "relu", scaled))
    return build.network(build.layer("join", Concatenation(1), *branches))


def test_many_readers_of_one_tensor_take_linear_time() -> None:
    """Twelve times the branches take twelve times the time; where each layer looks at all others it is more than forty times."""
    few, many = fan_out(50), fan_out(600)
    optimize(few)  # what the first network alone pays for
    ratios = []
    for _ in range(3):  # the best of three: other tests run beside this one
        start = time.process_time()
        optimize(few)
        middle = time.process_time()
        result = optimize(many).network
        ratios.append((time.process_time() - middle) / (middle - start))
        if ratios[-1] < 24:
            break
    assert min(ratios) < 24
    assert len(result.layers) == 602


def test_equal_layers_among_many_readers_are_one() -> None:
    build = Build()
    x = build.pointwise("x", "tanh", build.input("in", 4, 8))
    branches = [build.layer(f"rows{index}", Reduce("max", (index % 3 % 2,), True), x) for index in range(30)]
    network = build.network(*[build.pointwise(f"sum{index}", "add", x, branch) for index, branch in enumerate(branches)])
    result = optimize(network, FusionOptions(disabled=("reduce-pointwise",)))
    assert sum(isinstance(layer.op, Reduce) for layer in result.network.layers) == 2
    assert result.counts["common-subexpression"] >= 28
    assert_same(network, result.network)


def test_the_documentation_lists_every_rule() -> None:
    text = (Path(__file__).parents[2] / "docs" / "fusions.md").read_text(encoding="utf-8")
    table = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z0-9-]+)`", line.split("|")[1])
    }
    assert table == {*RULES, *VIEW_RULES, *LAYOUT_RULES}


def test_the_documentation_has_every_equation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "fusions.md").read_text(encoding="utf-8")
    section = text.split("## Equations\n")[1].split("\n## ")[0]
    assert dict(re.findall(r"^- `([a-z0-9-]+)`: (.*)$", section, re.MULTILINE)) == {name: rule.equation for name, rule in RULES.items()}


def test_all_rules_can_be_switched_off_at_one_layer() -> None:
    everywhere = optimize(residual_network())
    at_relu1 = optimize(residual_network(), FusionOptions(disabled=("all@relu1",)))
    assert any("relu1" in layers.layers for layers in everywhere.applied)
    assert not any("relu1" in layers.layers for layers in at_relu1.applied)
    assert at_relu1.applied, "other layers still fuse"
