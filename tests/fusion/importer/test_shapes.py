"""Arithmetic on shapes at import: it becomes dimensions and leaves no layer; and results do not change."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.parser import parse_model

from fusion.bind import bind_type
from fusion.dims import Sym, bind, symbol
from fusion.importer import import_onnx, ratio
from fusion.network import Network, typical_sizes
from fusion.reference import run
from tests.catalogue import Row
from tests.catalogue import model as row_model
from tests.models import onnxruntime_outputs


def parse(body: str, inputs: str = "float[batch, seq, 12] x", opset: int = 18, output: str = "y", kind: str = "float") -> onnx.ModelProto:
    return parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({kind} {output}) {{ {body} }}')


def constant(name: str, *values: int, scalar: bool = False) -> str:
    return f"{name} = Constant<value_int = {values[0]}>()" if scalar else f"{name} = Constant<value_ints = [{', '.join(map(str, values))}]>()"


def check(model: onnx.ModelProto, layers: list[str], *shapes: tuple[int, ...]) -> Network:
    network = import_onnx(model)
    assert [type(layer.op).__name__ for layer in network.layers] == layers
    for shape in shapes or ((2, 5, 12), (1, 3, 12)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        found, wanted = run(network, {"x": x}), onnxruntime_outputs(model, {"x": x})
        for name, value in wanted.items():
            assert found[name].shape == value.shape
            np.testing.assert_allclose(found[name], value, 1e-5, 1e-6)
    return network


def test_split_heads() -> None:
    """What exporters write for ``x.reshape(batch, seq, heads, -1)``."""
    network = check(parse(f"""
        s = Shape(x) {constant('zero', 0, scalar=True)} {constant('one', 1, scalar=True)} {constant('axis', 0)} {constant('tail', 4, -1)}
        b = Gather<axis = 0>(s, zero) n = Gather<axis = 0>(s, one)
        b1 = Unsqueeze(b, axis) n1 = Unsqueeze(n, axis)
        t = Concat<axis = 0>(b1, n1, tail) y = Reshape(x, t)"""), ["Shuffle"])  # fmt: skip
    assert network.tensors["y"].shape == (symbol("batch"), symbol("seq"), 4, 3)
    kinds = {fate.kind for name, fate in network.fates.items() if not name.startswith("Reshape")}
    assert kinds == {"folded"}


def test_merge_axes_and_back() -> None:
    network = check(parse(f"""
        s = Shape(x) {constant('i', 0, 1)} {constant('m', -1)} {constant('tail', 12)} {constant('k', 2)} {constant('end', 3)} {constant('ax', 0)}
        bn = Gather<axis = 0>(s, i) p = ReduceProd<keepdims = 1>(bn) t = Concat<axis = 0>(p, tail)
        flat = Reshape(x, t) r = Relu(flat) d = Slice(s, k, end, ax) u = Concat<axis = 0>(bn, d) y = Reshape(r, u)"""),
        ["Shuffle", "Pointwise", "Shuffle"])  # fmt: skip
    assert network.tensors["flat"].shape == (symbol("batch") * symbol("seq"), 12)


def test_positions_by_range_and_expand() -> None:
    check(parse(f"""
        s = Shape(x) {constant('one', 1, scalar=True)} {constant('zero', 0, scalar=True)} {constant('ax', 0)} {constant('last', 2)}
        n = Gather<axis = 0>(s, one) r = Range(zero, n, one) f = Cast<to = 1>(r) u = Unsqueeze(f, ax)
        t = Gather<axis = 0>(s, one) b = Gather<axis = 0>(s, zero) b1 = Unsqueeze(b, ax) t1 = Unsqueeze(t, ax)
        sh = Concat<axis = 0>(b1, t1) e = Expand(u, sh) e1 = Unsqueeze(e, last) y = Add(x, e1)"""),
        ["Range", "Pointwise", "Shuffle", "Expand", "Shuffle", "Pointwise"])  # fmt: skip


def test_expand_with_where_and_equal() -> None:
    """torch.expand: minus ones replaced through ConstantOfShape, Mul, Equal and Where."""
    check(parse(f"""
        s = Shape<start = 0, end = 2>(x) {constant('tail', -1)} t = Concat<axis = 0>(s, tail)
        r = Shape(t) ones = ConstantOfShape<value = int64[1] {{1}}>(r) {constant('m', -1)} minus = Mul(ones, m)
        is = Equal(t, minus) final = Where(is, ones, t) w = Constant<value = float[1,1,12] {{1,2,3,4,5,6,7,8,9,10,11,12}}>()
        e = Expand(w, final) y = Mul(x, e)"""), ["Expand", "Pointwise"])  # fmt: skip


def test_float_arithmetic_of_sizes() -> None:
    """Cast, Div, Floor, Ceil: half the length, rounded either way."""
    for function, length in (("Floor", lambda n: n // 2), ("Ceil", lambda n: (n + 1) // 2)):
        network = check(parse(f"""
            s = Shape(x) {constant('one', 1)} n = Gather<axis = 0>(s, one) f = Cast<to = 1>(n) two = Constant<value_float = 2.0>()
            h = Div(f, two) c = {function}(h) e = Cast<to = 7>(c) {constant('zero', 0)} {constant('ax', 1)}
            y = Slice(x, zero, e, ax)"""), ["Slice"])  # fmt: skip
        assert bind(network.tensors["y"].shape[1], {"batch": 2, "seq": 7}) == length(7)


def test_resize_to_the_size_of_another_tensor() -> None:
    """Scales computed from two shapes: no layer but the resize, and the exact size."""
    network = check(parse(f"""
        p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) s = Shape(x) t = Shape(p) sf = Cast<to = 1>(s) tf = Cast<to = 1>(t)
        q = Div(sf, tf) none = Constant<value_floats = [0.0]>() {constant('k', 0)} roi = Slice(none, k, k)
        y = Resize<mode = "nearest">(p, roi, q)""", "float[n, 2, h, w] x"), ["Pooling", "Resize"], (1, 2, 6, 8), (2, 2, 4, 4))  # fmt: skip
    assert network.tensors["y"].shape == tuple(map(symbol, ("n",))) + (2, symbol("h"), symbol("w"))


def test_sizes_as_data() -> None:
    """A mean written by hand: the divisor is a size, so a layer makes it."""
    network = check(parse(f"""
        {constant('ax', 1)} t = ReduceSum<keepdims = 1>(x, ax) s = Shape(x) n = Gather<axis = 0>(s, ax) f = Cast<to = 1>(n)
        y = Div(t, f)"""), ["Reduce", "ShapeValue", "Pointwise"])  # fmt: skip
    assert network.layers[1].origins == ("Cast_4",)
    assert network.fates["Cast_4"].kind == "layer"
    assert network.fates["Shape_2"].kind == "folded"


def test_size_ratio_as_data() -> None:
    check(parse(f"""
        s = Shape(x) {constant('zero', 0)} {constant('one', 1)} a = Gather<axis = 0>(s, zero) b = Gather<axis = 0>(s, one)
        fa = Cast<to = 1>(a) fb = Cast<to = 1>(b) q = Div(fa, fb) y = Mul(x, q)"""),
        ["ShapeValue", "ShapeValue", "Pointwise", "Pointwise"])  # fmt: skip


def test_shape_as_output() -> None:
    model = parse("s = Shape(x) y = Identity(s)", kind="int64")
    assert check(model, ["ShapeValue"]).outputs == ("y",)


def test_one_size_from_data_is_what_is_left() -> None:
    """A target shape with one computed size works like -1."""
    network = check(parse(f"""
        r = ReduceMax<keepdims = 0>(x) zero = Sub(r, r) i = Cast<to = 7>(zero) {constant('m', -1)} d = Add(i, m)
        {constant('tail', 2, 6)} s = Shape<start = 0, end = 1>(x) t = Concat<axis = 0>(s, d, tail) y = Reshape(x, t)"""), ["Shuffle"])  # fmt: skip
    assert network.tensors["y"].shape == (symbol("batch"), symbol("seq"), 2, 6)


def test_condition_on_sizes_that_is_always_true() -> None:
    model = parse(f"""
        s = Shape(x) {constant('zero', 0, scalar=True)} n = Gather<axis = 0>(s, zero) {constant('minus', -1, scalar=True)} c = Greater(n, minus)
        y = If(c) <then_branch = a () => (float[n, m, k] t) {{ t = Relu(x) }}, else_branch = b () => (float[n, m, k] e) {{ e = Neg(x) }}>""")
    network = check(model, ["Pointwise"])
    assert network.layers[0].origins == ("If_5/Relu_0",)
    assert network.fates["If_5"].kind == "layer"


def test_condition_on_sizes_that_is_open() -> None:
    model = parse(f"""
        s = Shape(x) {constant('zero', 0, scalar=True)} n = Gather<axis = 0>(s, zero) {constant('one', 1, scalar=True)} c = Equal(n, one)
        y = If(c) <then_branch = a () => (float[n, m, k] t) {{ t = Relu(x) }}, else_branch = b () => (float[n, m, k] e) {{ e = Neg(x) }}>""")
    network = import_onnx(model)
    assert [type(layer.op).__name__ for layer in network.layers][-1] == "If"
    x = np.random.default_rng(0).standard_normal((1, 3, 12)).astype(np.float32)
    for rows, expected in ((1, np.maximum(x, 0)), (2, -np.tile(x, (2, 1, 1)))):
        (found,) = run(network, {"x": np.tile(x, (rows, 1, 1))}).values()
        np.testing.assert_array_equal(found, expected)


def test_dimension_names() -> None:
    model = parse("y = Identity(x)", "float[N, ?, 3, batch] x")
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "7"
    shape = import_onnx(model).tensors["x"].shape
    assert shape == (symbol("N"), symbol("x_1"), 3, symbol("dim_7"))


# --- the arithmetic itself -------------------------------------------------------------------------------------------

elements = st.one_of(st.integers(0, 20), st.sampled_from(["n", "m"]).map(symbol), st.just(symbol("n") * 2 + 1))
OPERATIONS = {
    "add": (ratio.add, lambda a, b: a + b), "sub": (ratio.sub, lambda a, b: a - b), "mul": (ratio.mul, lambda a, b: a * b),
    "div": (ratio.div, lambda a, b: a / b), "min": (ratio.minimum, min), "max": (ratio.maximum, max),
    "equal": (ratio.equal, lambda a, b: a == b), "less": (ratio.less, lambda a, b: a < b),
}  # fmt: skip


def value(item: ratio.Element, sizes: dict[str, int]) -> Fraction:
    if isinstance(item, ratio.Ratio):
        return value(item.num, sizes) / value(item.den, sizes)
    return Fraction(bind(item, sizes) if isinstance(item, Sym) else int(item))  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(elements, elements, elements, st.sampled_from(list(OPERATIONS)), st.sampled_from(["add", "mul", "div"]), st.integers(1, 9), st.integers(1, 9))
def test_arithmetic_agrees_with_fractions(a: ratio.Element, b: ratio.Element, c: ratio.Element, outer: str, inner: str, n: int, m: int) -> None:
    """Whatever is claimed of symbolic elements holds for concrete sizes; unknown is always allowed."""
    sizes = {"n": n, "m": m}
    first, exact_first = OPERATIONS[inner]
    second, exact_second = OPERATIONS[outer]
    x, y = value(a, sizes), value(b, sizes)
    if inner == "div" and y == 0:
        return
    left = first(a, b)
    if left is None:
        return
    assert value(left, sizes) == exact_first(x, y)
    z = value(c, sizes)
    if outer == "div" and z == 0:
        return
    result = second(left, c)
    if result is not None:
        assert value(result, sizes) == exact_second(exact_first(x, y), z)
    for rounding, exact in ((ratio.floor, lambda q: q.__floor__()), (ratio.ceil, lambda q: q.__ceil__())):
        rounded = rounding(left)
        assert value(rounded, sizes) == exact(exact_first(x, y))


@given(st.floats(0.015625, 100, width=32))
def test_floats_round_trip(number: float) -> None:
    element = ratio.from_float(np.float32(number))
    assert np.float32(ratio.as_float(element)) == np.float32(number)


def test_simplest_fraction() -> None:
    assert ratio.floor(ratio.mul(10, ratio.from_float(np.float32(0.7)))) == 7
    assert ratio.from_float(np.float32(np.inf)) is None


def test_bounds_that_data_tell_are_guessed_to_keep_the_axis() -> None:
    """Tactics are chosen, and kernels compiled, for what is guessed."""
    for step, name in ((1, "one"), (-1, "back")):
        text = f"m0 = Cast<to=7>(s)\nm1 = Cast<to=7>(e)\ny = Slice(x, m0, m1, axes, {name})"
        row = Row("slice", text, "", inputs={"x": (6, 8), "s": (1,), "e": (1,)}, values={"axes": np.array([1]), name: np.array([step])})
        network = import_onnx(row_model(row))
        (output,) = network.outputs
        assert bind_type(network.tensors[output], typical_sizes(network, {})).shape == (6, 8)
