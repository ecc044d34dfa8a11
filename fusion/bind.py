"""From symbolic to concrete: the same network, operation or type with sizes filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

from fusion.dims import Dim, Sym, bind, is_static, substitute
from fusion.network import ControlFlow, Network, Op, TensorType

OpType = TypeVar("OpType", bound=Op)


def bind_op(op: OpType, sizes: Mapping[str, int]) -> OpType:
    """``op`` with every symbolic dimension in its attributes replaced by its value.

    Raises:
        KeyError: a name is not in ``sizes``.
    """
    assert is_dataclass(op)
    changed: dict[str, object] = {"sizes": tuple(sorted(sizes.items()))} if isinstance(op, ControlFlow) else {}
    for item in fields(op):
        value = getattr(op, item.name)
        if not is_static(value):
            changed[item.name] = _changed(value, lambda dim: bind(dim, sizes))
    return replace(op, **changed) if changed else op


def has_sizes(op: Op) -> bool:
    """Whether :func:`bind_op` changes ``op``."""
    assert is_dataclass(op)
    return isinstance(op, ControlFlow) or not all(is_static(getattr(op, item.name)) for item in fields(op))


def bind_type(tensor: TensorType, sizes: Mapping[str, int]) -> TensorType:
    """``tensor`` with a concrete shape.

    Raises:
        KeyError: a name is not in ``sizes``.
    """
    return tensor if tensor.is_static else TensorType(tensor.dtype, tuple(bind(dim, sizes) for dim in tensor.shape))


def fix_sizes(network: Network, sizes: Mapping[str, int]) -> Network:
    """``network`` with the named ``sizes`` replaced by numbers wherever they occur; other names stay.

    A network with layers that hold networks of their own (loops, branches) stays as it is.
    """
    if not sizes or any(isinstance(layer.op, ControlFlow) for layer in network.layers):
        return network
    layers = tuple(replace(layer, op=_fix_op(layer.op, sizes)) for layer in network.layers)
    tensors = {
        name: TensorType(tensor.dtype, tuple(substitute(dim, sizes) for dim in tensor.shape))
        for name, tensor in network.tensors.items()
    }
    readings = {
        name: replace(one, limit=None if one.limit is None else substitute(one.limit, sizes)) for name, one in network.sizes.items()
    }
    holds = tuple((substitute(left, sizes), substitute(right, sizes)) for left, right in network.holds)
    return replace(network, layers=layers, tensors=tensors, sizes=readings, holds=holds)


def _fix_op(op: Op, sizes: Mapping[str, int]) -> Op:
    assert is_dataclass(op)
    values = {item.name: getattr(op, item.name) for item in fields(op)}
    changed = {name: _changed(value, lambda dim: substitute(dim, sizes)) for name, value in values.items() if not is_static(value)}
    return replace(op, **changed) if changed else op


def _changed(value: object, change: Callable[[Sym], Dim]) -> object:
    """``value`` with ``change`` of every symbolic dimension in it."""
    if isinstance(value, tuple):
        return tuple(_changed(item, change) for item in value)
    return change(value) if isinstance(value, Sym) else value
