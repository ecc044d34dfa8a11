"""Names, origins, fates, outputs that are aliases, functions, folding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from fusion.importer import ModelError, import_onnx
from fusion.importer.registry import operators
from fusion.network import Fate, Network
from fusion.passes import optimize
from fusion.reference import run
from tests.models import onnxruntime_outputs


def parse(text: str, opset: int = 18) -> onnx.ModelProto:
    return parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')


def same(model: onnx.ModelProto, network: Network, *shape: int) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found, wanted = run(network, {"x": x}), onnxruntime_outputs(model, {"x": x})
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, 1e-5, 1e-6, err_msg=name)


def test_fates() -> None:
    model = parse("""g (float[2,3] x) => (float[2,3] y) {
        a = Identity(x) b = Relu(a) c = Constant<value_float = 2.0>() d = Mul(b, c) e = Cast<to = 1>(d) f = Neg(b) y = Dropout(e) }""")
    network = import_onnx(model)
    assert network.fates == {
        "Identity_0": Fate("no-op"),
        "Relu_1": Fate("layer", "Relu_1"),
        "Constant_2": Fate("folded"),
        "Mul_3": Fate("layer", "Mul_3"),
        "Cast_4": Fate("no-op"),
        "Neg_5": Fate("dead"),
        "Dropout_6": Fate("no-op"),
    }
    assert [(layer.name, layer.inputs, layer.outputs) for layer in network.layers] == [("Relu_1", ("x",), ("b",)), ("Mul_3", ("b",), ("y",))]
    same(model, network, 2, 3)


def test_layer_that_only_a_shape_needs_is_dead() -> None:
    model = parse("g (float[n,3] x) => (float[n,3] y) { a = Relu(x) s = Shape(a) y = Reshape(x, s) }")
    network = import_onnx(model)
    assert {name: fate.kind for name, fate in network.fates.items()} == {"Relu_0": "dead", "Shape_1": "folded", "Reshape_2": "no-op"}
    same(model, network, 4, 3)


def test_names_are_unique() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="n"), helper.make_node("Neg", ["a"], ["b"], name="n"),
             helper.make_node("Abs", ["b"], ["y"])]  # fmt: skip
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    network = import_onnx(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 18)]))
    assert [layer.name for layer in network.layers] == ["n", "n_1", "Abs_2"]
    assert [layer.origins for layer in network.layers] == [("n",), ("n_1",), ("Abs_2",)]
    assert list(network.fates) == ["n", "n_1", "Abs_2"]


def test_helper_layers_carry_the_node() -> None:
    model = parse("g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis = 1>(x) }", 11)
    network = import_onnx(model)
    assert [layer.name for layer in network.layers] == ["Softmax_0/flatten", "Softmax_0", "Softmax_0/unflatten"]
    assert {layer.origins for layer in network.layers} == {("Softmax_0",)}
    assert network.fates == {"Softmax_0": Fate("layer", "Softmax_0")}


@pytest.mark.parametrize(
    ("body", "outputs", "count"),
    [
        ("y = Identity(x)", "float[2,3] y", 1),  # an input as output
        ("a = Relu(x) y = Identity(a) z = Identity(a)", "float[2,3] y, float[2,3] z", 2),  # one tensor, two outputs
        ("y = Relu(x) z = Identity(y)", "float[2,3] y, float[2,3] z", 2),  # an output that others read
        ("y = Constant<value = float[2] {1, 2}>()", "float[2] y", 1),  # a constant
        ("a = Relu(x) y = Identity(a) b = Neg(y) z = Add(a, b)", "float[2,3] y, float[2,3] z", 3),
    ],
)
def test_outputs_that_are_aliases(body: str, outputs: str, count: int) -> None:
    model = parse(f"g (float[2,3] x) => ({outputs}) {{ {body} }}")
    network = import_onnx(model)
    assert len(network.layers) == count
    same(model, network, 2, 3)


def test_initializer_as_output() -> None:
    model = parse("g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {3, 4}> { y = Add(x, w) }")
    network = import_onnx(model)
    found = run(network, {"x": np.ones(2, np.float32)})
    np.testing.assert_array_equal(found["w"], [3, 4])
    np.testing.assert_array_equal(found["y"], [4, 5])


def test_initializers_listed_as_inputs() -> None:
    model = parse("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {3, 4}> { y = Add(x, w) }")
    assert import_onnx(model).inputs == ("x",)


def test_constant_subgraphs_are_folded() -> None:
    model = parse("""g (float[2,4] x) => (float[2,3] y) <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[1] s = {0.5}> {
        t = Transpose(w) u = Mul(t, s) n = ReduceMean<keepdims = 1>(u) c = Sub(u, n) y = MatMul(x, c) }""")
    network = import_onnx(model)
    assert [layer.name for layer in network.layers] == ["MatMul_4"]
    assert [network.fates[f"{name}"].kind for name in ("Transpose_0", "Mul_1", "ReduceMean_2", "Sub_3")] == ["folded"] * 4
    assert list(network.constants) == ["c"]
    same(model, network, 2, 4)


def test_large_fills_stay_layers() -> None:
    """256 MB of ones are made when needed, not stored."""
    model = parse("""g (float[8192] x) => (float[8192] y) <int64[2] s = {8192, 8192}> {
        m = ConstantOfShape<value = float[1] {1}>(s) y = MatMul(m, x) }""")
    network = import_onnx(model)
    assert [type(layer.op).__name__ for layer in network.layers] == ["Fill", "Shuffle", "MatrixMultiply", "Shuffle"]
    assert sum(array.nbytes for array in network.constants.values()) == 0


def test_model_local_functions() -> None:
    model = parse_model("""
        <ir_version: 9, opset_import: ["" : 18, "mine" : 1]>
        g (float[2,3] x) => (float[2,3] y) { a = mine.twice <alpha = 0.1>(x) y = mine.twice <alpha = 0.3>(a) }
        <opset_import: ["" : 18, "mine" : 1], domain: "mine"> twice <alpha>(v) => (w) {
            t = mine.leak<slope : float = @alpha>(v) w = Add(t, t) }
        <opset_import: ["" : 18], domain: "mine"> leak <slope>(v) => (w) { w = LeakyRelu<alpha : float = @slope>(v) }
    """)
    network = import_onnx(model)
    assert [layer.name for layer in network.layers] == [
        "twice_0/leak_0/LeakyRelu_0", "twice_0/Add_1", "twice_1/leak_0/LeakyRelu_0", "twice_1/Add_1",
    ]  # fmt: skip
    assert network.fates["twice_0"] == Fate("layer", "twice_0/Add_1")
    assert network.fates["twice_1/leak_0"] == Fate("layer", "twice_1/leak_0/LeakyRelu_0")
    assert all(set(layer.origins) <= set(network.fates) for layer in network.layers)
    (fused,) = optimize(network).network.layers
    assert optimize(network).network.fates["twice_0"] == optimize(network).network.fates["twice_1/leak_0"] == Fate("layer", fused.name)
    x = np.array([[-1, 2, -3], [4, -5, 6]], np.float32)
    once = 2 * np.where(x > 0, x, np.float32(0.1) * x)
    np.testing.assert_allclose(run(network, {"x": x})["y"], 2 * np.where(once > 0, once, np.float32(0.3) * once), 1e-6)


def test_functions_of_the_standard_belong_to_their_node() -> None:
    model = parse("g (float[2,3] x) => (float[2,3] y) { y = MeanVarianceNormalization<axes = [1]>(x) }")
    network = import_onnx(model)
    assert len(network.layers) > 1
    assert {layer.origins for layer in network.layers} == {("MeanVarianceNormalization_0",)}
    assert list(network.fates) == ["MeanVarianceNormalization_0"]
    same(model, network, 2, 3)


def test_constant_condition() -> None:
    branches = "<then_branch = a () => (float[2] t) { t = Relu(x) }, else_branch = b () => (float[2] e) { n = Neg(x) e = Exp(n) }>"
    for flag, count in ((1, 1), (0, 2)):
        model = parse(f"g (float[2] x) => (float[2] y) <bool c = {{{flag}}}> {{ y = If(c) {branches} }}")
        network = import_onnx(model)
        assert len(network.layers) == count
        assert network.fates["If_0"].kind == optimize(network).network.fates["If_0"].kind == "layer"
        dead = {name for name, fate in network.fates.items() if fate.kind == "dead"}
        assert dead == ({"If_0/else_branch/Neg_0", "If_0/else_branch/Exp_1"} if flag else {"If_0/then_branch/Relu_0"})
        assert len(network.fates) == 4, "the If, and the nodes of both branches"
        same(model, network, 2)


def test_what_is_inside_of_dead_nodes_is_dead() -> None:
    inner = "If(p) <then_branch = c () => (float[2] u) { u = Abs(x) }, else_branch = d () => (float[2] v) { v = Neg(x) }>"
    branches = f"<then_branch = a () => (float[2] t) {{ t = Relu(x) }}, else_branch = b () => (float[2] e) {{ e = {inner} }}>"
    model = parse(f"g (float[2] x, bool p) => (float[2] y) <bool c = {{1}}> {{ y = If(c) {branches} z = {inner} }}")
    assert {name: fate.kind for name, fate in import_onnx(model).fates.items()} == {
        "If_0": "layer", "If_0/Relu_0": "layer", "If_0/else_branch/If_0": "dead", "If_0/else_branch/If_0/then_branch/Abs_0": "dead",
        "If_0/else_branch/If_0/else_branch/Neg_0": "dead", "If_1": "dead", "If_1/then_branch/Abs_0": "dead", "If_1/else_branch/Neg_0": "dead",
    }  # fmt: skip


def test_nothing_between_input_and_output() -> None:
    graph = helper.make_graph([], "g", [helper.make_tensor_value_info("x", 1, [2])], [helper.make_tensor_value_info("x", 1, [2])])
    network = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert (network.inputs, network.outputs, network.layers) == (("x",), ("x",), ())


def test_sparse_initializer() -> None:
    values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1, 3])), [5])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, [5])],
                              [helper.make_tensor_value_info("y", 1, [5])], sparse_initializer=[sparse])  # fmt: skip
    network = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    np.testing.assert_array_equal(run(network, {"x": np.zeros(5, np.float32)})["y"], [0, 2, 0, 3, 0])


@pytest.mark.parametrize(
    ("values", "indices", "complaint"),
    [
        (np.float32([2, 3]), [1, 5], "sparse tensor 'w' of shape .5.*lie outside"),
        (np.float32([2, 3]), [1, -1], "lie outside"),
        (np.float32([2, 3]), [1, 2, 3], "for 2 values do not fit"),
        (np.float32([2, 3]), [[1, 1], [2, 2]], "do not fit"),
        (np.array(["a", "b"], object), [1, 2], "initializer w: tensors of type STRING"),
    ],
)
def test_bad_sparse_initializers(values: np.ndarray, indices: list, complaint: str) -> None:
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(values, "w"), numpy_helper.from_array(np.array(indices)), [5])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, [5])],
                              [helper.make_tensor_value_info("y", 1, [5])], sparse_initializer=[sparse])  # fmt: skip
    with pytest.raises(ModelError, match=complaint):
        import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def test_number_of_operators_only_grows() -> None:
    found = operators()
    assert len(found[""]) >= 138
    assert len(found["com.microsoft"]) >= 9


def test_onnx_is_imported_late() -> None:
    """``trtcli --help`` and loading an engine must not pay for onnx."""
    code = "import sys, fusion.importer, fusion.reference; assert 'onnx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
