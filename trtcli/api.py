"""For programs that embed trtcli."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.devices import open_device
from runtime.engine import Engine
from trtcli.builder import build as build_engine
from trtcli.config import BuildConfig

if TYPE_CHECKING:
    from onnx import ModelProto


class _Logger:
    """The build's lines as records of the standard logger ``trtcli``."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("trtcli")
        self.info = self._logger.info
        self.verbose = self._logger.debug
        self.warning = self._logger.warning


def build(
    model: str | os.PathLike[str] | bytes | ModelProto, config: BuildConfig | None = None, device: str = "auto"
) -> Engine:
    """An engine for an ONNX model, given as a file, its bytes or a ModelProto.

    ``device`` is what ``--device`` takes. ``config.save_engine`` is left to ``Engine.save``.

    Raises:
        ValueError: the model, its shapes or the options do not fit; the text says which.
        runtime.device.DeviceError: there is no such device.
    """
    return build_engine(_source(model), config or BuildConfig(), open_device(device), log=_Logger())


def refit(engine: Engine, model: str | os.PathLike[str] | bytes | ModelProto) -> Engine:
    """``engine`` with the weights of ``model``, which must be the model that it was built from but for its weights. Nothing is timed.

    Raises:
        ValueError: the model is another network; the text says where they differ.
    """
    from trtcli.refitting import refit as refit_engine

    return refit_engine(engine, _source(model), _Logger())


def _source(model: str | os.PathLike[str] | bytes | ModelProto) -> Path | bytes:
    if isinstance(model, str | os.PathLike):
        return Path(model)
    return model if isinstance(model, bytes) else model.SerializeToString()
