"""From a layer of a network to the workload that tactics see: computed in one place, for the builder and for the context."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from fusion.bind import bind_op, bind_type
from fusion.dims import symbols
from fusion.network import Layer, Network, TensorType
from tactics.tactic import Workload


def workload_of(
    network: Network,
    layer: Layer,
    sizes: Mapping[str, int],
    constant_names: Collection[str],
    tf32: bool = True,
    fixed: Collection[str] = (),
    pitches: Mapping[str, int] = MappingProxyType({}),
) -> Workload:
    """What ``layer`` computes at the named ``sizes``; ``pitches`` are those of tensors that lie in wider ones.

    ``constant_names`` are the tensors whose values are known at build. An axis varies when its dimension depends on a named size that is
    not in ``fixed`` (those that the optimization profile leaves no choice), whatever ``sizes`` says; the builder and the context get the
    same answer, so ``Tactic.plan`` names the same kernels.

    Raises:
        KeyError: a size is missing.
    """
    known = frozenset(fixed)
    inputs = [network.tensors[name] for name in layer.inputs]
    outputs = [network.tensors[name] for name in layer.outputs]
    return Workload(
        op=bind_op(layer.op, sizes),
        inputs=tuple(placed_type(network, name, sizes, pitches) for name in layer.inputs),
        outputs=tuple(placed_type(network, name, sizes, pitches) for name in layer.outputs),
        constant=tuple(name in constant_names for name in layer.inputs),
        varies=tuple(tuple(not isinstance(dim, int) and not symbols(dim) <= known for dim in tensor.shape) for tensor in (*inputs, *outputs)),
        tf32=tf32,
    )


def placed_type(network: Network, name: str, sizes: Mapping[str, int], pitches: Mapping[str, int]) -> TensorType:
    """The concrete type of tensor ``name`` where it lies.

    Raises:
        KeyError: a size is missing.
    """
    kind = bind_type(network.tensors[name], sizes)
    return replace(kind, pitch=pitches[name]) if name in pitches else kind
