"""Values: what is known of a tensor while a model is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fusion.dims import Sym, product
from fusion.dtypes import DataType
from fusion.importer.ratio import Element, Ratio, as_float, from_float
from fusion.network import TensorType

if TYPE_CHECKING:
    from fusion.network import Op

ELEMENT_LIMIT = 1024  # larger tensors are never tracked element by element


class Step:
    """A layer in the making: it holds values, not names, so that tensors can be renamed until the end."""

    __slots__ = ("inputs", "name", "op", "origin", "outputs")

    def __init__(self, name: str, op: Op, inputs: tuple[Value, ...], origin: str) -> None:
        self.name = name
        self.op = op
        self.inputs = inputs
        self.outputs: tuple[Value, ...] = ()
        self.origin = origin


class Value:
    """A tensor: its type, and as much of its content as is known at import.

    A value is a *constant* (``array``, loaded or computed when first read), *symbolic* (all ``elements`` are dimensions or
    ratios of them, and no layer is needed), or *data* (``step`` or a network input makes it). Data may carry ``elements``
    too, some of them None for unknown.
    """

    __slots__ = ("_array", "_load", "elements", "name", "origin", "step", "type")

    def __init__(
        self,
        name: str,
        type_: TensorType,
        *,
        load: Callable[[], np.ndarray] | None = None,
        elements: np.ndarray | None = None,
        step: Step | None = None,
        origin: str = "",
    ) -> None:
        self.name = name
        self.type = type_
        self.elements = elements
        self.step = step
        self.origin = origin
        self._load = load
        self._array: np.ndarray | None = None

    @property
    def is_constant(self) -> bool:
        """Whether its content is known as numbers."""
        return self._load is not None

    @property
    def is_symbolic(self) -> bool:
        """Whether its content is known as dimensions, and only so."""
        return self.elements is not None and self.step is None and self._load is None

    @property
    def array(self) -> np.ndarray:
        """The content of a constant; read-only by agreement."""
        if self._array is None:
            assert self._load is not None, f"{self.name} is not a constant"
            self._array = np.asarray(self._load())
        return self._array

    @property
    def dtype(self) -> DataType:
        return self.type.dtype

    @property
    def shape(self) -> tuple:
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    def __repr__(self) -> str:
        kind = "constant" if self.is_constant else "symbolic" if self.is_symbolic else "data"
        return f"Value({self.name!r}, {self.dtype.value}, {self.shape}, {kind})"


def constant(array: np.ndarray, name: str = "", origin: str = "") -> Value:
    """A constant with this content."""
    array = np.asarray(array)
    return Value(name, TensorType(DataType(array.dtype.name), array.shape), load=lambda: array, origin=origin)


def elements_of(value: Value) -> np.ndarray | None:
    """The elements of a small constant or symbolic value (unknown ones None), as an object array; else None."""
    if value.elements is not None:
        return value.elements
    count = product(value.shape)
    if not value.is_constant or not isinstance(count, int) or count > ELEMENT_LIMIT:
        return None
    array = value.array
    result = np.empty(array.shape, object)
    flat = result.reshape(-1)
    for index, item in enumerate(array.reshape(-1)):
        flat[index] = from_float(item) if value.dtype.is_float else bool(item) if array.dtype == bool else int(item)
    return result


def from_elements(elements: np.ndarray, dtype: DataType, origin: str) -> Value:
    """A constant when all ``elements`` are numbers, else a symbolic value. No element may be None."""
    type_ = TensorType(dtype, elements.shape)
    if any(_is_symbolic(item) for item in elements.reshape(-1)):
        return Value("", type_, elements=elements, origin=origin)
    numbers = [as_float(item) if isinstance(item, Ratio) else item for item in elements.reshape(-1)]
    array = np.array(numbers, dtype.numpy).reshape(elements.shape)
    return Value("", type_, load=lambda: array, origin=origin)


def _is_symbolic(item: Element) -> bool:
    return isinstance(item, Sym) or (isinstance(item, Ratio) and not item.is_number)
