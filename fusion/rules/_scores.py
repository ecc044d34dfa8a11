"""What the attention rule knows of scores: scale and mask in the expression between the first product and the softmax."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fusion.expression import Apply, Convert, Expression, Literal, Operand, operands

MASKED = -1e4  # an additive mask at or below this leaves nothing of a probability in float32


@dataclass(frozen=True)
class Scores:
    """``scale * q k^T + mask``. ``masks`` are (kind, expression) pairs; kind is ``add``, or ``keep`` (boolean: True stays).

    With ``cap``, ``cap * tanh(scale * q k^T)`` takes the place of the scaled product. ``hidden`` is what the last ``keep`` puts where it keeps nothing.
    ``factors`` are what the product is multiplied with besides (divided by, where the flag is set): a learned scale per head.
    """

    scale: float
    masks: tuple[tuple[str, Expression], ...] = ()
    cap: float = 0.0
    hidden: float = -np.inf
    factors: tuple[tuple[Expression, bool], ...] = ()

    def times(self, factor: Literal, inverse: bool = False) -> Scores | None:
        """All of it times ``factor`` (or divided by it): additive masks too; what is masked stays so only for a positive one."""
        value = float(factor.value)
        if inverse and value == 0 or (self.masks or self.cap) and not value > 0:
            return None
        function = "div" if inverse else "mul"
        masks = tuple((kind, Apply(function, (Convert(factor.dtype, mask), factor)) if kind == "add" else mask) for kind, mask in self.masks)
        value = 1 / value if inverse else value
        hidden = self.hidden * value
        if self.cap:
            return replace(self, masks=masks, cap=self.cap * value, hidden=hidden)
        return replace(self, scale=self.scale * value, masks=masks, hidden=hidden)


def read_scores(expression: Expression) -> Scores | None:
    """What ``expression`` does to operand 0, the product of q and k; None when it is more than scaling, capping and masking."""
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
    if name in ("mul", "div") and isinstance(others[0], Literal):
        return before.times(others[0], inverse=name == "div") if name == "mul" or inside[0] == 0 else None
    if name == "mul" or (name == "div" and inside[0] == 0):
        return None if before.masks or before.cap else replace(before, factors=(*before.factors, (others[0], name == "div")))
    if name == "tanh":
        return None if before.masks or before.cap or before.scale <= 0 else replace(before, cap=1.0)
    if name == "add":
        return replace(before, masks=(*before.masks, ("add", others[0])))
    if name == "max" and isinstance(others[0], Literal) and others[0].value <= MASKED:
        return before  # a floor under masked scores
    if name == "where" and inside[0] in (1, 2):
        condition, other = others
        if isinstance(other, Literal) and other.value <= MASKED:
            keep = condition if inside[0] == 1 else Apply("not", (condition,))
            return replace(before, masks=(*before.masks, ("keep", keep)), hidden=float(other.value))
    return None


def band(mask: np.ndarray, kind: str) -> tuple[bool, int] | None:
    """(causal, window) when a constant mask keeps exactly the positions ``t <= s + T - S`` (causal) and ``t > s + T - S - window``, in all of
    its matrices; window is 0 where nothing is too old."""
    if mask.ndim < 2 or mask.shape[-1] < 2 or mask.shape[-2] < 2:
        return None
    if kind == "keep":
        kept = mask.astype(bool)
    else:
        kept = mask == 0
        if not np.all(mask[~kept] <= MASKED):
            return None
    s, t = mask.shape[-2:]
    ahead = np.arange(t) - np.arange(s)[:, None] - (t - s)
    first = kept.reshape(-1, s, t)[0]
    causal = not first[ahead > 0].any() and bool((ahead > 0).any())
    oldest = int(ahead[first].min()) if first.any() else 0
    window = 1 - oldest if (ahead < oldest).any() and oldest <= 0 else 0
    wanted = np.ones((s, t), bool)
    if causal:
        wanted &= ahead <= 0
    if window:
        wanted &= ahead > -window
    return (causal, window) if (causal or window) and bool(np.all(kept == wanted)) else None
