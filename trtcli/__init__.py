"""An open, trtexec-like ONNX engine builder and benchmarker.

``trtcli.build(model)`` gives an :class:`Engine`; ``Engine.load``, ``engine.save`` and ``engine.create_execution_context()`` do what their
namesakes in TensorRT do. Importing this package is quick; what these names need is imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtcli.version import __version__

if TYPE_CHECKING:
    from fusion.dtypes import DataType
    from runtime.context import ExecutionContext
    from runtime.engine import Engine, TensorFormat, TensorIOMode, TensorLocation
    from trtcli.api import build, refit
    from trtcli.config import BuildConfig, ProfileShapes

__all__ = [
    "BuildConfig", "DataType", "Engine", "ExecutionContext", "ProfileShapes", "TensorFormat", "TensorIOMode", "TensorLocation", "__version__",
    "build", "refit",
]  # fmt: skip

_PLACES = {
    "build": "trtcli.api",
    "refit": "trtcli.api",
    "BuildConfig": "trtcli.config",
    "DataType": "fusion.dtypes",
    "Engine": "runtime.engine",
    "ExecutionContext": "runtime.context",
    "ProfileShapes": "trtcli.config",
    "TensorFormat": "runtime.engine",
    "TensorIOMode": "runtime.engine",
    "TensorLocation": "runtime.engine",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'trtcli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
