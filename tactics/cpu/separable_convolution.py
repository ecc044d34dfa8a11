"""A depthwise-separable pair in one layer: image by image, so that what lies between the two convolutions is read while it is in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fusion.network import TensorType
from fusion.ops import SeparableConvolution
from tactics.cpu.convolution import Im2col, Matmul, geometry, is_direct
from tactics.cpu.depthwise import Depthwise
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import parallel
from tactics.separable import parts
from tactics.tactic import Config, CpuCall, DeviceSpec, Plan, Refusal, Tactic, Workload, config

DEPTHWISE, MATMUL, IM2COL = Depthwise(), Matmul(), Im2col()


class SeparableImages(Tactic):
    """The kernels of the two layers on one image after the other (``images`` = 1), or on as many as there are threads."""

    id = "cpu.conv.separable"
    device = "cpu"
    ops = (SeparableConvolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if not (workload.is_constant(1) and workload.is_constant(2)):
            return Refusal("the weights are not constant")
        op = workload.op
        assert isinstance(op, SeparableConvolution)
        if op.depthwise.channels_last or op.pointwise.channels_last:
            return Refusal("channels-last tensors: the CPU runs convolutions in [N, C, spatial]")
        if shape_of(workload.outputs[0])[0] == 0:
            return Refusal("no image")
        first, second = parts(_image(workload))
        return DEPTHWISE.supports(first, device) or _pointwise(second).supports(second, device)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        first, second = parts(_image(workload))
        batch, threads = shape_of(workload.outputs[0])[0], threads_of(device)
        found = []
        for images in dict.fromkeys((min(batch, threads), 1)):
            each = replace(device, multiprocessors=threads if images == 1 else 1)
            one, other = DEPTHWISE.configs(first, each), _pointwise(second).configs(second, each)
            found += [_joined(images, one[0], two) for two in other[:2]]
            found.append(_joined(images, one[-1], other[-1]))  # the last of each use one thread
        return tuple(dict.fromkeys(found))

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        first, second = parts(_image(workload))
        _, one, two = _split(config)
        return (*DEPTHWISE.prepare(first, one, {1: constants[1]}), *_pointwise(second).prepare(second, two, {1: constants[2]}))

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, SeparableConvolution)
        first, second = parts(_image(workload))
        images, one, two = _split(config)
        plans = DEPTHWISE.plan(first, one, device), _pointwise(second).plan(second, two, device)
        batch, middle, scratch = shape_of(workload.outputs[0])[0], second.inputs[0], Scratch()
        spaces = [
            (scratch.take(shape_of(middle), middle.dtype.numpy), *(scratch.take((plan.workspace,), np.uint8) for plan in plans)) for _ in range(images)
        ]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            jobs = []
            for (start, end), slots in zip(spans(batch, images), spaces, strict=False):
                held, *rooms = (slot.view(workspace) for slot in slots)
                job = []
                for image in range(start, end):
                    given = [array if number in (1, 2) else _of(array, image, batch) for number, array in enumerate(inputs)]
                    early, late = op.split(given)
                    for plan, arrays, result, weights, room in zip(
                        plans, (early, (held, *late)), (held, outputs[0][image : image + 1]), (packed[:1], packed[1:]), rooms, strict=True
                    ):
                        (step,) = plan.steps
                        assert isinstance(step, CpuCall)
                        job.append(step.bound(arrays, (result,), weights, room))
                jobs.append(job)
            if images == 1:
                return partial(_in_turn, jobs[0])  # each call spreads itself over the threads
            return parallel(jobs, images)

        return one_step(bind, self.id, scratch.size, (1, 2))


def _in_turn(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _of(array: np.ndarray, image: int, batch: int) -> np.ndarray:
    """The part of an operand that belongs to an image."""
    return array[image : image + 1] if array.ndim == 4 and len(array) == batch else array


def _image(workload: Workload) -> Workload:
    """The workload of a single image."""
    batch = shape_of(workload.outputs[0])[0]

    def single(number: int, tensor: TensorType) -> TensorType:
        alone = number not in (1, 2) and len(tensor.shape) == 4 and tensor.shape[0] == batch
        return replace(tensor, shape=(1, *tensor.shape[1:])) if alone else tensor

    inputs = tuple(single(number, tensor) for number, tensor in enumerate(workload.inputs))
    return replace(workload, inputs=inputs, outputs=workload.op.infer(inputs))


def _pointwise(workload: Workload) -> Tactic:
    """The tactic of the second convolution: 8-bit images are converted on their way to BLAS."""
    return MATMUL if is_direct(workload, geometry(workload)) else IM2COL


def _joined(images: int, first: Config, second: Config) -> Config:
    return config(images=images, **{f"first_{name}": value for name, value in first}, **{f"second_{name}": value for name, value in second})


def _split(joined: Config) -> tuple[int, Config, Config]:
    """The inverse of :func:`_joined`."""
    first, second = (
        config(**{name.removeprefix(part): value for name, value in joined if name.startswith(part)}) for part in ("first_", "second_")
    )
    return dict(joined)["images"], first, second


TACTICS: tuple[Tactic, ...] = (SeparableImages(),)
