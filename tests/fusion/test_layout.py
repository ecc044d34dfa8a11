from __future__ import annotations

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import apply
from fusion.layout import back_for, order_for, to_channels_last
from fusion.network import Network
from fusion.ops import (
    Concatenation,
    Convolution,
    Gather,
    GroupNormalization,
    LocalResponseNormalization,
    MatrixMultiply,
    Normalization,
    Padding,
    Pooling,
    Reduce,
    Resize,
    Shuffle,
    Slice,
    Softmax,
    TopK,
)
from fusion.passes import FusionOptions, optimize
from fusion.rules._shuffles import inverse
from fusion.validation import validate
from tests.fusion.networks import X0, X1, X2, Build, assert_same

N = symbol("batch")
SIZES = {"batch": 2, "h": 6}
CUDA = FusionOptions(device="cuda")


class Nets(Build):
    def conv(self, name: str, x: str, out: int, window: int = 3) -> str:
        shape = self.tensors[x].shape
        rank = len(shape) - 2
        w = self.constant(f"{name}.w", (out, int(shape[1]), *(window,) * rank))  # type: ignore[arg-type]
        pad = (window // 2,) * rank
        return self.layer(name, Convolution((1,) * rank, pad, pad, (1,) * rank), x, w)

    def pool(self, name: str, x: str, kind: str = "max") -> str:
        return self.layer(name, Pooling(kind, (2, 2), (2, 2), (0, 0), (0, 0), (1, 1)), x)


def converted(network: Network, tolerance: float = 1e-4) -> Network:
    """Both the pass alone and the whole pipeline keep the results; the pipeline's network."""
    plain = to_channels_last(network)
    validate(plain)
    assert_same(network, plain, tolerance, SIZES)
    result = optimize(network, CUDA).network
    validate(result)
    assert_same(network, result, tolerance, SIZES)
    return result


def reformats(network: Network) -> list[str]:
    return [layer.name for layer in network.layers if "reformat" in layer.fusions]


def test_orders() -> None:
    assert order_for(4) == (0, 2, 3, 1)
    assert back_for(4) == (0, 3, 1, 2)
    assert order_for(5) == (0, 2, 3, 4, 1)
    assert all(back_for(rank) == inverse(order_for(rank)) for rank in (3, 4, 5))


def test_a_network_without_convolutions_is_left_alone() -> None:
    build = Build()
    network = build.network(build.pointwise("relu", "relu", build.input("x", 2, 3, 4, 4)))
    assert to_channels_last(network) is network


def test_only_the_edges_are_reformatted() -> None:
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 8, 6, 8), 8)
    y = build.pool("pool", build.pointwise("relu", "relu", y))
    y = build.layer("cat", Concatenation(1), build.conv("a", y, 4), build.conv("b", y, 6))
    y = build.pointwise(
        "bias",
        apply("add", apply("mul", X0, X1), X2),
        y,
        build.constant("s", (10, 1, 1)),
        build.constant("t", (1, 10, 1, 1)),
    )
    y = build.conv("conv2", build.pointwise("tanh", "tanh", y), 5)
    network = converted(build.network(y))
    assert reformats(network) == ["reformat x for conv1 + relu", "reformat conv2:out for the network output"]
    assert all(layer.op.channels_last for layer in network.layers if hasattr(layer.op, "channels_last"))


@pytest.mark.parametrize("image", [(6, 8), (6,), (4, 3, 5)], ids=["2d", "1d", "3d"])
@pytest.mark.parametrize("flat", [False, True], ids=["image", "rows"])
def test_a_models_own_changes_of_layout_move_nothing(image: tuple[int, ...], flat: bool) -> None:
    """As in ConvNeXt: a convolution, a normalisation of channels between two transposes, a scale of channels and the residual, twice; then a
    normalisation of channels in front of the next stage's convolution."""
    build, rank = Nets(), len(image) + 2
    x = build.conv("stem", build.input("x", N, 3, *image), 8)
    for name in ("a", "b", "next"):
        y = build.conv(name, x, 8) if name != "next" else x
        rows = (N, int(np.prod(image)), 8)
        y = build.layer(f"{name}.turn", Shuffle(first=order_for(rank), reshape=rows if flat else None), y)
        y = build.layer(f"{name}.norm", Normalization((2 if flat else rank - 1,), 1e-5), y, build.constant(f"{name}.s", (8,)), build.constant(f"{name}.o", (8,)))
        y = build.layer(f"{name}.back", Shuffle(reshape=(N, *image, 8) if flat else None, second=back_for(rank)), y)
        if name == "next":
            x = y
            break
        scaled = apply("add", apply("mul", X0, X1), X2)
        x = build.pointwise(f"{name}.scale", scaled, y, build.constant(f"{name}.g", (8, *(1,) * len(image))), x)
    network = converted(build.network(build.conv("last", x, 4)))
    moving = [layer.name for layer in network.layers if isinstance(layer.op, Shuffle) and (layer.op.first or layer.op.second)]
    assert [name for name in moving if "network output" not in name and "reformat x" not in name] == []


def test_a_transpose_between_layers_without_images_is_left_to_them() -> None:
    """Three axes: (0, 2, 1) may be either change of layout, or none."""
    build = Nets()
    y = build.conv("conv", build.input("x", 2, 8, 8), 8)
    keys = build.layer("keys", Shuffle(first=(0, 2, 1)), build.pointwise("tanh", "tanh", build.input("k", 2, 5, 8)))
    network = converted(build.network(y, build.layer("product", MatrixMultiply(), build.input("q", 2, 4, 8), keys)))
    assert len(reformats(network)) == 2, reformats(network)


CHANNELS = 6
FLEXIBLE = {
    "slice": Slice((0, 1, 0, 2), (N, 4, 6, 3), (1, 1, 1, 2)),
    "pad": Padding((0, 1, 2, 0), (0, 0, 1, 1)),
    "pad_reflect": Padding((0, 0, 2, 0), (0, 0, 1, 1), "reflect"),
    "softmax": Softmax(1),
    "normalization": Normalization((1,), 1e-5),
    "normalization_spatial": Normalization((2, 3), 1e-5),
    "resize": Resize((N, 6, 12, 16), (None, None, 2.0, 2.0)),
    "reduce_channels": Reduce("mean", (1,), True),
    "reduce_spatial": Reduce("sum", (2, 3), True),
    "group": GroupNormalization(2, 1e-5),
    "lrn": LocalResponseNormalization(3, 1e-2, 0.75, 1.0),
    "topk": TopK(2, 1),
}


@pytest.mark.parametrize("name", FLEXIBLE)
def test_layers_between_convolutions_need_no_reformat(name: str) -> None:
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 8, 6, 8), CHANNELS)
    y = build.layer(name, FLEXIBLE[name], y, outputs=2 if name == "topk" else 1)
    network = converted(build.network(build.conv("conv2", y, 4)), 1e-3)
    # An image of one pixel is the same in both layouts: then the output needs none either.
    assert len(reformats(network)) == (1 if name == "reduce_spatial" else 2)


def test_gather_of_channels() -> None:
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 8, 6, 8), CHANNELS)
    y = build.layer("gather", Gather(1), y, build.constant("i", np.array([3, 0, 5])))
    assert len(reformats(converted(build.network(build.conv("conv2", y, 4))))) == 2


def test_operands_with_fewer_axes_find_their_places() -> None:
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 8, 6, 8), 5)
    for name, shape in {
        "columns": (8,),
        "rows": (6, 1),
        "channels": (5, 1, 1),
        "image": (5, 6, 8),
        "one": (1, 1),
    }.items():
        y = build.pointwise(f"mul_{name}", "mul", y, build.constant(name, shape))
    y = build.pointwise("gate", "mul", y, build.input("g", 5, 1, 1))
    y = build.pointwise("full", "add", y, build.input("f", N, 5, 6, 8))
    converted(build.network(build.conv("conv2", y, 4)))


def test_squeeze_and_excitation() -> None:
    """The product of an image and a gate per channel, with a spatial mean between."""
    build = Nets()
    x = build.conv("conv1", build.input("x", N, 8, symbol("h"), 8), 8)
    gate = build.layer("mean", Reduce("mean", (2, 3), True), x)
    gate = build.pointwise("sigmoid", "sigmoid", build.conv("fc2", build.conv("fc1", gate, 2, 1), 8, 1))
    y = build.conv("conv2", build.pointwise("scale", "mul", x, gate), 4)
    assert len(reformats(converted(build.network(y)))) == 2


def test_flatten_goes_into_the_weights() -> None:
    build = Nets()
    y = build.pool("pool", build.conv("conv1", build.input("x", N, 8, 6, 8), 5))
    y = build.layer("flatten", Shuffle(reshape=(N, 60)), y)
    y = build.layer("fc", MatrixMultiply(), y, build.constant("w", (60, 7)))
    network = converted(build.network(y))
    assert len(reformats(network)) == 1


def test_flatten_of_a_pooled_image_is_free() -> None:
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 8, 6, 8), 5)
    y = build.layer("mean", Reduce("mean", (2, 3), True), y)
    y = build.layer("flatten", Shuffle(reshape=(N, 5)), y)
    network = converted(build.network(build.layer("softmax", Softmax(1), y)))
    assert len(reformats(network)) == 1


def test_a_mean_that_drops_the_image_axes() -> None:
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 8, 6, 8), 5)
    y = build.layer("mean", Reduce("mean", (2, 3), False), y)
    network = converted(build.network(build.pointwise("scale", "mul", y, build.constant("c", (5,)))))
    assert len(reformats(network)) == 1


def test_tokens_of_an_image_are_a_reshape() -> None:
    """Patch embedding: [N, C, H, W] -> [N, C, H*W] -> [N, H*W, C] is what channels-last already holds."""
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 8, 6, 8), 5)
    y = build.layer("view", Shuffle(reshape=(N, 5, 48)), y)
    y = build.layer("tokens", Shuffle((0, 2, 1)), y)
    y = build.layer("fc", MatrixMultiply(), y, build.constant("w", (5, 7)))
    network = converted(build.network(y))
    assert len(reformats(network)) == 1
    moving = [
        layer for layer in network.layers if isinstance(layer.op, Shuffle) and (layer.op.first or layer.op.second)
    ]
    assert len(moving) == 1


def test_a_channel_shuffle_moves_once() -> None:
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 8, 6, 8), 6)
    y = build.layer("split", Shuffle(None, (N, 2, 3, 6, 8), (0, 2, 1, 3, 4)), y)
    y = build.layer("join", Shuffle(reshape=(N, 6, 6, 8)), y)
    network = converted(build.network(build.conv("conv2", y, 4)))
    moving = [
        layer for layer in network.layers if isinstance(layer.op, Shuffle) and (layer.op.first or layer.op.second)
    ]
    assert len(moving) == 3  # the input, the channel shuffle, the output


def test_a_region_keeps_the_cheaper_layout() -> None:
    """A long pointwise region between a small convolution and large channels-first tensors stays channels-first."""
    build = Nets()
    x = build.input("x", 2, 1, 8, 8)
    small = build.conv("conv", build.input("s", 2, 8, 8, 8), 1)
    y = build.pointwise("add", "add", build.pointwise("mul", "mul", small, x), build.input("z", 2, 16, 8, 8))
    network = converted(build.network(build.pointwise("exp", "exp", y)))
    assert reformats(network) == ["reformat s for conv + mul"]


@pytest.mark.parametrize("rank", [3, 5])
def test_other_ranks(rank: int) -> None:
    build = Nets()
    shape = (2, 8, *(4, 5, 6)[: rank - 2])
    y = build.conv("conv1", build.input("x", *shape), 5)
    y = build.conv("conv2", build.pointwise("relu", "relu", y), 4)
    assert len(reformats(converted(build.network(y)))) == 2


def test_a_network_output_in_the_middle_gets_its_own_reformat() -> None:
    build = Nets()
    y = build.pointwise("relu", "relu", build.conv("conv1", build.input("x", N, 8, 6, 8), 5))
    network = converted(build.network(build.conv("conv2", y, 4), y))
    assert len(reformats(network)) == 3


def test_the_first_convolution_may_read_planes() -> None:
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 3, 6, 8), 5)
    network = build.network(build.conv("conv2", y, 4))
    result = to_channels_last(network, direct_stem=True)
    validate(result)
    assert_same(network, result, 1e-4, SIZES)
    first, second = (layer.op for layer in result.layers if isinstance(layer.op, Convolution))
    assert first.input_channels_last is False
    assert second.input_channels_last is None
    assert [layer.name for layer in result.layers if "reformat" in layer.fusions] == [
        "reformat conv2:out for the network output"
    ]


@pytest.mark.parametrize("precision", [None, DataType.HALF])
def test_an_image_that_is_scaled_first_stays_planes(precision: DataType | None) -> None:
    build = Nets()
    scaled = apply("div", apply("sub", X0, X1), X2)
    mean, deviation = (
        build.constant("mean", (3, 1, 1)),
        build.constant("deviation", np.array([[[2.0]]] * 3, np.float32)),
    )
    y = build.pointwise("normalise", scaled, build.input("x", N, 3, 6, 8), mean, deviation)
    y = build.conv("conv1", y, 5)
    network = build.network(build.conv("conv2", y, 4))
    result = optimize(network, FusionOptions(device="cuda", precision=precision)).network
    validate(result)
    assert_same(network, result, 5e-2 if precision else 1e-4, SIZES)
    assert [type(layer.op).__name__ for layer in result.layers][:2] == ["Pointwise", "Convolution"]
    assert len(reformats(result)) == 1


def test_a_first_convolution_of_many_channels_reads_no_planes() -> None:
    build = Nets()
    network = build.network(build.conv("conv1", build.input("x", N, 16, 6, 8), 5))
    (conv,) = [
        layer for layer in to_channels_last(network, direct_stem=True).layers if isinstance(layer.op, Convolution)
    ]
    assert conv.op.input_channels_last is None


def test_operand_numbers_are_kept() -> None:
    build = Nets()
    y = build.conv("conv1", build.input("x", N, 8, 6, 8), 5)
    y = build.pointwise("f", apply("sub", X1, X0), y, build.constant("c", (5, 1, 1)))
    converted(build.network(build.conv("conv2", y, 4)))
