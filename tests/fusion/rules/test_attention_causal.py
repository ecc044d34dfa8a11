"""Masks that only compare positions, whose sizes are known at run time only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dims import dim_min, symbol
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, apply
from fusion.graph import Graph
from fusion.ops import Attention, Pointwise, Range, Shuffle, Slice
from fusion.rules import attention_causal
from tests.fusion.fusing import fuse, kinds, only, refused
from tests.fusion.networks import X0, X1, X2, Build

INT64, FLOAT, BOOL = DataType.INT64, DataType.FLOAT, DataType.BOOL
STEPS, PAST = symbol("steps"), symbol("past")
SIZES = {"steps": 5, "past": 3}


def whole(value: int) -> Literal:
    return Literal(value, INT64)


def real(value: float) -> Literal:
    return Literal(value, FLOAT)


ZERO, LOW, ONE = real(0.0), real(-3e38), real(1.0)
SEEN = apply("less_or_equal", X0, X1)  # key and query


def masked(expression: Expression, past: object = 0, start: object = 0, readers: int = 1, leading: int = 2, extra: bool = False) -> Build:
    """Attention over ``past`` more keys than queries with a mask of positions; queries are counted from ``start``."""
    build = Build()
    build.input("past", past or 1)  # which says how long it is
    keys = STEPS + past  # type: ignore[operator]
    columns = build.layer("columns", Range(0, 1, keys, INT64))
    rows = build.layer("rows", Shuffle(reshape=(*(1,) * leading, STEPS, 1)), build.layer("positions", Range(start, 1, STEPS, INT64)))
    operands = [columns, rows, *([build.input("given", 1, 1, 1, keys, dtype=BOOL)] if extra else [])]
    mask = build.layer("mask", Pointwise(expression), *operands)
    outputs = []
    for number in range(readers):
        sides = [build.input(f"{name}{number}", 2, 3, length, 4) for name, length in (("q", STEPS), ("k", keys), ("v", keys))]
        outputs.append(build.layer(f"attention{number}", Attention(0.5, masked=True), *sides, mask))
    return build


@pytest.mark.parametrize(
    "expression",
    [
        SEEN,
        apply("not", apply("greater", X0, X1)),
        apply("greater_or_equal", X1, X0),
        apply("less", X0, apply("add", X1, whole(1))),
        apply("less", apply("sub", X0, X1), whole(1)),
        apply("where", SEEN, ZERO, LOW),
        apply("where", apply("greater", X0, X1), LOW, ZERO),
        apply("where", apply("equal", apply("where", SEEN, ONE, ZERO), ZERO), real(-np.inf), ZERO),  # torch's: triangle == 0
        Convert(FLOAT, apply("where", Convert(BOOL, apply("where", SEEN, ONE, ZERO)), ZERO, LOW)),
    ],
    ids=str,
)
def test_triangles_of_any_length(expression: Expression) -> None:
    network = fuse(masked(expression).network("attention0:out"), attention_causal.RULE, sizes=SIZES)
    assert kinds(network) == ["Attention"]
    assert only(network, Attention).op == Attention(0.5, causal=True)
    assert "mask" in only(network, Attention).origins


@pytest.mark.parametrize("causal", [False, True])
def test_windows(causal: bool) -> None:
    recent = apply("greater", X0, apply("sub", X1, whole(3)))
    expression = apply("and", SEEN, recent) if causal else recent
    network = fuse(masked(expression).network("attention0:out"), attention_causal.RULE, sizes=SIZES)
    assert only(network, Attention).op == Attention(0.5, causal=causal, window=3)


def test_behind_a_past() -> None:
    network = fuse(masked(SEEN, past=PAST, start=PAST).network("attention0:out"), attention_causal.RULE, sizes=SIZES)
    assert only(network, Attention).op.causal


def test_a_mask_of_several_layers() -> None:
    network = fuse(masked(SEEN, readers=3).network(*(f"attention{number}:out" for number in range(3))), attention_causal.RULE, sizes=SIZES)
    assert kinds(network) == ["Attention"] * 3


@pytest.mark.parametrize(
    "options, condition",
    [
        ({"expression": SEEN, "past": PAST}, "offset"),  # counted from the first key, not from the end
        ({"expression": apply("less", X0, X1)}, "offset"),  # the query's own key is hidden
        ({"expression": apply("greater", X0, apply("add", X1, whole(1)))}, "offset"),
        ({"expression": apply("less_or_equal", apply("add", X0, X0), X1)}, "positions"),
        ({"expression": apply("where", SEEN, ZERO, real(-5.0))}, "positions"),  # hides nothing
        ({"expression": apply("where", SEEN, ONE, LOW)}, "positions"),
        ({"expression": apply("or", SEEN, apply("less", X1, whole(2)))}, "positions"),
    ],
    ids=str,
)
def test_near_misses(options: dict, condition: str) -> None:
    assert refused(masked(**options).network("attention0:out"), attention_causal.RULE, sizes=SIZES).condition == condition


LOWEST = real(-np.inf)


@pytest.mark.parametrize(
    "expression, rest",
    [
        (apply("and", SEEN, X2), None),  # padding as it is
        (apply("not", apply("or", apply("not", X2), apply("greater", X0, X1))), apply("not", apply("not", X0))),
        (apply("where", apply("and", SEEN, X2), ZERO, LOWEST), apply("where", X0, ZERO, LOWEST)),  # torch's, of a boolean mask
        (apply("where", apply("and", X2, apply("not", apply("greater", X0, X1))), ZERO, LOWEST), apply("where", X0, ZERO, LOWEST)),
        (apply("add", apply("where", SEEN, ZERO, LOWEST), apply("where", X2, ZERO, LOW)), apply("where", X0, ZERO, LOW)),
        (apply("where", apply("greater", X0, X1), LOWEST, apply("where", X2, ZERO, ONE)), apply("where", X0, ZERO, ONE)),
        (Convert(FLOAT, apply("where", SEEN, apply("where", X2, ZERO, ONE), LOWEST)), Convert(FLOAT, apply("where", X0, ZERO, ONE))),
    ],
    ids=str,
)
def test_what_is_left_of_a_mask(expression: Expression, rest: Expression | None) -> None:
    """Padding of keys stays, a row for all queries."""
    network = fuse(masked(expression, extra=True).network("attention0:out"), attention_causal.RULE, sizes=SIZES)
    assert only(network, Attention).op == Attention(0.5, causal=True, masked=True)
    assert kinds(network) == ([] if rest is None else ["Pointwise"]) + ["Attention"]
    if rest is not None:
        assert only(network, Pointwise).op.expression == rest


@pytest.mark.parametrize("boolean", [True, False])
def test_constant_triangles_beside_padding(boolean: bool) -> None:
    build = Build()
    triangle = np.tril(np.ones((4, 6), bool), 2)
    mask = build.constant("triangle", triangle if boolean else np.where(triangle, 0, -np.inf).astype(np.float32)[None, None])
    given = build.input("given", 2, 1, 1, 6, dtype=BOOL if boolean else FLOAT)
    tensor = build.layer("mask", Pointwise(apply("and" if boolean else "add", X0, X1)), mask, given)
    sides = [build.input(name, 2, 3, length, 4) for name, length in (("q", 4), ("k", 6), ("v", 6))]
    build.layer("attention", Attention(0.5, masked=True), *sides, tensor)
    network = fuse(build.network("attention:out"), attention_causal.RULE)
    assert kinds(network) == ["Attention"]
    assert only(network, Attention).op == Attention(0.5, causal=True, masked=True) and only(network, Attention).inputs[-1] == "given"


@pytest.mark.parametrize(
    "expression",
    [
        apply("where", apply("and", SEEN, X2), ZERO, LOW),  # a row without keys would look at other keys than before
        apply("add", apply("where", SEEN, ZERO, LOW), apply("where", X2, ZERO, LOW)),
        apply("or", SEEN, X2),
    ],
    ids=str,
)
def test_masks_that_do_not_part(expression: Expression) -> None:
    found = refused(masked(expression, extra=True).network("attention0:out"), attention_causal.RULE, sizes=SIZES)
    assert found.condition == "positions"


def tabled(table: np.ndarray, row: object = PAST, reach: int = 0, added: bool = False) -> Build:
    """A mask that is cut out of ``table``, for queries from ``row`` on; ``reach``: where the cuts end, as ONNX's Slice clamps them."""
    build = Build()
    build.input("past", PAST)
    build.input("steps", STEPS)  # which say how long they are
    steps, keys = (dim_min(one, reach) if reach else one for one in (STEPS, STEPS + PAST))
    mask = build.layer("cut", Slice((0, 0, row, 0), (1, 1, steps, keys), (1, 1, 1, 1)), build.constant("table", table[None, None]))  # type: ignore[arg-type]
    if added:
        mask = build.layer("mask", Pointwise(apply("and", X0, X1)), mask, build.input("given", 1, 1, 1, keys, dtype=BOOL))
    sides = [build.input(name, 2, 3, length, 4) for name, length in (("q", STEPS), ("k", STEPS + PAST), ("v", STEPS + PAST))]
    build.layer("attention", Attention(0.5, masked=True), *sides, mask)
    return build


TABLE = np.tril(np.ones((64, 64), bool))


@pytest.mark.parametrize("table, op", [(TABLE, Attention(0.5, causal=True)), (TABLE & ~np.tril(TABLE, -4), Attention(0.5, causal=True, window=4))], ids=["causal", "window"])
def test_masks_that_are_cut_out_of_a_table(table: np.ndarray, op: Attention) -> None:
    """As GPT-2's are, and GPT-Neo's windows; the queries begin behind the past."""
    network = fuse(tabled(table).network("attention:out"), attention_causal.RULE, sizes=SIZES)
    assert only(network, Attention).op == op
    network = fuse(tabled(table, added=True).network("attention:out"), attention_causal.RULE, sizes=SIZES)
    assert only(network, Attention).op == replace(op, masked=True) and only(network, Attention).inputs[-1] == "given"


def test_cuts_that_end_with_the_table() -> None:
    """What ONNX's Slice makes of sizes beyond the table's end does not matter: there the model fails."""
    graph = Graph(tabled(TABLE, dim_min(PAST, 64), 64).network("attention:out"))
    match = attention_causal.RULE.match(graph, graph.layers["attention"])
    assert match is not None and attention_causal.RULE.check(graph, match) is None


@pytest.mark.parametrize("row, table", [(0, TABLE), (PAST + 1, TABLE)])
def test_tables_that_are_cut_elsewhere(row: object, table: np.ndarray) -> None:
    assert refused(tabled(table, row).network("attention:out"), attention_causal.RULE, sizes=SIZES).condition == "offset"
