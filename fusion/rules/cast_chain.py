"""Cast(Cast(x, wider), narrow) -> Cast(x, narrow); Cast(x, type of x) -> x."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, type_of
from fusion.rewrite import Refusal
from fusion.rules._expressions import subtrees
from fusion.rules._local import bottom_up, expression_rule

_LOSSLESS = {
    DataType.HALF: {DataType.FLOAT, DataType.DOUBLE},
    DataType.BF16: {DataType.FLOAT, DataType.DOUBLE},
    DataType.FLOAT: {DataType.DOUBLE},
    DataType.INT8: {DataType.INT16, DataType.INT32, DataType.INT64, DataType.FLOAT, DataType.HALF, DataType.DOUBLE},
    DataType.UINT8: {DataType.INT16, DataType.INT32, DataType.INT64, DataType.FLOAT, DataType.HALF, DataType.DOUBLE},
    DataType.INT16: {DataType.INT32, DataType.INT64, DataType.FLOAT, DataType.DOUBLE},
    DataType.INT32: {DataType.INT64, DataType.DOUBLE},
    DataType.BOOL: set(DataType) - {DataType.BOOL},
}


def _improve(expression: Expression, types: Sequence[DataType]) -> Expression:
    def step(node: Expression) -> Expression:
        if not isinstance(node, Convert):
            return node
        inner = node.argument
        source = type_of(inner, types)
        if source is node.dtype:
            return inner
        if isinstance(inner, Convert):
            first = type_of(inner.argument, types)
            if inner.dtype in _LOSSLESS.get(first, ()):
                return inner.argument if first is node.dtype else Convert(node.dtype, inner.argument)
        return node

    return bottom_up(expression, step)


def _nearly(expression: Expression, types: Sequence[DataType]) -> Refusal | None:
    """A cast of a cast that loses digits; what is quantised and dequantised is another matter."""
    for node in subtrees(expression):
        inner = node.argument if isinstance(node, Convert) else None
        if isinstance(inner, Convert) and inner.dtype.is_float == type_of(inner.argument, types).is_float:
            first, second = type_of(inner.argument, types).value, inner.dtype.value
            return Refusal("data type", f"{first} does not fit {second} without loss, so {second} cannot be skipped")
    return None


RULE = expression_rule("cast-chain", __doc__.splitlines()[0], _improve, pieces=(frozenset({"cast"}),), nearly=_nearly)
