"""Vendors' libraries as optional tactic sources: where they are found, what to install when they are not, and their bindings.

A binding class has ``version`` and ``prepared(step, address, stream)``, which makes everything ready and returns the call that an
enqueue makes. ``address`` resolves buffers; ``stream`` is a ``c_void_p`` whose value may change between calls.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runtime.device import DeviceError
from tactics.tactic import Buffer, LibraryCall

Address = Callable[[Buffer], int]


@dataclass(frozen=True)
class Source:
    """A library: its file name without the version, the versions that will do (the best first), the folders of NVIDIA's
    wheels that hold it, and the extra of trtcli that installs it."""

    name: str
    file: str
    versions: tuple[int, ...]
    folders: tuple[str, ...]
    extra: str
    package: str


SOURCES = {
    one.name: one
    for one in (
        Source("CUBLAS_LT", "libcublasLt.so", (13, 12), ("cu13/lib", "cublas/lib"), "cublas", "nvidia-cublas (CUDA 12: nvidia-cublas-cu12)"),
        Source("CUDNN", "libcudnn.so", (9,), ("cudnn/lib",), "cudnn", "nvidia-cudnn-cu13 (CUDA 12: nvidia-cudnn-cu12)"),
    )
}


class Binding(Protocol):
    """A loaded library with its handle, made in the current context."""

    version: str

    def prepared(self, step: LibraryCall, address: Address, stream: ctypes.c_void_p) -> Callable[[], int]:
        """The call that runs ``step``; it returns 0.

        Raises:
            DeviceError: the library cannot compute the step so.
        """
        ...


def find(name: str) -> str:
    """The file of library ``name`` in the nvidia wheels, else the name under which the loader may know it; empty when neither.

    Loads the library, since only the loader knows.
    """
    source = SOURCES[name]
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations if spec and spec.submodule_search_locations else ())]
    names = [f"{source.file}.{version}" for version in source.versions]
    files = [str(root / folder / name) for name in names for root in roots for folder in source.folders]
    for candidate in (*filter(lambda file: Path(file).is_file(), files), *names):
        try:
            ctypes.CDLL(candidate, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return candidate
    return ""


def open_library(name: str) -> Binding:
    """The binding of library ``name`` in the current context.

    Raises:
        DeviceError: the library is not installed, or does not start on this GPU; the text says what to install.
    """
    if name not in SOURCES:
        raise DeviceError(f"--tacticSources=+{name}: trtcli has no kernels under that name; its libraries are {', '.join(SOURCES)}")
    if name == "CUDNN":
        find("CUBLAS_LT")  # cuDNN takes its products from there, and finds it loaded
    file = find(name)
    if not file:
        source = SOURCES[name]
        raise DeviceError(
            f"tactic source {name} needs {source.file}.{source.versions[0]}, which is not installed: pip install 'trtcli[{source.extra}]' "
            f"(package {source.package})"
        )
    if name == "CUBLAS_LT":
        from runtime.cublas_lt import CublasLt

        return CublasLt(ctypes.CDLL(file))
    from runtime.cudnn import Cudnn

    return Cudnn(ctypes.CDLL(file))


class Owned(ctypes.c_void_p):
    """A descriptor of a library, given back with the last reference to it."""

    destroy: Callable[[ctypes.c_void_p], int] | None = None

    def __del__(self) -> None:
        if self.destroy is not None and self.value:
            self.destroy(ctypes.c_void_p(self.value))


def checked(library: Any, function: str, *arguments: Any, text: Callable[[int], str]) -> None:
    """Calls ``function``, which returns a status.

    Raises:
        DeviceError: the status is not 0; ``text`` is its meaning.
    """
    status = getattr(library, function)(*arguments)
    if status:
        raise DeviceError(f"{function}: {text(status)}")
