"""The passes, in order: clean up, fuse, choose precision, choose layout; and the record of what they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType

from fusion.dtypes import DataType
from fusion.graph import Graph, Limits
from fusion.layout import to_channels_last
from fusion.network import ControlFlow, Network
from fusion.precision import LayerTypes, to_half
from fusion.rewrite import ALL, LAYOUT_RULES, VIEW_RULES, Applied, Miss, Record, Rule, apply_rules, nearest_misses
from fusion.rules import (
    attention,
    attention_batch,
    attention_causal,
    attention_heads,
    attention_layout,
    attention_pointwise,
    attention_rows,
    attention_scale,
    batch_operands,
    cache_append,
    cast_chain,
    channel_padding,
    common_subexpression,
    concatenation_constants,
    concatenation_part,
    concatenation_shuffle,
    concatenation_slices,
    constant_fold,
    constant_operand,
    convolution_activation,
    convolution_concatenation,
    convolution_patches,
    convolution_planes,
    convolution_pointwise,
    convolution_pooling,
    convolution_prologue,
    convolution_scale,
    convolution_split,
    convolution_sum,
    dequantize_forward,
    dequantize_quantize,
    epilogue_operand,
    expand_operand,
    gather_positions,
    gather_rows,
    gather_slice,
    gelu,
    group_normalization,
    hard_swish,
    heads_shuffle,
    l2_normalization,
    layer_normalization,
    log_sum_exp,
    mask_rows,
    matmul_pointwise,
    matmul_prologue,
    matmul_scale,
    matmul_split,
    mish,
    neutral_element,
    no_op,
    normalization_cast,
    normalization_pointwise,
    normalization_sum,
    outer_product,
    packed_attention,
    packed_matmul,
    packed_streams,
    padding_convolution,
    padding_pooling,
    pointwise,
    pointwise_expand,
    pointwise_readers,
    pointwise_shuffle,
    pooling_channels,
    pooling_monotone,
    pooling_pointwise,
    pooling_prologue,
    power,
    quantize_backward,
    quantized_convolution,
    quantized_matmul,
    recurrence_layout,
    reduce_pointwise,
    reduce_pooling,
    reduce_prologue,
    reduce_reduce,
    relu_relu,
    reshape_batch,
    reshape_operands,
    reshape_rows,
    rms_normalization,
    roll,
    rotary_cast,
    rotary_embedding,
    rotary_normalization,
    rotary_part,
    rotary_positions,
    rotary_streams,
    rotary_table,
    score_operands,
    separable_convolution,
    shuffle_constants,
    shuffle_matmul,
    shuffle_operands,
    shuffle_reduce,
    shuffle_reshape,
    shuffle_rows,
    shuffle_shuffle,
    shuffle_weights,
    sibling_convolutions,
    sibling_products,
    sigmoid,
    slice_concatenation,
    slice_shuffle,
    softmax,
    softmax_log,
    softmax_pointwise,
    softmax_prologue,
    softmax_topk,
    softplus,
    space_to_depth,
    swish,
    transpose_epilogue,
    transpose_pointwise,
)

# Within a group, rules that stand earlier are tried first at each layer; groups run one after the other, each until
# nothing changes.
CLEAN = (
    no_op.RULE, constant_fold.RULE, constant_operand.RULE, neutral_element.RULE, power.RULE, cast_chain.RULE,
    relu_relu.RULE, common_subexpression.RULE, shuffle_reshape.RULE, shuffle_shuffle.RULE, pointwise_expand.RULE, expand_operand.RULE,
    concatenation_part.RULE, space_to_depth.RULE, concatenation_slices.RULE, slice_concatenation.RULE,
)  # fmt: skip
IDIOMS = (sigmoid.RULE, softplus.RULE, gelu.RULE, swish.RULE, hard_swish.RULE, mish.RULE)
PADDING = (padding_convolution.RULE, padding_pooling.RULE)
# Products take their epilogues before anything else wants the same pointwise layers.
PRODUCTS = (
    outer_product.RULE,    convolution_scale.RULE, convolution_activation.RULE, convolution_sum.RULE, convolution_pointwise.RULE,
    matmul_scale.RULE, matmul_pointwise.RULE, matmul_split.RULE, convolution_split.RULE, slice_shuffle.RULE, shuffle_matmul.RULE, shuffle_rows.RULE,
    reshape_rows.RULE, reshape_batch.RULE, reshape_operands.RULE, batch_operands.RULE, score_operands.RULE, shuffle_weights.RULE, shuffle_reduce.RULE, pointwise_shuffle.RULE, shuffle_operands.RULE,
    shuffle_constants.RULE, concatenation_constants.RULE,
)  # fmt: skip
# Statistics written out as layers must be recognised before Reduce takes their parts as prologue or epilogue.
STATISTICS = (layer_normalization.RULE, rms_normalization.RULE, l2_normalization.RULE, group_normalization.RULE, softmax.RULE, log_sum_exp.RULE)
ATTENTION = (
    attention.RULE, attention_heads.RULE, attention_rows.RULE, attention_batch.RULE, heads_shuffle.RULE, concatenation_shuffle.RULE, attention_layout.RULE, attention_scale.RULE, attention_causal.RULE, mask_rows.RULE, recurrence_layout.RULE,
)  # fmt: skip
READERS = (
    attention_pointwise.RULE, softmax_log.RULE, softmax_topk.RULE, log_sum_exp.RULE, reduce_reduce.RULE, reduce_pooling.RULE, normalization_cast.RULE, normalization_pointwise.RULE,
    reduce_pointwise.RULE, softmax_pointwise.RULE, pooling_pointwise.RULE, reduce_prologue.RULE, softmax_prologue.RULE, pooling_monotone.RULE, pooling_prologue.RULE, epilogue_operand.RULE,
    gather_slice.RULE, gather_positions.RULE, pointwise_readers.RULE, roll.RULE, gather_rows.RULE,
)  # fmt: skip
# Whether these pay a measurement tells: the builder tries them, and keeps each where the layers that it touches became faster.
OPTIONAL: tuple[Rule, ...] = (
    convolution_concatenation.RULE, convolution_patches.RULE, sibling_convolutions.RULE, sibling_products.RULE, separable_convolution.RULE, convolution_prologue.RULE, matmul_prologue.RULE,
    convolution_pooling.RULE, convolution_planes.RULE,
)  # fmt: skip

# Before anything else wants the dequantisations, which are pointwise layers; weights stay as they are stored so long.
QUANTIZATION = (
    no_op.RULE, constant_operand.RULE, shuffle_reshape.RULE, shuffle_shuffle.RULE, dequantize_quantize.RULE,
    quantized_convolution.RULE, quantized_matmul.RULE, dequantize_forward.RULE, quantize_backward.RULE,
)  # fmt: skip

_QUANTIZED = tuple(rule for rule in (*QUANTIZATION, packed_matmul.RULE) if rule not in CLEAN)  # their patterns are gone when all is done

PASSES: tuple[tuple[str, tuple[Rule, ...]], ...] = (
    ("quantization", QUANTIZATION),
    ("weights", (packed_matmul.RULE,)),  # of products whose activations turned out to be real
    ("clean", CLEAN),
    # Before its last layer is joined with what reads it, a rotary embedding still looks like one.
    ("products", (*CLEAN, *IDIOMS, *PADDING, rotary_embedding.RULE, rotary_part.RULE, rotary_positions.RULE, rotary_cast.RULE, *PRODUCTS, pointwise.RULE)),
    ("statistics", (*CLEAN, *STATISTICS, rotary_table.RULE)),  # tables of one embedding alone would be computed in what still has to become it
    ("attention", (*CLEAN, *IDIOMS, *PRODUCTS, pointwise.RULE, *ATTENTION)),
    ("readers", (*CLEAN, *IDIOMS, *PADDING, *PRODUCTS, pointwise.RULE, *ATTENTION, *READERS)),
    # Last: what splits packed products apart must have ended, or the two would undo each other for ever.
    ("packed", (constant_fold.RULE, common_subexpression.RULE, packed_attention.RULE, rotary_streams.RULE, packed_streams.RULE, cache_append.RULE)),
)
# After precision and layout are chosen: nothing looks into what these make.
FINAL: tuple[Rule, ...] = (normalization_sum.RULE, rotary_normalization.RULE, pooling_channels.RULE, transpose_pointwise.RULE, transpose_epilogue.RULE, channel_padding.RULE)
RULES: Mapping[str, Rule] = MappingProxyType(
    {rule.name: rule for _, rules in (*PASSES, ("final", FINAL), ("optional", OPTIONAL)) for rule in rules}
)


@dataclass(frozen=True)
class FusionOptions:
    """How to optimise.

    Attributes:
        disabled: rules that must not run: ``rule``, ``rule@layer`` (a layer's or an ONNX node's name) or ``all``.
        enabled: optional rules that shall run (names in OPTIONAL).
        device: ``cpu`` or ``cuda``; on ``cuda`` convolutions and pooling become channels-last.
        precision: HALF or BF16 to compute float32 models in that type; None to keep the model's types.
        channels_last: on ``cuda``, the layers (of ``FusionResult.planar``) that run channels-last; None to estimate it.
        layer_types: which layers stay in float32 when ``precision`` is given.
        functions, operands: how large one fused expression may grow (see :class:`fusion.graph.Limits`).
    """

    disabled: tuple[str, ...] = ()
    enabled: tuple[str, ...] = ()
    device: str = "cpu"
    precision: DataType | None = None
    channels_last: tuple[str, ...] | None = None
    layer_types: LayerTypes = field(default_factory=LayerTypes)
    functions: int = Limits.functions
    operands: int = Limits.operands


@dataclass(frozen=True)
class FusionResult:
    """The optimised network and how it came about.

    Attributes:
        network: the result.
        applied: every fusion, in order.
        misses: per layer of the result, the rules that came near to changing it and why they did not, the nearest first.
        counts: how often each rule was applied.
        warnings: what a user should know (weights that do not fit the chosen precision).
        planar: the network as it was before layouts were chosen, or None where there was nothing to choose.
        earlier: what came near in steps after which casts and reformats stand between the layers, or whose rules do not run again; each with
            the ONNX nodes of its layers.
    """

    network: Network
    applied: tuple[Applied, ...] = ()
    misses: Mapping[str, tuple[Miss, ...]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    planar: Network | None = None
    earlier: tuple[tuple[Miss, tuple[str, ...]], ...] = ()


def optimize(network: Network, options: FusionOptions = FusionOptions()) -> FusionResult:
    """``network`` with its layers fused for a device.

    Raises:
        ValueError: ``options`` name a rule that does not exist.
    """
    check_rules(options)
    limits = Limits(options.device, options.functions, options.operands)
    record = Record()
    warnings: tuple[str, ...] = ()
    planar: Network | None = None
    earlier: dict[tuple[Miss, tuple[str, ...]], None] = {}
    network = _fuse(network, limits, options, record, earlier)
    reported = tuple(rule for rule in RULES.values() if rule not in OPTIONAL)
    if options.precision is not None:
        earlier |= _misses_of(Graph(network, limits), reported, options)  # afterwards casts stand between layers
        unknown = options.layer_types.unknown(network)
        network, warnings = to_half(network, options.precision, options.layer_types)
        for flag, names in zip(("--layerPrecisions", "--layerOutputTypes"), unknown, strict=True):
            warnings += tuple(f"{flag}: no layer or node is named {name!r}" for name in names)
        network = _fuse(network, limits, options, record, earlier)
    if options.device == "cuda":
        chosen = None if options.channels_last is None else frozenset(options.channels_last)
        changed = to_channels_last(network, direct_stem=True, chosen=chosen)
        if changed is not network:
            earlier |= _misses_of(Graph(network, limits), reported, options)  # afterwards reformats stand between layers
            planar, network = network, _fuse(changed, limits, options, record, earlier)
    graph = Graph(network, limits)
    # A result that --layerOutputTypes wants in float32 is not rounded to less on its way.
    final = tuple(rule for rule in FINAL if rule is not transpose_epilogue.RULE or not options.layer_types.outputs)
    apply_rules(graph, final, options.disabled, record)
    network, inner = _optimize_bodies(graph.rebuild(), replace(options, channels_last=None))
    misses = _misses(network, limits, reported, options, tuple(earlier))
    counts = Counter(record.counts())
    for one in inner:
        record.applied += one.applied
        counts.update(one.counts)
        warnings += one.warnings
        misses = {**misses, **one.misses}
    result = FusionResult(network, tuple(record.applied), misses, counts, warnings, planar, tuple(earlier))
    return with_optional(result, options) if options.enabled else result


def with_optional(result: FusionResult, options: FusionOptions) -> FusionResult:
    """``result`` after the optional rules that ``options`` enable; where none of them fits, with why not. Networks inside layers stay."""
    check_rules(options)
    rules = tuple(rule for rule in OPTIONAL if rule.name in options.enabled)
    limits = Limits(options.device, options.functions, options.operands)
    graph, record = Graph(result.network, limits), Record()
    apply_rules(graph, rules, options.disabled, record)
    network = result.network
    if record.applied:
        graph.prune()
        network = graph.rebuild()
    reported = tuple(rule for rule in RULES.values() if rule not in OPTIONAL or rule in rules)
    outer = {layer.name for layer in result.network.layers}
    misses = {name: miss for name, miss in result.misses.items() if name not in outer}  # of the networks inside layers
    misses.update(_misses(network, limits, reported, options, result.earlier))
    counts = Counter(result.counts) + Counter(record.counts())
    return FusionResult(network, (*result.applied, *record.applied), misses, counts, result.warnings, result.planar, result.earlier)


def _misses(
    network: Network, limits: Limits, rules: Sequence[Rule], options: FusionOptions, earlier: Iterable[tuple[Miss, tuple[str, ...]]]
) -> dict[str, tuple[Miss, ...]]:
    """What comes near in ``network``, then what came near in ``earlier`` steps, by the layers in which those nodes are now."""
    found = nearest_misses(Graph(network, limits), rules, options.disabled)
    for miss, nodes in earlier:
        layers = tuple(dict.fromkeys(network.fates[node].layer for node in nodes if network.fates[node].kind == "layer"))
        if len(layers) == 1 < len(miss.layers) and RULES[miss.rule] not in _QUANTIZED:
            continue  # another rule joined them later
        for layer in layers:
            known = found.get(layer, ())
            if all(one.rule != miss.rule for one in known):
                found[layer] = (*known, replace(miss, layers=layers))
    return found


def _misses_of(graph: Graph, rules: Sequence[Rule], options: FusionOptions) -> dict[tuple[Miss, tuple[str, ...]], None]:
    """What comes near in ``graph``, with the ONNX nodes of its layers: later steps rename them, or put others between them."""
    found = dict.fromkeys(one for near in nearest_misses(graph, rules, options.disabled).values() for one in near)
    return {(miss, tuple(node for layer in miss.layers for node in graph.layers[layer].origins)): None for miss in found}


def _optimize_bodies(network: Network, options: FusionOptions) -> tuple[Network, list[FusionResult]]:
    """``network`` with the networks inside its layers optimised in the same way."""
    inner: list[FusionResult] = []
    layers = []
    for layer in network.layers:
        if isinstance(layer.op, ControlFlow):
            results = [optimize(body, options) for body in layer.op.bodies]
            layer = replace(layer, op=layer.op.with_bodies([result.network for result in results]))
            inner += results
        layers.append(layer)
    return (replace(network, layers=tuple(layers)) if inner else network), inner


def check_rules(options: FusionOptions) -> None:
    """Refuses names of rules that do not exist.

    Raises:
        ValueError: naming the rule and those near it, or all that there are.
    """
    for item in options.disabled:
        name = item.split("@", 1)[0]
        known = sorted([ALL, *RULES, *VIEW_RULES, *LAYOUT_RULES])
        if name not in known:
            near = get_close_matches(name, known, 3) or [rule for rule in known if name and name in rule]
            advice = f"did you mean {' or '.join(near[:6])}?" if near else f"rules are {', '.join(known)}"
            raise ValueError(f"--disableFusion={item}: there is no rule {name!r}; {advice}")
    for name in options.enabled:
        if name not in {rule.name for rule in OPTIONAL}:
            raise ValueError(
                f"there is no optional rule {name!r}; there is {', '.join(rule.name for rule in OPTIONAL)}"
            )


def _fuse(
    network: Network, limits: Limits, options: FusionOptions, record: Record, earlier: dict[tuple[Miss, tuple[str, ...]], None]
) -> Network:
    """``network`` after all steps; what the quantisation rules missed is added to ``earlier``."""
    graph = Graph(network, limits)
    graph.prune()
    quantized = any(kind.dtype.itemsize == 1 and kind.dtype is not DataType.BOOL for kind in network.tensors.values())
    for name, rules in PASSES:
        if name in ("quantization", "weights") and not quantized:
            continue
        if name == "clean" and quantized:
            earlier |= _misses_of(graph, _QUANTIZED, options)
        # "readers" has nearly all rules and runs until nothing changes; what an earlier step missed is found there.
        apply_rules(graph, rules, options.disabled, record, once=name != "readers")
        graph.prune()
    if quantized:  # what import left for the quantisation rules is computed at build in any case
        apply_rules(graph, (constant_fold.RULE,), (), Record())
        graph.prune()
    return graph.rebuild()
