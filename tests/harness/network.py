"""Whole networks as a GPU would run them, on the CPU: CUDA plans in the fiber harness, in the memory that the runtime plans for them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from fusion.network import Network
from runtime.columns import ask_tactics
from runtime.cpu import CpuDevice
from runtime.engine import Engine, InputRange, LayerPlan
from runtime.views import VIEW, share_memory
from runtime.workloads import workload_of
from tactics.registry import tactics
from tactics.tactic import Buffer, Copy, CpuCall, DeviceSpec, Launch, Memset, Plan, Tactic, Workload, refusal
from tests.harness.fiber import A100, _launch

ON_THE_CPU = ("simt", "depthwise", "pointwise", "pooling", "shuffle", "reduce", "resize", "normalization", "softmax")  # no inline PTX


class Fibers(Tactic):
    """A CUDA tactic whose plan is one step: all its launches in the harness."""

    device = "cpu"

    def __init__(self, real: Tactic) -> None:
        self.real = real
        self.id = f"fibers.{real.id}"

    def plan(self, workload: Workload, config: tuple, device: DeviceSpec) -> Plan:
        plan = self.real.plan(workload, config, A100)

        def run(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], packed: Sequence[np.ndarray], workspace: np.ndarray) -> None:
            arrays = {"input": inputs, "output": outputs, "packed": packed, "workspace": [workspace]}

            def at(buffer: Buffer) -> int:
                return arrays[buffer.kind][buffer.index].ctypes.data + buffer.offset

            for step in plan.steps:
                if isinstance(step, Launch):
                    _launch(step, at)
                elif isinstance(step, Memset):
                    ctypes.memset(at(step.buffer), 0, step.size)
                else:
                    assert isinstance(step, Copy)
                    ctypes.memmove(at(step.target), at(step.source), step.size)

        return Plan((CpuCall(run, self.id),), plan.workspace, plan.in_place)


TACTICS = {f"fibers.{one.id}": Fibers(one) for one in tactics("cuda") if any(part in one.id for part in ON_THE_CPU)}


def fiber_engine(network: Network) -> Engine:
    """``network`` (static shapes, fused for CUDA) as an engine whose tactics are in TACTICS; ``runtime.resolution.registry`` must know them."""
    spec, names = A100, set(network.constants)
    dense = [workload_of(network, layer, {}, names, tf32=False) for layer in network.layers]
    sharing = share_memory(network, ask=ask_tactics(network, [dense], spec))
    weights, plans = dict(network.constants), []
    for layer in network.layers:
        if layer.name in sharing.views:
            plans.append(LayerPlan(VIEW))
            continue
        workload = workload_of(network, layer, {}, names, tf32=False, pitches=sharing.pitches)
        one = next(one for one in TACTICS.values() if refusal(one.real, workload, spec) is None)
        config = one.real.configs(workload, spec)[0]
        values = {number: network.constants[name] for number, name in enumerate(layer.inputs) if name in names}
        packed = {f"{layer.name}#{number}": array for number, array in enumerate(one.real.prepare(workload, config, values))}
        weights.update(packed)
        plans.append(LayerPlan(one.id, config, tuple(packed)))
    profile = {name: InputRange(*(tuple(network.tensors[name].shape),) * 3) for name in network.inputs}  # type: ignore[arg-type]
    bare = Network(network.name, network.inputs, network.outputs, network.layers, network.tensors, {}, network.fates)
    return Engine(bare, tuple(plans), weights, {}, (profile,), CpuDevice().spec, {})
