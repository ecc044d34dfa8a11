"""The grammar of the command line."""

from __future__ import annotations

from dataclasses import fields

import pytest

from trtcli.config import Config, ReferencePair
from trtcli.legacy import DEPRECATED, REFUSED
from trtcli.options import BY_NAME, COMMANDS, GROUPS, OPTIONS
from trtcli.parse import Parsed, UsageError, parse


def trtexec(*argv: str) -> Parsed:
    return parse("trtexec", ["--onnx=m.onnx", *argv])


def complaints(*argv: str, command: str = "trtexec") -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        parse(command, argv)
    return caught.value.complaints


def test_defaults_are_those_of_trtexec() -> None:
    config = trtexec().config
    inference, report, build = config.inference, config.report, config.build
    assert (inference.iterations, inference.duration, inference.warm_up) == (10, 3, 200)
    assert (inference.cuda_graph, inference.spin_wait, inference.data_transfers) == (True, True, False)
    assert (report.avg_runs, report.percentiles) == (10, (90, 95, 99))
    assert (build.avg_timing, build.optimization_level, build.tf32) == (8, 3, True)
    assert build.profiling_verbosity == "layer_names_only"


def test_both_forms_of_a_value_and_the_first_equals_sign() -> None:
    assert trtexec("--saveEngine=a=b.engine").config.build.save_engine == "a=b.engine"
    assert trtexec("--saveEngine", "a.engine", "--iterations", "7").config.inference.iterations == 7
    assert trtexec("--duration", "-1").config.inference.duration == -1


def test_switches() -> None:
    config = trtexec("--noTF32", "--noCudaGraph", "--noSpinWait", "--includeDataTransfers", "--fp16").config
    assert (config.build.tf32, config.inference.cuda_graph, config.inference.spin_wait) == (False, False, False)
    assert config.inference.data_transfers
    assert config.build.fp16
    assert trtexec("--fp16=true").config.build.fp16
    assert complaints("--onnx=m", "--fp16=false") == (
        "--fp16=false: this flag takes no value; leave it out to turn it off",
    )


def test_every_unknown_flag_is_listed_with_a_suggestion() -> None:
    assert complaints("--onnx=m", "--iteration=5", "--qwertyuiop", "-onnx=x", "--FP16") == (
        "Unknown option: --iteration=5 (did you mean --iterations?)",
        "Unknown option: --qwertyuiop",
        "Unknown option: -onnx=x (did you mean --onnx?)",
        "Unknown option: --FP16 (did you mean --fp16?)",
    )


def test_all_complaints_at_once() -> None:
    assert complaints("--iterations=0", "--percentile=101", "--memPoolSize=x:1", "--onnx", "--avgRuns=10k", "word") == (
        "Unknown argument: word (flags start with --)",
        "--iterations=0: 0 is out of range (1..2147483647)",
        "--percentile=101: 101 is out of range (0..100)",
        "--memPoolSize=x:1: unknown memory pool 'x' (workspace, tacticSharedMem)",
        "--onnx: needs a value: --onnx=FILE",
        "--avgRuns=10k: '10k' is not a whole number (1..2147483647)",
    )


@pytest.mark.parametrize(
    "flag",
    ["--iterations=-1", "--duration=-2", "--warmUp=-1", "--infStreams=0", "--avgRuns=0", "--avgTiming=0", "--idleTime=-1",
     "--sleepTime=x", "--builderOptimizationLevel=6", "--maxAuxStreams=-2", "--buildBudget=0", "--device=gpu",
     "--percentile=-1", "--memPoolSize=workspace:-1", "--profilingVerbosity=all", "--saveEngine="],
)  # fmt: skip
def test_bad_values_name_flag_and_value(flag: str) -> None:
    (complaint,) = complaints("--onnx=m", flag)
    assert complaint.startswith(flag.rstrip("=")), complaint


def test_given_twice() -> None:
    assert complaints("--onnx=m", "--fp16", "--fp16") == ("--fp16: given twice",)
    assert complaints("--onnx=m", "--onnx=n") == ("--onnx: given twice",)
    assert trtexec("--maxAuxStreams=-1", "--maxTactics=-1").config == trtexec().config
    rules = trtexec("--disableFusion=gelu", "--disableFusion=mish@a").config.build.disable_fusion
    assert rules == (("gelu", ""), ("mish", "a"))


def test_what_does_not_go_together() -> None:
    assert complaints() == ("Model missing: give --onnx=FILE to build an engine, or --loadEngine=FILE to run one",)
    (both,) = complaints("--loadEngine=a", "--saveEngine=b")
    assert both.startswith("Incompatible load and save engine options selected")
    assert complaints("--onnx=a", "--loadEngine=b") == ("--onnx and --loadEngine: give one of them",)
    (cache,) = complaints("--onnx=a", "--errorOnTimingCacheMiss")
    assert cache.startswith("--errorOnTimingCacheMiss: needs a cache")
    assert complaints("--onnx=a", "--errorOnTimingCacheMiss", "--timingCacheFile=c", "--noBuilderCache")


def test_flags_without_effect_are_named() -> None:
    loaded = parse("trtexec", ["--loadEngine=a", "--fp16", "--avgTiming=4"])
    assert loaded.warnings == ("An engine is loaded, not built: no effect of --fp16, --avgTiming",)
    skipped = trtexec("--skipInference", "--dumpProfile", "--exportTimes=t.json")
    assert skipped.warnings == ("Inference is skipped: no effect of --dumpProfile, --exportTimes",)
    (cache,) = trtexec("--noBuilderCache", "--timingCacheFile=c").warnings
    assert cache.startswith("--noBuilderCache is given")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--workspace=64", "--memPoolSize=workspace:64"),
        ("--buildOnly", "--skipInference"),
        ("--streams=4", "--infStreams=4"),
        ("--nvtxMode=verbose", "--profilingVerbosity=detailed"),
        ("--timingCache=c", "--timingCacheFile=c"),
        ("--saveProfile=p", "--exportProfile=p"),
        ("--weightless", "--stripWeights"),
    ],
)
def test_old_flags_mean_todays(old: str, new: str) -> None:
    before, after = trtexec(old), trtexec(new)
    assert before.config == after.config
    assert len(before.warnings) == 1
    assert before.warnings[0].startswith(f"{old.split('=')[0]} is deprecated: ")
    assert not after.warnings


@pytest.mark.parametrize(
    "flag",
    ["--explicitBatch", "--batch=1", "--useCudaGraph", "--noDataTransfers", "--separateProfileRun", "--stronglyTyped",
     "--minTiming=2", "--calib=cache", "--calib", "--minShapesCalib=a:1"],
)  # fmt: skip
def test_old_flags_that_ask_for_the_default(flag: str) -> None:
    parsed = trtexec(flag)
    assert parsed.config == trtexec().config
    assert len(parsed.warnings) == 1


@pytest.mark.parametrize(
    "flag",
    ["--batch=8", "--inputIOFormats=fp17:chw", "--workspace=x", "--workspace", "--nvtxMode=all"],
)  # fmt: skip
def test_old_flags_that_cannot_be_obeyed(flag: str) -> None:
    assert len(complaints("--onnx=m", flag)) == 1


def test_tactic_sources() -> None:
    assert trtexec().config.build.tactic_sources == ()
    assert trtexec("--tacticSources=-CUDNN,+cublas_lt").config.build.tactic_sources == ("CUBLAS_LT",)
    (complaint,) = complaints("--onnx=m", "--tacticSources=CUDNN")
    assert "must be prefixed with + or -" in complaint
    (complaint,) = complaints("--onnx=m", "--tacticSources=+CUTLASS")
    assert "unknown tactic source 'CUTLASS'" in complaint and "CUBLAS_LT" in complaint
    (complaint,) = complaints("--onnx=m", "--tacticSources=+CUDNN,-CUDNN")
    assert "cannot enable and disable CUDNN" in complaint


def test_old_and_new_name_of_the_same_flag() -> None:
    same = trtexec("--timingCache=c", "--exportTimingCache=c", "--timingCacheFile=c")
    assert same.config.build.timing_cache_file == "c"
    assert len(same.warnings) == 2
    assert complaints("--onnx=m", "--streams=2", "--infStreams=3")
    assert trtexec("--best", "--fp16").config.build.fp16 and not trtexec("--best").config.build.bf16
    assert "--bf16 has no effect beside --fp16: an engine has one narrow type" in trtexec("--fp16", "--bf16").warnings


def test_refused_flags_say_why_unless_they_ask_for_nothing() -> None:
    (complaint,) = complaints("--onnx=m", "--useDLACore=0")
    assert complaint == "--useDLACore: needs a DLA core, which trtcli does not use"
    assert complaints("--onnx=m", "--sparsity=force") == ("--sparsity: 'force' is not supported: weights are dense (disable and enable are accepted)",)
    assert "weights are taken as dense" in trtexec("--sparsity=enable").warnings[0]
    assert trtexec("--heuristic").config.build.optimization_level == 2
    assert trtexec("--maxTactics=-1", "--hardwareCompatibilityLevel=none").config == trtexec().config


def test_home_folder() -> None:
    import os

    assert parse("trtexec", ["--onnx=~/m.onnx"]).config.model.onnx == os.path.expanduser("~/m.onnx")


def test_words_are_models_or_engines() -> None:
    assert parse("inspect", ["m.onnx"]).config.model.onnx == "m.onnx"
    assert parse("inspect", ["m.engine", "--json"]).config.model.load_engine == "m.engine"
    assert parse("inspect", ["m.engine", "--json"]).get("json") is True
    assert complaints("a.onnx", "b.onnx", command="check") == ("Unknown argument: b.onnx",)
    assert complaints("a.onnx", "--onnx=b.onnx", command="check")
    assert complaints("--loadEngine=e", command="build")
    assert complaints("m.onnx", "--iterations=3", command="inspect") == (
        "Unknown option: --iterations=3 (it exists, but not for this command)",
    )


def test_shapes_serve_the_build_too() -> None:
    config = trtexec("--shapes=x:2x3").config
    assert config.build.shapes == config.inference.shapes == {"x": (2, 3)}


# --- the table -------------------------------------------------------------------------------------------------------


def test_each_flag_stands_once_and_sets_a_field_that_exists() -> None:
    assert len(BY_NAME) == len(OPTIONS)
    assert not set(BY_NAME) & set(DEPRECATED)
    assert not set(BY_NAME) & set(REFUSED)
    assert not set(DEPRECATED) & set(REFUSED)
    config = Config()
    for option in OPTIONS:
        section, field = option.target.split(".")
        known = {item.name for item in fields(getattr(config, section))} | ({"memory_pools"} if section == "build" else set())
        assert field in known, option.name
        assert option.group in GROUPS
        assert option.since in ("11", "8-10", "trtcli")
        if option.read is not None:
            assert option.metavar, option.name


def test_every_field_has_a_flag() -> None:
    config = Config()
    targets = {option.target for option in OPTIONS} | {"build.workspace", "build.tactic_shared_memory", "build.shapes", "build.batch_range"}
    for section in fields(config):
        for item in fields(getattr(config, section.name)):
            assert f"{section.name}.{item.name}" in targets, f"nothing sets {section.name}.{item.name}"


def test_commands_take_known_groups() -> None:
    for table in COMMANDS.values():
        assert set(table.groups) <= set(GROUPS)


def test_optimization_profiles() -> None:
    config = trtexec(
        "--profile=1", "--minShapes=x:2x3", "--maxShapes=x:8x3", "--useProfile=1", "--profile=0", "--optShapes=x:1x3"
    ).config
    first, second = config.build.profiles
    assert (first.opt_shapes, first.max_shapes) == ({"x": (1, 3)}, {})
    assert (second.min_shapes, second.max_shapes) == ({"x": (2, 3)}, {"x": (8, 3)})
    assert config.inference.profile == 1


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--profile=0", "--minShapes=x:1", "--profile=0", "--minShapes=x:2"), "Optimization profile index cannot be the same."),
        (("--profile=0", "--minShapes=x:1", "--profile=2", "--minShapes=x:2"), "missing shape spec at profile index 1"),
        (("--profile=0", "--verbose", "--minShapes=x:1"), "missing shape spec at profile index 0"),
        (("--minShapes=x:1", "--minShapes=x:2"), "Multiple --minShapes/--optShapes/--maxShapes without --profile"),
        (("--profile=0", "--minShapes=x:1", "--verbose", "--maxShapes=x:2"), "without --profile are not allowed"),
        (("--profile=x", "--minShapes=x:1"), "--profile=x: 'x' is not a whole number (0..63)"),
        (("--profile=0", "--minShapes=nonsense"), "--minShapes=nonsense: 'nonsense' names no input"),
        (("--allocationStrategy=some",), "--allocationStrategy=some: 'some' is none of static, profile, runtime"),
    ],
)
def test_wrong_profiles(flags: tuple[str, ...], complaint: str) -> None:
    assert any(complaint in line for line in complaints("--onnx=m", *flags))


def test_reference_pairs() -> None:
    parsed = trtexec(
        "--refPair=1", "--loadInputs=x:c", "--loadRefOutputs=y:d", "--refPair=0", "--loadRefOutputs=y:b,z:e", "--loadInputs=x:a", "--accuracyThreshold=0.5"
    )
    inference = parsed.config.inference
    assert (inference.load_inputs, inference.ref_outputs) == ({"x": "a"}, {"y": "b", "z": "e"})
    assert inference.more_references == (ReferencePair({"x": "c"}, {"y": "d"}),) and not parsed.warnings


_ONE = ("--loadInputs=x:a", "--loadRefOutputs=y:b")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--refPair=0", *_ONE), "When using --refPair, you need at least two pairs of I/O."),
        (("--refPair=0", *_ONE, "--refPair=1", _ONE[0]), "Missing --loadRefOutputs for reference pair at index 1"),
        (("--refPair=0", *_ONE, "--refPair=0", *_ONE), "--refPair=0: given twice. Reference pair index cannot be the same."),
        (("--refPair=0", *_ONE, "--refPair=2", *_ONE), "Missing --refPair=1: pairs are numbered from 0"),
        (("--refPair=0", *_ONE, "--refPair=1", *_ONE, _ONE[0]), "--loadInputs: beside --refPair it belongs right behind one"),
        (("--refPair=0", *_ONE, "--refPair=1", "--loadInputs=nonsense", _ONE[1]), "--loadInputs=nonsense: 'nonsense' is not name:file"),
        (("--refPair=0", *_ONE, "--refPair=1", *_ONE), "needs --accuracyThreshold above 0"),
    ],
)
def test_wrong_reference_pairs(flags: tuple[str, ...], complaint: str) -> None:
    assert any(complaint in line for line in complaints("--onnx=m", *flags))


def test_flags_that_ask_for_what_always_holds() -> None:
    parsed = trtexec("--tempfileControls=in_memory:deny,temporary:deny", "--tempdir=t", "--asyncFileReader", "--allowGPUFallback", "--useDLACore=-1",
                     "--hardwareCompatibilityLevel=sameComputeCapability", "--decomposableAttentions=a,b*", "--excludeLeanRuntime")  # fmt: skip
    assert parsed.config == trtexec().config
    assert [line.split(": ")[0] for line in parsed.warnings] == [
        f"--{name} does nothing"
        for name in ("tempfileControls", "tempdir", "asyncFileReader", "allowGPUFallback", "decomposableAttentions", "excludeLeanRuntime")
    ]
    (complaint,) = complaints("--onnx=m", "--tempfileControls=in_memory")
    assert "'in_memory' is not in_memory:allow" in complaint


def test_layer_precisions() -> None:
    config = trtexec("--fp16", "--layerPrecisions=soft:fp32,'a:0,b':fp16", "--precisionConstraints=obey").config.build
    assert config.layer_precisions == (("soft", "fp32"), ("a:0,b", "fp16")) and config.precision_constraints == "obey"
    parsed = trtexec("--layerPrecisions=soft:fp32")
    assert "--layerPrecisions has no effect without --precisionConstraints=prefer or obey" in parsed.warnings
    parsed = trtexec("--layerOutputTypes=soft:fp16")
    assert parsed.config.build.layer_output_types == (("soft", "fp16"),)
    assert "--layerOutputTypes has no effect without --precisionConstraints=prefer or obey" in parsed.warnings
    (complaint,) = complaints("--onnx=m", "--layerPrecisions=soft:int8")
    assert "8-bit types come from the model's own Q/DQ nodes" in complaint
