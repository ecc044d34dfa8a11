"""``--dumpOutput``, ``--exportOutput`` and ``--dumpRawBindingsToFile``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np

from fusion.dtypes import data_type
from trtcli.files import safe_name


def output_lines(outputs: Mapping[str, np.ndarray]) -> list[str]:
    """Per output its name and shape, then its values separated by spaces."""
    lines = ["Output Tensors:"]
    for name, array in outputs.items():
        lines += [f"{name}: ({dimensions(array)})", " ".join(_plain(value) for value in array.reshape(-1).tolist())]
    return lines


def _plain(value: float | int | bool) -> str:
    return f"{value:g}" if isinstance(value, float) else str(int(value))


def output_json(outputs: Mapping[str, np.ndarray]) -> Iterator[str]:
    """The JSON text, in pieces: ``[{"name", "dimensions": "1x1000", "values": [...]}]``; NaN and infinities are strings."""
    yield "["
    for index, (name, array) in enumerate(outputs.items()):
        yield f"{',' if index else ''}\n  {{ \"name\": {json.dumps(name)}, \"dimensions\": \"{dimensions(array)}\", \"values\": ["
        values = array.reshape(-1).tolist()
        for first in range(0, len(values), 4096):
            yield (", " if first else " ") + ", ".join(_json(value) for value in values[first : first + 4096])
        yield " ] }"
    yield "\n]\n"


def _json(value: float | int | bool) -> str:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'"{value}"'
    return repr(value) if isinstance(value, float) else str(int(value))


def dimensions(array: np.ndarray) -> str:
    """``1x1000``; empty for a scalar."""
    return "x".join(map(str, array.shape))


def raw_name(name: str, kind: str, array: np.ndarray) -> str:
    """``<name>.<input|output>.<d0.d1>.<dtype>.raw`` with unsafe characters replaced by ``_``."""
    extents = ".".join(map(str, array.shape)) or "scalar"
    return f"{safe_name(name)}.{kind}.{extents}.{data_type(array.dtype).label}.raw"
