"""Vendors' libraries as tactic sources: the calling code against stand-ins on host memory, and what is said when they are absent."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply
from fusion.network import Op, TensorType
from fusion.ops import Convolution, MatrixMultiply
from runtime import libraries
from runtime.cublas_lt import CublasLt as LtBinding
from runtime.cudnn import Cudnn as CudnnBinding
from runtime.device import DeviceError
from tactics.candidates import SelectOptions, candidates
from tactics.cuda.libraries.affine import Affine, affine_epilogue
from tactics.cuda.libraries.cublas_lt import CublasLt
from tactics.cuda.libraries.cudnn import Cudnn
from tactics.tactic import Buffer, Launch, LibraryCall, Refusal, Tactic, Workload, config
from tests.harness.fiber import H100, close

HARNESS = Path(__file__).parent.parent / "harness"
BIAS_RESIDUAL = apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2)))
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc for the stand-in libraries")
STREAM = ctypes.c_void_p(77)


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("libraries")
    found = {}
    for name in ("cublas_lt", "cudnn"):
        target = folder / f"lib{name}.so"
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", target, HARNESS / f"fake_{name}.c"], check=True)
        found[name] = ctypes.CDLL(str(target))
    return found


def case(op: Op, shapes: Sequence[tuple[int, ...]], dtype: DataType = DataType.FLOAT, constant: Sequence[int] = (1,)):
    """(workload, inputs, expected)."""
    generator = np.random.default_rng(3)
    inputs = [generator.integers(-9, 9, shape).astype(np.int8) if dtype is DataType.INT8 and n < 2 else
              generator.normal(size=shape).astype(np.float32 if dtype is DataType.INT8 else dtype.numpy) for n, shape in enumerate(shapes)]  # fmt: skip
    types = tuple(TensorType(DataType(one.dtype.name), one.shape) for one in inputs)
    return Workload(op, types, op.infer(types), tuple(n in constant for n in range(len(inputs)))), inputs, op.evaluate(inputs)


def run(tactic: Tactic, binding: Any, given: Any, chosen: Any = None) -> np.ndarray:
    """The first step of the plan on host memory; outputs hold NaN before (-1 where they are integers)."""
    workload, inputs, _ = given
    assert tactic.supports(workload, H100) is None, tactic.supports(workload, H100)
    chosen = chosen or tactic.configs(workload, H100)[0]
    plan = tactic.plan(workload, chosen, H100)
    packed = tactic.prepare(workload, chosen, {n: inputs[n] for n, one in enumerate(workload.constant) if one})
    out = np.full(tuple(workload.outputs[0].shape), np.nan, np.float32)
    scratch = np.full(plan.workspace + 16, 0xFF, np.uint8)
    arrays = {"input": inputs, "packed": packed, "output": [out], "workspace": [scratch]}

    def address(buffer: Buffer) -> int:
        return arrays[buffer.kind][buffer.index].ctypes.data + buffer.offset

    step = plan.steps[0]
    assert isinstance(step, LibraryCall)
    assert binding.prepared(step, address, STREAM)() == 0
    if len(plan.steps) > 1:  # sums for our own kernel
        assert isinstance(plan.steps[1], Launch)
        return scratch[: out.size * 4].view(np.int32 if inputs[0].dtype == np.int8 else np.float32).reshape(out.shape)
    return out


# --- epilogues ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        (Operand(0), Affine()),
        (BIAS_RESIDUAL, Affine(1.0, 2, 3, "relu")),
        (apply("gelu_tanh", apply("add", Operand(1), Operand(0))), Affine(1.0, 2, None, "gelu_tanh")),
        (apply("mul", Literal(0.5, DataType.FLOAT), Operand(0)), Affine(0.5)),
        (apply("gelu", Operand(0)), None),
        (apply("add", Operand(1), Operand(2)), None),
        (apply("add", Operand(0), Operand(0)), None),
        (apply("mul", Operand(0), Operand(1)), None),
    ],
)
def test_what_libraries_compute_themselves(expression: Expression, wanted: Affine | None) -> None:
    workload, _, _ = case(MatrixMultiply(epilogue=expression), ((5, 7), (7, 6), (6,), (5, 6)))
    assert affine_epilogue(workload) == wanted


# --- cuBLASLt ----------------------------------------------------------------------------------------------------------


@needs_gcc
@pytest.mark.parametrize(
    "given",
    [
        case(MatrixMultiply(), ((5, 8), (8, 12))),
        case(MatrixMultiply(False, True), ((5, 8), (12, 8)), constant=()),
        case(MatrixMultiply(True, False), ((8, 5), (8, 12)), constant=()),
        case(MatrixMultiply(), ((5, 7), (7, 6))),  # rows of weights that are no whole vectors are packed
        case(MatrixMultiply(), ((3, 2, 5, 7), (3, 2, 7, 6)), constant=()),
        case(MatrixMultiply(), ((2, 3, 5, 7), (7, 6))),
        case(MatrixMultiply(epilogue=BIAS_RESIDUAL), ((5, 8), (8, 12), (12,), (5, 12)), constant=(1, 2)),
        case(MatrixMultiply(epilogue=BIAS_RESIDUAL), ((5, 7), (7, 6), (6,), (5, 6)), constant=(1, 2)),
        case(MatrixMultiply(epilogue=BIAS_RESIDUAL), ((5, 7), (7, 6), (6,), (5, 6)), constant=(1,)),
        case(MatrixMultiply(epilogue=apply("mul", Operand(0), Literal(0.25, DataType.FLOAT))), ((5, 8), (8, 12))),
    ],
)  # fmt: skip
def test_cublas_lt(fakes: dict[str, Any], given: Any) -> None:
    close(run(CublasLt(), LtBinding(fakes["cublas_lt"]), given), given[2][0], "cublasLt", {"float32": 1e-5})
    gc.collect()
    assert fakes["cublas_lt"].fake_alive() == 0, "every descriptor was given back"


@needs_gcc
def test_cublas_lt_leaves_sums_for_other_epilogues_and_for_integers(fakes: dict[str, Any]) -> None:
    binding = LtBinding(fakes["cublas_lt"])
    given = case(MatrixMultiply(epilogue=apply("tanh", Operand(0))), ((5, 8), (8, 12)))
    close(run(CublasLt(), binding, given), given[1][0] @ given[1][1], "sums", {"float32": 1e-5})
    given = case(MatrixMultiply(epilogue=Convert(DataType.FLOAT, Operand(0))), ((5, 16), (16, 12)), DataType.INT8)
    assert np.array_equal(run(CublasLt(), binding, given), given[1][0].astype(np.int32) @ given[1][1].astype(np.int32))


@needs_gcc
def test_cublas_lt_keeps_to_its_workspace_and_to_what_is_proposed(fakes: dict[str, Any]) -> None:
    binding, given = LtBinding(fakes["cublas_lt"]), case(MatrixMultiply(), ((5, 8), (8, 12)))
    run(CublasLt(), binding, given, config(algorithm=0, workspace=1 << 20))
    assert ctypes.c_int.in_dll(fakes["cublas_lt"], "fake_last_algorithm").value == 40
    run(CublasLt(), binding, given, config(algorithm=0, workspace=0))
    assert ctypes.c_int.in_dll(fakes["cublas_lt"], "fake_last_algorithm").value == 41
    with pytest.raises(DeviceError, match="proposes 1 algorithms within 0 bytes of workspace; number 1 is none"):
        run(CublasLt(), binding, given, config(algorithm=1, workspace=0))
    varying = replace(given[0], varies=((True, False), (False, False), (True, False)))  # at other sizes there may be fewer proposals
    run(CublasLt(), binding, (varying, *given[1:]), config(algorithm=1, workspace=0))


def test_cublas_lt_refuses() -> None:
    def refused(given: Any, text: str) -> None:
        refusal = CublasLt().supports(given[0], H100)
        assert isinstance(refusal, Refusal) and text in refusal.reason

    refused(case(MatrixMultiply(), ((5, 10), (10, 12)), DataType.INT8), "multiples of 4")
    refused(case(MatrixMultiply(), ((5, 8), (8, 12)), DataType.INT8, constant=()), "depth contiguous")
    refused(case(MatrixMultiply(), ((2, 1, 5, 7), (1, 3, 7, 6)), constant=()), "stride")


# --- cuDNN -------------------------------------------------------------------------------------------------------------


@needs_gcc
@pytest.mark.parametrize("algorithm", [1, 0])
@pytest.mark.parametrize("epilogue", [Operand(0), BIAS_RESIDUAL, apply("relu", apply("add", Operand(0), Operand(1)))])
def test_cudnn(fakes: dict[str, Any], epilogue: Expression, algorithm: int) -> None:
    extras: tuple[tuple[int, ...], ...] = {Operand(0): (), BIAS_RESIDUAL: ((6,), (2, 4, 5, 6))}.get(epilogue, ((6,),))
    op = Convolution((2, 1), (1, 1), (1, 1), (1, 1), 2, True, epilogue)
    given = case(op, ((2, 7, 5, 4), (6, 2, 3, 3), *extras), constant=(1, 2))
    found = run(Cudnn(), CudnnBinding(fakes["cudnn"]), given, config(algorithm=algorithm, workspace=0 if algorithm == 1 else 8192))
    close(found, given[2][0], "cudnn", {"float32": 1e-5})
    gc.collect()
    assert fakes["cudnn"].fake_alive() == 0


@needs_gcc
def test_cudnn_says_what_workspace_it_needs(fakes: dict[str, Any]) -> None:
    given = case(Convolution((1,), (0,), (0,), (1,), 1, True), ((2, 7, 4), (6, 4, 3)))
    with pytest.raises(DeviceError, match="needs 4096 bytes of workspace, 0 are planned"):
        run(Cudnn(), CudnnBinding(fakes["cudnn"]), given, config(algorithm=0, workspace=0))
    close(run(Cudnn(), CudnnBinding(fakes["cudnn"]), given), given[2][0], "one dimension", {"float32": 1e-5})


def test_cudnn_refuses() -> None:
    def refused(op: Op, text: str, shapes: Any = ((2, 7, 5, 4), (6, 4, 3, 3)), constant: Sequence[int] = (1,)) -> None:
        refusal = Cudnn().supports(case(op, shapes, constant=constant)[0], H100)
        assert isinstance(refusal, Refusal) and text in refusal.reason, refusal

    plain = Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, True)
    refused(replace(plain, post_padding=(2, 1)), "same at both ends")
    refused(replace(plain, epilogue=apply("tanh", Operand(0))), "epilogue")
    refused(plain, "computed by the network", constant=())
    refused(Convolution((1,) * 3, (0,) * 3, (0,) * 3, (1,) * 3, 1, True), "up to two", ((1, 4, 4, 4, 4), (4, 4, 3, 3, 3)))


# --- both --------------------------------------------------------------------------------------------------------------


def test_libraries_compete_only_where_they_are_asked_for() -> None:
    workload, _, _ = case(MatrixMultiply(), ((64, 64), (64, 64)), DataType.HALF)
    for sources in ((), ("CUBLAS_LT",)):
        chosen, refused = candidates(workload, H100, SelectOptions(sources=sources))
        ids = {tactic.id for tactic, _ in chosen} | {row.tactic for row in refused}
        assert ("cuda.cublas_lt" in ids) == bool(sources)
    chosen, _ = candidates(workload, H100, SelectOptions(level=1, sources=("CUBLAS_LT",)))
    assert "cuda.cublas_lt" in {tactic.id for tactic, _ in chosen}, "at every level"


def test_an_engine_keeps_the_weights_that_a_library_reads_as_they_are() -> None:
    from trtcli.builder.assemble import inputs_read

    workload, _, _ = case(MatrixMultiply(False, True, BIAS_RESIDUAL), ((5, 8), (12, 8), (12,), (5, 12)), constant=(1, 2))
    plan = CublasLt().plan(workload, CublasLt().configs(workload, H100)[0], H100)
    assert inputs_read(plan, 4) == {0, 1, 3}, "the bias is packed"


def test_an_absent_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find", lambda name: "")
    with pytest.raises(DeviceError, match=r"CUBLAS_LT needs libcublasLt.so.13, which is not installed: pip install 'trtcli\[cublas\]' .*nvidia-cublas-cu12"):
        libraries.open_library("CUBLAS_LT")
    with pytest.raises(DeviceError, match=r"pip install 'trtcli\[cudnn\]'"):
        libraries.open_library("CUDNN")
    with pytest.raises(DeviceError, match="no kernels under that name"):
        libraries.open_library("JIT_CONVOLUTIONS")


# --- on a GPU ----------------------------------------------------------------------------------------------------------


def _check_on_gpu(tactic: Tactic, given: Any, limit: float) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    try:
        open_device("0").library(tactic.source)
    except DeviceError as error:
        pytest.skip(str(error))
    workload, inputs, expected = given
    device = open_device("0").spec
    assert tactic.supports(workload, device) is None, tactic.supports(workload, device)
    failures = []
    for chosen in tactic.configs(workload, device):
        packed = tactic.prepare(workload, chosen, {n: inputs[n] for n, one in enumerate(workload.constant) if one})
        try:
            (found,) = run_on_gpu(tactic.plan(workload, chosen, device), inputs, workload.outputs, packed)
        except DeviceError as error:  # an algorithm that cannot compute this: at least one must
            failures.append(f"{dict(chosen)}: {error}")
            continue
        close(found, expected[0], f"{tactic.id} {dict(chosen)}", dict.fromkeys(("float16", "bfloat16", "float32", "int32"), limit))
    assert len(failures) < len(tactic.configs(workload, device)), failures


GELU = apply("gelu_tanh", apply("add", Operand(0), Operand(1)))
SCALED = apply("relu", apply("add", apply("mul", Convert(DataType.FLOAT, Operand(0)), Operand(1)), Literal(0.5, DataType.FLOAT)))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("given", "limit"),
    [
        (case(MatrixMultiply(epilogue=BIAS_RESIDUAL), ((130, 264), (264, 72), (72,), (130, 72)), DataType.HALF, (1, 2)), 2e-3),
        (case(MatrixMultiply(epilogue=BIAS_RESIDUAL), ((33, 37), (37, 19), (19,), (33, 19)), DataType.HALF, (1, 2)), 2e-3),
        (case(MatrixMultiply(epilogue=GELU), ((130, 264), (264, 72), (72,)), DataType.BF16, (1, 2)), 1e-2),
        (case(MatrixMultiply(epilogue=apply("tanh", Operand(0))), ((130, 64), (64, 72)), DataType.HALF), 2e-3),
        (case(MatrixMultiply(False, True), ((3, 2, 17, 24), (3, 2, 9, 24)), DataType.HALF, ()), 2e-3),
        (case(MatrixMultiply(True, False), ((264, 17), (264, 9)), constant=()), 2e-3),
        (case(MatrixMultiply(epilogue=SCALED), ((130, 64), (64, 72), (72,)), DataType.INT8, (1, 2)), 1e-5),
        (case(MatrixMultiply(), ((130, 64), (64, 80)), DataType.FP8), 2e-3),
    ],
)  # fmt: skip
def test_cublas_lt_on_a_gpu(given: Any, limit: float) -> None:
    _check_on_gpu(CublasLt(), given, limit)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("given", "limit"),
    [
        (case(Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, True, BIAS_RESIDUAL), ((2, 14, 14, 64), (32, 64, 3, 3), (32,), (2, 14, 14, 32)), DataType.HALF, (1, 2)), 2e-3),
        (case(Convolution((2, 2), (0, 0), (0, 0), (1, 1), 1, True, apply("relu", apply("add", Operand(0), Operand(1)))), ((2, 14, 14, 64), (32, 64, 1, 1), (32,)), DataType.BF16, (1, 2)), 1e-2),
        (case(Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, True), ((2, 9, 11, 8), (16, 8, 3, 3))), 2e-3),
        (case(Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, True, Convert(DataType.FLOAT, Operand(0))), ((2, 9, 11, 32), (32, 32, 3, 3)), DataType.INT8), 1e-5),
    ],
)  # fmt: skip
def test_cudnn_on_a_gpu(given: Any, limit: float) -> None:
    _check_on_gpu(Cudnn(), given, limit)


@pytest.mark.gpu
def test_an_engine_with_a_library_runs_and_is_captured(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    import trtcli
    from fusion.importer import import_onnx
    from fusion.passes import FusionOptions, optimize
    from runtime.devices import open_device

    try:
        open_device("0").library("CUBLAS_LT")
    except DeviceError as error:
        pytest.skip(str(error))
    random = np.random.default_rng(2)
    values = {"w": random.standard_normal((96, 128)) / 11, "b": random.standard_normal(96)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["p"], "fc", transB=1), helper.make_node("Relu", ["p"], ["y"], "relu")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ["n", 128]), ("y", ["n", 96])))
    graph = helper.make_graph(nodes, "fc", [x], [y], [numpy_helper.from_array(one.astype(np.float32), name) for name, one in values.items()])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    (layer,) = optimize(import_onnx(data), FusionOptions(device="cuda")).network.layers
    shapes = trtcli.ProfileShapes({"x": (1, 128)}, {"x": (40, 128)}, {"x": (80, 128)})
    config = trtcli.BuildConfig(profiles=(shapes,), tactic_sources=("CUBLAS_LT",), pin_tactic=((layer.name, "cuda.cublas_lt"),), tf32=False)
    engine = trtcli.build(data, config, device="0")
    assert engine.layers[0].tactic == "cuda.cublas_lt" and dict(engine.layers[0].sources).keys() == {"CUBLAS_LT"}
    engine.save(tmp_path / "library.engine")
    context = trtcli.Engine.load(tmp_path / "library.engine").create_execution_context()
    stream = context.device.stream()
    for rows in (40, 7, 40):  # other sizes take the heuristic's proposals for them
        given = random.standard_normal((rows, 128)).astype(np.float32)
        context.set_input_shape("x", (rows, 128))
        context.use_own_memory()
        context.write_tensor("x", given)
        context.execute_async_v3(stream)
        stream.synchronize()
        captured = context.device.capture(stream, lambda: context.execute_async_v3(stream))
        captured.launch(stream)
        stream.synchronize()
        wanted = np.maximum(given @ values["w"].T.astype(np.float32) + values["b"].astype(np.float32), 0)
        np.testing.assert_allclose(context.read_tensor("y"), wanted, rtol=1e-4, atol=1e-4)
