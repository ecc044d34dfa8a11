"""Checks and times the portable CUDA kernels (gemm, conv, attention) on the GPU of this machine, beside torch.

    python benchmarks/gpu/portable_check.py [--groups gemm,conv,...] [--seconds 170] [--out results.jsonl] [--record kernels-h100]

Every case runs a tactic's own plan: the kernels are compiled with NVRTC, launched through cuLaunchKernelEx on NaN-poisoned
outputs, and compared with float64 torch. Timings replay a CUDA graph of 24 launches over rotating buffers; the median counts.
Each group runs in its own process, so that a fault in one leaves the others alone. Needs torch and cuda-bindings.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.portable_report import DEPTHWISE, depthwise_case, print_table, results  # noqa: E402

CHECKS = ("check_gemm", "check_conv", "check_deconv", "check_depthwise", "check_attention")
TIMES = ("time_gemm", "time_attention", "time_conv1", "time_conv32", "time_depthwise", "time_deconv", "time_groups", "time_stem")
# What changed last: the groups of ``--groups changed``.
CHANGED = ("check_deconv", "check_depthwise", "check_attention", "time_depthwise", "time_attention", "time_deconv", "time_groups", "time_stem")
LAUNCHES = 24


def main() -> int:
    """Run the groups, each in its own process; checks side by side, timings one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default=",".join((*CHECKS, *TIMES)))
    parser.add_argument("--seconds", type=float, default=170)
    parser.add_argument("--out", default="portable.jsonl")
    parser.add_argument("--record", default="", metavar="NAME", help="append the best of each timed case to benchmarks/results/NAME.jsonl")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        Group(options.one, options.seconds, options.out, options.workers).run()
        return 0
    start = time.monotonic()
    out = Path(options.out)
    out.unlink(missing_ok=True)
    # All start at once and compile side by side; a lock lets checks share the GPU and each timing group have it alone.
    for name, process in [(name, _start(name, options)) for name in (CHANGED if options.groups == "changed" else options.groups.split(","))]:
        _finish(name, process, max(1.0, options.seconds - (time.monotonic() - start)))
    print_table(out)
    if options.record:
        from benchmarks.runner import record

        print(f"recorded in {record(options.record, results(out))}")
    print(f"total {time.monotonic() - start:.0f} s")
    return 0


def _start(name: str, options: argparse.Namespace) -> subprocess.Popen:
    seconds = options.seconds * (0.65 if name.startswith("check") else 0.95)
    workers = max(6, (os.cpu_count() or 6) // (2 if "," in options.groups or options.groups == "changed" else 1))
    command = [sys.executable, __file__, "--one", name, "--seconds", str(seconds), "--out", options.out, "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(name: str, process: subprocess.Popen, seconds: float) -> None:
    try:
        text, _ = process.communicate(timeout=seconds)
        print(f"== {name}: exit {process.returncode}\n{text[-1500:]}", flush=True)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        print(f"== {name}: ran out of time\n{(text or '')[-800:]}", flush=True)


class Group:
    """One group of cases, in this process."""

    def __init__(self, name: str, seconds: float, out: str, workers: int) -> None:
        import numpy as np
        import torch
        from cuda.bindings import driver

        from fusion.dtypes import DataType
        from tactics.tactic import DeviceSpec

        self.name, self.deadline, self.out = name, time.monotonic() + seconds, out
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
        self.queue: list[tuple] = []
        self.keys: dict[object, str] = {}
        self.generator = torch.Generator(device="cuda").manual_seed(1)
        self.random = __import__("random").Random(7)
        self.pool = ProcessPoolExecutor(workers, get_context("spawn"))  # threads would compile one at a time

    def run(self) -> None:
        """Queue the group's cases (their kernels start to compile), then run them."""
        begin = time.monotonic()
        getattr(self, self.name)()
        timing = self.name.startswith("time")
        if timing:
            queued = time.monotonic()
            for future in self.futures.values():
                future.exception(timeout=max(1.0, self.deadline - time.monotonic()))
            print(f"{len(self.queue)} cases queued in {queued - begin:.1f} s, {len(self.futures)} kernels compiled after {time.monotonic() - begin:.1f} s", flush=True)
        with open(f"{self.out}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if timing else fcntl.LOCK_SH)
            for step, arguments in self.queue:
                if time.monotonic() > self.deadline:
                    print("out of time; cases left:", len(self.queue))
                    break
                step(*arguments)

    # --- executing plans ---------------------------------------------------------------------------------------------

    def check(self, result: tuple) -> object:
        """The value of a driver call, or its error as an exception."""
        if int(result[0]) != 0:
            raise RuntimeError(str(result[0]))
        return result[1] if len(result) > 1 else None

    def key(self, kernel) -> str:  # noqa: ANN001
        """What the kernel's cubin depends on, computed once."""
        if kernel not in self.keys:
            self.keys[kernel] = kernel.key(self.device.arch)
        return self.keys[kernel]

    def compile(self, kernels) -> None:  # noqa: ANN001
        """Start to compile the kernels that have not been asked for yet."""
        from tactics.compiler import compile_cubin

        for kernel in kernels:
            key = self.key(kernel)
            if key not in self.futures:
                self.futures[key] = self.pool.submit(compile_cubin, kernel.source(), kernel.defines, self.device.arch, kernel.file)

    def function(self, kernel):  # noqa: ANN001, ANN201
        """The loaded function of a kernel, and its resources."""
        key = self.key(kernel)
        if key not in self.functions:
            cubin = self.futures[key].result()
            module = self.check(self.driver.cuModuleLoadData(cubin.image))
            self.functions[key] = (self.check(self.driver.cuModuleGetFunction(module, kernel.entry.encode())), cubin.resources)
        return self.functions[key]

    def bind(self, plan, inputs, output, packed, workspace):  # noqa: ANN001, ANN201
        """The plan's launches with addresses filled in, as (function, config, parameters, keep-alive)."""
        from tactics.tactic import Buffer, Scalar, Struct

        kinds = {"i32": "i", "u32": "I", "i64": "q", "u64": "Q", "f32": "f", "f64": "d"}
        import struct

        def pack(argument) -> bytes:  # noqa: ANN001
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

    def launch(self, bound) -> None:  # noqa: ANN001
        """Issue bound launches on torch's current stream."""
        stream = self.driver.CUstream(self.torch.cuda.current_stream().cuda_stream)
        for function, config, table, _ in bound:
            config.hStream = stream
            self.check(self.driver.cuLaunchKernelEx(config, function, ctypes.addressof(table), 0))

    def to_numpy(self, tensor):  # noqa: ANN001, ANN201
        """A host copy with NumPy's (or ml_dtypes') data type."""
        if tensor.dtype == self.torch.bfloat16:
            import ml_dtypes

            return tensor.cpu().view(self.torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.cpu().numpy()

    def to_device(self, array):  # noqa: ANN001, ANN201
        """The bytes of a host array on the device."""
        return self.torch.from_numpy(self.np.ascontiguousarray(array).view(self.np.uint8).reshape(-1)).cuda()

    def packed(self, tactic, workload, config, inputs):  # noqa: ANN001, ANN201
        """What the tactic's ``prepare`` makes of the constant inputs."""
        constants = {i: self.to_numpy(one) for i, one in enumerate(inputs) if i < len(workload.constant) and workload.constant[i]}
        return [self.to_device(array) for array in tactic.prepare(workload, config, constants)]

    def output_of(self, workload):  # noqa: ANN001, ANN201
        """A NaN-filled output."""
        tensor = workload.outputs[0]
        return self.torch.full(tensor.shape, math.nan, dtype=self.of_type[tensor.dtype], device="cuda")

    def record(self, **row: object) -> None:
        """Append a line to the results."""
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    # --- one case ----------------------------------------------------------------------------------------------------

    def verify(self, case: str, tactics, workload, inputs, expected, count: int | None = 3) -> None:  # noqa: ANN001
        """Check each tactic in its first configuration and in ``count`` - 1 random ones (all when None)."""
        wanted = []
        for tactic in tactics:
            refusal = tactic.supports(workload, self.device)
            if refusal is not None:
                self.record(kind="refusal", tactic=tactic.id, case=case, reason=refusal.reason)
                continue
            configs = list(tactic.configs(workload, self.device))
            chosen = configs if count is None else configs[:1] + self.random.sample(configs[1:], min(len(configs) - 1, count - 1))
            wanted += [(tactic, config, tactic.plan(workload, config, self.device)) for config in chosen]
        self.compile([step.kernel for _, _, plan in wanted for step in plan.steps])
        self.queue.append((self._verify, (case, wanted, workload, inputs, expected)))

    def _verify(self, case: str, wanted, workload, inputs, expected) -> None:  # noqa: ANN001
        for tactic, config, plan in wanted:
            error, note = math.inf, ""
            try:
                output = self.output_of(workload)
                workspace = self.torch.full((plan.workspace + 16,), 255, dtype=self.torch.uint8, device="cuda")
                self.launch(self.bind(plan, inputs, output, self.packed(tactic, workload, config, inputs), workspace))
                self.torch.cuda.synchronize()
                error = self.error(output, expected)
            except Exception as reason:
                note = f"{type(reason).__name__}: {str(reason)[:300]}"
            ok = error <= tactic.tolerance(workload)
            self.record(kind="check", tactic=tactic.id, case=case, config=str(dict(config)), error=error if error < 1e30 else "inf" if
                        error == math.inf else "nan", ok=ok, note=note)  # fmt: skip
            if "illegal" in note.lower() or "launch_failed" in note.lower() or "misaligned" in note.lower():
                print("the context is lost at", case, tactic.id, dict(config))
                sys.exit(3)

    def error(self, output, expected) -> float:  # noqa: ANN001
        """Relative error in the norm; NaN where anything is unwritten."""
        difference = (output.double() - expected).norm() / expected.norm().clamp_min(1e-30)
        return float(difference)

    def normal(self, shape, kind: str, scale: float = 1.0):  # noqa: ANN001, ANN201
        """Random numbers on the device."""
        values = self.torch.randn(tuple(shape), device="cuda", generator=self.generator) * scale
        return values.to(self.torch_types[kind])

    # --- GEMM --------------------------------------------------------------------------------------------------------

    def gemm_case(self, a_shape, b_shape, kind: str, transpose_b: bool, extras=(), expression=None, transpose_a=False, constant=True):  # noqa: ANN001, ANN201
        """(workload, inputs, float64 result) of a product with an epilogue over ``extras`` shapes."""
        from fusion.network import TensorType
        from fusion.ops import MatrixMultiply
        from fusion.ops.epilogue import IDENTITY
        from tactics.tactic import Workload

        op = MatrixMultiply(transpose_a, transpose_b, expression or IDENTITY)
        k = a_shape[-2] if transpose_a else a_shape[-1]
        inputs = [self.normal(a_shape, kind), self.normal(b_shape, kind, k**-0.5), *(self.normal(shape, kind) for shape in extras)]
        types = tuple(TensorType(self.types[kind], tuple(one.shape)) for one in inputs)
        workload = Workload(op, types, op.infer(types), (False, constant, *(False for _ in extras)))
        return workload, inputs

    def relu_bias_residual(self):  # noqa: ANN201
        """relu(x + bias + residual) over operands 1 and 2."""
        from fusion.expression import Operand, apply

        return apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2)))

    def relu_bias(self):  # noqa: ANN201
        """relu(x + bias)."""
        from fusion.expression import Operand, apply

        return apply("relu", apply("add", Operand(0), Operand(1)))

    def check_gemm(self) -> None:
        from tactics.cuda.gemm.gemv import Gemv
        from tactics.cuda.gemm.mma_gemm import MmaGemm
        from tactics.cuda.gemm.simt_gemm import SimtGemm

        all_tactics = (MmaGemm(), SimtGemm(), Gemv())

        def case(a, b, kind, tb, residual=False, count=3, ta=False, constant=True, which=all_tactics):  # noqa: ANN001, ANN202
            n = b[-2] if tb else b[-1]
            m = a[-1] if ta else a[-2]
            lead = self.torch.broadcast_shapes(a[:-2], b[:-2])
            extras = ((n,), (*lead, m, n)) if residual else ()
            workload, inputs = self.gemm_case(a, b, kind, tb, extras, self.relu_bias_residual() if residual else None, ta, constant)
            left, right = inputs[0].double(), inputs[1].double()
            result = (left.mT if ta else left) @ (right.mT if tb else right)
            if residual:
                result = self.torch.relu(result + inputs[2].double() + inputs[3].double())
            self.verify(f"{kind} {a}x{b} {'NK' if tb else 'KN'}{' +epi' if residual else ''}", which, workload, inputs, result, count)

        for tb in (True, False):  # every tile shape once
            for k in (520, 1037)[: 2 if tb else 1]:
                case((300, k), (264, k) if tb else (k, 264), "f16", tb, residual=True, count=20, which=(MmaGemm(),), constant=False)
        for kind in ("f16", "bf16", "f32"):
            for tb in (True, False):
                sizes = ((1, 1, 1), (7, 5, 3), (127, 65, 33), (130, 70, 100), (64, 48, 72), (65, 258, 2048), (257, 513, 391), (4, 1000, 2048))
                for m, n, k in sizes if kind == "f16" else sizes[2:6]:
                    for constant in (True, False) if kind == "f16" else (m % 2 == 0,):
                        case((m, k), (n, k) if tb else (k, n), kind, tb, residual=m > 64, constant=constant)
                case((3, 5, 33, 40), (3, 5, 24, 40) if tb else (3, 5, 40, 24), kind, tb, residual=True, constant=False)
                case((3, 1, 33, 40), (5, 24, 40) if tb else (5, 40, 24), kind, tb, residual=True, constant=False)
                case((6, 33, 47), (1, 24, 47) if tb else (1, 47, 24), kind, tb, residual=True)
                case((1, 33, 47), (6, 24, 47) if tb else (6, 47, 24), kind, tb, constant=False)
            case((33, 70), (33, 50), kind, False, ta=True, constant=False)
        for rows in (1, 2, 3, 5, 8):
            for n, k in ((1000, 2048), (13, 72), (1000, 512)):
                case((rows, k), (n, k), "f16", True, count=None, which=(Gemv(),))
            case((rows, 1280), (1280, 1000), "f32", False, count=None, which=(Gemv(),))

    # --- convolution -------------------------------------------------------------------------------------------------

    def conv_case(self, n, spatial, c, o, window, stride, pad, dilation=None, groups=1, kind="f16", expression=None, extras=(), output_padding=None, planes=False):  # noqa: ANN001, ANN201
        """(workload, inputs) of a channels-last (de)convolution; ``extras`` are "bias" and "residual"."""
        from fusion.network import TensorType
        from fusion.ops import Convolution, Deconvolution
        from fusion.ops.epilogue import IDENTITY
        from tactics.tactic import Workload

        rank = len(spatial)
        dilation = dilation or (1,) * rank
        if output_padding is not None:
            op = Deconvolution(stride, pad, pad, dilation, output_padding, groups, True, expression or IDENTITY)
            w_shape = (c, o // groups, *window)
        else:
            op = Convolution(stride, pad, pad, dilation, groups, True, expression or IDENTITY, False if planes else None)
            w_shape = (o, c // groups, *window)
        x_shape = (n, c, *spatial) if planes else (n, *spatial, c)
        bare = replace(op, epilogue=IDENTITY)
        out = bare.infer([TensorType(self.types[kind], x_shape), TensorType(self.types[kind], w_shape)])[0]
        shapes = [(o,) if extra == "bias" else out.shape for extra in extras]
        depth = c // groups * math.prod(window)
        inputs = [self.normal(x_shape, kind), self.normal(w_shape, kind, depth**-0.5), *(self.normal(shape, kind) for shape in shapes)]
        types = tuple(TensorType(self.types[kind], tuple(one.shape)) for one in inputs)
        return Workload(op, types, op.infer(types), (False, True, *(extra == "bias" for extra in extras))), inputs

    def conv_reference(self, workload, inputs):  # noqa: ANN001, ANN201
        """The float64 result before the epilogue, channels last."""
        from fusion.ops import Deconvolution

        op, functional = workload.op, self.torch.nn.functional
        rank = len(op.stride)
        x = inputs[0].double()
        if getattr(op, "reads_channels_last", True):
            x = x.movedim(-1, 1)
        if isinstance(op, Deconvolution):
            function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
            y = function(x, inputs[1].double(), None, op.stride, op.pre_padding, op.output_padding, op.groups, op.dilation)
        else:
            function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
            y = function(x, inputs[1].double(), None, op.stride, op.pre_padding, op.dilation, op.groups)
        return y.movedim(1, -1)

    def check_conv(self) -> None:
        from tactics.cuda.conv.mma_conv import MmaConvolution
        from tactics.cuda.conv.simt_conv import SimtConvolution

        self.torch.backends.cudnn.benchmark = False
        both = (MmaConvolution(), SimtConvolution())

        def case(*sizes, count=3, residual=True, **more):  # noqa: ANN002, ANN003, ANN202
            extras = ("bias", "residual") if residual else ()
            workload, inputs = self.conv_case(*sizes, expression=self.relu_bias_residual() if residual else None, extras=extras, **more)
            result = self.conv_reference(workload, inputs)
            if residual:
                result = self.torch.relu(result + inputs[2].double() + inputs[3].double())
            self.verify(f"{sizes} {more}", both, workload, inputs, result, count)

        case(2, (14, 14), 64, 64, (3, 3), (1, 1), (1, 1), count=30)  # every tile shape
        for kind in ("f16", "bf16", "f32"):
            case(2, (28, 27), 32, 48, (3, 3), (1, 1), (1, 1), kind=kind)
            case(3, (15, 17), 24, 40, (3, 3), (2, 2), (1, 1), kind=kind)
            case(2, (13, 11), 17, 19, (3, 2), (1, 2), (1, 0), kind=kind)
            case(2, (13, 11), 6, 20, (5, 3), (1, 1), (2, 1), kind=kind)
            case(2, (13, 11), 12, 20, (3, 3), (1, 1), (2, 2), (2, 2), kind=kind)
            case(2, (33, 35), 3, 64, (7, 7), (2, 2), (3, 3), kind=kind)
            case(2, (32, 32), 3, 64, (4, 4), (4, 4), (0, 0), kind=kind)
            case(2, (32, 32), 3, 96, (16, 16), (16, 16), (0, 0), kind=kind)
            case(2, (9, 9), 64, 72, (1, 1), (1, 1), (0, 0), kind=kind)
            case(2, (9, 9), 64, 72, (1, 1), (2, 2), (0, 0), kind=kind)
            case(2, (9, 10), 64, 32, (3, 3), (1, 1), (1, 1), groups=4, kind=kind)
            case(2, (9, 10), 12, 18, (3, 3), (1, 1), (1, 1), groups=3, kind=kind)
            case(3, (50,), 16, 24, (9,), (2,), (4,), kind=kind)
            case(2, (6, 9, 7), 8, 16, (3, 3, 3), (1, 2, 1), (1, 1, 1), kind=kind)
            case(2, (6, 9, 7), 5, 16, (2, 3, 3), (2, 1, 1), (0, 1, 1), (1, 2, 1), kind=kind)
        case(1, (7, 7), 512, 512, (3, 3), (1, 1), (1, 1), count=30)
        case(2, (9, 9), 64, 72, (1, 1), (1, 1), (0, 0), count=30)

    def check_deconv(self) -> None:
        """Deconvolutions by phases, image planes, and groups of few channels."""
        from tactics.cuda.conv.mma_conv import MmaConvolution
        from tactics.cuda.conv.simt_conv import SimtConvolution

        self.torch.backends.cudnn.benchmark = False

        def case(*sizes, count=3, **more):  # noqa: ANN002, ANN003, ANN202
            workload, inputs = self.conv_case(*sizes, expression=self.relu_bias_residual(), extras=("bias", "residual"), **more)
            result = self.torch.relu(self.conv_reference(workload, inputs) + inputs[2].double() + inputs[3].double())
            self.verify(f"{sizes} {more}", (MmaConvolution(), SimtConvolution()), workload, inputs, result, count)

        for kind in ("f16", "bf16", "f32"):
            case(2, (7, 9), 16, 24, (3, 3), (2, 2), (1, 1), kind=kind, output_padding=(1, 1))
            case(2, (7, 9), 16, 24, (2, 2), (2, 2), (0, 0), kind=kind, output_padding=(0, 0))
            case(2, (7, 9), 12, 18, (4, 3), (2, 1), (1, 1), (1, 2), 3, kind=kind, output_padding=(0, 0))
            case(2, (11,), 7, 9, (5,), (3,), (2,), kind=kind, output_padding=(1,))
            case(2, (33, 35), 3, 64, (7, 7), (2, 2), (3, 3), kind=kind, planes=True)
            case(2, (32, 32), 3, 96, (16, 16), (16, 16), (0, 0), kind=kind, planes=True)
            case(2, (9, 10), 32, 32, (3, 3), (1, 1), (1, 1), groups=8, kind=kind)
            case(2, (9, 10), 12, 24, (3, 3), (2, 2), (1, 1), groups=12, kind=kind)
        case(1, (8, 8), 512, 64, (4, 4), (2, 2), (1, 1), output_padding=(0, 0), count=16)

    def check_depthwise(self) -> None:
        from tactics.cuda.conv.depthwise import Depthwise

        self.torch.backends.cudnn.benchmark = False
        for kind in ("f16", "bf16", "f32"):
            for c in (8, 12, 33, 96) if kind == "f16" else (20,):
                for window, stride, dilation in (((3, 3), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1)), ((5, 5), (1, 1), (1, 1)), ((5, 5), (2, 2), (1, 1)), ((7, 7), (1, 1), (1, 1)),
                                                 ((3, 3), (1, 1), (2, 2)), ((1, 3), (1, 2), (1, 1)), ((3, 5), (2, 1), (1, 1))):  # fmt: skip
                    pad = tuple(d * (k - 1) // 2 for k, d in zip(window, dilation, strict=True))
                    workload, inputs = self.conv_case(2, (15, 18), c, c, window, stride, pad, dilation, c, kind, self.relu_bias(), ("bias",))
                    result = self.torch.relu(self.conv_reference(workload, inputs) + inputs[2].double())
                    self.verify(f"{kind} c{c} {window} s{stride} d{dilation}", (Depthwise(),), workload, inputs, result, 3 if c == 96 else 2)
            workload, inputs = self.conv_case(2, (31,), 24, 24, (3,), (1,), (1,), None, 24, kind)
            self.verify(f"{kind} 1-D", (Depthwise(),), workload, inputs, self.conv_reference(workload, inputs), None)

    # --- attention ---------------------------------------------------------------------------------------------------

    def attention_case(self, b, h, s_q, s_k, d, kind="f16", mask=None, causal=False, layout="bhsd", kv_heads=None, d_v=None):  # noqa: ANN001, ANN201
        """(workload, inputs, float64 result); ``mask`` is a shape for an additive one, ("bool", shape) for a boolean one."""
        from fusion.dtypes import DataType
        from fusion.network import TensorType
        from fusion.ops import Attention
        from tactics.tactic import Workload

        torch = self.torch
        kv_heads, d_v = kv_heads or h, d_v or d
        inputs, seen = [], []
        for heads, length, size in ((h, s_q, d), (kv_heads, s_k, d), (kv_heads, s_k, d_v)):
            one = self.normal((b, heads, length, size), kind)
            seen.append(one.double())
            inputs.append(one.permute(["bhsd".index(axis) for axis in layout]).contiguous())
        score = seen[0] @ seen[1].repeat_interleave(h // kv_heads, 1).mT * d**-0.5
        types = [TensorType(self.types[kind], tuple(one.shape)) for one in inputs]
        if mask is not None:
            if mask[0] == "bool":
                values = torch.rand(mask[1], device="cuda", generator=self.generator) > 0.3
                values[..., 0] = True
                score = score.masked_fill(~values, -math.inf)
                types.append(TensorType(DataType.BOOL, tuple(values.shape)))
            else:
                values = self.normal(mask, kind)
                values[..., -1] = -10000.0 if kind != "f16" else -65504.0
                score = score + values.double()
                types.append(TensorType(self.types[kind], tuple(values.shape)))
            inputs.append(values)
        if causal:
            keep = torch.ones(s_q, s_k, dtype=torch.bool, device="cuda").tril(s_k - s_q)
            score = score.masked_fill(~keep, -math.inf)
        weight = torch.nan_to_num(torch.softmax(score, -1))
        result = (weight @ seen[2].repeat_interleave(h // kv_heads, 1)).permute(["bhsd".index(axis) for axis in layout])
        op = Attention(d**-0.5, causal, mask is not None, (layout,) * 4)
        return Workload(op, tuple(types), op.infer(types)), inputs, result

    def check_attention(self) -> None:
        from tactics.cuda.attention.attention import MmaAttention, SimtAttention

        both = (MmaAttention(), SimtAttention())

        def case(*sizes, count=3, **more):  # noqa: ANN002, ANN003, ANN202
            self.verify(f"{sizes} {more}", both, *self.attention_case(*sizes, **more), count)

        case(2, 3, 130, 197, 64, count=None)
        case(2, 3, 130, 197, 64, count=None, mask=(2, 1, 1, 197), layout="bshd")
        for kind in ("f16", "bf16"):
            for d in (32, 64, 96, 128, 40, 100, 33, 160) if kind == "f16" else (64, 72):
                case(2, 3, 77, 150, d, kind=kind)
                case(1, 2, 130, 65, d, kind=kind, layout="bshd", mask=(1, 2, 130, 65))
            case(1, 2, 100, 100, 64, kind=kind, causal=True)
            case(2, 4, 65, 190, 64, kind=kind, causal=True, kv_heads=2)
            case(2, 4, 190, 65, 32, kind=kind, causal=True)
            case(2, 4, 1, 333, 64, kind=kind, mask=("bool", (2, 1, 1, 333)))
            case(2, 4, 66, 66, 64, kind=kind, mask=("bool", (1, 1, 66, 66)), d_v=32)
            case(1, 1, 1, 1, 64, kind=kind)
            case(1, 1, 3, 2, 64, kind=kind, layout="sbhd")

    # --- timing ------------------------------------------------------------------------------------------------------

    def graph_time(self, calls) -> float:  # noqa: ANN001
        """Microseconds per call of ``calls`` (functions that launch on the current stream), from a replayed graph."""
        torch = self.torch
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for call in calls[:2]:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for index in range(LAUNCHES):
                calls[index % len(calls)]()
        with torch.cuda.stream(stream):
            for _ in range(2):
                graph.replay()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(16)]
            events[0].record()
            for event in events[1:]:
                graph.replay()
                event.record()
        torch.cuda.synchronize()
        times = sorted(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False))
        return times[len(times) // 2] * 1000 / LAUNCHES

    def copies(self, bytes_each: int) -> int:
        """How many sets of buffers make a working set that L2 does not hold."""
        return max(2, min(LAUNCHES, math.ceil(150e6 / max(bytes_each, 1))))

    def timing(self, case: str, tactics, workload, inputs, expected, torch_call=None, most: int = 8, alone: int = 0) -> None:  # noqa: ANN001
        """Time the first ``most`` configurations of each tactic (``alone`` of them without programmatic launch too), and torch."""
        wanted = []
        for tactic in tactics:
            if tactic.supports(workload, self.device) is None:
                configs = list(tactic.configs(workload, self.device))[:most]
                wanted += [(rank, tactic, config, tactic.plan(workload, config, self.device)) for rank, config in enumerate(configs)]
                wanted += [(100 + rank, tactic, config, _without_pdl(tactic.plan(workload, config, self.device)))
                           for rank, config in enumerate(configs[:alone])]  # fmt: skip
        self.compile([step.kernel for *_, plan in wanted for step in plan.steps])
        self.queue.append((self._timing, (case, wanted, workload, inputs, expected, torch_call)))

    def _timing(self, case: str, wanted, workload, inputs, expected, torch_call) -> None:  # noqa: ANN001
        from tactics.tactic import floor_seconds, workload_bytes

        torch = self.torch
        floor = floor_seconds(workload, self.device) * 1e6
        sets = [[one.clone() for one in inputs] for _ in range(self.copies(workload_bytes(workload)))]
        if torch_call is not None:
            try:
                microseconds = self.graph_time([lambda one=one: torch_call(one) for one in sets])
                self.record(kind="time", case=case, tactic="torch", config="", us=microseconds, floor=floor, ok=True, rank=0)
            except Exception as reason:
                self.record(kind="note", case=case, note=str(reason)[:200])
        outputs = [self.output_of(workload) for _ in sets]
        for rank, tactic, config, plan in wanted:
            if time.monotonic() > self.deadline:
                return
            try:
                workspace = torch.full((plan.workspace + 16,), 255, dtype=torch.uint8, device="cuda")
                packed = [[one.clone() for one in self.packed(tactic, workload, config, inputs)] for _ in sets]
                bound = [self.bind(plan, one, out, pack, workspace) for one, out, pack in zip(sets, outputs, packed, strict=True)]
                outputs[0].fill_(math.nan)
                self.launch(bound[0])
                error = self.error(outputs[0], expected) if expected is not None else 0.0
                microseconds = self.graph_time([lambda one=one: self.launch(one) for one in bound])
                registers = max(self.function(step.kernel)[1].registers for step in plan.steps)
                self.record(kind="time", case=case, tactic=tactic.id, config=str(dict(config)) + (" without PDL" if rank >= 100 else ""), us=microseconds, floor=floor, rank=rank,
                            ok=error <= tactic.tolerance(workload), error=str(error), registers=registers,
                            estimate=tactic.estimate(workload, config, self.device) * 1e6)  # fmt: skip
            except Exception as reason:
                self.record(kind="note", case=case, tactic=tactic.id, config=str(dict(config)), note=str(reason)[:300])

    def time_gemm(self) -> None:
        from tactics.cuda.gemm.gemv import Gemv
        from tactics.cuda.gemm.mma_gemm import MmaGemm

        functional = self.torch.nn.functional
        shapes = [(1, 1000, 2048), (8, 1000, 2048)]
        for m in (128, 1024, 4096):
            shapes += [(m, 2304, 768), (m, 768, 768), (m, 3072, 768), (m, 768, 3072)]
        shapes += [(2048, 2048, 2048), (4096, 4096, 4096)]
        for m, n, k in shapes:
            workload, inputs = self.gemm_case((m, k), (n, k), "f16", True, ((n,),), _add())
            expected = inputs[0].double() @ inputs[1].double().T + inputs[2].double()
            self.timing(f"gemm f16 {m}x{n}x{k}", (MmaGemm(), Gemv()), workload, inputs, expected, lambda one: functional.linear(*one),
                        16 if m <= 128 else 8, alone=2 if m == 128 else 0)  # fmt: skip
        for kind, tb, m, n, k in (("f16", False, 4096, 4096, 4096), ("f32", True, 4096, 4096, 4096), ("bf16", False, 128, 768, 768)):
            workload, inputs = self.gemm_case((m, k), (n, k) if tb else (k, n), kind, tb)
            expected = inputs[0].double() @ (inputs[1].double().T if tb else inputs[1].double())
            self.timing(f"gemm {kind} {'NK' if tb else 'KN'} {m}x{n}x{k}", (MmaGemm(),), workload, inputs, expected,
                        lambda one, tb=tb: one[0] @ (one[1].T if tb else one[1]), 6)  # fmt: skip

    def time_attention(self) -> None:
        from tactics.cuda.attention.attention import MmaAttention

        functional = self.torch.nn.functional
        for b, h, s, d in ((1, 12, 128, 64), (32, 12, 128, 64), (32, 12, 197, 64), (4, 16, 1024, 64), (1, 16, 4096, 64), (4, 16, 1024, 128)):
            workload, inputs, expected = self.attention_case(b, h, s, s, d)
            self.timing(f"attention b{b} h{h} s{s} d{d}", (MmaAttention(),), workload, inputs, expected,
                        lambda one: functional.scaled_dot_product_attention(*one), 14, alone=2)  # fmt: skip
        workload, inputs, expected = self.attention_case(1, 12, 128, 128, 64, mask=(1, 1, 1, 128), layout="bshd")
        self.timing("attention b1 h12 s128 d64 masked bshd", (MmaAttention(),), workload, inputs, expected, None, 14)

    def _time_conv(self, batch: int) -> None:
        from tactics.cuda.conv.mma_conv import MmaConvolution

        torch = self.torch
        layers = [
            (3, 224, 64, 7, 2), (64, 56, 64, 1, 1), (64, 56, 64, 3, 1), (64, 56, 256, 1, 1), (256, 56, 64, 1, 1), (256, 56, 128, 1, 1),
            (128, 56, 128, 3, 2), (128, 28, 512, 1, 1), (256, 56, 512, 1, 2), (512, 28, 128, 1, 1), (128, 28, 128, 3, 1),
            (512, 28, 256, 1, 1), (256, 28, 256, 3, 2), (256, 14, 1024, 1, 1), (512, 28, 1024, 1, 2), (1024, 14, 256, 1, 1),
            (256, 14, 256, 3, 1), (1024, 14, 512, 1, 1), (512, 14, 512, 3, 2), (512, 7, 2048, 1, 1), (1024, 14, 2048, 1, 2),
            (2048, 7, 512, 1, 1), (512, 7, 512, 3, 1),
        ]  # fmt: skip

        def fused(one, stride, pad):  # noqa: ANN001, ANN202
            x = one[0].movedim(-1, 1)
            return torch.cudnn_convolution_relu(x, one[1], one[2], (stride, stride), (pad, pad), (1, 1), 1)

        for c, size, o, window, stride in layers:
            pad = window // 2
            workload, inputs = self.conv_case(batch, (size, size), c, o, (window, window), (stride, stride), (pad, pad),
                                              expression=self.relu_bias(), extras=("bias",))  # fmt: skip
            expected = None
            if batch == 1:
                expected = torch.relu(self.conv_reference(workload, inputs) + inputs[2].double())
            inputs[1] = inputs[1].contiguous(memory_format=torch.channels_last)
            self.timing(f"conv b{batch} {c}x{size} -> {o} k{window} s{stride}", (MmaConvolution(),), workload, inputs, expected,
                        lambda one, stride=stride, pad=pad: fused(one, stride, pad), 12 if batch == 1 else 8)  # fmt: skip

    def time_conv1(self) -> None:
        self._time_conv(1)

    def time_conv32(self) -> None:
        self._time_conv(32)

    def _time_layers(self, name: str, layers, most: int, **more: object) -> None:  # noqa: ANN001
        from tactics.cuda.conv.mma_conv import MmaConvolution

        functional = self.torch.nn.functional
        for n, size, c, o, window, stride, pad, groups in layers:
            workload, inputs = self.conv_case(n, (size, size), c, o, (window,) * 2, (stride,) * 2, (pad,) * 2, None, groups,
                                              expression=self.relu_bias(), extras=("bias",), **more)  # fmt: skip
            expected = self.torch.relu(self.conv_reference(workload, inputs) + inputs[2].double()) if n == 1 else None
            planes = bool(more.get("planes"))

            def torch_call(one, stride=stride, pad=pad, groups=groups):  # noqa: ANN001, ANN202
                x = one[0] if planes else one[0].movedim(-1, 1)  # noqa: B023
                if "output_padding" in more:
                    return functional.conv_transpose2d(x, one[1], one[2], stride, pad, 0, groups)
                return functional.conv2d(x, one[1], one[2], stride, pad, 1, groups)

            self.timing(f"{name} b{n} {c}x{size} -> {o} k{window} s{stride} g{groups}", (MmaConvolution(),), workload, inputs, expected,
                        torch_call, most)  # fmt: skip

    def time_deconv(self) -> None:
        """U-Net's upsampling, and a generator's 4x4."""
        self._time_layers("deconv", ((1, 16, 1024, 512, 2, 2, 0, 1), (1, 128, 128, 64, 2, 2, 0, 1), (8, 32, 256, 128, 4, 2, 1, 1)), 8,
                          output_padding=(0, 0))  # fmt: skip

    def time_groups(self) -> None:
        """ResNeXt-50 32x4d's 3x3 layers."""
        self._time_layers("groups", ((1, 56, 128, 128, 3, 1, 1, 32), (32, 56, 128, 128, 3, 1, 1, 32), (32, 28, 256, 256, 3, 1, 1, 32),
                                     (32, 14, 512, 512, 3, 1, 1, 32)), 6)  # fmt: skip

    def time_stem(self) -> None:
        """First layers that read an image's planes."""
        self._time_layers("stem planes", ((1, 224, 3, 64, 7, 2, 3, 1), (32, 224, 3, 64, 7, 2, 3, 1), (32, 224, 3, 32, 3, 2, 1, 1),
                                          (32, 224, 3, 768, 16, 16, 0, 1)), 6, planes=True)  # fmt: skip

    def time_depthwise(self) -> None:
        """Every depthwise layer of the networks at batch 32, with bias and activation, beside torch and a copy of as many bytes."""
        from tactics.cuda.conv.depthwise import Depthwise
        from tactics.cuda.conv.depthwise_mma import DepthwiseMma

        functional = self.torch.nn.functional
        for activation, c, size, window, stride in dict.fromkeys(layer for layers in DEPTHWISE.values() for layer, _ in layers):
            workload, inputs = self.conv_case(32, (size, size), c, c, (window, window), (stride, stride), (window // 2, window // 2), None, c,
                                              "f16", _activated(activation), ("bias",))  # fmt: skip

            def torch_call(one, stride=stride, window=window, c=c):  # noqa: ANN001, ANN202
                return functional.conv2d(one[0].movedim(-1, 1), one[1], one[2], stride, window // 2, 1, c)

            expected = None
            if size < 28:
                sums = self.conv_reference(workload, inputs) + inputs[2].double()
                expected = functional.silu(sums) if activation == "swish" else self.torch.relu(sums)
            case = depthwise_case(activation, c, size, window, stride)
            self.timing(case, (Depthwise(), DepthwiseMma()), workload, inputs, expected, torch_call, 4)
            self.queue.append((self.time_copy, (case, workload)))

    def time_copy(self, case: str, workload) -> None:  # noqa: ANN001
        """A device-to-device copy that moves as many bytes as the workload."""
        from tactics.tactic import workload_bytes

        half = workload_bytes(workload) // 2
        pairs = [tuple(self.torch.empty(half, dtype=self.torch.uint8, device="cuda") for _ in range(2)) for _ in range(self.copies(2 * half))]
        microseconds = self.graph_time([lambda pair=pair: pair[0].copy_(pair[1]) for pair in pairs])
        self.record(kind="copy", case=case, us=microseconds, bytes=2 * half)


def _activated(activation: str):  # noqa: ANN202
    from fusion.dtypes import DataType
    from fusion.expression import Literal, apply

    added = _add()
    return apply("swish", added, Literal(1.0, DataType.FLOAT)) if activation == "swish" else apply("relu", added)


def _without_pdl(plan):  # noqa: ANN001, ANN202
    steps = []
    for step in plan.steps:
        kept = tuple(item for item in step.kernel.defines if item[0] != "PDL")
        steps.append(replace(step, kernel=replace(step.kernel, defines=kept), dependent=False))
    return replace(plan, steps=tuple(steps))


def _add():  # noqa: ANN202
    from fusion.expression import Operand, apply

    return apply("add", Operand(0), Operand(1))


if __name__ == "__main__":
    sys.exit(main())
