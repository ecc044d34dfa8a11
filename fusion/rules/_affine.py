"""What the scale rules share: the affine part ``x * s + b`` at the start of an expression, as numbers per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.expression import Apply, Expression, Operand, operands, substitute
from fusion.graph import Graph
from fusion.rules._expressions import swap, value_of

_MARK = Operand(-1)


@dataclass(frozen=True)
class Affine:
    """``rest(x * scale + shift)`` is the whole; scale and shift are float64, of one element or one per channel.

    ``steps`` is how many functions the affine part was written with.
    """

    scale: np.ndarray
    shift: np.ndarray
    rest: Expression
    steps: int = 1


def leading_affine(expression: Expression, constants: Mapping[int, np.ndarray]) -> Affine | None:
    """The largest affine function of operand 0 that ``expression`` starts with; None when there is none.

    ``constants`` holds the values of constant operands, of shape ``()`` or ``[C]``. Every use of operand 0 must go
    through that affine part.
    """
    node: Expression = Operand(0)
    scale, shift = np.ones(()), np.zeros(())
    steps: list[Affine] = []
    for count, parent in enumerate(_ancestors(expression), 1):
        step = _step(parent, node, scale, shift, constants)
        if step is None:
            break
        node, (scale, shift) = parent, step
        rest = swap(expression, node, _MARK)
        if 0 not in operands(rest):
            steps.append(Affine(scale, shift, substitute(rest, {-1: Operand(0)}), count))
    return steps[-1] if steps else None


def channel_constants(graph: Graph, names: Sequence[str], rank: int, axis: int) -> dict[int, np.ndarray]:
    """Values of the constant tensors among ``names``, by position, that vary along ``axis`` of a ``rank``-axis result only."""
    found: dict[int, np.ndarray] = {}
    for index, name in enumerate(names):
        value = graph.constant(name)
        if value is None or not graph.type(name).dtype.is_float:
            continue
        if value.size == 1:
            found[index] = value.reshape(())
        elif value.ndim >= rank - axis and value.shape[value.ndim - rank + axis] == value.size:
            found[index] = value.reshape(-1)
    return found


def _ancestors(expression: Expression) -> list[Apply]:
    """The calls above the first use of operand 0, innermost first; empty when something else is on the way."""

    def path(node: Expression) -> list[Apply] | None:
        if node == Operand(0):
            return []
        if isinstance(node, Apply):
            for child in node.arguments:
                below = path(child)
                if below is not None:
                    return [*below, node]
        return None

    return path(expression) or []


def _step(
    parent: Apply, child: Expression, scale: np.ndarray, shift: np.ndarray, constants: Mapping[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    if parent.function == "neg":
        return -scale, -shift
    if parent.function not in ("add", "sub", "mul", "div"):
        return None
    first = parent.arguments[0] == child
    other = value_of(parent.arguments[1 if first else 0], constants)
    if other is None:
        return None
    if parent.function == "add":
        return scale, shift + other
    if parent.function == "mul":
        return scale * other, shift * other
    if parent.function == "sub":
        return (scale, shift - other) if first else (-scale, other - shift)
    if first and np.all(other != 0):
        return scale / other, shift / other
    return None
