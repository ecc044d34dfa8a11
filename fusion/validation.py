"""Whether a network keeps its own contract: what every pass and rule must leave behind. Tests ask after each rewrite."""

from __future__ import annotations

from fusion.network import Fate, Network, ShapeError, may_be_equal


class InvalidNetwork(ValueError):
    """A network that breaks its own contract: a defect of the pass that made it."""


def validate(network: Network) -> None:
    """Checks topological order, single definitions, types against ``infer``, and that the fates are complete.

    Raises:
        InvalidNetwork: naming the layer or tensor.
    """
    known = set(network.inputs) | set(network.constants)
    names: set[str] = set()
    for layer in network.layers:
        if layer.name in names:
            raise InvalidNetwork(f"two layers are named {layer.name}")
        names.add(layer.name)
        for name in layer.inputs:
            if name not in known:
                raise InvalidNetwork(f"{layer.name} reads {name}, which nothing before it defines")
        for name in layer.outputs:
            if name in known:
                raise InvalidNetwork(f"{layer.name} writes {name}, which is already defined")
            known.add(name)
        try:
            types = layer.op.infer([network.tensors[name] for name in layer.inputs])
        except ShapeError as error:
            raise InvalidNetwork(f"{layer.name}: {error}") from error
        for name, inferred in zip(layer.outputs, types, strict=True):
            declared = network.tensors[name]
            if inferred.dtype is not declared.dtype or not may_be_equal(inferred.shape, declared.shape):
                raise InvalidNetwork(f"{layer.name} makes {inferred}, but {name} is {declared}")
    for name in network.outputs:
        if name not in known:
            raise InvalidNetwork(f"nothing defines the network output {name}")
    for name, value in network.constants.items():
        declared = network.tensors[name]
        if tuple(value.shape) != tuple(declared.shape) or value.dtype != declared.dtype.numpy:
            raise InvalidNetwork(f"constant {name} is {value.dtype} {value.shape}, but declared {declared}")
    for node, fate in network.fates.items():
        if fate.kind == "layer" and fate.layer not in names:
            raise InvalidNetwork(f"ONNX node {node} became layer {fate.layer}, which does not exist")
    for layer in network.layers:
        for node in layer.origins:
            if network.fates.get(node, Fate("")).kind != "layer":
                raise InvalidNetwork(
                    f"{layer.name} computes ONNX node {node}, whose fate says {network.fates.get(node)}"
                )
