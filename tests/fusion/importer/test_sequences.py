"""Sequences and optionals are resolved at import: only the tensors inside are left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusion.importer import UnsupportedModel, import_onnx
from fusion.reference import run

X = np.arange(24, dtype=np.float32).reshape(6, 4)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def result(*nodes: onnx.NodeProto, constants: dict[str, Any] | None = None, dtype: int = TensorProto.FLOAT) -> np.ndarray:
    weights = [numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", dtype, None)], weights,
    )  # fmt: skip
    network = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    return run(network, {"x": X} if network.inputs else {})["y"]


@pytest.mark.parametrize(
    ("split", "attributes", "position", "wanted"),
    [
        ([1, 2, 3], {}, 1, X[1:3]),
        (4, {}, -1, X[4:]),
        (2, {"axis": 1}, 1, X[:, 2:]),
        (None, {"keepdims": 0}, 5, X[5]),
        (None, {}, 0, X[:1]),
    ],
)
def test_split_and_at(split: int | list[int] | None, attributes: dict[str, int], position: int, wanted: np.ndarray) -> None:
    constants: dict[str, Any] = {"at": position} if split is None else {"at": position, "split": split}
    nodes = (node("SplitToSequence", "x" if split is None else "x split", "s", **attributes), node("SequenceAt", "s at", "y"))
    np.testing.assert_array_equal(result(*nodes, constants=constants), wanted)


@pytest.mark.parametrize(("new_axis", "wanted"), [(0, np.concatenate([X, -X], 1)), (1, np.stack([X, -X], 1))])
def test_construct_and_concat(new_axis: int, wanted: np.ndarray) -> None:
    nodes = (node("Neg", "x", "n"), node("SequenceConstruct", "x n", "s"), node("ConcatFromSequence", "s", "y", axis=1, new_axis=new_axis))
    np.testing.assert_array_equal(result(*nodes), wanted)


def test_insert_erase_and_length() -> None:
    nodes = [
        node("Neg", "x", "n"), node("SequenceEmpty", "", "e"), node("SequenceInsert", "e x", "a"), node("SequenceInsert", "a n zero", "b"),
        node("SequenceInsert", "b x", "c"), node("SequenceErase", "c last", "d"), node("Identity", "d", "same"),
    ]  # fmt: skip
    constants = {"zero": 0, "last": -1}
    length = result(*nodes, node("SequenceLength", "same", "y"), constants=constants, dtype=TensorProto.INT64)
    assert length.shape == () and length == 2
    np.testing.assert_array_equal(result(*nodes, node("SequenceAt", "same zero", "y"), constants=constants), -X)


def test_map() -> None:
    value = helper.make_tensor_value_info("item", TensorProto.FLOAT, None)
    other = helper.make_tensor_value_info("bias", TensorProto.FLOAT, None)
    out = helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)
    body = helper.make_graph([node("Add", "item bias", "t"), node("Mul", "t x", "sum")], "body", [value, other], [out])
    nodes = (
        node("Neg", "x", "n"), node("SequenceConstruct", "x n", "s"), node("SequenceMap", "s x", "m", body=body),
        node("ConcatFromSequence", "m", "y", axis=0),
    )  # fmt: skip
    np.testing.assert_array_equal(result(*nodes), np.concatenate([(X + X) * X, (-X + X) * X]))


def test_optionals() -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    empty = node("Optional", "", "o", type=kind)
    assert not result(empty, node("OptionalHasElement", "o", "y"), dtype=TensorProto.BOOL)
    assert not result(node("OptionalHasElement", "", "y"), dtype=TensorProto.BOOL)
    full = node("Optional", "x", "o")
    assert result(full, node("OptionalHasElement", "o", "y"), dtype=TensorProto.BOOL)
    np.testing.assert_array_equal(result(full, node("OptionalGetElement", "o", "g"), node("Neg", "g", "y")), -X)
    with pytest.raises(UnsupportedModel, match="its optional is empty"):
        result(empty, node("OptionalGetElement", "o", "y"))


def _loop() -> Sequence[onnx.NodeProto]:
    """A loop that carries a sequence."""
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    grown = helper.make_tensor_sequence_value_info("grown", TensorProto.FLOAT, None)
    entries = [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []), sequence]
    kept = helper.make_tensor_value_info("kept", TensorProto.BOOL, [])
    body = helper.make_graph([node("Identity", "c", "kept"), node("SequenceInsert", "s x", "grown")], "body", entries, [kept, grown])
    return node("SequenceEmpty", "", "e"), helper.make_node("Loop", ["three", "", "e"], ["l"], body=body), node("SequenceAt", "l three", "y")


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ((node("SequenceConstruct", "x x", "y"),), "output y: it is a sequence or an optional; outputs are tensors"),
        ((node("SequenceConstruct", "x", "s"), node("Relu", "s", "y")), "Relu .*an input is a sequence or an empty optional"),
        ((node("SequenceConstruct", "x", "s"), node("SequenceAt", "s three", "y")), "SequenceAt .*position 3 of a sequence of 1"),
        ((node("SequenceAt", "x three", "y"),), "input 0 is no sequence"),
        (_loop(), "Loop .*carries a sequence from step to step"),
        (
            (node("SequenceConstruct", "x x", "s"), node("ReduceMax", "x", "m", keepdims=0), node("Cast", "m", "p", to=TensorProto.INT64),
             node("SequenceAt", "s p", "y")),
            "its position depends on data",
        ),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(nodes: Sequence[onnx.NodeProto], says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        result(*nodes, constants={"three": 3})


def test_sequence_inputs_are_refused() -> None:
    entry = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([node("ConcatFromSequence", "s", "y", axis=0)], "g", [entry], [output])
    with pytest.raises(UnsupportedModel, match="input s: it is a sequence, not a tensor; give its tensors as inputs of their own"):
        import_onnx(helper.make_model(graph))
