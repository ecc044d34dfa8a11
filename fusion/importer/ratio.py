"""Arithmetic on elements of small tensors that are computed from shapes: dimensions, ratios of them, and unknowns.

Exact throughout. A float constant stands for the simplest fraction that rounds to it, so that ``height * 0.7`` at
height 10 is 7 as it is in float32 arithmetic, and not 6 (float32's 0.7 is a little less than 7/10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from fusion.dims import Dim, Sym, ceil_div, dim_max, dim_min, divisor


@dataclass(frozen=True)
class Ratio:
    """``num / den`` that is not known to be a whole number."""

    num: Dim
    den: Dim

    @property
    def is_number(self) -> bool:
        return isinstance(self.num, int) and isinstance(self.den, int)

    def __str__(self) -> str:
        return f"({self.num})/({self.den})"


Element: TypeAlias = "Dim | Ratio | bool | None"  # None: unknown


def make(num: Dim, den: Dim) -> Element:
    """``num / den`` in the simplest form."""
    if isinstance(den, int):
        if den == 0:
            return None
        common = math.gcd(divisor(num), den) * (-1 if den < 0 else 1)
        num, den = num // common, den // common
        return num if den == 1 else Ratio(num, den)
    if num % den == 0:
        return num // den
    if isinstance(num, Sym) and den % num == 0:
        return make(1, den // num)
    common = math.gcd(divisor(num), divisor(den))
    return Ratio(num // common, den // common) if common > 1 else Ratio(num, den)


def from_float(value: object) -> Element:
    """The element for one number of a floating-point tensor; None when it is not finite."""
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        return None
    simple = Fraction(number).limit_denominator(1 << 20)
    dtype = np.asarray(value).dtype
    if dtype.type(float(simple)) != dtype.type(number):
        simple = Fraction(number)
    return make(simple.numerator, simple.denominator)


def as_float(item: Element) -> float:
    """The number that ``item`` is; ValueError when it is not a number."""
    if isinstance(item, Ratio) and item.is_number:
        return int(item.num) / int(item.den)  # type: ignore[arg-type]
    if isinstance(item, int):
        return float(item)
    raise ValueError(f"{item} is not a number")


def _parts(item: Element) -> tuple[Dim, Dim]:
    if isinstance(item, Ratio):
        return item.num, item.den
    assert item is not None
    return item, 1


def add(a: Element, b: Element) -> Element:
    if a is None or b is None:
        return None
    (p, q), (r, s) = _parts(a), _parts(b)
    return make(p + r, q) if q == s else make(p * s + r * q, q * s)


def sub(a: Element, b: Element) -> Element:
    return add(a, mul(b, -1))


def mul(a: Element, b: Element) -> Element:
    if a is None or b is None:
        return None
    (p, q), (r, s) = _parts(a), _parts(b)
    return make(p * r, q * s)


def div(a: Element, b: Element) -> Element:
    """The exact quotient, as floating-point tensors divide."""
    if a is None or b is None or b == 0:
        return None
    (p, q), (r, s) = _parts(a), _parts(b)
    return make(p * s, q * r)


def floor(a: Element) -> Element:
    if isinstance(a, Ratio):
        return a.num // a.den
    return a


def ceil(a: Element) -> Element:
    if isinstance(a, Ratio):
        return ceil_div(a.num, a.den)
    return a


def round_half_even(a: Element) -> Element:
    if isinstance(a, Ratio):
        return round(Fraction(int(a.num), int(a.den))) if a.is_number else None  # type: ignore[arg-type]
    return a


def truncate(a: Element) -> Element:
    """Towards zero. Symbolic quotients are taken to be positive: sizes are."""
    if isinstance(a, Ratio) and a.is_number and int(a.num) < 0:  # type: ignore[arg-type]
        return -(-a.num // a.den)
    return floor(a)


def integer_div(a: Element, b: Element) -> Element:
    """As integer tensors divide."""
    return truncate(div(a, b))


def mod(a: Element, b: Element) -> Element:
    if a is None or b is None or isinstance(a, Ratio) or isinstance(b, Ratio) or b == 0:
        return None
    return a % b


def minimum(a: Element, b: Element) -> Element:
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        return _pick(a, b, smaller=True)
    if a is None or b is None:
        return None
    return a if at_least(b, a) else b if at_least(a, b) else dim_min(a, b)


def maximum(a: Element, b: Element) -> Element:
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        return _pick(a, b, smaller=False)
    if a is None or b is None:
        return None
    return a if at_least(a, b) else b if at_least(b, a) else dim_max(a, b)


def _pick(a: Element, b: Element, smaller: bool) -> Element:
    order = less(a, b)
    if order is None:
        return None
    return a if order == smaller else b


def at_least(a: Dim, b: Dim) -> bool:
    """Whether ``a >= b`` surely: the difference has no negative coefficient (sizes are at least 0)."""
    difference = a - b
    if isinstance(difference, int):
        return difference >= 0
    return all(coefficient > 0 for _, coefficient in difference.terms)


def equal(a: Element, b: Element) -> Element:
    """True, False, or None when it depends on the sizes."""
    if a is None or b is None:
        return None
    difference = sub(a, b)
    if isinstance(difference, int):
        return difference == 0
    positive = less(a, b) or less(b, a)
    return False if positive else None


def less(a: Element, b: Element) -> Element:
    if a is None or b is None:
        return None
    difference = sub(a, b)
    num, den = _parts(difference)
    if not (isinstance(den, int) or at_least(den, 0)):
        return None
    if isinstance(num, int):
        return num < 0
    if at_least(num, 0):
        return False
    return True if at_least(-1, num) else None


def where(condition: Element, a: Element, b: Element) -> Element:
    if condition is None:
        return a if a is not None and b is not None and type(a) is type(b) and a == b else None
    return a if condition else b


def power(a: Element, b: Element) -> Element:
    if not isinstance(b, int) or a is None or not 0 <= b <= 8:
        return None
    result: Element = 1
    for _ in range(b):
        result = mul(result, a)
    return result
