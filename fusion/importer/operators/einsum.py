"""Einsum, taken apart into sums, transposes and matrix products, two operands at a time from the left."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.dims import Dim, product
from fusion.dtypes import DataType
from fusion.expression import Operand
from fusion.importer.builder import X0, X1, X2, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.network import broadcast
from fusion.ops import MatrixMultiply, Range, Reduce

ELLIPSIS = "0123456789"  # stands for the axes of "...", aligned at the right


@dataclass(frozen=True)
class Term:
    """A tensor with one letter per axis, all different."""

    value: Value
    letters: str


@operator("Einsum")
def einsum(b: Builder, node: Node) -> Value:
    values = [node.input(index) for index in range(len(node.inputs))]
    inputs, output = parse(node.required("equation"), [value.rank for value in values])
    terms = [_diagonal(b, value, letters, f"input{index}")
             for index, (value, letters) in enumerate(zip(values, inputs, strict=True))]  # fmt: skip
    result = _sum_out(b, terms[0], output + "".join(term.letters for term in terms[1:]), "sum0")
    for index, term in enumerate(terms[1:], 1):
        later = output + "".join(other.letters for other in terms[index + 1 :])
        term = _sum_out(b, term, later + result.letters, f"sum{index}")
        result = _contract(b, result, term, later, f"product{index}" if index < len(terms) - 1 else "product")
    if set(result.letters) != set(output):
        raise Unsupported(f"equation {node.attr('equation')!r}: the output names an axis that no input has")
    return b.transpose(result.value, [result.letters.index(letter) for letter in output])


def parse(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """(letters of each input, letters of the output); the axes of an ellipsis are digits.

    Raises:
        Unsupported: the equation does not fit the inputs.
    """
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    parts = left.split(",")
    if len(parts) != len(ranks):
        raise Unsupported(f"equation {equation!r} for {len(ranks)} inputs")
    inputs = []
    for part, rank in zip(parts, ranks, strict=True):
        hidden = rank - len(part.replace("...", ""))
        if hidden < 0 or (hidden and "..." not in part):
            raise Unsupported(f"equation {equation!r}: {part!r} for a tensor with {rank} dimensions")
        inputs.append(part.replace("...", ELLIPSIS[len(ELLIPSIS) - hidden :] if hidden else ""))
    hidden_letters = max(("".join(c for c in letters if c.isdigit()) for letters in inputs), key=len)
    if arrow:
        output = right.replace("...", hidden_letters)
    else:
        every = "".join(inputs)
        output = hidden_letters + "".join(sorted(c for c in set(every) if every.count(c) == 1 and c.isalpha()))
    return inputs, output


def _diagonal(b: Builder, value: Value, letters: str, suffix: str) -> Term:
    """A repeated letter takes the diagonal: everything off it is zeroed, then summed away."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first, second = letters.index(letter), letters.rindex(letter)
            size, rank = value.shape[first], value.rank
            ranges = [
                b.reshape(
                    b.layer(Range(0, 1, size, DataType.INT64), suffix=f"{suffix}_range"),
                    (size, *(1,) * (rank - axis - 1)),
                    f"{suffix}_column",
                )
                for axis in (first, second)
            ]
            kept = call("where", call("equal", X1, X2), X0, literal(0, value.dtype))
            masked = b.pointwise(kept, value, *ranges, suffix=f"{suffix}_diagonal")
            value = b.layer(Reduce("sum", (second,), False), masked, suffix=f"{suffix}_squeeze")
            letters = letters[:second] + letters[second + 1 :]
    return Term(value, letters)


def _sum_out(b: Builder, term: Term, needed: str, suffix: str) -> Term:
    """Sums over axes that nothing else needs."""
    axes = tuple(axis for axis, letter in enumerate(term.letters) if letter not in needed)
    if not axes:
        return term
    letters = "".join(letter for letter in term.letters if letter in needed)
    return Term(b.layer(Reduce("sum", axes, False), term.value, suffix=suffix), letters)


def _contract(b: Builder, left: Term, right: Term, needed: str, suffix: str) -> Term:
    """The product of two terms, summed over the letters that they share and nothing else needs."""
    shared = [letter for letter in left.letters if letter in right.letters]
    summed = [letter for letter in shared if letter not in needed]
    batch = [letter for letter in shared if letter in needed]
    rows = [letter for letter in left.letters if letter not in shared]
    columns = [letter for letter in right.letters if letter not in shared]
    if rows and columns and needed.index(columns[0]) < needed.index(rows[0]) and not left.value.is_constant and not right.value.is_constant:
        return _contract(b, right, left, needed, suffix)  # as the result is wanted; but weights stay on the right
    if not summed:
        return _outer(b, left, right, "".join(batch + rows + columns), suffix)
    sizes = {**dict(zip(right.letters, right.value.shape, strict=True)), **dict(zip(left.letters, left.value.shape, strict=True))}
    batch_shape = broadcast([_shape(left, batch), _shape(right, batch)])
    a, transpose_a = _matrix(b, left, batch, rows, summed, f"{suffix}_left")
    c, transpose_c = _matrix(b, right, batch, summed, columns, f"{suffix}_right")
    dtype = left.value.dtype
    if dtype.is_integer and dtype.itemsize < 4:  # a product of these would stay int32
        a, c = (b.convert(one, DataType.INT32, f"{suffix}_{name}_wide") for one, name in ((a, "left"), (c, "right")))
    result = b.convert(b.layer(MatrixMultiply(transpose_a, transpose_c), a, c, suffix=suffix), dtype, f"{suffix}_narrow")
    shape = (*batch_shape, *(sizes[letter] for letter in rows), *(sizes[letter] for letter in columns))
    return Term(b.reshape(result, shape, f"{suffix}_shape"), "".join(batch + rows + columns))


def _shape(term: Term, letters: list[str]) -> tuple[Dim, ...]:
    return tuple(term.value.shape[term.letters.index(letter)] for letter in letters)


def _matrix(b: Builder, term: Term, batch: list[str], first: list[str], second: list[str], suffix: str) -> tuple[Value, bool]:
    """``term`` as batch, first, second; or, when it already lies the other way round, as it is with the flag set."""
    straight = "".join(batch + first + second)
    turned = "".join(batch + second + first)
    is_turned = term.letters == turned and straight != turned
    order = turned if is_turned else straight
    value = b.transpose(term.value, [term.letters.index(letter) for letter in order], f"{suffix}_order")
    sides = (second, first) if is_turned else (first, second)
    shape = (*_shape(term, batch), *(product(_shape(term, side)) for side in sides))
    return b.reshape(value, shape, f"{suffix}_matrix"), is_turned


def _outer(b: Builder, left: Term, right: Term, letters: str, suffix: str) -> Term:
    """No letter is summed: an elementwise product of both, spread over all letters."""
    aligned = []
    for term, name in ((left, "left"), (right, "right")):
        own = [letter for letter in letters if letter in term.letters]
        value = b.transpose(term.value, [term.letters.index(letter) for letter in own], f"{suffix}_{name}_order")
        sizes = dict(zip(own, value.shape, strict=True))
        aligned.append(b.reshape(value, tuple(sizes.get(letter, 1) for letter in letters), f"{suffix}_{name}_shape"))
    return Term(b.pointwise(call("mul", Operand(0), Operand(1)), *aligned, suffix=suffix), letters)
