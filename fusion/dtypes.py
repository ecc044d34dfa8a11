"""Data types of tensors: one name each, as NumPy and ml_dtypes spell it."""

from __future__ import annotations

from enum import Enum
from functools import cached_property

import ml_dtypes
import numpy as np


class DataType(str, Enum):
    """The element type of a tensor; the value is its NumPy (or ml_dtypes) name.

    Types of less than 8 bits take a byte an element in a tensor, as in ml_dtypes.
    """

    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    DOUBLE = "float64"
    FP8 = "float8_e4m3fn"
    FP8_E5M2 = "float8_e5m2"
    FP8_FNUZ = "float8_e4m3fnuz"
    FP8_E5M2_FNUZ = "float8_e5m2fnuz"
    FP8_E8M0 = "float8_e8m0fnu"
    FP4 = "float4_e2m1fn"
    INT2 = "int2"
    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT2 = "uint2"
    UINT4 = "uint4"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    BOOL = "bool"

    @cached_property
    def numpy(self) -> np.dtype:
        """The NumPy data type."""
        return np.dtype(getattr(ml_dtypes, self.value, self.value))

    @cached_property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        """Whether it holds real numbers."""
        return self.value.startswith(("float", "bfloat"))

    @property
    def is_integer(self) -> bool:
        """Whether it holds integers (bool is not one)."""
        return self.value.startswith(("int", "uint"))

    @property
    def is_signed(self) -> bool:
        """Whether it holds negative numbers."""
        return self.is_float or self.value.startswith("int")

    @property
    def label(self) -> str:
        """The name that reports show: FP32, FP16, BF16, INT8, Bool ..."""
        return _LABELS.get(self, self.value)


_LABELS = {
    DataType.FLOAT: "FP32",
    DataType.HALF: "FP16",
    DataType.BF16: "BF16",
    DataType.DOUBLE: "FP64",
    DataType.FP8: "FP8",
    DataType.FP4: "FP4",
    DataType.INT4: "INT4",
    DataType.INT8: "INT8",
    DataType.INT32: "INT32",
    DataType.INT64: "INT64",
    DataType.UINT8: "UINT8",
    DataType.BOOL: "Bool",
}


def data_type(dtype: np.dtype | type | str) -> DataType:
    """The data type of a NumPy type.

    Raises:
        ValueError: trtcli has no such type (strings, complex numbers).
    """
    return DataType(np.dtype(dtype).name)
