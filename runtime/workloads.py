"""From a layer of a network to the workload that tactics see: computed in one place, for the builder and for the context."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fusion.bind import bind_op, bind_type, has_sizes
from fusion.dims import symbols
from fusion.network import Layer, Network, TensorType
from tactics.tactic import Workload


@dataclass(frozen=True)
class Template:
    """The workload of a layer but for its sizes: what is said of ``constant`` and ``varies`` in :class:`tactics.tactic.Workload`."""

    layer: Layer
    constant: tuple[bool, ...]
    varies: tuple[tuple[bool, ...], ...]
    tf32: bool
    sized: bool = True  # whether the operation itself holds sizes

    def at(self, sizes: Mapping[str, int], types: Mapping[str, TensorType]) -> Workload:
        """The workload at the named ``sizes``; ``types`` are the tensors' types there.

        Raises:
            KeyError: a size or a tensor is missing.
        """
        layer = self.layer
        return Workload(
            op=bind_op(layer.op, sizes) if self.sized else layer.op,
            inputs=tuple(types[name] for name in layer.inputs),
            outputs=tuple(types[name] for name in layer.outputs),
            constant=self.constant,
            varies=self.varies,
            tf32=self.tf32,
        )


def template_of(
    network: Network, layer: Layer, constant_names: Collection[str], tf32: bool = True, fixed: Collection[str] = ()
) -> Template:
    """``constant_names`` are the tensors whose values are known at build. An axis varies when its dimension depends on a named size that is
    not in ``fixed`` (those that the optimization profile leaves no choice), whatever the sizes are; the builder and the context get the
    same answer, so ``Tactic.plan`` names the same kernels."""
    known = frozenset(fixed)
    tensors = [network.tensors[name] for name in (*layer.inputs, *layer.outputs)]
    varies = tuple(tuple(not isinstance(dim, int) and not symbols(dim) <= known for dim in tensor.shape) for tensor in tensors)
    return Template(layer, tuple(name in constant_names for name in layer.inputs), varies, tf32, has_sizes(layer.op))


def workload_of(
    network: Network,
    layer: Layer,
    sizes: Mapping[str, int],
    constant_names: Collection[str],
    tf32: bool = True,
    fixed: Collection[str] = (),
    pitches: Mapping[str, int] = MappingProxyType({}),
) -> Workload:
    """What ``layer`` computes at the named ``sizes``; see :func:`template_of`. ``pitches`` are those of tensors that lie in wider ones.

    Raises:
        KeyError: a size is missing.
    """
    types = {name: placed_type(network, name, sizes, pitches) for name in (*layer.inputs, *layer.outputs)}
    return template_of(network, layer, constant_names, tf32, fixed).at(sizes, types)


def placed_type(network: Network, name: str, sizes: Mapping[str, int], pitches: Mapping[str, int]) -> TensorType:
    """The concrete type of tensor ``name`` where it lies.

    Raises:
        KeyError: a size is missing.
    """
    kind = bind_type(network.tensors[name], sizes)
    return replace(kind, pitch=pitches[name]) if name in pitches else kind
