"""``trtcli profile``: a benchmark with the time of every layer."""

from __future__ import annotations

from dataclasses import replace

from trtcli.commands import trtexec
from trtcli.log import Log
from trtcli.parse import Parsed


def run(parsed: Parsed, log: Log) -> int:
    """As ``trtcli --dumpProfile``."""
    report = replace(parsed.config.report, dump_profile=True)
    return trtexec.run(replace(parsed, config=replace(parsed.config, report=report)), log)
