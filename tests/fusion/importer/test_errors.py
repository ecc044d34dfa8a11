"""Files that are no good: one readable line each, with the file's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from fusion.importer import ModelError, UnsupportedModel, import_onnx, import_with_report
from fusion.reference import run


def model_of(*nodes: onnx.NodeProto, opset: int = 18, weights: dict[str, np.ndarray] | None = None, **kwargs: object) -> onnx.ModelProto:
    """A model from ``x: float[n, 4]`` to ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **kwargs)


def relu() -> onnx.ModelProto:
    return model_of(helper.make_node("Relu", ["x"], ["y"]))


def message(source: object) -> str:
    with pytest.raises(ModelError) as caught:
        import_onnx(source)  # type: ignore[arg-type]
    return str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    text = message(tmp_path / "absent.onnx")
    assert text == f"{tmp_path / 'absent.onnx'}: no such file"


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in message(tmp_path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file is empty"),
        (b"\x00\xff garbage " * 20, "not an ONNX file"),
        (b'{"this": "is JSON"}', "not an ONNX file"),
        (relu().SerializeToString()[:-7], "not an ONNX file, or cut short"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a Git LFS pointer, not the model itself: 'git lfs pull' fetches it"),
        (b"\n <!DOCTYPE html><html>", "a web page, not a model: the download went wrong"),
        (b"PK\x03\x04" + bytes(40), "a zip archive, not an ONNX file: unpack it, or export a PyTorch model with torch.onnx.export"),
    ],
)
def test_bad_content(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    text = message(path)
    assert text.startswith(str(path))
    assert part in text
    assert "\n" not in text


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_our_error(content: bytes) -> None:
    with pytest.raises(ModelError):
        import_onnx(content)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_models_never_crash(data: st.DataObject) -> None:
    weights = {"w": np.ones((4, 4), np.float32), "s": np.array([0, 2, 2])}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Reshape", ["a", "s"], ["y"])]
    content = bytearray(model_of(*nodes, weights=weights).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        import_onnx(bytes(content))
    except ModelError as error:
        assert str(error)


@pytest.mark.parametrize(("opset", "part"), [(5, "opset 5 is older than 6"), (99, "opset 99 is unknown")])
def test_unknown_opset(opset: int, part: str) -> None:
    assert part in message(model_of(helper.make_node("Relu", ["x"], ["y"]), opset=opset))


def test_no_opset() -> None:
    model = relu()
    del model.opset_import[:]
    assert "names no opset" in message(model)


def test_cycle() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="one"), helper.make_node("Relu", ["a"], ["b"], name="two"),
             helper.make_node("Relu", ["b"], ["y"])]  # fmt: skip
    assert "cycle through node 'one'" in message(model_of(*nodes))


def test_unsorted_graph_is_sorted() -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"], name="last"), helper.make_node("Neg", ["x"], ["a"], name="first")]
    assert [layer.name for layer in import_onnx(model_of(*nodes)).layers] == ["first", "last"]


def test_tensor_that_nothing_makes() -> None:
    assert "node 'Add_0' reads tensor 'nowhere'" in message(model_of(helper.make_node("Add", ["x", "nowhere"], ["y"])))


def test_output_that_nothing_makes() -> None:
    assert "output 'y' is made by no node" in message(model_of(helper.make_node("Relu", ["x"], ["z"])))


def test_tensor_made_twice() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    assert "made by two nodes, 'Relu_0' and 'Neg_1'" in message(model_of(*nodes))


@pytest.mark.parametrize("kind", ["input", "initializer"])
def test_a_node_that_makes_what_is_given(kind: str) -> None:
    model = relu()
    if kind == "input":
        model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4]))
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "y"))
    assert f"tensor 'y' is made by node 'Relu_0', and is an {kind} of the graph as well" in message(model)


def test_an_input_named_twice() -> None:
    model = relu()
    model.graph.input.append(model.graph.input[0])
    assert "input 'x' stands twice in the graph" in message(model)


def test_initializers_of_one_name() -> None:
    """The same content twice is harmless; otherwise nobody can know which is meant."""
    model = model_of(helper.make_node("Add", ["x", "w"], ["y"]), weights={"w": np.ones(4, np.float32)})
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    assert import_onnx(model).outputs == ("y",)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "w"))
    assert "initializer 'w' stands twice in the graph, with different contents" in message(model)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"axis": 1.5}, "attribute 'axis' is FLOAT; ONNX has INT"),
        ({"axis": [1]}, "attribute 'axis' is INTS; ONNX has INT"),
        ({"axes": 1}, "attribute 'axes' is unknown to this operator; near it: axis"),
        ({"smoothing": 0.1}, "attribute 'smoothing' is unknown to this operator"),
    ],
)
def test_attributes_that_onnx_does_not_have_are_refused(attributes: dict[str, object], reason: str) -> None:
    assert f"Softmax_0: Softmax (ai.onnx, opset 18): {reason}" in message(model_of(helper.make_node("Softmax", ["x"], ["y"], **attributes)))


def test_attributes_that_became_inputs_are_refused() -> None:
    """They would be ignored, and all axes reduced."""
    text = message(model_of(helper.make_node("ReduceMax", ["x"], ["y"], axes=[1])))
    assert "attribute 'axes' is unknown to this operator in opset 18; it has it until opset 17, give the model that one or what" in text


def test_attributes_of_later_opsets_are_taken() -> None:
    """ReduceMax has noop_with_empty_axes from opset 18 on; what it says is clear."""
    node = helper.make_node("ReduceMax", ["x"], ["y"], axes=[1], noop_with_empty_axes=0)
    assert import_onnx(model_of(node, opset=13)).outputs == ("y",)


def test_weight_with_too_few_bytes() -> None:
    model = model_of(helper.make_node("MatMul", ["x", "w"], ["y"]), weights={"w": np.ones((4, 4), np.float32)})
    model.graph.initializer[0].dims[1] = 100
    assert "'w' of shape [4, 100] wants 1600 bytes and has 64" in message(model)


def test_unsupported_nodes_are_all_listed() -> None:
    nodes = [
        helper.make_node("TfIdfVectorizer", ["x"], ["a"], name="find"),
        helper.make_node("Frobnicate", ["x"], ["b"], domain="com.example"),
        helper.make_node("Cast", ["a"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ImageDecoder", ["c"], ["d"], name="after_a_missing_one"),
        helper.make_node("Add", ["b", "d"], ["y"]),
        helper.make_node("TfIdfVectorizer", ["x"], ["unused"], name="dead"),
    ]
    with pytest.raises(UnsupportedModel) as caught:
        import_onnx(model_of(*nodes))
    text = str(caught.value)
    assert [problem.node for problem in caught.value.problems] == ["find", "Frobnicate_1", "after_a_missing_one"]
    assert "g: 3 nodes cannot be imported (Frobnicate, ImageDecoder, TfIdfVectorizer)" in text
    assert "find: TfIdfVectorizer (ai.onnx, opset 18): " in text
    assert "Frobnicate_1: Frobnicate (com.example, opset 1)" in text


def test_axes_of_which_not_even_the_number_is_known_are_refused_by_name() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Reshape", ["i", "flat"], ["a"]),
             helper.make_node("ReduceSum", ["x", "a"], ["y"], name="sum")]  # fmt: skip
    weights = {"flat": np.array([-1], np.int64)}
    assert "sum: ReduceSum (ai.onnx, opset 18): its axes are computed, and so is how many there are" in message(model_of(*nodes, weights=weights))


def test_input_of_a_type_that_we_lack() -> None:
    model = relu()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    assert "input x: tensors of type STRING are not supported" in message(model)


@pytest.mark.parametrize(
    ("node", "part"),
    [
        (helper.make_node("Transpose", ["x"], ["y"], name="t", perm=[0, 0]), "t: Transpose (ai.onnx, opset 18): perm (0, 0)"),
        (helper.make_node("Softmax", ["x"], ["y"], name="s", axis=7), "s: Softmax (ai.onnx, opset 18): axis 7"),
        (helper.make_node("Concat", ["x", "x"], ["y"], name="c"), "c: Concat (ai.onnx, opset 18): attribute 'axis' is missing"),
        (helper.make_node("MatMul", ["x", "x"], ["y"], name="m"), "m: MatMul (ai.onnx, opset 18)"),
        (helper.make_node("Conv", ["x", "x"], ["y"], name="k"), "k: Conv (ai.onnx, opset 18): convolution over a tensor with 2"),
        (helper.make_node("Add", ["x", ""], ["y"], name="a"), "a: Add (ai.onnx, opset 18): input 1 is missing"),
        (helper.make_node("Gather", ["x"], ["y"], name="g"), "g: Gather (ai.onnx, opset 18): input 1 is missing"),
    ],
)
def test_malformed_nodes_are_named(node: onnx.NodeProto, part: str) -> None:
    model = model_of(node)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    assert part in message(model)


@pytest.mark.parametrize(
    ("node", "x", "z", "reason"),
    [
        ("MatMul(x, z)", "int8", "int8", "input 0 ('x') is INT8; ONNX allows FP32, FP16, BF16, FP64, INT32, INT64, uint32, uint64"),
        ("Sin(x)", "int32", "int32", "input 0 ('x') is INT32; ONNX allows FP32, FP16, BF16, FP64"),
        ("Add(x, z)", "bool", "bool", "input 0 ('x') is Bool; ONNX allows FP32,"),
        ("Add(x, z)", "float", "float16", "inputs 0 and 1 must have the same type, they are FP32 and FP16; put a Cast before one"),
        ("Concat<axis = 0>(x, x, z)", "float", "int32", "inputs 0 and 2 must have the same type, they are FP32 and INT32; put a Cast before one"),
        ("Gather(x, z)", "float", "float16", "input 1 ('z') is FP16; ONNX allows INT32, INT64"),
        ("If(x) <then_branch = t () => (float b) { b = Sum(x) }, else_branch = e () => (float b) { b = Sum(x) }>", "float", "float",
         "input 0 ('x') is FP32; ONNX allows Bool"),
        ("Relu(x, z)", "float", "float", "it has 2 inputs; ONNX gives this operator at most 1"),
    ],
)  # fmt: skip
def test_types_that_onnx_forbids_are_refused(node: str, x: str, z: str, reason: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g ({x}[2, 2] x, {z}[2, 2] z) => (float[a, b] y) {{ y = {node} }}')
    operator = node.split("(")[0].split("<")[0]
    assert f"{operator}_0: {operator} (ai.onnx, opset 18): {reason}" in message(model)


@pytest.mark.parametrize(
    ("node", "inputs", "reason"),
    [
        ("Concat<axis = 0>(x, z)", "float[2, 2] x, float[2, 2, 1] z", "tensors of 2, 3 dimensions cannot be joined along axis 0"),
        ("Concat<axis = 0>(x, z)", "float[2, 2] x, float[2, 3] z", "tensors with 2, 3 elements along axis 1 cannot be joined along axis 0"),
        ("Concat<axis = 0>(x, z)", "float[2, 1] x, float[2, 3] z", "tensors with 1, 3 elements along axis 1 cannot be joined along axis 0"),
        ("Gather(x, z)", "float x, int64[2] z", "axis 0 of a tensor with 0 dimensions"),
        ("Split<num_outputs = 2147483647>(x)", "float[8] x", "num_outputs is 2147483647, and it has 1 outputs"),
        ("QuantizeLinear<axis = 1, block_size = 2>(x, z)", "float[3, 4] x, float[3, 2, 1] z", "a slice of 2 dimensions of a tensor with 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(node: str, inputs: str, reason: str) -> None:
    """At import, with the node's name: no rule, kernel or list of slices must meet them."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => (float[a, b] y) {{ y = {node} }}')
    assert f": {node.split('<')[0].split('(')[0]} (ai.onnx, opset 21): {reason}" in message(model)


def test_types_of_later_opsets_are_taken() -> None:
    """Exporters write them: 8-bit Relu is ONNX's from opset 14, integer Clip from 12, mixed Pow from 12, float16 quantization from 19."""
    nodes = "r = Relu(x) c = Clip(i) p = Pow(h, f) q = QuantizeLinear(h, s, o)"
    tensors = "g (int8[2] x, int64[2] i, float16[2] h, float[2] f, float16 s) => (int8[2] r, int64[2] c, float16[2] p, int8[2] q) <int8 o = {0}>"
    network = import_onnx(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 11]> {tensors} {{ {nodes} }}'))
    assert [network.tensors[name].dtype.value for name in network.outputs] == ["int8", "int64", "float16", "int8"]
    old = "g (bfloat16[2] x) => (bfloat16[6] y) { y = Concat<axis = 0>(x, x, x) }"
    assert import_onnx(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 11]> {old}')).outputs == ("y",)


# --- external data ---------------------------------------------------------------------------------------------------


def external(folder: Path) -> Path:
    weights = {"w": np.arange(16, dtype=np.float32).reshape(4, 4), "b": np.arange(4, dtype=np.float32)}
    model = model_of(helper.make_node("Gemm", ["x", "w", "b"], ["y"]), weights=weights)
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_external_data(tmp_path: Path) -> None:
    network, report = import_with_report(external(tmp_path))
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    w = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_allclose(run(network, {"x": x})["y"], x @ w + np.arange(4), rtol=1e-5)
    assert (report.weights, report.weight_bytes, report.nodes) == (2, 80, 1)


def test_external_data_missing(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    text = message(path)
    assert text.startswith(f"{path}: tensor 'w': external data file")
    assert "not found" in text


def test_external_data_too_short(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"123")
    assert "too short for tensor 'w'" in message(path)


def test_external_data_outside_the_folder(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    assert "must lie in the model's folder" in message(path)


def test_external_data_of_bytes(tmp_path: Path) -> None:
    assert "give the model as a path" in message(external(tmp_path).read_bytes())
