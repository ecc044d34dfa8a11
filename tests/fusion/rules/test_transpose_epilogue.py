"""Results that are cast to float32 and transposed."""

from __future__ import annotations

import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, apply
from fusion.graph import Limits
from fusion.network import Network
from fusion.ops import Pointwise, Reduce, Reformat, Shuffle, Softmax
from fusion.rules.transpose_epilogue import RULE
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, Build

GPU = Limits(device="cuda")
HALF, FLOAT = DataType.HALF, DataType.FLOAT


def network(shuffle: Shuffle, epilogue: Expression = Convert(FLOAT, X0), dtype: DataType = HALF, read: bool = False) -> Network:  # noqa: B008
    build = Build()
    x = build.input("x", 2, 5, 3, 4, dtype=dtype)
    t = build.layer("softmax", Softmax((3,), epilogue=epilogue), x)
    y = build.layer("transpose", shuffle, t)
    return build.network(y, *([build.pointwise("other", "exp", t)] if read else []))


TURN = Shuffle(first=(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [HALF, DataType.BF16])
def test_the_result_is_stored_narrow(dtype: DataType) -> None:
    after = fuse(network(TURN, Convert(FLOAT, apply("square", X0)), dtype), RULE, limits=GPU, tolerance=1e-3 if dtype is HALF else 1e-2)
    assert kinds(after) == ["Softmax", "Reformat"]
    softmax, last = after.layers
    assert softmax.op.epilogue == apply("square", X0) and after.tensors[softmax.outputs[0]].dtype is dtype  # type: ignore[attr-defined]
    assert isinstance(last.op, Reformat) and last.op.order == (0, 3, 1, 2) and last.name == "transpose" and last.fusions == (RULE.name,)
    assert last.origins == ("transpose",) and softmax.origins == ("softmax",)


def test_a_sum_is_stored_narrow_too() -> None:
    build = Build()
    x, y = (build.input(name, 2, 5, 3, 4, dtype=HALF) for name in "xy")
    z = build.layer("transpose", TURN, build.pointwise("add", Convert(FLOAT, apply("add", X0, X1)), x, y))
    after = fuse(build.network(z), RULE, limits=GPU, tolerance=1e-3)
    assert kinds(after) == ["Pointwise", "Reformat"] and after.tensors[only(after, Pointwise).outputs[0]].dtype is HALF


@pytest.mark.parametrize(
    ("before", "limits", "condition"),
    [(network(TURN), Limits(), "device"), (network(TURN, read=True), GPU, "shared"),
     (network(Shuffle(reshape=(2, 15, 4))), GPU, "no gain"), (network(Shuffle(first=(0, 3, 1, 2), reshape=(2, 2, 2, 15))), GPU, "shape")],
)  # fmt: skip
def test_near_misses(before: Network, limits: Limits, condition: str) -> None:
    miss = refused(before, RULE, limits=limits)
    assert (miss.rule, miss.condition) == (RULE.name, condition)


def test_sums_and_means_are_wide_on_purpose() -> None:
    build = Build()
    x = build.input("x", 2, 5, 3, 4, dtype=HALF)
    y = build.layer("transpose", Shuffle(first=(0, 2, 1)), build.layer("sum", Reduce("sum", (3,), False, epilogue=Convert(FLOAT, X0)), x))
    assert kinds(fuse(build.network(y), RULE, limits=GPU)) == ["Reduce", "Shuffle"]


def test_what_is_computed_wide_stays_so() -> None:
    before = network(TURN, Convert(FLOAT, apply("square", X0)), FLOAT)
    assert kinds(fuse(before, RULE, limits=GPU)) == ["Softmax", "Shuffle"]
