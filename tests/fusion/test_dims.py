"""Symbolic dimensions behave as the integers that they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.dims import (
    Dim,
    bind,
    ceil_div,
    dim_max,
    dim_min,
    divisor,
    is_static,
    parse,
    product,
    substitute,
    symbol,
    symbols,
)  # fmt: skip
from fusion.network import broadcast

SIZES = {"batch": 7, "h": 12}
NAMED = st.sampled_from([symbol("batch"), symbol("h")])


# A pair of the same computation on symbols and on numbers.
PAIRS = st.recursive(
    st.one_of(st.integers(-5, 20).map(lambda value: (value, value)), NAMED.map(lambda s: (s, SIZES[str(s)]))),
    lambda children: st.one_of(
        st.tuples(children, children).map(lambda p: (p[0][0] + p[1][0], p[0][1] + p[1][1])),
        st.tuples(children, children).map(lambda p: (p[0][0] - p[1][0], p[0][1] - p[1][1])),
        st.tuples(children, children).map(lambda p: (p[0][0] * p[1][0], p[0][1] * p[1][1])),
        st.tuples(children, st.integers(1, 9)).map(lambda p: (p[0][0] // p[1], p[0][1] // p[1])),
        st.tuples(children, st.integers(1, 9)).map(lambda p: (p[0][0] % p[1], p[0][1] % p[1])),
        st.tuples(children, children).map(lambda p: (dim_min(p[0][0], p[1][0]), min(p[0][1], p[1][1]))),
        st.tuples(children, children).map(lambda p: (dim_max(p[0][0], p[1][0]), max(p[0][1], p[1][1]))),
    ),
    max_leaves=6,
)


@given(PAIRS)
def test_a_symbolic_expression_has_the_value_of_the_same_expression_over_numbers(pair: tuple[Dim, int]) -> None:
    assert bind(pair[0], SIZES) == pair[1]


@given(PAIRS)
def test_text_round_trip(pair: tuple[Dim, int]) -> None:
    assert parse(str(pair[0])) == pair[0]


def test_equal_polynomials_are_equal() -> None:
    batch = symbol("batch")
    assert (batch + 1) * 2 == 2 * batch + 2
    assert hash(batch * 3 - batch) == hash(2 * batch)
    assert batch - batch == 0
    assert (batch * symbol("h") * 4) // (batch * 2) == symbol("h") * 2


def test_floor_division_by_a_constant_takes_out_what_divides() -> None:
    h = symbol("h")
    assert (2 * h + 5) // 2 == h + 2
    assert ceil_div(2 * h, 2) == h


def test_names_and_static() -> None:
    value = (symbol("a") + 1, (3, symbol("b") // 2))
    assert symbols(value) == {"a", "b"}
    assert not is_static(value)
    assert is_static((1, (2, 3)))
    assert substitute(symbol("a") + symbol("b"), {"a": 2}) == symbol("b") + 2
    assert product((symbol("a"), 3, 2)) == symbol("a") * 6
    assert divisor(symbol("a") * 6 + 3) == 3


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(KeyError, match="sequence"):
        bind(symbol("sequence") + 1, {"batch": 1})


@pytest.mark.parametrize("text", ["", "1 +", "floordiv(a", "(a)", "a $", "*", "floordiv(a)", "floordiv(4, 0)", "1" + "*(" * 9])
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a dimension"):
        parse(text)


def test_broadcasting_chooses_the_same_symbol_in_every_process() -> None:
    """Of names of one length, too: a set's order depends on the process, and equal engines give equal files."""
    names = [symbol(f"{one}{other}") for one in "abcd" for other in "wxyz"]
    for first in names:
        for second in names:
            assert str(broadcast([(first,), (second,)])[0]) == min(str(first), str(second))
