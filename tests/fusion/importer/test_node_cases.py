"""ONNX's own node tests with every size left open: refused, or the recorded outputs. (As they stand: tests/trtcli/test_onnx_backend.py.)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from fusion.dtypes import DataType
from fusion.importer import UnsupportedModel, import_onnx
from fusion.reference import run
from tests.onnx_cases import cases

# How many cases passed with the onnx release named here; the number may only grow.
PASSING_DYNAMIC, RELEASE = 1354, (1, 23)

# Operators that trtcli does not have; cases that need one are not run, and the import must name the operator.
OPERATORS = {
    "training": "Adagrad Adam Momentum",
    "strings, images": "ImageDecoder TfIdfVectorizer",
    "classical machine learning": "ArrayFeatureExtractor Binarizer TreeEnsemble",
}
MISSING = {name for names in OPERATORS.values() for name in names.split()}

# Types that trtcli does not have.
TYPES = {
    getattr(TensorProto, name)
    for name in ("STRING", "COMPLEX64", "COMPLEX128")
    if hasattr(TensorProto, name)
}  # fmt: skip

# Single cases, with the reason.
CASES = {
    **dict.fromkeys((f"test_bernoulli{kind}{form}" for kind in ("", "_double", "_seed") for form in ("", "_expanded")), "random numbers"),
    "test_batchnorm_epsilon_training_mode": "training",
    "test_batchnorm_example_training_mode": "training",
    "test_training_dropout": "training: random numbers",
    "test_training_dropout_default": "training: random numbers",
    "test_training_dropout_default_mask": "training: random numbers",
    "test_training_dropout_mask": "training: random numbers",
    "test_not_2d": "opset 1",
    "test_not_3d": "opset 1",
    "test_not_4d": "opset 1",
}

# Relative and absolute; integers, booleans and 8-bit floats must be equal.
TOLERANCES = {
    DataType.DOUBLE: (1e-3, 1e-6),  # many cases are computed in float32 and stored as float64
    DataType.FLOAT: (1e-3, 1e-6),
    DataType.HALF: (4e-3, 1e-3),
    DataType.BF16: (2e-2, 1e-2),
}

# The inputs by which these tests give parameters; they become initializers, as exporters write them.
PARAMETERS = {
    "K", "M", "axes", "axis", "block_shape", "cond", "condition", "depth", "ends", "image_shape", "k", "len", "new_shape", "output_shape", "pad", "pads", "r",
    "dft_length", "frame_length", "frame_step", "repeats", "roi", "scales", "shape", "size", "sizes", "split", "starts", "steps", "stride", "t", "target_shape",
    "training_mode", "value",
}  # fmt: skip
# In these cases every input is a parameter (of the tile cases, the second).
ALL_PARAMETERS = ("test_blackmanwindow", "test_constantofshape", "test_hammingwindow", "test_hannwindow", "test_melweightmatrix", "test_range")


def prepared(name: str, model: ModelProto, inputs: Sequence[Any]) -> ModelProto:
    """The model with the values of its parameters inside."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for index, (entry, value) in enumerate(zip(model.graph.input, inputs, strict=False)):
        is_parameter = entry.name in PARAMETERS and (index or len(inputs) == 1)
        is_parameter = is_parameter or name.startswith(ALL_PARAMETERS) or (index == 1 and name.startswith("test_tile"))
        if is_parameter and value is not None:
            tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))
            copy.graph.initializer.add().CopyFrom(tensor)
            copy.graph.initializer[-1].name = entry.name
    return copy


def array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def expected_to_run(name: str, model: ModelProto) -> bool:
    values = [*model.graph.input, *model.graph.output]
    if any(not value.type.HasField("tensor_type") or value.type.tensor_type.elem_type in TYPES for value in values):
        return False
    return name not in CASES and not operators_of(model.graph) & MISSING


def operators_of(graph: onnx.GraphProto) -> set[str]:
    found = set()
    for node in graph.node:
        found.add(node.op_type)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found |= operators_of(attribute.g)
    return found


def check(model: ModelProto, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    network = import_onnx(model)
    given = dict(zip((entry.name for entry in model.graph.input), inputs, strict=False))
    found = run(network, {name: array(given[name]) for name in network.inputs})
    for output, value in zip(network.outputs, map(array, outputs), strict=True):
        assert found[output].dtype == value.dtype, f"{output} is {found[output].dtype}, not {value.dtype}"
        assert found[output].shape == value.shape, f"{output} has shape {found[output].shape}, not {value.shape}"
        relative, absolute = TOLERANCES.get(DataType(value.dtype.name), (0, 0))
        np.testing.assert_allclose(found[output].astype(float), value.astype(float), relative, absolute)


def is_recorded_release() -> bool:
    return tuple(map(int, onnx.__version__.split(".")[:2])) >= RELEASE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_node_cases_with_dynamic_sizes() -> None:
    """The same cases with every size of every input left open: refused, or the same result."""
    passed, failures = 0, []
    for name, model, data in ((case.name, case.model, case.data_sets) for case in cases()):
        if not expected_to_run(name, model):
            continue
        try:
            for inputs, outputs in data:
                open_model = prepared(name, model, inputs)
                for entry in open_model.graph.input:
                    for axis, dim in enumerate(entry.type.tensor_type.shape.dim):
                        dim.dim_param = f"{entry.name}_{axis}"
                check(open_model, inputs, outputs)
        except UnsupportedModel:
            continue
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {error}"[:500])
        else:
            passed += 1
    assert not failures, f"{len(failures)} cases fail\n" + "\n".join(failures[:40])
    if is_recorded_release():
        assert passed >= PASSING_DYNAMIC, f"only {passed} pass"


@pytest.mark.parametrize(("kind", "count"), [("pytorch-converted", 82), ("pytorch-operator", 35)])
def test_models_converted_from_pytorch(kind: str, count: int) -> None:
    """Small networks in opset 6, the oldest that is imported, with recorded results."""
    from onnx.backend.test.loader import load_model_tests

    found = load_model_tests(kind=kind)
    for case in found:
        folder = Path(case.model_dir) / "test_data_set_0"
        inputs, outputs = (
            [onnx.load_tensor(folder / f"{name}_{index}.pb") for index in range(len(list(folder.glob(f"{name}_*.pb"))))]
            for name in ("input", "output")
        )
        check(onnx.load(f"{case.model_dir}/model.onnx"), inputs, outputs)
    assert len(found) >= count


def test_missing_operators_are_missing() -> None:
    """The list above is honest: none of its operators has an importer."""
    from fusion.importer import registry

    domains = ("", "ai.onnx.ml", "ai.onnx.preview.training")
    present = [name for name in MISSING for domain in domains if registry.find(domain, name, 20) is not None]
    assert not present
