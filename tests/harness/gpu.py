"""Runs tactic plans on the GPU of this machine: outputs and workspace poisoned, captured in a CUDA graph, replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fusion.dtypes import DataType
from fusion.network import TensorType
from runtime.device import Binding, Tensor
from runtime.devices import open_device
from tactics.compiler import compile_cubin
from tactics.tactic import Launch, LibraryCall, Plan, tensor_bytes


def run_on_gpu(
    plan: Plan, inputs: Sequence[np.ndarray], outputs: Sequence[TensorType], packed: Sequence[np.ndarray] = (), replays: int = 2
) -> tuple[np.ndarray, ...]:
    """The outputs of ``plan`` after the last of ``replays`` replays; the same must come out over every input that the plan may write over."""
    device = open_device("0")
    stream, arch, kept = device.stream(), device.spec.arch, []

    def upload(array: np.ndarray) -> Tensor:
        memory = device.allocate(max(1, array.nbytes))
        kept.append(memory)
        if array.nbytes:
            device.upload(memory.address, np.ascontiguousarray(array))
        return Tensor(memory.address, TensorType(DataType(array.dtype.name), array.shape))

    kernels = {step.kernel.key(arch): step.kernel for step in plan.steps if isinstance(step, Launch)}
    modules = device.load({key: compile_cubin(one.source(), one.defines, arch, one.file).image for key, one in kernels.items()})
    results = [device.allocate(max(1, tensor_bytes(tensor))) for tensor in outputs]
    workspace = device.allocate(plan.workspace + 256)
    binding = Binding(
        inputs=tuple(map(upload, inputs)), packed=tuple(map(upload, packed)), workspace=workspace.address, workspace_size=workspace.size,
        outputs=tuple(Tensor(memory.address, tensor) for memory, tensor in zip(results, outputs, strict=True)),
    )  # fmt: skip
    program = device.program(plan, binding, modules)
    if any(isinstance(step, LibraryCall) for step in plan.steps):  # a library may load its kernels at its first call
        program.run(stream)
        stream.synchronize()
    graph = device.capture(stream, lambda: program.run(stream))
    found = [np.empty(tuple(tensor.shape), tensor.dtype.numpy) for tensor in outputs]  # type: ignore[arg-type]
    for _ in range(replays):
        for memory, size in [*zip(results, map(tensor_bytes, outputs), strict=True), (workspace, plan.workspace)]:
            device.fill(memory.address, 0xFF, size, stream)
        graph.launch(stream)
    stream.synchronize()
    for array, memory in zip(found, results, strict=True):
        if array.nbytes:
            device.download(array, memory.address)
    for number in plan.in_place:  # and once over each input that the plan says may be written over
        bound = tuple(map(upload, inputs))
        over = Tensor(bound[number].address, outputs[0])
        device.program(plan, replace(binding, inputs=bound, outputs=(over, *binding.outputs[1:])), modules).run(stream)
        stream.synchronize()
        again = np.empty_like(found[0])
        device.download(again, over.address)
        assert again.tobytes() == found[0].tobytes(), f"output 0 is another when it is written over input {number}"
    return tuple(found)
