"""ONNX Runtime as the oracle: one node, run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

Oracle = Callable[..., list[np.ndarray]]


def run_node(
    kind: str, inputs: Sequence[np.ndarray | None], *, outputs: int = 1, opset: int = 21, **attributes: object
) -> list[np.ndarray]:
    """The outputs of one ONNX node on ONNX Runtime's CPU provider; None stands for an input left out."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    names = ["" if array is None else f"i{number}" for number, array in enumerate(inputs)]
    results = [f"o{number}" for number in range(outputs)]
    node = onnx.helper.make_node(kind, names, results, **attributes)
    given = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    graph = onnx.helper.make_graph([node], "g", given, [onnx.ValueInfoProto(name=name) for name in results])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    return session.run(None, feeds)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return run_node
