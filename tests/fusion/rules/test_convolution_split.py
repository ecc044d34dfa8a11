"""A convolution whose result is read in parts that are no runs of channels."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dims import Dim, symbol
from fusion.network import Network
from fusion.ops import Convolution, Shuffle, Slice
from fusion.rules import convolution_pointwise, convolution_split, convolution_sum
from tests.fusion.fusing import fuse, kinds, refused
from tests.fusion.networks import Build

BATCH = symbol("batch")


def projection(
    *, batch: Dim = 2, heads: int = 3, parts: tuple[int, ...] = (2, 2, 4), groups: int = 1, channels_last: bool = False, residual: bool = False, whole: bool = False
) -> Network:
    """A 1x1 convolution with a bias whose channels are ``parts`` of each of ``heads``."""
    build = Build()
    size = sum(parts)
    image = (batch, 4, 5, heads * 2) if channels_last else (batch, heads * 2, 4, 5)
    op = Convolution((1, 1), (0, 0), (0, 0), (1, 1), groups, channels_last)
    y = build.layer("conv", op, build.input("x", *image), build.constant("w", (heads * size, heads * 2 // groups, 1, 1)))
    y = build.pointwise("bias", "add", y, build.constant("b", (heads * size,) if channels_last else (heads * size, 1, 1)))
    if residual:
        y = build.pointwise("residual", "add", y, build.input("r", *((batch, 4, 5, heads * size) if channels_last else (batch, heads * size, 4, 5))))
    shape = (batch, 20, heads, size) if channels_last else (batch, heads, size, 20)
    axis = 3 if channels_last else 2
    y = build.layer("heads", Shuffle(reshape=shape), y)
    results, start = [], 0
    for number, count in enumerate(parts):
        starts, sizes = (tuple(value if at == axis else other for at, other in enumerate(base)) for value, base in ((start, (0,) * 4), (count, shape)))
        results.append(build.layer(f"part{number}", Slice(starts, sizes, (1,) * 4), y))  # type: ignore[arg-type]
        start += count
    return build.network(*results, *([build.pointwise("whole", "sin", y)] if whole else []))


RULES = (convolution_pointwise.RULE, convolution_split.RULE)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [2, BATCH])
def test_parts_of_every_head(channels_last: bool, batch: Dim) -> None:
    network = fuse(projection(batch=batch, channels_last=channels_last), *RULES, sizes={"batch": 2})
    assert kinds(network).count("Convolution") == 3 and "Slice" not in kinds(network)
    products = [layer for layer in network.layers if isinstance(layer.op, Convolution)]
    assert [network.constants[layer.inputs[1]].shape[0] for layer in products] == [6, 6, 12]
    assert [layer.name for layer in products] == ["conv + bias [0, ... 17]", "conv + bias [2, ... 19]", "conv + bias [4, ... 23]"]


def test_a_part_without_channels() -> None:
    assert "Slice" in kinds(fuse(projection(parts=(2, 0, 3)), *RULES))


def test_refusals() -> None:
    assert refused(fuse(projection(heads=1), convolution_pointwise.RULE), convolution_split.RULE).condition == "views"
    assert refused(fuse(projection(groups=3), convolution_pointwise.RULE), convolution_split.RULE).condition == "groups"
    assert refused(fuse(projection(whole=True), convolution_pointwise.RULE), convolution_split.RULE).condition == "shared"
    residual = fuse(projection(residual=True), convolution_pointwise.RULE, convolution_sum.RULE)
    assert refused(residual, convolution_split.RULE).condition == "operands"


def test_the_weights_are_those_of_the_parts() -> None:
    before = projection()
    network = fuse(before, *RULES)
    first = next(layer for layer in network.layers if isinstance(layer.op, Convolution))
    np.testing.assert_array_equal(network.constants[first.inputs[1]], before.constants["w"][[0, 1, 8, 9, 16, 17]])
