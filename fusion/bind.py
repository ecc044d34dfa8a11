"""From symbolic to concrete: the same network, operation or type with sizes filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

from fusion.dims import Sym, bind, is_static
from fusion.network import Op, TensorType

OpType = TypeVar("OpType", bound=Op)


def bind_op(op: OpType, sizes: Mapping[str, int]) -> OpType:
    """``op`` with every symbolic dimension in its attributes replaced by its value.

    Raises:
        KeyError: a name is not in ``sizes``.
    """
    assert is_dataclass(op)
    changed = {}
    for item in fields(op):
        value = getattr(op, item.name)
        if not is_static(value):
            changed[item.name] = _bind(value, sizes)
    return replace(op, **changed) if changed else op


def bind_type(tensor: TensorType, sizes: Mapping[str, int]) -> TensorType:
    """``tensor`` with a concrete shape.

    Raises:
        KeyError: a name is not in ``sizes``.
    """
    return tensor if tensor.is_static else TensorType(tensor.dtype, tuple(bind(dim, sizes) for dim in tensor.shape))


def _bind(value: object, sizes: Mapping[str, int]) -> object:
    if isinstance(value, tuple):
        return tuple(_bind(item, sizes) for item in value)
    return bind(value, sizes) if isinstance(value, Sym) else value
