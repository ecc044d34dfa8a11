"""A reference executor: every layer's NumPy meaning, one after the other. For tests and for ``verify``; not fast."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from fusion.bind import bind_op
from fusion.dims import Shape, bind, symbols
from fusion.network import ControlFlow, Network, check_holds


def sizes_of(
    network: Network, inputs: Mapping[str, np.ndarray], outer: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """The value of each named size, read from the shapes of ``inputs``.

    Raises:
        ValueError: an input is missing, or its shape contradicts the network's.
    """
    sizes: dict[str, int] = dict(outer)
    for name in network.inputs:
        if name not in inputs:
            raise ValueError(f"input {name!r} is missing")
        wanted, found = network.tensors[name].shape, inputs[name].shape
        if len(wanted) != len(found):
            raise ValueError(f"input {name!r} has shape {found}, wanted {wanted}")
        for dim, size in zip(wanted, found, strict=True):
            if not isinstance(dim, int) and symbols(dim) == {str(dim)}:
                sizes.setdefault(str(dim), size)
        if any(bind(dim, sizes) != size for dim, size in zip(wanted, found, strict=True)):
            raise ValueError(f"input {name!r} has shape {found}, wanted {wanted}")
    return sizes


def decided_sizes(declared: Shape, found: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that a control-flow layer decided, from the shape that one of its outputs came out with."""
    return {
        str(dim): size
        for dim, size in zip(declared, found, strict=True)
        if not isinstance(dim, int) and str(dim) not in sizes and symbols(dim) == {str(dim)}
    }


def run(
    network: Network, inputs: Mapping[str, np.ndarray], *, keep: bool = False, outer: Mapping[str, int] = MappingProxyType({})
) -> dict[str, np.ndarray]:
    """The outputs of ``network`` for these inputs; with ``keep`` every tensor that a layer makes.

    ``outer`` are sizes that the network takes from the one around it.
    """
    sizes = {**outer, **sizes_of(network, inputs, outer)}
    check_holds(network, sizes)
    read: dict[str, list[tuple[str, int]]] = {}
    for size, reading in network.sizes.items():
        read.setdefault(reading.tensor, []).append((size, reading.element))
    for name in network.inputs:
        sizes.update((size, int(inputs[name].reshape(-1)[element])) for size, element in read.get(name, ()))
    last = {name: index for index, layer in enumerate(network.layers) for name in layer.inputs}
    tensors: dict[str, np.ndarray] = {name: inputs[name] for name in network.inputs}
    for index, layer in enumerate(network.layers):
        arrays = [tensors[name] if name in tensors else network.constants[name] for name in layer.inputs]
        tensors.update(zip(layer.outputs, bind_op(layer.op, sizes).evaluate(arrays), strict=True))
        for name in layer.outputs:
            sizes.update((size, int(tensors[name].reshape(-1)[element])) for size, element in read.get(name, ()))
            if isinstance(layer.op, ControlFlow):
                sizes.update(decided_sizes(network.tensors[name].shape, tensors[name].shape, sizes))
        for name in () if keep else layer.inputs:
            if last[name] == index and name not in network.outputs:
                tensors.pop(name, None)
    return dict(tensors) if keep else {name: tensors[name] for name in network.outputs}
