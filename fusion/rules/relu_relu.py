"""relu(relu(x)) -> relu(x); also relu of clip, clip of relu and clip of clip -> one clip, and relu(sigmoid(x)) -> sigmoid(x)."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.dtypes import DataType
from fusion.expression import FUNCTIONS, Apply, Expression, Literal
from fusion.rewrite import Refusal
from fusion.rules._expressions import NOT_NEGATIVE, subtrees
from fusion.rules._local import bottom_up, expression_rule


def _bounds(node: Expression) -> tuple[Expression, float, float, DataType] | None:
    """(x, low, high, type) of a clip with literal bounds."""
    if isinstance(node, Apply) and node.function == "clip":
        x, low, high = node.arguments
        if isinstance(low, Literal) and isinstance(high, Literal) and low.value <= high.value:
            return x, low.value, high.value, low.dtype
    return None


def _improve(expression: Expression, types: Sequence[DataType]) -> Expression:
    def step(node: Expression) -> Expression:
        if not isinstance(node, Apply):
            return node
        inner = node.arguments[0]
        if node.function == "relu" and isinstance(inner, Apply):
            if inner.function in NOT_NEGATIVE:
                return inner
            clip = _bounds(inner)
            if clip is not None and clip[2] >= 0:
                return _clip(clip[0], max(clip[1], 0), clip[2], clip[3])
        outer = _bounds(node)
        if outer is not None and isinstance(inner, Apply):
            _, low, high, dtype = outer
            if inner.function == "relu" and high >= 0:
                return _clip(inner.arguments[0], max(low, 0), high, dtype)
            clip = _bounds(inner)
            if clip is not None and max(low, clip[1]) <= min(high, clip[2]):
                return _clip(clip[0], max(low, clip[1]), min(high, clip[2]), dtype)
        return node

    return bottom_up(expression, step)


def _nearly(expression: Expression, types: Sequence[DataType]) -> Refusal | None:
    """A rectifier or clip of an activation that it changes."""
    for node in subtrees(expression):
        inner = node.arguments[0] if isinstance(node, Apply) else None
        if not isinstance(node, Apply) or not isinstance(inner, Apply) or not FUNCTIONS[inner.function].activation:
            continue
        if node.function == "relu":
            clip = _bounds(inner)
            what = f"clip to [{clip[1]:g}, {clip[2]:g}] is" if clip is not None else f"{inner.function} may be"
            return Refusal("range", f"{what} negative, which relu makes 0")
        outer, clip = _bounds(node), _bounds(inner)
        if outer is not None and clip is not None:
            return Refusal("range", f"clip to [{outer[1]:g}, {outer[2]:g}] after clip to [{clip[1]:g}, {clip[2]:g}]: the ranges do not meet")
    return None


def _clip(x: Expression, low: float, high: float, dtype: DataType) -> Expression:
    return Apply("clip", (x, Literal(low, dtype), Literal(high, dtype)))


RULE = expression_rule("relu-relu", __doc__.splitlines()[0], _improve, pieces=(frozenset({"relu", "clip"}),), nearly=_nearly)
