"""Input values: raw files as ``--loadInputs`` says, random numbers for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fusion.bind import bind_type
from fusion.network import Network, TensorType, typical_sizes
from runtime.engine import sizes_of
from runtime.random_data import network_inputs
from tactics.tactic import tensor_bytes


def make_inputs(
    network: Network, shapes: Mapping[str, tuple[int, ...]], files: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """A value for every input of ``network``, row-major in the model's shape: from its file, else random (the same in every run).

    Raises:
        ValueError: a name is no input, or a file has the wrong size.
        OSError: a file cannot be read.
    """
    check_inputs(network, shapes, files)
    sizes = typical_sizes(network, sizes_of(network, shapes))
    types = {name: bind_type(tensor, sizes) for name, tensor in network.tensors.items()}
    known = {name: TensorType(types[name].dtype, network.formats[name].known_as(types[name].shape)) for name in network.formats}
    return {**network_inputs(network, {**types, **known}), **{name: _read(path, name, network, shapes) for name, path in files.items()}}


def check_inputs(network: Network, shapes: Mapping[str, tuple[int, ...]], files: Mapping[str, str]) -> None:
    """Refuse files that are no values of inputs of these shapes: as they lie in memory, without any header (``numpy.ndarray.tofile``).

    Raises:
        ValueError: a name is no input, or a file has the wrong size.
        OSError: there is no such file.
    """
    unknown = [name for name in files if name not in network.inputs]
    if unknown:
        raise ValueError(
            f"Invalid tensor names found in --loadInputs flag: {', '.join(unknown)}; "
            f"the inputs are {', '.join(network.inputs)}"
        )
    for name, path in files.items():
        tensor, layout = _in_memory(network, name, shapes), network.formats.get(name)
        size, expected = Path(path).stat().st_size, tensor_bytes(tensor)
        if size != expected:
            raise ValueError(
                f"Unexpected file size for input file: {path}. Input {name!r} is {expected} bytes "
                f"({'x'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype.label}{f' in {layout.name}' if layout else ''}), but the file has {size} bytes. "
                "Check the shape (--shapes) and the data type"
            )


def _in_memory(network: Network, name: str, shapes: Mapping[str, tuple[int, ...]]) -> TensorType:
    layout = network.formats.get(name)
    return TensorType(network.tensors[name].dtype, layout.in_memory(shapes[name]) if layout else shapes[name])


def _read(path: str, name: str, network: Network, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    tensor, layout = _in_memory(network, name, shapes), network.formats.get(name)
    array = np.fromfile(path, tensor.dtype.numpy).reshape([int(str(dim)) for dim in tensor.shape])
    return layout.unpack(array) if layout else array
