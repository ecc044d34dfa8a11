"""A depthwise convolution and the 1x1 convolution of its result become one layer, where the builder tries that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusion.dtypes import DataType
from fusion.graph import Limits
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import Convolution, SeparableConvolution
from fusion.ops.epilogue import IDENTITY
from fusion.passes import FusionOptions, optimize
from fusion.rules import separable_convolution
from fusion.serial import from_json, to_json
from tests.fusion.fusing import assert_same, fuse, kinds, only, refused
from tests.fusion.rules.test_convolution import EPILOGUES, Convs
from tests.quantized import mobilenet, quantized

FLOAT, HALF, INT8 = DataType.FLOAT, DataType.HALF, DataType.INT8
RULE = separable_convolution.RULE
DEPTHWISE = Convolution((2, 1), (1, 1), (1, 1), (1, 1), 6)
POINTWISE = Convolution((1, 1), (0, 0), (0, 0), (1, 1))


def pair(depthwise: Convolution = DEPTHWISE, pointwise: Convolution = POINTWISE, *, filters: tuple[int, ...] = (6, 1, 3, 3), weights: tuple[int, ...] = (10, 6, 1, 1),
         dtype: DataType = FLOAT, shared: str = "", constant: bool = True) -> Network:  # fmt: skip
    """Depthwise convolution, bias, ReLU, 1x1 convolution, bias; ``shared``: what lies between is an ``output`` too, or read by a ``reader``."""
    build = Convs()

    def weight(name: str, shape: tuple[int, ...]) -> str:
        return build.constant(name, (build.random.standard_normal(shape) * 0.3).astype(dtype.numpy)) if constant else build.input(name, *shape, dtype=dtype)

    spatial = (9, 8, 5)[: len(depthwise.stride)]
    x = build.input("x", 2, filters[1] * depthwise.groups, *spatial, dtype=dtype)
    y = build.layer("conv1", depthwise, x, weight("w1", filters))
    if constant and len(spatial) == 2 and dtype is FLOAT:
        y = build.pointwise("bias1", "add", y, build.constant("b1", build.random.standard_normal((filters[0], 1, 1)).astype(dtype.numpy)))
    middle = build.pointwise("relu", "relu", y)
    y = build.layer("conv2", pointwise, middle, weight("w2", weights))
    if constant and len(spatial) == 2 and dtype is FLOAT:
        y = build.pointwise("bias2", "add", y, build.constant("b2", build.random.standard_normal((weights[0], 1, 1)).astype(dtype.numpy)))
    more = {"": (), "output": (middle,), "reader": (build.pointwise("other", "tanh", middle),) if shared == "reader" else ()}[shared]
    return build.network(y, *more)


def test_a_pair_becomes_one_layer() -> None:
    (layer,) = fuse(pair(), *EPILOGUES, RULE).layers
    assert layer.name == "conv1 + bias1 + relu + conv2 + bias2"
    op = layer.op
    assert isinstance(op, SeparableConvolution) and op.operands == 1 and op.depthwise.epilogue != IDENTITY != op.pointwise.epilogue
    assert from_json(to_json(layer)) == layer


@pytest.mark.parametrize(
    "options, condition",
    [
        ({"shared": "output"}, "network output"),
        ({"shared": "reader"}, "shared"),
        ({"depthwise": replace(DEPTHWISE, groups=3), "filters": (6, 2, 3, 3)}, "groups"),
        ({"filters": (12, 1, 3, 3), "weights": (10, 12, 1, 1)}, "groups"),
        ({"pointwise": replace(POINTWISE, stride=(1, 2))}, "pointwise"),
        ({"pointwise": replace(POINTWISE, pre_padding=(0, 1))}, "pointwise"),
        ({"pointwise": replace(POINTWISE, groups=2), "weights": (10, 3, 1, 1)}, "pointwise"),
        ({"filters": (6, 1, 8, 7), "depthwise": replace(DEPTHWISE, pre_padding=(3, 3), post_padding=(3, 3))}, "window"),
        ({"weights": (648, 6, 1, 1)}, "channels"),
        ({"dtype": HALF}, "precision"),
        ({"constant": False}, "weights"),
        ({"depthwise": Convolution((1,) * 3, (1,) * 3, (1,) * 3, (1,) * 3, 6), "filters": (6, 1, 3, 3, 3), "weights": (4, 6, 1, 1, 1),
          "pointwise": Convolution((1,) * 3, (0,) * 3, (0,) * 3, (1,) * 3)}, "dimensions"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_near_misses(options: dict, condition: str) -> None:
    network = fuse(pair(**options), *EPILOGUES)
    assert refused(network, RULE).condition == condition


def test_a_larger_window_is_another_layer() -> None:
    network = fuse(pair(pointwise=replace(POINTWISE, pre_padding=(1, 1), post_padding=(1, 1)), weights=(4, 6, 3, 3)), *EPILOGUES)
    assert kinds(fuse(network, RULE)) == ["Convolution", "Convolution"]


def test_on_a_gpu_channels_last_and_no_float32() -> None:
    network = fuse(pair(), *EPILOGUES)
    assert refused(network, RULE, limits=Limits("cuda")).condition == "layout"
    options = FusionOptions(device="cuda", enabled=(RULE.name,))
    assert any(miss.rule == RULE.name and miss.condition == "precision" for near in optimize(pair(), options).misses.values() for miss in near)
    network = fuse(pair(dtype=HALF), *EPILOGUES)
    joined = only(optimize(network, options).network, SeparableConvolution).op
    assert isinstance(joined, SeparableConvolution) and joined.depthwise.channels_last and joined.pointwise.channels_last
    assert_same(network, optimize(network, options).network, 2e-3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_pair_of_a_quantised_mobilenet(device: str) -> None:
    model = quantized(mobilenet(), (1, 3, 32, 32), "int8")
    result = optimize(import_onnx(model), FusionOptions(device=device, enabled=(RULE.name,)))
    pairs = [layer for layer in result.network.layers if isinstance(layer.op, SeparableConvolution)]
    assert len(pairs) == result.counts[RULE.name] == 17
    for layer in pairs:
        assert {result.network.tensors[name].dtype for name in layer.inputs[:3]} == {INT8}
    assert not any(isinstance(layer.op, Convolution) and layer.op.groups > 1 for layer in result.network.layers)


def test_scales_known_at_run_time_keep_the_layers() -> None:
    """DynamicQuantizeLinear reads what lies between to find its scale."""
    result = optimize(import_onnx(quantized(mobilenet(1), (1, 3, 32, 32), "dynamic")), FusionOptions(enabled=(RULE.name,)))
    assert RULE.name not in result.counts
