"""Networks, operations and expressions to JSON values and back. Data only: unknown names are refused, nothing is run."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from fusion import expression, network
from fusion.dims import Sym, parse
from fusion.dtypes import DataType
from fusion.ops import OPS

_CLASSES: dict[str, type] = {
    **OPS,
    **{cls.__name__: cls for cls in (expression.Operand, expression.Literal, expression.Convert, expression.Apply)},
    **{cls.__name__: cls for cls in (network.TensorType, network.Layer, network.Fate)},
}


def to_json(value: Any) -> Any:
    """``value`` as JSON: dataclasses become ``{"is": class, field: ...}`` without fields that hold their default."""
    if isinstance(value, DataType):
        return {"dtype": value.value}
    if isinstance(value, Sym):
        return {"dim": str(value)}
    if is_dataclass(value) and not isinstance(value, type):
        items = {
            item.name: getattr(value, item.name) for item in fields(value) if getattr(value, item.name) != item.default
        }
        return {"is": type(value).__name__, **{name: to_json(item) for name, item in items.items()}}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json(value: Any) -> Any:
    """The inverse of :func:`to_json`; lists become tuples.

    Raises:
        ValueError: the JSON does not describe a known class, or holds unknown fields.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "dtype" in value and len(value) == 1:
        return DataType(value["dtype"])
    if "dim" in value and len(value) == 1:
        return parse(str(value["dim"]))
    if "float" in value and len(value) == 1:
        return float(value["float"])
    cls = _CLASSES.get(str(value.get("is")))
    if cls is None:
        raise ValueError(f"unknown class {value.get('is')!r}")
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    unknown = set(value) - known - {"is"}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}")
    try:
        return cls(**{name: from_json(item) for name, item in value.items() if name != "is"})
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error
