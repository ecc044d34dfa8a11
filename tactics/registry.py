"""Every tactic family, named by module so that nothing is imported before it is asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from tactics.tactic import Tactic

# Each module has ``TACTICS: tuple[Tactic, ...]``.
FAMILIES: dict[str, tuple[str, ...]] = {
    "cpu": (
        "tactics.cpu.convolution",
        "tactics.cpu.winograd",
        "tactics.cpu.depthwise",
        "tactics.cpu.pooling",
        "tactics.cpu.convolution_pooling",
        "tactics.cpu.separable_convolution",
        "tactics.cpu.deconvolution",
        "tactics.cpu.matmul",
        "tactics.cpu.prologue",
        "tactics.cpu.dequantized",
        "tactics.cpu.attention",
        "tactics.cpu.recurrent",
        "tactics.cpu.pointwise",
        "tactics.cpu.reduce",
        "tactics.cpu.rows",
        "tactics.cpu.movement",
        "tactics.cpu.indexing",
        "tactics.cpu.resize",
        "tactics.cpu.order",
        "tactics.cpu.fill",
        "tactics.cpu.plugin",
        "tactics.cpu.reference",
    ),
    "cuda": (
        "tactics.cuda.gemm.simt_gemm",
        "tactics.cuda.gemm.mma_gemm",
        "tactics.cuda.gemm.gemv",
        "tactics.cuda.gemm.stream",
        "tactics.cuda.gemm.prologue",
        "tactics.cuda.conv.simt_conv",
        "tactics.cuda.conv.mma_conv",
        "tactics.cuda.conv.depthwise",
        "tactics.cuda.conv.depthwise_mma",
        "tactics.cuda.conv.pooled_conv",
        "tactics.cuda.conv.separable",
        "tactics.cuda.sm90.gemm_sm90",
        "tactics.cuda.sm90.conv_sm90",
        "tactics.cuda.sm90.deconv_sm90",
        "tactics.cuda.sm90.conv_window_sm90",
        "tactics.cuda.sm90.stem_sm90",
        "tactics.cuda.sm90.patches_sm90",
        "tactics.cuda.attention.attention",
        "tactics.cuda.sm90.attention_sm90",
        "tactics.cuda.sm90.attention_decode_sm90",
        "tactics.cuda.recurrent.rows",
        "tactics.cuda.recurrent.persistent",
        "tactics.cuda.pointwise.pointwise",
        "tactics.cuda.reduce.reduce",
        "tactics.cuda.softmax.softmax",
        "tactics.cuda.normalization.normalization",
        "tactics.cuda.normalization.sum",
        "tactics.cuda.shuffle.shuffle",
        "tactics.cuda.shuffle.reformat",
        "tactics.cuda.shuffle.moves",
        "tactics.cuda.pooling.pooling",
        "tactics.cuda.gather.gather",
        "tactics.cuda.fill.fill",
        "tactics.cuda.lrn.lrn",
        "tactics.cuda.resize.axes",
        "tactics.cuda.rotary.rotary",
        "tactics.cuda.order.argreduce",
        "tactics.cuda.order.cumulative",
        "tactics.cuda.order.topk",
        "tactics.cuda.select.nonzero",
        "tactics.cuda.select.nms",
        "tactics.cuda.select.unique",
        "tactics.cuda.sampling.sampling",
        "tactics.cuda.windows.windows",
        "tactics.cuda.determinant.determinant",
        "tactics.cuda.reinterpret.reinterpret",
        "tactics.cuda.attention.linear_attention",
        "tactics.cuda.attention.cache",
        "tactics.cuda.plain.products",
        "tactics.cuda.packed.packed_gemm",
        "tactics.cuda.packed.packed_gemv",
        "tactics.cuda.packed.dequantized",
        "tactics.cuda.plugin.plugin",
        "tactics.cuda.libraries.cublas_lt",
        "tactics.cuda.libraries.cudnn",
    ),
}


@cache
def tactics(device: str) -> tuple[Tactic, ...]:
    """All tactics of a device kind (``cuda`` or ``cpu``), in the order of FAMILIES."""
    return tuple(tactic for module in FAMILIES[device] for tactic in import_module(module).TACTICS)


def source_of(tactic_id: str) -> str:
    """The library behind a tactic (``Tactic.source``); empty for kernels of our own and ids that this version does not have."""
    try:
        return tactic(tactic_id).source
    except (KeyError, ModuleNotFoundError):
        return ""


@cache
def tactic(tactic_id: str) -> Tactic:
    """The tactic with this id.

    Raises:
        KeyError: no such tactic in this version.
    """
    found = {one.id: one for one in tactics(tactic_id.split(".", 1)[0])}
    return found[tactic_id]
