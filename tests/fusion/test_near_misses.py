"""What comes near a rule's pattern: the report names the rule, the condition that failed and the values seen; the catalogue has more."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.ops import Shuffle
from fusion.passes import FusionOptions, optimize
from tests.catalogue import CONV, HEADS, IMAGE, ROWS_2D, TURN, Row, W, model
from tests.fusion.networks import assert_same

HALVES = {"zero": np.array([0]), "four": np.array([4]), "eight": np.array([8]), "last": np.array([3])}
TURNED = {"x": (2, 3, 5, 8), "cos": (2, 1, 5, 8), "sin": (2, 1, 5, 8)}

SCORES = "kt = Transpose<perm=[0,1,3,2]>(k)\ns = MatMul(q, kt)\n"

# Per case: the row (its ``rule`` is the one that must be named), the condition, and a part of the detail.
CASES = [
    (Row("clips that do not meet", "t = Clip(x, a, b)\ny = Clip(t, c, d)", "relu-relu", values={"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}),
     "range", "clip to [2, 3] after clip to [0, 1]: the ranges do not meet"),
    (Row("a rectified clip below 0", "t = Clip(x, a, b)\ny = Relu(t)", "relu-relu", values={"a": -2.0, "b": -1.0}), "range", "clip to [-2, -1] is negative"),
    (Row("rectified twice, read between", "t = Relu(x)\ny = Relu(t)", "relu-relu", outputs=("t",)), "network output", "t is a network output"),
    (Row("GELU of which all is read", "a = Div(x, root)\nb = Erf(a)\nc = Add(b, one)\nd = Mul(x, c)\ny = Mul(d, half)", "gelu",
         values={"root": float(np.sqrt(2)), "one": 1.0, "half": 0.5}, outputs=("b", "d")), "network output", "d is a network output"),
    (Row("SiLU read by another", "s = Sigmoid(x)\nt = Mul(x, s)\nz = Softmax(s)\ny = Exp(t)", "swish", outputs=("z",)), "shared", "s is also read by Softmax2"),
    (Row("sigmoid of twice the number", "a = Mul(x, two)\nb = Neg(a)\nc = Exp(b)\nd = Add(c, one)\ne = Div(one, d)\ny = Add(e, x)", "sigmoid",
         values={"two": 1.05, "one": 1.1}), "values", "at x = "),
    (Row("softmax with and without logarithm", "t = Softmax(x)\nu = Log(t)\ny = Mul(t, u)", "softmax-log", inputs=ROWS_2D), "operands", "without the logarithm"),
    (Row("logarithm of log-softmax", "t = LogSoftmax(x)\ny = Log(t)", "softmax-log", inputs=ROWS_2D), "logarithm", "is a logarithm already"),
    (Row("exponentials that others read", "t = Exp(x)\nu = ReduceSum(t, axes)\ny = Log(u)", "log-sum-exp", inputs=ROWS_2D, values={"axes": np.array([1])},
         outputs=("t",)), "network output", "t is a network output"),
    (Row("a sum with and without logarithm", "t = Exp(x)\nu = ReduceSum(t, axes)\nv = Log(u)\ny = Mul(u, v)", "log-sum-exp", inputs=ROWS_2D,
         values={"axes": np.array([1])}), "operands", "without the logarithm"),
    (Row("mean of squares", "t = Mul(x, x)\ny = ReduceMean(t, axes)", "reduce-pooling", values={"axes": np.array([2, 3])}), "prologue", "is a mean of square(x)"),
    (Row("a scale", "t = Mul(x, c)\ny = Softmax<axis=2>(t)", "no-op", values={"c": 2.0}, outputs=("t",)), "values", "it makes mul(x, 2.0) of x; only x + 0"),
    (Row("rows backwards", "y = Slice(x, a, b, c, d)", "no-op", inputs=ROWS_2D,
         values={"a": np.array([5]), "b": np.array([-7]), "c": np.array([0]), "d": np.array([-1])}), "values", "in steps of -1, 1"),
    (Row("an image shifted", "y = Pad(x, pads)", "no-op", values={"pads": np.array([0, 0, 1, 0, 0, 0, -1, 0])}), "values", "0, 0, 1, 0 before and 0, 0, -1, 0 behind"),
    (Row("two pools of a tensor", "a = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)\nb = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(x)\n"
         "y = Concat<axis=1>(a, b)", "common-subexpression"), "attributes", "window is (3, 3) in MaxPool0, (5, 5) in MaxPool1"),
    (Row("slices in steps joined", "p = Slice(x, a, c, e, f)\nq = Slice(x, b, c, e, f)\ny = Concat<axis=1>(p, q)", "concatenation-slices", inputs=ROWS_2D,
         values={"a": np.array([1]), "b": np.array([0]), "c": np.array([16]), "e": np.array([1]), "f": np.array([2])}), "cut", "cut out of x in steps"),
    (Row("rotary embedding of other halves", TURN.replace("@", "x") + "y = Identity(xy)", "rotary-embedding", inputs=TURNED, values={**HALVES, "two": np.array([2]), "six": np.array([6])},
         near=(("xb = Slice(x, four, eight, last)", "xb = Slice(x, two, six, last)"),)), "halves", "Slice1 takes x from (0, 0, 0, 2), (2, 3, 5, 4) elements"),
    (Row("softmax along the wrong axis", SCORES + "p = Softmax<axis=2>(s)\ny = MatMul(p, v)", "attention", inputs=HEADS), "axis",
     "along axis 2; attention's is along the last, 3"),
    (Row("log-softmax between products", SCORES + "p = LogSoftmax<axis=-1>(s)\ny = MatMul(p, v)", "attention", inputs=HEADS), "logarithm", "of probabilities"),
    (Row("probabilities on the right", SCORES + "p = Softmax<axis=-1>(s)\ny = MatMul(vt, p)", "attention", inputs={**HEADS, "vt": (2, 2, 8, 5)}), "operands",
     "multiplies with the probabilities as they are"),
    (Row("probabilities squared", SCORES + "p = Softmax<axis=-1>(s)\nu = Mul(p, p)\ny = MatMul(u, v)", "attention", inputs=HEADS), "epilogue",
     "makes more of the probabilities"),
    (Row("convolution + sum that broadcasts it", CONV + "y = Add(t, z)", "convolution-sum", values=W, inputs={**IMAGE, "z": (3, 2, 8, 6, 6)}), "shape",
         "Add1 broadcasts 2x8x6x6 to 3x2x8x6x6"),
    (Row("convolution + minimum that broadcasts it", CONV + "y = Min(t, z)", "convolution-sum", inputs={"x": (1, 8, 6, 6), "z": (2, 8, 6, 6)}, values=W), "shape",
         "Min1 broadcasts 1x8x6x6 to 2x8x6x6"),
    (Row("convolution + maximum that broadcasts it", CONV + "y = Max(t, z)", "convolution-sum", inputs={"x": (1, 8, 6, 6), "z": (2, 8, 6, 6)}, values=W), "shape",
         "Max1 broadcasts 1x8x6x6 to 2x8x6x6"),
    (Row("convolution of width 1 + sum", "t = Conv(x, w)\ny = Add(t, z)", "convolution-sum", inputs={"x": (2, 8, 6, 3), "z": (2, 8, 4, 5)}, values=W), "shape",
         "Add1 broadcasts 2x8x4x1 to 2x8x4x5"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "condition", "detail"), CASES, ids=[case[0].name.replace(" ", "-") for case in CASES])
def test_what_comes_near_is_explained(row: Row, condition: str, detail: str) -> None:
    result = optimize(import_onnx(model(row, near=True)), FusionOptions())
    found = [miss for misses in result.misses.values() for miss in misses if miss.rule == row.rule]
    assert [miss for miss in found if miss.condition == condition and detail in miss.detail], result.misses
    assert row.rule not in result.counts


def test_the_rule_that_knows_more_speaks_first() -> None:
    result = optimize(import_onnx(model(Row("SiLU", "s = Sigmoid(x)\ny = Mul(x, s)", "swish", outputs=("s",)))))
    assert [miss.rule for miss in result.misses["Mul1"]] == ["swish", "pointwise"]
    (miss, *_) = result.misses["Sigmoid0"]
    assert miss.layers == ("Sigmoid0", "Mul1") and miss.tensors == ("s",)


def test_of_equally_near_rules_the_one_of_more_layers_speaks_first() -> None:
    text = "s = Mul(x, x)\nv = ReduceMean(s, axes)\ne = Add(v, eps)\nr = Sqrt(e)\ny = Div(x, r)"
    result = optimize(import_onnx(model(Row("RMS", text, "", inputs=ROWS_2D, values={"axes": np.array([1]), "eps": 1e-5}, outputs=("v",)))))
    assert [misses[0].rule for misses in result.misses.values()] == ["rms-normalization"] * 2


@pytest.mark.parametrize("options", [FusionOptions(device="cuda"), FusionOptions(precision=DataType.HALF)], ids=["cuda", "fp16"])
def test_what_casts_and_reformats_come_between_is_remembered(options: FusionOptions) -> None:
    row = Row("sum", CONV + "y = Add(t, z)", "", values=W, inputs={"x": (1, 8, 6, 6), "z": (3, 8, 6, 6)})
    result = optimize(import_onnx(model(row)), options)
    (found,) = {miss for misses in result.misses.values() for miss in misses if miss.rule == "convolution-sum"}
    assert (found.layers, found.condition) == (("Conv0", "Add1"), "shape")


def test_what_is_joined_after_all_is_not_missed() -> None:
    row = Row("sum", CONV + "u = Relu(t)\ny = Add(u, z)", "", values=W, inputs={"x": (1, 8, 6, 6), "z": (1, 8, 6, 6)})
    for options in (FusionOptions(device="cuda"), FusionOptions(device="cuda", precision=DataType.HALF)):
        assert not optimize(import_onnx(model(row)), options).misses


def test_movements_that_undo_each_other_between_input_and_output_are_a_copy() -> None:
    row = Row("copy", "t = Transpose<perm=[0,2,3,1]>(x)\nu = Reshape(t, a)\nv = Reshape(u, b)\ny = Transpose<perm=[0,3,1,2]>(v)", "",
              values={"a": np.array([2, 36, 8]), "b": np.array([2, 6, 6, 8])})  # fmt: skip
    network = import_onnx(model(row))
    result = optimize(network)
    (layer,) = result.network.layers
    assert layer.op == Shuffle(reshape=(2, 8, 6, 6)) and len(layer.origins) == 4
    assert_same(network, result.network)


@pytest.mark.parametrize("last", ["y = Div(x, t)", "y = Div(t, e)", "l = Log(t)\ny = Sub(x, l)", "l = Log(t)\ny = Sub(e, l)", "u = Div(e, t)\ny = Mul(u, x)"])
def test_quotients_that_are_a_softmax_and_that_are_none(last: str) -> None:
    row = Row("quotient", f"e = Exp(x)\nt = ReduceSum(e, axes)\n{last}", "", inputs=ROWS_2D, values={"axes": np.array([1])})
    network = import_onnx(model(row))
    result = optimize(network)
    assert result.counts.get("softmax", 0) == (last.startswith("u") or last.endswith("Sub(x, l)"))
    assert_same(network, result.network)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("text", "fuses"),
    [
        ("q = Mul(x, x)\nn = ReduceSum(q, axes)\nm = Max(n, e)\nr = Sqrt(m)\ni = Reciprocal(r)\ny = Mul(i, x)", True),  # TensorFlow's l2_normalize
        ("n = ReduceL2(x, axes)\ny = Div(x, n)", True),
        ("n = ReduceL2<keepdims=0>(x, axes)\nm = Max(n, e)\nr = Unsqueeze(m, axes)\ny = Div(x, r)", True),
        ("y = LpNormalization<axis=1>(x)", True),
        ("n = ReduceL2(x, axes)\nm = Min(n, e)\ny = Div(x, m)", False),
        ("n = ReduceL2(x, axes)\nm = Max(n, e)\ny = Div(m, x)", False),
        ("n = ReduceL1(x, axes)\nm = Max(n, e)\ny = Div(x, m)", False),
        ("n = ReduceL2(z, axes)\nm = Max(n, e)\ny = Div(x, m)", False),
        ("n = ReduceL2<keepdims=0>(x, axes)\nm = Max(n, e)\ny = Div(x, m)", False),  # square: the norms of rows, along columns
    ],
)
def test_divisions_by_norms_and_by_what_is_none(text: str, fuses: bool, device: str) -> None:
    row = Row("norm", text, "", inputs={"x": (6, 6), "z": (6, 6)}, values={"axes": np.array([1]), "e": 0.4})
    network = import_onnx(model(row))
    result = optimize(network, FusionOptions(device=device))
    assert (len(result.network.layers) == 1) is fuses, result.network.layers
    assert_same(network, result.network)


@pytest.mark.parametrize(
    ("last", "fuses"),
    [
        ("y = Add(m, l)", True), ("u = Add(l, m)\ny = Mul(u, z)", True), ("y = Add(l, z)", False), ("u = Mul(m, two)\ny = Add(l, u)", False),
        ("y = Sub(l, m)", False), ("k = ReduceMax(z, axes)\ny = Add(l, k)", False),
    ],
)  # fmt: skip
def test_sums_that_are_a_log_sum_exp_and_that_are_none(last: str, fuses: bool) -> None:
    text = f"m = ReduceMax(x, axes)\nd = Sub(x, m)\ne = Exp(d)\nt = ReduceSum(e, axes)\nl = Log(t)\n{last}"
    network = import_onnx(model(Row("sum", text, "", inputs={"x": (6, 16), "z": (6, 1)}, values={"axes": np.array([1]), "two": 2.0})))
    result = optimize(network)
    assert result.counts.get("log-sum-exp", 0) == fuses and (len(result.network.layers) == 1) is fuses
    assert_same(network, result.network)


def test_attention_whose_softmax_is_written_out() -> None:
    row = Row("attention", SCORES + "c = ReduceMax(s, axes)\nd = Sub(s, c)\ne = Exp(d)\nt = ReduceSum(e, axes)\np = Div(e, t)\ny = MatMul(p, v)", "", inputs=HEADS,
              values={"axes": np.array([3])})  # fmt: skip
    assert len(optimize(import_onnx(model(row))).network.layers) == 1
