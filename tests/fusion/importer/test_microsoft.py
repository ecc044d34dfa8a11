"""Operators of ONNX Runtime's own domain, imported and evaluated, against its kernels on the CPU."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusion.importer import UnsupportedModel, import_onnx
from fusion.network import Network
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from fusion.serial import from_json, to_json
from runtime.views import view_layers
from tests.models import onnxruntime_outputs

DOMAIN = "com.microsoft"
Arrays = dict[str, np.ndarray]


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def integers(low: int, high: int, *shape: int, dtype: type = np.int32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def model_of(op: str, inputs: Arrays, constants: Arrays, order: str, outputs: int, dynamic: bool = False, **attributes: object) -> onnx.ModelProto:
    """One node that reads ``order`` (names, ``-`` for one that is left out), in order."""
    names = ["" if name == "-" else name for name in order.split()]
    given = [f"y{index}" for index in range(outputs)]
    infos = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(value.dtype),
            [f"{name}{axis}" if axis < 2 and value.ndim > 1 else size for axis, size in enumerate(value.shape)] if dynamic else value.shape,
        )
        for name, value in inputs.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op, names, given, "node", domain=DOMAIN, **attributes)], "g", infos,
        [helper.make_empty_tensor_value_info(name) for name in given], [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)], ir_version=8)


def check(op: str, inputs: Arrays, constants: Arrays, order: str, outputs: int = 1, tolerance: float = 2e-5, dynamic: bool = False,
          **attributes: object) -> Network:  # fmt: skip
    model = model_of(op, inputs, constants, order, outputs, dynamic, **attributes)
    network = import_onnx(model)
    assert [from_json(json.loads(json.dumps(to_json(layer)))) for layer in network.layers] == list(network.layers)
    found = run(network, inputs)
    for name, wanted in onnxruntime_outputs(model, inputs).items():
        assert found[name].shape == wanted.shape, name
        assert found[name].dtype == wanted.dtype, name
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(found[name], wanted, tolerance, tolerance, err_msg=name)
        else:  # halves of a step may be rounded either way
            assert np.abs(found[name].astype(int) - wanted.astype(int)).max() <= (wanted.dtype.itemsize == 1), name
            assert (found[name] != wanted).mean() <= 0.02, name
    return network


# --- products --------------------------------------------------------------------------------------------------------


def test_fused_products() -> None:
    gemm = {"b": floats(5, 4, seed=1), "c": floats(5, seed=2)}
    check("FusedGemm", {"a": floats(3, 4)}, gemm, "a b c", activation="LeakyRelu", activation_alpha=0.3, transB=1, alpha=0.5)
    check("FusedGemm", {"a": floats(3, 4)}, gemm, "a b c", activation="Relu", transB=1)
    weights = {"w": floats(6, 2, 3, 3, seed=1), "bias": floats(6, seed=2)}
    check("FusedConv", {"x": floats(2, 4, 7, 8)}, weights, "x w bias", activation="Relu", group=2, pads=[1, 1, 1, 1])
    sum_of = {"x": floats(1, 4, 7, 8), "z": floats(1, 6, 5, 6, seed=3)}
    check("FusedConv", sum_of, weights, "x w bias z", activation="Clip", activation_params=[-0.5, 1.5], group=2)
    check("TransposeMatMul", {"a": floats(2, 4, 3), "b": floats(2, 4, 5, seed=1)}, {}, "a b", transA=1, alpha=2.0)


def test_batches_between_rows_and_columns() -> None:
    """``transBatchA``: [M, B, K] stands for [B, M, K]."""
    a, b = floats(4, 2, 3), floats(5, 2, 3, seed=1)
    check("FusedMatMul", {"a": a, "b": b}, {}, "a b", transBatchA=1, transBatchB=1, transB=1)


def test_weights_of_a_few_bits() -> None:
    for bits, block, width in ((4, 16, 48), (4, 32, 40), (8, 16, 32)):
        blocks, rows = -(-width // block), 6
        packed = integers(0, 256, rows, blocks, block * bits // 8, dtype=np.uint8)
        scales = floats(rows * blocks, seed=1, scale=0.1)
        constants = {"w": packed, "s": scales}
        check("MatMulNBits", {"a": floats(2, 3, width)}, constants, "a w s", bits=bits, block_size=block, N=rows, K=width, tolerance=1e-4)
        zeros = integers(0, 256, rows * -(-blocks * bits // 8), dtype=np.uint8, seed=2)
        check("MatMulNBits", {"a": floats(3, width)}, constants | {"z": zeros}, "a w s z", bits=bits, block_size=block, N=rows, K=width, tolerance=1e-4)
    table = {"t": integers(0, 256, 9, 16, dtype=np.uint8), "s": floats(9, 2, seed=1)}
    check("GatherBlockQuantized", {"i": integers(0, 9, 2, 3, dtype=np.int64)}, table, "t i s", bits=4, block_size=16, quantize_axis=1)


# --- normalisations and embeddings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_embeddings(dynamic: bool) -> None:
    tables = {"w": floats(20, 8), "p": floats(10, 8, seed=1), "s": floats(2, 8, seed=2), "g": floats(8, seed=3), "b": floats(8, seed=4)}
    given = {"ids": integers(0, 20, 2, 6), "seg": integers(0, 2, 2, 6), "mask": np.array([[1] * 6, [1, 1, 1, 1, 0, 0]], np.int32)}
    check("EmbedLayerNormalization", given, tables, "ids seg w p s g b mask", 3, dynamic=dynamic, epsilon=1e-5)
    del given["seg"], given["mask"]
    given["pos"] = integers(0, 10, 2, 6)
    check("EmbedLayerNormalization", given, tables, "ids - w p - g b - pos", 2, dynamic=dynamic)


def silu_group_norm(x: np.ndarray, groups: int, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> np.ndarray:
    """Group normalisation of a channels-last tensor with a sigmoid linear unit, in float64."""
    shape = x.shape
    parts = x.astype(np.float64).reshape(shape[0], -1, groups, shape[-1] // groups)
    parts = (parts - parts.mean((1, 3), keepdims=True)) / np.sqrt(parts.var((1, 3), keepdims=True) + epsilon)
    result = parts.reshape(shape) * gamma + beta
    return result / (1 + np.exp(-result))


def test_group_norm() -> None:
    """ONNX Runtime has no kernel for the CPU: compared with the definition."""
    x, gamma, beta, skip = floats(2, 4, 5, 8), floats(8, seed=1), floats(8, seed=2), floats(2, 8, seed=3)
    network = import_onnx(model_of("GroupNorm", {"x": x}, {"g": gamma, "b": beta}, "x g b", 1, groups=2, activation=1, epsilon=1e-5))
    np.testing.assert_allclose(run(network, {"x": x})["y0"], silu_group_norm(x, 2, gamma, beta, 1e-5), 1e-4, 1e-5)
    given = {"x": x, "skip": skip}
    network = import_onnx(model_of("SkipGroupNorm", given, {"g": gamma, "b": beta}, "x g b skip", 2, groups=2, activation=1, epsilon=1e-5))
    found = run(network, given)
    np.testing.assert_allclose(found["y1"], x + skip[:, None, None], 1e-6)
    np.testing.assert_allclose(found["y0"], silu_group_norm(found["y1"], 2, gamma, beta, 1e-5), 1e-4, 1e-5)


def test_split_gelu() -> None:
    from math import erf

    x, bias = floats(2, 3, 8), floats(8, seed=1)
    found = run(import_onnx(model_of("BiasSplitGelu", {"x": x}, {"b": bias}, "x b", 1)), {"x": x})["y0"]
    total = (x + bias).astype(np.float64)
    gelu = np.vectorize(lambda value: 0.5 * value * (1 + erf(value / 2**0.5)))(total[..., 4:])
    np.testing.assert_allclose(found, total[..., :4] * gelu, 1e-5, 1e-6)


def test_channels_last() -> None:
    """Convolutions of channels-last tensors: the same numbers as channels first."""
    x, w, bias = floats(1, 6, 7, 4), floats(5, 3, 3, 4, seed=1), floats(5, seed=2)
    found = run(import_onnx(model_of("NhwcConv", {"x": x}, {"w": w, "b": bias}, "x w b", 1, pads=[1, 0, 1, 0])), {"x": x})["y0"]
    first = model_of("FusedConv", {"x": x.transpose(0, 3, 1, 2)}, {"w": w.transpose(0, 3, 1, 2), "b": bias}, "x w b", 1, pads=[1, 0, 1, 0])
    wanted = onnxruntime_outputs(first, {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})["y0"]
    np.testing.assert_allclose(found, wanted.transpose(0, 2, 3, 1), 1e-4, 1e-5)
    check("NhwcMaxPool", {"x": integers(-100, 100, 1, 6, 7, 4, dtype=np.int8)}, {}, "x", kernel_shape=[2, 3], strides=[2, 2])


def test_small_ones() -> None:
    check("Trilu", {"x": floats(2, 4, 5)}, {"k": np.int64(1)}, "x k", upper=0)
    check("ExpandDims", {"x": floats(2, 3)}, {"a": np.array(-1, np.int32)}, "x a")


# --- attention -------------------------------------------------------------------------------------------------------

MASKS = {
    "none": None, "padding": np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], np.int32), "lengths": np.array([4, 2], np.int32),
    "both ends": np.array([4, 5, 1, 0], np.int32), "square": integers(0, 2, 2, 5, 5, seed=9) | np.eye(5, dtype=np.int32),
}  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [0, 1])
def test_attention(mask: str, causal: int) -> None:
    constants = {"w": floats(12, 24, seed=1, scale=0.4), "b": floats(24, seed=2)}
    given = {"x": floats(2, 5, 12)}
    if MASKS[mask] is not None:
        given["m"] = MASKS[mask]
    network = check("Attention", given, constants, "x w b m" if "m" in given else "x w b", num_heads=2, unidirectional=causal, dynamic=mask == "none")
    assert sum(layer.op.layer_type == "Attention" for layer in network.layers) == 1


def test_attention_with_past_and_bias() -> None:
    constants = {"w": floats(12, 24, seed=1, scale=0.4), "b": floats(24, seed=2)}
    given = {"x": floats(2, 3, 12), "past": floats(2, 2, 2, 4, 4, seed=3)}
    check("Attention", given, constants, "x w b - past", 2, num_heads=2, unidirectional=1)
    check("Attention", {"x": floats(2, 5, 12), "ab": floats(1, 2, 5, 5, seed=4)}, constants, "x w b - - ab", num_heads=2, scale=0.3)
    wide = {"w": floats(12, 8 + 8 + 6, seed=1), "b": floats(22, seed=2)}
    check("Attention", {"x": floats(2, 5, 12)}, wide, "x w b", num_heads=2, qkv_hidden_sizes=[8, 8, 6])


@pytest.mark.parametrize("dynamic", [False, True])
def test_multi_head_attention(dynamic: bool) -> None:
    given = {"q": floats(2, 3, 8), "k": floats(2, 5, 8, seed=1), "v": floats(2, 5, 12, seed=2)}
    check("MultiHeadAttention", given, {"b": floats(28, seed=3)}, "q k v b", num_heads=2, dynamic=dynamic)
    check("MultiHeadAttention", given | {"m": MASKS["padding"]}, {}, "q k v - m", num_heads=2, dynamic=dynamic)
    past = {"pk": floats(2, 2, 4, 4, seed=5), "pv": floats(2, 2, 4, 4, seed=6)}
    check("MultiHeadAttention", given | past | {"v": floats(2, 5, 8, seed=2)}, {}, "q k v - - - pk pv", 3, num_heads=2)
    check("MultiHeadAttention", given | {"ab": floats(1, 2, 3, 5, seed=7)}, {}, "q k v - - ab", num_heads=2)
    cross = {"q": given["q"], "k": floats(2, 2, 6, 4, seed=8), "v": floats(2, 2, 6, 4, seed=9)}
    check("MultiHeadAttention", cross, {}, "q k v", num_heads=2)


def test_packed_multi_head_attention() -> None:
    """ONNX Runtime's CPU kernel does not take packed inputs: the same as apart."""
    q, k, v = (floats(2, 5, 2, 4, seed=seed) for seed in range(3))
    apart = {"q": q.reshape(2, 5, 8), "k": k.reshape(2, 5, 8), "v": v.reshape(2, 5, 8)}
    wanted = run(import_onnx(model_of("MultiHeadAttention", apart, {}, "q k v", 1, num_heads=2)), apart)["y0"]
    packed = {"q": np.stack([q, k, v], 3)}
    found = run(import_onnx(model_of("MultiHeadAttention", packed, {}, "q", 1, num_heads=2)), packed)["y0"]
    np.testing.assert_allclose(found, wanted, 1e-6)
    pairs = {"q": apart["q"], "kv": np.stack([k, v], 3)}
    found = run(import_onnx(model_of("MultiHeadAttention", pairs, {}, "q kv", 1, num_heads=2)), pairs)["y0"]
    np.testing.assert_allclose(found, wanted, 1e-6)


def caches(steps: int, half: int) -> Arrays:
    angles = np.outer(np.arange(steps), 0.7 ** np.arange(half))
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int) -> None:
    positions = integers(0, 10, 2, 3, dtype=np.int64)
    check("RotaryEmbedding", {"x": floats(2, 3, 16), "p": positions}, caches(10, 4), "x p cos sin", interleaved=interleaved)
    check("RotaryEmbedding", {"x": floats(2, 2, 3, 8), "p": positions}, caches(10, 4), "x p cos sin", interleaved=interleaved)
    check("RotaryEmbedding", {"x": floats(2, 3, 16), "p": np.array([4], np.int64)}, caches(10, 4), "x p cos sin", interleaved=interleaved)
    partial = {"num_heads": 2, "rotary_embedding_dim": 4}
    check("RotaryEmbedding", {"x": floats(2, 3, 16), "p": positions}, caches(10, 2), "x p cos sin", interleaved=interleaved, **partial)


GROUPED = {"num_heads": 4, "kv_num_heads": 2}


@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize("window", [-1, 2])
def test_grouped_attention_of_a_prompt(rotary: int, window: int) -> None:
    given = {"q": floats(2, 5, 64), "k": floats(2, 5, 32, seed=1), "v": floats(2, 5, 32, seed=2)}
    constants = {"len": np.array([4, 4], np.int32), "total": np.int32(5)} | (caches(16, 8) if rotary else {})
    order = "q k v - - len total" + (" cos sin" if rotary else "")
    check("GroupQueryAttention", given, constants, order, 3, do_rotary=rotary, local_window_size=window, **GROUPED)
    packed = {"q": np.concatenate([given["q"], given["k"], given["v"]], -1)}
    check("GroupQueryAttention", packed, constants, order.replace("q k v", "q - -"), 3, do_rotary=rotary, local_window_size=window, **GROUPED)


@pytest.mark.parametrize("rotary", [0, 1])
def test_grouped_attention_with_past(rotary: int) -> None:
    """A step of decoding: sequences of different lengths, each with its new key behind its own past."""
    given = {
        "q": floats(2, 1, 64), "k": floats(2, 1, 32, seed=1), "v": floats(2, 1, 32, seed=2), "pk": floats(2, 2, 6, 16, seed=3),
        "pv": floats(2, 2, 6, 16, seed=4), "len": np.array([6, 6], np.int32),
    }  # fmt: skip
    constants = {"total": np.int32(7)} | (caches(16, 8) if rotary else {})
    order = "q k v pk pv len total" + (" cos sin" if rotary else "")
    check("GroupQueryAttention", given, constants, order, 3, do_rotary=rotary, **GROUPED)
    given["len"] = np.array([6, 3], np.int32)
    model = model_of("GroupQueryAttention", given, constants, order, 3, do_rotary=rotary, **GROUPED)
    found, wanted = run(import_onnx(model), given), onnxruntime_outputs(model, given)
    np.testing.assert_allclose(found["y0"], wanted["y0"], 2e-5, 2e-5)
    for name in ("y1", "y2"):  # behind the end of a sequence the cache is unspecified
        np.testing.assert_allclose(found[name][1, :, :4], wanted[name][1, :, :4], 1e-5, 1e-6)


def test_grouped_attention_with_dynamic_past() -> None:
    """As generators export it: lengths from an attention mask, one model for prompts and steps, the cache growing or given whole."""
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (
        ("q", TensorProto.FLOAT, ["N", "S", 128]), ("pk", TensorProto.FLOAT, ["N", 2, "P", 16]), ("pv", TensorProto.FLOAT, ["N", 2, "P", 16]),
        ("mask", TensorProto.INT64, ["N", "T"]),
    )]  # fmt: skip
    nodes = [
        helper.make_node("ReduceSum", ["mask", "one"], ["sums"], keepdims=0), helper.make_node("Sub", ["sums", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["len"], to=TensorProto.INT32), helper.make_node("Shape", ["mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "index"], ["total64"]), helper.make_node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
        helper.make_node("GroupQueryAttention", ["q", "", "", "pk", "pv", "len", "total", "cos", "sin"], ["y0", "y1", "y2"], domain=DOMAIN,
                         do_rotary=1, **GROUPED),
    ]  # fmt: skip
    constants = caches(16, 8) | {"one": np.array([1], np.int64), "index": np.array(1, np.int64)}
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", infos, [helper.make_empty_tensor_value_info(f"y{index}") for index in range(3)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)], ir_version=8)
    network = import_onnx(model)
    for batch, steps, past, total in ((2, 5, 0, 5), (2, 1, 6, 7), (1, 3, 4, 7), (2, 1, 9, 7)):
        given = {"q": floats(batch, steps, 128), "pk": floats(batch, 2, past, 16, seed=1), "pv": floats(batch, 2, past, 16, seed=2),
                 "mask": np.ones((batch, total), np.int64)}  # fmt: skip
        found, wanted = run(network, given), onnxruntime_outputs(model, given)
        for name, value in wanted.items():
            if name != "y0":
                value, found[name] = value[:, :, :total], found[name][:, :, :total]
            np.testing.assert_allclose(found[name], value, 2e-5, 2e-5, err_msg=f"{name} {steps} {past} {total}")


def test_grouped_attention_with_caps_and_sinks() -> None:
    given = {"q": floats(2, 5, 64), "k": floats(2, 5, 32, seed=1), "v": floats(2, 5, 32, seed=2)}
    constants = {"len": np.array([4, 4], np.int32), "total": np.int32(5), "sink": floats(4, seed=3)}
    check("GroupQueryAttention", given, constants, "q k v - - len total", 3, softcap=0.7, **GROUPED)
    check("GroupQueryAttention", given, constants, "q k v - - len total", 3, smooth_softmax=1, **GROUPED)
    check("GroupQueryAttention", given, constants, "q k v - - len total - - - - sink", 3, local_window_size=3, **GROUPED)
    past = {"pk": floats(2, 2, 6, 16, seed=4), "pv": floats(2, 2, 6, 16, seed=5), "len": np.array([6, 6], np.int32)}
    step = {name: value[:, :1] for name, value in given.items()}
    order = "q k v pk pv len total - - - - sink"
    check("GroupQueryAttention", step | past, {"total": np.int32(7), "sink": constants["sink"]}, order, 3, softcap=0.7, **GROUPED)


@pytest.mark.parametrize("kind", ["PER_TENSOR", "PER_CHANNEL"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("steps", [1, 3])
def test_grouped_attention_over_a_quantised_cache(kind: str, bits: int, steps: int) -> None:
    width = 16 if bits == 8 else 8
    low, high, dtype = (-128, 128, np.int8) if bits == 8 else (0, 256, np.uint8)
    past = {"pk": integers(low, high, 1, 2, 7, width, dtype=dtype, seed=4), "pv": integers(low, high, 1, 2, 7, width, dtype=dtype, seed=5)}
    given = {"q": floats(1, steps, 64), "k": floats(1, steps, 32, seed=1), "v": floats(1, steps, 32, seed=2), **past, "len": np.array([6], np.int32)}
    scale = np.linspace(0.02, 0.1, 32, dtype=np.float32) if kind == "PER_CHANNEL" else np.float32([0.03])
    constants = {"total": np.int32(7), "ks": scale * (1 if bits == 8 else 8), "vs": scale * (2 if bits == 8 else 9)}
    check("GroupQueryAttention", given, constants, "q k v pk pv len total - - - - - ks vs", 3, k_quant_type=kind, v_quant_type=kind,
          kv_cache_bit_width=bits, **GROUPED)  # fmt: skip


@pytest.mark.parametrize("shown", [1, 2])
@pytest.mark.parametrize("window", [-1, 2])
def test_grouped_attention_shows_its_scores(shown: int, window: int) -> None:
    given = {"q": floats(1, 2, 64), "k": floats(1, 2, 32, seed=1), "v": floats(1, 2, 32, seed=2), "pk": floats(1, 2, 7, 16, seed=3),
             "pv": floats(1, 2, 7, 16, seed=4), "len": np.array([6], np.int32)}  # fmt: skip
    check("GroupQueryAttention", given, {"total": np.int32(7)}, "q k v pk pv len total", 4, qk_output=shown, softcap=0.7, local_window_size=window, **GROUPED)


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_grouped_attention_in_a_window_turned(window: int, interleaved: int) -> None:
    """A step of decoding: a sliding window, capped scores and a rotary embedding together."""
    given = {"q": floats(2, 1, 64), "k": floats(2, 1, 32, seed=1), "v": floats(2, 1, 32, seed=2), "pk": floats(2, 2, 7, 16, seed=3),
             "pv": floats(2, 2, 7, 16, seed=4), "len": np.array([6, 6], np.int32)}  # fmt: skip
    check("GroupQueryAttention", given, {"total": np.int32(7)} | caches(16, 8), "q k v pk pv len total cos sin", 3, softcap=0.7,
          local_window_size=window, do_rotary=1, rotary_interleaved=interleaved, **GROUPED)  # fmt: skip


def test_grouped_attention_refusals() -> None:
    given = {"q": floats(2, 5, 32), "k": floats(2, 5, 16, seed=1), "v": floats(2, 5, 16, seed=2)}
    constants = {"len": np.array([4, 4], np.int32), "total": np.int32(5)}
    with pytest.raises(UnsupportedModel, match="sliding_window_cache is set"):
        import_onnx(model_of("GroupQueryAttention", given, constants, "q k v - - len total", 1, sliding_window_cache=1, local_window_size=4, **GROUPED))
    with pytest.raises(UnsupportedModel, match="k_quant_type 'PER_TENSOR' and 0 bits"):
        import_onnx(model_of("GroupQueryAttention", given, constants, "q k v - - len total", 1, k_quant_type="PER_TENSOR", **GROUPED))


# --- quantised -------------------------------------------------------------------------------------------------------


def parameters(*names: str, dtype: type = np.uint8) -> Arrays:
    found: Arrays = {}
    for index, name in enumerate(names):
        found |= {f"{name}s": np.float32(0.05 + 0.02 * index), f"{name}z": np.array(3 + index, dtype)}
    return found


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantised_pointwise(dtype: type) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max + 1
    given = {"a": integers(low, high, 2, 3, 8, dtype=dtype), "b": integers(low, high, 3, 8, dtype=dtype, seed=1)}
    both = parameters("a", "b", "c", dtype=dtype)
    for op in ("QLinearAdd", "QLinearMul"):
        check(op, given, both, "a as az b bs bz cs cz")
    one, x = parameters("x", "y", dtype=dtype), {"x": integers(low, high, 2, 4, 6, 8, dtype=dtype)}
    check("QLinearSigmoid", x, one | {"ys": np.float32(1 / 256)}, "x xs xz ys yz")
    check("QLinearLeakyRelu", x, one, "x xs xz ys yz", alpha=0.2)
    check("QLinearSoftmax", x, one | {"ys": np.float32(1 / 256), "yz": np.array(low, dtype)}, "x xs xz ys yz", axis=-1, opset=13)
    check("QLinearGlobalAveragePool", x, one, "x xs xz ys yz", channels_last=0)
    check("QLinearAveragePool", x, one, "x xs xz ys yz", kernel_shape=[2, 3], pads=[0, 1, 0, 1])
    condition = {"w": np.random.default_rng(3).random((2, 3, 8)) < 0.5} | given
    check("QLinearWhere", condition, both, "w a as az b bs bz cs cz")
    check("QLinearConcat", {"a": given["b"], "b": given["b"]}, both, "cs cz a as az b bs bz", axis=1)


def test_quantised_products() -> None:
    a, w = integers(0, 256, 3, 8, dtype=np.uint8), integers(-128, 128, 8, 5, dtype=np.int8, seed=1)
    scales = {"as": np.float32(0.03), "bs": np.float32(0.02), "az": np.uint8(7), "bz": np.int8(2), "w": w}
    check("MatMulIntegerToFloat", {"a": a}, scales, "a w as bs az bz")
    columns = scales | {"bs": np.abs(floats(5, seed=2)), "bz": np.zeros(5, np.int8), "bias": floats(5, seed=3)}
    check("MatMulIntegerToFloat", {"a": a}, columns, "a w as bs az bz bias")
    check("DynamicQuantizeMatMul", {"a": floats(3, 8)}, scales, "a w bs bz", tolerance=1e-3)
    q = scales | {"c": integers(-500, 500, 5), "ys": np.float32(0.2), "yz": np.uint8(100)}
    check("QGemm", {"a": a}, q, "a as az w bs bz c ys yz")
    check("QGemm", {"a": a}, q, "a as az w bs bz", alpha=0.5)


def test_dynamically_quantised_lstm() -> None:
    """Weights are the same; ONNX Runtime rounds states and inputs to 8 bits on the way, so the results are only near."""
    weights = {"w": integers(-60, 60, 1, 4, 24, dtype=np.int8), "r": integers(-60, 60, 1, 6, 24, dtype=np.int8, seed=1), "b": floats(1, 48, seed=2),
               "ws": np.array([0.01], np.float32), "wz": np.zeros(1, np.int8), "rs": np.array([0.01], np.float32), "rz": np.zeros(1, np.int8)}  # fmt: skip
    check("DynamicQuantizeLSTM", {"x": floats(5, 2, 4)}, weights, "x w r b - - - - ws wz rs rz", 3, hidden_size=6, tolerance=2e-2)


def test_quantised_attention() -> None:
    constants = {"w": integers(-100, 100, 12, 24, dtype=np.int8), "b": floats(24, seed=2), "xs": np.float32(0.02), "ws": np.float32(0.01),
                 "xz": np.uint8(120), "wz": np.int8(0)}  # fmt: skip
    check("QAttention", {"x": integers(0, 256, 2, 5, 12, dtype=np.uint8)}, constants, "x w b xs ws - xz wz", num_heads=2, tolerance=1e-4)


# --- names of the standard's operators, small compositions -----------------------------------------------------------


def test_the_standards_operators_under_another_name() -> None:
    x = floats(2, 3, 5)
    check("Pad", {"x": x}, {"pads": np.array([[0, 1, 2, 0, 0, 1]]), "value": np.float32([3])}, "x pads value")
    check("GatherND", {"x": x}, {"i": np.array([[1, 2], [0, 0]])}, "x i")
    check("Range", {}, {"a": np.array(2), "b": np.array(17), "c": np.array(4)}, "a b c")
    check("GridSample", {"x": floats(1, 2, 4, 5), "grid": floats(1, 3, 3, 2, seed=1, scale=0.5)}, {}, "x grid", mode="bicubic", padding_mode="border")
    found = run(import_onnx(model_of("Unique", {"x": np.float32([2, 1, 1, 3, 2])}, {}, "x", 3)), {"x": np.float32([2, 1, 1, 3, 2])})
    for name, wanted in zip(("y0", "y1", "y2"), ([2, 1, 3], [0, 1, 1, 2, 0], [2, 2, 1]), strict=True):
        np.testing.assert_array_equal(found[name], wanted)


def test_products_with_something_behind() -> None:
    check("Inverse", {"x": floats(2, 3, 4, 4) + 3 * np.eye(4, dtype=np.float32)}, {}, "x", tolerance=1e-4)
    check("CDist", {"x": floats(4, 6), "y": floats(5, 6, seed=1)}, {}, "x y", metric="euclidean", tolerance=1e-4)
    check("CDist", {"x": floats(4, 6), "y": floats(5, 6, seed=1)}, {}, "x y", metric="sqeuclidean", tolerance=1e-4)


def test_quantised_convolution_channels_last() -> None:
    scales = {"xs": np.float32(0.1), "xz": np.uint8(3), "ws": floats(6, seed=3) ** 2 + np.float32(0.01), "wz": np.zeros(6, np.int8),
              "ys": np.float32(0.5), "yz": np.uint8(100)}  # fmt: skip
    x, w = integers(0, 256, 1, 7, 8, 4, dtype=np.uint8), integers(-128, 128, 6, 2, 3, 3, dtype=np.int8, seed=1)
    check("QLinearConv", {"x": x}, {"w": w, **scales}, "x xs xz w ws wz ys yz", channels_last=1, group=2, pads=[1, 1, 0, 0])


def computed(op: str, order: str, outputs: int = 1, constants: Arrays | None = None, inputs: Arrays | None = None, **attributes: object) -> np.ndarray:
    return run(import_onnx(model_of(op, inputs or {}, constants or {}, order, outputs, **attributes)), inputs or {})["y0"]


def test_operators_without_a_kernel_in_onnx_runtime_for_the_cpu() -> None:
    """Against their definitions."""
    x, bias, residual = floats(2, 3, 4), floats(4, seed=1), floats(2, 3, 4, seed=2)
    close = np.testing.assert_allclose
    close(computed("BiasDropout", "x b r", inputs={"x": x, "r": residual}, constants={"b": bias}), x + bias + residual, 1e-6)
    inner = floats(2, 4, seed=3)
    powers = np.exp(x + inner[:, None])
    close(computed("BiasSoftmax", "x b", inputs={"x": x, "b": inner}, axis=2), powers / powers.sum(-1, keepdims=True), 1e-5)
    powers = np.exp(x + residual)
    close(computed("BiasSoftmax", "x b", inputs={"x": x, "b": residual}, axis=1), powers / powers.sum((1, 2), keepdims=True), 1e-5)
    w = floats(4, 5, seed=4)
    h = x @ w + 0.5
    close(computed("GemmFastGelu", "x w b", inputs={"x": x}, constants={"w": w, "b": np.full(5, 0.5, np.float32)}),
          h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))), 1e-4, 1e-5)  # fmt: skip
    close(computed("FusedMatMulActivation", "x w", inputs={"x": x}, constants={"w": w}, activation="Relu", alpha=2.0), np.maximum(2 * x @ w, 0), 1e-5, 1e-5)
    a, c = (part[..., :2] + 1j * part[..., 2:] for part in (x, residual))
    pair = {"x": np.stack([a.real, a.imag], -1), "y": np.stack([c.real, c.imag], -1)}
    for op, wanted in (("ComplexMul", a * c), ("ComplexMulConj", a * c.conj())):
        close(computed(op, "x y", inputs=pair), np.stack([wanted.real, wanted.imag], -1), 1e-5, 1e-6)
    spectrum = np.fft.rfft(x)
    parts = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)
    close(computed("Rfft", "x", inputs={"x": x}, signal_ndim=1, normalized=0, onesided=1), parts, 1e-5, 1e-5)
    close(computed("Irfft", "x", inputs={"x": parts}, signal_ndim=1, normalized=0, onesided=1), x, 1e-5, 1e-5)
    small = integers(-300, 300, 3, 4, dtype=np.int16)
    close(computed("MatMulInteger16", "x w", inputs={"x": small, "w": small.T.copy()}), small.astype(int) @ small.T.astype(int))
    assert computed("IsAllFinite", "x y", inputs={"x": x, "y": bias})
    assert not computed("IsAllFinite", "x y", inputs={"x": x, "y": np.float32([1, np.inf])})
    assert computed("IsAllFinite", "x", inputs={"x": np.float32([1, np.inf])}, isnan_only=1)


# --- experts and states ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "k", "normalised"), [("relu", 2, 1), ("gelu", 2, 0), ("silu", 1, 1), ("identity", 4, 0), ("swiglu", 2, 1)])
def test_mixture_of_experts(kind: str, k: int, normalised: int) -> None:
    wide = 12 if kind == "swiglu" else 6
    given = {"x": floats(2, 3, 8), "r": floats(6, 4, seed=1)}
    weights = {"w1": floats(4, wide, 8, seed=2), "b1": floats(4, wide, seed=3), "w2": floats(4, 8, 6, seed=4), "b2": floats(4, 8, seed=5)}
    more = {"swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 1.5} if kind == "swiglu" else {}
    check("MoE", given, weights, "x r w1 b1 w2 b2", k=k, activation_type=kind, normalize_routing_weights=normalised, tolerance=1e-4, **more)


@pytest.mark.parametrize("layout", [0, 2])
def test_gated_experts_in_other_layouts(layout: int) -> None:
    """ONNX Runtime's kernel for the CPU has the interleaved layout only: the same weights in another order give the same."""
    given = {"x": floats(5, 8), "r": floats(5, 4, seed=1)}
    gate, up, w2 = floats(4, 6, 8, seed=2), floats(4, 6, 8, seed=3), floats(4, 8, 6, seed=4)
    common = {"k": 2, "activation_type": "swiglu", "activation_alpha": 1.702, "activation_beta": 1.0}
    woven = np.stack([gate, up], 2).reshape(4, 12, 8)
    wanted = check("MoE", given, {"w1": woven, "w2": w2}, "x r w1 - w2", swiglu_fusion=1, tolerance=1e-4, **common)
    expected = run(wanted, given)["y0"]
    weights = {"w1": gate, "w2": w2, "w3": up} if layout == 0 else {"w1": np.concatenate([gate, up], 1), "w2": w2}
    order = "x r w1 - w2 - w3" if layout == 0 else "x r w1 - w2"
    found = computed("MoE", order, inputs=given, constants=weights, swiglu_fusion=layout, **common)
    np.testing.assert_allclose(found, expected, 1e-5, 1e-6)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("begun", [False, True])
def test_causal_convolution(dilation: int, begun: bool) -> None:
    given = {"x": floats(2, 4, 5)} | ({"past": floats(2, 4, 2 * dilation, seed=3)} if begun else {})
    weights = {"w": floats(4, 1, 3, seed=1), "b": floats(4, seed=2)}
    check("CausalConvWithState", given, weights, "x w b past" if begun else "x w b", 2, activation="silu", dilation=dilation)


def test_linear_attention() -> None:
    given = {"q": floats(2, 3, 16), "k": floats(2, 3, 16, seed=1, scale=0.3), "v": floats(2, 3, 12, seed=2), "past": floats(2, 2, 8, 6, seed=3),
             "decay": -np.abs(floats(2, 3, 2, seed=4)), "beta": np.abs(floats(2, 3, 2, seed=5))}  # fmt: skip
    check("LinearAttention", given, {}, "q k v past decay beta", 2, q_num_heads=2, kv_num_heads=2, update_rule="gated_delta", tolerance=1e-4)


def test_a_step_of_grouped_attention_is_a_few_layers() -> None:
    """As generative exporters write it: a packed projection, rotary embedding and cache inside of the operator."""
    names = ["x", "past_k", "past_v", "len"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["qkv"], "projection"),
        helper.make_node("GroupQueryAttention", ["qkv", "", "", "past_k", "past_v", "len", "total", "cos", "sin"], ["y0", "k", "v"], "node",
                         domain=DOMAIN, do_rotary=1, **GROUPED),
    ]  # fmt: skip
    inputs = {"x": floats(2, 1, 32), "past_k": floats(2, 2, 5, 16, seed=1), "past_v": floats(2, 2, 5, 16, seed=2), "len": np.array([5, 3], np.int32)}
    inputs["past_k"][1, :, 3:] = inputs["past_v"][1, :, 3:] = 0  # behind a shorter sequence
    constants = {"w": floats(32, 128, seed=3), "total": np.int32(6)} | caches(16, 8)
    infos = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(inputs[name].dtype), inputs[name].shape) for name in names]
    outputs = [helper.make_empty_tensor_value_info(name) for name in ("y0", "k", "v")]
    graph = helper.make_graph(nodes, "g", infos, outputs, [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)], ir_version=8)
    network = optimize(import_onnx(model), FusionOptions(device="cuda")).network
    working = [type(layer.op).__name__ for layer in network.layers if layer.name not in view_layers(network)]
    assert sorted(set(working)) == ["Attention", "CacheAppend", "Gather", "MatrixMultiply", "Pointwise", "RotaryEmbedding"]
    assert working.count("MatrixMultiply") == working.count("RotaryEmbedding") == working.count("CacheAppend") == 1
    found = run(network, inputs)
    for name, wanted in onnxruntime_outputs(model, inputs).items():
        np.testing.assert_allclose(found[name], wanted, 2e-5, 2e-5, err_msg=name)
