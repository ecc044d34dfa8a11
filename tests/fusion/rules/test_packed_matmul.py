"""Products with weights of a few bits and real activations: the weights stay packed, in the network and through a build."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import trtcli
from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import MatrixMultiply, PackedMatrixMultiply
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from fusion.rules import packed_matmul, sibling_products
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import assert_same
from tests.fusion.rules.test_quantization import Build, activation, dequantize

K, N = 192, 128
TYPES = {"int4": (TensorProto.INT4, -8, 8), "uint4": (TensorProto.UINT4, 0, 16), "int8": (TensorProto.INT8, -128, 128), "uint8": (TensorProto.UINT8, 0, 256)}


def model(kind: str, block: int, transposed: bool = False, zeros: bool = True) -> bytes:
    """relu(MatMul(x, DequantizeLinear(w)) + bias) with blocks along the depth (``block`` 0: one scale per column)."""
    random = np.random.default_rng(5)
    proto, low, high = TYPES[kind]
    shape, axis = ((N, K), 1) if transposed else ((K, N), 0)
    scales = [size // block if block and n == axis else size for n, size in enumerate(shape)] if block else [N]
    made = {"w": random.integers(low, high, shape), "z": random.integers(low, high, scales)}
    weights = [helper.make_tensor(name, proto, value.shape, value.reshape(-1).tolist()) for name, value in made.items()]
    weights += [numpy_helper.from_array((random.random(scales) * 0.5 / high).astype(np.float32), "s"), numpy_helper.from_array(random.standard_normal(N).astype(np.float32), "b")]
    attributes = {"axis": axis, "block_size": block} if block else {"axis": 1 - axis}
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", *(["z"] if zeros else [])], ["dq"], "dq", **attributes)]
    if transposed:
        nodes.append(helper.make_node("Transpose", ["dq"], ["turned"], "turn", perm=[1, 0]))
    nodes += [
        helper.make_node("MatMul", ["x", "turned" if transposed else "dq"], ["p"], "product"),
        helper.make_node("Add", ["p", "b"], ["sum"], "add"), helper.make_node("Relu", ["sum"], ["y"], "relu"),
    ]  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, size]) for name, size in (("x", K), ("y", N)))
    graph = helper.make_graph(nodes, "packed", [x], [y], weights if zeros else [one for one in weights if one.name != "z"])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(
    ("kind", "block", "transposed", "zeros"), [("int4", 32, False, True), ("uint4", 64, True, True), ("int8", 16, False, True), ("uint8", 0, True, True), ("int4", 0, False, False)]
)
def test_one_layer_with_packed_weights(kind: str, block: int, transposed: bool, zeros: bool) -> None:
    imported = import_onnx(model(kind, block, transposed, zeros))
    for device in ("cpu", "cuda"):
        network = optimize(imported, FusionOptions(device=device)).network
        layer = only(network, PackedMatrixMultiply)
        assert kinds(network) == ["PackedMatrixMultiply"] and isinstance(layer.op, PackedMatrixMultiply)
        bits = 4 if "4" in kind else 8
        assert (layer.op.bits, layer.op.depth, layer.op.block) == (bits, K, block or K)
        assert network.constants[layer.inputs[1]].nbytes == N * K * bits // 8
        assert set(layer.origins) >= {"dq", "product", "add", "relu"}
        assert_same(imported, network, 2e-5)


def test_siblings_become_one_product() -> None:
    """The query, key and value products of one token."""
    build = Build()
    x = build.input("x", 1, 256)
    ends = []
    for name, columns in (("q", 128), ("k", 64), ("v", 64)):
        w = build.constant(f"{name}_w", build.random.integers(0, 256, (columns, 128)).astype(np.uint8))
        scale, zero = (build.constant(f"{name}_{what}", value.astype(np.float32)) for what, value in (
            ("s", build.random.random((columns, 8)) * 0.1), ("z", build.random.integers(0, 16, (columns, 8)))))  # fmt: skip
        y = build.layer(name, PackedMatrixMultiply(4, 256, 32), x, w, scale, zero)
        ends.append(build.pointwise(f"{name}_end", "exp", y))
    result = fuse(build.network(*ends), sibling_products.RULE)
    joined = only(result, PackedMatrixMultiply)
    assert [result.tensors[name].shape for name in joined.inputs] == [(1, 256), (256, 128), (256, 8), (256, 8)]
    assert kinds(result).count("Slice") == 3


def test_narrow_activations() -> None:
    imported = import_onnx(model("int4", 32))
    network = optimize(imported, FusionOptions(device="cuda", precision=DataType.HALF)).network
    layer = only(network, PackedMatrixMultiply)
    assert [network.tensors[name].dtype for name in layer.inputs[:4]] == [DataType.HALF, DataType.UINT8, DataType.HALF, DataType.HALF]


def near_misses() -> dict[str, tuple[Network, str]]:
    found = {}

    def case(condition: str, shape: tuple[int, ...], op: MatrixMultiply, x: tuple[int, ...], dtype: DataType = DataType.FLOAT) -> None:
        build = Build()
        w = build.constant("w", build.random.integers(-8, 8, shape).astype(np.int8))
        found[condition] = build.network(build.layer("product", op, build.input("x", *x, dtype=dtype), dequantize(build, "dq", w))), condition

    case("size", (32, 32), MatrixMultiply(), (3, 32))
    case("layout", (128, 128), MatrixMultiply(True), (128, 3))
    case("batch", (2, 128, 128), MatrixMultiply(), (2, 3, 128))
    build = Build()
    w, scale = (build.constant(name, value) for name, value in (("w", np.ones((128, 128), np.int8)), ("s", np.repeat(np.arange(1, 17, dtype=np.float32), 8)[:, None])))
    from tests.fusion.rules.test_quantization import X0, X1, dq_of

    y = build.layer("product", MatrixMultiply(), build.input("x", 3, 128), build.pointwise("dq", dq_of(X0, X1), w, scale))
    found["block"] = build.network(y), "block"
    return found


@pytest.mark.parametrize(("network", "condition"), near_misses().values(), ids=near_misses().keys())
def test_near_misses(network: Network, condition: str) -> None:
    assert refused(network, packed_matmul.RULE).condition == condition


def test_weights_that_others_read_stay_for_them() -> None:
    build = Build()
    w = dequantize(build, "dq", build.constant("w", build.random.integers(-8, 8, (128, 128)).astype(np.int8)))
    y = build.layer("product", MatrixMultiply(), build.input("x", 3, 128), w)
    result = fuse(build.network(y, build.pointwise("other", "relu", w)), packed_matmul.RULE)
    assert sorted(kinds(result)) == ["PackedMatrixMultiply", "Pointwise", "Pointwise"]


def test_products_of_quantised_activations_are_left_to_their_rule() -> None:
    build = Build()
    w = dequantize(build, "w_dq", build.constant("w", build.random.integers(-8, 8, (128, 128)).astype(np.int8)))
    network = build.network(build.layer("product", MatrixMultiply(), activation(build, 3, 128), w))
    assert kinds(fuse(network, packed_matmul.RULE)) == kinds(network)


@pytest.mark.parametrize("kind", ["int4", "uint8"])
def test_build_and_run_on_the_cpu(kind: str) -> None:
    data = model(kind, 32)
    engine = trtcli.build(data, device="cpu")
    assert engine.layers[0].tactic == "cpu.gemm.blas.dequantized"
    imported = import_onnx(data)
    x = np.random.default_rng(0).standard_normal((2, 3, K)).astype(np.float32)
    context, y = engine.create_execution_context(), np.full((2, 3, N), np.nan, np.float32)
    context.set_tensor_address("x", x)
    context.set_tensor_address("y", y)
    stream = context.device.stream()
    context.execute_async_v3(stream)
    stream.synchronize()
    np.testing.assert_allclose(y, run(imported, {"x": x})["y"], rtol=1e-4, atol=1e-4)
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # else it rounds the activations to 8 bits
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(y, session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-4)


