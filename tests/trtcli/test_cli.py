"""The command line as a process would see it: commands, help, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from onnx import TensorProto, helper, parser, save

from tests.catalogue import Row
from tests.catalogue import model as row_model
from trtcli.cli import main
from trtcli.options import COMMANDS, OPTIONS

DOCS = Path(__file__).parent.parent.parent / "docs"
Captured = pytest.CaptureFixture[str]


def model(path: Path, nodes: list, outputs: list, inputs: list | None = None) -> Path:
    inputs = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    nodes = [helper.make_node("Relu", ["x"], ["a"], "r"), helper.make_node("Exp", ["a"], ["y"], "e")]
    return model(tmp_path / "plain.onnx", nodes, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])])


@pytest.fixture
def nonzero(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "r"),
        helper.make_node("NonZero", ["a"], ["i"], "nz"),
        helper.make_node("Cast", ["i"], ["y"], "c", to=TensorProto.FLOAT),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, "n"])]
    return model(tmp_path / "nonzero.onnx", nodes, outputs)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["--onnx=x", "--help"], ["--nonsense", "--help"]])
def test_help_lists_every_flag_and_exits_0(argv: list[str], capsys: Captured) -> None:
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  --{option.name}" in out for option in OPTIONS)
    assert all(f"  {name}" in out for name in COMMANDS if name != "trtexec")
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "trtexec"])
def test_commands_have_help(name: str, capsys: Captured) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: trtcli {name}")


def test_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "trtcli 0.1.0\n"


def test_bad_arguments_exit_1_without_banner(capsys: Captured) -> None:
    assert main(["--onnx=x.onnx", "--bogus", "--iterations=0"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "[E] Unknown option: --bogus" in err and "[E] --iterations=0" in err


def test_unknown_commands_are_corrected(capsys: Captured) -> None:
    assert main(["inspekt", "x"]) == 1
    assert main(["model.onnx"]) == 1
    err = capsys.readouterr().err
    assert "did you mean inspect?" in err
    assert "did you mean --onnx=model.onnx?" in err


def test_a_missing_file_fails_between_banners(capsys: Captured) -> None:
    assert main(["--onnx=no_such.onnx", "--device=cpu"]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "&&&& RUNNING trtcli v0.1.0 # trtcli --onnx=no_such.onnx --device=cpu"
    assert lines[-1] == "&&&& FAILED trtcli v0.1.0 # trtcli --onnx=no_such.onnx --device=cpu"
    assert "[E] Cannot open file no_such.onnx: it does not exist" in err


def test_a_bad_device_is_named(plain: Path, capsys: Captured) -> None:
    assert main([f"--onnx={plain}", "--device=999"]) == 1
    assert "Cannot find" in capsys.readouterr().err


def test_a_file_that_is_no_model(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"this is no protobuf")
    assert main([f"--onnx={path}", "--device=cpu"]) == 1
    assert main(["inspect", str(path)]) == 1
    assert main(["check", str(path)]) == 1
    err = capsys.readouterr().err
    assert err.count("x.onnx") >= 3
    assert "Traceback" not in err


def test_outputs_that_cannot_be_written_fail_before_the_build(plain: Path, capsys: Captured) -> None:
    assert main([f"--onnx={plain}", "--device=cpu", "--exportTimes=/no/such/folder/t.json"]) == 1
    out, err = capsys.readouterr()
    assert "the folder /no/such/folder does not exist" in err
    assert "Parsed" not in out


def test_inspect_a_model(plain: Path, capsys: Captured) -> None:
    assert main(["inspect", str(plain), "--device=cpu"]) == 0
    out = capsys.readouterr().out
    assert "Input   x  FP32 2x3" in out
    assert "2 layers became 1; 2 ONNX nodes: 2 in layers" in out
    assert main(["inspect", str(plain), "--device=cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["Layers"][0]["Origins"] == ["r", "e"]


def test_flags_about_a_build_are_told_where_nothing_is_built(plain: Path, tmp_path: Path, capsys: Captured) -> None:
    engine = tmp_path / "never.engine"
    assert main(["inspect", str(plain), "--device=cpu", f"--saveEngine={engine}", "--avgTiming=2", "--fp16"]) == 0
    found = capsys.readouterr()
    assert "A model is inspected, not built: no effect of --saveEngine, --avgTiming" in found.err
    assert main(["check", str(plain), "--device=cpu", f"--saveEngine={engine}", "--monitorMemory"]) == 0
    assert "The answer is static, nothing was built: no effect of --saveEngine, --monitorMemory" in capsys.readouterr().err
    assert not engine.exists()


def test_inspect_obeys_what_decides_on_types(plain: Path, capsys: Captured) -> None:
    """Of two layers in FP16 and their casts one is left, as in a build."""
    assert main(["inspect", str(plain), "--device=cpu", "--fp16", "--json"]) == 0
    narrow = json.loads(capsys.readouterr().out)["Layers"]
    assert main(["inspect", str(plain), "--device=cpu", "--json"]) == 0
    assert narrow != json.loads(capsys.readouterr().out)["Layers"]


def test_inspect_why_not(plain: Path, capsys: Captured) -> None:
    assert main(["inspect", str(plain), "--device=cpu", "--disableFusion=all", "--whyNot=e"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("e is a layer of its own.")
    assert "refused (disabled): switched off by --disableFusion=all" in out
    assert "it would save 48 bytes of traffic" in out
    assert main(["inspect", str(plain), "--device=cpu", "--disableFusion=all", "--whyNot=e", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "WhyNot": [{"Node": "e", "Lines": out.splitlines()}]}
    assert main(["inspect", str(plain), "--whyNot=nope"]) == 1


def test_inspect_why_not_inside_of_a_branch(tmp_path: Path, capsys: Captured) -> None:
    path, engine = tmp_path / "branch.onnx", tmp_path / "branch.engine"
    save(parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x, bool c) => (float[2, 3] y, float[2, 3] z) {
        y = If(c) <then_branch = t () => (float[2, 3] a) { e = Abs(x) f = ReduceMax<axes = [1]>(e) a = Mul(e, f) },
                   else_branch = f () => (float[2, 3] b) { b = Neg(x) }>
        z = Exp(x) }"""), path)
    node = "If_0/then/Abs_0"
    assert main(["inspect", str(path), "--device=cpu", f"--whyNot={node}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{node} is a layer of its own.") and "refused (shared): e" in out.replace("If_0/then/", "")
    assert main(["build", str(path), "--device=cpu", f"--saveEngine={engine}"]) == 0
    for file in (path, engine):  # every node has a fate, inside of branches, too
        capsys.readouterr()
        assert main(["inspect", str(file), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["Nodes"].keys() == {"If_0", "Exp_1", node, "If_0/then/ReduceMax_1", "If_0/then/Mul_2", "If_0/else/Neg_0"}
        assert main(["inspect", str(file)]) == 0
        text = capsys.readouterr().out
        assert "6 ONNX nodes: 6 in layers" in text and "\n     If_0/else/Neg_0 " in text
    assert main(["inspect", str(engine), f"--whyNot={node}"]) == 0
    assert capsys.readouterr().out.startswith(f"{node} is a layer of its own (inside of a branch or loop).")


def test_inspect_why_not_of_a_concatenation(tmp_path: Path, capsys: Captured) -> None:
    row = Row("concat", "a = Relu(x)\nb = Tanh(x)\nc = Concat<axis=1>(a, b)\ny = Softmax<axis=1>(c)", "", inputs={"x": (2, 254)})
    path = tmp_path / "concat.onnx"
    path.write_bytes(row_model(row))
    assert main(["inspect", str(path), "--device=cpu", "--whyNot=Concat2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Concat2 is a layer of its own.",
        "  nearest rule: concatenation-view - refused (alignment): b would be columns from 254 on of rows of 508; both must be multiples of 4",
        "  it would have joined it with Relu0, Tanh1",
        "  it would save 8.13 kB of traffic",
    ]


def test_an_unknown_fusion_rule_is_refused(plain: Path, capsys: Captured) -> None:
    assert main(["inspect", str(plain), "--disableFusion=xyz"]) == 1
    assert "there is no rule 'xyz'; rules are all, attention, " in capsys.readouterr().err
    assert main(["inspect", str(plain), "--disableFusion=convolution-scal@x"]) == 1
    assert "did you mean convolution-scale or " in capsys.readouterr().err
    assert main(["inspect", str(plain), "--disableFusion=pointwise@nope"]) == 1
    assert "no node or layer is named 'nope'" in capsys.readouterr().err


def test_a_fusion_is_switched_off_at_the_layer_that_it_made(tmp_path: Path, capsys: Captured) -> None:
    """Reports show names of fused layers: where one is given, its nodes are not joined by that rule; other places are."""
    path = tmp_path / "net.onnx"
    save(parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]> g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y) {
        a = Add(x, z) b = Relu(a) c = Softmax(b) d = Mul(c, z) y = Tanh(d) }"""), path)
    made = "fusedPointwiseNode(Add_0, Relu_1)"
    for argv, shown in (([], {made, "Softmax_2 + fusedPointwiseNode(Mul_3, Tanh_4)"}), ([f"--disableFusion=pointwise@{made}"], {"Add_0", "Relu_1"})):
        assert main(["inspect", str(path), "--device=cpu", "--json", "--disableFusion=softmax-prologue", *argv]) == 0
        names = {one["Name"] for one in json.loads(capsys.readouterr().out)["Layers"]}
        assert shown <= names and "Softmax_2 + fusedPointwiseNode(Mul_3, Tanh_4)" in names
    assert main(["build", str(path), "--device=cpu", "--builderOptimizationLevel=0", f"--disableFusion=all@{made}", "--dumpLayerInfo"]) == 0
    assert capsys.readouterr().out.count("Relu_1\n") == 1


def test_check_says_yes(plain: Path, capsys: Captured) -> None:
    assert main(["check", str(plain), "--device=cpu"]) == 0
    assert capsys.readouterr().out.startswith("capturable: all 2 layers")


def test_check_says_no_with_reasons_and_segments(nonzero: Path, capsys: Captured) -> None:
    assert main(["check", f"--onnx={nonzero}"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "not capturable: 1 of 5 layers (answer is static: no GPU here)",
        "  NonZero  nz  its output's shape depends on data",
        "  2 segments (4 layers) can be captured around it",
    ]
    assert main(["check", f"--onnx={nonzero}", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "schema": 1, "capturable": False, "layers": 5, "segments": [1, 3], "how": "static",
        "obstacles": [{"operator": "NonZero", "name": "nz", "reason": "its output's shape depends on data"}],
    }  # fmt: skip


def test_check_names_inputs_whose_values_decide_shapes(tmp_path: Path, capsys: Captured) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Reshape", ["r", "t"], ["y"])]
    target = helper.make_tensor_value_info("t", TensorProto.INT64, [2])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph(nodes, "g", [given, target], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])])
    path = tmp_path / "t.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "not capturable: shapes depend on the values of inputs (answer is static: no GPU here)",
        "  Input  t  shapes depend on its values: the host reads them",
        "  1 segment (2 layers) can be captured around it",
    ]


def test_check_has_no_answer_for_unknown_operators(tmp_path: Path, capsys: Captured) -> None:
    nodes = [helper.make_node("Mystery", ["x"], ["y"], "m", domain="custom")]
    path = model(tmp_path / "m.onnx", nodes, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])])
    assert main(["check", str(path)]) == 1
    assert "Mystery" in capsys.readouterr().err


def test_doctor(capsys: Captured) -> None:
    assert main(["doctor"]) == 0
    assert "NVIDIA driver" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in found["findings"]} >= {"trtcli", "CPU", "NVRTC", "CUDA headers"}


def test_docs_list_every_flag() -> None:
    """With what it does, its default and what it takes."""
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    rows = {re.split("[=`]", line)[1]: line.replace("\\|", "|") for line in text.splitlines() if line.startswith("| `--")}
    for option in OPTIONS:
        allowed = option.read.allowed if option.read else ""
        for told in (option.help, option.default, allowed):
            assert told in rows[f"--{option.name}"], option.name
    for name in COMMANDS:
        assert name == "trtexec" or f"`trtcli {name} " in text


def test_the_cpu_has_no_share(plain: Path, capsys: Captured) -> None:
    assert main([f"--onnx={plain}", "--device=cpu", "--limitSMs=50%"]) == 1
    assert "--limitSMs=50%: the CPU has no streaming multiprocessors" in capsys.readouterr().err


def test_a_share_under_mps(tmp_path: Path) -> None:
    from trtcli.host import mps_share

    assert mps_share({}) == mps_share({"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "100"}) == ("", "")
    half = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50", "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    share, warning = mps_share(half)
    assert not share and "no MPS control daemon" in warning
    (tmp_path / "control").touch()
    assert mps_share(half) == ("50%", "")


def test_another_share_than_at_build_is_told() -> None:
    from dataclasses import replace

    from runtime.cpu import CpuDevice
    from runtime.engine import Engine
    from runtime.loaded import share_mismatch
    from tactics.tactic import DeviceSpec

    def device(spec: DeviceSpec) -> CpuDevice:
        found = CpuDevice()
        found.spec = spec
        return found

    whole = DeviceSpec("cuda", "X", multiprocessors=132)
    half = replace(whole, multiprocessors=64, share="64 of 132 SMs")
    engine = Engine(None, (), {}, {}, (), half)  # type: ignore[arg-type]
    assert share_mismatch(engine, device(half)) == ""
    assert "chosen for 64 of 132 SMs, it runs on all 132 SMs" in share_mismatch(engine, device(whole))
    assert "MPS 50%" in share_mismatch(engine, device(replace(whole, share="MPS 50%")))


def test_the_help_of_commands_without_inference_leaves_out_what_needs_one(capsys: Captured) -> None:
    shown = {}
    for command in ("build", "inspect", "profile"):
        assert main([command, "--help"]) == 0
        shown[command] = {line.split()[0].split("=")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    assert {"--dumpProfile", "--exportTimes"} <= shown["profile"]
    assert not shown["build"] & {"--dumpProfile", "--exportTimes", "--dumpOutput"}
    assert {"--json", "--whyNot"} <= shown["inspect"]
