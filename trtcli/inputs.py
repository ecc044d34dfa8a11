"""Input values: raw files as ``--loadInputs`` says, random numbers for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fusion.dtypes import DataType

SEED = 20260101


def make_inputs(
    types: Mapping[str, tuple[DataType, tuple[int, ...]]], files: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """A value for every input: from its file, else random (equal for equal types and names' order).

    Raises:
        ValueError: a name is no input, or a file has the wrong size.
        OSError: a file cannot be read.
    """
    unknown = [name for name in files if name not in types]
    if unknown:
        raise ValueError(
            f"Invalid tensor names found in --loadInputs flag: {', '.join(unknown)}; the inputs are {', '.join(types)}"
        )
    random = np.random.default_rng(SEED)
    return {
        name: read_raw(files[name], name, *one) if name in files else random_values(*one, random)
        for name, one in types.items()
    }


def read_raw(path: str, name: str, dtype: DataType, shape: tuple[int, ...]) -> np.ndarray:
    """The values of input ``name`` in a file without any header, as ``numpy.ndarray.tofile`` writes it.

    Raises:
        ValueError: the file's size is not that of the input.
        OSError: it cannot be read.
    """
    size = Path(path).stat().st_size
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size != expected:
        raise ValueError(
            f"Unexpected file size for input file: {path}. Input {name!r} is {expected} bytes "
            f"({'x'.join(map(str, shape)) or 'scalar'} {dtype.label}), but the file has {size} bytes. "
            "Check the shape (--shapes) and the data type"
        )
    return np.fromfile(path, dtype.numpy).reshape(shape)


def random_values(dtype: DataType, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Uniform values as trtexec makes them: floats in [-1, 1], integers in [-128, 127], uint8 in [0, 255], bools."""
    if dtype is DataType.BOOL:
        return random.integers(0, 2, shape).astype(np.bool_)
    if dtype.is_float:
        return random.uniform(-1, 1, shape).astype(dtype.numpy)
    low, high = (-128, 127) if dtype.is_signed else (0, 255)
    return random.integers(low, high + 1, shape).astype(dtype.numpy)
