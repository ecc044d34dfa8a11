"""A custom operator as a layer: types, attributes and launch as its plugin gave them at build (see :mod:`fusion.plugins`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fusion import plugins
from fusion.dims import Dim
from fusion.dtypes import DataType
from fusion.network import Op, TensorType


@dataclass(frozen=True)
class Custom(Op):
    """``dtypes`` and ``shapes`` of the outputs; ``attributes`` sorted by name.

    The rest is the launch (empty ``source``: none). An argument is ``("input" | "output", index)``, ``("workspace", 0)`` or
    ``(ctype, number)``.
    """

    domain: str
    name: str
    attributes: tuple[tuple[str, Any], ...]
    dtypes: tuple[DataType, ...]
    shapes: tuple[tuple[Dim, ...], ...]
    source: str = ""
    entry: str = ""
    defines: tuple[tuple[str, str], ...] = ()
    grid: tuple[Dim, ...] = ()
    block: tuple[int, ...] = ()
    arguments: tuple[tuple[str, Any], ...] = ()
    shared_memory: int = 0
    workspace: Dim = 0

    layer_type: ClassVar[str] = "Plugin"
    arity: ClassVar[int] = 0

    @property
    def title(self) -> str:
        """``domain::name``"""
        return f"{self.domain or 'ai.onnx'}::{self.name}"

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return tuple(TensorType(dtype, shape) for dtype, shape in zip(self.dtypes, self.shapes, strict=True))

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        plugin = self.plugin()
        results = tuple(np.asarray(result) for result in plugin.evaluate(inputs, dict(self.attributes)))
        wanted = [(dtype.numpy, shape) for dtype, shape in zip(self.dtypes, self.shapes, strict=True)]
        if [(result.dtype, result.shape) for result in results] != wanted:
            given = ", ".join(f"{result.dtype} {list(result.shape)}" for result in results)
            said = ", ".join(f"{dtype} {list(shape)}" for dtype, shape in wanted)
            raise plugins.PluginError(f"{self.title}: its NumPy function gave {given}; its shape inference said {said}")
        return results

    def plugin(self) -> plugins.Plugin:
        """The plugin in this process.

        Raises:
            PluginError: it is not loaded.
        """
        found = plugins.find(self.domain, self.name)
        if found is None:
            raise plugins.PluginError(
                f"the CPU device needs the NumPy function of custom operator {self.title}: give its file with --plugins=FILE.py"
            )
        return found
