"""Network and decisions -> engine: the weights that its kernels read, packed as they want them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fusion.network import Network
from runtime.engine import CONTROL, IDLE, ON_HOST, Alternative, Engine, LayerPlan
from runtime.views import VIEW
from tactics.registry import source_of
from tactics.registry import tactic as tactic_by_id
from tactics.select import Decision
from tactics.tactic import (
    LAUNCH_FLOOR,
    Argument,
    Buffer,
    Copy,
    CpuCall,
    DeviceSpec,
    Launch,
    LibraryCall,
    Plan,
    Struct,
    TensorMap,
    Workload,
    floor_seconds,
    reachable_seconds,
    workload_bytes,
    workload_flops,
)
from trtcli.builder.choose import Choices
from trtcli.builder.setting import Setting
from trtcli.builder.workloads import Profile
from trtcli.config import BuildConfig


def assemble(
    network: Network, choices: Choices, profiles: Sequence[Profile], setting: Setting, bodies: Mapping[str, tuple[Engine, ...]]
) -> Engine:
    """The engine without a record, all layers on one stream; ``bodies`` are the engines inside of its control-flow layers."""
    weights: dict[str, np.ndarray] = {}
    packed_names: dict[tuple[Any, ...], tuple[str, ...]] = {}
    device = setting.device.spec
    first, *more = (
        tuple(layer_plans(network, workloads, decisions, setting.config, device, weights, packed_names, bodies))
        for workloads, decisions in zip(choices.workloads, choices.decisions, strict=True)
    )
    for name in network.outputs:  # an output may be a constant itself
        if name in network.constants:
            weights[name] = network.constants[name]
    bare = replace(network, constants={})
    kernels = {key: image for decisions in choices.decisions for decision in decisions for key, image in decision.kernels.items()}
    return Engine(bare, first, weights, kernels, tuple(profiles), device, {}, setting.config.tf32, tuple(more))


def layer_plans(
    network: Network,
    workloads: Sequence[Workload],
    decisions: Sequence[Decision],
    config: BuildConfig,
    device: DeviceSpec,
    weights: dict[str, np.ndarray],
    packed_names: dict[tuple[Any, ...], tuple[str, ...]],
    bodies: Mapping[str, tuple[Engine, ...]],
) -> list[LayerPlan]:
    """The record of one profile's decisions; what they read is added to ``weights`` (packed arrays by ``packed_names``)."""
    layers = []
    for layer, workload, decision in zip(network.layers, workloads, decisions, strict=True):
        if decision.tactic in (VIEW, CONTROL, ON_HOST, IDLE):  # nothing is packed
            weights.update({name: network.constants[name] for name in layer.inputs if name in network.constants})
            layers.append(LayerPlan(decision.tactic, seconds=0.0) if decision.tactic == VIEW else LayerPlan(decision.tactic, bodies=bodies.get(layer.name, ())))
            continue
        tactic = tactic_by_id(decision.tactic)
        plan = tactic.plan(workload, decision.config, device)
        values = {n: network.constants[name] for n, name in enumerate(layer.inputs) if name in network.constants}
        shared = (decision.tactic, decision.config, workload, tuple(layer.inputs[n] for n in values))
        if shared not in packed_names:
            arrays = tactic.prepare(workload, decision.config, values)
            packed_names[shared] = tuple(_store(weights, f"{layer.name}#{n}", array) for n, array in enumerate(arrays))
        for number in inputs_read(plan, len(layer.inputs)):
            if number in values:
                weights[layer.inputs[number]] = values[number]
        layers.append(_layer_plan(workload, decision, plan, packed_names[shared], config, device))
    return layers


def _layer_plan(
    workload: Workload, decision: Decision, plan: Plan, packed: tuple[str, ...], config: BuildConfig, device: DeviceSpec
) -> LayerPlan:
    floor = floor_seconds(workload, device)
    rows = decision.timings if config.profiling_verbosity == "detailed" else ()
    return LayerPlan(
        tactic=decision.tactic,
        config=decision.config,
        packed=packed,
        seconds=decision.seconds,
        floor=reachable_seconds(workload, device) if plan.steps else floor,
        bound=_bound(workload, floor, device),
        workspace=plan.workspace,
        cached=decision.cached,
        sources=_sources(decision),
        alternatives=tuple(Alternative(row.tactic, row.config, row.seconds, row.reason) for row in rows),
    )


def _sources(decision: Decision) -> tuple[tuple[str, float], ...]:
    """The best time of our own kernels and of each library that competed, the fastest first; empty without libraries."""
    best: dict[str, float] = {}
    for timing in decision.timings:
        if timing.seconds is not None:
            name = source_of(timing.tactic) or "own"
            best[name] = min(timing.seconds, best.get(name, math.inf))
    return tuple(sorted(best.items(), key=lambda item: item[1])) if set(best) - {"own"} else ()


def _store(weights: dict[str, np.ndarray], name: str, array: np.ndarray) -> str:
    """Add a packed array under ``name``, with a number when another profile packed the weights otherwise; its name."""
    found, unique, number = np.ascontiguousarray(array), name, 0
    while unique in weights and not _same_bytes(weights[unique], found):
        number += 1
        unique = f"{name}.{number}"
    weights[unique] = found
    return unique


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def inputs_read(plan: Plan, count: int) -> set[int]:
    """The input numbers that the steps of a plan read directly, beside what ``prepare`` packed."""
    numbers: set[int] = set()
    for step in plan.steps:
        if isinstance(step, CpuCall):
            numbers |= set(range(count)) - set(step.unread)
        elif isinstance(step, Copy):
            numbers |= _input_numbers(step.source)
        elif isinstance(step, LibraryCall):
            numbers |= {number for _, buffer in step.buffers for number in _input_numbers(buffer)}
        elif isinstance(step, Launch):
            numbers |= {number for argument in step.arguments for number in _input_numbers(argument)}
    return numbers


def _input_numbers(argument: Argument) -> set[int]:
    if isinstance(argument, Struct):
        return {number for one in argument.fields for number in _input_numbers(one)}
    buffer = argument.buffer if isinstance(argument, TensorMap) else argument
    return {buffer.index} if isinstance(buffer, Buffer) and buffer.kind == "input" else set()


def _bound(workload: Workload, floor: float, spec: DeviceSpec) -> str:
    if spec.kind == "cuda" and floor < LAUNCH_FLOOR:
        return "launch"
    compute = workload_flops(workload)
    return "compute" if compute and workload_bytes(workload) / spec.bandwidth < floor else "memory"
