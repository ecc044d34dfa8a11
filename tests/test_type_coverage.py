"""Every operator with every type that ONNX lets its inputs have: it is imported, its outputs have the types that ONNX says, and the GPU has a kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import pytest
from onnx import defs, helper
from onnx.backend.test.case.test_case import TestCase

from fusion.importer import UnsupportedModel, import_onnx
from fusion.importer.tensors import data_type_of
from fusion.network import ControlFlow, Network
from fusion.passes import FusionOptions, optimize
from runtime.views import view_layers
from runtime.workloads import workload_of
from tactics.registry import tactics
from tests.harness.fiber import H100
from tests.onnx_cases import cases, left_out, value
from trtcli.onnx_backend import _with_shapes, _with_values, values_needed

CASES_EACH = 1  # node cases per operator
LEFT_OUT = ("UNDEFINED", "STRING", "COMPLEX64", "COMPLEX128", "FLOAT6E2M3", "FLOAT6E3M2")
NAMES = {name: number for name, number in onnx.TensorProto.DataType.items() if name not in LEFT_OUT}
# Combinations that ONNX's schemas list and its text (or sense) excludes.
REFUSED = {
    "BitCast": "bytes, ",  # sizes must be equal
    "GridSample": "only real numbers can be interpolated",
}


Variant = tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, int]]


def _typed(case: TestCase, constraint: defs.OpSchema.TypeConstraintParam, schema: defs.OpSchema, dtype: int) -> Variant | None:
    """``case`` with the inputs under ``constraint`` in another type, and the types that its outputs then have; None when it has no such input."""
    (node,) = case.model.graph.node
    last = len(schema.inputs) - 1
    changed = {name for index, name in enumerate(node.input) if name and schema.inputs[min(index, last)].type_str == constraint.type_param_str}
    if not changed or changed & {tensor.name for tensor in case.model.graph.initializer}:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    arrays = {}
    for entry, given in zip(model.graph.input, case.data_sets[0][0], strict=True):
        array = np.asarray(value(given))
        if entry.name in changed:
            entry.type.tensor_type.elem_type = dtype
            array = array.astype(np.float32).astype(helper.tensor_dtype_to_np_dtype(dtype))
        arrays[entry.name] = array
    last = len(schema.outputs) - 1
    wanted = {
        name: dtype for index, name in enumerate(node.output) if name and schema.outputs[min(index, last)].type_str == constraint.type_param_str
    }
    return model, arrays, wanted


def _every() -> Iterator[tuple[str, onnx.ModelProto, dict[str, np.ndarray], dict[str, int]]]:
    counts: dict[str, int] = defaultdict(int)
    for case in cases():
        nodes = case.model.graph.node
        tensors = all(entry.type.HasField("tensor_type") for entry in (*case.model.graph.input, *case.model.graph.output))
        if left_out(case) or not tensors or len(nodes) != 1 or nodes[0].domain or any(attribute.HasField("g") for attribute in nodes[0].attribute):
            continue
        operator = nodes[0].op_type
        counts[operator] += 1
        if counts[operator] > CASES_EACH:
            continue
        (version,) = (entry.version for entry in case.model.opset_import if not entry.domain)
        schema = defs.get_schema(operator, version, "")
        for constraint in schema.type_constraints:
            for text in constraint.allowed_type_strs:
                name = text.removeprefix("tensor(").removesuffix(")").upper()
                if text.startswith("tensor(") and name in NAMES:
                    found = _typed(case, constraint, schema, NAMES[name])
                    if found is not None:
                        yield f"{case.name}, {constraint.type_param_str} = {name}", *found


def _imported(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> Network:
    shaped = _with_shapes(model, arrays)
    try:
        return import_onnx(shaped)
    except UnsupportedModel:
        return import_onnx(_with_values(shaped, {name: arrays[name] for name in values_needed(shaped, arrays)}))


def _without_kernel(network: Network) -> list[str]:
    plain, found = view_layers(network), []
    sizes = dict.fromkeys(network.sizes, 1)
    for layer in network.layers:
        if isinstance(layer.op, ControlFlow) or layer.name in plain:
            continue
        workload = workload_of(network, layer, sizes, set(network.constants), True, frozenset())
        if not any(isinstance(workload.op, one.ops) and one.supports(workload, H100) is None for one in tactics("cuda")):
            found.append(f"{layer.op.layer_type} of {', '.join(tensor.dtype.value for tensor in workload.inputs)}")
    return found


@pytest.mark.filterwarnings("ignore")
def test_operators_take_every_type() -> None:
    wrong = []
    with np.errstate(all="ignore"):
        for name, model, arrays, wanted in _every():
            try:
                network = _imported(model, arrays)
            except UnsupportedModel as error:
                if REFUSED.get(model.graph.node[0].op_type, "\0") not in str(error):
                    wrong.append(f"{name}: {error}")
                continue
            for output, dtype in wanted.items():
                if network.tensors[output].dtype is not data_type_of(dtype):
                    wrong.append(f"{name}: {output} is {network.tensors[output].dtype.value}")
            if _without_kernel(network):  # as most are in the end; some layers get their kernels by what the passes do with them
                missing = _without_kernel(optimize(network, FusionOptions(device="cuda")).network)
                wrong += [f"{name}: no kernel for {what}" for what in missing]
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:60])
