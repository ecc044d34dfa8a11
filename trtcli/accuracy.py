"""Outputs against reference files (``--loadRefOutputs``): one loss per output, by the algorithm of ``--accuracyAlgorithm``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fusion.formats import Format
from trtcli.config import InferenceConfig
from trtcli.log import Log

ALGORITHMS = ("l0", "l1", "l2", "lInf", "cos")


def outputs_agree(
    config: InferenceConfig, references: Mapping[str, str], outputs: Mapping[str, np.ndarray], formats: Mapping[str, Format], log: Log
) -> bool:
    """Whether the loss of every output that has a file among the ``references`` is below ``--accuracyThreshold``; a line for each. Files hold
    outputs as they lie in memory, which ``formats`` say.

    Raises:
        ValueError: a file has the wrong size, or none is for an output.
        OSError: a file cannot be read.
    """
    check_names(references, outputs)
    passed = True
    for name, path in references.items():
        if name not in outputs:
            log.warning(f"--loadRefOutputs: no output is named {name!r}; skipped. The outputs are {', '.join(outputs)}")
            continue
        found = loss(outputs[name], _reference(path, name, outputs[name], formats.get(name)), config.accuracy_algorithm, config.atol, config.rtol)
        good = found < config.accuracy_threshold  # False for NaN
        passed = passed and good
        line = f"Accuracy of {name}: {config.accuracy_algorithm} loss {found:.6g}, threshold {config.accuracy_threshold:g}"
        (log.info if good else log.error)(f"{line}: {'passed' if good else 'FAILED'}")
    return passed


def check_names(references: Iterable[str], outputs: Iterable[str]) -> None:
    """Refuse ``references`` of which none is among the ``outputs``: a comparison of nothing would pass.

    Raises:
        ValueError: with the names.
    """
    if not set(references) & set(outputs):
        raise ValueError(f"--loadRefOutputs: no output is named {', '.join(references)}; the outputs are {', '.join(outputs)}")


def loss(found: np.ndarray, reference: np.ndarray, algorithm: str, atol: float, rtol: float) -> float:
    """How far ``found`` is from ``reference``, in float64.

    ``l0``: share of elements with ``|found - reference| > atol + rtol * |reference|``; ``l1``: mean absolute error; ``l2``: mean squared error;
    ``lInf``: largest absolute error; ``cos``: one minus the cosine of the angle between both. Equal infinities and NaN at the same place count
    as equal. Empty tensors have no loss.
    """
    a, b = (np.asarray(one).astype(np.float64).ravel() for one in (found, reference))
    if not a.size:
        return 0.0
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(same, 0.0, np.abs(a - b))
        if algorithm == "l0":
            return float(1.0 - np.mean(same | (error <= atol + rtol * np.abs(b))))  # a NaN on one side is no small error
        if algorithm == "l1":
            return float(error.mean())
        if algorithm == "l2":
            return float(np.square(error).mean())
        if algorithm == "lInf":
            return float(error.max())
        if same.all():
            return 0.0
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return float(1.0 - a @ b / lengths) if lengths else 1.0  # a zero vector has no direction


def _reference(path: str, name: str, like: np.ndarray, layout: Format | None) -> np.ndarray:
    if layout is not None:
        like = layout.pack(like)
    size = Path(path).stat().st_size
    if size != like.nbytes:
        shape = "x".join(map(str, like.shape)) or "scalar"
        raise ValueError(
            f"Unexpected file size for reference output file: {path}. Output {name!r} is {like.nbytes} bytes ({shape} {like.dtype}), but the "
            f"file has {size} bytes. Check the shape (--shapes) and the data type"
        )
    array = np.fromfile(path, like.dtype).reshape(like.shape)
    return array if layout is None else layout.unpack(array)
