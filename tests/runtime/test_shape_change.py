"""What a change of shapes costs: nothing is generated for shapes met before, and no kernel's text for new ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import MatrixMultiply, Normalization
from runtime.context import ExecutionContext
from runtime.engine import Engine, InputRange, LayerPlan
from runtime.resolution import outline, resolve
from runtime.workloads import workload_of
from tactics.candidates import SelectOptions, candidates
from tactics.compilers import kernels_of
from tactics.cuda import codegen
from tests.runtime.conftest import Graph, Reference
from tests.runtime.test_arena import H100


def test_shapes_met_before_cost_no_planning(mlp, cpu, monkeypatch) -> None:
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (1, 4, 40)})
    planned: list[object] = []
    plan = Reference.plan
    monkeypatch.setattr(Reference, "plan", lambda self, workload, config, device: planned.append(workload) or plan(self, workload, config, device))
    first, second = ExecutionContext(engine, cpu), ExecutionContext(engine, cpu)
    x = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)

    def run(context, batch):
        planned.clear()
        context.set_input_shape("x", (batch, 8))
        found = context.execute({"x": x[:batch]})
        return found, len(planned)

    wanted = {batch: run(first, batch)[0] for batch in (3, 5)}
    for context, batch in ((first, 3), (second, 5), (second, 3), (first, 5)):  # contexts of an engine share what they know
        found, count = run(context, batch)
        assert count == 0
        assert all(np.array_equal(found[name], wanted[batch][name]) for name in wanted[batch])
    assert run(first, 7)[1] > 0
    for batch in range(8, 8 + 64 - 40 + 8):
        run(first, batch)
    assert run(second, 3)[1] == 0  # a few dozen shapes are remembered


def test_a_new_shape_writes_no_kernel_text(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are the same, and their generated epilogues are not written again; by the plans for an H100."""
    bias = apply("relu", apply("add", Operand(0), Operand(1)))
    x = graph.input("x", (symbol("n"), 64), DataType.HALF)
    w, b, g = (graph.constant(name, np.ones(shape, np.float16)) for name, shape in (("w", (64, 64)), ("b", (64,)), ("g", (64,))))
    y = graph.layer(MatrixMultiply(epilogue=bias), x, w, b)
    graph.layer(Normalization((1,), 1e-5, epilogue=apply("mul", Operand(0), Operand(1))), y, g, outputs=("y",))
    network = graph.network("y")
    profile = {"x": InputRange((1, 64), (32, 64), (4096, 64))}
    plans = []
    for layer in network.layers:
        tactic, config = candidates(workload_of(network, layer, {"n": 32}, network.constants), H100, SelectOptions())[0][0]
        plans.append(LayerPlan(tactic.id, config))
    engine = Engine(replace(network, constants={}), tuple(plans), {}, {}, (profile,), H100)
    fixed = outline(engine)
    before = resolve(engine, fixed, {"x": (32, 64)}, H100)

    def forbidden(*_: object) -> None:
        raise AssertionError("text was generated again")

    monkeypatch.setattr(codegen, "_Writer", forbidden)
    after = resolve(engine, fixed, {"x": (4000, 64)}, H100)
    assert [kernels_of(step.plan) for step in before.steps] == [kernels_of(step.plan) for step in after.steps]
    assert [step.plan for step in before.steps] != [step.plan for step in after.steps]


def test_the_signs_of_zeros_are_told_apart() -> None:
    """Text is remembered by equal expressions."""
    kinds = [TensorType(DataType.FLOAT, (4,)).dtype]
    texts = [codegen.device_function("f", apply("mul", Operand(0), Literal(zero, DataType.FLOAT)), kinds) for zero in (0.0, -0.0)]
    assert texts[0] != texts[1] and "-0" in texts[1]
    nan = float("nan")
    assert Literal(nan, DataType.FLOAT) == Literal(-nan, DataType.FLOAT) and Literal(1, DataType.INT32) == Literal(1, DataType.INT32)
    assert Literal(1.0, DataType.FLOAT) != Literal(1.0, DataType.HALF)
