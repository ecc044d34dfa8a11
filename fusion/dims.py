"""Dimensions: integers, or symbolic integer expressions over named sizes such as ``batch``.

A symbolic dimension is a polynomial with integer coefficients over atoms; an atom is a named size or a call of
``floordiv``, ``mod``, ``min`` or ``max``. The form is canonical, so equal polynomials compare (and hash) equal:
``(batch + 1) * 2 == 2 * batch + 2``. Named sizes are assumed to be at least 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import TypeAlias

Atom: TypeAlias = "str | Call"
Monomial: TypeAlias = tuple[tuple["Atom", int], ...]  # ((atom, power), ...), sorted

_NAME = "A-Za-z0-9_.:/"  # the characters of names


class _Kept:
    """Text, hash and names are computed once: dimensions hold dimensions, many levels deep, and all are asked for all the time."""

    def __str__(self) -> str:
        text = self.__dict__.get("_text")
        if text is None:
            text = self.__dict__["_text"] = self._spell()
        return text

    def __hash__(self) -> int:
        number = self.__dict__.get("_hash")
        if number is None:
            number = self.__dict__["_hash"] = hash(self._key())
        return number

    def _spell(self) -> str:
        raise NotImplementedError

    def _key(self) -> tuple:
        raise NotImplementedError


@dataclass(frozen=True)
class Call(_Kept):
    """A function of dimensions that a polynomial cannot express."""

    function: str  # floordiv | mod | min | max
    arguments: tuple[Dim, ...]

    __hash__ = _Kept.__hash__

    def _spell(self) -> str:
        return f"{self.function}({', '.join(str(argument) for argument in self.arguments)})"

    def _key(self) -> tuple:
        return self.function, self.arguments


@dataclass(frozen=True, repr=False)
class Sym(_Kept):
    """A symbolic dimension: ``terms`` maps monomials to non-zero coefficients, in a canonical order."""

    terms: tuple[tuple[Monomial, int], ...]

    __hash__ = _Kept.__hash__
    __repr__ = _Kept.__str__

    def __add__(self, other: Dim) -> Dim:
        return _make(_sum(_terms(self), _terms(other)))

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other

    def __mul__(self, other: Dim) -> Dim:
        product: dict[Monomial, int] = {}
        for left, a in _terms(self).items():
            for right, b in _terms(other).items():
                powers: dict[Atom, int] = dict(left)
                for atom, power in right:
                    powers[atom] = powers.get(atom, 0) + power
                key = tuple(sorted(powers.items(), key=lambda item: str(item[0])))
                product[key] = product.get(key, 0) + a * b
        return _make(product)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        exact = _exact_quotient(_terms(self), _terms(other))
        if exact is not None:
            return _make(exact)
        if isinstance(other, int) and other > 0:
            # (k*a + r) // k  ==  a + r // k  for the terms that k divides
            whole = {key: value // other for key, value in _terms(self).items() if value % other == 0}
            rest = {key: value for key, value in _terms(self).items() if value % other != 0}
            constant = rest.get((), 0)
            if abs(constant) >= other:
                whole[()] = whole.get((), 0) + constant // other
                rest[()] = constant % other
            if whole:
                return _make(whole) + _call("floordiv", _make(rest), other)
        return _call("floordiv", self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return 0 if other == 0 else _call("floordiv", other, self)

    def __mod__(self, other: Dim) -> Dim:
        return 0 if _exact_quotient(_terms(self), _terms(other)) is not None else _call("mod", self, other)

    def __rmod__(self, other: int) -> Dim:
        return 0 if other == 0 else _call("mod", other, self)

    def _key(self) -> tuple:
        return self.terms

    def _spell(self) -> str:
        text = ""
        for monomial, coefficient in self.terms:
            factors = [str(atom) for atom, power in monomial for _ in range(power)]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            sign = "-" if coefficient < 0 else "+"
            text += f" {sign} {'*'.join(factors)}" if text else ("-" if sign == "-" else "") + "*".join(factors)
        return text


Dim: TypeAlias = "int | Sym"
Shape: TypeAlias = tuple[Dim, ...]


def symbol(name: str) -> Sym:
    """The named size ``name``; other characters than letters, digits and ``_.:/`` become ``_``."""
    return Sym((((((re.sub(f"[^{_NAME}]", "_", name) or "_"), 1),), 1),))


def dim_min(*dims: Dim) -> Dim:
    """The least of ``dims``."""
    return _extreme("min", dims)


def dim_max(*dims: Dim) -> Dim:
    """The greatest of ``dims``."""
    return _extreme("max", dims)


def ceil_div(a: Dim, b: Dim) -> Dim:
    """``a / b`` rounded up."""
    return (a + b - 1) // b


def product(dims: Shape) -> Dim:
    """The product of ``dims`` (1 for a scalar): the element count of a shape."""
    total: Dim = 1
    for dim in dims:
        total = dim * total
    return total


def symbols(value: object) -> frozenset[str]:
    """The names that ``value`` (a dimension or a nest of tuples of them) depends on. Those of a dimension are found once."""
    if isinstance(value, tuple | list):
        return frozenset().union(*map(symbols, value))
    if not isinstance(value, Sym):
        return frozenset()
    found = value.__dict__.get("_symbols")
    if found is None:
        atoms = [atom for monomial, _ in value.terms for atom, _ in monomial]
        inner = (frozenset((atom,)) if isinstance(atom, str) else symbols(atom.arguments) for atom in atoms)
        found = value.__dict__["_symbols"] = frozenset().union(*inner)
    return found


def is_static(value: object) -> bool:
    """Whether ``value`` (a dimension or a nest of tuples of them) holds no symbol."""
    if isinstance(value, int):  # nearly always: a shape change asks this some thousand times
        return True
    if isinstance(value, tuple | list):
        return all(map(is_static, value))
    return not symbols(value)


def bind(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of ``dim`` when each named size has the value in ``sizes``.

    Raises:
        KeyError: a name of ``dim`` is not in ``sizes``.
    """
    result = substitute(dim, sizes)
    if isinstance(result, int):
        return result
    raise KeyError(sorted(symbols(result))[0])


def substitute(dim: Dim, sizes: Mapping[str, Dim]) -> Dim:
    """``dim`` with the names in ``sizes`` replaced; other names stay."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        value: Dim = coefficient
        for atom, power in monomial:
            if isinstance(atom, str):
                factor: Dim = sizes[atom] if atom in sizes else symbol(atom)
            else:
                factor = _apply(atom.function, tuple(substitute(argument, sizes) for argument in atom.arguments))
            for _ in range(power):
                value = factor * value
        total = value + total
    return total


def parse(text: str | int) -> Dim:
    """The inverse of ``str(dim)``.

    Raises:
        ValueError: ``text`` is not a dimension.
    """
    if isinstance(text, int):
        return text
    tokens = re.findall(rf"[{_NAME}]+|[-+*(),]|\S", text)
    try:
        dim, rest = _parse_sum(tokens)
    except (ZeroDivisionError, RecursionError):
        raise ValueError(f"not a dimension: {text!r}") from None
    if rest:
        raise ValueError(f"not a dimension: {text!r}")
    return dim


def divisor(dim: Dim) -> int:
    """The greatest integer known to divide ``dim`` for every value of its names (0 for the dimension 0)."""
    return gcd(*(coefficient for _, coefficient in dim.terms)) if isinstance(dim, Sym) else abs(dim)


# ---------------------------------------------------------------------------------------------------------------------


def _terms(dim: Dim) -> dict[Monomial, int]:
    if isinstance(dim, Sym):
        return dict(dim.terms)
    return {(): int(dim)} if dim else {}


def _sum(a: dict[Monomial, int], b: dict[Monomial, int]) -> dict[Monomial, int]:
    total = dict(a)
    for key, value in b.items():
        total[key] = total.get(key, 0) + value
    return total


def _make(terms: dict[Monomial, int]) -> Dim:
    kept = {key: value for key, value in terms.items() if value}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    return Sym(tuple(sorted(kept.items(), key=lambda item: (not item[0], [(str(a), p) for a, p in item[0]]))))


def _exact_quotient(terms: dict[Monomial, int], divisor: dict[Monomial, int]) -> dict[Monomial, int] | None:
    if len(divisor) != 1:
        return {(): 1} if terms == divisor else None
    ((below, factor),) = divisor.items()
    quotient: dict[Monomial, int] = {}
    for monomial, coefficient in terms.items():
        powers = dict(monomial)
        for atom, power in below:
            powers[atom] = powers.get(atom, 0) - power
        if coefficient % factor or any(power < 0 for power in powers.values()):
            return None
        quotient[tuple(item for item in powers.items() if item[1])] = coefficient // factor
    return quotient


def _call(function: str, *arguments: Dim) -> Dim:
    if all(isinstance(argument, int) for argument in arguments):
        return _apply(function, arguments)
    return Sym((((((Call(function, arguments)), 1),), 1),))


def _apply(function: str, arguments: tuple[Dim, ...]) -> Dim:
    if function == "floordiv":
        return arguments[0] // arguments[1]
    if function == "mod":
        return arguments[0] % arguments[1]
    return _extreme(function, arguments)


def _extreme(function: str, dims: tuple[Dim, ...]) -> Dim:
    unique = list(dict.fromkeys(dims))
    numbers = [dim for dim in unique if isinstance(dim, int)]
    others: list[Dim] = sorted((dim for dim in unique if not isinstance(dim, int)), key=str)
    if numbers:
        others.append(min(numbers) if function == "min" else max(numbers))
    return others[0] if len(others) == 1 else _call(function, *others)


def _parse_sum(tokens: list[str]) -> tuple[Dim, list[str]]:
    sign = 1
    if tokens[:1] == ["-"]:
        sign, tokens = -1, tokens[1:]
    total, tokens = _parse_product(tokens)
    total = total * sign
    while tokens and tokens[0] in "+-":
        term, rest = _parse_product(tokens[1:])
        total = total + term * (1 if tokens[0] == "+" else -1)
        tokens = rest
    return total, tokens


def _parse_product(tokens: list[str]) -> tuple[Dim, list[str]]:
    total, tokens = _parse_atom(tokens)
    while tokens[:1] == ["*"]:
        factor, tokens = _parse_atom(tokens[1:])
        total = factor * total
    return total, tokens


def _parse_atom(tokens: list[str]) -> tuple[Dim, list[str]]:
    if not tokens:
        raise ValueError("not a dimension: it ends too early")
    head, rest = tokens[0], tokens[1:]
    if head.isdecimal():
        return int(head), rest
    if not re.fullmatch(f"[{_NAME}]+", head):
        raise ValueError(f"not a dimension: {head!r} where a name or a number is expected")
    if rest[:1] == ["("] and head in ("floordiv", "mod", "min", "max"):
        arguments: list[Dim] = []
        rest = rest[1:]
        while True:
            argument, rest = _parse_sum(rest)
            arguments.append(argument)
            if rest[:1] == [","]:
                rest = rest[1:]
                continue
            break
        if rest[:1] != [")"]:
            raise ValueError("not a dimension: ')' is missing")
        if len(arguments) != 2 and head in ("floordiv", "mod"):
            raise ValueError(f"not a dimension: {head} of {len(arguments)} arguments; it takes 2")
        return _apply(head, tuple(arguments)), rest[1:]
    return symbol(head), rest
