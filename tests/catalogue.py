"""The catalogue of fusions as tiny ONNX models: per row one pattern that fuses, and one near miss of it that must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser, shape_inference

Value = tuple[int, ...] | np.ndarray | float


@dataclass(frozen=True)
class Row:
    """One pattern.

    Attributes:
        name: the row of the catalogue.
        nodes: ONNX nodes in ONNX's text form, one a line; the network's output is ``y`` (and ``outputs``).
        rule: the fusion rule that makes it; empty where the importer does it.
        layers: how many layers are left (that do any work).
        on_gpu: how many on a GPU, where these are fewer (transpose-pointwise).
        inputs: shapes, float32 unless ``types`` says otherwise.
        values: constants: a shape (random values), an array, or one number.
        near: text to replace in ``nodes`` so that the pattern no longer holds (pairs old, new).
        near_rule: the rule that the near miss names, where the pattern fails at another one before ``rule``'s turn comes.
        near_output: tensors (a space between two) which, being network outputs as well, must keep the rule away.
        device: where the rule works, when only one of them has it.
        measured: the rule is one that the builder keeps only where a measurement says so.
    """

    name: str
    nodes: str
    rule: str
    layers: int = 1
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"x": (2, 8, 6, 6)})
    values: Mapping[str, Value] = field(default_factory=dict)
    near: tuple[tuple[str, str], ...] = ()
    near_rule: str = ""
    near_output: str = ""
    near_values: Mapping[str, Value] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    device: str = ""
    measured: bool = False
    on_gpu: int = 0
    opset: int = 18


def model(row: Row, near: bool = False) -> bytes:
    """The row's model, or that of its near miss."""
    text = row.nodes
    for old, new in row.near if near else ():
        assert old in text, f"{row.name}: {old!r} is not in the pattern"
        text = text.replace(old, new)
    nodes = [parser.parse_node(line.strip()) for line in text.strip().splitlines()]
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}{index}"
    random = np.random.default_rng(7)
    constants = []
    for name, value in {**row.values, **(row.near_values if near else {})}.items():
        array = random.standard_normal(value) * 0.5 if isinstance(value, tuple) else np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        constants.append(numpy_helper.from_array(np.asarray(array), name))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in row.inputs.items()]
    graph = helper.make_graph(nodes, "row", inputs, [], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", row.opset)], ir_version=9)
    known = {info.name: info for info in shape_inference.infer_shapes(made).graph.value_info}
    outputs = ["y", *row.outputs, *(row.near_output.split() if near else ())]
    made.graph.output.extend(known[name] for name in outputs)
    onnx.checker.check_model(made)
    return made.SerializeToString()


W = {"w": (8, 8, 3, 3)}
CONV = "t = Conv<pads=[1,1,1,1]>(x, w)\n"
ROWS_2D = {"x": (6, 16)}
ROWS_3D = {"x": (2, 5, 16)}
IMAGE = {"x": (2, 8, 6, 6)}
HEADS = dict.fromkeys(("q", "k", "v"), (2, 2, 5, 8))

TURN = """@a = Slice(@, zero, four, last)
@b = Slice(@, four, eight, last)
@n = Neg(@b)
@r = Concat<axis=-1>(@n, @a)
@c = Mul(@, cos)
@s = Mul(@r, sin)
@y = Add(@c, @s)
"""  # a rotary embedding
PAIRS = """xe = Slice(x, zero, eight, last, two)
xo = Slice(x, one, eight, last, two)
xn = Neg(xo)
xa = Unsqueeze(xn, four)
xb = Unsqueeze(xe, four)
xj = Concat<axis=-1>(xa, xb)
xr = Reshape(xj, flat)
xc = Mul(x, cos)
xs = Mul(xr, sin)
xy = Add(xc, xs)
"""  # one that turns even and odd elements, as GPT-J writes it
PAIR_VALUES = {name: np.array([value]) for name, value in (("zero", 0), ("one", 1), ("two", 2), ("last", 3), ("four", 4), ("eight", 8))}
PAIR_VALUES["flat"] = np.array([2, 5, 3, 8])


QDQ = "q = QuantizeLinear(x, s, i8)\nd = DequantizeLinear(q, s, i8)\n"
SCALES: Mapping[str, Value] = {"s": 0.125, "s2": 0.0625, "i8": np.array(0, np.int8)}


def _bytes(*shape: int) -> np.ndarray:
    """Random int8 weights."""
    return np.random.default_rng(3).integers(-9, 10, shape).astype(np.int8)


def _pairs(*names: str) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(names, (2, 8, 6, 6))


CATALOGUE: Sequence[Row] = (
    Row("ReLU + ReLU", "t = Relu(x)\ny = Relu(t)", "relu-relu", near=(("t = Relu", "t = Tanh"),)),
    Row("convolution + ReLU", CONV + "y = Relu(t)", "convolution-activation", values=W, near_output="t"),
    Row("convolution + GELU", CONV + "y = Gelu(t)", "convolution-activation", values=W, near_output="t", opset=20),
    Row("convolution + clip", CONV + "y = Clip(t, low, high)", "convolution-activation",
        values={**W, "low": 0.0, "high": 6.0}, near_output="t"),
    Row("convolution + generic activation", CONV + "s = Sin(t)\nu = Mul(s, c)\ny = Add(u, t)", "convolution-pointwise",
        values={**W, "c": 0.3}, near_output="t"),
    Row("scale + activation", "t = Mul(x, c)\ny = Relu(t)", "pointwise", values={"c": 0.5}, near_output="t"),
    Row("convolution + sum", CONV + "y = Add(t, z)", "convolution-sum", inputs=_pairs("x", "z"), values=W, near_output="t"),
    Row("convolution + sum broadcast over the batch", CONV + "y = Add(t, z)", "convolution-sum", values=W,
        inputs={**IMAGE, "z": (1, 8, 6, 6)}, near_output="t"),
    Row("convolution + min", CONV + "y = Min(t, z)", "convolution-sum", inputs=_pairs("x", "z"), values=W, near_output="t"),
    Row("convolution + max", CONV + "y = Max(t, z)", "convolution-sum", inputs=_pairs("x", "z"), values=W, near_output="t"),
    Row("convolution + pooling", CONV + "u = Relu(t)\ny = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(u)", "convolution-pooling",
        values=W, near_output="u", measured=True),
    Row("a convolution whose result is stored channels-first", CONV + "y = Relu(t)", "convolution-planes", values=W, near=(("y = Relu(t)", "r = Relu(t)\ny = Transpose<perm=[0,1,3,2]>(r)"),),
        measured=True, device="cuda"),
    Row("convolution + average pooling", CONV + "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(t)", "convolution-pooling", values=W,
        near=(("strides=[2,2]", "strides=[1,1]"),), measured=True),
    Row("depthwise-separable convolution", "t = Conv<group=8, pads=[1,1,1,1]>(x, f)\nu = Relu(t)\ny = Conv(u, p)", "separable-convolution", device="cpu",
        values={"f": (8, 1, 3, 3), "p": (12, 8, 1, 1)}, near_output="u", measured=True),
    Row("depthwise convolution + pointwise with a stride", "t = Conv<group=8, pads=[1,1,1,1]>(x, f)\ny = Conv<strides=[1,1]>(t, p)", "separable-convolution",
        device="cpu", values={"f": (8, 1, 3, 3), "p": (12, 8, 1, 1)}, near=(("strides=[1,1]", "strides=[2,2]"),), measured=True),
    Row("padding + convolution", "t = Pad(x, pads)\ny = Conv(t, w)", "padding-convolution",
        values={**W, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, near_values={"pads": np.array([0, 0, -1, 1, 0, 0, 1, 1])}),
    Row("padding + deconvolution", "t = Pad(x, pads)\ny = ConvTranspose<pads=[2,2,2,2]>(t, w)", "padding-convolution",
        values={**W, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, near_values={"pads": np.array([0, 0, -1, 1, 0, 0, 1, 1])}),
    Row("padding + deconvolution that cuts nothing", "t = Pad(x, pads)\ny = ConvTranspose<strides=[2,1]>(t, w, b)", "padding-convolution",
        values={**W, "b": (8,), "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2])}, near_values={"pads": np.array([0, 1, 1, 0, 0, -1, 0, 2])}),
    Row("padding + pooling", "t = Pad(x, pads, c)\ny = MaxPool<kernel_shape=[3,3]>(t)", "padding-pooling",
        values={"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "c": -np.inf}, near_values={"c": 1.0}),
    Row("shuffle + reduce", "t = Transpose<perm=[0,2,3,1]>(x)\ny = ReduceMax<keepdims=0>(t, axes)", "shuffle-reduce",
        values={"axes": np.array([1, 2])}, near=(("perm=[0,2,3,1]", "perm=[1,0,2,3]"),), near_values={"axes": np.array([2, 3])}),
    Row("shuffle + reduce that keeps its axes", "t = Transpose<perm=[0,2,3,1]>(x)\ny = ReduceMean(t, axes)", "shuffle-reduce",
        values={"axes": np.array([1, 2])}, near=(("perm=[0,2,3,1]", "perm=[1,0,2,3]"),), near_values={"axes": np.array([2, 3])}),
    Row("a function between inverse shuffles", "t = Transpose<perm=[0,2,3,1]>(x)\nu = Sin(t)\ny = Transpose<perm=[0,3,1,2]>(u)", "pointwise-shuffle",
        near_output="t"),
    Row("convolution + pixel shuffle + activation", "a = Conv<pads=[1,1,1,1]>(x, w)\nt = DepthToSpace<blocksize=2,mode=\"CRD\">(a)\ny = Sin(t)", "pointwise-shuffle",
        layers=2, values={"w": (8, 8, 3, 3)}, near_output="t"),
    Row("patches + positions", "a = Conv(x, w)\nr = Reshape(a, flat)\nt = Transpose<perm=[0,2,1]>(r)\ny = Add(t, c)", "shuffle-constants", layers=2, on_gpu=1,
        values={"w": (8, 8, 2, 2), "flat": np.array([2, 8, 25]), "c": (25, 8)}, near_output="a"),
    Row("class token and patches + positions", "a = Conv(x, w)\nr = Reshape(a, flat)\nt = Transpose<perm=[0,2,1]>(r)\nj = Concat<axis=1>(k, t)\ny = Add(j, c)",
        "concatenation-constants", layers=3, on_gpu=2, values={"w": (8, 8, 2, 2), "flat": np.array([2, 8, 25]), "k": (2, 1, 8), "c": (26, 8)}, near_values={"c": (1, 8)}),
    Row("cosines before sines", "s = Sin(x)\nc = Cos(x)\nj = Concat<axis=-1>(s, c)\na = Slice(j, mid, end, last)\nb = Slice(j, zero, mid, last)\nd = Concat<axis=-1>(a, b)\ny = MatMul(d, w)",
        "slice-concatenation", layers=4, inputs={"x": (5, 8)}, values={"w": (16, 16), "zero": np.array([0]), "mid": np.array([8]), "end": np.array([16]), "last": np.array([1])},
        near=(("Slice(j, mid, end, last)", "Slice(j, low, high, last)"), ("Slice(j, zero, mid, last)", "Slice(j, low, high, last)")), near_values={"low": np.array([4]), "high": np.array([12])}),
    Row("merged patches", "h0 = Slice(x, zero, most, one, two)\nh1 = Slice(x, one, most, one, two)\na = Slice(h0, zero, most, two, two)\nb = Slice(h1, zero, most, two, two)\n"
        "c = Slice(h0, one, most, two, two)\nd = Slice(h1, one, most, two, two)\ny = Concat<axis=-1>(a, b, c, d)", "space-to-depth", inputs={"x": (2, 4, 6, 5)},
        values={"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "most": np.array([2**40])}, near=(("Concat<axis=-1>(a, b, c, d)", "Concat<axis=-1>(b, a, c, d)"),)),
    Row("a rolled tensor", "a = Slice(x, two, most, two)\nb = Slice(x, zero, two, two)\ny = Concat<axis=2>(a, b)", "roll",
        inputs={"x": (2, 8, 6, 16)}, values={"zero": np.array([0]), "two": np.array([2]), "most": np.array([2**40])}, near=(("b = Slice(x, zero", "b = Slice(x, one"),), near_values={"one": np.array([1])}),
    Row("shifted windows", "a = Slice(x, two, most, one)\nb = Slice(x, zero, two, one)\nc = Concat<axis=1>(a, b)\nr = Reshape(c, cut)\ny = Transpose<perm=[0,1,3,2,4,5]>(r)", "gather-rows",
        inputs={"x": (2, 4, 6, 16)}, values={"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "most": np.array([2**40]), "cut": np.array([2, 2, 2, 3, 2, 16])},
        near=(("perm=[0,1,3,2,4,5]", "perm=[0,1,3,5,4,2]"),)),
    Row("inverse shuffles", "t = Transpose<perm=[0,2,3,1]>(x)\nu = Transpose<perm=[0,3,1,2]>(t)\ny = Relu(u)", "shuffle-shuffle",
        near=(("Transpose<perm=[0,3,1,2]>(t)", "Reshape(t, odd)"),), near_values={"odd": np.array([2, 8, 9, 4])}),
    Row("two transposes become one", "t = Transpose<perm=[0,2,3,1]>(x)\ny = Transpose<perm=[2,1,0,3]>(t)", "shuffle-shuffle",
        near_output="t"),
    Row("shuffle of nothing", "t = Transpose<perm=[1,0,2,3]>(x)\ny = Relu(t)", "no-op", inputs={"x": (1, 1, 6, 6)},
        near=(("perm=[1,0,2,3]", "perm=[0,1,3,2]"),)),
    Row("no-op scale", "t = Mul(x, one)\nu = Add(t, zero)\nv = Pow(u, one)\ny = Relu(v)", "no-op",
        values={"one": 1.0, "zero": 0.0}, near_values={"one": 2.0, "zero": 1.0}),
    Row("convolution + uniform scale", CONV + "y = Mul(t, c)", "convolution-scale", values={**W, "c": 0.5}, near_output="t"),
    Row("convolution + channel scale", CONV + "u = Mul(t, s)\ny = Add(u, b)", "convolution-scale",
        values={**W, "s": (8, 1, 1), "b": (8, 1, 1)}, near_output="t"),
    Row("convolution + batch normalisation", CONV + "y = BatchNormalization(t, s, b, m, va)", "convolution-scale",
        values={**W, "s": (8,), "b": (8,), "m": (8,), "va": np.full(8, 0.7)}, near_output="t"),
    Row("mean of means", "t = ReduceMean(x, last)\ny = ReduceMean(t, first)", "reduce-reduce", values={"last": np.array([3]), "first": np.array([1])}, near_output="t"),
    Row("mean over H and W is average pooling", "t = ReduceMean(x, axes)\ny = Relu(t)", "reduce-pooling", device="cuda",
        values={"axes": np.array([2, 3])}, near_values={"axes": np.array([1, 3])}),
    Row("softmax + log", "t = Softmax(x)\ny = Log(t)", "softmax-log", inputs=ROWS_2D, near_output="t"),
    Row("softmax written out", "m = ReduceMax(x, axes)\nd = Sub(x, m)\ne = Exp(d)\nt = ReduceSum(e, axes)\np = Div(e, t)\ny = Mul(p, c)", "softmax", inputs=ROWS_2D,
        values={"axes": np.array([1]), "c": 3.0}, near_output="e"),
    Row("softmax written out, its axis dropped and made again", "n = ReduceMax<keepdims=0>(x, axes)\nm = Reshape(n, rows)\nd = Sub(x, m)\ne = Exp(d)\nu = ReduceSum<keepdims=0>(e, axes)\n"
        "t = Reshape(u, rows)\nw = Expand(t, all)\ny = Div(e, w)", "softmax", inputs=ROWS_2D,
        values={"axes": np.array([1]), "rows": np.array([6, 1]), "all": np.array([6, 16])}, near_output="u"),
    Row("softmax without a maximum", "e = Exp(x)\nt = ReduceSum(e, axes)\ny = Div(e, t)", "softmax", inputs=ROWS_2D, values={"axes": np.array([1])},
        near=(("axes)", "both)"),), near_values={"both": np.array([0, 1])}),
    Row("log-softmax written out", "m = ReduceMax(x, axes)\nd = Sub(x, m)\ne = Exp(d)\nt = ReduceSum(e, axes)\nl = Log(t)\ny = Sub(d, l)", "softmax", inputs=ROWS_2D,
        values={"axes": np.array([1])}, near_output="d"),
    Row("softmax + top-k", "t = Softmax<axis=1>(x)\ny, i = TopK<axis=1>(t, k)", "softmax-topk", inputs=ROWS_2D,
        values={"k": np.array([3])}, outputs=("i",), near=(("TopK<axis=1>", "TopK<axis=0>"),)),
    Row("softmax + log + top-k", "t = Softmax(x)\nu = Log(t)\ny, i = TopK<axis=1>(u, k)", "softmax-topk", inputs=ROWS_2D,
        values={"k": np.array([3])}, outputs=("i",), near_output="u"),
    Row("GELU by tanh", "a = Pow(x, three)\nb = Mul(a, c)\nd = Add(x, b)\ne = Mul(d, f)\ng = Tanh(e)\nh = Add(g, one)\n"
        "i = Mul(x, half)\ny = Mul(i, h)", "gelu", inputs=ROWS_2D,
        values={"three": 3.0, "c": 0.044715, "f": float(np.sqrt(2 / np.pi)), "one": 1.0, "half": 0.5}, near_values={"c": 0.2}),
    Row("GELU by erf", "a = Div(x, root)\nb = Erf(a)\nc = Add(b, one)\nd = Mul(x, c)\ny = Mul(d, half)", "gelu", inputs=ROWS_2D,
        values={"root": float(np.sqrt(2)), "one": 1.0, "half": 0.5}, near_values={"root": 2.0}),
    Row("L1 norm", "t = Abs(x)\ny = ReduceSum(t, axes)", "reduce-prologue", inputs=ROWS_2D, values={"axes": np.array([1])},
        near_output="t"),
    Row("sum of squares", "t = Mul(x, x)\ny = ReduceSum(t, axes)", "reduce-prologue", inputs=ROWS_2D,
        values={"axes": np.array([1])}, near=(("Mul(x, x)", "Mul(x, z)"),), near_values={"z": (6, 16)}),
    Row("L2 norm", "t = Mul(x, x)\nu = ReduceSum(t, axes)\ny = Sqrt(u)", "reduce-pointwise", inputs=ROWS_2D,
        values={"axes": np.array([1])}, near_output="u"),
    Row("log of a sum", "u = ReduceSum(x, axes)\ny = Log(u)", "reduce-pointwise", inputs=ROWS_2D,
        values={"axes": np.array([1])}, near_output="u"),
    Row("log of a sum of exponentials", "t = Exp(x)\nu = ReduceSum(t, axes)\ny = Log(u)", "log-sum-exp", inputs=ROWS_2D,
        values={"axes": np.array([1])}, near_output="u"),
    Row("log of a sum of exponentials beside the maximum", "m = ReduceMax(x, axes)\nd = Sub(x, m)\ne = Exp(d)\nt = ReduceSum(e, axes)\nl = Log(t)\ny = Add(l, m)", "log-sum-exp",
        inputs=ROWS_2D, values={"axes": np.array([1])}, near_output="e"),
    Row("log-sum-exp with a guard, its axis dropped", "m = ReduceMax(x, axes)\na = Abs(m)\nb = Equal(a, inf)\nf = Where(b, zero, m)\nd = Sub(x, f)\ne = Exp(d)\n"
        "t = ReduceSum<keepdims=0>(e, axes)\nl = Log(t)\ns = Squeeze(f, axes)\ny = Add(l, s)", "log-sum-exp",
        inputs=ROWS_2D, values={"axes": np.array([1]), "inf": np.inf, "zero": 0.0}, near_output="t"),
    Row("pointwise chain", "a = Sin(x)\nb = Mul(a, x)\nc = Tanh(b)\ny = Sub(c, z)", "pointwise", inputs=_pairs("x", "z"),
        near_output="a b c"),
    Row("pointwise tree", "a = Exp(x)\nb = Neg(z)\ny = Mul(a, b)", "pointwise", inputs=_pairs("x", "z"), near_output="a b"),
    Row("a tensor of two pointwise layers", "a = Neg(x)\ny = Mul(a, z)\nv = Add(a, w)", "pointwise-readers", layers=2, inputs=_pairs("x", "z"), outputs=("v",), values={"w": (8, 1, 1)},
        near_output="a"),
    Row("a tensor of four that two layers read", "a = Mul(x, z)\nb = Mul(p, q)\nc = Add(a, b)\ny = Neg(c)\nv = Exp(c)", "pointwise-readers", layers=2, outputs=("v",),
        inputs=_pairs("x", "z", "u", "w"), values={"p": (8, 1, 1), "q": (8, 1, 1)}, near=(("Mul(p, q)", "Mul(u, w)"),)),
    Row("an outer product", "t = MatMul(x, z)\ny = Cos(t)", "outer-product", inputs={"x": (2, 6, 1), "z": (2, 1, 5)},
        near=(("t = MatMul(x, z)", "a = Concat<axis=2>(x, x)\nb = Concat<axis=1>(z, z)\nt = MatMul(a, b)"),)),
    Row("a shuffle behind a sum of two axes", "a = Mul(x, z)\nb = Transpose<perm=[0,2,1]>(a)\nc = Cos(b)\ny = Mul(c, w)", "shuffle-operands", inputs={"x": (2, 6, 1), "z": (1, 5)},
        values={"w": (2, 5, 6)}, near=(("Mul(x, z)", "Mul(x, u)"),), near_values={"u": (6, 5)}),
    Row("layer normalisation", "m = ReduceMean(x, axes)\nd = Sub(x, m)\ns = Pow(d, two)\nv = ReduceMean(s, axes)\ne = Add(v, eps)\n"
        "r = Sqrt(e)\nn = Div(d, r)\na = Mul(n, g)\ny = Add(a, b)", "layer-normalization", inputs=ROWS_2D,
        values={"axes": np.array([1]), "two": 2.0, "eps": 1e-5, "g": (16,), "b": (16,)}, near_output="v"),
    Row("layer normalisation by the mean of squares", "a = ReduceSum<keepdims=0>(x, axes)\nq = Mul(x, x)\nb = ReduceSum<keepdims=0>(q, axes)\nm = Mul(a, c)\nw = Mul(b, c)\nm2 = Mul(m, m)\n"
        "d = Sub(w, m2)\nv = Max(d, zero)\nv1 = Reshape(v, rows)\nm1 = Reshape(m, rows)\ne = Add(v1, eps)\nr = Sqrt(e)\ni = Reciprocal(r)\nu = Sub(x, m1)\nh = Mul(i, g)\n"
        "z = Mul(u, h)\ny = Add(z, k)", "layer-normalization", inputs=ROWS_2D, near_output="a",
        values={"axes": np.array([1]), "c": 1 / 16, "zero": 0.0, "rows": np.array([6, 1]), "eps": 1e-5, "g": (16,), "k": (16,)}),
    Row("RMS normalisation", "s = Mul(x, x)\nv = ReduceMean(s, axes)\ne = Add(v, eps)\nr = Sqrt(e)\nn = Div(x, r)\ny = Mul(n, g)",
        "rms-normalization", inputs=ROWS_2D, values={"axes": np.array([1]), "eps": 1e-5, "g": (16,)}, near_output="v"),
    Row("division by a norm", "n = ReduceL2(x, axes)\nc = Clip(n, eps)\ne = Expand(c, all)\ny = Div(x, e)", "l2-normalization", inputs=ROWS_2D,
        values={"axes": np.array([1]), "eps": 1e-12, "all": np.array([6, 16])}, near_output="n"),
    Row("division by the root of a sum of squares", "s = Mul(x, x)\nv = ReduceSum(s, axes)\ne = Add(v, eps)\nr = Sqrt(e)\nn = Div(x, r)\ny = Mul(n, g)", "l2-normalization",
        inputs=ROWS_2D, values={"axes": np.array([1]), "eps": 1e-3, "g": (16,)}, near=(("e = Add(v, eps)\nr = Sqrt(e)", "e = Sqrt(v)\nr = Add(e, eps)"),)),
    Row("instance normalisation", "m = ReduceMean(x, axes)\nd = Sub(x, m)\ns = Mul(d, d)\nv = ReduceMean(s, axes)\ne = Add(v, eps)\n"
        "r = Sqrt(e)\nn = Div(d, r)\na = Mul(n, g)\ny = Add(a, b)", "layer-normalization",
        values={"axes": np.array([2, 3]), "eps": 1e-5, "g": (8, 1, 1), "b": (8, 1, 1)}, near_output="v"),
    Row("group normalisation", "u = Reshape(x, into)\nm = ReduceMean(u, axes)\nd = Sub(u, m)\ns = Mul(d, d)\nv = ReduceMean(s, axes)\n"
        "e = Add(v, eps)\nr = Sqrt(e)\nn = Div(d, r)\nz = Reshape(n, back)\na = Mul(z, g)\ny = Add(a, b)", "group-normalization",
        values={"into": np.array([2, 4, -1]), "back": np.array([2, 8, 6, 6]), "axes": np.array([2]), "eps": 1e-5, "g": (8, 1, 1), "b": (8, 1, 1)},
        near_output="n"),
    Row("group normalisation of pixels in a row", "u = Reshape(x, into)\nn = InstanceNormalization(u, ones, zeros)\nz = Reshape(n, back)\na = Mul(z, g)\ny = Add(a, b)", "group-normalization",
        values={"into": np.array([2, 4, -1]), "back": np.array([2, 8, 36]), "ones": np.ones(4), "zeros": np.zeros(4), "g": (8, 1), "b": (8, 1)}, near_output="n"),
    Row("layer normalisation of a sum", "s = Add(x, z)\nn = LayerNormalization(s, g, b)\ny = Mul(n, c)", "normalization-sum", device="cuda",
        inputs={"x": (6, 16), "z": (6, 16)}, values={"g": (16,), "b": (16,), "c": 0.5}, near=(("Add(x, z)", "Add(x, w)"),),
        near_values={"w": (1, 16)}),
    Row("layer normalisation of a sum that others read", "s = Add(x, z)\nn = LayerNormalization(s, g, b)\nm = MatMul(n, w)\ny = Add(m, s)",
        "normalization-sum", layers=2, device="cuda", inputs={"x": (6, 16), "z": (6, 16)}, values={"g": (16,), "b": (16,), "w": (16, 16)},
        near=(("Add(x, z)", "Add(x, wide)"),), near_values={"wide": (1, 16)}),
    Row("SiLU", "s = Sigmoid(x)\ny = Mul(x, s)", "swish", near_output="s"),
    Row("hard swish", "a = Add(x, three)\nb = Clip(a, zero, six)\nc = Mul(x, b)\ny = Div(c, six)", "hard-swish",
        values={"three": 3.0, "zero": 0.0, "six": 6.0}, near_values={"three": 2.0}),
    Row("Mish", "s = Softplus(x)\nt = Tanh(s)\ny = Mul(x, t)", "mish", near_output="s"),
    Row("queries, keys and values of heads from one convolution", "a = Conv(x, w, b)\nr = Reshape(a, heads)\nq, k, v = Split<axis=2>(r, parts)\nt = Transpose<perm=[0,1,3,2]>(q)\n"
        "s = MatMul(t, k)\np = Softmax<axis=-1>(s)\nu = Transpose<perm=[0,1,3,2]>(p)\ny = MatMul(v, u)", "convolution-split", layers=8, on_gpu=5, values={
            "w": (16, 8, 1, 1), "b": (16,), "heads": np.array([2, 2, 8, 36]), "parts": np.array([2, 2, 4])}, near=(("Split<axis=2>(r, parts)", "Split<axis=3>(r, places)"),
            ("MatMul(t, k)", "MatMul(t, q)"), ("MatMul(v, u)", "MatMul(q, u)")), near_values={"places": np.array([12, 12, 12])}),
    Row("SwiGLU of a packed projection", "p = MatMul(x, w)\na, b = Split<axis=-1, num_outputs=2>(p)\ns = Sigmoid(a)\ng = Mul(a, s)\ny = Mul(g, b)",
        "matmul-split", layers=2, inputs=ROWS_2D, values={"w": (16, 24)}, near_output="p"),
    Row("rotary embedding", TURN.replace("@", "x") + "y = Identity(xy)", "rotary-embedding", inputs={"x": (2, 3, 5, 8), "cos": (2, 1, 5, 8), "sin": (2, 1, 5, 8)},
        values={"zero": np.array([0]), "four": np.array([4]), "eight": np.array([8]), "last": np.array([3])}, near_output="xr"),
    Row("rotary embedding by halves", "a, b = Split<axis=-1, num_outputs=2>(x)\nac = Mul(a, cos)\nbs = Mul(b, sin)\nu = Sub(ac, bs)\n"
        "bc = Mul(b, cos)\nas_ = Mul(a, sin)\nv = Add(bc, as_)\ny = Concat<axis=-1>(u, v)", "rotary-embedding",
        inputs={"x": (2, 5, 3, 8), "cos": (5, 1, 4), "sin": (5, 1, 4)}, near=(("bc = Mul(b, cos)", "bc = Mul(b, sin)"),)),
    Row("rotary embedding of neighbours", PAIRS + "y = Identity(xy)", "rotary-embedding", inputs={"x": (2, 5, 3, 8), "cos": (5, 1, 8), "sin": (5, 1, 8)},
        values=PAIR_VALUES, near_output="xo"),
    Row("rotary embedding of a part of each row", "x, r = Split<axis=-1>(w, parts)\n" + PAIRS + "y = Concat<axis=-1>(xy, r)", "rotary-part",
        inputs={"w": (2, 5, 3, 12), "cos": (5, 1, 8), "sin": (5, 1, 8)}, values={**PAIR_VALUES, "parts": np.array([8, 4])},
        near=(("(xy, r)", "(xy, q)"), ("xa =", "q = Slice(w, zero, four, last)\nxa =")),),
    Row("rotary embedding of all positions but the first", "f, x = Split<axis=1>(w, parts)\n" + PAIRS + "y = Concat<axis=1>(f, xy)", "rotary-positions",
        inputs={"w": (2, 6, 3, 8)}, values={**PAIR_VALUES, "parts": np.array([1, 5]), "cos": (5, 1, 8), "sin": (5, 1, 8)}, near=(("(f, xy)", "(xy, f)"),)),
    Row("attention of two streams with projections of their own", "".join(f"{n}{p}0 = MatMul({p}, w{n}{p})\n{n}{p} = Reshape({n}{p}0, heads)\n" for n in "qkv" for p in "xz") +
        "".join(f"{n}j = Concat<axis=1>({n}x, {n}z)\n{n} = Transpose<perm=[0,2,1,3]>({n}j)\n" for n in "qkv") +
        "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\np = Softmax<axis=-1>(s)\ny = MatMul(p, v)", "packed-streams", layers=3, device="cuda",
        inputs={"x": (1, 4, 16), "z": (1, 3, 16)}, values={**{f"w{n}{p}": (16, 16) for n in "qkv" for p in "xz"}, "heads": np.array([1, -1, 2, 8])},
        near=(("kz0 = MatMul(z,", "other = Tanh(z)\nkz0 = MatMul(other,"),)),
    Row("two normalised streams that turn", "a = LayerNormalization<axis=-1>(x, g)\nb = LayerNormalization<axis=-1>(z, g)\nj = Concat<axis=2>(a, b)\n" + TURN.replace("@", "j") +
        "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(jy, kt)\np = Softmax<axis=-1>(s)\ny = MatMul(p, v)", "rotary-streams", layers=5, device="cuda",
        inputs={"x": (1, 1, 4, 8), "z": (1, 1, 3, 8), "k": (1, 1, 7, 8), "v": (1, 1, 7, 8)},
        values={"g": (8,), "cos": (7, 8), "sin": (7, 8), "zero": np.array([0]), "four": np.array([4]), "eight": np.array([8]), "last": np.array([3])},
        near_values={"cos": (1, 8), "sin": (1, 8)}),
    Row("attention whose groups of heads are rows", "r = Reshape(q, rows)\nkt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(r, kt)\np = Softmax<axis=-1>(s)\no = MatMul(p, v)\ny = Reshape(o, heads)",
        "attention-rows", inputs={"q": (2, 4, 1, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 8)}, values={"rows": np.array([2, 2, 2, 8]), "heads": np.array([2, 4, 1, 8])},
        near=(("p = Softmax<axis=-1>(s)", "u = Add(s, m)\np = Softmax<axis=-1>(u)"),), near_values={"m": (2, 5)}),
    Row("a mask of keys, written for every query", "b = Greater(m, zero)\na = And(c, b)\nw = Where(a, zero, low)\nkt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\nt = Add(s, w)\n"
        "p = Softmax<axis=-1>(t)\ny = MatMul(p, v)", "mask-rows", layers=2, inputs={**HEADS, "m": (2, 1, 1, 5)},
        values={"c": np.ones((5, 1), bool), "zero": 0.0, "low": -30.0}, near_values={"c": np.arange(5).reshape(5, 1) > 1}),
    Row("a gather of all rows in order", "r = Reshape(x, rows)\ng = Gather(r, places)\nu = Sin(g)\ny = ReduceMax(u, last)", "gather-slice", layers=1,
        values={"rows": np.array([2, 288]), "places": np.arange(2).reshape(1, 2, 1), "last": np.array([3])}, near_values={"places": np.arange(2)[::-1].reshape(1, 2, 1).copy()}),
    Row("attention of scaled queries and keys", "a = Sin(q)\nqs = Mul(a, c)\nkt = Transpose<perm=[0,1,3,2]>(k)\nks = Mul(kt, c)\ns = MatMul(qs, ks)\n"
        "p = Softmax<axis=-1>(s)\ny = MatMul(p, v)", "attention-scale", layers=2, inputs=HEADS, values={"c": 0.6}, near=(("ks = Mul(kt, c)", "ks = Mul(kt, g)"),), near_values={"g": (8, 1)}),
    Row("attention with heads in the batch", "".join(f"{n}1 = Reshape({n}, heads)\n{n}2 = Transpose<perm=[0,2,1,3]>({n}1)\n{n}3 = Reshape({n}2, fold)\n" for n in "qkv") +
        "kt = Transpose<perm=[0,2,1]>(k3)\ns = MatMul(q3, kt)\np = Softmax<axis=-1>(s)\no = MatMul(p, v3)\nu = Reshape(o, unfold)\n"
        "w = Transpose<perm=[0,2,1,3]>(u)\ny = Reshape(w, merge)", "attention-batch", inputs={"q": (2, 5, 16), "k": (2, 5, 16), "v": (2, 5, 16)},
        values={"heads": np.array([2, 5, 2, 8]), "fold": np.array([4, 5, 8]), "unfold": np.array([2, 2, 5, 8]), "merge": np.array([2, 5, 16])},
        near=(("p = Softmax<axis=-1>(s)", "p = Softmax<axis=1>(s)"),), near_rule="attention"),
    Row("softmax of scores whose product had heads in the batch", "s = MatMul(x, z)\nt = Reshape(s, unfold)\nu = Add(t, m)\ny = Softmax<axis=-1>(u)", "reshape-batch", layers=2,
        inputs={"x": (4, 5, 8), "z": (4, 8, 5), "m": (2, 1, 1, 5)}, values={"unfold": np.array([2, 2, 5, 5])}, near=(("Softmax<axis=-1>(u)", "Tanh(u)"),)),
    Row("parts of a packed projection, some transposed", "p = MatMul(x, w)\na, r = Split<axis=1>(p, parts)\nt = Transpose<perm=[1,0]>(p)\nb, e = Split<axis=0>(t, parts)\n"
        "c = Transpose<perm=[1,0]>(e)\ny = Mul(a, c)", "slice-shuffle", layers=2, inputs=ROWS_2D, values={"w": (16, 8), "parts": np.array([4, 4])},
        near=(("y = Mul(a, c)", "y0 = Mul(a, c)\ny1 = Transpose<perm=[1,0]>(t)\ny2 = Softmax<axis=0>(t)\ny3 = MatMul(y1, y2)\ny = MatMul(y3, y0)"),)),
    Row("attention with capped scores", "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\nt = Div(s, c)\nu = Tanh(t)\nw = Mul(u, c)\nz = Add(w, m)\n"
        "p = Softmax<axis=-1>(z)\ny = MatMul(p, v)", "attention", inputs={**HEADS, "m": (2, 1, 5, 5)}, values={"c": 2.0}, near=(("Tanh", "Sin"),)),
    Row("attention in a sliding window", "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\nu = Add(s, m)\np = Softmax<axis=-1>(u)\ny = MatMul(p, v)", "attention",
        inputs=HEADS, values={"m": np.where(np.tril(np.ones((5, 5))) * np.triu(np.ones((5, 5)), -1), 0.0, -1e9).astype(np.float32)}, near_output="p"),
    Row("attention", "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\nt = Mul(s, c)\np = Softmax<axis=-1>(t)\ny = MatMul(p, v)",
        "attention", inputs=HEADS, values={"c": 0.35}, near_output="p"),
    Row("attention with values on the left", "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\np = Softmax<axis=-1>(s)\npt = Transpose<perm=[0,1,3,2]>(p)\n"
        "vt = Transpose<perm=[0,1,3,2]>(v)\nc = MatMul(vt, pt)\ny = Transpose<perm=[0,1,3,2]>(c)", "attention", inputs=HEADS, near=(("MatMul(vt, pt)", "MatMul(vt, p)"),)),
    Row("relative positions along two axes", "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\nr = Reshape(s, six)\nu = Add(r, a)\nw = Add(u, b)\nz = Reshape(w, four)\n"
        "p = Softmax<axis=-1>(z)\ny = MatMul(p, v)", "score-operands", layers=2,
        inputs={**dict.fromkeys("qkv", (2, 2, 6, 8)), "a": (2, 2, 2, 3, 2, 1), "b": (2, 2, 2, 3, 1, 3)},
        values={"six": np.array([2, 2, 2, 3, 2, 3]), "four": np.array([2, 2, 6, 6])}, near=(("w = Add(u, b)", "w = Mul(u, b)"),)),
    Row("attention with a scale per head", "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\ne = Exp(g)\nt = Mul(s, e)\np = Softmax<axis=-1>(t)\ny = MatMul(p, v)",
        "attention", layers=2, inputs=HEADS, values={"g": (2, 1, 1)}, near_values={"g": (2, 1, 5)}),
    Row("attention of normalised heads", "".join(f"{n}1 = Transpose<perm=[0,2,1,3]>({n})\n{n}h = LayerNormalization({n}1, w, b)\n" for n in "qk") +
        "kt = Transpose<perm=[0,1,3,2]>(kh)\ns = MatMul(qh, kt)\np = Softmax<axis=-1>(s)\ny = MatMul(p, v)", "heads-shuffle", layers=3,
        inputs={"q": (2, 5, 2, 8), "k": (2, 5, 2, 8), "v": (2, 2, 5, 8)}, values={"w": (8,), "b": (8,)}, near=(("LayerNormalization(", "LayerNormalization<axis=2>("),), near_values={"w": (5, 8), "b": (5, 8)}),
    Row("rows that are normalised and turn", "s = Mul(x, x)\nv = ReduceMean(s, axes)\ne = Add(v, eps)\nr = Sqrt(e)\nd = Div(x, r)\nn = Mul(d, g)\n" + TURN.replace("@", "n").replace("ny", "y").rstrip(),
        "rotary-normalization", device="cuda", inputs={"x": (2, 5, 3, 8)}, near_output="n",
        values={"axes": np.array([3]), "eps": 1e-6, "g": (8,), "zero": np.array([0]), "four": np.array([4]), "eight": np.array([8]), "last": np.array([3]), "cos": (5, 1, 8), "sin": (5, 1, 8)}),
    Row("rotary embedding of unbound pairs", "p = Reshape(x, pairs)\na, b = Split<axis=-1, num_outputs=2>(p)\ne = Squeeze(a, end)\nf = Squeeze(b, end)\nn = Neg(f)\nu = Unsqueeze(n, end)\nv = Unsqueeze(e, end)\n"
        "j = Concat<axis=-1>(u, v)\nr = Reshape(j, flat)\nc = Mul(x, cos)\ns = Mul(r, sin)\ny = Add(c, s)", "rotary-embedding", inputs={"x": (2, 5, 3, 8)},
        values={**PAIR_VALUES, "pairs": np.array([2, 5, 3, 4, 2]), "end": np.array([-1]), "cos": (5, 1, 8), "sin": (5, 1, 8)}, near_output="j"),
    Row("angles repeated for both halves of a row", "f = Concat<axis=-1>(x, x)\ncos = Cos(f)\nsin = Sin(f)\n" + TURN.replace("@", "z").replace("zy", "y") + TURN.replace("@", "u").replace("uy", "v").rstrip(),
        "rotary-table", layers=4, inputs={"x": (5, 1, 4), "z": (2, 5, 3, 8), "u": (2, 5, 3, 8)}, outputs=("v",),
        values={"zero": np.array([0]), "four": np.array([4]), "eight": np.array([8]), "last": np.array([3])}, near=(("f = Concat<axis=-1>(x, x)", "g = Sin(x)\nf = Concat<axis=-1>(x, g)"),)),
    Row("attention of two joined streams", "".join(f"{n}1 = Transpose<perm=[0,2,1,3]>({n})\n{n}2 = Transpose<perm=[0,2,1,3]>({m})\n{n}h = Concat<axis=2>({n}1, {n}2)\n" for n, m in ("qa", "kb")) +
        "kt = Transpose<perm=[0,1,3,2]>(kh)\ns = MatMul(qh, kt)\np = Softmax<axis=-1>(s)\ny = MatMul(p, v)", "concatenation-shuffle", layers=3,
        inputs={**dict.fromkeys("qk", (2, 5, 2, 8)), **dict.fromkeys("ab", (2, 2, 2, 8)), "v": (2, 2, 7, 8)},
        near=(("q2 = Transpose<perm=[0,2,1,3]>(a)", "q2 = Transpose<perm=[2,0,1,3]>(a)"), ("k2 = Transpose<perm=[0,2,1,3]>(b)", "k2 = Transpose<perm=[2,0,1,3]>(b)"))),
    Row("attention of rotated heads", "q = Transpose<perm=[0,2,1,3]>(x)\nk = Transpose<perm=[0,2,1,3]>(z)\n" + TURN.replace("@", "q") + TURN.replace("@", "k") +
        "kt = Transpose<perm=[0,1,3,2]>(ky)\ns = MatMul(qy, kt)\np = Softmax<axis=-1>(s)\ny = MatMul(p, v)", "heads-shuffle", layers=3,
        inputs={"x": (2, 5, 2, 8), "z": (2, 5, 2, 8), "v": (2, 2, 5, 8)},
        values={"zero": np.array([0]), "four": np.array([4]), "eight": np.array([8]), "last": np.array([3]), "cos": (5, 8), "sin": (5, 8)},
        near_values={"cos": (2, 2, 5, 8), "sin": (2, 2, 5, 8)}),
    Row("attention with a mask", "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\nt = Mul(s, c)\nu = Add(t, m)\n"
        "p = Softmax<axis=-1>(u)\ny = MatMul(p, v)", "attention", inputs={**HEADS, "m": (2, 1, 1, 5)}, values={"c": 0.35}, near_output="p"),
    Row("an operand that is expanded", "t = Expand(z, shape)\ny = Mul(x, t)", "expand-operand", inputs={"x": (6, 16), "z": (1, 16)},
        values={"shape": np.array([6, 16])}, near=(("Mul(x, t)", "Concat<axis=0>(x, t)"),)),
    Row("a function of what is expanded", "t = Expand(z, shape)\nu = Sin(t)\ny = Softmax(u)", "pointwise-expand", layers=3, inputs={"z": (6, 1)},
        values={"shape": np.array([6, 16])}, near_output="t"),
    Row("attention with an expanded mask", "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\nb = Cast<to=9>(m)\ne = Expand(b, shape)\n"
        "w = Where(e, zero, low)\nu = Add(s, w)\np = Softmax<axis=-1>(u)\ny = MatMul(p, v)", "expand-operand", layers=2,
        inputs={**HEADS, "m": (2, 1, 1, 5)}, values={"shape": np.array([2, 1, 5, 5]), "zero": 0.0, "low": -1e4},
        near_values={"shape": np.array([2, 2, 2, 5, 5])}),
    Row("matrix product + bias + activation", "t = MatMul(x, w)\nu = Add(t, b)\ny = Relu(u)", "matmul-pointwise", inputs=ROWS_2D,
        values={"w": (16, 12), "b": (12,)}, near_output="t"),
    Row("matrix product + scale", "t = MatMul(x, w)\ny = Mul(t, s)", "matmul-scale", inputs=ROWS_2D,
        values={"w": (16, 12), "s": (12,)}, near_output="t"),
    Row("matrix product + bias per head", "t = MatMul(x, w)\nu = Reshape(t, heads)\ny = Add(u, b)", "reshape-operands", inputs=ROWS_2D,
        values={"w": (16, 8), "heads": np.array([6, 2, 4]), "b": (2, 4)}, near_output="u"),
    Row("transpose + matrix product", "t = Transpose<perm=[0,2,1]>(z)\ny = MatMul(x, t)", "shuffle-matmul",
        inputs={"x": (5, 6, 5), "z": (5, 5, 5)}, near=(("perm=[0,2,1]", "perm=[1,2,0]"),)),
    Row("epilogue of a reduction", "t = ReduceMax(x, axes)\nu = Mul(t, c)\ny = Tanh(u)", "reduce-pointwise",
        values={"axes": np.array([1]), "c": 0.5}, near_output="t"),
    Row("prologue of softmax", "t = Mul(x, c)\ny = Softmax(t)", "softmax-prologue", inputs=ROWS_2D, values={"c": 0.5}, near_output="t"),
    Row("epilogue of softmax", "t = Softmax(x)\ny = Mul(t, c)", "softmax-pointwise", inputs=ROWS_2D, values={"c": 3.0}, near_output="t"),
    Row("epilogue of pooling", "t = MaxPool<kernel_shape=[2,2]>(x)\ny = Relu(t)", "pooling-pointwise", near_output="t"),
    Row("prologue of pooling", "t = Sin(x)\ny = MaxPool<kernel_shape=[2,3], strides=[2,3], pads=[1,0,0,1]>(t)", "pooling-prologue", near_output="t"),
    Row("ReLU before overlapping maxima", "t = Relu(x)\ny = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(t)", "pooling-monotone", near_output="t"),
    Row("normalisation and ReLU before maxima", "n = BatchNormalization(x, g, b, m, v)\nt = Relu(n)\ny = MaxPool<kernel_shape=[3,3], strides=[2,2]>(t)", "pooling-monotone",
        values={"g": np.linspace(0.5, 2, 8), "b": (8,), "m": (8,), "v": np.linspace(0.5, 2, 8)}, near_values={"g": np.linspace(-0.5, 2, 8)}),
    Row("prologue of padded averages", "t = Exp(x)\ny = AveragePool<kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(t)",
        "pooling-prologue", near=(("strides=[2,2]", "strides=[2,1]"),)),
    Row("prologue of pooling of whole images", "t = Mul(x, c)\nu = Abs(t)\ny = MaxPool<kernel_shape=[6,6]>(u)", "pooling-prologue", values={"c": 0.5}, near_values={"c": (8, 1, 1)}),
    Row("quantisation and dequantisation before averages", QDQ + "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(d)", "pooling-prologue", values=SCALES,
        near=(("strides=[2,2]", "strides=[1,1]"),)),
    Row("normalisation and ReLU before the average of an image", "c = Conv<pads=[1,1,1,1]>(x, w)\nn = BatchNormalization(c, g, b, m, v)\nt = Relu(n)\ny = GlobalAveragePool(t)",
        "pooling-channels", device="cuda", layers=2, outputs=("c",), values={**W, "g": (8,), "b": (8,), "m": (8,), "v": np.linspace(0.5, 2, 8)}, near=(("GlobalAveragePool(t)", "AveragePool<kernel_shape=[3,3]>(t)"),)),
    Row("a gate before averages", "c = Conv<pads=[1,1,1,1]>(x, w)\np = GlobalMaxPool(c)\ns = Sigmoid(p)\nt = Mul(c, s)\ny = AveragePool<kernel_shape=[2,2], strides=[2,2]>(t)",
        "pooling-channels", device="cuda", layers=3, values=W, near=(("strides=[2,2]", "strides=[1,1]"),)),
    Row("gather of a constant", "t = Gather(table, rows)\ny = Add(x, t)", "", inputs=ROWS_2D,
        values={"table": (9, 16), "rows": np.array([3, 1, 4, 1, 5, 8])}, near=(("Gather(table, rows)", "Gather(x, rows)"),),
        near_values={"rows": np.array([3, 1, 4, 1, 5, 0])}),
    Row("gather of one index", "t = Gather<axis=0>(x, row)\ny = Exp(t)", "gather-slice", inputs=ROWS_2D, values={"row": np.array(2)},
        near=(("Gather<axis=0>(x, row)", "Gather<axis=0>(x, rows)"),), near_values={"rows": np.array([3, 1, 2])}),
    Row("gather of a run of indices", "t = Gather<axis=1>(x, columns)\ny = Softmax<axis=1>(t)", "gather-slice", layers=2, inputs=ROWS_2D,
        values={"columns": np.array([-6, -4, -2])}, near_values={"columns": np.array([-6, -4, -1])}),
    Row("common subexpression", "a = Softmax(x)\nb = Softmax(x)\nc = Exp(a)\nd = Tanh(b)\ny = Sub(c, d)", "common-subexpression",
        inputs=ROWS_2D, near=(("b = Softmax(x)", "b = Softmax<axis=0>(x)"),)),
    Row("joined tensors joined with more", "a = Exp(x)\nb = Tanh(x)\ne = Sin(x)\ns = Concat<axis=0>(a, b)\nz = Softmax(s)\nt = Concat<axis=0>(a, b, e)\n"
        "y = Softmax(t)", "concatenation-part", layers=5, inputs={"x": (6, 16)}, outputs=("z",), near=(("(a, b, e)", "(b, a, e)"),)),
    Row("slices joined again", "p, q = Split<axis=1,num_outputs=2>(x)\nr = Exp(q)\nt = Concat<axis=1>(p, q, r)\ny = Softmax(t)", "concatenation-slices", layers=4,
        inputs=ROWS_2D, near=(("(p, q, r)", "(q, p, r)"),)),
    Row("cast there and back", "t = Cast<to=11>(x)\nu = Cast<to=1>(t)\ny = Relu(u)", "cast-chain", near=(("Cast<to=11>", "Cast<to=10>"),)),
    Row("a cast before a transpose", "t = Cast<to=10>(x)\ny = Transpose<perm=[0,2,3,1]>(t)", "transpose-pointwise", device="cuda", near_output="t"),
    Row("a quantisation behind a transpose", "t = Transpose<perm=[0,3,1,2]>(x)\ny = QuantizeLinear(t, s, i8)", "transpose-pointwise", device="cuda", values=SCALES,
        near=(("QuantizeLinear(t, s, i8)", "Exp(t)"),)),
    Row("sigmoid written out", "a = Neg(x)\nb = Exp(a)\nc = Add(b, one)\ny = Div(one, c)", "sigmoid", values={"one": 1.0}, near_values={"one": 1.1}),
    Row("softplus written out", "a = Exp(x)\nb = Add(a, one)\ny = Log(b)", "softplus", values={"one": 1.0}, near_values={"one": 1.2}),
    Row("constants computed at build", "c = DequantizeLinear(w, s)\ny = Mul(x, c)", "constant-fold",
        values={"w": np.arange(-4, 4, dtype=np.int8).reshape(8, 1, 1), "s": 0.5},
        near_output="c"),
    Row("activation of a normalisation", "t = LayerNormalization(x, g, b)\ny = Relu(t)", "normalization-pointwise", inputs=ROWS_2D,
        values={"g": (16,), "b": (16,)}, near_output="t"),
    Row("normalisation of a cast", "h = Cast<to=10>(x)\nt = Transpose<perm=[1,0]>(h)\nu = Cast<to=1>(t)\ny = LayerNormalization(u, g, b)",
        "normalization-cast", layers=3, on_gpu=2, inputs=ROWS_2D, values={"g": (6,), "b": (6,)}, near_output="u"),
    Row("a function of an epilogue's operand", "t = MatMul(x, w)\nu = Tanh(z)\ny = Mul(t, u)", "epilogue-operand", inputs={"x": (6, 16), "z": (6, 12)},
        values={"w": (16, 12)}, near_output="u"),
    Row("transposes of rows around a product", "t = Transpose<perm=[1,0,2]>(x)\nu = MatMul(t, w)\ny = Transpose<perm=[1,0,2]>(u)", "shuffle-rows",
        inputs=ROWS_3D, values={"w": (16, 12)}, near=(("u = MatMul(t, w)", "m = MatMul(t, w)\nu = Add(m, r)"),), near_values={"r": (5, 1, 1)}),
    Row("a reshape of rows behind a product", "t = MatMul(x, w)\nu = Reshape(t, shape)\ny = Add(u, z)", "reshape-rows",
        inputs={"x": (10, 16), "z": (2, 5, 12)}, values={"w": (16, 12), "shape": np.array([2, 5, 12])},
        near=(("t = MatMul(x, w)", "m = MatMul(x, w)\nt = Add(m, r)"),), near_values={"r": (10, 1)}),
    Row("a bias per head and element", "t = MatMul(x, w)\nr = Reshape(t, heads)\ny = Add(r, b)", "reshape-operands", inputs=ROWS_3D,
        values={"w": (16, 16), "heads": np.array([2, 5, 2, 8]), "b": (2, 8)}, near_output="r"),
    Row("a mask per window of a batch", "t = MatMul(x, z)\nr = Reshape(t, windows)\ns = Add(r, m)\ny = Reshape(s, whole)", "batch-operands",
        inputs={"x": (6, 2, 5, 8), "z": (6, 2, 8, 7)}, values={"windows": np.array([2, 3, 2, 5, 7]), "m": (3, 1, 5, 7), "whole": np.array([6, 2, 5, 7])}, near_values={"m": (3, 2, 5, 7)}),
    Row("a flattened channels-last image before a product", "t = Transpose<perm=[0,3,1,2]>(x)\nu = Flatten(t)\ny = MatMul(u, w)", "shuffle-weights",
        inputs={"x": (2, 4, 5, 3)}, values={"w": (60, 7)}, near=(("perm=[0,3,1,2]", "perm=[1,3,0,2]"),), near_values={"w": (30, 7)}),
    Row("grouped queries", "".join(f"{n}5 = Unsqueeze({n}, two)\n{n}x = Expand({n}5, repeat)\n{n}h = Reshape({n}x, heads)\n" for n in "kv") +
        "kt = Transpose<perm=[0,1,3,2]>(kh)\ns = MatMul(q, kt)\np = Softmax<axis=-1>(s)\ny = MatMul(p, vh)", "attention-heads",
        inputs={"q": (2, 4, 5, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 8)},
        values={"two": np.array([2]), "repeat": np.array([2, 2, 2, 5, 8]), "heads": np.array([2, 4, 5, 8])}, near_output="vx"),
    Row("heads that are transposed around attention", "qh = Transpose<perm=[0,2,1,3]>(q)\nkt = Transpose<perm=[0,2,3,1]>(k)\nvh = Transpose<perm=[0,2,1,3]>(v)\n"
        "s = MatMul(qh, kt)\np = Softmax<axis=-1>(s)\no = MatMul(p, vh)\ny = Transpose<perm=[0,2,1,3]>(o)", "attention-layout", inputs=dict.fromkeys("qkv", (2, 5, 2, 8)),
        near=(("qh = Transpose<perm=[0,2,1,3]>", "qh = Transpose<perm=[0,3,1,2]>"), ("perm=[0,2,3,1]", "perm=[0,3,2,1]"),
              ("vh = Transpose<perm=[0,2,1,3]>", "vh = Transpose<perm=[0,3,1,2]>"), ("y = Transpose<perm=[0,2,1,3]>", "y = Transpose<perm=[0,1,3,2]>"))),
    Row("projections of one tensor before attention", "".join(f"{n}p = MatMul(x, {n}w)\n{n}r = Reshape({n}p, split)\n{n}h = Transpose<perm=[0,2,1,3]>({n}r)\n" for n in "qkv") +
        "kt = Transpose<perm=[0,1,3,2]>(kh)\ns = MatMul(qh, kt)\np = Softmax<axis=-1>(s)\no = MatMul(p, vh)\nm = Transpose<perm=[0,2,1,3]>(o)\ny = Reshape(m, whole)",
        "packed-attention", layers=2, device="cuda", inputs=ROWS_3D,
        values={**dict.fromkeys(("qw", "kw", "vw"), (16, 16)), "split": np.array([2, 5, 2, 8]), "whole": np.array([2, 5, 16])},
        near=(("kp = MatMul(x, kw)", "z = Relu(x)\nkp = MatMul(z, kw)"),)),
    Row("a step of generation behind caches", "".join(f"{n}p = MatMul(x, {n}w)\n{n}r = Reshape({n}p, split)\n{n}h = Transpose<perm=[0,2,1,3]>({n}r)\n" for n in "qkv") +
        "kc = Concat<axis=2>(past_k, kh)\nvc = Concat<axis=2>(past_v, vh)\nkt = Transpose<perm=[0,1,3,2]>(kc)\ns = MatMul(qh, kt)\np = Softmax<axis=-1>(s)\ny = MatMul(p, vc)",
        "cache-append", layers=3, device="cuda", outputs=("kc", "vc"), inputs={"x": (2, 1, 16), "past_k": (2, 2, 4, 8), "past_v": (2, 2, 4, 8)},
        values={**dict.fromkeys(("qw", "kw", "vw"), (16, 16)), "split": np.array([2, 1, 2, 8])}, near=(("kp = MatMul(x, kw)", "z = Relu(x)\nkp = MatMul(z, kw)"),)),
    Row("batch first around an LSTM", "t = Transpose<perm=[1,0,2]>(x)\nh = LSTM<hidden_size=8>(t, w, r)\nu = Squeeze(h, one)\ny = Transpose<perm=[1,0,2]>(u)",
        "recurrence-layout", layers=2, inputs=ROWS_3D, values={"w": (1, 32, 16), "r": (1, 32, 8), "one": np.array([1])},
        near=(("t = Transpose<perm=[1,0,2]>(x)", "t = Relu(x)"), ("y = Transpose<perm=[1,0,2]>", "y = Transpose<perm=[0,2,1]>"))),
    Row("prologue of a matrix product", "t = Gelu(x)\ny = MatMul(t, w)", "matmul-prologue", measured=True, inputs=ROWS_2D, values={"w": (16, 12)}, near_output="t", opset=20),
    Row("scale and shift along the depth of a product", "a = Mul(x, c)\nb = Add(a, d)\nt = Relu(b)\ny = MatMul(t, w)", "matmul-prologue", measured=True, inputs=ROWS_3D,
        values={"w": (16, 12), "c": (16,), "d": (16,)}, near_values={"c": (3, 1, 1, 16)}),
    Row("prologue of Gemm", "t = Relu(x)\ny = Gemm<transB=1>(t, w, b)", "matmul-prologue", measured=True, inputs=ROWS_2D, values={"w": (12, 16), "b": (12,)},
        near=(("transB=1", "transA=1, transB=1"),), near_values={"w": (12, 6)}),
    Row("pre-activation of a convolution", "n = BatchNormalization(x, g, b, m, v)\nt = Relu(n)\nc = Conv(t, w)\ny = Add(c, x)", "convolution-prologue", measured=True,
        values={"w": (8, 8, 1, 1), "g": (8,), "b": (8,), "m": (8,), "v": np.linspace(0.5, 2, 8)}, near_output="t"),
    Row("squeeze and excitation before a convolution", "p = GlobalAveragePool(x)\ns = Sigmoid(p)\nt = Mul(x, s)\ny = Conv(t, w)", "convolution-prologue", measured=True,
        layers=2, values={"w": (12, 8, 1, 1)}, near_values={"w": (12, 8, 5, 5)}),
    Row("pre-activation of a strided convolution", "t = Relu(x)\ny = Conv<strides=[2,2]>(t, w)", "convolution-prologue", measured=True, device="cuda",
        values={"w": (8, 8, 1, 1)}, near_values={"w": (8, 8, 3, 3)}),
    Row("patches of an image", "t = Conv<strides=[4,4]>(x, w, b)\ny = Relu(t)", "convolution-patches", measured=True, layers=2, device="cuda",
        inputs={"x": (2, 3, 8, 12)}, values={"w": (16, 3, 4, 4), "b": (16,)}, near=(("strides=[4,4]", "strides=[4,4], pads=[4,0,0,0]"),)),
    Row("pixels that are merged between stages", "y = Conv<strides=[2,2]>(x, w)", "convolution-patches", measured=True, layers=2, device="cuda",
        values={"w": (12, 8, 2, 2)}, near=(("strides=[2,2]", "strides=[2,2], group=2"),), near_values={"w": (12, 4, 2, 2)}),
    Row("convolution of joined tensors", "t = Concat<axis=1>(x, z)\ny = Conv<pads=[1,1,1,1]>(t, w)", "convolution-concatenation", layers=2, measured=True,
        inputs=_pairs("x", "z"), values={"w": (8, 16, 3, 3)}, near_output="t"),
    Row("convolutions of one tensor", "a = Conv(x, w)\nb = Conv(x, v)\nc = GlobalMaxPool(a)\nd = GlobalMaxPool(b)\ny = Add(c, d)", "sibling-convolutions", layers=3,
        device="cpu", measured=True, inputs={"x": (1, 8, 6, 6)}, values={"w": (8, 8, 1, 1), "v": (8, 8, 1, 1)}, near_values={"v": (8, 8, 3, 3)}),
    Row("products of one tensor", "a = MatMul(x, w)\nb = MatMul(x, v)\nc = Softmax(a)\nd = Softmax(b)\ny = Add(c, d)", "sibling-products", layers=3,
        measured=True, inputs={"x": (1, 16)}, values={"w": (16, 12), "v": (16, 12)}, near_output="b"),
    Row("dequantised and quantised again", QDQ + "r = QuantizeLinear(d, s, i8)\ny = DequantizeLinear(r, s, i8)", "dequantize-quantize",
        values=SCALES, near=(("QuantizeLinear(d, s, i8)", "QuantizeLinear(d, s2, i8)"),)),
    Row("quantised convolution", QDQ + "w = DequantizeLinear(q8, s2, i8)\ny = Conv(d, w)", "quantized-convolution", layers=2,
        values={**SCALES, "q8": _bytes(8, 8, 3, 3)}, near=(("Conv(d, w)", "Conv(x, w)"),)),
    Row("quantised convolution + ReLU + quantisation", QDQ + "w = DequantizeLinear(q8, s2, i8)\nc = Conv(d, w)\nt = Relu(c)\nr = QuantizeLinear(t, s, i8)\n"
        "y = DequantizeLinear(r, s, i8)", "convolution-pointwise", layers=2, values={**SCALES, "q8": _bytes(8, 8, 3, 3)}, near_output="t"),
    Row("matrix product + GELU + quantisation", "a = MatMul(x, w)\nb = Gelu(a)\nt = Add(b, z)\nq = QuantizeLinear(t, s, i8)\ny = DequantizeLinear(q, s, i8)", "matmul-pointwise",
        layers=2, inputs={**ROWS_2D, "z": (6, 12)}, values={**SCALES, "w": (16, 12)}, near_output="a b t", opset=20),
    Row("attention + quantisation", "kt = Transpose<perm=[0,1,3,2]>(k)\na = MatMul(q, kt)\np = Softmax<axis=-1>(a)\nt = MatMul(p, v)\no = Transpose<perm=[0,2,1,3]>(t)\nr = QuantizeLinear(o, s, i8)\ny = DequantizeLinear(r, s, i8)",
        "attention-pointwise", layers=2, inputs={"q": (2, 2, 5, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 8)}, values=SCALES, near_output="t"),
    Row("convolution + ReLU + quantisation", CONV + "r = Relu(t)\nq = QuantizeLinear(r, s, i8)\ny = DequantizeLinear(q, s, i8)", "convolution-pointwise", layers=2,
        values={**W, **SCALES}, near_output="r"),
    Row("quantised convolution + residual sum", QDQ + "w = DequantizeLinear(q8, s2, i8)\nt = Conv<pads=[1,1,1,1]>(d, w)\nv = Add(t, d)\ny = Relu(v)",
        "convolution-sum", layers=2, values={**SCALES, "q8": _bytes(8, 8, 3, 3)}, near_output="t"),
    Row("quantised matrix product", QDQ + "w = DequantizeLinear(q8, s2, i8)\ny = MatMul(d, w)", "quantized-matmul", layers=2, inputs=ROWS_2D,
        values={**SCALES, "q8": _bytes(16, 12)}, near=(("DequantizeLinear(q8, s2, i8)", "DequantizeLinear<axis=0>(q8, many)"),),
        near_values={"many": np.linspace(0.1, 0.2, 16)}),
    Row("dequantisation before data movement", QDQ + "t = Transpose<perm=[1,0]>(d)\ny = Softmax(t)", "dequantize-forward", layers=4, on_gpu=3, inputs=ROWS_2D, values=SCALES,
        near=(("DequantizeLinear(q, s, i8)", "DequantizeLinear<axis=1>(q, many)"),), near_values={"many": np.linspace(0.1, 0.2, 16)}),
    Row("dequantisations of one scale, joined", "q = QuantizeLinear(x, s, i8)\nr = QuantizeLinear(z, s, i8)\nd = DequantizeLinear(q, s, i8)\ne = DequantizeLinear(r, s, i8)\n"
        "t = Concat<axis=0>(d, e)\ny = Softmax(t)", "dequantize-forward", layers=4, inputs={"x": (6, 16), "z": (6, 16)}, values=SCALES,
        near=(("QuantizeLinear(z, s, i8)", "QuantizeLinear(z, s2, i8)"), ("DequantizeLinear(r, s, i8)", "DequantizeLinear(r, s2, i8)"))),
    Row("quantisation behind data movement", "a = Softmax(x)\nt = Transpose<perm=[1,0]>(a)\nq = QuantizeLinear(t, s2, i8)\ny = DequantizeLinear(q, s2, i8)",
        "quantize-backward", layers=3, on_gpu=2, inputs=ROWS_2D, values=SCALES, near_output="t"),
    Row("packed weights", "w = DequantizeLinear<axis=0, block_size=32>(q8, many)\ny = MatMul(x, w)", "packed-matmul", inputs={"x": (4, 128)}, opset=21,
        values={"q8": _bytes(128, 128), "many": np.linspace(0.01, 0.02, 512).reshape(4, 128)}, near=(("block_size=32", "block_size=8"),),
        near_values={"many": np.linspace(0.01, 0.02, 2048).reshape(16, 128)}),
)  # fmt: skip
