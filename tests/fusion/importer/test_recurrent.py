"""RNN, GRU and LSTM, imported and evaluated, against ONNX Runtime."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fusion.importer import UnsupportedModel, import_onnx
from fusion.ops import MatrixMultiply, Recurrence
from fusion.reference import run
from fusion.serial import from_json, to_json
from tests.models import onnxruntime_outputs

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = ("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus")


def model_of(
    cell: str, *, time: int = 5, batch: int = 3, width: int = 4, hidden: int = 6, direction: str = "forward", bias: bool = True,
    initial: bool = False, peephole: bool = False, lengths: bool = False, layout: int = 0, dynamic: bool = False, scale: float = 0.4,
    opset: int = 14, **attributes: object,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:  # fmt: skip
    """A model of one recurrent node with constant weights, and its inputs."""
    random = np.random.default_rng(hidden)
    directions, gates = 2 if direction == "bidirectional" else 1, GATES[cell]

    def numbers(*shape: int) -> np.ndarray:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    inputs = {"x": numbers(*((batch, time) if layout else (time, batch)), width)}
    weights = {"w": numbers(directions, gates * hidden, width), "r": numbers(directions, gates * hidden, hidden)}
    state = (batch, directions, hidden) if layout else (directions, batch, hidden)
    names = ["x", "w", "r", *[""] * (5 if cell == "LSTM" else 3)]
    if bias:
        names[3], weights["b"] = "b", numbers(directions, 2 * gates * hidden)
    if lengths:
        names[4], inputs["lengths"] = "lengths", random.integers(1, time + 1, batch).astype(np.int32)
    if initial:
        names[5], inputs["h0"] = "h0", numbers(*state)
        if cell == "LSTM":
            names[6], inputs["c0"] = "c0", numbers(*state)
    if peephole:
        names[7], weights["p"] = "p", numbers(directions, 3 * hidden)
    outputs = ["y", "y_h", "y_c"][: 3 if cell == "LSTM" else 2]
    if layout:
        attributes["layout"] = 1
    node = helper.make_node(cell, names, outputs, "node", hidden_size=hidden, direction=direction, **attributes)
    infos = [
        helper.make_tensor_value_info(
            name,
            TensorProto.INT32 if name == "lengths" else TensorProto.FLOAT,
            [f"{name}_{axis}" for axis in range(value.ndim)] if dynamic else value.shape,
        )
        for name, value in inputs.items()
    ]
    if dynamic:
        infos[0].type.tensor_type.shape.dim[2].dim_value = width
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info(name) for name in outputs], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), inputs


def check(cell: str, **options: object) -> None:
    for dynamic in (False, True):
        model, inputs = model_of(cell, dynamic=dynamic, **options)  # type: ignore[arg-type]
        network = import_onnx(model)
        assert [type(layer.op) for layer in network.layers if isinstance(layer.op, MatrixMultiply | Recurrence)] == [MatrixMultiply, Recurrence]
        assert [from_json(json.loads(json.dumps(to_json(layer)))) for layer in network.layers] == list(network.layers)
        found = run(network, inputs)
        for name, value in onnxruntime_outputs(model, inputs).items():
            assert found[name].shape == value.shape and found[name].dtype == value.dtype
            np.testing.assert_allclose(found[name], value, 2e-5, 2e-6, err_msg=f"{cell} {options} {name}")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    cell=st.sampled_from(["RNN", "GRU", "LSTM"]), direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    time=st.integers(1, 6), batch=st.integers(1, 4), hidden=st.integers(1, 9), bias=st.booleans(), initial=st.booleans(),
    lengths=st.booleans(), clip=st.sampled_from([None, 0.3]), extra=st.booleans(), data=st.data(),
)  # fmt: skip
def test_against_onnxruntime(cell, direction, time, batch, hidden, bias, initial, lengths, clip, extra, data) -> None:  # noqa: ANN001
    attributes: dict[str, object] = {} if clip is None else {"clip": clip}
    if cell == "GRU":
        attributes["linear_before_reset"] = int(extra)
    if cell == "LSTM":
        attributes |= {"peephole": extra, "input_forget": int(data.draw(st.booleans()))}
    if data.draw(st.booleans()):
        count = {"RNN": 1, "GRU": 2, "LSTM": 3}[cell] * (2 if direction == "bidirectional" else 1)
        attributes["activations"] = [data.draw(st.sampled_from(FUNCTIONS[:3])) for _ in range(count)]
    check(cell, direction=direction, time=time, batch=batch, hidden=hidden, bias=bias, initial=initial, lengths=lengths, **attributes)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_activation(name: str) -> None:
    given = {"activation_alpha": [0.7], "activation_beta": [0.2]} if name in ("Affine", "ScaledTanh", "HardSigmoid") else {}
    given |= {"activation_alpha": [0.3]} if name in ("LeakyRelu", "ThresholdedRelu", "Elu") else {}
    check("RNN", activations=[name], **given)


def test_values_of_alpha_go_to_the_functions_that_take_one() -> None:
    check("LSTM", direction="bidirectional", activations=["HardSigmoid", "Tanh", "Elu", "Sigmoid", "LeakyRelu", "Tanh"],
          activation_alpha=[0.3, 0.8, 0.05], activation_beta=[0.4])  # fmt: skip


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_batch_first(cell: str) -> None:
    """The same numbers as with time first (ONNX Runtime has no ``layout`` 1)."""
    options = {"direction": "bidirectional", "initial": True, "lengths": True}
    first, inputs = model_of(cell, **options)  # type: ignore[arg-type]
    second, _ = model_of(cell, layout=1, **options)  # type: ignore[arg-type]
    swapped = {name: value if value.ndim == 1 else np.ascontiguousarray(value.swapaxes(0, 1)) for name, value in inputs.items()}
    wanted, found = run(import_onnx(first), inputs), run(import_onnx(second), swapped)
    np.testing.assert_allclose(found["y"], wanted["y"].transpose(2, 0, 1, 3), 1e-6, 1e-6)
    for name in ("y_h", "y_c")[: 2 if cell == "LSTM" else 1]:
        np.testing.assert_allclose(found[name], wanted[name].swapaxes(0, 1), 1e-6, 1e-6)


def test_states_that_start_at_zero_are_not_read() -> None:
    """As PyTorch writes them: zeros of a shape that follows from the input's."""
    model, inputs = model_of("GRU", initial=True, dynamic=True)
    graph = model.graph
    del graph.input[1:]
    nodes = [helper.make_node("Shape", ["x"], ["sizes"]), helper.make_node("Gather", ["sizes", "second"], ["batch"]),
             helper.make_node("Concat", ["one", "batch", "six"], ["state"], axis=0), helper.make_node("Expand", ["zero", "state"], ["h0"])]  # fmt: skip
    graph.initializer.extend([numpy_helper.from_array(np.array(value, dtype), name) for name, value, dtype in (
        ("second", [1], np.int64), ("one", [1], np.int64), ("six", [6], np.int64), ("zero", 0, np.float32))])  # fmt: skip
    graph.node.extend([*nodes, graph.node[0]])
    del graph.node[0]
    network = import_onnx(model)
    assert [layer.op.layer_type for layer in network.layers] == ["MatrixMultiply", "Recurrence"]
    given = {"x": inputs["x"]}
    for name, value in onnxruntime_outputs(model, given).items():
        np.testing.assert_allclose(run(network, given)[name], value, 2e-5, 2e-6)


def test_refusals_name_what_was_found() -> None:
    with pytest.raises(UnsupportedModel, match="activation 'Cosine'"):
        import_onnx(model_of("RNN", activations=["Cosine"])[0])
    with pytest.raises(UnsupportedModel, match="2 activations for 1 directions of 3"):
        import_onnx(model_of("LSTM", activations=["Tanh", "Tanh"])[0])
