"""Speech detectors with branches inside."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.importer import import_onnx
from runtime.engine import Engine
from runtime.graph import compare_replay
from tests.models import SPEECH_MODELS, onnxruntime_outputs, wheel_model
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Log


@pytest.mark.parametrize("name", SPEECH_MODELS)
def test_speech_detector(name, cpu, tmp_path):
    _speech(name, cpu, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPEECH_MODELS)
def test_speech_detector_on_a_gpu(name, tmp_path):
    from runtime.devices import open_device

    _speech(name, open_device("0"), tmp_path)


def _speech(name: str, device, tmp_path) -> None:
    """silero-vad: a branch per sampling rate, each with nested ones, around an LSTM."""
    path = wheel_model(name)
    network = import_onnx(path)

    def shapes(samples):
        return {"input": (1, samples), "state": (2, 1, 128)}

    config = BuildConfig(optimization_level=0, tf32=False, min_shapes=shapes(288), opt_shapes=shapes(576), max_shapes=shapes(576))
    build(path, config, device, log=Log(to_stderr=True)).save(tmp_path / "e.engine")
    context = Engine.load(tmp_path / "e.engine").create_execution_context(device)
    random = np.random.default_rng(0)
    for rate, samples in ((16000, 576), (8000, 288), (16000, 576)):
        inputs = {
            "input": random.standard_normal((1, samples)).astype(np.float32) * 0.1,
            "state": random.standard_normal((2, 1, 128)).astype(np.float32) * 0.1,
            **({"sr": np.array(rate)} if "sr" in network.inputs else {}),
        }
        expected = onnxruntime_outputs(path, inputs)
        found = context.execute(inputs)
        for output, array in expected.items():
            assert found[output].shape == array.shape
            np.testing.assert_allclose(found[output], array, rtol=1e-3, atol=1e-5)
        assert compare_replay(context, inputs).differing == ()
