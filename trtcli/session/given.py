"""What the command line gave: its settings shown, its files looked at before any work is done."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from trtcli.config import Config
from trtcli.files import check_folder, check_writable
from trtcli.log import Log

_SECTIONS = {
    "model": "Model Options",
    "build": "Build Options",
    "system": "System Options",
    "inference": "Inference Options",
    "report": "Reporting Options",
}


def echo_options(config: Config, log: Log) -> None:
    """Every setting, a line each, for ``--verbose``."""
    for section, title in _SECTIONS.items():
        log.verbose(f"=== {title} ===")
        for name, value in asdict(getattr(config, section)).items():
            log.verbose(f"{name}: {value}")


def check_files(config: Config) -> None:
    """Refuse missing inputs and unwritable outputs before any work is done, and load the plugins.

    Raises:
        ValueError, OSError: naming the flag and the file.
    """
    inference = config.inference
    given = [config.model.onnx, config.model.load_engine, config.model.refit_onnx, *inference.load_inputs.values(), *inference.ref_outputs.values()]
    given += [path for pair in inference.more_references for path in (*pair.inputs.values(), *pair.outputs.values())]
    for path in given:
        if path and not Path(path).is_file():
            what = "is a folder" if Path(path).is_dir() else "it does not exist"
            raise ValueError(f"Cannot open file {path}: {what}")
    build, report = config.build, config.report
    whole = (("--saveEngine", build.save_engine), ("--timingCacheFile", build.timing_cache_file))
    reports = (
        ("--exportTimes", report.export_times),
        ("--exportOutput", report.export_output),
        ("--exportProfile", report.export_profile),
        ("--exportLayerInfo", report.export_layer_info),
        ("--exportReport", report.export_report),
        *(("--saveDebugTensors", path) for path in report.save_debug.values()),
    )
    taken = {os.path.realpath(path): "is an input" for path in given if path}
    for flag, path in (*whole, *reports):
        if path:
            if not (flag == "--timingCacheFile" and os.path.isfile(path) and os.access(path, os.R_OK)):  # one to read is good enough
                check_writable(flag, path, special=(flag, path) in reports)
            real = os.path.realpath(path)
            if real in taken and not path.startswith("/dev/"):
                raise ValueError(f"{flag}={path}: this file {taken[real]}; give another one")
            taken[real] = f"is also what {flag} writes"
    for flag, wanted in (("--dumpRawBindingsToFile", report.dump_raw_bindings), ("--saveAllDebugTensors", report.save_all_debug)):
        if wanted and not config.inference.skip_inference:
            check_folder(flag)
    if config.system.plugins:
        from trtcli import plugins

        for path in config.system.plugins:
            plugins.load(path)
