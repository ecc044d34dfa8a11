"""ONNX tensors and types to NumPy arrays and ours."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusion.dims import Dim, symbol
from fusion.dtypes import DataType
from fusion.importer.errors import ModelError, Unsupported
from fusion.network import TensorType

if TYPE_CHECKING:
    from onnx import SparseTensorProto, TensorProto, TypeProto


_NAMED = {
    "FLOAT": DataType.FLOAT, "FLOAT16": DataType.HALF, "BFLOAT16": DataType.BF16, "DOUBLE": DataType.DOUBLE,
    "FLOAT8E4M3FN": DataType.FP8, "FLOAT8E5M2": DataType.FP8_E5M2, "FLOAT8E4M3FNUZ": DataType.FP8_FNUZ,
    "FLOAT8E5M2FNUZ": DataType.FP8_E5M2_FNUZ, "FLOAT8E8M0": DataType.FP8_E8M0, "FLOAT4E2M1": DataType.FP4,
    "INT2": DataType.INT2, "INT4": DataType.INT4, "INT8": DataType.INT8, "INT16": DataType.INT16, "INT32": DataType.INT32,
    "INT64": DataType.INT64, "UINT2": DataType.UINT2, "UINT4": DataType.UINT4, "UINT8": DataType.UINT8, "UINT16": DataType.UINT16,
    "UINT32": DataType.UINT32, "UINT64": DataType.UINT64, "BOOL": DataType.BOOL,
}  # fmt: skip


def named_types() -> dict[str, DataType]:
    """Our data types by the names of ONNX's element types; older releases of onnx have fewer."""
    from onnx import TensorProto as Tensor

    return {name: dtype for name, dtype in _NAMED.items() if hasattr(Tensor, name)}


@cache
def _types() -> dict[int, DataType]:
    from onnx import TensorProto as Tensor

    return {getattr(Tensor, name): dtype for name, dtype in named_types().items()}


# Two, or four, of their elements share a byte in a file.
PACKED = (DataType.FP4, DataType.INT2, DataType.INT4, DataType.UINT2, DataType.UINT4)


def data_type_of(element_type: int) -> DataType:
    """Our name of an ONNX element type.

    Raises:
        Unsupported: trtcli has no such type.
    """
    found = _types().get(element_type)
    if found is None:
        raise Unsupported(f"tensors of type {_name(element_type)} are not supported")
    return found


def onnx_type_of(dtype: DataType) -> int:
    """The inverse of :func:`data_type_of`."""
    return next(key for key, value in _types().items() if value is dtype)


def _name(element_type: int) -> str:
    from onnx import TensorProto as Tensor

    try:
        return str(Tensor.DataType.Name(element_type))  # type: ignore[arg-type]
    except ValueError:
        return f"number {element_type}"


def tensor_type(tensor: TensorProto) -> TensorType:
    """Type and shape of a tensor's content as :func:`array_of` gives it.

    Raises:
        Unsupported: trtcli has no such element type.
    """
    return TensorType(data_type_of(tensor.data_type), tuple(tensor.dims))


def array_of(tensor: TensorProto, folder: Path | None = None) -> np.ndarray:
    """The content of a tensor; external data is memory-mapped, not read.

    Raises:
        Unsupported: trtcli has no such element type.
        ModelError: the content does not fit the shape, or external data is missing.
    """
    type_ = tensor_type(tensor)
    shape = tuple(int(dim) for dim in type_.shape)  # type: ignore[arg-type]
    if type_.dtype in PACKED:
        from onnx.numpy_helper import to_array

        return to_array(tensor, "" if folder is None else str(folder)).astype(type_.dtype.numpy, copy=False)
    if is_external(tensor):
        path, offset, _ = external_location(tensor, folder)
        if 0 in shape:
            return np.zeros(shape, type_.dtype.numpy)
        return np.memmap(path, type_.dtype.numpy, "r", offset, shape)
    if tensor.HasField("raw_data"):
        raw = tensor.raw_data
        count = int(np.prod(shape, dtype=np.int64))
        if len(raw) != count * type_.dtype.itemsize:
            raise ModelError(
                f"tensor {tensor.name!r} of shape {list(shape)} wants {count * type_.dtype.itemsize} bytes and has {len(raw)}"
            )
        return np.frombuffer(raw, type_.dtype.numpy).reshape(shape)
    from onnx.numpy_helper import to_array

    try:
        return to_array(tensor).astype(type_.dtype.numpy, copy=False)
    except (ValueError, TypeError) as error:
        raise ModelError(f"tensor {tensor.name!r} of shape {list(shape)} cannot be read: {error}") from error


def is_external(tensor: TensorProto) -> bool:
    """Whether the content lies in another file."""
    return bool(tensor.data_location == 1)


def external_location(tensor: TensorProto, folder: Path | None) -> tuple[Path, int, int]:
    """(file, offset, bytes) of a tensor's external data, checked to lie inside ``folder`` and to be long enough.

    Raises:
        ModelError: there is no such file, it is too short, or the location leaves the model's folder.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(f"tensor {tensor.name!r} lies in {location!r}: give the model as a path to find it")
    path = folder / location
    if not location or Path(location).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"tensor {tensor.name!r}: external data {location!r} must lie in the model's folder")
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", -1))
    except ValueError:
        raise ModelError(f"tensor {tensor.name!r}: offset or length of its external data is not a number") from None
    type_ = tensor_type(tensor)
    count = int(np.prod([int(dim) for dim in tensor.dims], dtype=np.int64))
    wanted = count * type_.dtype.itemsize if type_.dtype not in PACKED else -(-count * (2 if type_.dtype.value.endswith("int2") else 4) // 8)
    if length not in (-1, wanted):
        raise ModelError(f"tensor {tensor.name!r}: its external data has {length} bytes, its shape wants {wanted}")
    if not path.is_file():
        raise ModelError(f"tensor {tensor.name!r}: external data file {str(path)!r} not found; put it beside the model")
    if offset < 0 or path.stat().st_size < offset + wanted:
        raise ModelError(f"external data file {str(path)!r} is too short for tensor {tensor.name!r} ({offset} + {wanted} bytes)")
    return path, offset, wanted


def sparse_array(sparse: SparseTensorProto) -> np.ndarray:
    """A sparse tensor, made dense. Its indices count in the flattened tensor, or name a place along each axis in rows.

    Raises:
        Unsupported: trtcli has no such element type.
        ModelError: indices do not fit the shape or the number of values.
    """
    values, indices, shape = array_of(sparse.values), array_of(sparse.indices), tuple(sparse.dims)
    ends = np.array([int(np.prod(shape, dtype=np.int64))] if indices.ndim == 1 else shape)
    rows = indices.reshape(len(indices), -1)
    if indices.ndim not in (1, 2) or rows.shape != (values.size, len(ends)) or not np.all((rows >= 0) & (rows < ends)):
        raise ModelError(
            f"sparse tensor {sparse.values.name!r} of shape {list(shape)}: indices of shape {list(indices.shape)} for {values.size} values "
            "do not fit it, or lie outside"
        )
    result = np.zeros(shape, values.dtype)
    if indices.ndim == 1:
        result.reshape(-1)[indices] = values
    else:
        result[tuple(indices.T)] = values
    return result


def input_type(name: str, type_: TypeProto) -> TensorType:
    """The type of a graph input; a dimension without a value or name gets the name ``{input}_{axis}``.

    Raises:
        Unsupported: it is no dense tensor, its type is unknown to trtcli, or its number of dimensions is not given.
    """
    if not type_.HasField("tensor_type"):
        kind = (type_.WhichOneof("value") or "value without a type").removesuffix("_type")
        raise Unsupported(f"it is a {kind}, not a tensor; give its tensors as inputs of their own")
    tensor = type_.tensor_type
    if not tensor.HasField("shape"):
        raise Unsupported("its shape is not given, not even the number of dimensions")
    return TensorType(
        data_type_of(tensor.elem_type), tuple(_dim(name, axis, dim) for axis, dim in enumerate(tensor.shape.dim))
    )


def _dim(name: str, axis: int, dim: object) -> Dim:
    kind = dim.WhichOneof("value")  # type: ignore[attr-defined]
    if kind == "dim_value" and dim.dim_value >= 0:  # type: ignore[attr-defined]
        return int(dim.dim_value)  # type: ignore[attr-defined]
    given = dim.dim_param.strip() if kind == "dim_param" else ""  # type: ignore[attr-defined]
    if not given or given == "?":
        given = f"{name}_{axis}"
    return symbol(f"dim_{given}" if given.isdigit() else given)
