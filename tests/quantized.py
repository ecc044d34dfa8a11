"""Small models quantised by ONNX Runtime's own quantiser: a residual network and a transformer's layer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

SHAPES = {"residual": (2, 3, 32, 32), "transformer": (2, 16, 32)}


class _Graph:
    """Nodes and weights so far; every method adds a node and returns the name of its output."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(3)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, *shape: int, fan: int = 1, integers: tuple[int, ...] | None = None) -> str:
        name = f"w{len(self.weights)}"
        values = np.array(integers, np.int64) if integers is not None else self.random.standard_normal(shape).astype(np.float32) / fan**0.5
        self.weights[name] = values
        return name

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(self, x: str, c: int, o: int, window: int, relu: bool = True, **attributes: object) -> str:
        per_group = c // int(attributes.get("group", 1))  # type: ignore[call-overload]
        w = self.weight(o, per_group, window, window, fan=per_group * window * window)
        x = self.node("Conv", x, w, self.weight(o), pads=[window // 2] * 4, **attributes)
        return self.node("Relu", x) if relu else x

    def dense(self, x: str, k: int, n: int) -> str:
        return self.node("Add", self.node("MatMul", x, self.weight(k, n, fan=k)), self.weight(n))

    def model(self, x_shape: tuple[int, ...], y: str) -> ModelProto:
        graph = helper.make_graph(
            self.nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )  # fmt: skip
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def residual() -> ModelProto:
    """Stem, max pooling, a residual block, a depthwise-separable pair, a transposed convolution, average pooling, classifier."""
    g = _Graph()
    x = g.node("MaxPool", g.conv("x", 3, 16, 3, strides=[2, 2]), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    y = g.conv(g.conv(x, 16, 16, 3), 16, 16, 1, relu=False)
    x = g.node("Relu", g.node("Add", y, x))
    x = g.conv(g.conv(x, 16, 16, 3, group=16), 16, 32, 1)
    x = g.node("Flatten", g.node("GlobalAveragePool", x))
    return g.model(SHAPES["residual"], g.node("Gemm", x, g.weight(10, 32, fan=32), g.weight(10), transB=1))


MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet(blocks: int = 17, width: float = 0.25) -> ModelProto:
    """MobileNetV2's first ``blocks`` inverted residuals, ``width`` of its channels, on images of 32 x 32. Source: Sandler et al., 2018, table 2."""
    g = _Graph()
    x, c, left = g.conv("x", 3, 16, 3, strides=[2, 2]), 16, blocks
    for expansion, channels, count, stride in MOBILENET:
        for number in range(min(count, left)):
            wide, out = c * expansion, max(8, int(channels * width))
            y = g.conv(x, c, wide, 1) if expansion > 1 else x
            y = g.conv(g.conv(y, wide, wide, 3, group=wide, strides=[stride if number == 0 else 1] * 2), wide, out, 1, relu=False)
            x, c = (g.node("Add", x, y) if number else y), out
        left = max(0, left - count)
    x = g.node("Flatten", g.node("GlobalAveragePool", x))
    return g.model((1, 3, 32, 32), g.node("Gemm", x, g.weight(10, c, fan=c), g.weight(10), transB=1))


def transformer() -> ModelProto:
    """One encoder layer: four heads of 8, residual sums, normalisation, GELU."""
    g = _Graph()

    def heads(x: str, order: tuple[int, ...]) -> str:
        x = g.node("Reshape", x, g.weight(integers=(2, 16, 4, 8)))
        return g.node("Transpose", x, perm=order)

    q, k, v = (heads(g.dense("x", 32, 32), order) for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)))
    scores = g.node("Softmax", g.node("Mul", g.node("MatMul", q, k), g.weight(1)), axis=-1)
    mixed = g.node("Transpose", g.node("MatMul", scores, v), perm=(0, 2, 1, 3))
    mixed = g.dense(g.node("Reshape", mixed, g.weight(integers=(2, 16, 32))), 32, 32)
    x = g.node("LayerNormalization", g.node("Add", mixed, "x"), g.weight(32), g.weight(32), axis=-1)
    wide = g.dense(x, 32, 64)
    wide = g.node("Mul", g.node("Erf", g.node("Mul", wide, g.weight(1))), wide)
    return g.model(SHAPES["transformer"], g.node("Add", g.dense(wide, 64, 32), x))


def fp8() -> ModelProto:
    """Two layers of a perceptron whose operands are quantised to float8 e4m3."""
    random = np.random.default_rng(4)
    nodes, weights = [], [helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])]
    x = "x"
    for number, (k, n) in enumerate(((32, 48), (48, 16))):
        name = f"w{number}"
        values = (random.standard_normal((k, n)) * 3).astype(np.float32)
        weights.append(helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, [k, n], values.reshape(-1).tolist()))
        weights += [numpy_helper.from_array(np.float32(0.05 / k**0.5), f"{name}_s"), numpy_helper.from_array(np.float32(0.04), f"s{number}")]
        weights.append(numpy_helper.from_array(random.standard_normal(n).astype(np.float32), f"b{number}"))
        nodes += [
            helper.make_node("QuantizeLinear", [x, f"s{number}", "zero"], [f"q{number}"], name=f"q{number}"),
            helper.make_node("DequantizeLinear", [f"q{number}", f"s{number}", "zero"], [f"dq{number}"], name=f"dq{number}"),
            helper.make_node("DequantizeLinear", [name, f"{name}_s", "zero"], [f"{name}_dq"], name=f"{name}_dq"),
            helper.make_node("MatMul", [f"dq{number}", f"{name}_dq"], [f"m{number}"], name=f"m{number}"),
            helper.make_node("Add", [f"m{number}", f"b{number}"], [f"a{number}"], name=f"a{number}"),
        ]
        x = f"a{number}"
    graph = helper.make_graph(nodes, "fp8", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [24, 32])],
                              [helper.make_tensor_value_info(x, TensorProto.FLOAT, [24, 16])], weights)  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


class _Batches(CalibrationDataReader):
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._left = iter([{name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)} for seed in range(3)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def prepared(model: ModelProto) -> ModelProto:
    """``model`` at operator set 13 (scales per channel) with batch normalisation folded by ONNX Runtime, as its quantiser recommends."""
    import onnxruntime

    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath, options.log_severity_level = str(Path(folder, "folded.onnx")), 3
        onnxruntime.InferenceSession(version_converter.convert_version(model, 13).SerializeToString(), options)
        return onnx.load(options.optimized_model_filepath)


def quantized(model: ModelProto, shape: tuple[int, ...], kind: str) -> ModelProto:
    """``model`` as ONNX Runtime quantises it. ``kind``: ``int8`` (symmetric, per channel), ``uint8`` (activations with zero points,
    per tensor), ``operators`` (QLinear operators), ``dynamic``, or ``partial`` (as ``int8``, but products of weights alone)."""
    with TemporaryDirectory() as folder:
        plain, made = Path(folder, "plain.onnx"), Path(folder, "quantized.onnx")
        onnx.save(model, plain)
        if kind == "dynamic":
            quantize_dynamic(plain, made, weight_type=QuantType.QInt8)
        else:
            symmetric, partial = kind in ("int8", "partial"), kind == "partial"
            weights = {one.name for one in model.graph.initializer}
            quantize_static(
                plain, made, _Batches(model.graph.input[0].name, shape),
                quant_format=QuantFormat.QOperator if kind == "operators" else QuantFormat.QDQ, per_channel=symmetric,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8, weight_type=QuantType.QInt8,
                extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True}, op_types_to_quantize=["MatMul"] if partial else None,
                nodes_to_exclude=[node.name for node in model.graph.node if partial and weights.isdisjoint(node.input)],
            )  # fmt: skip
        return onnx.load(made)


@cache
def small(name: str, kind: str) -> ModelProto:
    """A small quantised model. Shared: copy it before you change it."""
    return quantized({"residual": residual, "transformer": transformer}[name](), SHAPES[name], kind)


def last_scale(model: ModelProto) -> float:
    """The largest scale of a dequantisation that makes a model's output, or of any."""
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    outputs = {one.name for one in model.graph.output}
    scales = [constants[node.input[1]] for node in model.graph.node if node.op_type == "DequantizeLinear" and set(node.output) & outputs]
    return float(max((scale.max() for scale in scales), default=0.0))
