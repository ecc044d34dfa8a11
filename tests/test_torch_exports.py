"""Networks exported from torch in fp16 with a dynamic batch, built and captured on a GPU, against torch in fp32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import models
from fusion.importer import import_onnx
from fusion.passes import FusionOptions, optimize
from runtime.devices import open_device
from runtime.graph import GraphRunner
from runtime.views import view_layers
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Silent

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
EXPORTED = ("bert_base", "vit_b_16", "mobilenet_v2", "efficientnet_b0", "unet")
SLACK = 2.0  # our error against fp32 may be this many times that of torch's own fp16 run


@pytest.mark.parametrize(("name", "most"), [("resnet50", 57), ("bert_base", 90)])
def test_layer_counts(name: str, most: int, tmp_path: Path) -> None:
    """How many layers do work after fusion; views cost nothing."""
    pytest.importorskip("torchvision")
    pytest.importorskip("transformers")
    models.export(models.half(models.source(name)), tmp_path / "model.onnx")
    network = optimize(import_onnx(tmp_path / "model.onnx"), FusionOptions(device="cuda")).network
    views = view_layers(network)
    kinds = Counter(type(layer.op).__name__ for layer in network.layers if layer.name not in views)
    assert sum(kinds.values()) <= most, kinds


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EXPORTED)
def test_dynamic_batch(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("transformers")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    narrow, wide = models.half(models.source(name)), models.source(name)
    models.export(narrow, tmp_path / "model.onnx", 2, dynamic_batch=True)
    ranges = [{key: tuple(one.shape) for key, one in zip(narrow.input_names, narrow.inputs(batch), strict=True)} for batch in (1, 4, 6)]
    low, opt, high = ranges
    config = BuildConfig(min_shapes=low, opt_shapes=opt, max_shapes=high, optimization_level=1)
    device = open_device("0")
    engine = build(tmp_path / "model.onnx", config, device, log=Silent())
    context = engine.create_execution_context(device)
    half, full = narrow.module.cuda(), wide.module.cuda()
    runner = GraphRunner(context)
    stream = device.stream()
    for batch in (4, 1, 6, 3):
        sample = tuple(one.cuda() for one in narrow.inputs(batch))
        with torch.inference_mode():
            expected = full(*(one.float() if one.is_floating_point() else one for one in sample)).float()
            torchs = half(*sample).float()
        for key, tensor in zip(narrow.input_names, sample, strict=True):
            context.set_input_shape(key, tuple(tensor.shape))
            context.set_tensor_address(key, tensor)
        (output,) = engine.network.outputs
        dtype = getattr(torch, engine.network.tensors[output].dtype.value)
        result = torch.full(context.get_tensor_shape(output), float("nan"), device="cuda").to(dtype)
        context.set_tensor_address(output, result)
        torch.cuda.synchronize()
        context.execute_async_v3(stream)
        stream.synchronize()
        plain = result.clone()
        assert runner.prepare(), "the network must be captured"
        result.fill_(float("nan"))
        torch.cuda.synchronize()
        runner.enqueue(stream)
        stream.synchronize()
        assert torch.equal(plain, result), f"batch {batch}: a graph replay differs from plain execution"
        error, allowed = (float((one.float() - expected).norm() / expected.norm()) for one in (result, torchs))
        assert np.isfinite(error)
        assert error <= SLACK * allowed + 2e-4, f"batch {batch}: error {error:.2e}, torch's own {allowed:.2e}"
