"""An indexed, mutable view of a network while rules rewrite it: producers, readers, types, constants."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusion.dtypes import data_type
from fusion.network import Fate, Layer, Network, ShapeError, TensorType, may_be_equal, size_makers, symbols_of


@dataclass(frozen=True)
class Limits:
    """What rules may assume of the device, and how large fused expressions may grow.

    Attributes:
        device: ``cpu`` or ``cuda``.
        functions: most distinct functions in one fused expression. One step of a chain costs a few registers and
            instructions; beyond some dozens a kernel spills or its instructions no longer hide behind memory traffic.
        operands: most tensors that one fused layer reads: each is a pointer and, with vectors, several registers.
    """

    device: str = "cpu"
    functions: int = 64
    operands: int = 12


@dataclass(frozen=True)
class Readers(Collection[Layer]):
    """The layers called ``names``, looked up as one asks for them: a tensor may have thousands of readers where a rule wants the first, or their number."""

    names: Collection[str]
    layers: Mapping[str, Layer]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Layer]:
        return map(self.layers.__getitem__, self.names)

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, Layer) and layer.name in self.names and self.layers[layer.name] == layer


class Graph:
    """A network under rewriting. Rules only read it; :meth:`replace` is the engine's."""

    def __init__(self, network: Network, limits: Limits = Limits()) -> None:
        self.limits = limits
        # What the host reads between layers must exist under its name, as outputs of the network must.
        self._makers = size_makers(network)
        self.outputs: frozenset[str] = frozenset((*network.outputs, *self._makers.values()))
        self.inputs: frozenset[str] = frozenset(network.inputs)
        self.layers: dict[str, Layer] = {}
        self.constants: dict[str, np.ndarray] = dict(network.constants)
        self._network = network
        self._types: dict[str, TensorType] = dict(network.tensors)
        self._producer: dict[str, str] = {}
        self._readers: dict[str, dict[str, None]] = {}  # ordered sets
        self._signatures: dict[str, Hashable] = {}  # by a layer's name
        self._twins: dict[Hashable, dict[str, None]] = {}  # by signature: ordered sets
        self._position: dict[str, float] = {}
        self._numbers: dict[str, int] = {}  # a base of names and its mark -> the number from which on none was given yet
        self._gone: dict[str, str] = {}  # ONNX node -> fate of a layer that was removed
        for position, layer in enumerate(network.layers):
            self._add(replace(layer, name=self._unique_name(layer.name)), float(position))

    # --- reading -----------------------------------------------------------------------------------------------------

    def producer(self, tensor: str) -> Layer | None:
        """The layer that writes ``tensor``; None for network inputs and constants."""
        name = self._producer.get(tensor)
        return self.layers[name] if name is not None else None

    def readers(self, tensor: str) -> Readers:
        """The layers that read ``tensor``, each once, as they are at each moment."""
        return Readers(self._readers.get(tensor, {}), self.layers)

    def twins(self, layer: Layer) -> Iterator[Layer]:
        """The other layers with the operation and the inputs of ``layer``."""
        others = (self.layers[name] for name in self._twins[self._signatures[layer.name]] if name != layer.name)
        return (other for other in others if other.op == layer.op)

    def only_reader(self, tensor: str) -> Layer | None:
        """The one layer that reads ``tensor``, or None when there are none or several (or it is a network output)."""
        readers = self._readers.get(tensor, {})
        if len(readers) != 1 or tensor in self.outputs:
            return None
        return self.layers[next(iter(readers))]

    def type(self, tensor: str) -> TensorType:
        """Data type and shape of ``tensor``."""
        return self._types[tensor]

    def types(self, tensors: Iterable[str]) -> list[TensorType]:
        """The type of each of ``tensors``."""
        return [self._types[name] for name in tensors]

    def constant(self, tensor: str) -> np.ndarray | None:
        """The value of ``tensor`` when it is known at build."""
        return self.constants.get(tensor)

    def position(self, layer: Layer) -> float:
        """Where the layer (the last of those it was made of) stood in the original order."""
        return self._position[layer.name]

    def fresh(self, base: str) -> str:
        """A tensor name that is not in use, made from ``base``."""
        return self._unique(base, ".", self._types)

    def ordered(self) -> list[Layer]:
        """All layers, topologically; as near to the original order as that allows."""
        needs = {name: [t for t in self._needs(layer) if t in self._producer] for name, layer in self.layers.items()}
        missing = {name: len(tensors) for name, tensors in needs.items()}
        readers: dict[str, list[str]] = {}
        for name, tensors in needs.items():
            for tensor in tensors:
                readers.setdefault(tensor, []).append(name)
        ready = [(self._position[name], name) for name, count in missing.items() if not count]
        heapq.heapify(ready)
        order = []
        while ready:
            _, name = heapq.heappop(ready)
            order.append(self.layers[name])
            for tensor in self.layers[name].outputs:
                for reader in readers.get(tensor, ()):
                    missing[reader] -= 1
                    if not missing[reader]:
                        heapq.heappush(ready, (self._position[reader], reader))
        if len(order) != len(self.layers):
            left = next(name for name, count in missing.items() if count)
            raise AssertionError(f"a rewrite made a circle through {left}")
        return order

    # --- changing (the engine's) ---------------------------------------------------------------------------------------

    def replace(
        self,
        old: Sequence[Layer],
        new: Sequence[Layer],
        constants: Mapping[str, np.ndarray] | None = None,
        aliases: Mapping[str, str] | None = None,
        fate: str = "no-op",
    ) -> list[str]:
        """Puts ``new`` in the place of ``old``; returns the names of new and neighbouring layers.

        Types of new tensors come from ``infer``; nothing is changed when that fails.

        Raises:
            ShapeError: the new layers do not fit, or an alias cannot be made.
        """
        for source, target in (aliases or {}).items():
            self._check_alias(source, target)
        fresh = self._infer(new, constants or {})
        for name, value in (constants or {}).items():
            self.constants[name] = np.ascontiguousarray(value) if value.ndim else np.asarray(value)
        self._types.update(fresh)
        position = max((self._position[layer.name] for layer in old), default=0.0)
        touched: dict[str, None] = {}
        for layer in old:
            for tensor in layer.inputs:
                if tensor in self._producer:
                    touched[self._producer[tensor]] = None
            self._remove(layer)
        kept = {origin for layer in new for origin in layer.origins}
        for layer in old:
            for node in layer.origins:
                if node not in kept:
                    self._gone[node] = fate
        names = []
        for offset, layer in enumerate(new):
            layer = replace(layer, name=self._unique_name(layer.name))
            self._add(layer, position + offset * 1e-6)
            names.append(layer.name)
        for source, target in (aliases or {}).items():
            touched.update(dict.fromkeys(self._alias(source, target)))
        neighbours = [name for name in touched if name in self.layers]
        for name in names:
            for tensor in self.layers[name].outputs if name in self.layers else ():
                neighbours.extend(self._readers.get(tensor, ()))
        return list(dict.fromkeys([*neighbours[: len(touched)], *names, *neighbours]))

    def prune(self) -> int:
        """Removes layers that no network output needs; returns how many."""
        removed = 0
        idle = list(self.layers)
        while idle:
            layer = self.layers.get(idle.pop())
            if layer is None or any(tensor in self.outputs or self._readers.get(tensor) for tensor in layer.outputs):
                continue
            self._remove(layer)
            removed += 1
            self._gone.update(dict.fromkeys(layer.origins, "dead"))
            idle += [self._producer[tensor] for tensor in layer.inputs if tensor in self._producer]
        return removed

    def rebuild(self) -> Network:
        """The network as it is now, without constants and types that nothing uses, with every fate."""
        layers = tuple(self.ordered())
        used = {*self._network.inputs, *self._network.outputs, *(one.tensor for one in self._network.sizes.values())}
        for layer in layers:
            used.update(layer.inputs, layer.outputs)
        home: dict[str, str] = {}
        for layer in layers:
            for node in layer.origins:
                home.setdefault(node, layer.name)
        before = {layer.name: layer.origins for layer in self._network.layers}
        fates = {node: self._fate(node, before, home) for node in self._network.fates}
        for node, name in home.items():
            fates.setdefault(node, Fate("layer", name))
        return replace(
            self._network,
            layers=layers,
            tensors={name: kind for name, kind in self._types.items() if name in used},
            constants={name: value for name, value in self.constants.items() if name in used},
            fates=fates,
        )

    # -------------------------------------------------------------------------------------------------------------------

    def _needs(self, layer: Layer) -> dict[str, None]:
        """The tensors that must exist before ``layer`` runs: its inputs, and those that tell the sizes that it needs."""
        found = dict.fromkeys(layer.inputs)
        if self._makers:
            network = replace(self._network, tensors=self._types)
            needed = [self._makers[name] for name in sorted(symbols_of(network, layer)) if name in self._makers]
            found.update((name, None) for name in needed if name not in layer.outputs)
        return found

    def _fate(self, node: str, before: Mapping[str, tuple[str, ...]], home: Mapping[str, str]) -> Fate:
        """What has become of ``node``; of a call (of a function, an If or Loop decided at import) what became of the node that makes its result.

        ``before`` are the origins of the original layers, ``home`` the layer of each node now.
        """
        if node in home:
            return Fate("layer", home[node])
        fate = self._network.fates[node]
        if fate.kind != "layer":
            return fate
        inside = before.get(fate.layer, ())
        return self._fate(inside[0], before, home) if inside and node not in inside else Fate(self._gone.get(node, "dead"))

    def _unique_name(self, name: str) -> str:
        return self._unique(name, " #", self.layers)

    def _unique(self, base: str, mark: str, taken: Container[str]) -> str:
        """``base``, or where it is ``taken`` the first free one of ``base`` + ``mark`` + 2, 3 ... that was not given before."""
        if base not in taken:
            return base
        number = self._numbers.get(base + mark, 2)
        while (name := f"{base}{mark}{number}") in taken:
            number += 1
        self._numbers[base + mark] = number
        return name

    def _add(self, layer: Layer, position: float) -> None:
        self.layers[layer.name] = layer
        self._position[layer.name] = position
        for tensor in layer.outputs:
            self._producer[tensor] = layer.name
        for tensor in layer.inputs:
            self._readers.setdefault(tensor, {})[layer.name] = None
        signature = self._signatures[layer.name] = _signature(layer)
        self._twins.setdefault(signature, {})[layer.name] = None

    def _remove(self, layer: Layer) -> None:
        del self.layers[layer.name]
        del self._position[layer.name]
        for tensor in layer.outputs:
            if self._producer.get(tensor) == layer.name:
                del self._producer[tensor]
        for tensor in layer.inputs:
            self._readers.get(tensor, {}).pop(layer.name, None)
        self._twins[self._signatures.pop(layer.name)].pop(layer.name, None)

    def _infer(self, layers: Sequence[Layer], constants: Mapping[str, np.ndarray]) -> dict[str, TensorType]:
        fresh = {name: TensorType(data_type(value.dtype), value.shape) for name, value in constants.items()}
        for layer in layers:
            inferred = layer.op.infer([fresh.get(name) or self._types[name] for name in layer.inputs])
            for name, new in zip(layer.outputs, inferred, strict=True):
                known = self._types.get(name)
                if known is None:
                    fresh[name] = new
                elif known.dtype is not new.dtype or not may_be_equal(known.shape, new.shape):
                    raise ShapeError(f"{name} is {known}, the fused layer would make {new}")
        return fresh

    def _check_alias(self, source: str, target: str) -> None:
        if source in self.outputs and (target in self.outputs or target not in self._producer):
            what = "a network output" if target in self.outputs else "a network input or a constant"
            raise ShapeError(f"{source} is a network output and would have to share memory with {target}, {what}")

    def _alias(self, source: str, target: str) -> list[str]:
        """Readers of ``source`` now read ``target``; a network output keeps its name."""
        if source in self.outputs:
            source, target = target, source
            maker = self.layers[self._producer[source]]
            self._swap(maker, replace(maker, outputs=tuple(target if t == source else t for t in maker.outputs)))
        changed = list(self._readers.get(source, ()))
        for name in changed:
            reader = self.layers[name]
            self._swap(reader, replace(reader, inputs=tuple(target if t == source else t for t in reader.inputs)))
        if target in self._producer:
            changed.append(self._producer[target])
        return changed

    def _swap(self, old: Layer, new: Layer) -> None:
        position = self._position[old.name]
        self._remove(old)
        self._add(new, position)


def _signature(layer: Layer) -> Hashable:
    """Equal for layers with equal operations and inputs, and hardly ever for others."""
    try:
        return layer.inputs, hash(layer.op)
    except TypeError:  # networks inside operations have no hash
        return layer.inputs, type(layer.op)
