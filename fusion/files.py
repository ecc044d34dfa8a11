"""Files that are written whole or not at all: a temporary file beside the target, which it then replaces in one step."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` when the block ends well, and vanishes when it does not.

    What is no regular file (``/dev/stdout``, a pipe) cannot be replaced and is written directly.

    Raises:
        OSError: it cannot be written (no permission, no space left, no such folder); it names ``path``.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                yield file
        else:
            with _replacing(target.resolve()) as file:  # write through symbolic links
                yield file
    except OSError as error:
        temporary = Path(os.fsdecode(error.filename)).name.startswith(_prefix(target)) if error.filename else True
        if error.errno is None or not temporary:  # the block's own trouble with another file
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    handle, name = tempfile.mkstemp(prefix=_prefix(target), dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the name must not become durable before the bytes
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _prefix(target: Path) -> str:
    return f".{target.name}."


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
