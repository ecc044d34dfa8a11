"""Random bodies of Loop and Scan against ONNX Runtime: as layers that repeat, and unrolled, with what never changes before them."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusion.importer import import_onnx
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from tests.models import onnxruntime_outputs

SHAPE = (3, 4)
BINARY, UNARY = ("Add", "Mul", "Sub"), ("Tanh", "Sigmoid", "Neg", "Relu")


def tensor(name: str, shape: tuple[int | str, ...] | None = SHAPE, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def body_of(draw: random.Random, is_loop: bool, carried: list[str], slices: list[str], scans: int) -> onnx.GraphProto:
    """Some nodes over carried tensors, slices, the counter, and tensors and matrices from around."""
    inputs = [*([tensor("i", (), TensorProto.INT64), tensor("c", (), TensorProto.BOOL)] if is_loop else []), *map(tensor, (*carried, *slices))]
    nodes = [helper.make_node("Cast", ["i"], ["number"], to=TensorProto.FLOAT)] if is_loop else []
    known = ["w", "x", *carried, *slices]
    for index in range(draw.randint(2, 9)):
        kind, name = draw.choice((*BINARY, *UNARY, "MatMul", "MatMul", "Constant", "If")), f"t{index}"
        if kind in BINARY:
            nodes.append(helper.make_node(kind, [draw.choice([*known, "number"] if is_loop else known), draw.choice(known)], [name]))
        elif kind == "MatMul":
            nodes.append(helper.make_node(kind, [draw.choice(slices or known), draw.choice(("p", "q"))], [name]))
        elif kind == "Constant":
            nodes.append(helper.make_node(kind, [], [name], value=numpy_helper.from_array(np.full(SHAPE, index, np.float32))))
        elif kind == "If":
            nodes += [helper.make_node("ReduceMax", [draw.choice(known)], [f"{name}m"], keepdims=0), helper.make_node("Greater", [f"{name}m", "half"], [f"{name}g"])]
            parts = {
                f"{part}_branch": helper.make_graph([helper.make_node(what, [draw.choice(known)], [f"{name}{part}"])], part, [], [tensor(f"{name}{part}")])
                for part, what in (("then", "Neg"), ("else", "Tanh"))
            }
            nodes.append(helper.make_node("If", [f"{name}g"], [name], **parts))
        else:
            nodes.append(helper.make_node(kind, [draw.choice(known)], [name]))
        known.append(name)
    outputs = [tensor("d", (), TensorProto.BOOL)] if is_loop else []
    if is_loop:
        nodes.append(draw.choice((helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Less", ["i", "two"], ["d"]))))
    for index in range(len(carried) + scans):
        same = index < len(carried) and draw.random() < 0.2
        nodes.append(helper.make_node(draw.choice(("Identity", "Tanh")), [carried[index] if same else draw.choice(known)], [f"o{index}"]))
        outputs.append(tensor(f"o{index}"))
    return helper.make_graph(nodes, "body", inputs, outputs)


def model_of(draw: random.Random) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    is_loop, trip, fixed = draw.random() < 0.5, draw.randint(1, 4), draw.random() < 0.6
    carried = [f"s{index}" for index in range(draw.randint(int(is_loop), 3))]
    slices = [] if is_loop else [f"v{index}" for index in range(draw.randint(1, 2))]
    scans = draw.randint(0 if carried else 1, 2)
    body = body_of(draw, is_loop, carried, slices, scans)
    values = {"two": np.array(2), "half": np.float32(0.5), "q": np.eye(4, dtype=np.float32)[::-1].copy(), "yes": np.array(True)}
    inputs = {"w": SHAPE, "x": SHAPE, "p": (4, 4)}
    data = np.random.default_rng(draw.randint(0, 9))
    given = {name: data.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
    types = [tensor(name, shape) for name, shape in inputs.items()]
    first, outputs = ["x", "w", "x"][: len(carried)], [f"y{index}" for index in range(len(carried) + scans)]
    if is_loop:
        if fixed:
            values["trip"] = np.array(trip)
        else:
            types.append(tensor("trip", (), TensorProto.INT64))
            given["trip"] = np.array(trip)
        node = helper.make_node("Loop", ["trip", "yes", *first], outputs, "L", body=body)
    else:
        axes = [draw.randint(0, 2) for _ in slices]
        for name, axis in zip(slices, axes, strict=True):
            shape: list[int | str] = [*SHAPE]
            shape.insert(axis, trip)
            given[name] = data.standard_normal(shape).astype(np.float32)  # type: ignore[arg-type]
            types.append(tensor(name, tuple(shape if fixed else [*shape[:axis], "n", *shape[axis + 1 :]])))
        more = {f"scan_output_{what}": [draw.randint(0, most) for _ in range(scans)] for what, most in (("axes", 2), ("directions", 1)) if scans}
        node = helper.make_node("Scan", [*first, *slices], outputs, "L", body=body, num_scan_inputs=len(slices), scan_input_axes=axes,
                                scan_input_directions=[draw.randint(0, 1) for _ in slices], **more)  # fmt: skip
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph([node], "g", types, [tensor(name, None) for name in outputs], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), given


@pytest.mark.parametrize("most", [0, 1024], ids=["repeated", "unrolled"])
def test_random_loops(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion.importer.loops.UNROLLED_NODES", most)
    loops = 0
    for seed in range(60):
        model, inputs = model_of(random.Random(seed))
        expected = onnxruntime_outputs(model, inputs)
        network = import_onnx(model)
        loops += any(layer.op.layer_type == "Loop" for layer in network.layers)
        for one in (network, optimize(network, FusionOptions(device="cpu")).network):
            found = run(one, inputs)
            for name, array in expected.items():
                np.testing.assert_allclose(found[name], array, rtol=2e-4, atol=1e-4, err_msg=f"seed {seed}: {name}")
    assert loops > 40 if not most else 10 < loops < 50
