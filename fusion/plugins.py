"""Custom operators: what a plugin file says of one, and those registered in this process.

A plugin is asked at build only: its launch is a description with symbolic sizes, which the engine keeps as data beside the compiled
kernel. Only the CPU device needs the plugin again, since its kernel is the plugin's NumPy function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fusion.dims import Dim
from fusion.network import TensorType

Attributes: TypeAlias = "Mapping[str, Any]"  # by name: int, float, str, or tuple of them


class PluginError(ValueError):
    """A plugin is missing, or gave what it may not; the text names the operator."""


@dataclass(frozen=True)
class Input:
    """The address of input ``index``, as a kernel argument."""

    index: int


@dataclass(frozen=True)
class Output:
    """The address of output ``index``."""

    index: int


@dataclass(frozen=True)
class Workspace:
    """The address of the scratch memory."""


@dataclass(frozen=True)
class Number:
    """A number passed by value; ``ctype`` is ``i32``, ``u32``, ``i64``, ``u64``, ``f32`` or ``f64``. Integers may be symbolic sizes."""

    value: Dim | float
    ctype: str = "i32"


@dataclass(frozen=True)
class KernelLaunch:
    """One launch of the kernel ``entry``: an ``extern "C" __global__`` function of the plugin's source.

    Attributes:
        grid, block: up to three numbers each; the grid's may be symbolic (``ceil_div(count, 256)``).
        arguments: in the order of the kernel's parameters.
        defines: ``(name, value)`` pairs for the compiler; they must not depend on sizes that vary.
        shared_memory: dynamic, in bytes.
        workspace: bytes of scratch memory; may be symbolic.
    """

    entry: str
    grid: tuple[Dim, ...]
    block: tuple[int, ...]
    arguments: tuple[Input | Output | Workspace | Number, ...]
    defines: tuple[tuple[str, str], ...] = ()
    shared_memory: int = 0
    workspace: Dim = 0


Infer: TypeAlias = "Callable[[Sequence[TensorType], Attributes], Sequence[TensorType]]"
Evaluate: TypeAlias = "Callable[[Sequence[np.ndarray], Attributes], Sequence[np.ndarray]]"
Launcher: TypeAlias = "Callable[[Sequence[TensorType], Sequence[TensorType], Attributes], KernelLaunch]"


@dataclass(frozen=True)
class Plugin:
    """A custom operator.

    Attributes:
        domain, name: of the ONNX nodes that it serves.
        infer: from the inputs' types (with symbolic sizes) and the attributes to the outputs' types.
        evaluate: its NumPy meaning: the reference, and what the CPU device runs.
        source: CUDA C++; empty for an operator of the CPU device only.
        launch: from the inputs' and outputs' types and the attributes to the launch.
    """

    domain: str
    name: str
    infer: Infer
    evaluate: Evaluate
    source: str = ""
    launch: Launcher | None = None


_plugins: dict[tuple[str, str], Plugin] = {}


def register(plugin: Plugin) -> None:
    """Makes ``plugin`` known to this process, in place of one for the same operator."""
    _plugins[plugin.domain, plugin.name] = plugin


def unregister(plugin: Plugin) -> None:
    """The opposite of :func:`register`."""
    _plugins.pop((plugin.domain, plugin.name), None)


def find(domain: str, name: str) -> Plugin | None:
    """The plugin of an operator, or None."""
    return _plugins.get((domain, name))


def registered() -> tuple[Plugin, ...]:
    """All plugins, in the order of registration."""
    return tuple(_plugins.values())
