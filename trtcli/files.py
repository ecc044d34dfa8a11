"""Output files: written whole or not at all, and checked before the work that fills them starts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fusion.files import replacing


def check_writable(flag: str, path: str, special: bool = True) -> None:
    """Refuse now what would fail after minutes. ``special``: devices and pipes will do (``/dev/stdout``).

    Raises:
        ValueError: the folder does not exist, or ``path`` is a folder, no regular file, or may not be written.
    """
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise ValueError(f"{flag}={path}: the folder {folder} does not exist")
    if target.is_dir():
        raise ValueError(f"{flag}={path}: is a folder; give a file")
    if not special and target.exists() and not target.is_file():
        raise ValueError(f"{flag}={path}: is no regular file")
    if target.exists() and not os.access(target, os.W_OK):
        raise ValueError(f"{flag}={path}: no permission to write it")
    folder = target.resolve().parent
    if (target.is_file() or not target.exists()) and not os.access(folder, os.W_OK | os.X_OK):  # it is replaced, not overwritten
        raise ValueError(f"{flag}={path}: no permission to write into the folder {folder}")


def check_folder(flag: str, folder: str = ".") -> None:
    """Refuse now a flag that writes files of names of its own into ``folder``.

    Raises:
        ValueError: nothing can be written there.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{flag}: no permission to write into the current folder {os.path.abspath(folder)}")


class FileNames:
    """File names for tensors, of letters, digits and ``_.-``; those of different tensors differ: ``a_b``, ``a_b.2``."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, name: str) -> str:
        """The file name (without an ending) for tensor ``name``, the same each time."""
        if name not in self._of:
            plain = unique = safe_name(name)
            number = 1
            while unique in self._taken:
                number += 1
                unique = f"{plain}.{number}"
            self._taken.add(unique)
            self._of[name] = unique
        return self._of[name]


def safe_name(name: str) -> str:
    """``name`` with ``_`` for everything but letters, digits and ``_.-``."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def write_text(path: str | Path, pieces: str | Iterable[str]) -> None:
    """Write text, atomically; bytes of file names that are no UTF-8 are escaped."""
    with replacing(path) as file:
        for piece in (pieces,) if isinstance(pieces, str) else pieces:
            file.write(piece.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON value, atomically; NaN and infinities become strings, as JSON has none."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any, ascii_only: bool = False) -> str:
    """``value`` as readable JSON."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
