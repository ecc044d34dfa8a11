"""Sequences and optionals are resolved at import: only the tensors inside are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from fusion.importer import UnsupportedModel, import_onnx
from fusion.reference import run
from runtime.cpu import CpuDevice
from tests.models import onnxruntime_outputs
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Silent

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


def _computed(name: str) -> tuple[onnx.NodeProto, ...]:
    """A number (1) that data tell."""
    return node("ReduceMin", "x", "least", keepdims=0), node("Cast", "least", "whole", to=TensorProto.INT64), node("Add", "whole one", name)


def _loop(trip: str, *nodes: onnx.NodeProto, start: Sequence[onnx.NodeProto] = (), read: str = "SequenceAt", **attributes: Any) -> Sequence[onnx.NodeProto]:
    """A loop of ``trip`` iterations that carries a sequence from ``s`` to ``grown``, and what is read of the result."""
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    grown = helper.make_tensor_sequence_value_info("grown", TensorProto.FLOAT, None)
    entries = [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []), sequence]
    kept = helper.make_tensor_value_info("kept", TensorProto.BOOL, [])
    extra = [node("Identity", "c", "kept"), node("Add", "i one", "i0"), node("Reshape", "i0 flat", "i1")]
    body = helper.make_graph([*extra, *nodes], "body", entries, [kept, grown])
    loop = helper.make_node("Loop", [trip, "", "e"], ["l"], body=body)
    first = tuple(start) or (node("SequenceEmpty", "", "e"),)
    return *_computed("trip"), *first, loop, node(read, "l three" if read == "SequenceAt" else "l", "y", **attributes)


NUMBERS = {"three": 0, "first": 0, "zero": [0], "one": 1, "four": 4, "flat": [-1]}
ITEM = (node("Cast", "i0", "f", to=TensorProto.FLOAT), node("Mul", "x f", "item"), node("SequenceInsert", "s item", "grown"))


@pytest.mark.parametrize("trip", ["four", "trip"])
@pytest.mark.parametrize("stack", [0, 1])
@pytest.mark.parametrize("begun", [False, True])
def test_loops_that_append(trip: str, stack: int, begun: bool) -> None:
    """Four iterations are unrolled; one, which only data tell, is a loop with a scan output."""
    start = (node("Neg", "x", "negative"), node("SequenceConstruct", "negative", "e")) if begun else ()
    nodes = _loop(trip, *ITEM, start=start, read="ConcatFromSequence", axis=1, new_axis=stack)
    items = [*([-X] if begun else []), *(X * (i + 1) for i in range(4 if trip == "four" else 1))]
    np.testing.assert_array_equal(result(*nodes, constants=NUMBERS), (np.stack if stack else np.concatenate)(items, 1))


def test_loops_of_known_length_may_do_anything() -> None:
    """The sequence grows at its front by pieces of different lengths."""
    nodes = _loop("four", node("Slice", "x zero i1", "part"), node("SequenceInsert", "s part first", "grown"), read="ConcatFromSequence", axis=0)
    np.testing.assert_array_equal(result(*nodes, constants=NUMBERS), np.concatenate([X[: 4 - i] for i in range(4)]))


def test_loops_that_only_read_a_sequence() -> None:
    nodes = _loop("trip", node("Identity", "s", "grown"), start=(node("SequenceConstruct", "x", "e"),), read="ConcatFromSequence", axis=0)
    np.testing.assert_array_equal(result(*nodes, constants=NUMBERS), X)


def test_computed_positions() -> None:
    nodes = (*_computed("p"), node("Neg", "x", "n"), node("SequenceConstruct", "x n", "s"), node("SequenceAt", "s p", "y"))
    np.testing.assert_array_equal(result(*nodes, constants=NUMBERS), -X)


def test_split_into_as_many_as_there_are(tmp_path: Path) -> None:
    """A dynamic axis becomes a sequence that a loop reads one by one: in an engine, against ONNX Runtime."""
    model = parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[n, 3] x) => (float[k, 3] y, int64 m, float[1, 3] z)
        <int64 axis = {0}, bool yes = {1}, int64 minus = {-1}> {
        s = SplitToSequence <axis = 0> (x) m = SequenceLength(s) e = SequenceEmpty() z = SequenceAt(s, minus)
        l = Loop(m, yes, e) <body = b (int64 i, bool c, seq(float[1, 3]) t) => (bool d, seq(float[1, 3]) u) {
            d = Identity(c) a = SequenceAt(s, i) r = Exp(a) u = SequenceInsert(t, r) }>
        y = ConcatFromSequence <axis = 0> (l) }""")
    config = BuildConfig(optimization_level=0, min_shapes={"x": (1, 3)}, opt_shapes={"x": (4, 3)}, max_shapes={"x": (9, 3)})
    engine = build(model.SerializeToString(), config, CpuDevice(), log=Silent())
    context = engine.create_execution_context(CpuDevice())
    for count in (4, 1, 7):
        inputs = {"x": np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)}
        found = context.execute(inputs)
        for name, array in onnxruntime_outputs(model, inputs).items():
            assert found[name].shape == array.shape
            np.testing.assert_allclose(found[name], array, 1e-6)


def test_branches_that_make_sequences() -> None:
    def branch(name: str, first: str, second: str) -> onnx.GraphProto:
        return helper.make_graph([node("SequenceConstruct", f"{first} {second}", name)], name, [], [helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)])

    choice = node("If", "p", "s", then_branch=branch("a", "x", "n"), else_branch=branch("b", "n", "x"))
    nodes = (node("Neg", "x", "n"), *_computed("whole1"), node("Cast", "whole1", "p", to=TensorProto.BOOL), choice,
             node("ConcatFromSequence", "s", "y", axis=0))  # fmt: skip
    np.testing.assert_array_equal(result(*nodes, constants=NUMBERS), np.concatenate([X, -X]))


def test_sequences_as_outputs_are_laid_open() -> None:
    graph = helper.make_graph(
        [node("Neg", "x", "n"), node("SequenceConstruct", "x n", "y")], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    found = run(import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])), {"x": X})
    assert list(found) == ["y.0", "y.1"]
    np.testing.assert_array_equal(found["y.1"], -X)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ((node("Optional", "", "y", type=helper.make_tensor_type_proto(TensorProto.FLOAT, None)),), "output y: it is an empty optional"),
        ((node("SequenceConstruct", "x", "s"), node("Relu", "s", "y")), "Relu .*an input is a sequence or an empty optional"),
        ((node("SequenceConstruct", "x", "s"), node("SequenceAt", "s three", "y")), "SequenceAt .*position 3 of a sequence of 1"),
        ((node("SequenceAt", "x three", "y"),), "input 0 is no sequence"),
        (_loop("trip", node("SequenceInsert", "s x first", "grown")), "does more than append one tensor per iteration"),
        (
            _loop("trip", node("SequenceLength", "s", "n"), node("Cast", "n", "f", to=TensorProto.FLOAT), node("Mul", "x f", "item"),
                  node("SequenceInsert", "s item", "grown")),
            "Loop .*it reads the sequence",
        ),
        (_loop("trip", node("Slice", "x zero i1", "part"), node("SequenceInsert", "s part", "grown")), "shapes may differ from iteration"),
        ((*_computed("p"), node("Transpose", "x", "t"), node("SequenceConstruct", "x t", "s"), node("SequenceAt", "s p", "y")), "must have one shape"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(nodes: Sequence[onnx.NodeProto], says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        result(*nodes, constants={**NUMBERS, "three": 3})


def test_sequence_inputs_are_refused() -> None:
    entry = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([node("ConcatFromSequence", "s", "y", axis=0)], "g", [entry], [output])
    with pytest.raises(UnsupportedModel, match="input s: it is a sequence, not a tensor; give its tensors as inputs of their own"):
        import_onnx(helper.make_model(graph))
