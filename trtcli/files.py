"""Output files: written whole or not at all, and checked before the work that fills them starts."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any


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
    if not os.access(target if target.exists() else folder, os.W_OK):
        raise ValueError(f"{flag}={path}: no permission to write it")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` when the block ends well, and vanishes when it does not."""
    target = Path(path)
    if target.exists() and not target.is_file():  # /dev/stdout, a pipe: nothing to replace
        with target.open("wb") as file:
            yield file
        return
    target = target.resolve()  # write through symbolic links
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, pieces: str | Iterable[str]) -> None:
    """Write text, atomically."""
    with replacing(path) as file:
        for piece in (pieces,) if isinstance(pieces, str) else pieces:
            file.write(piece.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON value, atomically; NaN and infinities become strings, as JSON has none."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    """``value`` as readable JSON."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
