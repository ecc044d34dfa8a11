"""How many layers whole architectures become, and what became of every ONNX node of every model of the suite."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from fusion.dtypes import DataType
from fusion.importer import import_onnx, import_with_report
from fusion.passes import FusionOptions, optimize
from fusion.validation import validate
from runtime.views import view_layers
from tests.fusion.fates import check_fates
from tests.models import WHEEL_MODELS, wheel_model

# One layer of BERT as torch's exporter writes it: projections with transposed weights, scaled dot-product attention written out (the
# scale's root on both sides, a guard against rows that are masked entirely), GELU by erf.
ENCODER_LAYER = """
q0@ = MatMul(h@, wq@)
q1@ = Add(q0@, bq@)
k0@ = MatMul(h@, wk@)
k1@ = Add(k0@, bk@)
v0@ = MatMul(h@, wv@)
v1@ = Add(v0@, bv@)
q2@ = Reshape(q1@, heads)
q@ = Transpose<perm=[0,2,1,3]>(q2@)
k2@ = Reshape(k1@, heads)
k@ = Transpose<perm=[0,2,1,3]>(k2@)
v2@ = Reshape(v1@, heads)
v@ = Transpose<perm=[0,2,1,3]>(v2@)
kt@ = Transpose<perm=[0,1,3,2]>(k@)
qs@ = Mul(q@, root)
ks@ = Mul(kt@, root)
s@ = MatMul(qs@, ks@)
m@ = Add(s@, mask)
p0@ = Softmax<axis=-1>(m@)
nan@ = IsNaN(p0@)
p@ = Where(nan@, zero, p0@)
c0@ = MatMul(p@, v@)
c1@ = Transpose<perm=[0,2,1,3]>(c0@)
c@ = Reshape(c1@, rows)
o0@ = MatMul(c@, wo@)
o1@ = Add(o0@, bo@)
o@ = Add(o1@, h@)
a@ = LayerNormalization<axis=-1, epsilon=1e-12>(o@, g1@, b1@)
f0@ = MatMul(a@, w1@)
f1@ = Add(f0@, c1b@)
e0@ = Div(f1@, two_root)
e1@ = Erf(e0@)
e2@ = Add(e1@, one)
e3@ = Mul(f1@, e2@)
e4@ = Mul(e3@, half)
f2@ = MatMul(e4@, w2@)
f3@ = Add(f2@, c2b@)
f@ = Add(f3@, a@)
h$ = LayerNormalization<axis=-1, epsilon=1e-12>(f@, g2@, b2@)
"""
EMBEDDINGS = """
word = Gather(words, input_ids)
t0 = Add(word, types)
t1 = Add(t0, places)
h_0 = LayerNormalization<axis=-1, epsilon=1e-12>(t1, g, b)
am0 = Unsqueeze(attention_mask, one_two)
am1 = Cast<to=9>(am0)
am2 = Expand(am1, square)
mask = Where(am2, zero, lowest)
"""


def bert(layers: int = 12, width: int = 48, heads: int = 4, sequence: int = 16, batch: int = 2) -> ModelProto:
    """BERT's structure in fp16 (12 layers as in BERT-base, but narrow), with an attention mask."""
    random = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {
        "words": random.standard_normal((50, width)), "types": random.standard_normal((1, 1, width)),
        "places": random.standard_normal((1, sequence, width)), "g": np.full(width, 0.9), "b": np.full(width, 0.1),
        "zero": np.array(0.0), "lowest": np.array(-65504.0), "one": np.array(1.0), "half": np.array(0.5),
        "two_root": np.array(2**0.5), "root": np.array((width / heads) ** -0.25),
    }  # fmt: skip
    text = EMBEDDINGS
    for number in range(layers):
        text += ENCODER_LAYER.replace("@", f"_{number}").replace("$", f"_{number + 1}")
        shapes = {"wq": (width, width), "wk": (width, width), "wv": (width, width), "wo": (width, width), "w1": (width, 4 * width),
                  "w2": (4 * width, width), "bq": (width,), "bk": (width,), "bv": (width,), "bo": (width,), "c1b": (4 * width,),
                  "c2b": (width,), "g1": (width,), "b1": (width,), "g2": (width,), "b2": (width,)}  # fmt: skip
        for name, shape in shapes.items():
            values[f"{name}_{number}"] = random.standard_normal(shape) * (shape[0] ** -0.5 if len(shape) == 2 else 0.1)
    shapes_of = {"heads": [batch, sequence, heads, width // heads], "rows": [batch, sequence, width], "one_two": [1, 2],
                 "square": [batch, 1, sequence, sequence]}  # fmt: skip
    constants = [numpy_helper.from_array(value.astype(np.float16), name) for name, value in values.items()]
    constants += [numpy_helper.from_array(np.array(value), name) for name, value in shapes_of.items()]
    nodes = [parser.parse_node(line) for line in text.splitlines() if line]
    for index, node in enumerate(nodes):
        node.name = f"node_{index}"
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, (batch, sequence)) for name in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info(f"h_{layers}", TensorProto.FLOAT16, (batch, sequence, width))
    graph = helper.make_graph(nodes, "bert", inputs, [output], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def test_bert_has_at_most_90_layers() -> None:
    network = import_onnx(bert().SerializeToString())
    result = optimize(network, FusionOptions(device="cuda"))
    validate(result.network)
    views = view_layers(result.network)
    kinds = Counter(type(layer.op).__name__ for layer in result.network.layers if layer.name not in views)
    assert result.counts["attention"] == 12
    assert result.counts["packed-attention"] == 12
    assert sum(kinds.values()) <= 90, kinds
    assert "Shuffle" not in kinds, "no tensor is transposed"


@pytest.mark.parametrize("name", WHEEL_MODELS)
def test_every_node_has_one_fate(name: str) -> None:
    """Of the trained models; those with random weights are checked in test_passes.py."""
    network, facts = import_with_report(wheel_model(name))
    assert len(network.fates) == facts.nodes
    for options in (FusionOptions(device="cuda", precision=DataType.HALF), FusionOptions(disabled=("all",))):
        check_fates(network, optimize(network, options).network)
