"""The networks of this folder on a GPU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fusion.dtypes import DataType
from runtime.graph import compare_replay
from tests.control_flow.networks import BRANCH, DEEP, GROWING, LOOP, SCAN, made, masked, parse
from tests.models import onnxruntime_outputs
from trtcli.config import BuildConfig


@pytest.mark.gpu
@pytest.mark.parametrize("text", [BRANCH, LOOP, GROWING, SCAN, DEEP], ids=["branch", "loop", "growing", "scan", "deep"])
def test_control_flow_on_a_gpu(text, tmp_path):
    _on_a_gpu(parse(text), tmp_path)


@pytest.mark.gpu
def test_data_dependent_shapes_on_a_gpu(tmp_path):
    _on_a_gpu(masked(), tmp_path)
    _on_a_gpu(parse("g (float[2, 12] x) => (float[n] y, int64[m] i, int64[q] j, int64[c] k) { r = Floor(x) y, i, j, k = Unique(r) }"), tmp_path)
    _on_a_gpu(parse("""g (float[1, 40, 4] x, float[1, 2, 40] s) => (int64[k, 3] kept)
        <int64 most = {5}, float overlap = {0.4}, float least = {0.3}> { kept = NonMaxSuppression(x, s, most, overlap, least) }""", 11), tmp_path)


def _on_a_gpu(model: onnx.ModelProto, tmp_path) -> None:
    from runtime.devices import open_device

    device = open_device("0")
    shapes = {"x": (6, 4)} if model.graph.input[0].type.tensor_type.shape.dim[0].dim_param else {}
    config = BuildConfig(optimization_level=0, tf32=False, opt_shapes=shapes)
    engine = made(model, device, tmp_path, config)
    context = engine.create_execution_context(device)
    random = np.random.default_rng(3)
    for sign in (1, -1):
        inputs = {}
        for name in engine.network.inputs:
            kind = engine.network.tensors[name]
            shape = shapes.get(name, tuple(int(dim) for dim in kind.shape) if name not in shapes else ())
            values = np.array(3) if kind.dtype.is_integer else sign * (random.random(shape) - 0.3)
            inputs[name] = np.asarray(values > 0 if kind.dtype is DataType.BOOL else values, kind.dtype.numpy)
        expected = onnxruntime_outputs(model, inputs)
        found = context.execute(inputs)
        for name, array in expected.items():
            assert found[name].shape == array.shape
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
        assert compare_replay(context, inputs).differing == ()
