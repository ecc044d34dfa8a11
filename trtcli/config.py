"""What the flags mean: frozen configuration objects, made once at the edge by :mod:`trtcli.parse`.

Nothing below reads a flag, an environment variable or a global. Only the standard library is
imported here: ``trtcli --help`` must stay quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

# Input name, or a pattern with one ``*``, to the dimensions given for it; ``()`` is a scalar.
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelConfig:
    """Where the network comes from: exactly one of the first two is set. ``refit_onnx`` is a model whose weights replace the engine's.
    ``version_only`` and ``time_deserialize`` ask about the engine's file alone."""

    onnx: str = ""
    load_engine: str = ""
    refit_onnx: str = ""
    version_only: bool = False
    time_deserialize: bool = False


@dataclass(frozen=True)
class ProfileShapes:
    """One optimization profile as given: smallest, optimal and largest shapes of some inputs."""

    min_shapes: Shapes = field(default_factory=dict)
    opt_shapes: Shapes = field(default_factory=dict)
    max_shapes: Shapes = field(default_factory=dict)


@dataclass(frozen=True)
class BuildConfig:
    """How an engine is built.

    Attributes:
        save_engine: file to write, or empty.
        min_shapes, opt_shapes, max_shapes: the optimization profile as given; :mod:`trtcli.shapes` completes it for the
            inputs of a network.
        shapes: ``--shapes``, the profile when none was given.
        profiles: several optimization profiles, in place of the three above.
        optimization_level: 0 (first tactic that works) to 5 (everything is timed).
        max_aux_streams: None leaves it to heuristics, 0 keeps everything in one stream.
        timing_cache_file: file to read and to merge back into, or empty (then decisions live for this build only).
        builder_cache: False times every layer on its own, without any cache.
        error_on_timing_cache_miss: fail instead of timing.
        avg_timing: how many timings a tactic's time is the median of; ``max_tactics``: how many are timed for a layer at most.
        compilation_cache: whether compiled kernels are kept in the timing cache.
        workspace: most bytes of scratch memory per layer; None: the device's memory.
        tactic_shared_memory: most bytes of shared memory per block; None: the device's limit.
        tf32: whether float32 products may round their operands to TF32.
        fp16, bf16: whether layers compute in that type where the model says FP32; of both FP16 is taken.
        layer_precisions: ``(layer or node, fp32 | fp16 | bf16)`` pairs; ``precision_constraints`` is ``none`` (they have no effect),
            ``prefer`` or ``obey``; ``layer_output_types``: such pairs for the type that a layer's results are rounded to.
        profiling_verbosity: ``none``, ``layer_names_only`` or ``detailed``: what the engine keeps for reports.
        disable_fusion: ``(rule, layer)`` pairs; the rule may be ``all``; an empty layer turns it off everywhere.
        tactic_sources: libraries that compete with our own kernels, by the names of ``--tacticSources``.
        pin_tactic: ``(layer, tactic id)`` pairs.
        refit: as the flag says; weights can be replaced in every engine. ``time_refit``: that is timed. ``strip_weights``: the engine is saved without weights.
        mark_debug: tensors that are kept from being fused away, to be looked at; ``mark_unfused_debug``: all others that are left.
        input_io_formats, output_io_formats: data types and layouts of inputs and outputs in memory, such as ``fp16:hwc8`` or ``chw+hwc``, one for
            each or one for all; empty: as in the model, row-major.
        batch_range: smallest and largest batch, for inputs of dynamic batch whose shapes are not given otherwise (``--sweepBatch``,
            ``--maxBatch``); tactics are then timed at the largest.
        build_budget: seconds that timing may take, or None.
    """

    save_engine: str = ""
    min_shapes: Shapes = field(default_factory=dict)
    opt_shapes: Shapes = field(default_factory=dict)
    max_shapes: Shapes = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    profiles: tuple[ProfileShapes, ...] = ()
    optimization_level: int = 3
    max_aux_streams: int | None = None
    timing_cache_file: str = ""
    builder_cache: bool = True
    error_on_timing_cache_miss: bool = False
    avg_timing: int = 8
    max_tactics: int | None = None
    compilation_cache: bool = True
    workspace: int | None = None
    tactic_shared_memory: int | None = None
    tf32: bool = True
    fp16: bool = False
    bf16: bool = False
    layer_precisions: tuple[tuple[str, str], ...] = ()
    layer_output_types: tuple[tuple[str, str], ...] = ()
    precision_constraints: str = "none"
    profiling_verbosity: str = "layer_names_only"
    disable_fusion: tuple[tuple[str, str], ...] = ()
    pin_tactic: tuple[tuple[str, str], ...] = ()
    tactic_sources: tuple[str, ...] = ()
    refit: bool = False
    time_refit: bool = False
    strip_weights: bool = False
    mark_debug: tuple[str, ...] = ()
    mark_unfused_debug: bool = False
    input_io_formats: tuple[str, ...] = ()
    output_io_formats: tuple[str, ...] = ()
    build_budget: float | None = None
    batch_range: tuple[int, int] | None = None

    @property
    def disabled_fusions(self) -> tuple[str, ...]:
        """``disable_fusion`` as the passes take it: ``rule``, or ``rule@layer``."""
        return tuple(f"{rule}@{layer}" if layer else rule for rule, layer in self.disable_fusion)


@dataclass(frozen=True)
class SystemConfig:
    """``device`` is ``auto`` (the first GPU, else the CPU), ``cpu``, or a GPU's number as text; ``limit_sms`` the share of its
    multiprocessors to keep to (``64``, ``50%``), or empty; ``plugins`` the files that describe custom operators; ``monitor_memory``: every stage
    says what memory it took."""

    device: str = "auto"
    limit_sms: str = ""
    plugins: tuple[str, ...] = ()
    monitor_memory: bool = False


@dataclass(frozen=True)
class ReferencePair:
    """Files with values of inputs, and of the outputs that they should give, by name."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class InferenceConfig:
    """How the engine is run and measured.

    Attributes:
        shapes: input shapes; those not named run at their optimal shapes.
        profile: the optimization profile to run with; None is profile 0.
        allocation: memory for activations is sized for all profiles (``static``), for the one in use (``profile``), or for the
            actual shapes (``runtime``).
        load_inputs: input name to a file of raw values; other inputs are random.
        iterations: at least so many measured queries per stream.
        duration: seconds to measure at least; -1 runs until interrupted.
        warm_up: milliseconds on the device's clock that are not counted.
        sleep_time: milliseconds between launch and the start of the computation, once at the start.
        idle_time: milliseconds between queries after the warm-up.
        inf_streams: contexts that run concurrently; ``threads`` gives each its own host thread.
        cuda_graph, spin_wait, data_transfers, expose_dma: as the flags say.
        request_rate: requests per second that arrive at random and are batched as they come, or None; ``max_queue_delay``:
            milliseconds that one may wait for others; ``max_batch``: most in a batch, None for the profile's largest.
        sweep_batch: smallest and largest batch of a sweep, or None.
        managed_memory: inputs and outputs in memory that host and device share.
        skip_inference: stop after the build.
        ref_outputs: output name to a file of raw values that it is compared with, by ``accuracy_algorithm`` (see :mod:`trtcli.accuracy`); the
            run fails from a loss of ``accuracy_threshold`` on. ``atol``, ``rtol``: the errors that ``l0`` allows.
        more_references: further pairs of inputs and outputs (``--refPair``), each run once after the benchmark.
    """

    shapes: Shapes = field(default_factory=dict)
    load_inputs: Mapping[str, str] = field(default_factory=dict)
    iterations: int = 10
    duration: float = 3.0
    warm_up: float = 200.0
    sleep_time: float = 0.0
    idle_time: float = 0.0
    inf_streams: int = 1
    threads: bool = False
    cuda_graph: bool = True
    spin_wait: bool = True
    data_transfers: bool = False
    expose_dma: bool = False
    managed_memory: bool = False
    request_rate: float | None = None
    max_queue_delay: float = 1.0
    max_batch: int | None = None
    sweep_batch: tuple[int, int] | None = None
    skip_inference: bool = False
    ref_outputs: Mapping[str, str] = field(default_factory=dict)
    more_references: tuple[ReferencePair, ...] = ()
    accuracy_algorithm: str = "l0"
    accuracy_threshold: float = 0.0
    atol: float = 1e-5
    rtol: float = 1e-5
    profile: int | None = None
    allocation: str = "static"


@dataclass(frozen=True)
class ReportConfig:
    """What is printed and written; files are empty when not asked for."""

    verbose: bool = False
    avg_runs: int = 10
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0)
    dump_output: bool = False
    dump_raw_bindings: bool = False
    save_debug: Mapping[str, str] = field(default_factory=dict)
    save_all_debug: tuple[str, ...] = ()
    dump_profile: bool = False
    dump_layer_info: bool = False
    dump_refit: bool = False
    dump_optimization_profile: bool = False
    export_times: str = ""
    export_output: str = ""
    export_profile: str = ""
    export_layer_info: str = ""
    export_report: str = ""
    why_not: tuple[str, ...] = ()

    @property
    def wants_profile(self) -> bool:
        """Whether something needs the time of every layer, which takes a run of its own."""
        return bool(self.dump_profile or self.export_profile or self.export_report)


@dataclass(frozen=True)
class Config:
    """Everything that one command line says."""

    model: ModelConfig = field(default_factory=ModelConfig)
    build: BuildConfig = field(default_factory=BuildConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def to_json(self) -> dict[str, object]:
        """All settings as JSON values, for records."""
        return asdict(self)
