"""ONNX's own node tests through all passes: nothing breaks, and results stay what the imported network gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.importer import ModelError, UnsupportedModel, import_onnx
from fusion.network import Network
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from fusion.validation import validate
from tests.onnx_cases import cases, value

# Relative and absolute. Fused layers round narrow types once instead of after every step.
TOLERANCES = {DataType.HALF: 5e-3, DataType.BF16: 4e-2, DataType.FLOAT: 1e-4, DataType.DOUBLE: 1e-6}


SHARDS = 2


def _cases(shard: int) -> Iterator[tuple[str, Network, Mapping[str, np.ndarray]]]:
    """Name, network and inputs of the cases that trtcli imports and that have tensors as inputs."""
    for case in cases()[shard::SHARDS]:
        try:
            network = import_onnx(case.model)
        except (ModelError, UnsupportedModel):
            continue
        given = {entry.name: value(one) for entry, one in zip(case.model.graph.input, case.data_sets[0][0], strict=False)}
        inputs = {name: one for name, one in given.items() if name in network.inputs and isinstance(one, np.ndarray)}
        if set(inputs) == set(network.inputs) and not network.tensors.keys() & {""}:
            yield case.name, network, inputs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_fused_node_cases(shard: int) -> None:
    """For both devices; in half precision the cases take turns."""
    compared, wrong = 0, []
    with np.errstate(all="ignore"):
        for number, (name, network, inputs) in enumerate(_cases(shard)):
            fused = {device: optimize(network, FusionOptions(device=device)).network for device in ("cpu", "cuda")}
            half = optimize(network, FusionOptions(device=list(fused)[number % 2], precision=DataType.HALF)).network
            for result in (*fused.values(), half):
                validate(result)
            try:
                expected = run(network, inputs)
            except (ValueError, TypeError, IndexError, KeyError):
                continue  # inputs that the case gives in another form
            compared += 1
            for device, result in fused.items():
                found = run(result, inputs)
                wrong += [f"{name} ({device}): {output}" for output in network.outputs if not _agree(found[output], expected[output])]
    assert not wrong
    assert compared > 1000 / SHARDS


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    tolerance = TOLERANCES.get(DataType(expected.dtype.name), 0)
    a, b = expected.astype(np.float64), found.astype(np.float64)
    return found.dtype == expected.dtype and np.allclose(b, a, tolerance, tolerance, equal_nan=True)
