"""What the attention rule knows of scores: scale and mask in the expression between the first product and the softmax."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion.expression import Apply, Convert, Expression, Literal, Operand, operands

MASKED = -1e4  # an additive mask at or below this leaves nothing of a probability in float32


@dataclass(frozen=True)
class Scores:
    """``scale * q k^T + mask``. ``masks`` are (kind, expression) pairs; kind is ``add``, or ``keep`` (boolean: True stays)."""

    scale: float
    masks: tuple[tuple[str, Expression], ...] = ()


def read_scores(expression: Expression) -> Scores | None:
    """What ``expression`` does to operand 0, the product of q and k; None when it is more than scaling and masking."""
    if isinstance(expression, Convert) and expression.dtype.is_float:
        return read_scores(expression.argument)
    if expression == Operand(0):
        return Scores(1.0)
    if not isinstance(expression, Apply):
        return None
    name, arguments = expression.function, expression.arguments
    inside = [index for index, child in enumerate(arguments) if 0 in operands(child)]
    if len(inside) != 1:
        return None
    before = read_scores(arguments[inside[0]])
    if before is None:
        return None
    others = [child for index, child in enumerate(arguments) if index != inside[0]]
    if name in ("mul", "div") and isinstance(others[0], Literal) and not before.masks:
        factor = float(others[0].value)
        if name == "div":
            return Scores(before.scale / factor) if inside[0] == 0 and factor != 0 else None
        return Scores(before.scale * factor)
    if name == "add":
        return Scores(before.scale, (*before.masks, ("add", others[0])))
    if name == "max" and isinstance(others[0], Literal) and others[0].value <= MASKED:
        return before  # a floor under masked scores
    if name == "where" and inside[0] in (1, 2):
        condition, other = others
        if isinstance(other, Literal) and other.value <= MASKED:
            keep = condition if inside[0] == 1 else Apply("not", (condition,))
            return Scores(before.scale, (*before.masks, ("keep", keep)))
    return None


def is_causal(mask: np.ndarray, kind: str) -> bool:
    """Whether a constant mask keeps exactly the positions ``t <= s + T - S`` (all of its matrices do)."""
    if mask.ndim < 2 or mask.shape[-1] < 2:
        return False
    s, t = mask.shape[-2:]
    wanted = np.arange(t) <= np.arange(s)[:, None] + t - s
    if s < 2 or wanted.all():
        return False
    if kind == "keep":
        return bool(np.all(mask == wanted))
    return bool(np.all(mask[..., wanted] == 0) and np.all(mask[..., ~wanted] <= MASKED))
