"""ONNX's own node tests through all passes: nothing breaks, and results stay what the imported network gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from onnx import numpy_helper

from fusion.dtypes import DataType
from fusion.importer import ModelError, UnsupportedModel, import_onnx
from fusion.network import Network
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from fusion.validation import validate

# Relative and absolute. Fused layers round narrow types once instead of after every step.
TOLERANCES = {DataType.HALF: 5e-3, DataType.BF16: 4e-2, DataType.FLOAT: 1e-4, DataType.DOUBLE: 1e-6}


def _cases() -> Iterator[tuple[str, Network, Mapping[str, np.ndarray]]]:
    """Name, network and inputs of the cases that trtcli imports and that have data."""
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        try:
            network = import_onnx(case.model)
        except (ModelError, UnsupportedModel):
            continue
        given = dict(zip((entry.name for entry in case.model.graph.input), case.data_sets[0][0], strict=False))
        try:
            inputs = {
                name: value if isinstance(value, np.ndarray) else numpy_helper.to_array(value)
                for name, value in given.items()
                if name in network.inputs
            }
        except (TypeError, AttributeError):
            continue  # sequences and optionals
        if set(inputs) == set(network.inputs) and not network.tensors.keys() & {""}:
            yield case.name, network, inputs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fused_node_cases(device: str) -> None:
    compared, wrong = 0, []
    for name, network, inputs in _cases():
        result = optimize(network, FusionOptions(device=device)).network
        validate(result)
        validate(optimize(network, FusionOptions(device=device, precision=DataType.HALF)).network)
        with np.errstate(all="ignore"):
            try:
                expected = run(network, inputs)
            except (ValueError, TypeError, IndexError, KeyError):
                continue  # inputs that the case gives in another form
            found = run(result, inputs)
        compared += 1
        for output in network.outputs:
            tolerance = TOLERANCES.get(DataType(expected[output].dtype.name), 0)
            a, b = expected[output].astype(np.float64), found[output].astype(np.float64)
            if found[output].dtype != expected[output].dtype or not np.allclose(
                b, a, tolerance, tolerance, equal_nan=True
            ):
                wrong.append(f"{name}: {output}")
    assert not wrong
    assert compared > 1000
