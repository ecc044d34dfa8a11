"""New weights for built engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.parser import parse_model

import trtcli
from runtime.engine import Engine, EngineError
from trtcli.cli import main
from trtcli.refitting import stripped

Captured = pytest.CaptureFixture[str]
RUN = ("--device=cpu", "--duration=0", "--iterations=1", "--warmUp=0")


def network(seed: int, channels: int = 4, factor: float = 0.5) -> ModelProto:
    """Convolution, batch normalisation (folded), a scalar factor (part of the kernel), pooling, product."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.standard_normal((channels, 3, 3, 3)), "scale": rng.uniform(0.5, 2, channels), "shift": rng.standard_normal(channels),
        "mean": rng.standard_normal(channels), "var": rng.uniform(0.5, 2, channels), "v": rng.standard_normal((channels, 5)),
        "factor": np.array(factor),
    }  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["a"]),
         helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
         helper.make_node("Relu", ["b"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["d"]),
         helper.make_node("Mul", ["d", "factor"], ["e"]), helper.make_node("Flatten", ["e"], ["f"]),
         helper.make_node("MatMul", ["f", "v"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


X = np.random.default_rng(9).standard_normal((2, 3, 8, 8)).astype(np.float32)
PROFILES = tuple(trtcli.ProfileShapes(opt_shapes={"x": (n, 3, 8, 8)}) for n in (2, 16))


def wanted(model: ModelProto) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def check_refit(device: str, **options: object) -> None:
    old, new = network(0), network(1)
    engine = trtcli.build(old, trtcli.BuildConfig(profiles=PROFILES, avg_timing=1, **options), device=device)  # type: ignore[arg-type]
    changed = trtcli.refit(engine, new)
    assert [plan.tactic for plan in changed.layers] == [plan.tactic for plan in engine.layers]
    assert set(changed.weights) == set(engine.weights)
    tolerance = 1e-2 if options.get("fp16") else 1e-4
    for one, model in ((changed, new), (engine, old)):
        np.testing.assert_allclose(one.create_execution_context().execute({"x": X})["y"], wanted(model), rtol=tolerance, atol=tolerance)
    assert np.abs(wanted(old) - wanted(new)).max() > 0.1, "the models do not differ"


def test_new_weights() -> None:
    check_refit("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("fp16", [False, True])
def test_new_weights_on_a_gpu(fp16: bool) -> None:
    check_refit("0", fp16=fp16, tf32=False, optimization_level=1)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (network(1, factor=0.25), "other single numbers"),
        (network(1, channels=6), r"tensor '\S+' is .*, the engine has"),
        (helper.make_model(helper.make_graph([helper.make_node("Relu", ["z"], ["y"])], "g",
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]),
            opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "it has inputs z and outputs y, the engine x and y"),
    ],
)  # fmt: skip
def test_another_network_is_refused(other: ModelProto, complaint: str) -> None:
    engine = trtcli.build(network(0), trtcli.BuildConfig(shapes={"x": (2, 3, 8, 8)}, optimization_level=0), device="cpu")
    with pytest.raises(ValueError, match=f"the model does not fit the engine: .*{complaint}"):
        trtcli.refit(engine, other)


def test_an_engine_without_weights(tmp_path: Path, capsys: Captured) -> None:
    files = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for seed, path in enumerate(files):
        path.write_bytes(network(seed).SerializeToString())
    bare, whole = tmp_path / "bare", tmp_path / "whole"
    argv = [f"--onnx={files[0]}", *RUN, "--shapes=x:2x3x8x8", "--avgTiming=1"]
    assert main([*argv, "--refit", "--stripWeights", f"--saveEngine={bare}"]) == 0  # runs, and saves without weights
    assert main([*argv, f"--saveEngine={whole}"]) == 0
    assert not Engine.load(bare).weights and bare.stat().st_size < whole.stat().st_size
    with pytest.raises(EngineError, match="weights were stripped: give them back with --refitFromOnnx"):
        Engine.load(bare).create_execution_context()
    capsys.readouterr()
    X.tofile(tmp_path / "x.bin")
    export = tmp_path / "out.json"
    again = [f"--loadEngine={bare}", *RUN, f"--loadInputs=x:{tmp_path / 'x.bin'}", f"--exportOutput={export}"]
    assert main([*again, f"--refitFromOnnx={files[1]}"]) == 0
    assert "Refitted with the weights of" in capsys.readouterr().out
    import json

    np.testing.assert_allclose(np.reshape(json.loads(export.read_text())[0]["values"], (2, 5)), wanted(network(1)), rtol=1e-4, atol=1e-4)
    assert main(again) == 1
    assert "its weights were stripped" in capsys.readouterr().err.replace("the engine's weights", "its weights")
    assert main(["verify", str(bare), f"--refitFromOnnx={files[1]}"]) == 0


def test_fusions_that_a_measurement_decided_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of one input become one: optional, and part of the network that new weights must fit."""
    monkeypatch.setattr("trtcli.builder.measured.MIN_GAIN", -1e9)  # whatever the clock says

    def parallel(seed: int) -> ModelProto:
        rng = np.random.default_rng(seed)
        weights = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in "uv"}
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "u"], ["p"]), helper.make_node("MatMul", ["x", "v"], ["q"]),
             helper.make_node("Softmax", ["p"], ["a"]), helper.make_node("Softmax", ["q"], ["b"])],
            "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16]) for name in "ab"],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    engine = trtcli.build(parallel(0), trtcli.BuildConfig(avg_timing=1), device="cpu")
    assert isinstance(engine.record["optionalFusions"], dict), "the rule found nothing: the test tests nothing"
    x = np.random.default_rng(2).standard_normal((1, 16)).astype(np.float32)
    found = trtcli.refit(engine, parallel(1)).create_execution_context().execute({"x": x})
    weights = {one.name: numpy_helper.to_array(one) for one in parallel(1).graph.initializer}
    for name, weight in (("a", "u"), ("b", "v")):
        powers = np.exp(x @ weights[weight])
        np.testing.assert_allclose(found[name], powers / powers.sum(), rtol=1e-4, atol=1e-5)


def test_precisions_by_layer_reach_the_engine() -> None:
    config = trtcli.BuildConfig(
        shapes={"x": (2, 3, 8, 8)}, optimization_level=0, layer_precisions=(("*MatMul*", "fp16"),), precision_constraints="obey"
    )
    model = network(0)
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    engine = trtcli.build(model, config, device="cpu")
    used = {layer.name: engine.network.tensors[layer.inputs[0]].dtype.label for layer in engine.network.layers if layer.origins}
    product = next(name for name in used if "MatMul" in name)
    assert used[product] == "FP16" and used[next(name for name in used if "Conv" in name)] == "FP32"
    for one, weights in ((engine, model), (trtcli.refit(engine, _renamed(network(1))), network(1))):
        np.testing.assert_allclose(one.create_execution_context().execute({"x": X})["y"], wanted(weights), rtol=1e-2, atol=1e-2)


def test_output_types_by_layer_reach_the_engine() -> None:
    """The convolution's result is rounded to half precision between two layers that compute in float32."""
    config = trtcli.BuildConfig(
        shapes={"x": (2, 3, 8, 8)}, optimization_level=0, layer_output_types=(("*Conv*", "fp16"),), precision_constraints="obey"
    )
    engine = trtcli.build(_renamed(network(0)), config, device="cpu")
    exact = wanted(network(0))
    assert np.abs(engine.create_execution_context().execute({"x": X})["y"] - exact).max() > 1e-6 * np.abs(exact).max()
    for one, weights in ((engine, network(0)), (trtcli.refit(engine, _renamed(network(1))), network(1))):
        np.testing.assert_allclose(one.create_execution_context().execute({"x": X})["y"], wanted(weights), rtol=1e-2, atol=1e-2)


def _renamed(model: ModelProto) -> ModelProto:
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


def branching(seed: int, extra: str = "") -> ModelProto:
    """Weights around, inside of a branch, and inside of a loop in it."""
    text = f"""<ir_version: 8, opset_import: ["" : 18]> g (float[n, 4] x, bool c, int64 times) => (float[n, 4] y) <bool yes = {{1}}> {{
        h = MatMul(x, around)
        y = If(c) <
            then_branch = t () => (float[n, 4] a) {{ a1 = MatMul(h, inner) {extra or "a = Relu(a1)"} }},
            else_branch = f () => (float[n, 4] b) {{
                b = Loop(times, yes, h) <body = l (int64 i, bool d, float[n, 4] s) => (bool e, float[n, 4] u) {{
                    e = Identity(d) u1 = MatMul(s, deep) u = Add(u1, shift) }}> }}> }}"""
    model = parse_model(text)
    rng = np.random.default_rng(seed)
    then, other = (one.g for one in model.graph.node[1].attribute)
    loop = other.node[0].attribute[0].g
    for graph, name, shape in ((model.graph, "around", (4, 4)), (then, "inner", (4, 4)), (loop, "deep", (4, 4)), (loop, "shift", (4,))):
        graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return model


def test_weights_inside_of_branches_and_loops(tmp_path: Path) -> None:
    old, new = branching(0), branching(1)
    config = trtcli.BuildConfig(shapes={"x": (3, 4)}, avg_timing=1, optimization_level=1)
    engine = trtcli.build(old, config, device="cpu")
    path = tmp_path / "bare.engine"
    stripped(engine).save(path)
    bare = Engine.load(path)
    assert not bare.weights and all(not body.weights for plan in bare.layers for body in plan.bodies)
    with pytest.raises(EngineError, match="weights were stripped"):
        bare.create_execution_context()
    x = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    for one, model in ((trtcli.refit(engine, new), new), (trtcli.refit(bare, new), new), (trtcli.refit(bare, old), old), (engine, old)):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for flag in (True, False):
            inputs = {"x": x, "c": np.array(flag), "times": np.array(3)}
            found = one.create_execution_context().execute(inputs)["y"]
            np.testing.assert_allclose(found, session.run(None, inputs)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="the model does not fit the engine"):
        trtcli.refit(engine, branching(1, "a = Abs(a1)"))
