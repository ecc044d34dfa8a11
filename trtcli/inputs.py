"""Input values: raw files as ``--loadInputs`` says, random numbers for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fusion.bind import bind_type
from fusion.formats import Format
from fusion.network import Network, TensorType, typical_sizes
from runtime.engine import sizes_of
from runtime.random_data import network_inputs
from tactics.tactic import tensor_bytes


def make_inputs(
    network: Network, shapes: Mapping[str, tuple[int, ...]], files: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """A value for every input of ``network``, row-major in the model's shape: from its file (which holds it as it lies in memory), else random (the same
    in every run).

    Raises:
        ValueError: a name is no input, or a file has the wrong size.
        OSError: a file cannot be read.
    """
    unknown = [name for name in files if name not in network.inputs]
    if unknown:
        raise ValueError(
            f"Invalid tensor names found in --loadInputs flag: {', '.join(unknown)}; "
            f"the inputs are {', '.join(network.inputs)}"
        )
    sizes = typical_sizes(network, sizes_of(network, shapes))
    types = {name: bind_type(tensor, sizes) for name, tensor in network.tensors.items()}
    loaded = {name: read_raw(path, name, types[name], network.formats.get(name)) for name, path in files.items()}
    known = {name: TensorType(types[name].dtype, network.formats[name].known_as(types[name].shape)) for name in network.formats}
    return {**network_inputs(network, {**types, **known}), **loaded}


def read_raw(path: str, name: str, tensor: TensorType, layout: Format | None = None) -> np.ndarray:
    """The values of input ``name`` in a file without any header, as ``numpy.ndarray.tofile`` writes it; ``tensor`` and ``layout`` say how they lie in
    memory, and in the file.

    Raises:
        ValueError: the file's size is not that of the input.
        OSError: it cannot be read.
    """
    shape = [int(str(dim)) for dim in tensor.shape]
    size, expected = Path(path).stat().st_size, tensor_bytes(tensor)
    if size != expected:
        raise ValueError(
            f"Unexpected file size for input file: {path}. Input {name!r} is {expected} bytes "
            f"({'x'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype.label}{f' in {layout.name}' if layout else ''}), but the file has {size} bytes. "
            "Check the shape (--shapes) and the data type"
        )
    array = np.fromfile(path, tensor.dtype.numpy).reshape(shape)
    return array if layout is None else layout.unpack(array)
