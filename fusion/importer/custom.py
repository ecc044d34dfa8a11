"""Nodes of custom operators: the plugin is asked for types and launch, and what it says becomes a layer."""

from __future__ import annotations

from typing import Any

from fusion.importer.builder import Builder
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.values import Value
from fusion.network import TensorType
from fusion.ops import Custom
from fusion.plugins import Input, KernelLaunch, Number, Output, Plugin, Workspace


def custom(b: Builder, node: Node, plugin: Plugin) -> tuple[Value, ...]:
    """The layer of a node that ``plugin`` serves.

    Raises:
        Unsupported: the plugin fails, or gives what it may not; the text holds its own words.
    """
    attributes = {name: _plain(name, value) for name, value in sorted(node.attributes.items())}
    inputs = tuple(node.input(index) for index in range(len(node.inputs)))
    types = tuple(value.type for value in inputs)
    try:
        outputs = tuple(plugin.infer(types, attributes))
        launch = plugin.launch(types, outputs, attributes) if plugin.source and plugin.launch else None
    except Exception as error:  # noqa: BLE001 - a plugin is the user's code and may raise anything
        raise Unsupported(f"its plugin says {type(error).__name__}: {error}") from error
    if len(outputs) < len(node.outputs) or not all(isinstance(output, TensorType) for output in outputs):
        raise Unsupported(f"its plugin infers {len(outputs)} outputs for a node with {len(node.outputs)}")
    fields: dict[str, Any] = {} if launch is None else _launch_fields(plugin, launch)
    op = Custom(
        node.domain, node.op, tuple(attributes.items()), tuple(output.dtype for output in outputs),
        tuple(tuple(output.shape) for output in outputs), **fields,
    )  # fmt: skip
    return b.layers(op, inputs)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, int | float | str) or (
        isinstance(value, tuple) and all(isinstance(item, int | float | str) for item in value)
    ):
        return value
    raise Unsupported(f"attribute {name!r} is no number, text or list of these; plugins take no other")


def _launch_fields(plugin: Plugin, launch: KernelLaunch) -> dict[str, Any]:
    arguments: list[tuple[str, Any]] = []
    for one in launch.arguments:
        if isinstance(one, Input | Output):
            arguments.append(("input" if isinstance(one, Input) else "output", one.index))
        elif isinstance(one, Workspace):
            arguments.append(("workspace", 0))
        elif isinstance(one, Number):
            arguments.append((one.ctype, one.value))
        else:
            raise Unsupported(f"its plugin passes {one!r}; arguments are Input, Output, Workspace and Number")
    return {
        "source": plugin.source, "entry": launch.entry, "defines": tuple(launch.defines), "grid": tuple(launch.grid),
        "block": tuple(launch.block), "arguments": tuple(arguments), "shared_memory": launch.shared_memory, "workspace": launch.workspace,
    }  # fmt: skip
