"""The build: model file -> network -> fused network -> workloads -> tactics -> engine. :mod:`trtcli.builder.pipeline` is it from top to bottom."""

from trtcli.builder.pipeline import build
from trtcli.builder.setting import BuildError, Log, Progress

__all__ = ["BuildError", "Log", "Progress", "build"]
