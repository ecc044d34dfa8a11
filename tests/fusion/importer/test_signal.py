"""Fourier transforms against NumPy's, STFT and mel weights against ONNX Runtime."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fusion.importer import UnsupportedModel, import_onnx
from fusion.network import Network
from fusion.reference import run
from fusion.serial import from_json, to_json
from tests.models import onnxruntime_outputs

KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float64): TensorProto.DOUBLE}


def model_of(op: str, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray], shapes: dict[str, list[object]] | None = None,
             opset: int = 20, **attributes: object) -> onnx.ModelProto:  # fmt: skip
    """One node; names that start with ``_`` are left out."""
    names = ["" if name.startswith("_") else name for name in (*inputs, *constants)]
    infos = [helper.make_tensor_value_info(name, KINDS[value.dtype], (shapes or {}).get(name, value.shape)) for name, value in inputs.items()]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items() if not name.startswith("_")]
    graph = helper.make_graph([helper.make_node(op, names, ["y"], "node", **attributes)], "g", infos, [helper.make_empty_tensor_value_info("y")], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def dft(x: np.ndarray, length: int | None = None, axis: int = -2, **attributes: object) -> np.ndarray:
    constants = {"_length" if length is None else "length": np.int64(length or 0), "axis": np.int64(axis)}
    network = import_onnx(model_of("DFT", {"x": x}, constants, **attributes))
    assert [from_json(json.loads(json.dumps(to_json(layer)))) for layer in network.layers] == list(network.layers)
    return run(network, {"x": x})["y"]


def pairs(x: np.ndarray) -> np.ndarray:
    return np.stack([x.real, x.imag], -1)


def close(found: np.ndarray, wanted: np.ndarray, limit: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert np.linalg.norm(found - wanted) <= limit * max(1e-3, float(np.linalg.norm(wanted)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(1, 40), batch=st.integers(1, 3), parts=st.integers(1, 2), axis=st.integers(0, 1), change=st.integers(-3, 5),
       inverse=st.booleans(), onesided=st.booleans())  # fmt: skip
def test_dft(n: int, batch: int, parts: int, axis: int, change: int, inverse: bool, onesided: bool) -> None:
    random, length = np.random.default_rng(n), max(1, n + change)
    onesided = onesided and parts == 1 and not inverse
    x = random.standard_normal((n, batch, parts) if axis == 0 else (batch, n, parts)).astype(np.float32)
    signal = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    wanted = (np.fft.ifft if inverse else np.fft.fft)(signal, length, axis)
    wanted = np.take(wanted, range(length // 2 + 1), axis) if onesided else wanted
    close(dft(x, length, axis, inverse=int(inverse), onesided=int(onesided)), pairs(wanted))


@pytest.mark.parametrize("n", [1500, 2048, 1031, 2 * 1031])
@pytest.mark.parametrize("inverse", [0, 1])
def test_long_transforms_are_split(n: int, inverse: int) -> None:
    """Products of small numbers, a prime, and one that needs both."""
    x = np.random.default_rng(n).standard_normal((2, n, 2))
    signal = x[..., 0] + 1j * x[..., 1]
    close(dft(x, inverse=inverse), pairs((np.fft.ifft if inverse else np.fft.fft)(signal)), 1e-12)
    network = import_onnx(model_of("DFT", {"x": x}, {"_l": np.int64(0)}, inverse=inverse))
    assert max(value.size for value in network.constants.values()) <= 4 * 1024 * 1024


@pytest.mark.parametrize(("have", "n"), [(9, None), (9, 17), (4, 17), (9, 10), (1030, 2058), (700, 1400)])
def test_real_inverse(have: int, n: int | None) -> None:
    x = np.random.default_rng(have).standard_normal((3, have, 2))
    wanted = np.fft.irfft(x[..., 0] + 1j * x[..., 1], n)[..., None]
    close(dft(x, n, inverse=1, onesided=1), wanted, 1e-12)


def test_dynamic_lengths() -> None:
    x = np.random.default_rng(0).standard_normal((2, 12, 1)).astype(np.float32)
    network = import_onnx(model_of("DFT", {"x": x}, {"_l": np.int64(0)}, {"x": ["N", "L", 1]}, onesided=1))
    for length in (12, 7):
        cut = x[:, :length]
        close(run(network, {"x": cut})["y"], pairs(np.fft.rfft(cut[..., 0])))
    with pytest.raises(UnsupportedModel, match="must be known"):
        import_onnx(model_of("DFT", {"x": x}, {"_l": np.int64(0)}, {"x": ["N", "L", 1]}, inverse=1))


def stft_network(window: bool, length: int, step: int, onesided: int, dynamic: bool) -> tuple[Network, onnx.ModelProto, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((2, 400, 1)).astype(np.float32)
    constants = {"step": np.int64(step), "window" if window else "_w": np.hanning(length).astype(np.float32), "length": np.int64(length)}
    shapes: dict[str, list[object]] = {"x": ["N", "L", 1]} if dynamic else {}
    model = model_of("STFT", {"x": x}, constants, shapes, 17, onesided=onesided)
    return import_onnx(model), model, x


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("window", "length", "step", "onesided"), [(True, 64, 16, 1), (True, 25, 10, 0), (False, 64, 64, 1)])
def test_stft(window: bool, length: int, step: int, onesided: int, dynamic: bool) -> None:
    network, model, x = stft_network(window, length, step, onesided, dynamic)
    for size in (400, 237) if dynamic else (400,):
        given = {"x": np.ascontiguousarray(x[:, :size])}
        close(run(network, given)["y"], onnxruntime_outputs(model, given)["y"], 2e-5)


def test_windows_become_part_of_the_matrix() -> None:
    """Framing and one product."""
    network, _, _ = stft_network(True, 64, 16, 1, False)
    assert [layer.op.layer_type for layer in network.layers if layer.op.layer_type != "Shuffle"] == ["Gather", "MatrixMultiply"]


@pytest.mark.parametrize(("bins", "length", "rate", "low", "high"), [(20, 512, 16000, 20.0, 8000.0), (5, 16, 8192, 0.0, 4096.0)])
def test_mel_weights(bins: int, length: int, rate: int, low: float, high: float) -> None:
    constants = {"bins": np.int64(bins), "length": np.int64(length), "rate": np.int64(rate), "low": np.float32(low), "high": np.float32(high)}
    model = model_of("MelWeightMatrix", {}, constants)
    close(run(import_onnx(model), {})["y"], onnxruntime_outputs(model, {})["y"], 1e-6)
