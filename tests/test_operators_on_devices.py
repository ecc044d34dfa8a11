"""Operators that are compositions of layers, built into engines and run: the importer's tests again, on a device instead of the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from fusion.network import Network
from runtime.devices import open_device
from tests.fusion.importer import test_microsoft as microsoft
from tests.fusion.importer import test_recurrent as recurrent
from tests.fusion.importer import test_signal as signal
from tests.fusion.ops import test_random as random
from trtcli import onnx_backend
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Silent

CONFIG = BuildConfig(optimization_level=0, tf32=False)
CASES: Mapping[str, tuple[ModuleType, Callable[[], object]]] = {
    "fused products": (microsoft, microsoft.test_fused_products),
    "few bits": (microsoft, microsoft.test_weights_of_a_few_bits),
    "embeddings": (microsoft, lambda: microsoft.test_embeddings(False)),
    "channels last": (microsoft, microsoft.test_channels_last),
    "attention": (microsoft, lambda: microsoft.test_attention("both ends", 1)),
    "attention with past": (microsoft, microsoft.test_attention_with_past_and_bias),
    "several heads": (microsoft, lambda: microsoft.test_multi_head_attention(False)),
    "rotary": (microsoft, lambda: microsoft.test_rotary_embedding(1)),
    "grouped heads": (microsoft, lambda: microsoft.test_grouped_attention_of_a_prompt(1, 2)),
    "grouped heads with past": (microsoft, lambda: microsoft.test_grouped_attention_with_past(1)),
    "quantised cache": (microsoft, lambda: microsoft.test_grouped_attention_over_a_quantised_cache("PER_CHANNEL", 4, 3)),
    "inverses and distances": (microsoft, microsoft.test_products_with_something_behind),
    "other names": (microsoft, microsoft.test_the_standards_operators_under_another_name),
    "small compositions": (microsoft, microsoft.test_operators_without_a_kernel_in_onnx_runtime_for_the_cpu),
    "experts": (microsoft, lambda: microsoft.test_mixture_of_experts("swiglu", 2, 1)),
    "causal convolution": (microsoft, lambda: microsoft.test_causal_convolution(2, True)),
    "linear attention": (microsoft, microsoft.test_linear_attention),
    "caps and sinks": (microsoft, microsoft.test_grouped_attention_with_caps_and_sinks),
    "quantised products": (microsoft, microsoft.test_quantised_products),
    "quantised pointwise": (microsoft, lambda: microsoft.test_quantised_pointwise(np.int8)),
    "split transform": (signal, lambda: signal.test_long_transforms_are_split(1500, 1)),
    "Bluestein": (signal, lambda: signal.test_long_transforms_are_split(1031, 0)),
    "real inverse": (signal, lambda: signal.test_real_inverse(9, 17)),
    "frames": (signal, lambda: signal.test_stft(True, 64, 16, 1, False)),
    "activations": (recurrent, recurrent.test_values_of_alpha_go_to_the_functions_that_take_one),
    "batch first": (recurrent, lambda: recurrent.test_batch_first("LSTM")),
    "dropout": (random, random.test_dropout_in_training),
    "classes": (random, random.test_multinomial),
    "bernoulli": (random, random.test_bernoulli),
}


def on_device(monkeypatch: pytest.MonkeyPatch, module: ModuleType, device: str) -> None:
    """Lets ``module`` run the model that it imported last on ``device``."""
    models: dict[int, onnx.ModelProto] = {}
    kept: list[Network] = []
    real = module.import_onnx

    def importing(model: onnx.ModelProto) -> Network:
        network = real(model)
        kept.append(network)
        models[id(network)] = model
        return network

    def running(network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        shapes = {name: inputs[name].shape for name in network.inputs if not network.tensors[name].is_static}
        engine = build(models[id(network)].SerializeToString(), replace(CONFIG, shapes=shapes), open_device(device), log=Silent())
        context = engine.create_execution_context(open_device(device))
        for name, shape in shapes.items():
            context.set_input_shape(name, shape)
        return dict(context.execute({name: inputs[name] for name in network.inputs}))

    monkeypatch.setattr(module, "import_onnx", importing)
    monkeypatch.setattr(module, "run", running)


@pytest.mark.parametrize("name", CASES)
def test_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, case = CASES[name]
    on_device(monkeypatch, module, "cpu")
    case()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, case = CASES[name]
    on_device(monkeypatch, module, "0")
    case()


@pytest.mark.gpu
def test_random_numbers_are_the_same_on_both_devices() -> None:
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node(op, [], [op], shape=[1000], seed=2.0) for op in ("RandomUniform", "RandomNormal")], "g", [],
            [onnx.helper.make_tensor_value_info(op, onnx.TensorProto.FLOAT, [1000]) for op in ("RandomUniform", "RandomNormal")],
        ), opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10,
    )  # fmt: skip
    first, second = (onnx_backend.prepare(model, device, config=CONFIG).run([]) for device in ("CPU", "CUDA"))
    assert np.array_equal(first[0], second[0])
    np.testing.assert_allclose(first[1], second[1], 1e-5, 1e-6)
