"""Gathers of constant indices that are runs, in any shape."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.network import Network
from fusion.ops import Gather, GatherND, Slice
from fusion.rules import gather_slice, no_op
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import Build

RULES = (no_op.RULE, gather_slice.RULE)


def gathered(indices: np.ndarray, op: Gather | GatherND, *shape: object) -> Network:
    build = Build()
    x = build.pointwise("x", "tanh", build.input("in", *shape))
    return build.network(build.pointwise("sin", "sin", build.layer("gather", op, x, build.constant("indices", indices))))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_indices_of_several_axes(axis: int) -> None:
    """What they are shaped like shows in the result."""
    network = fuse(gathered(np.arange(1, 5).reshape(2, 2), Gather(axis), 5, 6, 7), *RULES)
    assert kinds(network) == ["Pointwise", "Slice", "Shuffle", "Pointwise"]
    assert only(network, Slice).op.starts == tuple(int(one == axis) for one in range(3))


def test_everything_in_order_is_a_reshape() -> None:
    assert kinds(fuse(gathered(np.arange(6).reshape(1, 3, 2), Gather(0), 6, symbol("n")), *RULES, sizes={"n": 4})) == ["Pointwise", "Shuffle", "Pointwise"]


@pytest.mark.parametrize("places, wanted", [((slice(None), slice(None)), 0), ((slice(1, 3), slice(None)), 1), ((slice(2, 3), slice(1, 4)), 1), ((slice(None), slice(0, 1)), 1)])
def test_tuples_of_indices(places: tuple[slice, slice], wanted: int) -> None:
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(4), indexing="ij"), -1)[places]
    network = fuse(gathered(grid - [3, 0], GatherND(), 3, 4, symbol("n")), *RULES, sizes={"n": 5})
    assert kinds(network).count("Slice") == wanted and "GatherND" not in kinds(network)


def test_other_orders_stay() -> None:
    assert refused(gathered(np.array([[0, 1], [3, 2]]), Gather(0), 5, 6), *RULES).condition == "indices"
    assert refused(gathered(np.array([[0, 0], [1, 1]])[::-1].copy(), GatherND(), 3, 4), *RULES).condition == "indices"
    assert "GatherND" in kinds(fuse(gathered(np.array([[[0], [1]], [[1], [2]]]), GatherND(1), 2, 4), *RULES))


@pytest.mark.parametrize("shape, indices", [((4, 2), [9]), ((4, 2), [3, 4]), ((4, 2), [-9]), ((symbol("n"), 2), [5, 6]), ((symbol("n"), 2), [1])])
def test_indices_that_may_be_outside_stay(shape: tuple, indices: list[int]) -> None:
    """A Gather clamps them; a Slice would read other memory."""
    assert refused(gathered(np.array(indices), Gather(0), *shape), *RULES, sizes={"n": 3}).condition == "bounds"


def test_the_first_of_an_unknown_number() -> None:
    assert kinds(fuse(gathered(np.array(0), Gather(1), 2, symbol("n"), 3), *RULES, sizes={"n": 4})) == ["Pointwise", "Slice", "Shuffle", "Pointwise"]
