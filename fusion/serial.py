"""Networks, operations and expressions to JSON values and back. Data only: unknown names are refused, nothing is run."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from fusion import expression, formats, network
from fusion.dims import Sym, parse
from fusion.dtypes import DataType
from fusion.ops import OPS

_CLASSES: dict[str, type] = {
    **OPS,
    **{cls.__name__: cls for cls in (expression.Operand, expression.Literal, expression.Convert, expression.Apply)},
    **{cls.__name__: cls for cls in (network.TensorType, network.Layer, network.Fate, network.Network, network.Reading, formats.Format)},
}


def to_json(value: Any) -> Any:
    """``value`` as JSON: dataclasses become ``{"is": class, field: ...}`` without fields that hold their default."""
    if isinstance(value, DataType):
        return {"dtype": value.value}
    if isinstance(value, Sym):
        return {"dim": str(value)}
    if isinstance(value, network.Network):
        return {"is": "Network", **network_to_json(value)}
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
    if cls is network.Network:
        return network_from_json(value)
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    unknown = set(value) - known - {"is"}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}")
    try:
        return cls(**{name: from_json(item) for name, item in value.items() if name != "is"})
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error


def network_to_json(value: network.Network) -> dict[str, Any]:
    """A network as JSON, without the values of its constants."""
    return {
        "name": value.name,
        "inputs": list(value.inputs),
        "outputs": list(value.outputs),
        "layers": [to_json(layer) for layer in value.layers],
        "holds": to_json(value.holds),
        **{part: {name: to_json(item) for name, item in getattr(value, part).items()} for part in _PARTS},
    }


def network_from_json(value: dict[str, Any]) -> network.Network:
    """The inverse of :func:`network_to_json`.

    Raises:
        ValueError: something is of the wrong kind.
    """
    kinds = (network.TensorType, network.Fate, network.Reading, formats.Format)
    parts = {}
    for part, kind in zip(_PARTS, kinds, strict=True):
        parts[part] = {_is(name, str): _is(from_json(item), kind) for name, item in value.get(part, {}).items()}
    return network.Network(
        name=_is(value["name"], str),
        inputs=tuple(_is(name, str) for name in _is(value["inputs"], list)),
        outputs=tuple(_is(name, str) for name in _is(value["outputs"], list)),
        layers=tuple(_is(from_json(layer), network.Layer) for layer in _is(value["layers"], list)),
        holds=tuple((left, right) for left, right in from_json(value.get("holds", []))),
        **parts,
    )


_PARTS = ("tensors", "fates", "sizes", "formats")


def _is(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value
