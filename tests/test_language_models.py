"""Blocks of language and diffusion models: how few layers they become, and the results, beside ONNX Runtime's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from fusion.validation import validate
from runtime.devices import open_device
from runtime.views import view_layers
from tests.language_models import BLOCKS, Block, inputs_of, model
from tests.models import onnxruntime_outputs
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Silent

NAMES = list(BLOCKS)


def _working(network: Network) -> Counter[str]:
    views = view_layers(network)
    return Counter(type(layer.op).__name__ for layer in network.layers if layer.name not in views)


@pytest.mark.parametrize("name", NAMES)
def test_few_layers(name: str) -> None:
    """Scores never go through memory, and no tensor is transposed but what a cache holds heads first."""
    block = BLOCKS[name]
    result = optimize(import_onnx(model(block).SerializeToString()), FusionOptions(device="cuda"))
    validate(result.network)
    kinds = _working(result.network)
    assert sum(kinds.values()) == block.layers, kinds
    assert not {"Softmax", "Expand", "Slice", "Reduce"} & set(kinds)
    inputs = inputs_of(block)
    for tensor, wanted in run(import_onnx(model(block).SerializeToString()), inputs).items():
        np.testing.assert_allclose(run(result.network, inputs)[tensor], wanted, 2e-4, 2e-4, err_msg=tensor)


@pytest.mark.parametrize("name", NAMES)
def test_narrow_models_fuse_alike(name: str) -> None:
    """float16 models, and float32 ones made narrow."""
    block = BLOCKS[name]
    for dtype, precision in ((np.float16, None), (np.float32, DataType.HALF)):
        result = optimize(import_onnx(model(block, dtype).SerializeToString()), FusionOptions(device="cuda", precision=precision))
        found = _working(result.network)
        casts = len((*block.inputs, *block.outputs)) if precision is not None else 0
        assert sum(found.values()) <= block.layers + casts, found
        assert not {"Softmax", "Expand", "Slice"} & set(found)


def _built(block: Block, device_name: str, dtype: type, level: int = 1, **options: object) -> dict[str, np.ndarray]:
    device = open_device(device_name)
    inputs = inputs_of(block, dtype)
    shapes = {name: value.shape for name, value in inputs.items()}
    dynamic = any(isinstance(dim, str) for shape in block.inputs.values() for dim in shape)
    ranges = {"min_shapes": shapes, "opt_shapes": shapes, "max_shapes": shapes} if dynamic else {}
    config = BuildConfig(optimization_level=level, tf32=False, **ranges, **options)  # type: ignore[arg-type]
    engine = build(model(block, dtype).SerializeToString(), config, device, log=Silent())
    return engine.create_execution_context(device).execute(inputs)


@pytest.mark.parametrize("name", NAMES)
def test_results(name: str) -> None:
    block = BLOCKS[name]
    found = _built(block, "cpu", np.float32)
    for tensor, wanted in onnxruntime_outputs(model(block), inputs_of(block)).items():
        np.testing.assert_allclose(found[tensor], wanted, 2e-4, 2e-4, err_msg=tensor)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "dtype"), [*((name, np.float16) for name in NAMES), ("llama with a cache", np.float32), ("keras", np.float32)])
def test_results_on_the_gpu(name: str, dtype: type) -> None:
    block = BLOCKS[name]
    found = _built(block, "0", dtype, level=0)  # the kernels that are thought the fastest
    inputs = {name: value.astype(np.float32) if value.dtype.kind == "f" else value for name, value in inputs_of(block, dtype).items()}
    limit = 2e-4 if dtype is np.float32 else 1e-2
    for tensor, wanted in onnxruntime_outputs(model(block), inputs).items():
        error = np.linalg.norm(found[tensor].astype(np.float64) - wanted) / np.linalg.norm(wanted)
        assert error <= limit, f"{tensor}: {error:.2e}"
