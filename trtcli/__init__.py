"""An open, trtexec-like ONNX engine builder and benchmarker.

``trtcli.build(model)`` gives an :class:`Engine`; ``Engine.load``, ``engine.save`` and ``engine.create_execution_context()`` do what their
namesakes in TensorRT do. Importing this package is quick; what these names need is imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtcli.version import __version__

if TYPE_CHECKING:
    from runtime.engine import Engine
    from trtcli.api import build
    from trtcli.config import BuildConfig

__all__ = ["BuildConfig", "Engine", "__version__", "build"]

_PLACES = {"build": "trtcli.api", "BuildConfig": "trtcli.config", "Engine": "runtime.engine"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'trtcli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
