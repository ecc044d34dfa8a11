"""Every row of the fusion catalogue: fused, refused in its near miss, and the same results on both devices with and without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fusion.importer import import_onnx
from fusion.network import Network
from fusion.passes import RULES, FusionOptions, optimize
from fusion.validation import validate
from runtime.devices import open_device
from runtime.views import view_layers
from tests.catalogue import CATALOGUE, Row, model
from tests.fusion.networks import assert_same
from tests.models import onnxruntime_outputs, random_inputs
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Silent

DEVICES = ["cpu", pytest.param("0", marks=pytest.mark.gpu)]
IDS = [row.name.replace(" ", "-") for row in CATALOGUE]


def _working(network: Network) -> list[str]:
    """Names of the layers that cost a launch of their own."""
    views = view_layers(network)
    return [layer.name for layer in network.layers if layer.name not in views and "reformat" not in layer.fusions]


def _options(row: Row, device: str) -> FusionOptions:
    return FusionOptions(device=device, enabled=(row.rule,) if row.measured else ())


@pytest.mark.parametrize("row", CATALOGUE, ids=IDS)
def test_the_pattern_fuses(row: Row) -> None:
    for device in (row.device,) if row.device else ("cpu", "cuda"):
        result = optimize(import_onnx(model(row)), _options(row, device))
        validate(result.network)
        assert not row.rule or row.rule in result.counts, dict(result.counts)
        wanted = row.on_gpu if row.on_gpu and device == "cuda" else row.layers
        assert len(_working(result.network)) == wanted, _working(result.network)


@pytest.mark.parametrize("row", CATALOGUE, ids=IDS)
def test_the_near_miss_does_not(row: Row) -> None:
    assert row.near or row.near_output or row.near_values, "a row without a near miss"
    for device in (row.device,) if row.device else ("cpu", "cuda"):
        network = import_onnx(model(row, near=True))
        result = optimize(network, _options(row, device))
        validate(result.network)
        assert row.rule not in result.counts, dict(result.counts)
        assert row.rule or len(_working(result.network)) > row.layers


@pytest.mark.parametrize("row", [row for row in CATALOGUE if row.rule], ids=[row.name.replace(" ", "-") for row in CATALOGUE if row.rule])
def test_the_near_miss_is_explained(row: Row) -> None:
    """The missed fusions name the rule, and where a network output stands between, that tensor."""
    result = optimize(import_onnx(model(row, near=True)), _options(row, row.device or "cpu"))
    named = [miss for misses in result.misses.values() for miss in misses if miss.rule == (row.near_rule or row.rule)]
    assert named, [f"{layer}: {miss.rule}: {miss.detail}" for layer, misses in result.misses.items() for miss in misses]
    assert all(miss.condition and miss.detail for miss in named)
    if row.near_output and row.rule != "pointwise-shuffle":  # which then finds no shuffle that undoes the first
        wanted = {f"{name} is a network output" for name in row.near_output.split()}
        assert any(miss.condition == "network output" and miss.detail in wanted for miss in named)


@pytest.mark.parametrize("row", CATALOGUE, ids=IDS)
def test_what_others_need_is_still_made(row: Row) -> None:
    """Every tensor within the pattern may be a network output as well, or have another reader; the near miss is computed as it was, too."""
    within = [name for node in onnx.load_from_string(model(row)).graph.node for name in node.output if name and name not in ("y", *row.outputs)]
    cases = [(model(row, near=True), "cpu")]
    for name in within:
        also_output = model(replace(row, outputs=(*row.outputs, name)))
        cases.append((also_output, "cpu"))
        if import_onnx(also_output).tensors[name].dtype.is_float:
            cases.append((model(replace(row, nodes=f"{row.nodes}\nother = Sin({name})", outputs=(*row.outputs, "other"))), "cuda"))
    for data, device in cases:
        network = import_onnx(data)
        result = optimize(network, _options(row, device))
        validate(result.network)
        assert_same(network, result.network)


# Rules whose pattern is no model of known sizes, and the tests that have it and its near misses.
# A mask of known lengths is a constant; rows are in float32, or rounded in another place by ONNX Runtime.
# Formats of outputs are no part of a model.
ELSEWHERE = {
    "gather-positions": "test_gather_positions.py", "attention-causal": "test_attention_causal.py", "rotary-cast": "test_rotary.py", "transpose-epilogue": "test_transpose_epilogue.py",
    "channel-padding": "test_channel_padding.py",
}  # fmt: skip


def test_every_rule_has_a_row() -> None:
    """Those that only write a layer in its usual form are no fusions to report; tests/fusion/rules/test_clean.py has them."""
    assert {row.rule for row in CATALOGUE if row.rule} | ELSEWHERE.keys() == {name for name, rule in RULES.items() if not rule.canonical}
    assert all((Path(__file__).parent / "fusion" / "rules" / name).is_file() for name in ELSEWHERE.values())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache") / "timings.json")


@pytest.mark.parametrize("device_name", DEVICES)
@pytest.mark.parametrize("row", CATALOGUE, ids=IDS)
def test_it_runs(row: Row, device_name: str, cache: str) -> None:
    device = open_device(device_name)
    data = model(row)
    inputs = random_inputs(import_onnx(data))
    expected = onnxruntime_outputs(onnx.load_from_string(data), inputs)
    level = 0 if device_name == "cpu" else 1  # the timing is not what is tested
    for disabled in ((), (("all", ""),)):
        config = BuildConfig(timing_cache_file=cache, optimization_level=level, tf32=False, disable_fusion=disabled)
        found = build(data, config, device, log=Silent()).create_execution_context(device).execute(inputs)
        for name, wanted in expected.items():
            assert found[name].dtype == wanted.dtype
            np.testing.assert_allclose(found[name], wanted, rtol=2e-5, atol=2e-5, equal_nan=True, err_msg=name)
