"""What an engine keeps of its build, for reports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusion.network import Network
from runtime.views import with_missed_views
from trtcli.builder.measured import Chosen
from trtcli.builder.padding import PaddedChannels
from trtcli.builder.setting import Setting
from trtcli.report.building import fusion_lines
from trtcli.version import __version__


def build_record(model: Path | bytes, imported: Network, chosen: Chosen, padding: PaddedChannels, setting: Setting) -> dict[str, Any]:
    """What was built from what, with which options, and why layers are as they are."""
    data = model.read_bytes() if isinstance(model, Path) else model
    misses = with_missed_views(chosen.fused.misses, chosen.network, chosen.choices.sharing)
    for layer, more in padding.misses(chosen.network).items():
        misses[layer] = (*misses.get(layer, ()), *more)
    return {
        "trtcli": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": str(model) if isinstance(model, Path) else imported.name,
        "modelSha256": hashlib.sha256(data).hexdigest(),
        "options": _plain(asdict(setting.config)),
        "versions": dict(setting.versions),
        "nodes": len(imported.fates),
        "importedLayers": len(imported.layers),
        "layers": len(chosen.network.layers),
        "fusions": fusion_lines(chosen.fused),
        "misses": {layer: [_plain(asdict(miss)) for miss in near] for layer, near in misses.items()},  # for --whyNot
        "copiedParts": [list(part) for part in chosen.copied],
        "paddedChannels": padding.record(),
        "cacheHits": len(setting.timings.hits),
        "cacheMisses": setting.timings.misses,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
