"""A convolution of patches that lie side by side becomes a product, where the builder tries that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusion.dims import symbol
from fusion.expression import apply
from fusion.network import Network
from fusion.ops import Convolution
from fusion.rules import convolution_patches
from tests.fusion.fusing import fuse, kinds, refused
from tests.fusion.networks import X0, X1, X2, Build

BIAS_RESIDUAL = apply("relu", apply("add", apply("add", X0, X1), X2))


def patches(step: tuple[int, ...], sizes: tuple, last: bool = True, batch: object = 2, window: tuple[int, ...] = (), constant: bool = True, **more: object) -> Network:
    """A convolution of three channels (last, or in planes) in windows of ``step``, with a bias and a residual."""
    build, rank = Build(), len(step)
    op = Convolution(step, (0,) * rank, (0,) * rank, (1,) * rank, 1, True, BIAS_RESIDUAL, last)
    op = replace(op, **more)  # type: ignore[arg-type]
    x = build.input("x", batch, *((*sizes, 3) if last else (3, *sizes)))
    filters = (6, 3 // op.groups, *(window or step))
    w = build.constant("w", filters) if constant else build.input("w", *filters)
    plain = build.tensors[x], build.tensors[w]
    shape = replace(op, epilogue=X0).infer(plain)[0].shape
    z = build.input("z", *shape)
    bias = build.constant("b", (6,) if op.channels_last else (6, *(1,) * rank))
    return build.network(build.layer("conv", op, x, w, bias, z))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("step, sizes", [((4, 2), (8, 6)), ((3,), (9,)), ((2, 1, 3), (4, 5, 6))])
def test_patches_are_rows_of_a_matrix(step: tuple[int, ...], sizes: tuple[int, ...], last: bool) -> None:
    assert kinds(fuse(patches(step, sizes, last), convolution_patches.RULE)) == ["Shuffle", "Shuffle", "MatrixMultiply"]


def test_a_batch_known_at_run_time() -> None:
    assert kinds(fuse(patches((4, 2), (8, 6), False, symbol("batch")), convolution_patches.RULE, sizes={"batch": 3}))[-1] == "MatrixMultiply"


@pytest.mark.parametrize(
    "condition, more",
    [("layout", {"channels_last": False}), ("groups", {"groups": 3}), ("window", {"pre_padding": (2, 0)}), ("window", {"dilation": (1, 2)}),
     ("weights", {"constant": False}), ("size", {"sizes": (9, 6)})],
)  # fmt: skip
def test_other_convolutions_stay(condition: str, more: dict) -> None:
    given = {"sizes": (8, 6), **more}
    network = patches((2, 2), given.pop("sizes"), **{"last": given.get("channels_last", True), **given})
    assert refused(network, convolution_patches.RULE).condition == condition


def test_windows_that_overlap_or_leave_gaps_stay() -> None:
    for window in ((3, 3), (1, 1)):
        assert kinds(fuse(patches((2, 2), (8, 6), window=window), convolution_patches.RULE)) == ["Convolution"]


def test_sizes_known_at_run_time_stay() -> None:
    network = patches((2, 2), (symbol("height"), 6))
    assert kinds(fuse(network, convolution_patches.RULE, sizes={"height": 8})) == ["Convolution"]
