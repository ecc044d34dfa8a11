"""Every ONNX node of the suite's quantised, recurrent and speech models has exactly one fate, inside of branches and loops too."""

from __future__ import annotations

import onnx
import pytest

from fusion.importer import import_onnx
from fusion.network import ControlFlow, Network
from fusion.passes import FusionOptions, optimize
from tests.fusion.fates import check_fates
from tests.models import SPEECH_MODELS, wheel_model
from tests.quantized import small
from tests.test_quantized_models import PRODUCTS
from tests.test_recurrent_models import speech_model


def _check(before: Network, after: Network) -> int:
    """Checks a network and those inside of it; returns how many nodes they have."""
    check_fates(before, after)
    bodies = {layer.name: layer.op.bodies for layer in before.layers if isinstance(layer.op, ControlFlow)}
    inside = [zip(bodies[layer.name], layer.op.bodies, strict=True) for layer in after.layers if isinstance(layer.op, ControlFlow)]
    return len(after.fates) + sum(_check(*pair) for pairs in inside for pair in pairs)


def _count(graph: onnx.GraphProto) -> int:
    """The nodes of ``graph``, those of branches and loops included."""
    return sum(1 + sum(_count(attribute.g) for attribute in node.attribute) for node in graph.node)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("name", "kind"), PRODUCTS)
def test_quantized_models(name: str, kind: str, device: str) -> None:
    model = small(name, kind)
    network = import_onnx(model)
    assert _check(network, optimize(network, FusionOptions(device=device)).network) == len(model.graph.node)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recurrent_models(device: str) -> None:
    model = onnx.load_from_string(speech_model())
    network = import_onnx(model)
    assert _check(network, optimize(network, FusionOptions(device=device)).network) == len(model.graph.node)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", SPEECH_MODELS)
def test_speech_models(name: str, device: str) -> None:
    """Nodes of the branch that a constant condition never takes are dead, and count as well."""
    model = onnx.load(wheel_model(name))
    network = import_onnx(model)
    assert _check(network, optimize(network, FusionOptions(device=device)).network) == _count(model.graph)
