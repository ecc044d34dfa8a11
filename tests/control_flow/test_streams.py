"""Auxiliary streams in segments, branches and loops."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import numpy as np
import pytest

from runtime.benchmark import BenchmarkOptions
from runtime.engine import Engine
from runtime.graph import compare_replay
from runtime.profiler import profile_layers
from runtime.streams import Work
from tests.control_flow.networks import FORKED, FORKED_SHAPES, made, parse
from tests.models import onnxruntime_outputs
from tests.runtime.test_streams import LazyDevice
from trtcli.config import BuildConfig
from trtcli.report.layers import stream_branches


@pytest.fixture(autouse=True)
def what_is_free_is_overwritten():
    """Not here: streams may run later than memory is given back, in an order that events allow."""


def on_streams(engine: Engine, draw: random.Random) -> Engine:
    """``engine``, bodies included, with every layer on some stream."""
    plans = (
        replace(plan, stream=draw.randint(0, 2), bodies=tuple(on_streams(body, draw) for body in plan.bodies)) for plan in engine.layers
    )
    return replace(engine, layers=tuple(plans))


@pytest.mark.parametrize("seed", range(12))
def test_segments_on_streams_in_any_order_that_events_allow(seed, cpu, tmp_path):
    """The shared memory of segments holds for every order in which streams may run, over several inferences and sizes."""
    engine = made(parse(FORKED), cpu, tmp_path, FORKED_SHAPES)
    device = LazyDevice(seed)
    context = on_streams(engine, random.Random(seed)).create_execution_context(device)
    assert context.engine.num_aux_streams == 2
    stream, plain = device.stream(), engine.create_execution_context(cpu)
    for rows in (16, 5, 16):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)
        wanted = plain.execute({"x": x, "steps": np.array(3)})
        context.set_input_shape("x", x.shape)
        context.use_own_memory()
        for name, array in (("x", x), ("steps", np.array(3))):
            context.write_tensor(name, array)
        context.execute_async_v3(stream)
        context.execute_async_v3(stream)  # a second inference queued behind the first
        stream.synchronize()
        for name, array in wanted.items():
            np.testing.assert_array_equal(context.read_tensor(name), array)


def test_streams_are_chosen_per_segment_and_body(cpu, tmp_path, monkeypatch):
    timed = []

    def time_parts(device, parts):
        timed.append([[part.engine.decisions(part.profile)[number].stream for number in part.segment.layers] for part in parts])
        return [2e-3, *(1e-3 for _ in parts[1:])]

    monkeypatch.setattr("runtime.streams.time_parts", time_parts)
    monkeypatch.setattr("runtime.streams.event_cost", lambda device: 0.0)
    monkeypatch.setattr("runtime.streams.Work", lambda seconds, needs, *shares: Work(1e-3, needs, 0.2, 0.2))  # whatever the clock says
    config = replace(FORKED_SHAPES, optimization_level=1, max_aux_streams=2)
    engine = made(parse(FORKED), cpu, tmp_path, config)
    (body,) = (body for plan in engine.layers for body in plan.bodies)
    assert len(timed) == 3 and all(not any(first) and all(map(any, others)) for first, *others in timed)
    assert body.num_aux_streams >= 1 and body.record["streams"]["used"] >= 1
    assert engine.num_aux_streams == max(engine.record["streams"]["used"], body.num_aux_streams)
    streams = {layer.name: plan.stream for layer, plan in zip(engine.network.layers, engine.layers, strict=True)}
    assert {name for branch in engine.record["streams"]["branches"] for name in branch["layers"]} <= set(streams)
    assert sum(map(bool, streams.values())) >= 2
    shown = {name for branch in stream_branches(engine) for name in branch["layers"]}
    assert shown & set(streams) and shown & {layer.name for layer in body.network.layers}
    x = np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)
    inputs = {"x": x, "steps": np.array(3)}
    context, wanted = engine.create_execution_context(cpu), onnxruntime_outputs(parse(FORKED), inputs)
    for name, array in context.execute(inputs).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)
    assert compare_replay(context, inputs).differing == ()
    aux = [cpu.stream(concurrent=True) for _ in range(engine.num_aux_streams)]
    context.set_aux_streams(aux)
    for name, array in context.execute(inputs).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)


def test_parts_that_cannot_run_at_guessed_sizes_stay_on_one_stream(cpu, tmp_path):
    """Both parts of an axis are guessed as 4 elements: together more than it has."""
    split = parse("g (float[6] x, int64[2] split) => (float[p] a, float[q] b) { a, b = Split <axis = 0> (x, split) }")
    engine = made(split, cpu, tmp_path, BuildConfig(optimization_level=0, max_aux_streams=1))
    assert engine.num_aux_streams == 0 and "guessed: layer 'Split" in engine.record["streams"]["branches"][0]["reason"]
    x = np.arange(6, dtype=np.float32)
    found = engine.create_execution_context(cpu).execute({"x": x, "split": np.array([2, 4])})
    np.testing.assert_array_equal(found["a"], x[:2])
    np.testing.assert_array_equal(found["b"], x[2:])


@pytest.mark.gpu
def test_streams_in_segments_and_bodies_on_a_gpu(tmp_path):
    """Plainly and as graphs, with sizes that change; then its layers are timed in graphs and shown as debug tensors."""
    from runtime.devices import open_device

    device = open_device("0")
    built = made(parse(FORKED), device, tmp_path, replace(FORKED_SHAPES, optimization_level=1, tf32=False, max_aux_streams=2))
    for engine in (built, on_streams(built, random.Random(4))):
        context = engine.create_execution_context(device)
        for rows in (16, 5, 16):
            inputs = {"x": np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32), "steps": np.array(3)}
            wanted = onnxruntime_outputs(parse(FORKED), inputs)
            for name, array in context.execute(inputs).items():
                np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)
            assert compare_replay(context, inputs).differing == ()
    seen = []
    context.set_debug_listener(lambda name, array: seen.append((name, bool(np.isfinite(array).all()))))
    (inner,) = {body.network.outputs[0] for plan in engine.layers for body in plan.bodies}
    context.set_tensor_debug_state(inner, True)
    context.execute(inputs)
    assert seen == [(f"{inner}[{number}]", True) for number in range(3)]
    context.set_tensor_debug_state(inner, False)
    begin = time.perf_counter()
    profile = profile_layers(context, inputs, BenchmarkOptions(20, 0.0, 5.0))
    elapsed = 1e3 * (time.perf_counter() - begin)
    assert profile.in_graph
    times = {layer.name: layer.median for layer in profile.layers}
    bodies = [body for plan in engine.layers for body in plan.bodies]
    inside = {layer.name: times[layer.name] for body in bodies for layer, one in zip(body.network.layers, body.layers, strict=True) if one.tactic != "view"}
    assert inside and all(median > 0 for median in inside.values()), (inside, profile.event_overhead)
    total = sum(layer.total for layer in profile.layers)  # others may share the GPU, and layers run beside each other on three streams
    assert total <= 3 * elapsed, (total, elapsed, times)
