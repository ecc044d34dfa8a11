"""Matrix products: checks, and times beside cuBLAS through torch."""

from __future__ import annotations

from benchmarks.gpu.portable.cases import Cases
from benchmarks.gpu.portable.device import Gpu
from benchmarks.gpu.portable.expressions import ADD, RELU_BIAS_RESIDUAL
from fusion.network import TensorType
from fusion.ops import MatrixMultiply
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.gemm.gemv import Gemv
from tactics.cuda.gemm.mma_gemm import MmaGemm
from tactics.cuda.gemm.simt_gemm import SimtGemm
from tactics.tactic import Workload


def gemm_case(gpu: Gpu, a_shape, b_shape, kind: str, transpose_b: bool, extras=(), expression=None, transpose_a=False, constant=True):
    """(workload, inputs, float64 result) of a product with an epilogue over ``extras`` shapes."""
    op = MatrixMultiply(transpose_a, transpose_b, expression or IDENTITY)
    k = a_shape[-2] if transpose_a else a_shape[-1]
    inputs = [gpu.normal(a_shape, kind), gpu.normal(b_shape, kind, k**-0.5), *(gpu.normal(shape, kind) for shape in extras)]
    types = tuple(TensorType(gpu.types[kind], tuple(one.shape)) for one in inputs)
    workload = Workload(op, types, op.infer(types), (False, constant, *(False for _ in extras)))
    return workload, inputs


def check_gemm(cases: Cases) -> None:
    all_tactics = (MmaGemm(), SimtGemm(), Gemv())

    def case(a, b, kind, tb, residual=False, count=3, ta=False, constant=True, which=all_tactics):
        n = b[-2] if tb else b[-1]
        m = a[-1] if ta else a[-2]
        lead = cases.gpu.torch.broadcast_shapes(a[:-2], b[:-2])
        extras = ((n,), (*lead, m, n)) if residual else ()
        workload, inputs = gemm_case(cases.gpu, a, b, kind, tb, extras, RELU_BIAS_RESIDUAL if residual else None, ta, constant)
        left, right = inputs[0].double(), inputs[1].double()
        result = (left.mT if ta else left) @ (right.mT if tb else right)
        if residual:
            result = cases.gpu.torch.relu(result + inputs[2].double() + inputs[3].double())
        cases.verify(f"{kind} {a}x{b} {'NK' if tb else 'KN'}{' +epi' if residual else ''}", which, workload, inputs, result, count)

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


def time_gemm(cases: Cases) -> None:
    functional = cases.gpu.torch.nn.functional
    shapes = [(1, 1000, 2048), (8, 1000, 2048)]
    for m in (128, 1024, 4096):
        shapes += [(m, 2304, 768), (m, 768, 768), (m, 3072, 768), (m, 768, 3072)]
    shapes += [(2048, 2048, 2048), (4096, 4096, 4096)]
    for m, n, k in shapes:
        workload, inputs = gemm_case(cases.gpu, (m, k), (n, k), "f16", True, ((n,),), ADD)
        expected = inputs[0].double() @ inputs[1].double().T + inputs[2].double()
        cases.timing(f"gemm f16 {m}x{n}x{k}", (MmaGemm(), Gemv()), workload, inputs, expected, lambda one: functional.linear(*one),
                     16 if m <= 128 else 8, alone=2 if m == 128 else 0)  # fmt: skip
    for kind, tb, m, n, k in (("f16", False, 4096, 4096, 4096), ("f32", True, 4096, 4096, 4096), ("bf16", False, 128, 768, 768)):
        workload, inputs = gemm_case(cases.gpu, (m, k), (n, k) if tb else (k, n), kind, tb)
        expected = inputs[0].double() @ (inputs[1].double().T if tb else inputs[1].double())
        cases.timing(f"gemm {kind} {'NK' if tb else 'KN'} {m}x{n}x{k}", (MmaGemm(),), workload, inputs, expected,
                     lambda one, tb=tb: one[0] @ (one[1].T if tb else one[1]), 6)  # fmt: skip
