"""The imported network -> the fused one, as the options of a build say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusion.dtypes import DataType
from fusion.network import Network
from fusion.passes import FusionOptions, FusionResult, optimize
from fusion.precision import LayerTypes
from runtime.columns import copy_parts, parts_to_copy
from runtime.device import Device
from trtcli.builder.choose import shared_memory
from trtcli.builder.setting import BuildError, Log
from trtcli.builder.workloads import Profile
from trtcli.config import BuildConfig

Parts = Sequence[tuple[str, int]]  # inputs of concatenations that are copied: layer, input number


def layer_types(config: BuildConfig) -> tuple[DataType | None, LayerTypes]:
    """The narrow type that is used at all, and which layers are computed in it.

    Raises:
        BuildError: two narrow types in one engine.
    """
    general = DataType.HALF if config.fp16 else DataType.BF16 if config.bf16 else None
    if config.precision_constraints == "none":
        return general, LayerTypes()
    names = {"fp32": DataType.FLOAT, "fp16": DataType.HALF, "bf16": DataType.BF16}
    given, outputs = (
        tuple((layer, names[dtype]) for layer, dtype in pairs) for pairs in (config.layer_precisions, config.layer_output_types)
    )
    narrow = {dtype for _, dtype in (*given, *outputs) if dtype is not DataType.FLOAT} | ({general} if general else set())
    if len(narrow) > 1:
        raise BuildError("--layerPrecisions, --layerOutputTypes: FP16 and BF16 in one engine; use one of them beside FP32")
    others = None if general else DataType.FLOAT
    return next(iter(narrow), None), LayerTypes(given, others, config.precision_constraints == "obey", outputs)


def fuse(
    imported: Network, config: BuildConfig, device: str, log: Log, channels_last: tuple[str, ...] | None = None
) -> FusionResult:
    """``imported`` fused for a kind of device; ``channels_last`` are the layers that measurements gave this layout, None to estimate."""
    precision, types = layer_types(config)
    options = FusionOptions(config.disabled_fusions, device=device, precision=precision, layer_types=types, channels_last=channels_last)
    result = optimize(imported, options)
    for text in result.warnings:
        log.warning(text)
    return result


def fuse_with_parts(
    imported: Network,
    marked: Sequence[str],
    profiles: Sequence[Profile],
    config: BuildConfig,
    device: Device,
    log: Log,
    channels_last: tuple[str, ...] | None = None,
) -> tuple[FusionResult, Parts]:
    """:func:`fuse` with ``marked`` tensors kept from being fused away, and the parts that concatenations in place have copied."""
    fused = fuse(replace(imported, outputs=(*imported.outputs, *marked)), config, device.spec.kind, log, channels_last)
    network = replace(fused.network, outputs=imported.outputs)
    copied = parts_to_copy(network, lambda one: shared_memory(one, profiles, config, device)[0])
    return replace(fused, network=copy_parts(network, copied)), copied
