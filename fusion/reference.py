"""A reference executor: every layer's NumPy meaning, one after the other. For tests and for ``verify``; not fast."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusion.bind import bind_op
from fusion.dims import bind, symbols
from fusion.network import Network


def sizes_of(network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The value of each named size, read from the shapes of ``inputs``.

    Raises:
        ValueError: an input is missing, or its shape contradicts the network's.
    """
    sizes: dict[str, int] = {}
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


def run(
    network: Network, inputs: Mapping[str, np.ndarray], *, keep: bool = False
) -> dict[str, np.ndarray]:
    """The outputs of ``network`` for these inputs; with ``keep`` every tensor that a layer makes."""
    sizes = sizes_of(network, inputs)
    last = {name: index for index, layer in enumerate(network.layers) for name in layer.inputs}
    tensors: dict[str, np.ndarray] = {name: inputs[name] for name in network.inputs}
    for index, layer in enumerate(network.layers):
        arrays = [tensors[name] if name in tensors else network.constants[name] for name in layer.inputs]
        tensors.update(zip(layer.outputs, bind_op(layer.op, sizes).evaluate(arrays), strict=True))
        for name in () if keep else layer.inputs:
            if last[name] == index and name not in network.outputs:
                tensors.pop(name, None)
    return dict(tensors) if keep else {name: tensors[name] for name in network.outputs}
