"""``trtcli build``: an engine, and no inference."""

from __future__ import annotations

from dataclasses import replace

from trtcli.commands import trtexec
from trtcli.log import Log
from trtcli.parse import Parsed


def run(parsed: Parsed, log: Log) -> int:
    """As ``trtcli --skipInference``."""
    inference = replace(parsed.config.inference, skip_inference=True)
    return trtexec.run(replace(parsed, config=replace(parsed.config, inference=inference)), log)
