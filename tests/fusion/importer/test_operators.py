"""Single operators, imported and evaluated, against ONNX Runtime; with dynamic sizes too, which must not change a result."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model
from onnx.reference import ReferenceEvaluator

from fusion.graph import Limits
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.reference import run
from tests.models import onnxruntime_outputs

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
TYPES = {np.dtype(np.float32): "FLOAT", np.dtype(np.float16): "FLOAT16", np.dtype(np.float64): "DOUBLE", np.dtype(np.int64): "INT64",
         np.dtype(np.int32): "INT32", np.dtype(bool): "BOOL", np.dtype(np.uint8): "UINT8", np.dtype(np.int8): "INT8"}  # fmt: skip


def floats(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def node_model(
    op: str, inputs: dict[str, np.ndarray], weights: dict[str, np.ndarray], *, opset: int, dynamic: bool, outputs: int = 1,
    domain: str = "", **attributes: object,
) -> onnx.ModelProto:  # fmt: skip
    """One node; an input or weight named ``""`` (by a leading ``_``) is left out."""
    names = ["" if name.startswith("_") else name for name in (*inputs, *weights)]
    node = helper.make_node(op, names, [f"y{index}" for index in range(outputs)], name="node", domain=domain, **attributes)
    infos = []
    for name, value in inputs.items():
        shape = [f"{name}_d{axis}" for axis in range(value.ndim)] if dynamic else value.shape
        infos.append(helper.make_tensor_value_info(name, getattr(TensorProto, TYPES[value.dtype]), shape))
    graph = helper.make_graph(
        [node],
        "g",
        infos,
        [helper.make_empty_tensor_value_info(f"y{index}") for index in range(outputs)],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if not name.startswith("_")],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8 if opset < 19 else 10)


def check(
    op: str, inputs: dict[str, np.ndarray], weights: dict[str, np.ndarray] | None = None, *, opset: int = 17, tolerance: float = 1e-5,
    dynamic: bool | None = None, **attributes: object,
) -> Network:  # fmt: skip
    """Runs a node with fixed, then with dynamic sizes; gives the network with fixed ones."""
    network = None
    for flag in (False, True) if dynamic is None else (dynamic,):
        model = node_model(op, inputs, weights or {}, opset=opset, dynamic=flag, **attributes)
        imported = import_onnx(model)
        network = network or imported
        wanted, found = onnxruntime_outputs(model, inputs), run(imported, inputs)
        for name, value in wanted.items():
            assert found[name].dtype == value.dtype
            assert found[name].shape == value.shape, f"dynamic: {flag}"
            if value.dtype.kind == "f":
                np.testing.assert_allclose(found[name], value, tolerance, tolerance, err_msg=f"dynamic: {flag}")
            else:
                np.testing.assert_array_equal(found[name], value, err_msg=f"dynamic: {flag}")
        assert imported.fates["node"].kind in ("layer", "no-op")
    assert network is not None
    return network


# --- convolution and pooling -----------------------------------------------------------------------------------------


@quick
@given(
    st.integers(1, 3), st.integers(1, 3), st.lists(st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(0, 2)] * 2), min_size=1, max_size=3),
    st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]), st.booleans(),
)  # fmt: skip
def test_conv(groups: int, per_group: int, axes: list[tuple[int, ...]], auto_pad: str, bias: bool) -> None:
    kernel, stride, dilation, pre, post = (list(item) for item in zip(*axes, strict=True))
    if auto_pad != "NOTSET":
        dilation = [1] * len(axes)
    x = floats(2, groups * per_group, *(9 + index for index in range(len(axes))))
    weights = {"w": floats(groups * 2, per_group, *kernel, seed=1)}
    if bias:
        weights["b"] = floats(groups * 2, seed=2)
    attributes: dict[str, object] = {"strides": stride, "dilations": dilation, "group": groups}
    attributes |= {"pads": pre + post} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    check("Conv", {"x": x}, weights, **attributes)


@quick
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(0, 1), st.booleans(), st.booleans())
def test_conv_transpose(groups: int, kernel: int, stride: int, pad: int, extra: int, bias: bool, flat: bool) -> None:
    assume(extra < stride and kernel > 2 * pad)
    rank = 1 if flat else 2
    weights = {"w": floats(groups * 2, 3, *[kernel] * rank, seed=1)}
    if bias:
        weights["b"] = floats(groups * 3, seed=2)
    attributes = {"strides": [stride] * rank, "pads": [pad] * 2 * rank, "output_padding": [extra] * rank, "group": groups}
    check("ConvTranspose", {"x": floats(2, groups * 2, *[5] * rank)}, weights, **attributes)


def test_conv_transpose_output_shape() -> None:
    weights = {"w": floats(2, 3, 3, 3, seed=1)}
    check("ConvTranspose", {"x": floats(1, 2, 5, 6)}, weights, strides=[2, 2], output_shape=[10, 12], dynamic=False)
    check("ConvTranspose", {"x": floats(1, 2, 5, 6)}, weights, strides=[2, 2], auto_pad="SAME_UPPER", dynamic=False)


@quick
@given(
    st.sampled_from(["MaxPool", "AveragePool", "LpPool"]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(0, 1),
    st.booleans(), st.booleans(), st.integers(6, 9),
)  # fmt: skip
def test_pool(op: str, kernel: int, stride: int, pre: int, post: int, ceil: bool, include: bool, size: int) -> None:
    assume(pre < kernel and post < kernel)
    attributes: dict[str, object] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pre, pre, post, post]}
    if op != "LpPool":
        attributes["ceil_mode"] = int(ceil)
    if op == "AveragePool":
        attributes["count_include_pad"] = int(include)
    check(op, {"x": floats(2, 3, size, size + 1)}, **attributes)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pool(op: str) -> None:
    check(op, {"x": floats(2, 3, 5, 4)})


# --- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 1, 3, 4), (6, 4, 5)), ((4,), (2, 4, 5)), ((2, 3, 4), (4,))],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check("MatMul", {"a": floats(*a), "b": floats(*b, seed=1)})
    check("MatMul", {"a": floats(*a)}, {"b": floats(*b, seed=1)})


@quick
@given(st.booleans(), st.booleans(), st.sampled_from([1.0, 0.5]), st.sampled_from([1.0, -2.0, 0.0]), st.sampled_from([None, (5,), (3, 1), (3, 5), (1,), ()]))
def test_gemm(ta: bool, tb: bool, alpha: float, beta: float, c: tuple[int, ...] | None) -> None:
    weights = {"b": floats(*((5, 4) if tb else (4, 5)), seed=1)}
    if c is not None:
        weights["c"] = floats(*c, seed=2)
    network = check(
        "Gemm", {"a": floats(*((4, 3) if ta else (3, 4)))}, weights, transA=int(ta), transB=int(tb), alpha=alpha, beta=beta,
        dynamic=False if c in ((3, 1), (3, 5)) else None,  # such a bias fixes the number of rows
    )  # fmt: skip
    assert len(network.layers) == 1, "scale and bias belong into the epilogue"


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("bqhd,bkhd->bhqk", [(2, 4, 3, 5), (2, 6, 3, 5)]),
        ("...ij,jk->...ik", [(2, 3, 4), (4, 5)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
        ("ij->ji", [(2, 3)]),
        ("ij->", [(2, 3)]),
        ("ii->i", [(3, 3)]),
        ("i,j->ij", [(3,), (4,)]),
        ("ij,ij->i", [(3, 4), (3, 4)]),
        ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)]),
        ("bij,bjk", [(2, 3, 4), (2, 4, 5)]),
        ("bchw,bkc->bkhw", [(2, 3, 4, 5), (2, 6, 3)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    inputs = {f"x{index}": floats(*shape, seed=index) for index, shape in enumerate(shapes)}
    check("Einsum", inputs, equation=equation, dynamic=False)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_einsum_of_small_integers_stays_small(dtype: type) -> None:
    """Sums wrap as NumPy's do."""
    x, y = (np.random.default_rng(seed).integers(0, 100, (3, 3)).astype(dtype) for seed in (0, 1))
    (found,) = run(import_onnx(node_model("Einsum", {"x": x, "y": y}, {}, opset=17, dynamic=False, equation="ij,jk->ik")), {"x": x, "y": y}).values()
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.einsum("ij,jk->ik", x, y))


# --- normalisation, reduction, softmax -------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_batch_normalization(rank: int) -> None:
    x = floats(2, 3, *range(4, 2 + rank))
    weights = {"scale": floats(3, seed=1), "bias": floats(3, seed=2), "mean": floats(3, seed=3), "var": np.abs(floats(3, seed=4)) + 0.1}
    network = check("BatchNormalization", {"x": x}, weights, epsilon=1e-3, opset=15)
    assert len(network.layers) == 1
    check("BatchNormalization", {"x": x, **weights}, epsilon=1e-3, opset=15, dynamic=False)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5), (1, 3, 7)])
def test_batch_normalization_by_its_own_statistics(shape: tuple[int, ...]) -> None:
    """As exporters write standardised weights (NFNet)."""
    x, scale, bias = floats(*shape), floats(3, seed=1), floats(3, seed=2)
    weights = {"scale": scale, "bias": bias, "mean": floats(3, seed=3), "var": np.abs(floats(3, seed=4))}
    model = node_model("BatchNormalization", {"x": x}, weights, epsilon=1e-3, training_mode=1, opset=15, dynamic=False)
    (found,) = run(import_onnx(model), {"x": x}).values()
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    wide = x.astype(np.float64)
    normal = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-3)
    rest = (1,) * (len(shape) - 2)
    np.testing.assert_allclose(found, normal * scale.reshape(-1, *rest) + bias.reshape(-1, *rest), 1e-5, 1e-5)


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_layer_normalization(axis: int) -> None:
    x = floats(2, 3, 4)
    weights = {"scale": floats(*x.shape[axis:], seed=1), "bias": floats(*x.shape[axis:], seed=2)}
    check("LayerNormalization", {"x": x}, weights, axis=axis)
    check("LayerNormalization", {"x": x}, {"scale": weights["scale"]}, axis=axis, outputs=3, dynamic=False)


def test_other_normalizations() -> None:
    x = floats(2, 6, 4, 5)
    check("InstanceNormalization", {"x": x}, {"scale": floats(6, seed=1), "bias": floats(6, seed=2)}, epsilon=1e-3, dynamic=False)
    check("LRN", {"x": x}, size=3, alpha=0.1, beta=0.6, bias=1.5)
    check("LpNormalization", {"x": x}, axis=1, p=1)
    check("LpNormalization", {"x": x}, axis=-1, p=2)
    check("MeanVarianceNormalization", {"x": x}, axes=[0, 2, 3], dynamic=False)


REDUCTIONS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize(("axes", "keep"), [([1], 1), ([-1, 0], 0), (None, 0), (None, 1), ([0, 1, 2], 1)])
def test_reduce(op: str, axes: list[int] | None, keep: int) -> None:
    x = {"x": floats(2, 3, 4)}
    given = {} if axes is None else {"axes": axes}
    if op != "ReduceSum":
        check(op, x, opset=13, keepdims=keep, **given)
    check(op, x, {} if axes is None else {"axes": np.array(axes)}, opset=18, keepdims=keep)
    check(op, x, opset=18, keepdims=keep, noop_with_empty_axes=1)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("opset", [11, 13])
def test_softmax(op: str, axis: int, opset: int) -> None:
    check(op, {"x": floats(2, 3, 4)}, axis=axis, opset=opset)
    check(op, {"x": floats(2, 3, 1, 1)}, axis=axis, opset=opset)


# --- movement --------------------------------------------------------------------------------------------------------


@quick
@given(st.data())
def test_slice(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    far = st.sampled_from([2**31 - 1, 2**63 - 1, -(2**31), -(2**63)])
    bounds = st.one_of(st.integers(-8, 8), far)
    starts, ends = ([data.draw(bounds) for _ in axes] for _ in range(2))
    steps = [data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in axes]
    # Backwards to a far positive end is nothing by NumPy's rules, which ONNX cites; ONNX Runtime takes it as "to the start".
    assume(all(step > 0 or end < 2**31 - 1 for step, end in zip(steps, ends, strict=True)))
    weights = {"starts": np.array(starts), "ends": np.array(ends), "axes": np.array(axes), "steps": np.array(steps)}
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    model = node_model("Slice", {"x": x}, weights, opset=13, dynamic=False)
    found = run(import_onnx(model), {"x": x})["y0"]
    np.testing.assert_array_equal(found, onnxruntime_outputs(model, {"x": x})["y0"])


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(0, 3, 1), (1, 2**31 - 1, 1), (-2, 2**63 - 1, 1), (0, -1, 1), (1, -1, 2), (-1, -(2**31), -1), (4, 0, -2), (-1, -4, -1), (0, 99, 1)],
)
def test_slice_of_dynamic_axis(start: int, end: int, step: int) -> None:
    weights = {"starts": np.array([start]), "ends": np.array([end]), "axes": np.array([1]), "steps": np.array([step])}
    check("Slice", {"x": floats(2, 7)}, weights, opset=13)


def test_split() -> None:
    x = {"x": floats(2, 7)}
    check("Split", x, {"split": np.array([2, 5])}, axis=1, opset=13, outputs=2)
    check("Split", x, axis=1, num_outputs=3, opset=18, outputs=3, dynamic=False)
    check("Split", {"x": floats(6, 2)}, axis=0, opset=13, outputs=3)
    check("Split", x, axis=-1, split=[3, 4], opset=11, outputs=2)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad(mode: str) -> None:
    x = {"x": floats(2, 3, 4, 5)}
    pads = [0, 0, 1, 2, 0, 0, 2, 1]
    check("Pad", x, {"pads": np.array(pads)}, mode=mode, opset=13)
    check("Pad", x, pads=pads, mode=mode, opset=10)
    check("Pad", x, {"pads": np.array([1, 2]), "_value": np.zeros(1), "axes": np.array([-1])}, mode=mode, opset=18)
    if mode == "constant":
        check("Pad", x, {"pads": np.array(pads), "value": np.float32(1.5)}, opset=13)
        check("Pad", x, {"pads": np.array([0, 0, -1, 0, 0, 0, 0, -2])}, opset=13)


def test_shapes() -> None:
    x = {"x": floats(2, 6, 4)}
    check("Reshape", x, {"shape": np.array([0, 3, -1])})
    check("Reshape", x, {"shape": np.array([-1])})
    check("Flatten", x, axis=2)
    check("Flatten", x, axis=0)
    check("Transpose", x)
    check("Transpose", x, perm=[1, 0, 2])
    check("Unsqueeze", x, {"axes": np.array([0, -1])}, opset=13)
    check("Unsqueeze", x, axes=[1], opset=11)
    check("Squeeze", {"x": floats(1, 3, 1)}, {"axes": np.array([0])}, opset=13)
    check("Squeeze", {"x": floats(1, 3, 1)}, opset=13, dynamic=False)
    check("Expand", {"x": floats(3, 1)}, {"shape": np.array([2, 1, 4])}, dynamic=False)
    check("Tile", x, {"repeats": np.array([2, 1, 3])})
    check("Concat", {"a": floats(2, 3), "b": floats(2, 5), "c": floats(2, 1)}, axis=1, dynamic=False)
    check("DepthToSpace", {"x": floats(2, 12, 3, 5)}, blocksize=2, mode="DCR")
    check("DepthToSpace", {"x": floats(2, 12, 3, 5)}, blocksize=2, mode="CRD")
    check("SpaceToDepth", {"x": floats(2, 3, 4, 6)}, blocksize=2)


RESIZES = [
    ({"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, [1, 1, 2, 2]),
    ({"mode": "nearest"}, [1, 1, 1.5, 0.7]),
    ({"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, [1, 1, 2, 3]),
    ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, [1, 1, 2, 2]),
    ({"mode": "linear"}, [1, 1, 0.6, 1.3]),
    ({"mode": "cubic", "cubic_coeff_a": -0.5}, [1, 1, 2, 2]),
]


@pytest.mark.parametrize(("attributes", "scales"), RESIZES)
def test_resize(attributes: dict[str, object], scales: list[float]) -> None:
    x = {"x": floats(1, 2, 6, 10)}
    check("Resize", x, {"_roi": np.zeros(0), "scales": np.array(scales, np.float32)}, opset=13, **attributes)
    sizes = {"_roi": np.zeros(0), "_scales": np.zeros(0), "sizes": np.array([1, 2, 9, 7])}
    check("Resize", x, sizes, opset=13, dynamic=False, **attributes)


def test_upsample() -> None:
    x = {"x": floats(1, 2, 3, 4)}
    check("Upsample", x, {"scales": np.array([1, 1, 2, 3], np.float32)}, mode="nearest", opset=9)
    check("Upsample", x, scales=[1.0, 1.0, 2.0, 2.0], mode="linear", opset=7)
    check("Resize", x, {"scales": np.array([1, 1, 2, 3], np.float32)}, mode="nearest", opset=10)


# --- indices and order -----------------------------------------------------------------------------------------------


def test_gather() -> None:
    x = {"x": floats(4, 5, 6)}
    check("Gather", x, {"i": np.array([[0, -1], [3, 2]])}, axis=0)
    check("Gather", x, {"i": np.array(2)}, axis=1)
    check("GatherElements", {"x": floats(3, 3)}, {"i": np.array([[0, 2, 1], [-1, 0, 0]])}, axis=0)
    check("GatherND", x, {"i": np.array([[0, 1], [3, 4]])})
    indices, updates = np.array([[0], [2]]), floats(2, 5, 6, seed=1)
    check("ScatterND", x, {"i": indices, "u": updates})
    check("ScatterElements", {"x": floats(3, 3)}, {"i": np.array([[0, 2, 1]]), "u": floats(1, 3, seed=1)}, axis=0)
    check("ReverseSequence", {"x": floats(4, 3, 2)}, {"n": np.array([1, 4, 3])}, batch_axis=1, time_axis=0, dynamic=False)


def test_one_hot() -> None:
    indices = {"i": np.array([[0, -1], [3, 7]])}
    for axis in (-1, 0, 1):
        check("OneHot", indices, {"depth": np.array(4), "values": np.array([-1.0, 2.0], np.float32)}, axis=axis)


def test_order() -> None:
    x = {"x": floats(3, 7)}
    check("TopK", x, {"k": np.array([3])}, axis=1, outputs=2)
    check("TopK", x, {"k": np.array([2])}, axis=0, largest=0, outputs=2)
    for op in ("ArgMax", "ArgMin"):
        check(op, x, axis=1, keepdims=0)
        check(op, {"x": np.ones((2, 4), np.float32)}, axis=1, select_last_index=1)
    check("CumSum", x, {"axis": np.array(1)})
    check("CumSum", x, {"axis": np.array(0)}, exclusive=1, reverse=1)
    check("Trilu", {"x": floats(2, 4, 5)}, {"k": np.array(1)}, upper=1)
    check("Trilu", {"x": floats(4, 4)}, upper=0)
    check("EyeLike", x, k=1, dynamic=False)


# --- elementwise -----------------------------------------------------------------------------------------------------

UNARY = [
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp",
    "Floor", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Round",
    "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh",
    "ThresholdedRelu",
]  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str) -> None:
    network = check(op, {"x": floats(3, 50) * 2})
    assert len(network.layers) == 1


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Mean", "Sum", "Equal", "Less", "Greater", "LessOrEqual"])
def test_binary(op: str) -> None:
    network = check(op, {"x": floats(3, 4) + 3}, {"w": np.array(1.5, np.float32)})
    assert not network.constants, "a constant of one element is a literal"
    check(op, {"x": floats(2, 3, 4) + 3}, {"w": floats(4, seed=1)})
    check(op, {"x": floats(2, 3, 4) + 3, "y": floats(3, 1, seed=1)}, dynamic=False)


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_any_number_of_operands(op: str) -> None:
    """As many layers as kernels with few operands need, whatever Python's stack holds."""
    network = check(op, {f"x{n}": floats(2, 3, seed=n) for n in range(30)}, dynamic=False)
    assert len(network.layers) == 3 and max(len(layer.inputs) for layer in network.layers) <= Limits.operands
    text = f"g (float[2] x) => (float[2] y) {{ y = {op}({', '.join(['x'] * 2000)}) }}"
    assert len(import_onnx(parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')).layers) == 182


def test_small_constant_of_higher_rank_stays_an_operand() -> None:
    network = check("Add", {"x": floats(4)}, {"w": floats(1, 1, seed=1)})
    assert network.tensors["y0"].shape == (1, 4)


def test_integers() -> None:
    a, b = np.array([7, -7, 9, 5]), np.array([2, 2, -4, 3])
    for op in ("Div", "Mod", "Mul"):
        check(op, {"a": a, "b": b})
    check("Mod", {"a": a, "b": b}, fmod=1)
    check("BitShift", {"a": np.array([8, 3], np.uint8), "b": np.array([1, 2], np.uint8)}, direction="LEFT")
    for dtype in (np.int32, np.int64, np.int8, np.uint8):
        check("Shrink", {"a": np.array([0, 1, 2, 3, 100], dtype) - (0 if dtype is np.uint8 else dtype(2))}, lambd=1.5, bias=1.5)
    check("Not", {"a": np.array([True, False])})
    check("Xor", {"a": np.array([True, False]), "b": np.array([True, True])})
    check("Where", {"c": np.array([True, False])}, {"a": np.array([1, 2]), "b": np.array(5)})


def test_clip_and_cast() -> None:
    x = {"x": floats(3, 4) * 5}
    check("Clip", x, {"lo": np.float32(0), "hi": np.float32(6)})
    check("Clip", x, {"lo": np.float32(0)})
    check("Clip", x, {"_lo": np.float32(0), "hi": np.float32(1)})
    check("Clip", x, min=-1.0, max=2.0, opset=10)
    for name in ("INT32", "FLOAT16", "DOUBLE", "BOOL", "INT64"):
        check("Cast", x, to=getattr(TensorProto, name))
    assert check("Cast", x, to=TensorProto.FLOAT, dynamic=False).fates["node"].kind in ("no-op", "layer")
    check("Gelu", x, opset=20)
    check("Gelu", x, approximate="tanh", opset=20)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantization(dtype: type) -> None:
    x = {"x": floats(2, 3, 4) * 3}
    check("QuantizeLinear", x, {"s": np.float32(0.05), "z": np.array(3, dtype)})
    check("QuantizeLinear", x, {"s": np.abs(floats(3, seed=1)) / 20, "z": np.zeros(3, dtype)}, axis=1, dynamic=False)
    q = {"x": np.random.default_rng(0).integers(0, 100, (2, 3, 4)).astype(dtype)}
    check("DequantizeLinear", q, {"s": np.float32(0.05), "z": np.array(3, dtype)})
    check("DequantizeLinear", q, {"s": floats(3, seed=1), "z": np.array([1, 2, 3], dtype)}, axis=1)


@pytest.mark.parametrize(
    ("op", "weights", "attributes"),
    [
        ("FastGelu", {}, {}),
        ("FastGelu", {"b": floats(4, seed=1)}, {}),
        ("Gelu", {}, {}),
        ("BiasGelu", {"b": floats(4, seed=1)}, {}),
        ("QuickGelu", {}, {"alpha": 1.5}),
        ("FusedMatMul", {"w": floats(5, 4, seed=1)}, {"transB": 1, "alpha": 0.5}),
        ("SkipLayerNormalization", {"s": floats(2, 3, 4, seed=1), "g": floats(4, seed=2), "b": floats(4, seed=3)}, {"epsilon": 1e-5}),
        ("SkipLayerNormalization",
         {"s": floats(2, 3, 4, seed=1), "g": floats(4, seed=2), "b": floats(4, seed=3), "c": floats(4, seed=4)}, {"epsilon": 1e-5}),
        ("SkipSimplifiedLayerNormalization", {"s": floats(2, 3, 4, seed=1), "g": floats(4, seed=2)}, {"epsilon": 1e-5}),
    ],
)  # fmt: skip
def test_microsoft(op: str, weights: dict[str, np.ndarray], attributes: dict[str, object]) -> None:
    check(op, {"x": floats(2, 3, 4)}, weights, domain="com.microsoft", dynamic=False, tolerance=2e-5, **attributes)


def test_attention() -> None:
    """One layer in the simple forms; what it does not cover goes through the ONNX function."""
    q, k, v = (floats(2, 3, 5, 8, seed=index) for index in range(3))
    model = node_model("Attention", {"q": q, "k": k, "v": v}, {}, opset=23, dynamic=False)
    network = import_onnx(model)
    assert [type(layer.op).__name__ for layer in network.layers] == ["Attention"]
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(run(network, {"q": q, "k": k, "v": v})["y0"], wanted, 1e-4, 1e-5)


def _attention(shapes: dict[str, tuple[int, ...]], **attributes: object) -> None:
    """One attention layer beside reshapes, transposes and concatenations; results as those of onnx's reference."""
    inputs = {name: floats(*shape, seed=index) for index, (name, shape) in enumerate(shapes.items())}
    order = [name if name in inputs else "" for name in ("q", "k", "v", "mask", "past_k", "past_v")]
    while not order[-1]:
        order.pop()
    outputs = ["y"] if "past_k" not in inputs else ["y", "present_k", "present_v"]
    node = helper.make_node("Attention", order, outputs, "node", **attributes)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info(name) for name in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    network = import_onnx(model)
    assert {type(layer.op).__name__ for layer in network.layers} <= {"Attention", "Shuffle", "Concatenation"}
    found = run(network, inputs)
    for name, wanted in zip(outputs, ReferenceEvaluator(model).run(outputs, inputs), strict=True):
        np.testing.assert_allclose(found[name], wanted, 1e-4, 1e-5, err_msg=name)


def test_attention_with_a_cap_a_window_or_a_past() -> None:
    whole = dict.fromkeys("qkv", (2, 4, 6, 8))
    _attention(whole, softcap=0.5)
    _attention(whole | {"mask": (6, 6)}, softcap=0.5, is_causal=1)
    _attention(whole, is_causal=1, left_window_size=2)
    _attention(whole, left_window_size=0, right_window_size=0)
    _attention(whole, is_causal=1, right_window_size=3)
    past = dict.fromkeys(("past_k", "past_v"), (2, 2, 3, 8))
    _attention({"q": (2, 4, 1, 8), "k": (2, 2, 1, 8), "v": (2, 2, 1, 8)} | past)
    _attention({"q": (2, 5, 32), "k": (2, 5, 16), "v": (2, 5, 16)} | past, is_causal=1, q_num_heads=4, kv_num_heads=2, left_window_size=3)


def test_attention_forms_of_the_function_body() -> None:
    """What one layer does not say goes through ONNX's function."""
    inputs = {name: floats(1, 2, size, 8, seed=index) for index, (name, size) in enumerate((("q", 3), ("k", 5), ("v", 5)))}
    for attributes in ({"is_causal": 1}, {"right_window_size": 1}, {"left_window_size": 1}):
        model = node_model("Attention", inputs, {}, opset=25, dynamic=False, **attributes)
        network = import_onnx(model)
        assert "Attention" not in {type(layer.op).__name__ for layer in network.layers}
        (wanted,) = ReferenceEvaluator(model).run(None, inputs)
        np.testing.assert_allclose(next(iter(run(network, inputs).values())), wanted, 1e-4, 1e-5)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("part", [0, 4])
def test_rotary_embedding(interleaved: int, rank: int, part: int) -> None:
    x = floats(2, 5, 24) if rank == 3 else floats(2, 3, 5, 8)
    half = (part or 8) // 2
    attributes: dict[str, object] = {"interleaved": interleaved, "rotary_embedding_dim": part} | ({"num_heads": 3} if rank == 3 else {})
    for positions in (None, np.array([[4, 0, 1, 2, 3]] * 2)):
        tables = [floats(*((2, 5) if positions is None else (7,)), half, seed=seed) for seed in (1, 2)]
        inputs = {"x": x, "cos": tables[0], "sin": tables[1]} | ({} if positions is None else {"positions": positions})
        model = node_model("RotaryEmbedding", inputs, {}, opset=23, dynamic=False, **attributes)
        network = import_onnx(model)
        assert {type(layer.op).__name__ for layer in network.layers} <= {"RotaryEmbedding", "Shuffle", "Gather"}
        (wanted,) = ReferenceEvaluator(model).run(None, inputs)
        np.testing.assert_allclose(next(iter(run(network, inputs).values())), wanted, 1e-5, 1e-5)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention_over_values_and_masks_of_other_types(softcap: float) -> None:
    q, k, v = (floats(1, 2, 4, 8, seed=index, dtype=dtype) for index, dtype in enumerate((np.float16, np.float16, np.float32)))
    inputs = {"q": q, "k": k, "v": v, "mask": np.array([[0, -5, 3, 1]] * 4, np.int32)}
    (found,) = run(import_onnx(node_model("Attention", inputs, {}, opset=23, dynamic=False, softcap=softcap)), inputs).values()
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) / np.sqrt(8)
    scores = (softcap * np.tanh(scores / softcap) if softcap else scores) + inputs["mask"]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, weights / weights.sum(-1, keepdims=True) @ v, 6e-3, 3e-3)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_types(dtype: type) -> None:
    weights = np.arange(12).reshape(3, 4).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [2, 3])],
        [helper.make_tensor_value_info("y", kind, [2, 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    x = floats(2, 3).astype(dtype)
    found = run(import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])), {"x": x})["y"]
    assert found.dtype == np.dtype(dtype)
    wanted = x.astype(np.float64) @ weights.astype(np.float64)
    np.testing.assert_allclose(found.astype(np.float64), wanted, 1e-2, 1e-2)


def test_int4_weights_are_held_as_int8() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,2] x) => (float[1,4] y) <int4[2,4] q, float[4] s = {1, 2, 3, 4}> {
        w = DequantizeLinear<axis = 1>(q, s) y = MatMul(x, w) }"""
    model = parse_model(text)
    tensor = helper.make_tensor("q", TensorProto.INT4, [2, 4], [1, -2, 3, -4, 5, 6, -7, -8])
    model.graph.initializer.append(tensor)
    del model.graph.value_info[:]
    x = np.array([[1, 10]], np.float32)
    wanted = x @ (np.array([[1, -2, 3, -4], [5, 6, -7, -8]]) * [1, 2, 3, 4])
    np.testing.assert_allclose(run(import_onnx(model), {"x": x})["y"], wanted)
