"""How much memory is enough where the host steps in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runtime.device import Device
from runtime.engine import EngineError
from tests.control_flow.networks import FORKED, GROWING, LOOP, QUICK, ROUNDS, made, parse
from tests.models import onnxruntime_outputs
from trtcli.config import BuildConfig
from trtcli.report.inspection import engine_json, engine_lines


@pytest.mark.parametrize("text", [ROUNDS, FORKED], ids=["rounds", "forked"])
def test_the_most_memory_of_loops_and_branches_is_enough(text, cpu, tmp_path):
    """In exactly so much memory of the caller's, any sizes and counts in any order; and it is not many times what an inference takes."""
    _in_the_most_memory(text, cpu, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("text", [ROUNDS, FORKED], ids=["rounds", "forked"])
def test_the_most_memory_is_enough_on_a_gpu(text, tmp_path):
    from runtime.devices import open_device

    _in_the_most_memory(text, open_device("0"), tmp_path)


def _in_the_most_memory(text: str, device: Device, tmp_path) -> None:
    model = parse(text)
    width, count = (4, "t") if text is ROUNDS else (8, "steps")
    config = BuildConfig(optimization_level=0, min_shapes={"x": (1, width)}, opt_shapes={"x": (8, width)}, max_shapes={"x": (64, width)})
    engine = made(model, device, tmp_path, replace(config, tf32=False))
    need = engine.device_memory_size
    context = engine.create_execution_context_without_device_memory(device)
    context.set_device_memory(device.allocate(need))
    own = engine.create_execution_context(device)
    draw = np.random.default_rng(1)
    for rows, times in ((64, 4), (7, 3), (64, 0), (33, 5), (1, 2), (64, 3)):
        inputs = {"x": draw.standard_normal((rows, width)).astype(np.float32), count: np.array(times), "c": np.array(bool(times % 2))}
        inputs = {name: inputs[name] for name in engine.network.inputs}
        wanted = onnxruntime_outputs(model, inputs)
        for one in (context, own):
            for name, array in one.execute(inputs).items():
                np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)
    assert own._heap.peak <= need <= 6 * own._heap.peak
    for one in (context, own):
        one.set_input_shape("x", (5, width))
        assert 0 < one.update_device_memory_size_for_shapes() < need


def test_a_branch_that_the_largest_sizes_never_take(cpu, tmp_path):
    """Its shapes would be negative there: it has no bound, and the engine is as good as any."""
    model = parse("""g (float[1, 1, n] x, bool c) => (float[1, 1, k] y) {
        y = If(c) <then_branch = t () => (float[1, 1, a] p) { q = MaxPool<kernel_shape = [4]>(x) p = Neg(q) }, else_branch = f () => (float[1, 1, b] r) { r = Exp(x) }>
    }""")
    shapes = {name: {"x": (1, 1, 2)} for name in ("min_shapes", "opt_shapes", "max_shapes")}
    engine = made(model, cpu, tmp_path, BuildConfig(optimization_level=0, **shapes))
    with pytest.raises(EngineError, match="is not known: not all of it can run at the largest sizes"):
        _ = engine.device_memory_size
    x = np.float32([[[0, 1]]])
    np.testing.assert_allclose(engine.create_execution_context(cpu).execute({"x": x, "c": np.array(False)})["y"], np.exp(x), rtol=1e-6)


def test_memory_that_nobody_can_bound_is_said(cpu, tmp_path):
    for model, config, why in ((parse(LOOP), QUICK, "decides size"), (parse(GROWING), QUICK, "a branch or loop decides size")):
        engine = made(model, cpu, tmp_path, config)
        with pytest.raises(EngineError, match=f"the most memory that activations may need is not known: .*{why}.*run the largest inference once"):
            _ = engine.device_memory_size
        (told,) = engine_json(engine)["Memory"]
        assert why in told["Unbounded"] and told["Unbounded"] in "\n".join(engine_lines(engine)).replace("\n", " ")
    bounded = made(parse(ROUNDS), cpu, tmp_path, BuildConfig(optimization_level=0, opt_shapes={"x": (8, 4)}))
    assert engine_json(bounded)["Memory"] == [{"Profile": 0, "BoundBytes": bounded.device_memory_size}]
