"""The GPU of this machine for plans of tactics: kernels are compiled in processes of their own, loaded, bound and launched; arrays are torch's."""

from __future__ import annotations

import ctypes
import math
import pickle
import struct
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from fusion.dtypes import DataType
from tactics.compiler import compile_cubin
from tactics.tactic import Buffer, DeviceSpec, Scalar, Struct


class Gpu:
    """Compiles, binds and launches plans."""

    def __init__(self, workers: int, cubins: Path | None = None) -> None:
        import numpy as np
        import torch
        from cuda.bindings import driver

        self.np, self.torch, self.driver = np, torch, driver
        torch.cuda.init()
        torch.zeros(1, device="cuda")
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        properties = torch.cuda.get_device_properties(0)
        capability = properties.major * 10 + properties.minor
        self.device = DeviceSpec(
            "cuda", properties.name, f"sm_{capability}" + ("a" if capability >= 90 else ""), capability, properties.multi_processor_count,
            getattr(properties, "shared_memory_per_block_optin", 232448 if capability == 90 else 101376), properties.L2_cache_size, properties.total_memory, 3.0e12,
            {"float16": 8e14, "bfloat16": 8e14, "float32": 5e13, "tf32": 4e14},
        )  # fmt: skip
        self.types = {"f16": DataType.HALF, "bf16": DataType.BF16, "f32": DataType.FLOAT}
        self.torch_types = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
        self.of_type = {self.types[key]: self.torch_types[key] for key in self.types} | {DataType.BOOL: torch.bool}
        self.functions: dict[str, object] = {}
        self.futures: dict[str, Future] = {}
        self.keys: dict[object, str] = {}
        self.generator = torch.Generator(device="cuda").manual_seed(1)
        self.cubins = cubins  # a folder that keeps compiled kernels
        self.pool = ProcessPoolExecutor(workers, get_context("spawn"))  # threads would compile one at a time

    def check(self, result: tuple) -> object:
        """The value of a driver call, or its error as an exception."""
        if int(result[0]) != 0:
            raise RuntimeError(str(result[0]))
        return result[1] if len(result) > 1 else None

    def key(self, kernel) -> str:
        """What the kernel's cubin depends on, computed once."""
        if kernel not in self.keys:
            self.keys[kernel] = kernel.key(self.device.arch)
        return self.keys[kernel]

    def compile(self, kernels) -> None:
        """Start to compile the kernels that have not been asked for yet."""
        for kernel in kernels:
            key = self.key(kernel)
            kept = self.cubins / key if self.cubins else None
            if key not in self.futures and kept is not None and kept.exists():
                self.futures[key] = Future()
                self.futures[key].set_result(pickle.loads(kept.read_bytes()))
            elif key not in self.futures:
                self.futures[key] = self.pool.submit(compile_cubin, kernel.source(), kernel.defines, self.device.arch, kernel.file)

    def function(self, kernel):
        """The loaded function of a kernel, and its resources."""
        key = self.key(kernel)
        if key not in self.functions:
            cubin = self.futures[key].result()
            if self.cubins:
                (self.cubins / key).write_bytes(pickle.dumps(cubin))
            module = self.check(self.driver.cuModuleLoadData(cubin.image))
            self.functions[key] = (self.check(self.driver.cuModuleGetFunction(module, kernel.entry.encode())), cubin.resources)
        return self.functions[key]

    def bind(self, plan, inputs, output, packed, workspace):
        """The plan's launches with addresses filled in, as (function, config, parameters, keep-alive)."""
        kinds = {"i32": "i", "u32": "I", "i64": "q", "u64": "Q", "f32": "f", "f64": "d"}

        def pack(argument) -> bytes:
            if isinstance(argument, Buffer):
                tensors = {"input": inputs, "output": [output], "packed": packed, "workspace": [workspace]}[argument.kind]
                return struct.pack("Q", tensors[argument.index].data_ptr() + argument.offset)
            if isinstance(argument, Scalar):
                return struct.pack(kinds[argument.ctype], argument.value)
            assert isinstance(argument, Struct)
            text = b""
            for field in argument.fields:
                one = pack(field)
                text += b"\0" * (-len(text) % len(one)) + one
            return text + b"\0" * (-len(text) % max(len(pack(field)) for field in argument.fields))

        driver, bound = self.driver, []
        for step in plan.steps:
            function, _ = self.function(step.kernel)
            if step.shared_memory > 48 * 1024:
                attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self.check(driver.cuFuncSetAttribute(function, attribute, step.shared_memory))
            values = [ctypes.create_string_buffer(text, max(8, len(text))) for text in map(pack, step.arguments)]
            table = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            config = driver.CUlaunchConfig()
            config.gridDimX, config.gridDimY, config.gridDimZ = step.grid
            config.blockDimX, config.blockDimY, config.blockDimZ = step.block
            config.sharedMemBytes = step.shared_memory
            if step.dependent:
                attribute = driver.CUlaunchAttribute()
                attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
                value = driver.CUlaunchAttributeValue()
                value.programmaticStreamSerializationAllowed = 1
                attribute.value = value
                config.attrs, config.numAttrs = [attribute], 1
            bound.append((function, config, table, values))
        return bound

    def launch(self, bound) -> None:
        """Issue bound launches on torch's current stream."""
        stream = self.driver.CUstream(self.torch.cuda.current_stream().cuda_stream)
        for function, config, table, _ in bound:
            config.hStream = stream
            self.check(self.driver.cuLaunchKernelEx(config, function, ctypes.addressof(table), 0))

    def to_numpy(self, tensor):
        """A host copy with NumPy's (or ml_dtypes') data type."""
        if tensor.dtype == self.torch.bfloat16:
            import ml_dtypes

            return tensor.cpu().view(self.torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.cpu().numpy()

    def to_device(self, array):
        """The bytes of a host array on the device."""
        return self.torch.from_numpy(self.np.ascontiguousarray(array).view(self.np.uint8).reshape(-1)).cuda()

    def packed(self, tactic, workload, config, inputs):
        """What the tactic's ``prepare`` makes of the constant inputs."""
        constants = {i: self.to_numpy(one) for i, one in enumerate(inputs) if i < len(workload.constant) and workload.constant[i]}
        return [self.to_device(array) for array in tactic.prepare(workload, config, constants)]

    def output_of(self, workload):
        """A NaN-filled output."""
        tensor = workload.outputs[0]
        return self.torch.full(tensor.shape, math.nan, dtype=self.of_type[tensor.dtype], device="cuda")

    def error(self, output, expected) -> float:
        """Relative error in the norm; NaN where anything is unwritten."""
        difference = (output.double() - expected).norm() / expected.norm().clamp_min(1e-30)
        return float(difference)

    def normal(self, shape, kind: str, scale: float = 1.0):
        """Random numbers on the device."""
        values = self.torch.randn(tuple(shape), device="cuda", generator=self.generator) * scale
        return values.to(self.torch_types[kind])
