"""Products of one tensor joined to one."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.expression import apply
from fusion.graph import Limits
from fusion.network import Network
from fusion.ops import Concatenation, Convolution, MatrixMultiply, Slice, Softmax
from fusion.rules import sibling_convolutions, sibling_products
from runtime.columns import TYPICAL, ask_kind
from runtime.views import share_memory
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, Build

BIAS = apply("relu", apply("add", X0, X1))


CUDA = Limits("cuda")


def channels_last(*channels: int, batch: object = 2, reader: str = "exp", output: bool = False) -> Network:
    """Convolutions of one channels-last image; the first one's result is also read by ``reader``."""
    build = Build()
    x = build.input("x", batch, 4, 5, 8)
    ends = []
    for index, count in enumerate(channels):
        op = Convolution((1, 1), (0, 0), (0, 0), (1, 1), channels_last=True, epilogue=BIAS)
        y = build.layer(f"conv{index}", op, x, build.constant(f"w{index}", (count, 8, 1, 1)), build.constant(f"b{index}", (count,)))
        if index == 0 and reader == "concat":
            ends.append(build.layer("join", Concatenation(3), y, x))
        elif index == 0 and reader == "softmax":
            ends.append(build.layer("soft", Softmax(3), y))
        else:
            ends.append(y if output else build.pointwise(f"end{index}", "exp", y))
    return build.network(*ends)


@pytest.mark.parametrize("batch", [2, symbol("batch")])
def test_channels_of_one_image_on_a_gpu(batch: object) -> None:
    result = fuse(channels_last(4, 8, 4, batch=batch), sibling_convolutions.RULE, limits=CUDA, sizes={"batch": 2})
    assert only(result, Convolution).name == "conv0 + conv1 + conv2"
    sharing = share_memory(result, ask=ask_kind(result, TYPICAL["cuda"]))
    assert sharing.elided == {"conv0 part", "conv1 part", "conv2 part"}
    assert sorted(sharing.pitches.values()) == [16, 16, 16]


def test_a_part_of_a_concatenation_stays_out() -> None:
    result = fuse(channels_last(4, 8, 4, reader="concat"), sibling_convolutions.RULE, limits=CUDA)
    assert [layer.name for layer in result.layers if isinstance(layer.op, Convolution)] == ["conv0", "conv1 + conv2"]
    sharing = share_memory(result, ask=ask_kind(result, TYPICAL["cuda"]))
    assert {"conv1 part", "conv2 part"} <= sharing.elided


@pytest.mark.parametrize(
    ("network", "condition"),
    [(channels_last(3, 8, 5), "alignment"), (channels_last(4, 7), "alignment"), (channels_last(4, 8, reader="softmax"), "reader"),
     (channels_last(4, 8, output=True), "network output")],
)  # fmt: skip
def test_channels_that_stay_apart(network: Network, condition: str) -> None:
    assert refused(network, sibling_convolutions.RULE, limits=CUDA).condition == condition


def test_products_of_several_rows_on_a_gpu() -> None:
    result = fuse(products(6, 8, (8,)), sibling_products.RULE, limits=CUDA)
    assert only(result, MatrixMultiply).name == "fc0 + fc1"
    assert len(share_memory(result, ask=ask_kind(result, TYPICAL["cuda"])).elided) == 2


def convolutions(*channels: int, batch: object = 1, biased: bool = True, stride: int = 1, output: bool = False, windows=(1, 1, 1)) -> Network:  # noqa: ANN001
    build = Build()
    x = build.input("x", batch, 6, 4, 4)
    ends = []
    for index, count in enumerate(channels):
        window = windows[index % len(windows)]
        pad = (window // 2,) * 2
        op = Convolution((stride, stride), pad, pad, (1, 1), epilogue=BIAS if biased else X0)
        inputs = [build.constant(f"w{index}", (count, 6, window, window))]
        if biased:
            inputs.append(build.constant(f"b{index}", (count, 1, 1)))
        y = build.layer(f"conv{index}", op, x, *inputs)
        ends.append(y if output else build.pointwise(f"end{index}", "exp", y))
    return build.network(*ends)


@pytest.mark.parametrize("biased", [False, True])
def test_convolutions_of_one_image(biased: bool) -> None:
    result = fuse(convolutions(4, 8, 4, biased=biased, stride=2), sibling_convolutions.RULE)
    conv = only(result, Convolution)
    assert conv.name == "conv0 + conv1 + conv2"
    assert result.constants[conv.inputs[1]].shape == (16, 6, 1, 1)
    slices = [layer.name for layer in result.layers if isinstance(layer.op, Slice)]
    assert slices == ["conv0 part", "conv1 part", "conv2 part"]
    assert share_memory(result).elided == set(slices)


def test_those_that_differ_stay_apart() -> None:
    result = fuse(convolutions(4, 8, 4, windows=(1, 3, 1)), sibling_convolutions.RULE)
    assert kinds(result).count("Convolution") == 2
    assert refused(convolutions(4, 4, windows=(1, 3)), sibling_convolutions.RULE).condition == "attributes"


@pytest.mark.parametrize(
    ("options", "condition"),
    [({"batch": 2}, "layout"), ({"batch": symbol("batch")}, "layout"), ({"output": True}, "network output")],
)
def test_near_misses(options: dict, condition: str) -> None:
    sizes = {"batch": 2} if "batch" in options else None
    assert refused(convolutions(4, 4, **options), sibling_convolutions.RULE, sizes=sizes).condition == condition


@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_one_row(transposed: bool) -> None:
    build = Build()
    x = build.input("x", 1, 1, 16)
    ends = []
    for index, columns in enumerate((8, 4)):
        w = build.constant(f"w{index}", (columns, 16) if transposed else (16, columns))
        bias = build.constant(f"b{index}", (columns,))
        y = build.layer(f"fc{index}", MatrixMultiply(transpose_b=transposed, epilogue=BIAS), x, w, bias)
        ends.append(build.pointwise(f"end{index}", "exp", y))
    result = fuse(build.network(*ends), sibling_products.RULE)
    assert only(result, MatrixMultiply).name == "fc0 + fc1"
    assert len(share_memory(result).elided) == 2


def products(rows: int, columns: int, bias: np.ndarray | tuple) -> Network:
    build = Build()
    x = build.input("x", rows, 16)
    ends = []
    for index in range(2):
        w = build.constant(f"w{index}", (16, columns))
        y = build.layer(f"fc{index}", MatrixMultiply(epilogue=apply("add", X0, X1)), x, w, build.constant(f"b{index}", bias))
        ends.append(build.pointwise(f"end{index}", "exp", y))
    return build.network(*ends)


@pytest.mark.parametrize(("rows", "columns", "bias", "condition"), [(2, 8, (8,), "layout"), (1, 3, (3,), "alignment"), (1, 8, (1,), "epilogue")])
def test_other_products_stay(rows: int, columns: int, bias: tuple, condition: str) -> None:
    assert refused(products(rows, columns, bias), sibling_products.RULE).condition == condition
