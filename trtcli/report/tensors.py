"""Debug tensors in files: raw values as asked for by name, or all of them as NumPy files, text, raw values and a summary."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fusion.dtypes import data_type
from fusion.files import replacing
from trtcli.files import FileNames, write_json, write_text

FORMATS = ("summary", "numpy", "string", "raw")
SUMMARY_FILE = "tensor_summary.json"
_SHOWN = 5  # elements at either end, in the summary


@dataclass
class Saver:
    """A debug listener that writes what it is shown: ``files`` by name, and every tensor in each of ``formats``.

    Attributes:
        files: tensor to the file for its raw values; inside of loops one per iteration, ``file.2.raw`` for the third one of ``file.raw``.
        formats: of :data:`FORMATS`, for all tensors.
        written: the files written, per tensor.
    """

    files: Mapping[str, str]
    formats: Sequence[str] = ()
    written: dict[str, dict[str, str]] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    _names: FileNames = field(default_factory=FileNames)

    def __call__(self, name: str, array: np.ndarray) -> None:
        files = {"assigned": file} if (file := self._file(name)) else {}
        safe = self._names.of(name)
        plain = _plain(array)
        if "numpy" in self.formats:
            files["numpy"] = f"{safe}{'' if plain.dtype == array.dtype else '_to_float'}.npy"
            buffer = io.BytesIO()
            np.save(buffer, plain)
            _write(files["numpy"], buffer.getvalue())
        if "string" in self.formats:
            files["string"] = f"{safe}.str"
            write_text(files["string"], _nested(plain))
        if "raw" in self.formats:
            files["raw"] = f"{safe}.raw"
        for kind in ("assigned", "raw"):
            if kind in files:
                _write(files[kind], np.ascontiguousarray(array).tobytes())
        self.written[name] = files
        if "summary" in self.formats:
            self.entries.append({
                "name": name, "shape": list(array.shape), "type": data_type(array.dtype).label,
                "statistics": statistics(plain), "files": files,
            })  # fmt: skip

    def _file(self, name: str) -> str:
        """The file for the raw values of ``name``, which may end in numbers of iterations; empty when there is none."""
        whole = re.fullmatch(r"(.*?)((?:\[\d+\])+)", name, re.DOTALL)
        if name in self.files or whole is None or whole[1] not in self.files:
            return self.files.get(name, "")
        path = Path(self.files[whole[1]])
        return str(path.with_name(f"{path.stem}.{'.'.join(re.findall('[0-9]+', whole[2]))}{path.suffix}"))

    def finish(self, engine: str, command_line: str) -> None:
        """Write the summary, when it was asked for."""
        if "summary" in self.formats:
            metadata = {
                "title": "Debug tensors", "time_generated": datetime.now(UTC).isoformat(timespec="seconds"),
                "engine_name": engine, "command_line": command_line,
            }  # fmt: skip
            write_json(SUMMARY_FILE, {"schema": 1, "metadata": metadata, "tensors": self.entries})


def statistics(array: np.ndarray) -> dict[str, Any]:
    """Smallest, largest and average value (NaN and infinities as text), and elements of both ends."""
    flat = array.reshape(-1)
    values = flat.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        found = {
            name: float(function(values)) if flat.size else None
            for name, function in (("min", np.min), ("max", np.max), ("avg", np.mean))
        }
    ends = flat if flat.size <= 2 * _SHOWN else np.concatenate([flat[:_SHOWN], flat[-_SHOWN:]])
    return {**found, "elements": [float(value) for value in ends]}


def _plain(array: np.ndarray) -> np.ndarray:
    """``array`` in a type that NumPy's own files can hold."""
    return array.astype(np.float32) if array.dtype.kind == "V" or array.dtype.num >= 256 else array


def _nested(array: np.ndarray) -> Iterator[str]:
    yield np.array2string(array, threshold=array.size + 1, max_line_width=100, separator=", ") + "\n"


def _write(path: str, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)
