"""docs/operators.md is what the registry says, and models with unknown operators are refused with all of them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from fusion.importer import UnsupportedModel, import_onnx
from fusion.importer.functions import absence
from trtcli.operators import page, rows

DOCS = Path(__file__).parents[2] / "docs"

# TensorRT 11's parser takes these (its operators.md).
TENSORRT = ["Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "Attention", "AveragePool", "BatchNormalization", "BlackmanWindow", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DeformConv", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization", "HammingWindow", "HannWindow", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If", "ImageScaler", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad", "ParametricSoftplus", "Pow", "QuantizeLinear", "RMSNormalization", "RNN", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "RotaryEmbedding", "Round", "STFT", "ScaledTanh", "Scan", "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh", "TensorScatter", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor"]


def test_the_page_is_current() -> None:
    text = (DOCS / "operators.md").read_text(encoding="utf-8")
    version = ".".join(onnx.__version__.split(".")[:2])
    if f"onnx {version};" not in text:
        pytest.skip("the page was made with another onnx, whose operators differ")
    assert text == page(), "run: python -m trtcli.operators > docs/operators.md"


def test_all_operators_of_tensorrt_are_taken() -> None:
    taken = {row.name for row in rows("")[0]}
    assert len(TENSORRT) == 159 and not set(TENSORRT) - taken


def test_few_operators_are_refused_and_each_says_why() -> None:
    refused = dict(rows("")[1])
    assert set(refused) <= {"ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"}
    assert all("which trtcli does not run" in why for why in refused.values())


def test_a_model_is_refused_with_all_its_nodes() -> None:
    nodes = [
        helper.make_node("StringConcat", ["a", "a"], ["t"], name="join"),
        helper.make_node("Foo", ["x"], ["f"], domain="my.domain"),
        helper.make_node("Relu", ["f"], ["r"], name="fine"),
        helper.make_node("TreeEnsemble", ["x"], ["e"], name="forest", domain="ai.onnx.ml"),
        helper.make_node("Nonsense", ["r"], ["n"], name="unknown"),
        helper.make_node("Foo", ["n"], ["y"], name="again", domain="my.domain"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]), helper.make_tensor_value_info("a", TensorProto.STRING, [2])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("y", "e")] + [
        helper.make_tensor_value_info("t", TensorProto.STRING, [2])
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my.domain", 3), helper.make_opsetid("ai.onnx.ml", 5)]
    with pytest.raises(UnsupportedModel) as found:
        import_onnx(helper.make_model(helper.make_graph(nodes, "mixed", inputs, outputs), opset_imports=opsets))
    listed = {(problem.node, problem.operator, problem.domain, problem.opset) for problem in found.value.problems}
    assert listed == {
        ("a", "input", "", 0), ("join", "StringConcat", "", 20), ("Foo_1", "Foo", "my.domain", 3),
        ("forest", "TreeEnsemble", "ai.onnx.ml", 5), ("unknown", "Nonsense", "", 20), ("again", "Foo", "my.domain", 3),
    }  # fmt: skip
    text = str(found.value)
    assert "mixed: 5 nodes and 1 input cannot be imported (Foo, Nonsense, StringConcat, TreeEnsemble)" in text
    assert "join: StringConcat (ai.onnx, opset 20): it works on texts, which trtcli does not run" in text
    assert "unknown: Nonsense (ai.onnx, opset 20): no such operator in this opset" in text
    assert "; near it" not in text
    assert "--plugins=FILE.py" in text and "classical machine learning" in text


@pytest.mark.parametrize(
    ("domain", "name", "advice"),
    [
        ("", "Softmx", "no such operator in this opset; near it: Softmax; --plugins=FILE.py"),
        ("", "EfficientNMS_TRT", "no such operator in this opset; near it: NonMaxSuppression; --plugins"),
        ("", "SkipLayerNormalization", "near it: com.microsoft.SkipLayerNormalization"),
        ("com.microsoft", "FusedMatMull", "near it: FusedMatMul;"),
        ("my.domain", "Relu", "trtcli does not support this operator; near it: ai.onnx.Relu; --plugins"),
    ],
)
def test_an_unknown_operator_names_those_near_it(domain: str, name: str, advice: str) -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(name, ["x"], ["y"], domain=domain)], "g", [info("x", TensorProto.FLOAT, [2])], [info("y", TensorProto.FLOAT, [2])]
    )
    with pytest.raises(UnsupportedModel) as found:
        import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid(one, 1 if one else 20) for one in {"", domain}]))
    assert advice in str(found.value)


def test_the_layouts_of_onnx_runtimes_cpu_kernels_are_refused_with_a_way_out() -> None:
    assert "ORT_ENABLE_EXTENDED" in absence("com.microsoft.nchwc", "Conv", 1)
