"""Products of a function of their left operand: kernels of plain products, which apply it where they have read it (``include/prologue.cuh``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from fusion.ops import Convolution, PrologueProduct
from tactics.cuda.conv.common import Window, merge_columns, window_of
from tactics.cuda.conv.mma_conv import MmaConvolution
from tactics.cuda.conv.simt_conv import SimtConvolution
from tactics.cuda.epilogue import EpilogueCode, in_namespace, moved_argument, prologue_code
from tactics.cuda.gemm.common import C_TYPES
from tactics.cuda.gemm.gemv import Gemv
from tactics.cuda.gemm.mma_gemm import MmaGemm
from tactics.cuda.gemm.simt_gemm import SimtGemm
from tactics.cuda.gemm.stream import StreamedGemm
from tactics.cuda.sm90.conv_sm90 import Sm90Convolution, is_product, window_sm90
from tactics.cuda.sm90.gemm_sm90 import Sm90Gemm
from tactics.prologue import product, prologue
from tactics.tactic import Config, DeviceSpec, Launch, Plan, Refusal, Tactic, Workload


class _Prologue(Tactic):
    """A kernel of plain products (``matrices``, ``convolutions``: of that operation), whose first launch gets the prologue."""

    device = "cuda"
    ops = (PrologueProduct,)
    matrices: ClassVar[Tactic]
    convolutions: ClassVar[Tactic | None] = None

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, PrologueProduct)
        inner, plain = product(workload), self._plain(workload)
        if plain is None:
            return Refusal("this kernel does not convolve")
        kinds = [workload.inputs[0].dtype, inner.inputs[0].dtype]
        if kinds[0] not in C_TYPES or kinds[0] is not kinds[1]:
            return Refusal(f"a prologue of {kinds[0].label} to {kinds[1].label}; this kernel applies it in place, to FP32, FP16 or BF16")
        if getattr(op.product, "transpose_a", False):
            return Refusal("a is stored [K][M]; a prologue wants [M][K]")
        if (reason := plain.supports(inner, device)) is not None:
            return reason
        if isinstance(op.product, Convolution) and (not op.product.reads_channels_last or plain_pixels(inner) is None):
            return Refusal("x is read as planes, or several pixels as one; a prologue wants channels last and pixels apart")
        code = prologue_code(prologue(workload), op.prologue)
        return code if isinstance(code, Refusal) else None

    def pitched(self, workload: Workload) -> Collection[int]:
        op, end = workload.op, len(workload.inputs)
        assert isinstance(op, PrologueProduct)
        plain, own = self._plain(workload), end - op.operands
        inner = () if plain is None else plain.pitched(product(workload))
        return [*(number if number < own else number + op.operands for number in inner), *range(own, end)]

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [one for one in self._of(workload).configs(product(workload), device) if not dict(one).get("swap")]  # b's side has no prologue

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        return [one for one in self._of(workload).neighbours(product(workload), config, device) if not dict(one).get("swap")]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return self._of(workload).estimate(product(workload), config, device)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        return self._of(workload).prepare(product(workload), config, constants)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, PrologueProduct)
        plan = self._of(workload).plan(product(workload), config, device)
        code = prologue_code(prologue(workload), op.prologue)
        assert isinstance(code, EpilogueCode)
        first, *rest = plan.steps
        assert isinstance(first, Launch)
        argument = moved_argument(code, len(workload.inputs) - op.operands - 1)
        constants = (("PROLOGUE_CONSTANTS", "1"),) if ("EPILOGUE_CONSTANTS", "1") in code.defines else ()
        kernel = replace(first.kernel, defines=(*first.kernel.defines, ("HAS_PROLOGUE", "1"), *constants), prelude=in_namespace(code, "before") + first.kernel.prelude)
        return replace(plan, steps=(replace(first, kernel=kernel, arguments=(*first.arguments, argument)), *rest))

    def _plain(self, workload: Workload) -> Tactic | None:
        assert isinstance(workload.op, PrologueProduct)
        return self.convolutions if isinstance(workload.op.product, Convolution) else self.matrices

    def _of(self, workload: Workload) -> Tactic:
        found = self._plain(workload)
        assert found is not None
        return found


def plain_pixels(workload: Workload) -> Window | None:
    """The window of a convolution whose pixels are read one by one: their channels are those of x."""
    window = window_of(workload)
    return window if isinstance(window, Window) and merge_columns(window, workload) == window else None


class SimtPrologue(_Prologue):
    """On the ordinary cores: the reference of its family."""

    id = "cuda.prologue.simt"
    reference = True
    matrices = SimtGemm()
    convolutions = SimtConvolution()


class MmaPrologue(_Prologue):
    """On tensor cores; also convolutions."""

    id = "cuda.prologue.mma"
    matrices = MmaGemm()
    convolutions = MmaConvolution()


class Sm90Prologue(_Prologue):
    """On Hopper's tensor cores: a warpgroup changes its rows in shared memory while those before are multiplied; 16-bit types, and of convolutions 1x1 ones."""

    id = "cuda.prologue.sm90"
    matrices = Sm90Gemm()
    convolutions = Sm90Convolution()

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if workload.inputs[0].dtype.itemsize != 2:
            return Refusal(f"TMA rounds {workload.inputs[0].dtype.label} to TF32 before the prologue; this kernel takes FP16 and BF16")
        inner = product(workload)
        if isinstance(inner.op, Convolution):
            window = window_sm90(inner)
            if isinstance(window, Refusal):
                return window
            if not is_product(window, inner):
                return Refusal("windows come through TMA's im2col mode; this kernel applies a prologue to plain rows")
        return super().supports(workload, device)


class GemvPrologue(_Prologue):
    """One to eight rows."""

    id = "cuda.prologue.gemv"
    matrices = Gemv()


class StreamedPrologue(_Prologue):
    """One to sixteen rows, weights in the order in which they are multiplied."""

    id = "cuda.prologue.stream"
    matrices = StreamedGemm()


TACTICS = (SimtPrologue(), MmaPrologue(), Sm90Prologue(), GemvPrologue(), StreamedPrologue())
