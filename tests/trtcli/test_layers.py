"""Layer information, inspection and --whyNot on an engine made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.network import Fate, Layer, Network, TensorType
from fusion.ops import MatrixMultiply, Softmax
from fusion.rewrite import Miss
from runtime.engine import Alternative, Engine, InputRange, LayerPlan
from tactics.tactic import DeviceSpec
from trtcli.files import json_text
from trtcli.report.inspection import WIDTH, engine_json, engine_lines
from trtcli.report.layers import layer_info_json, layer_info_lines, tactic_value
from trtcli.report.whynot import missed_in_network, why_not_lines


def engine(verbosity: str = "detailed") -> Engine:
    batch = symbol("batch")
    network = Network(
        name="tiny",
        inputs=("x",),
        outputs=("p",),
        layers=(
            Layer("fc + bias", MatrixMultiply(), ("x", "w"), ("y",), ("fc", "bias"), ("matmul-pointwise",)),
            Layer("soft", Softmax(axis=1), ("y",), ("p",), ("soft",)),
        ),
        tensors={
            "x": TensorType(DataType.HALF, (batch, 4)),
            "w": TensorType(DataType.HALF, (4, 8)),
            "y": TensorType(DataType.HALF, (batch, 8)),
            "p": TensorType(DataType.HALF, (batch, 8)),
        },
        fates={
            "fc": Fate("layer", "fc + bias"), "bias": Fate("layer", "fc + bias"), "soft": Fate("layer", "soft"),
            "shape": Fate("folded"), "drop": Fate("no-op"),
        },
    )  # fmt: skip
    plans = (
        LayerPlan(
            "cuda.gemm.mma", (("m", 64), ("n", 128)), ("w#0",), 4e-6, 1e-6, "memory", 512,
            alternatives=(
                Alternative("cuda.gemm.mma", (("m", 64), ("n", 128)), 4e-6),
                Alternative("cuda.gemm.sm90", (), None, "needs compute capability 9.0"),
            ),
        ),
        LayerPlan("cuda.softmax", (), (), math.nan, 2e-6, "launch", stream=1),
    )  # fmt: skip
    record = {
        "trtcli": "0.1.0", "date": "2026-11-22T00:00:00", "model": "tiny.onnx",
        "options": {"profiling_verbosity": verbosity},
        "misses": {
            "soft": [
                {
                    "rule": "softmax-prologue", "layers": ["fc + bias", "soft"], "condition": "shared",
                    "detail": "y is also read by other", "tensors": ["y"],
                },
                {"rule": "softmax-log", "layers": ["soft"], "condition": "log", "detail": "it is one already", "tensors": []},
            ]
        },
    }  # fmt: skip
    profile = {"x": InputRange((1, 4), (2, 4), (8, 4))}
    device = DeviceSpec("cuda", "NVIDIA Test", "sm_90a", 90, bandwidth=1e6)
    return Engine(network, plans, {"w#0": np.zeros((4, 8), np.float16)}, {"k": b"cubin"}, (profile,), device, record=record)


def test_names_only_is_the_default_form() -> None:
    assert layer_info_lines(engine("layer_names_only")) == ["", "Layer Information:", "fc + bias", "soft"]
    assert layer_info_json(engine("layer_names_only"))["Layers"] == ["fc + bias", "soft"]


def test_none_keeps_nothing() -> None:
    assert layer_info_lines(engine("none")) == []
    assert layer_info_json(engine("none"))["Layers"] == []


def test_golden_detailed_line() -> None:
    assert layer_info_lines(engine(), {"x": (2, 4)})[2] == (
        "Name: fc + bias, LayerType: MatrixMultiply, "
        "Inputs: [ { Name: x, Dimensions: [2,4], Format/Datatype: Row major linear FP16 } ], "
        "Outputs: [ { Name: y, Dimensions: [2,8], Format/Datatype: Row major linear FP16 } ], "
        "TacticName: cuda.gemm.mma[m=64,n=128], StreamId: 0, Metadata: [ONNX Layer: fc] [ONNX Layer: bias]"
    )


def test_detailed_json() -> None:
    found = json.loads(json_text(layer_info_json(engine(), {"x": (2, 4)})))
    assert list(found) == ["schema", "Layers", "I/O Tensors", "ProfilingVerbosity", "Engine Metadata"]
    first, second = found["Layers"]
    required = {"Name", "LayerType", "Inputs", "Outputs", "TacticName", "TacticValue", "StreamId", "Metadata", "Origins",
                "Fusions", "Precision", "TimeMs", "FloorMs", "Bound", "WorkspaceBytes", "Alternatives"}  # fmt: skip
    assert required <= set(first)
    assert first["Inputs"] == [
        {"Name": "x", "Dimensions": [2, 4], "Format": "Row major linear", "Datatype": "FP16", "Location": "Device"}
    ]
    assert first["Constants"] == ["w"]
    assert first["TacticValue"] == tactic_value("cuda.gemm.mma", (("m", 64), ("n", 128)))
    assert first["Metadata"] == "[ONNX Layer: fc]\x1e[ONNX Layer: bias]"
    assert (first["TimeMs"], first["FloorMs"]) == (pytest.approx(0.004), pytest.approx(0.001))
    assert first["Alternatives"][1] == {
        "TacticName": "cuda.gemm.sm90", "TimeMs": None, "Reason": "needs compute capability 9.0",
    }  # fmt: skip
    assert second["TimeMs"] is None
    assert second["StreamId"] == 1


def test_unknown_dimensions_are_minus_one() -> None:
    found = layer_info_json(engine())
    assert found["I/O Tensors"][0]["Dimensions"] == [-1, 4]
    assert found["I/O Tensors"][0]["ProfileInfo"] == [
        {"MinShape": [1, 4], "OptShape": [2, 4], "MaxShape": [8, 4], "Format": "Row major linear"}
    ]
    assert found["I/O Tensors"][1]["IOMode"] == "Output"


def test_tactic_values_are_64_bit_and_stable() -> None:
    value = tactic_value("cuda.gemm.mma", (("m", 64),))
    assert value == tactic_value("cuda.gemm.mma", (("m", 64),)) != tactic_value("cuda.gemm.mma", (("m", 128),))
    assert value.startswith("0x") and len(value) == 18


def test_inspection_fits_the_page() -> None:
    lines = engine_lines(engine())
    table = lines[lines.index("") :]
    assert all(len(line) <= WIDTH for line in table), [line for line in table if len(line) > WIDTH]
    text = "\n".join(lines)
    assert "Input   x  FP16 -1x4  min 1x4, opt 2x4, max 8x4" in text
    assert "gemm.mma" in text and "4.0x memory" in text
    assert "5 ONNX nodes: 3 in layers, 1 folded, 1 did nothing" in text


def test_inspection_json_has_every_node() -> None:
    found = json.loads(json_text(engine_json(engine("none"))))
    assert found["schema"] == 1
    assert found["Nodes"]["bias"] == {"Fate": "layer", "Layer": "fc + bias"}
    assert found["Layers"][0]["Outputs"][0]["Dimensions"] == [2, 8]


def test_why_not() -> None:
    assert why_not_lines(engine(), "soft") == [
        "soft is a layer of its own (not timed).",
        "  nearest rule: softmax-prologue - refused (shared): y is also read by other",
        "  it would have joined it with fc + bias",
        "  it would save 32 bytes of traffic, about 32.0 us of 4 (800.0 %)",
        "  also near: softmax-log - refused (log): it is one already",
    ]
    assert why_not_lines(engine(), "bias") == [
        "bias is one of 2 nodes in layer 'fc + bias' (4.0 us, memory bound).",
        "  made by matmul-pointwise",
        "  no rule matched around it: nothing was refused",
        "  it reads x (input); it is read by soft (SoftMax)",
    ]
    assert why_not_lines(engine(), "drop") == ["drop: does nothing: what reads it reads its input"]
    with pytest.raises(ValueError, match=r"--whyNot=sofft: no such ONNX node or layer; near it: soft"):
        why_not_lines(engine(), "sofft")


def test_an_engine_that_recorded_the_nearest_miss_alone() -> None:
    new = engine()
    nearest = {layer: misses[0] for layer, misses in new.record["misses"].items()}
    old = replace(new, record={**new.record, "misses": nearest})
    assert why_not_lines(old, "soft") == why_not_lines(new, "soft")[:-1] and engine_json(old)["MissedFusions"]


def test_missed_fusions_are_listed_with_their_price() -> None:
    lines = engine_lines(engine())
    place = lines.index("Missed fusions, and what their tensors cost to write and read:")
    assert lines[place + 1 :] == [
        "    32.0 us 800.0 %      32 bytes  softmax-prologue: fc + bias, soft",
        "      shared: y is also read by other",
    ]
    assert json.loads(json_text(engine_json(engine())))["MissedFusions"] == [
        {
            "Rule": "softmax-prologue", "Layers": ["fc + bias", "soft"], "Condition": "shared",
            "Detail": "y is also read by other", "Bytes": 32, "TimeMs": pytest.approx(0.032),
        }
    ]  # fmt: skip


def test_what_saves_nothing_is_not_missed() -> None:
    network = engine().network
    dear = Miss("matmul-pointwise", ("fc", "bias"), "shape", "bias broadcasts", ("w",))
    cheap = Miss("shuffle-shuffle", ("fc", "soft"), "no gain", "one permutation", ("w",))
    unknown = Miss("softmax-prologue", ("fc", "soft"), "shape", "", ("y",))
    found = missed_in_network(network, {"a": (cheap,), "b": (unknown, cheap), "fc": (dear,), "bias": (dear, unknown)})
    assert [(one.miss, one.bytes) for one in found] == [(dear, 2 * 64), (unknown, None)]
