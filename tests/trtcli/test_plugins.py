"""Custom operators end to end: import, build, engine file, both devices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fusion.bind import bind_op
from fusion.importer import UnsupportedModel, import_onnx
from fusion.network import TensorType
from fusion.ops import Custom
from fusion.serial import from_json, to_json
from runtime.devices import open_device
from runtime.engine import Engine
from tactics.compiler import compile_cubin, cuda_include_paths
from tactics.cuda.plugin.plugin import PluginKernel
from tactics.tactic import Launch, Workload
from tests.harness.fiber import H100, available, check, kernels
from trtcli import plugins
from trtcli.api import build
from trtcli.cli import main
from trtcli.config import BuildConfig

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "snake_plugin.py"


@pytest.fixture
def snake() -> Iterator[plugins.Plugin]:
    (plugin,) = plugins.load(EXAMPLE)
    yield plugin
    plugins.unregister(plugin)


def model(*shape: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """relu(snake(x)) with an alpha per channel."""
    alpha = helper.make_tensor("alpha", dtype, [shape[1]], np.linspace(0.5, 2, shape[1]).tolist())
    nodes = [helper.make_node("Snake", ["x", "alpha"], ["s"], domain="example"), helper.make_node("Relu", ["s"], ["y"])]
    inputs, outputs = ([helper.make_tensor_value_info(name, dtype, shape)] for name in "xy")
    graph = helper.make_graph(nodes, "codec", inputs, outputs, [alpha])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("example", 1)])


def wanted(x: np.ndarray) -> np.ndarray:
    a = np.linspace(0.5, 2, x.shape[1]).reshape(-1, 1)
    return np.maximum(x + np.sin(a * x) ** 2 / a, 0)


def test_engine_on_the_cpu(snake: plugins.Plugin, tmp_path: Path) -> None:
    config = BuildConfig(min_shapes={"x": (1, 3, 4)}, opt_shapes={"x": (2, 3, 5)}, max_shapes={"x": (4, 3, 9)}, optimization_level=1)
    build(model("n", 3, "t"), config, "cpu").save(tmp_path / "snake.engine")
    context = Engine.load(tmp_path / "snake.engine").create_execution_context()
    for shape in ((2, 3, 5), (4, 3, 7)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        context.set_input_shape("x", shape)
        np.testing.assert_allclose(context.execute({"x": x})["y"], wanted(x), 1e-5, 1e-6)
    plugins.unregister(snake)
    with pytest.raises(ValueError, match=r"NumPy function of custom operator example::Snake.*--plugins=FILE.py"):
        Engine.load(tmp_path / "snake.engine").create_execution_context()


@pytest.mark.gpu
def test_engine_on_the_gpu_needs_no_plugin(snake: plugins.Plugin, tmp_path: Path) -> None:
    config = BuildConfig(min_shapes={"x": (1, 3, 4)}, opt_shapes={"x": (2, 3, 5)}, max_shapes={"x": (4, 3, 900)}, optimization_level=1)
    build(model("n", 3, "t"), config, "0").save(tmp_path / "snake.engine")
    plugins.unregister(snake)
    context = Engine.load(tmp_path / "snake.engine").create_execution_context(open_device("0"))
    for shape in ((2, 3, 5), (4, 3, 801)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        context.set_input_shape("x", shape)
        np.testing.assert_allclose(context.execute({"x": x})["y"], wanted(x), 1e-5, 1e-6)


def custom(network) -> Custom:  # noqa: ANN001
    return next(layer.op for layer in network.layers if isinstance(layer.op, Custom))


@pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
def test_kernel(snake: plugins.Plugin) -> None:
    op = custom(import_onnx(model(2, 3, 300)))
    x, alpha = np.random.default_rng(0).standard_normal((2, 3, 300)).astype(np.float32), np.linspace(0.5, 2, 3).astype(np.float32)
    types = tuple(TensorType(plugins.DataType.FLOAT, array.shape) for array in (x, alpha))
    workload = Workload(op, types, op.infer(types))
    check(PluginKernel(), workload, [x, alpha], op.evaluate([x, alpha]))


@pytest.mark.skipif(not cuda_include_paths(), reason="needs the CUDA headers")
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_kernel_compiles_for_the_gpu(snake: plugins.Plugin, dtype: int) -> None:
    op = custom(import_onnx(model(2, 3, 300, dtype=dtype)))
    (step,) = PluginKernel().plan(Workload(op, (), op.infer(())), (), H100).steps
    assert isinstance(step, Launch)
    assert compile_cubin(step.kernel.source(), step.kernel.defines, "sm_90a").resources.spill_stores == 0


def test_one_kernel_for_all_sizes(snake: plugins.Plugin) -> None:
    op = custom(import_onnx(model("n", 3, "t")))
    assert from_json(to_json(op)) == op
    plans = []
    for sizes in ({"n": 1, "t": 7}, {"n": 8, "t": 1000}):
        bound = bind_op(op, sizes)
        plans.append(PluginKernel().plan(Workload(bound, (), bound.infer(())), (), H100))
    assert len({kernels(plan) for plan in plans}) == 1
    assert [plan.steps[0].grid for plan in plans] == [(1, 1, 1), (94, 1, 1)]  # type: ignore[union-attr]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "codec.onnx"
    onnx.save(model(2, 3, 8), path)
    flags = [f"--onnx={path}", "--device=cpu", "--skipInference"]
    assert main(flags) == 1
    assert "Snake_0: Snake (example, opset 1): trtcli does not support this operator" in capsys.readouterr().err
    try:
        assert main([*flags, f"--plugins={EXAMPLE}"]) == 0
    finally:
        for plugin in plugins.registered():
            plugins.unregister(plugin)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/plugins.md: its commands run, and its table names the fields of a plugin."""
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    listed = [name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)", row.replace("(", "` "))]
    assert [name for name in listed if name not in ("inputs", "outputs", "attributes")] == [field.name for field in fields(plugins.Plugin)]
    commands = [line.partition("#")[0].split() for line in page.splitlines() if line.startswith("    trtcli ")]
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    onnx.save(model(2, 3, 8), "codec.onnx")
    try:
        for _, *flags in commands:  # on the CPU the engine needs the plugin, too
            given = flags if any("--plugins" in flag for flag in flags) else [*flags, "--plugins=examples/snake_plugin.py"]
            assert main([*given, "--device=cpu", "--iterations=2", "--duration=0", "--warmUp=0"]) == 0
    finally:
        for plugin in plugins.registered():
            plugins.unregister(plugin)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("missing.py", None, "no such file"),
        ("lib.so", "", "a compiled TensorRT plugin"),
        ("empty.py", "", "it must define PLUGINS"),
        ("broken.py", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_bad_files(name: str, text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(plugins.PluginError, match=says):
        plugins.load(tmp_path / name)


def test_what_a_plugin_says_is_checked(snake: plugins.Plugin) -> None:
    wrong = plugins.Plugin("example", "Snake", lambda inputs, attributes: [inputs[0]], lambda inputs, attributes: [inputs[1]])
    plugins.register(wrong)
    network = import_onnx(model(2, 3, 8))
    with pytest.raises(plugins.PluginError, match=r"gave float32 \[3\]; its shape inference said float32 \[2, 3, 8\]"):
        custom(network).evaluate([np.zeros((2, 3, 8), np.float32), np.zeros(3, np.float32)])
    plugins.register(snake)
    with pytest.raises(UnsupportedModel, match="its plugin says ValueError: x float64"):
        import_onnx(model(2, 3, 8, dtype=TensorProto.DOUBLE))
