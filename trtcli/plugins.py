"""Plugin files: Python modules that describe custom operators (docs/plugins.md)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fusion.dims import ceil_div, product
from fusion.dtypes import DataType
from fusion.network import TensorType
from fusion.plugins import (
    Attributes,
    Input,
    KernelLaunch,
    Number,
    Output,
    Plugin,
    PluginError,
    Workspace,
    register,
    registered,
    unregister,
)  # fmt: skip

__all__ = [
    "Attributes", "DataType", "Input", "KernelLaunch", "Number", "Output", "Plugin", "PluginError", "TensorType", "Workspace",
    "ceil_div", "load", "product", "register", "registered", "unregister",
]  # fmt: skip


def load(path: str | Path) -> tuple[Plugin, ...]:
    """Runs a plugin file and registers what its ``PLUGINS`` holds.

    Raises:
        PluginError: there is no such file, it fails, or it names no plugins.
    """
    path = Path(path)
    if path.suffix in (".so", ".dll"):
        raise PluginError(f"--plugins={path}: a compiled TensorRT plugin, which trtcli cannot run; describe the operator in a .py file (docs/plugins.md)")
    if not path.is_file():
        raise PluginError(f"--plugins={path}: no such file")
    spec = importlib.util.spec_from_file_location(f"trtcli_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PluginError(f"--plugins={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(f"--plugins={path}: {type(error).__name__}: {error}") from error
    found = getattr(module, "PLUGINS", ())
    if not found or not all(isinstance(one, Plugin) for one in found):
        raise PluginError(f"--plugins={path}: it must define PLUGINS, a tuple of trtcli.plugins.Plugin")
    for one in found:
        register(one)
    return tuple(found)
