"""trtcli as an ONNX backend (``onnx.backend.base``): ``prepare``, ``run_model``, ``run_node`` for the devices CPU and CUDA.

A prepared model builds one engine per set of input shapes. Small inputs whose *values* the importer must know (the axis of a CumSum, say)
are read when they come, and an engine is built for those values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TypeProto, ValueInfoProto, helper, numpy_helper
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from fusion.dtypes import data_type
from fusion.importer import ModelError, UnsupportedModel, import_onnx
from fusion.importer.tensors import onnx_type_of
from runtime.context import ExecutionContext
from trtcli.api import build
from trtcli.config import BuildConfig

VALUE_LIMIT = 1024  # elements: a larger input is data, never a shape or an attribute
KEPT_ENGINES = 16


class TrtcliRep(BackendRep):
    """A model on a device, with the engines built so far."""

    def __init__(self, model: ModelProto, device: str, config: BuildConfig) -> None:
        self._model = model
        self._device = device
        self._config = config
        self._contexts: OrderedDict[tuple[Any, ...], ExecutionContext] = OrderedDict()
        weights = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [entry for entry in model.graph.input if entry.name not in weights]
        self._sequences = {entry.name for entry in model.graph.output if entry.type.HasField("sequence_type")}
        self._outputs = [entry.name for entry in model.graph.output]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs, in the model's order, for ``inputs``: arrays (lists of them for sequences) in the model's order, or by name.

        Raises:
            ValueError: inputs are missing or too many, or do not fit the model.
        """
        arrays = self._named(inputs)
        context, values = self._context(arrays)
        found = context.execute({name: array for name, array in arrays.items() if name not in values})
        return namedtupledict("Outputs", self._outputs)(*(self._output(name, found) for name in self._outputs))

    def _output(self, name: str, found: Mapping[str, np.ndarray]) -> Any:
        """A tensor, or the list of a sequence's elements."""
        if name not in self._sequences:
            return found[name]
        return list(found[name]) if name in found else [found[one] for one in _elements(name, found)]

    def _named(self, inputs: Any) -> dict[str, np.ndarray]:
        names = [entry.name for entry in self._inputs]
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        else:
            listed = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            if len(listed) != len(names):
                raise ValueError(f"the model has {len(names)} inputs ({', '.join(names)}), {len(listed)} are given")
            given = dict(zip(names, listed, strict=True))
        missing = sorted(set(names) - set(given))
        if missing or len(given) > len(names):
            raise ValueError(f"inputs {', '.join(sorted(given))} are given; the model has {', '.join(names)}")
        found = {}
        for entry in self._inputs:
            value = given[entry.name]
            items = {f"{entry.name}.{number}": item for number, item in enumerate(value)} if _is_sequence(entry) else {entry.name: value}
            found.update({name: np.asarray(item, order="C") for name, item in items.items()})
        return found

    def _context(self, arrays: Mapping[str, np.ndarray]) -> tuple[ExecutionContext, frozenset[str]]:
        """The context for these inputs, and the names of those whose values are inside its engine."""
        shaped = _with_shapes(_with_elements(self._model, arrays), arrays)
        values = values_needed(shaped, arrays)
        key = tuple((array.shape, array.tobytes() if name in values else b"") for name, array in arrays.items())
        if key not in self._contexts:
            engine = build(_with_values(shaped, {name: arrays[name] for name in values}), self._config, self._device)
            self._contexts[key] = engine.create_execution_context(self._device)
            if len(self._contexts) > KEPT_ENGINES:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(key)
        return self._contexts[key], values


def _is_sequence(entry: ValueInfoProto) -> bool:
    return bool(entry.type.HasField("sequence_type"))


def _elements(name: str, arrays: Mapping[str, Any]) -> list[str]:
    """The names of the elements of the sequence ``name``, in order."""
    return sorted((one for one in arrays if one.rpartition(".")[0] == name), key=lambda one: int(one.rpartition(".")[2]))


def _with_elements(model: ModelProto, arrays: Mapping[str, np.ndarray]) -> ModelProto:
    """``model`` with an input per element in place of inputs that are sequences."""
    if not any(map(_is_sequence, model.graph.input)):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.input[:]
    for entry in model.graph.input:
        if not _is_sequence(entry):
            copy.graph.input.add().CopyFrom(entry)
            continue
        names, kind = _elements(entry.name, arrays), entry.type.sequence_type.elem_type.tensor_type.elem_type
        copy.graph.input.extend(helper.make_tensor_value_info(name, kind, arrays[name].shape) for name in names)
        made = helper.make_node("SequenceConstruct", names, [entry.name]) if names else helper.make_node("SequenceEmpty", [], [entry.name], dtype=kind)
        copy.graph.node.insert(0, made)
    return copy


def values_needed(model: ModelProto, arrays: Mapping[str, np.ndarray]) -> frozenset[str]:
    """The fewest small inputs (found greedily) whose values must be known before ``model`` can be imported.

    Raises:
        ModelError: it cannot be imported, whatever is known of its inputs.
    """
    try:
        import_onnx(model)
        return frozenset()
    except UnsupportedModel as error:
        small = [name for name, array in arrays.items() if array.size <= VALUE_LIMIT and array.ndim <= 1]
        if not small or any(problem.operator == "input" for problem in error.problems):
            raise
        first = error
    needed = list(small)
    if not _imports(_with_values(model, {name: arrays[name] for name in needed})):
        raise first
    for name in small:
        fewer = [other for other in needed if other != name]
        if _imports(_with_values(model, {other: arrays[other] for other in fewer})):
            needed = fewer
    return frozenset(needed)


def _imports(model: ModelProto) -> bool:
    try:
        import_onnx(model)
    except ModelError:
        return False
    return True


def _with_shapes(model: ModelProto, arrays: Mapping[str, np.ndarray]) -> ModelProto:
    """``model`` with the shapes of ``arrays`` as those of its inputs.

    Raises:
        ValueError: the rank or a fixed dimension differs.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    for entry in copy.graph.input:
        if entry.name not in arrays or not entry.type.HasField("tensor_type"):
            continue
        shape, tensor = arrays[entry.name].shape, entry.type.tensor_type
        fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        if tensor.HasField("shape") and (
            len(fixed) != len(shape) or any(dim not in (None, size) for dim, size in zip(fixed, shape, strict=True))
        ):
            raise ValueError(f"input {entry.name!r} has shape {list(shape)}, the model says {fixed}")
        tensor.shape.Clear()
        tensor.shape.SetInParent()
        for size in shape:
            tensor.shape.dim.add().dim_value = size
    return copy


def _with_values(model: ModelProto, values: Mapping[str, np.ndarray]) -> ModelProto:
    """``model`` with the values of some inputs as initializers (inputs no more)."""
    if not values:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    kept = [entry for entry in model.graph.input if entry.name not in values]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    copy.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
    return copy


class TrtcliBackend(Backend):
    """The backend's entry points; all are class methods, also found as functions of this module."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether ``device`` (``CPU``, ``CUDA``, ``CUDA:1``) is here."""
        from runtime.cuda_driver import device_count

        try:
            parsed = Device(device)
        except (AttributeError, ValueError):
            return False
        return parsed.type == DeviceType.CPU or parsed.device_id < device_count()

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether all nodes of ``model`` can be imported as they stand, with no input's value known."""
        return cls.supports_device(device) and _imports(model)

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", config: BuildConfig | None = None, **kwargs: Any) -> TrtcliRep:
        """``model``, checked and ready to :meth:`TrtcliRep.run`. ``config``: how engines are built.

        Raises:
            onnx.checker.ValidationError: it breaks ONNX's rules.
            ValueError: there is no such device.
        """
        super().prepare(model, device, **kwargs)
        return TrtcliRep(model, _device_name(device), config or BuildConfig())

    @classmethod
    def run_node(
        cls, node: NodeProto, inputs: Any, device: str = "CPU", outputs_info: Sequence[Any] | None = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """The outputs of one node. ``opset_version``: of its operator set (default: the newest that onnx knows)."""
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        listed = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        names = [name for name in node.input if name]
        graph = helper.make_graph(
            [node],
            node.op_type,
            [
                helper.make_tensor_value_info(name, onnx_type_of(data_type(np.asarray(value).dtype)), np.shape(value))
                for name, value in zip(names, listed, strict=True)
            ],
            [helper.make_value_info(name, TypeProto()) for name in node.output if name],
        )
        version = kwargs.pop("opset_version", None)
        opsets = [] if version is None else [helper.make_opsetid(node.domain, version)]
        model = helper.make_model(graph, opset_imports=opsets or None)
        return TrtcliRep(model, _device_name(device), kwargs.get("config") or BuildConfig()).run(listed)


def _device_name(device: str) -> str:
    """What ``--device`` calls an ONNX device.

    Raises:
        ValueError: it is not here.
    """
    if not TrtcliBackend.supports_device(device):
        raise ValueError(f"device {device!r} is not here: CPU, CUDA or CUDA:number")
    parsed = Device(device)
    return "cpu" if parsed.type == DeviceType.CPU else str(parsed.device_id)


prepare = TrtcliBackend.prepare
run_model = TrtcliBackend.run_model
run_node = TrtcliBackend.run_node
supports_device = TrtcliBackend.supports_device
is_compatible = TrtcliBackend.is_compatible
