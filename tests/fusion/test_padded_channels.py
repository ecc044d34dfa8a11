"""Channels padded in memory: the network means the same, and what padding channels hold never reaches a real one."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply
from fusion.network import Network
from fusion.ops import (
    Concatenation,
    Convolution,
    Deconvolution,
    MatrixMultiply,
    Normalization,
    Padding,
    Pointwise,
    Pooling,
    Reduce,
    Resize,
    Shuffle,
    Slice,
    Softmax,
)
from fusion.padded_channels import ROW, RULE, PaddedNetwork, pad_channels, paddable
from fusion.reference import run
from fusion.validation import validate
from tests.fusion.networks import Build, assert_same, random_inputs

X, Y, Z = Operand(0), Operand(1), Operand(2)


def convolution(build: Build, name: str, x: str, channels: int, taps: int = 3, epilogue: Expression = X, extras: tuple[str, ...] = (), groups: int = 1, **op: object) -> str:
    inside = int(build.tensors[x].shape[-1])  # type: ignore[arg-type]
    values = build.random.standard_normal((channels, inside // groups, taps, taps)) / (inside // groups * taps * taps) ** 0.5
    weights = build.constant(f"{name}.w", values.astype(np.float32))
    pads = (taps // 2,) * 2
    made = Convolution(**{"stride": (1, 1), "pre_padding": pads, "post_padding": pads, "dilation": (1, 1), "groups": groups, "channels_last": True, "epilogue": epilogue, **op})  # type: ignore[arg-type]
    return build.layer(name, made, x, weights, *extras)


def padded(network: Network, wanted: tuple[str, ...] | None = None, tolerance: float = 2e-5) -> PaddedNetwork:
    """``network`` with all padded that can be, after the checks that hold for any."""
    found = pad_channels(network, paddable(network) if wanted is None else wanted)
    validate(found.network)
    assert_same(network, found.network, tolerance)
    assert found.network.inputs == network.inputs and found.network.outputs == network.outputs
    values = run(found.network, random_inputs(network), keep=True)
    for name, one in found.held.items():
        kind = found.network.tensors[name]
        assert kind.shape[-1] == one.size and not one.size * kind.dtype.itemsize % ROW
        lanes = np.delete(values[name], one.places, axis=-1)
        np.testing.assert_array_equal(lanes, np.broadcast_to(np.asarray(one.fill).astype(lanes.dtype), lanes.shape), err_msg=name)
    return found


def test_scales_of_channels_that_a_pooling_reads_keep_it_without_padding() -> None:
    build = Build()
    a = convolution(build, "a", build.input("x", 2, 6, 8, 16), 21)
    pool = Pooling("average", (6, 8), (1, 1), (0, 0), (0, 0), (1, 1), channels_last=True, prologue=apply("relu", apply("mul", X, Y)), operands=1)
    p = build.layer("p", pool, a, build.constant("s", (21,)))
    network = build.network(convolution(build, "c", p, 24, 1))
    found = padded(network)
    assert next(layer for layer in found.network.layers if layer.name == "p").op == pool and "a:out" in found.held


def with_garbage(found: PaddedNetwork, inputs: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The outputs when padding channels hold any numbers instead of those that they hold."""
    from fusion.bind import bind_op
    from fusion.reference import sizes_of

    values, noise = {**found.network.constants, **inputs}, np.random.default_rng(seed)
    for layer in found.network.layers:
        made = bind_op(layer.op, sizes_of(found.network, inputs)).evaluate([values[name] for name in layer.inputs])
        for name, value in zip(layer.outputs, made, strict=True):
            if name in found.held:
                beside = np.setdiff1d(np.arange(found.held[name].size), found.held[name].places)
                value = value.copy()
                value[..., beside] = noise.uniform(0, 100, (*value.shape[:-1], len(beside)))
            values[name] = value
    return {name: values[name] for name in found.network.outputs}


def test_convolutions_between_odd_channels() -> None:
    build = Build()
    x = build.input("x", 2, 6, 5, 16)
    a = convolution(build, "a", x, 37, epilogue=apply("relu", apply("add", X, Y)), extras=(build.constant("bias", (37,)),))
    b = convolution(build, "b", a, 91, taps=1)
    network = build.network(convolution(build, "c", b, 21))
    assert paddable(network) == ("a:out", "b:out")
    found = padded(network)
    assert {name: (len(one.places), one.size) for name, one in found.held.items()} == {"a:out": (37, 40), "b:out": (91, 92)}
    assert [layer.name for layer in found.network.layers] == ["a", "b", "c"] and all(RULE in layer.fusions for layer in found.network.layers)
    assert found.network.constants["a.w padded to 40"].shape == (40, 16, 3, 3) and "a.w" not in found.network.constants
    assert found.network.constants["c.w padded from 92"].shape == (21, 92, 3, 3)
    assert found.born == {"a:out": "a:out", "b:out": "b:out"}


@pytest.mark.parametrize(("dtype", "held"), [(DataType.FLOAT, 40), (DataType.HALF, 40), (DataType.BF16, 40), (DataType.INT8, 48)])
def test_rows_are_multiples_of_16_bytes_whatever_the_type(dtype: DataType, held: int) -> None:
    build, narrow = Build(), dtype.numpy
    x = build.input("x", 1, 5, 4, 16, dtype=dtype)
    values = [(build.random.integers(-4, 5, shape)).astype(narrow) for shape in ((37, 16, 3, 3), (8, 37, 1, 1))]
    w, v = (build.constant(name, value) for name, value in zip("wv", values, strict=True))
    epilogue = Convert(dtype, apply("min", apply("max", X, Literal(-50, DataType.INT32)), Literal(50, DataType.INT32))) if dtype is DataType.INT8 else X
    op = Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, True, epilogue)
    a = build.layer("a", op, x, w)
    network = build.network(build.layer("b", Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True), a, v))
    assert padded(network, tolerance=1e-2).held["a:out"].size == held


def test_networks_outputs_inputs_and_fitting_channels_stay() -> None:
    build = Build()
    x = build.input("x", 1, 4, 4, 16)
    network = build.network(convolution(build, "b", convolution(build, "a", x, 24), 37))
    assert paddable(network) == () and pad_channels(network, ()).network is network
    first = replace(network, layers=tuple(replace(one, op=replace(one.op, channels_last=False)) for one in network.layers))
    assert paddable(first) == (), "channels-first tensors have no rows of channels"


def test_what_no_convolution_made_is_copied_for_its_reader() -> None:
    build = Build()
    x = build.input("x", 2, 4, 4, 21)
    y = build.pointwise("y", "tanh", x)
    network = build.network(convolution(build, "a", x, 8), convolution(build, "b", x, 8), y)
    found = padded(network)
    assert [layer.name for layer in found.network.layers] == ["y", "pad x for a", "a", "b"]
    assert found.network.layers[1].fusions == ("reformat", RULE) and found.born == {"x padded": "x"}


def test_layers_between_carry_the_padding_along() -> None:
    build = Build()
    x = build.input("x", 2, 8, 8, 16)
    a = convolution(build, "a", x, 37, epilogue=apply("sigmoid", X))
    p = build.layer("p", Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True), a)
    q = build.layer("q", Pooling("average", (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), channels_last=True), a)
    d = convolution(build, "d", p, 37, groups=37, epilogue=apply("relu", apply("add", X, Y)), extras=(q,))
    r = build.layer("r", Resize((2, 8, 8, 37), (1.0, 2.0, 2.0, 1.0), "linear"), d)
    s = build.layer("s", Reduce("mean", (1, 2), True), r)
    m = build.pointwise("m", apply("mul", apply("add", X, Y), Z), r, s, build.constant("scale", (1, 1, 1, 37)))
    u = build.layer("u", Deconvolution((2, 2), (0, 0), (0, 0), (1, 1), (0, 0), 1, True), m, build.constant("u.w", (37, 21, 2, 2)))
    network = build.network(convolution(build, "y", u, 8))
    found = padded(network)
    assert len(found.network.layers) == len(network.layers), "nothing is copied"
    assert set(found.held) == {f"{name}:out" for name in "apqdrsmu"}
    assert found.held["p:out"].fill == (0.5, 0.5, 0.5) and found.held["u:out"].size == 24
    assert next(one for one in found.network.layers if one.name == "d").op.groups == 40  # type: ignore[attr-defined]


def test_joined_channels_have_gaps() -> None:
    build = Build()
    x = build.input("x", 1, 5, 5, 16)
    a, b, c = (convolution(build, name, x, channels) for name, channels in (("a", 37), ("b", 24), ("c", 21)))
    j = build.layer("j", Concatenation(3), a, b, c)
    network = build.network(convolution(build, "y", j, 8), build.pointwise("z", "neg", j))
    found = padded(network)
    assert found.held["j:out"].runs == [(0, 37), (40, 45)] and found.held["j:out"].size == 88
    names = [layer.name for layer in found.network.layers if layer.name.startswith("unpad")]
    assert len(names) == 3, "the other reader has two slices joined"
    # A part that cannot be padded would put those behind it anywhere.
    build = Build()
    x = build.input("x", 1, 5, 5, 21)
    j = build.layer("j", Concatenation(3), convolution(build, "a", x, 37), build.pointwise("t", "tanh", x))
    found = padded(build.network(convolution(build, "y", j, 8)), ("a:out",))
    assert "j:out" not in found.held and any(layer.name == "unpad a:out for j" for layer in found.network.layers)


def test_whoever_cannot_carry_padding_reads_the_real_channels() -> None:
    build = Build()
    x = build.input("x", 2, 4, 4, 16)
    a = convolution(build, "a", x, 37)
    outputs = [
        build.layer("softmax", Softmax(3), a), build.layer("sum", Reduce("sum", (3,), False), a),
        build.layer("slice", Slice((0, 0, 0, 3), (2, 4, 4, 20), (1, 1, 1, 1)), a), build.pointwise("sin", "sin", a), convolution(build, "c", a, 8),
        convolution(build, "groups", a, 37, groups=37, dilation=(2, 2)),
    ]  # fmt: skip
    found = padded(build.network(*outputs))
    slices = [layer for layer in found.network.layers if layer.name.startswith("unpad")]
    assert [layer.name for layer in slices] == ["unpad a:out for softmax"] and slices[0].op.sizes == (2, 4, 4, 37)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("epilogue", "held"),
    [
        (apply("div", X, Y), (0.0, 0.0, 0.0)),  # ones in the padding of the constant
        (apply("add", X, Y), (0.0, 0.0, 0.0)),
        (apply("log", X), None),
        (apply("exp", apply("add", X, Literal(9.0, DataType.FLOAT))), None),  # 8103: too large to be sure of
        (apply("div", Literal(1.0, DataType.FLOAT), X), None),
        (apply("cos", X), (1.0, 1.0, 1.0)),
    ],
)  # fmt: skip
def test_padding_stays_finite_and_known(epilogue: Expression, held: tuple[float, ...] | None) -> None:
    build = Build()
    x = build.input("x", 1, 4, 4, 16)
    extras = (build.constant("c", build.random.uniform(0.5, 2, 37).astype(np.float32)),) if epilogue in (apply("div", X, Y), apply("add", X, Y)) else ()
    network = build.network(convolution(build, "b", convolution(build, "a", x, 37, epilogue=epilogue, extras=extras), 8))
    found = pad_channels(network, ("a:out",))
    if held is None:  # it is dense, and copied for its reader
        assert [layer.name for layer in found.network.layers] == ["a", "pad a:out for b", "b"]
    else:
        assert padded(network).held["a:out"].fill == held


@pytest.mark.parametrize(("two", "fits"), [("mul", True), ("add", False)])
def test_operands_that_only_an_inference_tells(two: str, fits: bool) -> None:
    """A map of one channel scales padding to zero; what it adds nobody knows."""
    build = Build()
    x = build.input("x", 1, 4, 4, 16)
    one = build.input("one", 1, 4, 4, 1)
    a = convolution(build, "a", x, 37, epilogue=apply(two, X, Y), extras=(one,))
    found = padded(build.network(convolution(build, "b", a, 8)))
    assert ("a:out" in found.held) == fits


def test_a_residual_that_is_not_padded() -> None:
    build = Build()
    x, other = build.input("x", 1, 4, 4, 16), build.input("r", 1, 4, 4, 37)
    a = convolution(build, "a", x, 37, epilogue=apply("add", X, Y), extras=(other,))
    found = padded(build.network(convolution(build, "b", a, 8)))
    assert "a:out" not in found.held and found.born == {"a:out padded": "a:out"}


def test_padding_of_the_image_and_averages_that_count_it() -> None:
    build = Build()
    x = build.input("x", 1, 5, 5, 16)
    ends = ((0, 1, 1, 0), (0, 1, 1, 0))
    a = convolution(build, "a", x, 37)
    s = convolution(build, "s", x, 37, epilogue=apply("sigmoid", X))
    ops = {"zeros": Padding(*ends), "ones": Padding(*ends, value=1.0), "edge": Padding(*ends, mode="edge"),
           "counted": Pooling("average", (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), count_include_pad=True, channels_last=True)}  # fmt: skip
    names = {f"{op}.{source}": build.layer(f"{op}.{source}", one, kind) for op, one in ops.items() for source, kind in (("a", a), ("s", s))}
    network = build.network(*(convolution(build, f"y.{name}", tensor, 8) for name, tensor in names.items()))
    found = padded(network, ("a:out", "s:out"))
    carried = {name for name in names if f"{name}:out" in found.held}
    assert carried == {"zeros.a", "edge.a", "edge.s", "counted.a"}


def test_slices_of_padded_channels() -> None:
    """What a split halves is laid out as two padded halves; parts of joined channels are cut out as they were put in."""
    build = Build()
    x = build.input("x", 1, 6, 5, 16)
    a = convolution(build, "a", x, 74, epilogue=apply("sigmoid", X))
    p, q = (build.layer(name, Slice((0, 0, 0, start), (1, 6, 5, 37), (1, 1, 1, 1)), a) for name, start in (("p", 0), ("q", 37)))
    b = convolution(build, "b", q, 37)
    j = build.layer("j", Concatenation(3), p, q, b)
    top = build.layer("top", Slice((0, 1, 0, 0), (1, 3, 5, 111), (1, 2, 1, 1)), j)
    odd = build.layer("odd", Slice((0, 0, 0, 30), (1, 6, 5, 20), (1, 1, 1, 1)), j)
    network = build.network(convolution(build, "y", top, 8), convolution(build, "z", odd, 8), convolution(build, "w", p, 8))
    found = padded(network)
    assert found.held["a:out"].runs == [(0, 37), (40, 37)] and found.held["a:out"].fill == (0.5,) * 6
    assert found.held["q:out"] == found.held["p:out"] and found.held["q:out"].fill == (0.5,) * 3
    assert found.held["top:out"].size == 120 and "odd:out" not in found.held
    assert not [layer.name for layer in found.network.layers if layer.name.startswith("unpad") and "odd" not in layer.name]


def test_reshapes_and_normalisations_that_leave_rows_alone() -> None:
    build = Build()
    x = build.input("x", 2, 6, 5, 16)
    a = convolution(build, "a", x, 37)
    n = build.layer("n", Normalization((1, 2), 1e-5, True, apply("add", apply("mul", X, Y), Z)), a, build.constant("g", (37,)), build.constant("h", (37,)))
    r = build.layer("r", Shuffle((2, 0, 1, 3), (5, 12, 37), (1, 0, 2)), n)
    m = build.layer("m", Reduce("mean", (1,), False), r)
    other = build.layer("other", Shuffle((0, 3, 1, 2)), n)
    network = build.network(build.layer("y", MatrixMultiply(), m, build.constant("w", (37, 8))), build.pointwise("z", "tanh", other))
    found = padded(network)
    assert set(found.held) == {f"{name}:out" for name in "anrm"}
    assert [layer.name for layer in found.network.layers] == ["a", "n", "r", "m", "unpad n:out for other", "other", "y", "z"]


@pytest.mark.parametrize("transpose_b", [False, True])
def test_matrix_products(transpose_b: bool) -> None:
    build = Build()
    x = build.input("x", 3, 7, 13)

    def product(name: str, a: str, columns: int, epilogue: Expression = X, *extras: str) -> str:
        rows = int(build.tensors[a].shape[-1])  # type: ignore[arg-type]
        return build.layer(name, MatrixMultiply(False, transpose_b, epilogue), a, build.constant(f"{name}.w", (columns, rows) if transpose_b else (rows, columns)), *extras)

    a = product("a", x, 37, apply("gelu", apply("add", X, Y)), build.constant("bias", (37,)))
    b = product("b", a, 37, apply("add", X, Y), a)
    n = build.layer("n", Normalization((2,), 1e-5, True), b)
    network = build.network(product("y", n, 24), build.layer("q", MatrixMultiply(True), b, b), product("z", b, 21))
    found = padded(network)
    assert [layer.name for layer in found.network.layers] == ["pad x for a", "a", "b", "unpad b:out for n", "n", "pad n:out for y", "y", "q", "z"]
    assert {name: one.size for name, one in found.held.items()} == {"x padded": 16, "a:out": 40, "b:out": 40, "n:out padded": 40}


def test_no_layer_is_left_that_nobody_reads() -> None:
    """Depthwise convolutions that cannot take padding: one writes a network output, the other adds what is not padded."""
    build = Build()
    x, other = build.input("x", 1, 4, 4, 37), build.input("r", 1, 4, 4, 37)
    network = build.network(convolution(build, "a", x, 37, groups=37), convolution(build, "y", convolution(build, "b", other, 37, 3, apply("add", X, Y), (x,), 37), 8))
    found = padded(network)
    assert [layer.name for layer in found.network.layers] == ["a", "b", "pad b:out for y", "y"]
    assert set(found.held) == {"b:out padded"} and found.born == {"b:out padded": "b:out"}


def test_any_batch_and_size() -> None:
    build = Build()
    x = build.input("x", symbol("n"), symbol("h"), 5, 16)
    a = convolution(build, "a", x, 37)
    p = build.layer("p", Pooling("max", (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), channels_last=True), a)
    network = build.network(convolution(build, "b", p, 8), build.layer("softmax", Softmax(3), p))
    found = pad_channels(network, paddable(network))
    assert found.network.tensors["p:out"].shape[-1] == 40
    assert_same(network, found.network, 2e-5, {"n": 3, "h": 7})


def test_weights_and_constants_that_several_layers_share() -> None:
    build = Build()
    x = build.input("x", 1, 4, 4, 37)
    w, c = build.constant("w", (37, 37, 1, 1)), build.constant("c", (37,))
    op = Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True, apply("div", X, Y))
    a = build.layer("a", op, x, w, c)
    b = build.layer("b", replace(op, epilogue=apply("add", X, Y)), a, w, c)
    network = build.network(build.layer("y", op, b, w, c))
    found = padded(network, ("a:out", "b:out"))
    assert set(found.network.constants) == {"w padded to 40", "w padded to 40 from 40", "w padded from 40", "c padded to 40 with 0", "c padded to 40 with 1", "c"}


ONE = ("relu", "tanh", "sigmoid", "abs", "softplus", "neg", "gelu", "hard_swish", "cos")
TWO = ("add", "sub", "mul", "min", "max")


def _random_network(pick: random.Random) -> Network:
    build = Build(pick.randrange(1 << 30))
    counts = [pick.randrange(2, 40) for _ in range(3)]
    images = [build.input("x", 2, 5, 4, pick.choice(counts))]
    for number in range(pick.randint(3, 9)):
        x = pick.choice(images[-3:])
        channels, name = int(build.tensors[x].shape[-1]), f"l{number}"  # type: ignore[arg-type]
        alike = [one for one in images if build.tensors[one].shape == build.tensors[x].shape]
        kind = pick.choice(("convolution", "convolution", "product", "depthwise", "one", "two", "constant", "pooling", "joined", "scaled", "turned", "cut", "softmax"))
        if kind == "convolution":
            out = pick.choice(counts)
            same = [one for one in images if build.tensors[one].shape[-1] == out]
            if same and pick.random() < 0.5:
                made = convolution(build, name, x, out, pick.choice((1, 3)), apply(pick.choice(ONE), apply("add", X, Y)), (pick.choice(same),))
            else:
                made = convolution(build, name, x, out, pick.choice((1, 3)), apply(pick.choice(ONE), apply(pick.choice(TWO), X, Y)), (build.constant(f"{name}.c", (out,)),))
        elif kind == "product":
            made = build.layer(name, MatrixMultiply(False, True, apply(pick.choice(ONE), X)), x, build.constant(f"{name}.w", (pick.choice(counts), channels)))
        elif kind == "depthwise":
            made = convolution(build, name, x, channels, 3, pick.choice((X, apply(pick.choice(ONE), X))), groups=channels)
        elif kind == "one":
            made = build.pointwise(name, pick.choice(ONE), x)
        elif kind == "two":
            made = build.pointwise(name, pick.choice(TWO), x, pick.choice(alike))
        elif kind == "constant":
            made = build.pointwise(name, apply(pick.choice(TWO), X, Y), x, build.constant(f"{name}.c", pick.choice(((channels,), (1, 1, 1, channels), (1,)))))
        elif kind == "pooling":
            made = build.layer(name, Pooling(pick.choice(("max", "average")), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), channels_last=True,
                                             count_include_pad=pick.random() < 0.5), x)  # fmt: skip
        elif kind == "joined":
            made = build.layer(name, Concatenation(pick.choice((1, 3, 3))), x, pick.choice(alike))
            if build.tensors[made].shape[1] != 5:
                made = build.layer(f"{name}.cut", Slice((0, 2, 0, 0), (2, 5, 4, channels), (1, 1, 1, 1)), made)
        elif kind == "scaled":
            made = build.pointwise(name, "mul", x, build.layer(f"{name}.mean", Reduce(pick.choice(("mean", "max", "sum")), (1, 2), True), x))
        elif kind == "turned":
            made = build.layer(name, Shuffle(None, (2, 4, 5, channels), (0, 2, 1, 3)), x)
        elif kind == "cut":
            first = pick.randrange(channels)
            made = build.layer(name, Slice((0, 0, 0, first), (2, 5, 4, pick.randint(1, channels - first)), (1, 1, 1, 1)), x)
        else:
            made = build.layer(name, Softmax(3), x)
        images.append(made)
    return build.network(*dict.fromkeys((images[-1], pick.choice(images[1:]), convolution(build, "last", images[-1], 8))))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30))
def test_random_networks_mean_the_same(seed: int) -> None:
    pick = random.Random(seed)
    network = _random_network(pick)
    wanted = tuple(name for name in paddable(network) if pick.random() < 0.8)
    inputs = random_inputs(network)
    plain = run(network, inputs, keep=True)
    if any(not np.isfinite(value).all() or np.abs(value).max(initial=0) > 300 for value in plain.values()):
        return  # the cosine of large numbers is all rounding
    plain = {name: plain[name] for name in network.outputs}
    found = pad_channels(network, wanted)
    validate(found.network)
    values = run(found.network, inputs, keep=True)
    for name, one in found.held.items():
        lanes = np.delete(values[name], one.places, axis=-1)
        np.testing.assert_allclose(lanes, np.broadcast_to(one.fill, lanes.shape), rtol=1e-5, atol=1e-6, err_msg=name)
    for results in (values, with_garbage(found, inputs, seed)):
        for name, wanted_value in plain.items():
            np.testing.assert_allclose(results[name], wanted_value, rtol=2e-5, atol=2e-5 * np.abs(wanted_value).max(initial=1e-3), err_msg=name)


def test_the_step_is_that_of_the_narrowest_tensor() -> None:
    """A tensor keeps its padding through a cast: 4 more channels of float32 would be 8 bytes of float16."""
    build = Build()
    x = build.input("x", 1, 4, 4, 16)
    a = convolution(build, "a", x, 37)
    h = build.layer("h", Pointwise(Convert(DataType.HALF, X)), a)
    weights = build.constant("w", build.random.standard_normal((8, 37, 1, 1)).astype(np.float16))
    network = build.network(build.layer("y", Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True), h, weights))
    assert padded(network, tolerance=1e-2).held["a:out"].size == 40
