"""Arithmetic on shapes at import: the rules for operators on small tensors whose elements are dimensions.

A rule takes the node and object arrays of elements (None where an optional input is left out) and gives object arrays.
It may return None: then the node becomes layers, like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np

from fusion.dims import product
from fusion.dtypes import DataType
from fusion.importer import ratio
from fusion.importer.node import Node
from fusion.importer.ratio import Element, Ratio
from fusion.importer.tensors import data_type_of
from fusion.importer.values import ELEMENT_LIMIT, Value, elements_of, from_elements

Rule: TypeAlias = "Callable[[Node, Sequence[np.ndarray | None]], np.ndarray | Sequence[np.ndarray] | None]"
Arrays: TypeAlias = "Sequence[np.ndarray | None]"

ALWAYS = ("Shape", "Size")  # these have no other importer

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return register


def evaluate(node: Node, origin: str) -> tuple[Value | np.ndarray, ...] | None:
    """The node's results when they follow from shapes: values, or object arrays with None where they do not.

    None when the node is not arithmetic on shapes.
    """
    if node.domain:
        return None
    if node.op in ALWAYS:
        return (from_elements(_of_shape(node), DataType.INT64, origin),)
    if node.op not in _RULES:
        return None
    present = [value for value in node.inputs if value is not None]
    if not any(value.elements is not None for value in present):
        if node.op != "Concat" or not _is_partly_known(present):
            return None
    arrays: list[np.ndarray | None] = []
    for value in node.inputs:
        array = None if value is None else elements_of(value)
        if value is not None and array is None:
            array = _unknown(value)
            if array is None:
                return None
        arrays.append(array)
    found = _RULES[node.op](node, arrays)
    if found is None:
        return None
    results = [found] if isinstance(found, np.ndarray) else list(found)
    if any(result.size > ELEMENT_LIMIT for result in results):
        return None
    dtype = _result_type(node)
    return tuple(
        result if any(item is None for item in result.reshape(-1)) else from_elements(result, dtype, origin)
        for result in results
    )


def _is_partly_known(values: Sequence[Value]) -> bool:
    """Whether small integers stand beside computed ones, as in a target shape with one size from data."""
    return (
        values[0].dtype.is_integer
        and any(value.is_constant for value in values)
        and not all(value.is_constant for value in values)
        and all(value.shape in ((1,), (2,), (3,)) for value in values)
    )


def _unknown(value: Value) -> np.ndarray | None:
    count = product(value.shape)
    return np.full(value.shape, None, object) if isinstance(count, int) and count <= 64 else None  # type: ignore[arg-type]


def _result_type(node: Node) -> DataType:
    if node.op == "Cast":
        return data_type_of(node.required("to"))
    if node.op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or"):
        return DataType.BOOL
    return node.input(1 if node.op == "Where" else 0).dtype


def _of_shape(node: Node) -> np.ndarray:
    shape = node.input(0).shape
    if node.op == "Size":
        return _array([product(shape)]).reshape(())
    return _array(list(shape[slice(node.attr("start", 0), node.attr("end"))]))


def _array(items: Sequence[Element]) -> np.ndarray:
    result = np.empty(len(items), object)
    for index, item in enumerate(items):
        result[index] = item
    return result


def _given(arrays: Arrays, index: int) -> np.ndarray | None:
    return arrays[index] if index < len(arrays) else None


def _numbers(array: np.ndarray | None) -> list[int] | None:
    """The elements as integers; None when there are none, or one is no number."""
    if array is None or any(not isinstance(item, int) for item in array.reshape(-1)):
        return None
    return [int(item) for item in array.reshape(-1)]


def _parameter(node: Node, arrays: Arrays, index: int, attribute: str) -> list[int] | None:
    """Numbers given by input ``index`` (newer opsets) or by an attribute (older ones)."""
    if attribute in node.attributes:
        given = node.attr(attribute)
        return list(given) if isinstance(given, tuple) else [given]
    return _numbers(_given(arrays, index))


# --- elementwise -----------------------------------------------------------------------------------------------------


def _map(function: Callable[..., Element], *arrays: np.ndarray | None) -> np.ndarray | None:
    if any(array is None for array in arrays):
        return None
    result = np.frompyfunc(function, len(arrays), 1)(*arrays)
    if isinstance(result, np.ndarray):
        return result
    scalar = np.empty((), object)
    scalar[()] = result
    return scalar


_BINARY: dict[str, Callable[[Element, Element], Element]] = {
    "Add": ratio.add,
    "Sub": ratio.sub,
    "Mul": ratio.mul,
    "Pow": ratio.power,
    "Equal": ratio.equal,
    "Less": ratio.less,
    "Greater": lambda a, b: ratio.less(b, a),
    "LessOrEqual": lambda a, b: _negate(ratio.less(b, a)),
    "GreaterOrEqual": lambda a, b: _negate(ratio.less(a, b)),
    "And": lambda a, b: None if a is None or b is None else bool(a and b),
    "Or": lambda a, b: None if a is None or b is None else bool(a or b),
}

_UNARY: dict[str, Callable[[Element], Element]] = {
    "Identity": lambda a: a,
    "Neg": lambda a: ratio.mul(a, -1),
    "Floor": ratio.floor,
    "Ceil": ratio.ceil,
    "Round": ratio.round_half_even,
    "Not": lambda a: _negate(a),
    "Reciprocal": lambda a: ratio.div(1, a),
    "Abs": lambda a: a if ratio.less(a, 0) is False else ratio.mul(a, -1) if ratio.less(a, 0) else None,
}


def _negate(a: Element) -> Element:
    return None if a is None else not a


@rule(*_BINARY)
def _binary(node: Node, arrays: Arrays) -> np.ndarray | None:
    return _map(_BINARY[node.op], arrays[0], arrays[1])


@rule(*_UNARY)
def _unary(node: Node, arrays: Arrays) -> np.ndarray | None:
    return _map(_UNARY[node.op], arrays[0])


@rule("Div")
def _div(node: Node, arrays: Arrays) -> np.ndarray | None:
    return _map(ratio.integer_div if node.input(0).dtype.is_integer else ratio.div, arrays[0], arrays[1])


@rule("Mod")
def _mod(node: Node, arrays: Arrays) -> np.ndarray | None:
    return None if node.attr("fmod", 0) else _map(ratio.mod, arrays[0], arrays[1])


@rule("Min", "Max", "Sum")
def _variadic(node: Node, arrays: Arrays) -> np.ndarray | None:
    function = {"Min": ratio.minimum, "Max": ratio.maximum, "Sum": ratio.add}[node.op]
    return reduce(lambda a, b: _map(function, a, b), arrays)


@rule("Where")
def _where(node: Node, arrays: Arrays) -> np.ndarray | None:
    return _map(ratio.where, *arrays)


@rule("Clip")
def _clip(node: Node, arrays: Arrays) -> np.ndarray | None:
    result = arrays[0]
    for index, function in ((1, ratio.maximum), (2, ratio.minimum)):
        if _given(arrays, index) is not None:
            result = _map(function, result, arrays[index])
    return None if "min" in node.attributes or "max" in node.attributes else result


@rule("Cast")
def _cast(node: Node, arrays: Arrays) -> np.ndarray | None:
    dtype = data_type_of(node.required("to"))
    if dtype is DataType.BOOL:
        return _map(lambda a: _negate(ratio.equal(a, 0)), arrays[0])
    if dtype.is_float:
        return _map(lambda a: int(a) if isinstance(a, bool) else a, arrays[0])
    return _map(lambda a: int(a) if isinstance(a, bool) else ratio.truncate(a), arrays[0])


# --- movement --------------------------------------------------------------------------------------------------------


@rule("Concat")
def _concat(node: Node, arrays: Arrays) -> np.ndarray | None:
    if any(array is None or array.ndim == 0 for array in arrays):
        return None
    return np.concatenate(arrays, axis=node.required("axis"))  # type: ignore[arg-type]


@rule("Gather")
def _gather(node: Node, arrays: Arrays) -> np.ndarray | None:
    data, indices = arrays
    if data is None or indices is None or _numbers(indices) is None or data.ndim == 0:
        return None
    return _boxed(np.take(data, indices.astype(np.int64), axis=node.attr("axis", 0)))


@rule("Slice")
def _slice(node: Node, arrays: Arrays) -> np.ndarray | None:
    data = arrays[0]
    assert data is not None
    starts, ends = _parameter(node, arrays, 1, "starts"), _parameter(node, arrays, 2, "ends")
    if starts is None or ends is None:
        return None
    axes, steps = _parameter(node, arrays, 3, "axes"), _parameter(node, arrays, 4, "steps")
    if (axes is None and _given(arrays, 3) is not None) or (steps is None and _given(arrays, 4) is not None):
        return None
    window: list[slice] = [slice(None)] * data.ndim
    for position, axis in enumerate(axes or range(len(starts))):
        start, end, step = starts[position], ends[position], (steps or [1] * len(starts))[position]
        size = data.shape[axis]
        if step < 0:
            end = None if end < -size else end  # type: ignore[assignment]
        window[axis] = slice(start, end, step)
    return data[tuple(window)]


@rule("Squeeze")
def _squeeze(node: Node, arrays: Arrays) -> np.ndarray | None:
    data, axes = arrays[0], _parameter(node, arrays, 1, "axes")
    assert data is not None
    if axes is None and _given(arrays, 1) is not None:
        return None
    return _boxed(np.squeeze(data) if axes is None else np.squeeze(data, axis=tuple(axes)))


@rule("Unsqueeze")
def _unsqueeze(node: Node, arrays: Arrays) -> np.ndarray | None:
    data, axes = arrays[0], _parameter(node, arrays, 1, "axes")
    return None if data is None or axes is None else np.expand_dims(data, tuple(axes))


@rule("Reshape")
def _reshape(node: Node, arrays: Arrays) -> np.ndarray | None:
    data, shape = arrays[0], _numbers(_given(arrays, 1))
    if data is None or shape is None:
        return None
    if not node.attr("allowzero", 0):
        shape = [data.shape[index] if dim == 0 else dim for index, dim in enumerate(shape)]
    return data.reshape(shape)


@rule("Flatten")
def _flatten(node: Node, arrays: Arrays) -> np.ndarray | None:
    data, axis = arrays[0], node.attr("axis", 1)
    assert data is not None
    axis += data.ndim if axis < 0 else 0
    return data.reshape(int(np.prod(data.shape[:axis], dtype=np.int64)), -1)


@rule("Transpose")
def _transpose(node: Node, arrays: Arrays) -> np.ndarray | None:
    assert arrays[0] is not None
    return arrays[0].transpose(node.attr("perm"))


@rule("Expand")
def _expand(node: Node, arrays: Arrays) -> np.ndarray | None:
    data, shape = arrays[0], _numbers(_given(arrays, 1))
    if data is None or shape is None:
        return None
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape)))


@rule("Tile")
def _tile(node: Node, arrays: Arrays) -> np.ndarray | None:
    data, repeats = arrays[0], _numbers(_given(arrays, 1))
    return None if data is None or repeats is None else np.tile(data, repeats)


@rule("Split")
def _split(node: Node, arrays: Arrays) -> list[np.ndarray] | None:
    data, sizes = arrays[0], _parameter(node, arrays, 1, "split")
    assert data is not None
    axis = node.attr("axis", 0)
    if sizes is None:
        count = node.attr("num_outputs", len(node.outputs))
        chunk = -(-data.shape[axis] // count)
        sizes = [chunk] * (count - 1) + [data.shape[axis] - chunk * (count - 1)]
    return np.split(data, np.cumsum(sizes)[:-1], axis=axis)


@rule("ScatterND")
def _scatter_nd(node: Node, arrays: Arrays) -> np.ndarray | None:
    data, indices, updates = arrays
    if data is None or indices is None or updates is None or _numbers(indices) is None:
        return None
    if node.attr("reduction", "none") != "none":
        return None
    result = data.copy()
    result[tuple(np.moveaxis(indices.astype(np.int64), -1, 0))] = updates
    return result


@rule("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(node: Node, arrays: Arrays) -> np.ndarray | None:
    data, axes = arrays[0], _parameter(node, arrays, 1, "axes")
    assert data is not None
    if data.ndim != 1 or axes not in (None, [0], [-1]) or (axes is None and node.attr("noop_with_empty_axes", 0)):
        return None
    functions: dict[str, Callable[[Element, Element], Element]] = {
        "ReduceProd": ratio.mul, "ReduceSum": ratio.add, "ReduceMax": ratio.maximum, "ReduceMin": ratio.minimum
    }  # fmt: skip
    if data.size == 0:
        return None
    total = reduce(functions[node.op], data)
    return _array([total]) if node.attr("keepdims", 1) else _array([total]).reshape(())


@rule("CumSum")
def _cumsum(node: Node, arrays: Arrays) -> np.ndarray | None:
    data = arrays[0]
    if data is None or data.ndim != 1 or node.attr("exclusive", 0) or node.attr("reverse", 0) or data.size == 0:
        return None
    sums = [data[0]]
    for item in data[1:]:
        sums.append(ratio.add(sums[-1], item))
    return _array(sums)


@rule("Range")
def _range(node: Node, arrays: Arrays) -> np.ndarray | None:
    """Symbolic ends with a known count, such as ``Range(n, n + 2)``."""
    start, limit, delta = (None if array is None else array.reshape(-1)[0] for array in arrays)
    count = ratio.ceil(ratio.div(ratio.sub(limit, start), delta))
    if not isinstance(count, int) or count > ELEMENT_LIMIT or isinstance(count, Ratio):
        return None
    return _array([ratio.add(start, ratio.mul(delta, index)) for index in range(count)])


def _boxed(result: object) -> np.ndarray:
    """NumPy unwraps scalars of object arrays; this wraps them again."""
    if isinstance(result, np.ndarray):
        return result
    box = np.empty((), object)
    box[()] = result
    return box
