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
from trtcli.files import check_writable
from trtcli.options import OPTIONS

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
    model: str | os.PathLike[str] | bytes | ModelProto, config: BuildConfig | None = None, device: str | int = "auto"
) -> Engine:
    """An engine for an ONNX model, given as a file, its bytes or a ModelProto.

    ``device`` is what ``--device`` takes, or the number of a GPU. The engine is also saved where ``config.save_engine`` says (without weights if ``config.strip_weights``).

    Raises:
        ValueError: the model, its shapes or the options do not fit; the text says which.
        TypeError: the model is none of these, or ``config`` is no BuildConfig.
        OSError: the engine cannot be saved.
        runtime.device.DeviceError: there is no such device.
    """
    config = BuildConfig() if config is None else config
    if not isinstance(config, BuildConfig):
        raise TypeError(f"{type(config).__name__} is no BuildConfig: give trtcli.BuildConfig(...)")
    _check(config)
    found = open_device(str(device))
    with found.current():
        engine = build_engine(_source(model), config, found, log=_Logger())
    if config.save_engine:
        from trtcli.refitting import save_engine

        save_engine(engine, config)
    return engine


def refit(engine: Engine, model: str | os.PathLike[str] | bytes | ModelProto) -> Engine:
    """``engine`` with the weights of ``model``, which must be the model that it was built from but for its weights. Nothing is timed.

    Raises:
        ValueError: the model is another network; the text says where they differ.
    """
    from trtcli.refitting import refit as refit_engine

    return refit_engine(engine, _source(model), _Logger())


def _check(config: BuildConfig) -> None:
    """Refuse single values that the command line would refuse; the builder sees to the others."""
    for field in ("save_engine", "timing_cache_file"):
        if path := getattr(config, field):
            check_writable(f"BuildConfig: {field}", path, special=False)
    for field, pair in (("disable_fusion", ("pointwise", "relu1")), ("pin_tactic", ("conv1", "cpu.conv.im2col"))):
        for one in getattr(config, field):
            if isinstance(one, str) or len(one) != 2:
                raise ValueError(f"BuildConfig: {field}: {one!r} is no pair; give pairs such as {pair!r}")
    for field in ("input_io_formats", "output_io_formats"):
        if isinstance(getattr(config, field), str) or not all(isinstance(one, str) for one in getattr(config, field)):
            raise ValueError(f"BuildConfig: {field}={getattr(config, field)!r}: give a tuple with a text per tensor, such as ('fp16:hwc8',)")
    if isinstance(config.tactic_sources, str):
        raise ValueError(f"BuildConfig: tactic_sources={config.tactic_sources!r}: give a tuple of names, such as ('CUDNN',)")
    for shapes in (config, *config.profiles):
        for field in ("min_shapes", "opt_shapes", "max_shapes", "shapes"):
            for name, extents in (getattr(shapes, field, None) or {}).items():
                if isinstance(extents, str) or not all(hasattr(extent, "__index__") for extent in extents):
                    raise ValueError(f"BuildConfig: {field}: input {name!r}: {extents!r} is no shape; give a tuple of integers, such as (1, 3, 224, 224)")
    for option in OPTIONS:
        section, _, field = option.target.partition(".")
        value = getattr(config, field, None) if section == "build" and option.read is not None else None
        if isinstance(value, int | float | str) and value != "":
            try:
                option.read(str(value))  # type: ignore[misc]
            except ValueError as error:
                raise ValueError(f"BuildConfig: {field}={value!r}: {error}") from None


def _source(model: str | os.PathLike[str] | bytes | ModelProto) -> Path | bytes:
    if isinstance(model, str | os.PathLike):
        return Path(model)
    if isinstance(model, bytes | bytearray | memoryview):
        return bytes(model)
    if not hasattr(model, "SerializeToString"):
        raise TypeError(f"{type(model).__name__} is no model: give a file, its bytes or an onnx.ModelProto")
    return model.SerializeToString()
