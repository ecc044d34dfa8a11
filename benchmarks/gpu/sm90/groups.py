"""Which kernels a group needs, and which function runs it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.sm90 import checks, timing
from benchmarks.gpu.sm90.cases import (
    ATTENTION_CHECKS,
    SHORT_CHECKS,
    check_conv_cases,
    check_gemm_cases,
    check_stem_cases,
    check_window_cases,
)
from benchmarks.gpu.sm90.device import Gpu
from benchmarks.gpu.sm90.kernels import (
    attention_kinds,
    attention_unit,
    short_unit,
    stem_unit,
    unit,
    window_configs,
    window_unit,
)
from benchmarks.gpu.sm90.shapes import (
    ATTENTION_SHAPES,
    EPILOGUE_SHAPES,
    SHORT_SHAPES,
    STEM_SHAPES,
    SWEEP_CONV,
    SWEEP_GEMM,
    attention_label,
    causals,
    conv_candidates,
    conv_unit,
    gemm_candidates,
    item_label,
    items,
    layer_candidates,
    layer_unit,
    nets,
    stem_candidates,
    stem_label,
    swept,
)


def units_of(group, only):
    """Every translation unit that a group may need."""
    result = []
    if group == "check-gemm":
        for label, c, _, o in check_gemm_cases():
            if re.search(only, f"{group} {label}"):
                result.append(unit("gemm", c, o.get("epilogue", ""), o.get("in_type", "f16"), o.get("out_type", "f16"), o.get("vec", 8),
                                   o.get("debug", 1)))
    if group == "check-conv":
        for label, c, _, o in check_conv_cases():
            if re.search(only, f"{group} {label}"):
                result.append(unit("conv", c, "bias_residual_relu", o.get("in_type", "f16"), o.get("out_type", "f16"), o.get("vec", 8), 1))
    if group == "check-window":
        for label, (_, h, w, c, o, f, pads), kind in check_window_cases():
            if re.search(only, f"{group} {label}"):
                size = h + pads[0] + pads[2] - f[0] + 1, w + pads[1] + pads[3] - f[1] + 1
                result += [window_unit(one, "bias_residual_relu", kind, kind, 1) for one in window_configs(c, o, *size, f)]
    if group == "time":
        for kind, shape in items():
            if re.search(only, f"{group} {item_label(kind, shape)}"):
                candidates = gemm_candidates if kind == "gemm" else conv_candidates
                result += [unit("gemm", c, "bias") if kind == "gemm" else conv_unit(shape, c, "bias_relu") for c in candidates(*shape)]
    if group == "time-nets":
        for layer in nets():
            if re.search(only, f"{group} {layer.network} {layer.label}"):
                result += [layer_unit(layer, c) for c in layer_candidates(layer)]
    if group == "check-attention":
        for label, (*_, s_k, d, causal, kind, _, _, mask) in ATTENTION_CHECKS.items():
            if re.search(only, f"{group} {label}"):
                result += [attention_unit(d, *how, causal, kind, mask, s_k) for how in attention_kinds(d, mask, s_k)]
    if group == "time-attention":
        for batch, heads, length, d, mask in ATTENTION_SHAPES:
            for causal in causals(length, mask):
                if re.search(only, f"{group} {attention_label(batch, heads, length, d, mask, causal)}"):
                    result += [attention_unit(d, *how, causal, "f16", mask, length) for how in attention_kinds(d, mask, length)]
    if group == "check-short":
        for label, (*_, s_k, d, causal, kind, _, mask) in SHORT_CHECKS.items():
            if re.search(only, f"{group} {label}"):
                result.append(short_unit(d, -(-s_k // 16) * 16, causal, kind, mask, 1))
    if group == "time-short":
        result += [short_unit(d, -(-s // 16) * 16, 0, "f16", mask) for *_, s, d, mask in SHORT_SHAPES]
    if group == "time-sweep":
        result += [unit("gemm", c, "bias") for shape in SWEEP_GEMM for c in swept("gemm", shape)]
        result += [unit("conv", c, "bias_relu") for shape in SWEEP_CONV for c in swept("conv", shape)]
    if group == "time-epilogue":
        for *shape, epilogue in EPILOGUE_SHAPES:
            result += [unit("gemm", c, epilogue) for c in gemm_candidates(*shape)]
    if group == "check-stem":
        for label, c, _, o in check_stem_cases():
            if re.search(only, f"{group} {label}"):
                result.append(stem_unit(c, "bias_residual_relu", o.get("image", "f16"), o.get("in_type", "f16"), o.get("out_type", "f16"), 8, 1))
    if group == "time-stem":
        for shape in STEM_SHAPES:
            if re.search(only, f"{group} {stem_label(shape)}"):
                result += [stem_unit(c, "bias_relu") for c in stem_candidates(*shape)]
    return result


@dataclass(frozen=True)
class Run:
    """A group on its way: which cases of it are wanted, until when, and where its rows go."""

    gpu: Gpu
    group: str
    only: str
    skip: frozenset
    deadline: float
    emit: Callable

    def wants(self, label):
        """Whether a case is asked for, and there is time."""
        return re.search(self.only, f"{self.group} {label}") is not None and self.in_time

    @property
    def in_time(self):
        return time.monotonic() < self.deadline

    def attempt(self, label, function):
        """The row that ``function`` gives for a case, or what went wrong."""
        key = f"{self.group} {label}"
        if not self.wants(label) or key in self.skip:
            return
        self.emit({"begin": key})
        try:
            self.emit({"label": label, "group": self.group, **function()})
        except Exception as error:  # noqa: BLE001 - one variant must not end the others
            self.emit({"label": label, "group": self.group, "error": f"{type(error).__name__}: {error}"[:300]})
            if "ILLEGAL" in str(error) or "launch failure" in str(error).lower() or "LAUNCH" in str(error) or "illegal" in str(error):
                self.emit({"died": label})
                os._exit(3)  # the context is lost; the parent starts again after this case


GROUPS = {
    "check-gemm": checks.run_check_gemm,
    "check-conv": checks.run_check_conv,
    "check-window": checks.run_check_window,
    "check-stem": checks.run_check_stem,
    "time-stem": timing.run_time_stem,
    "check-attention": checks.run_check_attention,
    "check-short": checks.run_check_short,
    "time-short": timing.run_time_short,
    "time-sweep": timing.run_time_sweep,
    "time-epilogue": timing.run_time_epilogue,
    "time-attention": timing.run_time_attention,
    "time-nets": timing.run_time_nets,
    "time": timing.run_time,
}


def run_group(gpu, group, only, skip, deadline, emit):
    """Runs one of GROUPS: ``emit`` gets a row before and after every case that ``only`` (a regular expression) names and ``skip`` does not."""
    torch = gpu.torch
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    torch.manual_seed(0)
    GROUPS[group](Run(gpu, group, only, frozenset(skip), deadline, emit))
