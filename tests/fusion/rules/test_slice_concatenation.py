"""Slices of concatenations."""

from __future__ import annotations

import pytest

from fusion.dims import Dim, symbol
from fusion.network import Network
from fusion.ops import Concatenation, Slice
from fusion.rules import no_op, slice_concatenation
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import Build

BATCH = symbol("batch")
RULES = (no_op.RULE, slice_concatenation.RULE)


def joined(start: Dim, count: Dim, step: int = 1, *, first: Dim = 3, rows: tuple[int, int] = (0, 4), shared: bool = False) -> Network:
    """A slice of the columns of x (``first``), y (5) and z (2)."""
    build = Build()
    names = [build.pointwise(name, "tanh", build.input(f"{name}.in", 4, size)) for name, size in (("x", first), ("y", 5), ("z", 2))]
    join = build.layer("join", Concatenation(1), *names)
    cut = build.layer("cut", Slice((rows[0], start), (rows[1], count), (1, step)), join)
    return build.network(build.pointwise("out", "sin", cut), *([build.pointwise("whole", "sin", join)] if shared else []))


def test_a_whole_part_is_read_itself() -> None:
    assert sorted(kinds(fuse(joined(3, 5), *RULES))) == ["Pointwise", "Pointwise"]
    assert "Slice" not in kinds(fuse(joined(3, 5, shared=True), *RULES))


@pytest.mark.parametrize("start, count, step, wanted", [(0, 2, 1, 0), (4, 3, 1, 1), (3, 3, 2, 0), (8, 1, 1, 0), (9, 1, 1, 1)])
def test_a_piece_of_one_part(start: int, count: int, step: int, wanted: int) -> None:
    network = fuse(joined(start, count, step, rows=(1, 2)), *RULES)
    assert only(network, Slice).op == Slice((1, wanted), (2, count), (1, step)) and "Concatenation" not in kinds(network)


def test_parts_of_sizes_known_at_run_time() -> None:
    network = fuse(joined(BATCH + 1, 3, first=BATCH), *RULES, sizes={"batch": 2})
    assert only(network, Slice).op.starts == (0, 1)
    assert refused(joined(0, BATCH, first=BATCH), *RULES, sizes={"batch": 2}).condition == "parts"


@pytest.mark.parametrize("start, count, step", [(2, 2, 1), (7, 3, 1), (0, 3, 2), (8, 3, -1)])
def test_pieces_of_several_parts(start: int, count: int, step: int) -> None:
    assert refused(joined(start, count, step), *RULES).condition == "parts"
