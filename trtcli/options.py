"""The table of options: every flag of every command, once.

``since`` says where the flag comes from: ``11`` is trtexec of TensorRT 11, ``8-10`` an older one, ``trtcli`` our own.
Flags that are only understood for the sake of old scripts, or refused, are in :mod:`trtcli.legacy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trtcli.values import (
    BatchRange,
    Choice,
    Choices,
    Device,
    FileSpec,
    FusionRules,
    Integer,
    IOFormats,
    LayerPrecisions,
    MemoryPools,
    Names,
    Number,
    Percentiles,
    Pins,
    ShapeSpec,
    Share,
    TacticSources,
    Text,
)  # fmt: skip

Reader = Callable[[str], Any]

MODEL, SHAPES, BUILD, CACHE, SYSTEM, RUN, MEASURE, REPORT, OUTPUT = GROUPS = (
    "Model", "Shapes", "Build", "Tactics and timing cache", "System", "Inference", "Measurement", "Reports", "Output",
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One flag.

    Attributes:
        name: as typed, without the dashes.
        group: heading in the help; commands take whole groups.
        target: ``section.field`` of :class:`trtcli.config.Config` that it sets.
        help: one line.
        read: reader of its value, or None for a switch.
        sets: what a switch sets.
        default: shown in the help.
        since: ``11``, ``8-10`` or ``trtcli``.
        repeatable: may be given several times; values are joined.
    """

    name: str
    group: str
    target: str
    help: str
    read: Reader | None = None
    sets: object = True
    default: str = ""
    since: str = "11"
    repeatable: bool = False

    @property
    def metavar(self) -> str:
        """What stands for the value in the help; empty for a switch."""
        return "" if self.read is None else self.read.metavar  # type: ignore[attr-defined]

    @property
    def allowed(self) -> str:
        """The values allowed, as text."""
        return "" if self.read is None else self.read.allowed  # type: ignore[attr-defined]


_MS = Number(0, 3.6e6, "MS")

OPTIONS: tuple[Option, ...] = (
    Option("onnx", MODEL, "model.onnx", "ONNX model to build an engine from", Text()),
    Option("loadEngine", MODEL, "model.load_engine", "engine file to run instead", Text()),
    Option("refitFromOnnx", MODEL, "model.refit_onnx", "replace the engine's weights by those of this model", Text()),
    Option("minShapes", SHAPES, "build.min_shapes", "smallest input shapes of the optimization profile", ShapeSpec()),
    Option("optShapes", SHAPES, "build.opt_shapes", "shapes that tactics are timed at", ShapeSpec()),
    Option("maxShapes", SHAPES, "build.max_shapes", "largest input shapes", ShapeSpec()),
    Option("shapes", SHAPES, "inference.shapes",
        "input shapes to run at; with no other: the profile", ShapeSpec(), default="optShapes"),
    Option("profile", SHAPES, "build.profiles",
        "the three flags after it are optimization profile N", Integer(0, 63), repeatable=True),
    Option("saveEngine", BUILD, "build.save_engine", "write the engine", Text()),
    Option("skipInference", BUILD, "inference.skip_inference", "stop after the build"),
    Option("builderOptimizationLevel", BUILD, "build.optimization_level",
        "effort, 0 (first tactic that works) to 5 (time all)", Integer(0, 5), default="3"),
    Option("maxAuxStreams", BUILD, "build.max_aux_streams",
        "extra streams inside an inference; 0: none", Integer(0, 15, none=-1), default="heuristic"),
    Option("memPoolSize", BUILD, "build.memory_pools",
        "limits per layer (workspace, tacticSharedMem), in MiB", MemoryPools(), default="the device's"),
    Option("inputIOFormats", BUILD, "build.input_io_formats",
        "data types and layouts of the inputs in memory", IOFormats(), default="the model's, chw"),
    Option("outputIOFormats", BUILD, "build.output_io_formats",
        "data types and layouts of the outputs in memory", IOFormats(), default="the model's, chw"),
    Option("noTF32", BUILD, "build.tf32", "float32 products keep all their bits", sets=False),
    Option("fp16", BUILD, "build.fp16", "compute in FP16 where the model says FP32 (sensitive layers stay)", since="trtcli"),
    Option("bf16", BUILD, "build.bf16", "the same in BF16; one of the two", since="trtcli"),
    Option("layerPrecisions", BUILD, "build.layer_precisions",
        "types of single layers or ONNX nodes: fp32, fp16, bf16", LayerPrecisions(), since="8-10", repeatable=True),
    Option("layerOutputTypes", BUILD, "build.layer_output_types",
        "types that results of layers are rounded to", LayerPrecisions(), since="8-10", repeatable=True),
    Option("precisionConstraints", BUILD, "build.precision_constraints",
        "what the two flags above are worth", Choice(("none", "prefer", "obey")), default="none", since="8-10"),
    Option("profilingVerbosity", BUILD, "build.profiling_verbosity",
        "layer information kept",
        Choice(("none", "layer_names_only", "detailed"), old=(("default", "layer_names_only"), ("verbose", "detailed"))),
        default="layer_names_only"),
    Option("disableFusion", BUILD, "build.disable_fusion",
        "turn a fusion rule off, everywhere or at one layer",
        FusionRules(), since="trtcli", repeatable=True),
    Option("markDebug", BUILD, "build.mark_debug",
        "tensors that no fusion may remove, for --saveDebugTensors", Names("TENSOR[,...]"), repeatable=True),
    Option("markUnfusedTensorsAsDebugTensors", BUILD, "build.mark_unfused_debug",
        "all tensors that fusion has left are debug tensors"),
    Option("refit", BUILD, "build.refit", "weights can be replaced later (in every engine they can)"),
    Option("stripWeights", BUILD, "build.strip_weights", "save the engine without weights, for --refitFromOnnx"),
    Option("stripAllWeights", BUILD, "build.strip_weights", "the same"),
    Option("buildBudget", BUILD, "build.build_budget",
        "seconds that timing tactics may take", Number(0.001, 1e6, "SECONDS"), default="none", since="trtcli"),
    Option("timingCacheFile", CACHE, "build.timing_cache_file",
        "read tactic timings from a file and add the new ones", Text()),
    Option("noCompilationCache", CACHE, "build.compilation_cache", "keep no compiled kernels in the timing cache", sets=False),
    Option("noBuilderCache", CACHE, "build.builder_cache", "time every layer, reuse nothing", sets=False),
    Option("errorOnTimingCacheMiss", CACHE, "build.error_on_timing_cache_miss",
        "fail when a tactic would have to be timed"),
    Option("maxTactics", CACHE, "build.max_tactics",
        "most tactics that are timed for a layer", Integer(1, 10**6, none=-1), default="by optimization level"),
    Option("avgTiming", CACHE, "build.avg_timing", "timings per tactic", Integer(1, 1000), default="8"),
    Option("tacticSources", CACHE, "build.tactic_sources",
        "libraries beside our own kernels (CUBLAS_LT, CUDNN), off at first", TacticSources(), default="none"),
    Option("pinTactic", CACHE, "build.pin_tactic",
        "use this tactic (or prefix of its id) for a layer", Pins(), since="trtcli", repeatable=True),
    Option("device", SYSTEM, "system.device", "GPU number, or cpu", Device(), default="first GPU, else cpu"),
    Option("limitSMs", SYSTEM, "system.limit_sms",
        "keep to a share of the GPU's multiprocessors, in build and run", Share(), default="all", since="trtcli"),
    Option("plugins", SYSTEM, "system.plugins",
        "Python files that describe custom operators (docs/plugins.md)", Names("FILE.py[,...]"), repeatable=True),
    Option("monitorMemory", SYSTEM, "system.monitor_memory", "say after every stage what host and device memory it took"),
    Option("loadInputs", RUN, "inference.load_inputs",
        "raw input values (numpy.ndarray.tofile)", FileSpec(), default="random"),
    Option("loadRefOutputs", RUN, "inference.ref_outputs",
        "raw files that the outputs of the last query are compared with", FileSpec()),
    Option("refPair", RUN, "inference.more_references",
        "the --loadInputs and --loadRefOutputs after it are pair N", Integer(0, 9999), repeatable=True),
    Option("accuracyAlgorithm", RUN, "inference.accuracy_algorithm",
        "the loss that --loadRefOutputs takes",
        Choice(("l0", "l1", "l2", "lInf", "cos")), default="l0"),
    Option("accuracyThreshold", RUN, "inference.accuracy_threshold",
        "the run fails from this loss on", Number(0, 1e30), default="none"),
    Option("atol", RUN, "inference.atol", "absolute error that l0 allows", Number(0, 1e30), default="1e-05"),
    Option("rtol", RUN, "inference.rtol", "relative error that l0 allows", Number(0, 1e30), default="1e-05"),
    Option("useProfile", RUN, "inference.profile", "optimization profile to run with", Integer(0, 63), default="0"),
    Option("allocationStrategy", RUN, "inference.allocation",
        "activations are sized for",
        Choice(("static", "profile", "runtime")), default="static"),
    Option("infStreams", RUN, "inference.inf_streams",
        "queries in parallel, each with its own context", Integer(1, 256), default="1"),
    Option("threads", RUN, "inference.threads", "one host thread per inference stream"),
    Option("noCudaGraph", RUN, "inference.cuda_graph", "launch kernels one by one", sets=False),
    Option("noSpinWait", RUN, "inference.spin_wait", "block instead of polling while waiting for the GPU", sets=False),
    Option("useSpinWait", RUN, "inference.spin_wait", "poll while waiting for the GPU (the default)"),
    Option("includeDataTransfers", RUN, "inference.data_transfers", "copy inputs and outputs in every query"),
    Option("exposeDMA", RUN, "inference.expose_dma", "no overlap of copies and computation"),
    Option("useManagedMemory", RUN, "inference.managed_memory", "inputs and outputs in memory that host and GPU share"),
    Option("iterations", MEASURE, "inference.iterations",
        "at least so many queries per stream", Integer(1, 2**31 - 1), default="10"),
    Option("duration", MEASURE, "inference.duration",
        "at least so many seconds; -1: until interrupted",
        Number(0, 1e6, "SECONDS", also=-1), default="3"),
    Option("warmUp", MEASURE, "inference.warm_up", "milliseconds that are run but not counted", _MS, default="200"),
    Option("sleepTime", MEASURE, "inference.sleep_time",
        "milliseconds before the first query starts", _MS, default="0"),
    Option("idleTime", MEASURE, "inference.idle_time", "milliseconds between queries", _MS, default="0"),
    Option("getPlanVersionOnly", MEASURE, "model.version_only", "print which version built the engine, and stop"),
    Option("timeDeserialize", MEASURE, "model.time_deserialize", "report how long it takes to load the engine, and stop"),
    Option("requestRate", MEASURE, "inference.request_rate",
        "requests per second that arrive at random and are batched as they come", Number(0.001, 1e7, "QPS"), since="trtcli"),
    Option("maxQueueDelay", MEASURE, "inference.max_queue_delay",
        "milliseconds that a request may wait for others", _MS, default="1", since="trtcli"),
    Option("maxBatch", MEASURE, "inference.max_batch",
        "most requests in a batch", Integer(1, 65536), default="the engine's largest", since="trtcli"),
    Option("sweepBatch", MEASURE, "inference.sweep_batch",
        "measure batch A, 2A, 4A ... B and print a table", BatchRange(), since="trtcli"),
    Option("avgRuns", MEASURE, "report.avg_runs",
        "queries per line of trace averages", Integer(1, 2**31 - 1), default="10"),
    Option("percentile", MEASURE, "report.percentiles",
        "percentiles to report", Percentiles((90.0, 95.0, 99.0)), default="90,95,99"),
    Option("dumpOutput", REPORT, "report.dump_output", "print the outputs of the last query"),
    Option("dumpRawBindingsToFile", REPORT, "report.dump_raw_bindings",
        "write inputs and outputs of the last query"),
    Option("saveDebugTensors", REPORT, "report.save_debug",
        "write debug tensors of one more query, raw", FileSpec()),
    Option("saveAllDebugTensors", REPORT, "report.save_all_debug",
        "write all debug tensors", Choices(("summary", "numpy", "string", "raw"))),
    Option("dumpProfile", REPORT, "report.dump_profile", "print the time of every layer (a second run)"),
    Option("dumpLayerInfo", REPORT, "report.dump_layer_info", "print the layers of the engine"),
    Option("dumpOptimizationProfile", REPORT, "report.dump_optimization_profile",
        "print min, opt and max shape of every input"),
    Option("dumpRefit", REPORT, "report.dump_refit", "print the weights that --refitFromOnnx replaces, layer by layer"),
    Option("timeRefit", REPORT, "build.time_refit", "report how long it takes to replace all weights"),
    Option("exportTimes", REPORT, "report.export_times", "write the times of every query as JSON", Text()),
    Option("exportOutput", REPORT, "report.export_output", "write the outputs as JSON", Text()),
    Option("exportProfile", REPORT, "report.export_profile", "write the time of every layer as JSON", Text()),
    Option("exportLayerInfo", REPORT, "report.export_layer_info", "write the layers as JSON", Text()),
    Option("exportReport", REPORT, "report.export_report",
        "write summary, latencies, layers and their limits as one HTML page", Text(), since="trtcli"),
    Option("whyNot", REPORT, "report.why_not",
        "why this ONNX node or layer was not fused further", Names("NODE[,...]"), since="trtcli", repeatable=True),
    Option("verbose", OUTPUT, "report.verbose", "more lines; tracebacks of errors"),
)  # fmt: skip

BY_NAME = {option.name: option for option in OPTIONS}


@dataclass(frozen=True)
class CommandTable:
    """What one command takes: whole groups of options, some more options of its own, and words (files).

    ``usage`` and ``summary`` are for the help; ``words`` is the least and the most number of words.
    """

    usage: str
    summary: str
    groups: tuple[str, ...]
    more: tuple[Option, ...] = ()
    words: tuple[int, int] = (0, 0)

    @property
    def options(self) -> tuple[Option, ...]:
        """All its options, in the order of the help."""
        return (*self.more, *(option for option in OPTIONS if option.group in self.groups))


JSON = Option("json", OUTPUT, "extra.json", "print JSON", since="trtcli")
THRESHOLD = Option(
    "threshold", OUTPUT, "extra.threshold", "per cent that B may be slower", Number(0, 1e6, "PERCENT"), default="5",
    since="trtcli",
)  # fmt: skip
_AGAINST = Option("against", OUTPUT, "extra.against", "the reference", Choice(("auto", "onnxruntime", "reference")),
    default="auto", since="trtcli")  # fmt: skip
_RTOL, _ATOL = (
    Option(name, OUTPUT, f"extra.{name}", text, Number(0, 1e6), default="by data type")
    for name, text in (
        ("rtol", "error allowed per element, relative to the reference"),
        ("atol", "error allowed per element beside it, absolute"),
    )
)
_BUILDS = (SHAPES, BUILD, CACHE, SYSTEM)

NO_RUN = ("build", "inspect")  # commands without inference: they take flags about it with a warning, and their help leaves these out
NEEDS_RUN = (
    "dumpOutput", "dumpRawBindingsToFile", "dumpProfile", "exportTimes", "exportOutput", "exportProfile", "exportReport",
    "saveDebugTensors", "saveAllDebugTensors",
)  # fmt: skip

COMMANDS: dict[str, CommandTable] = {
    "trtexec": CommandTable("[FLAGS]", "build or load an engine, benchmark it, report", GROUPS),
    "build": CommandTable("[MODEL.onnx] [FLAGS]", "build an engine and stop",
        (MODEL, *_BUILDS, REPORT, OUTPUT), words=(0, 1)),
    "profile": CommandTable("[FILE] [FLAGS]", "benchmark an engine or a model and show the time of every layer",
        GROUPS, words=(0, 1)),
    "inspect": CommandTable("[FILE] [FLAGS]", "show layers, tensors, memory, tactics, and what became of each node",
        (MODEL, *_BUILDS, REPORT, OUTPUT), (JSON,), (0, 1)),
    "check": CommandTable("[FILE] [FLAGS]", "say whether one CUDA graph can hold the network: exit 0 yes, 2 no",
        (MODEL, *_BUILDS, OUTPUT), (JSON,), (0, 1)),
    "verify": CommandTable("[FILE] [FLAGS]", "compare all outputs and layers with a reference: exit 0 when the outputs agree",
        (MODEL, *_BUILDS, OUTPUT), (*(BY_NAME[name] for name in ("loadInputs", "useProfile")), _AGAINST, _RTOL, _ATOL, JSON), (0, 1)),
    "cache": CommandTable("ACTION FILE ... [FLAGS]", "list and edit timing-cache files", (OUTPUT,), (JSON,), (2, 99)),
    "compare": CommandTable("A B [FLAGS]", "compare two profiles, layer informations or engines; exit 3 when B is slower",
        (OUTPUT,), (THRESHOLD, JSON), (2, 2)),
    "doctor": CommandTable("[FLAGS]", "say what this machine offers and what is missing", (OUTPUT,), (JSON,)),
}  # fmt: skip
