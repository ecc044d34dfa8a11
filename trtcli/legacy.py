"""Flags of trtexec that are not in :mod:`trtcli.options`: those that keep working with a warning, old ones above all, and those refused.

Nothing here is silently ignored: a deprecated flag is translated to today's flags, or does nothing because what it
asked for is the default now; a refused flag stops the run, unless its value asks for nothing (``--sparsity=disable``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Today = list[tuple[str, str | None]]  # today's flags with their values


def _nothing(value: str | None) -> Today:
    return []


@dataclass(frozen=True)
class Deprecated:
    """An old flag. ``today`` turns its value into today's flags (it may raise ValueError); ``advice`` ends the warning.

    ``takes_value``: ``yes``, ``no`` or ``maybe`` (``--calib`` came with and without a file). ``idle``: not an old flag, but what it asks for always holds.
    """

    advice: str
    today: Callable[[str | None], Today] = _nothing
    takes_value: str = "no"
    idle: bool = False


@dataclass(frozen=True)
class Refused:
    """A flag that trtcli does not do: why, and the values that ask for nothing and so are accepted."""

    reason: str
    neutral: tuple[str, ...] = ()
    takes_value: str = "maybe"


def _same(name: str) -> Callable[[str | None], Today]:
    return lambda value: [(name, value)]


def _workspace(value: str | None) -> Today:
    return [("memPoolSize", f"workspace:{value}")]


def _only(*allowed: str) -> Callable[[str | None], Today]:
    def check(value: str | None) -> Today:
        if value not in allowed:
            raise ValueError(f"{value!r} is not supported, only {' or '.join(allowed)}: use --shapes")
        return []

    return check


def _sparsity(value: str | None) -> Today:
    if value not in ("disable", "enable"):
        raise ValueError(f"{value!r} is not supported: weights are dense (disable and enable are accepted)")
    return []


def _tempfiles(value: str | None) -> Today:
    for part in (value or "").split(","):
        key, _, control = part.partition(":")
        if key not in ("in_memory", "temporary") or control not in ("allow", "deny"):
            raise ValueError(f"{part!r} is not in_memory:allow, in_memory:deny, temporary:allow or temporary:deny")
    return []


_CALIBRATION = "quantisation comes from the QuantizeLinear/DequantizeLinear nodes of the model"

DEPRECATED: dict[str, Deprecated] = {
    "workspace": Deprecated("use --memPoolSize=workspace:SIZE", _workspace, "yes"),
    "explicitBatch": Deprecated("the batch is always in the shapes"),
    "batch": Deprecated("the batch is always in the shapes", _only("1"), "yes"),
    "buildOnly": Deprecated("use --skipInference", _same("skipInference")),
    "minTiming": Deprecated("--avgTiming alone says how often a tactic is timed", takes_value="yes"),
    "nvtxMode": Deprecated("use --profilingVerbosity", _same("profilingVerbosity"), "yes"),
    "streams": Deprecated("use --infStreams", _same("infStreams"), "yes"),
    "useCudaGraph": Deprecated("CUDA graphs are the default; --noCudaGraph turns them off"),
    "noDataTransfers": Deprecated("no transfers is the default; --includeDataTransfers turns them on"),
    "separateProfileRun": Deprecated("layers are always profiled in a run of their own"),
    "stronglyTyped": Deprecated("the model's own types always rule unless --fp16 or --bf16 is given"),
    "directIO": Deprecated("inputs and outputs are read and written where they lie: no copy of them is made"),
    "timingCache": Deprecated("use --timingCacheFile", _same("timingCacheFile"), "yes"),
    "exportTimingCache": Deprecated("--timingCacheFile is read and written", _same("timingCacheFile"), "yes"),
    "saveProfile": Deprecated("use --exportProfile", _same("exportProfile"), "yes"),
    "sparsity": Deprecated("there are no sparse tactics, and --sparsity=enable only permits them: weights are taken as dense", _sparsity, "yes"),
    "heuristic": Deprecated("use --builderOptimizationLevel=2", lambda _: [("builderOptimizationLevel", "2")]),
    "best": Deprecated("use --fp16, or --bf16: one narrow type in an engine; " + _CALIBRATION, lambda _: [("fp16", None)]),
    "int8": Deprecated("layers run in INT8 where the model has QuantizeLinear/DequantizeLinear nodes, with or without it"),
    "fp8": Deprecated("layers run in FP8 where the model has QuantizeLinear/DequantizeLinear nodes, with or without it"),
    "int4": Deprecated("weights are INT4 where the model has DequantizeLinear or MatMulNBits nodes of that type, with or without it"),
    "calib": Deprecated(_CALIBRATION, takes_value="maybe"),
    "calibProfile": Deprecated(_CALIBRATION, takes_value="yes"),
    "minShapesCalib": Deprecated(_CALIBRATION, takes_value="yes"),
    "optShapesCalib": Deprecated(_CALIBRATION, takes_value="yes"),
    "maxShapesCalib": Deprecated(_CALIBRATION, takes_value="yes"),
    "weightless": Deprecated("use --stripWeights", lambda _: [("stripWeights", None)]),
    "allowGPUFallback": Deprecated("there is no DLA core; all layers run on the device", idle=True),
    "decomposableAttentions": Deprecated(
        "an attention that no fused kernel serves is computed layer by layer in any case", takes_value="yes", idle=True
    ),
    "excludeLeanRuntime": Deprecated("there is no lean runtime to embed", idle=True),
    "asyncFileReader": Deprecated("engine files are mapped into memory: weights are read when they are uploaded", idle=True),
    "tempdir": Deprecated("the builder writes no temporary files", takes_value="yes", idle=True),
    "tempfileControls": Deprecated("the builder writes no temporary files", _tempfiles, "yes", idle=True),
}

_LATER = "is not in this version of trtcli"
_DLA = "needs a DLA core, which trtcli does not use"
_SAFE = "belongs to the safety runtime, which trtcli does not have"
_PLUGIN = "loads compiled TensorRT plugins, which trtcli cannot run"
_TUNER = f"(TensorRT's global tuner) {_LATER}; --builderOptimizationLevel=5 searches most"

REFUSED: dict[str, Refused] = {
    "uff": Refused("UFF models are not supported; export the model to ONNX"),
    "deploy": Refused("Caffe models are not supported; export the model to ONNX"),
    "model": Refused("Caffe models are not supported; use --onnx=FILE"),
    "output": Refused("outputs are those of the ONNX model"),
    "tilingOptimizationLevel": Refused(_LATER, ("0",)),
    "l2LimitForTiling": Refused(_LATER, ("-1",)),
    "hardwareCompatibilityLevel": Refused(
        "an engine runs on GPUs of the compute capability that it was built on", ("none", "sameComputeCapability", "samecomputecapability")
    ),
    "versionCompatible": Refused(_LATER),
    "vc": Refused(_LATER),
    "leanDLLPath": Refused("there is no lean runtime"),
    "useRuntime": Refused("there is only the full runtime", ("full",)),
    "runtimePlatform": Refused("an engine runs on the platform that it was built on", ("SameAsBuild",)),
    "pluginInstanceNorm": Refused(_PLUGIN),
    "pi": Refused(_PLUGIN),
    "enablePluginOverride": Refused(_PLUGIN),
    "distributiveIndependence": Refused(_LATER),
    "preview": Refused("is TensorRT's own: trtcli has no preview features"),
    "allowWeightStreaming": Refused(_LATER),
    "weightStreamingBudget": Refused(_LATER, ("-2",)),
    "persistentCacheRatio": Refused(_LATER, ("0",)),
    "restricted": Refused(_SAFE),
    "useDLACore": Refused(_DLA, ("-1",)),
    "buildDLAStandalone": Refused(_DLA),
    "layerDeviceTypes": Refused(_DLA),
    "uint8AsymmetricQuantizationDLA": Refused(_DLA),
    "reportCapabilityDLA": Refused(_DLA),
    "adjustForDLA": Refused(_DLA),
    "safe": Refused(_SAFE),
    "consistency": Refused(_SAFE),
    "dumpKernelText": Refused(_SAFE),
    "safetyPlugins": Refused(_SAFE),
    "serialized": Refused(_SAFE),
    "std": Refused(_SAFE),
    "remoteAutoTuningConfig": Refused("trtcli times tactics on this machine only"),
    "cpuOnly": Refused("use --device=cpu"),
    "staticPlugins": Refused(_PLUGIN),
    "dynamicPlugins": Refused(_PLUGIN),
    "setPluginsToSerialize": Refused(_PLUGIN),
    "ignoreParsedPluginLibs": Refused(_PLUGIN),
    "tuneBuildRoutes": Refused(_TUNER),
    "tuneBuildRouteFile": Refused(_TUNER),
    "tuningSearch": Refused(_TUNER),
    "tuningCacheFile": Refused(_TUNER),
    "tuningTimeOut": Refused(_TUNER),
    "saveAllEngines": Refused(_TUNER),
    "dryRun": Refused(_TUNER),
    "continue": Refused(_TUNER),
    "helpBuildRoute": Refused(_TUNER),
    "setBuildRoute": Refused(_TUNER),
}
