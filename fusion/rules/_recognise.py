"""Finding a known function of one variable in an expression, however it is written.

Exporters write the same activation in many ways. Instead of listing them, a sub-expression that depends on one
variable only is evaluated in float64 at sample points and compared with the known function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import (
    Apply,
    Convert,
    Expression,
    Literal,
    Operand,
    evaluate,
    operands,
    type_of,
    vocabulary,
    with_children,
)
from fusion.rewrite import Refusal, Rule
from fusion.rules._expressions import as_double, subtrees, swap
from fusion.rules._local import expression_rule

_VARIABLE = Operand(0)
SAMPLES = np.concatenate([np.linspace(-12, 12, 97), np.linspace(-1.05, 1.05, 43), [-40.0, 40.0, 1e-3, -1e-3]])
LARGEST = 24  # functions in one written-out activation
_NEAR = np.abs(SAMPLES) <= 3  # where a form is compared that is nearly an activation
_FAR = 0.2  # of the activation's largest value there: what differs more is something else


@dataclass(frozen=True)
class Idiom:
    """A function to recognise.

    Attributes:
        needs: the written-out form has at least one function of each group.
        fit: from the form's values at SAMPLES to (reference values, builder), or None when it cannot be this function.
        least: fewest functions in the form, so that the known function itself is left alone.
    """

    needs: tuple[frozenset[str], ...]
    fit: Callable[
        [Callable[[np.ndarray], np.ndarray]], tuple[np.ndarray, Callable[[Expression, DataType], Expression]] | None
    ]
    least: int = 2


def idiom_rule(name: str, equation: str, idiom: Idiom) -> Rule:
    """The rule that replaces every written-out form of ``idiom``."""
    return expression_rule(
        name,
        equation,
        lambda expression, types: recognise(expression, types, idiom),
        pieces=idiom.needs,
        nearly=lambda expression, types: nearly(name, expression, types, idiom),
    )


def recognise(expression: Expression, types: Sequence[DataType], idiom: Idiom) -> Expression:
    """``expression`` with written-out forms of ``idiom`` replaced, outermost first."""
    if not _has(expression, idiom):
        return expression
    if isinstance(expression, Convert):
        return with_children(expression, (recognise(expression.argument, types, idiom),))
    if not isinstance(expression, Apply):
        return expression
    found = _whole(expression, types, idiom)
    if found is not None:
        return found
    return with_children(expression, tuple([recognise(child, types, idiom) for child in expression.arguments]))


def nearly(name: str, expression: Expression, types: Sequence[DataType], *idioms: Idiom) -> Refusal | None:
    """Where a part of ``expression`` is made like one of ``idioms``, called ``name``, and differs from it least; None where nothing comes near."""
    least: tuple[float, Refusal] | None = None
    for idiom in idioms:
        for node in dict.fromkeys(subtrees(expression)):
            for form, _, _ in _forms(node, types, idiom) if isinstance(node, Apply) else ():
                values = _values(form)
                fitted = idiom.fit(values)
                if fitted is None:
                    continue
                found, wanted = values(SAMPLES)[_NEAR], fitted[0][_NEAR]
                apart = np.abs(found - wanted) / np.max(np.abs(wanted))
                worst = int(np.argmax(apart))
                if apart[worst] <= _FAR and (least is None or apart[worst] < least[0]):
                    detail = f"at x = {SAMPLES[_NEAR][worst]:g} it gives {found[worst]:.5g}, {name} {wanted[worst]:.5g}"
                    least = float(apart[worst]), Refusal("values", detail)
    return None if least is None else least[1]


def _has(expression: Expression, idiom: Idiom) -> bool:
    """Whether ``expression`` has a function of each group that ``idiom`` needs."""
    names = vocabulary(expression)
    return not any(group.isdisjoint(names) for group in idiom.needs)


def _whole(node: Apply, types: Sequence[DataType], idiom: Idiom) -> Expression | None:
    for form, variable, dtype in _forms(node, types, idiom):
        built = _fits(form, variable, dtype, idiom)
        if built is not None:
            return built
    return None


def _forms(node: Apply, types: Sequence[DataType], idiom: Idiom) -> Iterator[tuple[Expression, Expression, DataType]]:
    """(form of operand 0, what stands for that operand, type): the ways to read ``node`` as a function that has what ``idiom`` needs."""
    if not _has(node, idiom):
        return
    dtype = type_of(node, types)
    if not dtype.is_float:
        return
    nodes = list(dict.fromkeys(subtrees(node)))
    # The variable that stands nearest to the root comes first: it is the activation's argument.
    for variable in nodes[1:]:
        if isinstance(variable, Literal) or not operands(variable):
            continue
        form = swap(node, variable, Operand(-1))
        if operands(form) != (-1,) or type_of(variable, types) is not dtype:
            continue
        calls = [item for item in subtrees(form) if isinstance(item, Apply)]
        if len(calls) < idiom.least or len(calls) > LARGEST:
            continue
        if _has(form, idiom):
            yield swap(form, Operand(-1), _VARIABLE), variable, dtype


def _values(form: Expression) -> Callable[[np.ndarray], np.ndarray]:
    """``form`` in float64, as a function of operand 0."""
    wide = as_double(form)
    return lambda x: np.asarray(evaluate(wide, [np.asarray(x, np.float64)]), np.float64)


def _fits(form: Expression, variable: Expression, dtype: DataType, idiom: Idiom) -> Expression | None:
    values = _values(form)
    fitted = idiom.fit(values)
    if fitted is None:
        return None
    reference, build = fitted
    # Literals of narrow types are rounded to 8 or 11 bits, which shows in the values.
    tolerance = 2e-3 if dtype.itemsize < 4 else 5e-6
    if not np.allclose(values(SAMPLES), reference, rtol=tolerance, atol=tolerance):
        return None
    return build(variable, dtype)


def fixed(function: str, reference: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """``Idiom.fit`` of a function without parameters."""

    def fit(
        values: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, Callable[[Expression, DataType], Expression]]:
        return reference(SAMPLES), lambda variable, dtype: Apply(function, (variable,))

    return fit
