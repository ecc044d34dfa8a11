"""Random tensors that a layer or a network can digest: seeded, by data type, with indices inside of what they index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion.dtypes import DataType
from fusion.network import Network, Op, TensorType
from fusion.ops import Gather, GatherElements, GatherND, ScatterElements, ScatterND
from tactics.tactic import Workload

SEED = 20_250_101
_PERIOD = (1 << 20) + 7  # elements; larger arrays repeat, since drawing hundreds of millions of numbers takes seconds


def random_array(
    random: np.random.Generator, dtype: DataType, shape: Sequence[int], low: float = -1.0, high: float = 1.0
) -> np.ndarray:
    """Uniform values: floating point in [low, high), bool 0 or 1, uint8 0 to 255, other integers -128 to 127 (unsigned 0 to 127).

    More than two million elements repeat with a period of about one million.
    """
    shape = tuple(shape)
    count = int(np.prod(shape, dtype=np.int64))
    if count > 2 * _PERIOD:
        return np.resize(random_array(random, dtype, (_PERIOD,), low, high), shape)
    if dtype is DataType.BOOL:
        return random.integers(0, 2, shape).astype(np.bool_)
    if dtype is DataType.UINT8:
        return random.integers(0, 256, shape).astype(np.uint8)
    if dtype.is_integer:
        return random.integers(-128 if dtype.is_signed else 0, 128, shape).astype(dtype.numpy)
    values = random.random(shape, np.float32) * np.float32(high - low) + np.float32(low)
    return np.asarray(values).astype(dtype.numpy)


def workload_inputs(workload: Workload, seed: int = SEED, positive: bool = False) -> list[np.ndarray]:
    """One random array per input of ``workload``; ``positive`` keeps floating point in [0.1, 1)."""
    random = np.random.default_rng(seed)
    low = 0.1 if positive else -1.0
    limits = index_limits(workload.op, workload.inputs)
    arrays = []
    for number, tensor in enumerate(workload.inputs):
        shape = _numbers(tensor)
        if number in limits:
            arrays.append(_indices(random, tensor, limits[number]))
        else:
            arrays.append(random_array(random, tensor.dtype, shape, low))
    if isinstance(workload.op, ScatterND | ScatterElements) and workload.op.reduction == "none":
        arrays[1] = _distinct(random, workload.op, workload.inputs, arrays[1])
    return arrays


def network_inputs(network: Network, types: Mapping[str, TensorType], seed: int = SEED) -> dict[str, np.ndarray]:
    """One random array per network input at concrete ``types``.

    As trtexec draws them, except that inputs used as indices are drawn from 0 up to what they index (at most 127): token numbers
    outside of a vocabulary would have no meaning.
    """
    random = np.random.default_rng(seed)
    limits: dict[str, int] = {}
    source = {name: name for name in network.inputs}
    for layer in network.layers:
        found = index_limits(layer.op, [types[name] for name in layer.inputs])
        for number, name in enumerate(layer.inputs):
            root = source.get(name)
            if root is None:
                continue
            if number in found:
                limits[root] = min([limits.get(root, 128), *np.ravel(found[number]).tolist()])
            elif len(layer.inputs) == 1 and len(layer.outputs) == 1 and types[layer.outputs[0]].dtype.is_integer:
                source[layer.outputs[0]] = root  # reshaped, converted, sliced: the same numbers
    arrays = {}
    for name in network.inputs:
        if name in limits and types[name].dtype.is_integer:
            arrays[name] = random.integers(0, max(1, limits[name]), _numbers(types[name])).astype(
                types[name].dtype.numpy
            )
        else:
            arrays[name] = random_array(random, types[name].dtype, _numbers(types[name]))
    return arrays


def index_limits(op: Op, inputs: Sequence[TensorType]) -> dict[int, np.ndarray]:
    """Which inputs of ``op`` are indices, and how large they may be (exclusive; per component of the last axis for the ND forms)."""
    if isinstance(op, Gather | GatherElements | ScatterElements):
        return {1: np.asarray(inputs[0].shape[op.axis])}
    if isinstance(op, GatherND | ScatterND):
        first = op.batch_dims if isinstance(op, GatherND) else 0
        depth = inputs[1].shape[-1]
        assert isinstance(depth, int)
        return {1: np.asarray(inputs[0].shape[first : first + depth])}
    return {}


def _numbers(tensor: TensorType) -> tuple[int, ...]:
    return tuple(int(dim) for dim in tensor.shape)  # type: ignore[arg-type]


def _indices(random: np.random.Generator, tensor: TensorType, limit: np.ndarray) -> np.ndarray:
    values = random.random(_numbers(tensor)) * np.maximum(limit, 1)
    return values.astype(np.int64).astype(tensor.dtype.numpy)


def _distinct(
    random: np.random.Generator, op: ScatterND | ScatterElements, inputs: Sequence[TensorType], indices: np.ndarray
) -> np.ndarray:
    """Indices without repetition where there is room: which of two writes to one place wins is not defined."""
    data = _numbers(inputs[0])
    if isinstance(op, ScatterElements):
        if indices.shape[op.axis] > data[op.axis]:
            return indices
        order = np.argsort(
            random.random((*indices.shape[: op.axis], data[op.axis], *indices.shape[op.axis + 1 :])), axis=op.axis
        )
        return np.take(order, range(indices.shape[op.axis]), axis=op.axis).astype(indices.dtype)
    places = data[: indices.shape[-1]]
    rows = int(np.prod(indices.shape[:-1]))
    total = int(np.prod(places))
    if rows > total or total > 1 << 26:
        return indices
    chosen = random.permutation(total)[:rows]
    return np.stack(np.unravel_index(chosen, places), axis=-1).reshape(indices.shape).astype(indices.dtype)
