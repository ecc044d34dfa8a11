import dataclasses
import json
import math
import os
import re
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.network import Fate
from fusion.ops import Gather, Shuffle
from runtime import engine_file
from runtime.engine import Alternative, Engine, EngineError, InputRange, LayerPlan


@pytest.fixture
def engine(mlp) -> Engine:
    build, outputs = mlp
    made = build.engine(*outputs, sizes={"batch": (1, 4, 16)})
    tried = (Alternative("a", (("tile", 4),), 1e-6), Alternative("b", (), None, "too big"))
    plans = (dataclasses.replace(made.layers[0], alternatives=tried, seconds=float("inf"), stream=1), *made.layers[1:])
    network = dataclasses.replace(made.network, fates={"node 1": Fate("layer", "fc1"), "node 2": Fate("folded")})
    weights = {**made.weights, "p": np.arange(3, dtype=ml_dtypes.bfloat16), "q": np.ones((2, 1), ml_dtypes.float8_e4m3fn),
               "s": np.float64(3).reshape(()), "e": np.empty((0, 4), np.float16), "b": np.array([True, False])}  # fmt: skip
    record = {"version": "0", "nan": float("nan"), "list": [1, 2.5, None, True, {"dtype": "x", "is": "y"}]}
    kernels = {"k1": b"\x7fELF", "k2": b""}
    return dataclasses.replace(made, network=network, layers=plans, weights=weights, record=record, kernels=kernels)


def test_round_trip(engine, tmp_path, same_engine):
    size = engine.save(tmp_path / "a.engine")
    assert size == os.path.getsize(tmp_path / "a.engine")
    same_engine(Engine.load(tmp_path / "a.engine"), engine)


def test_equal_engines_give_equal_bytes(engine, tmp_path):
    engine.save(tmp_path / "a")
    turned = dataclasses.replace(engine, weights=dict(reversed(engine.weights.items())))
    turned.save(tmp_path / "b")
    Engine.load(tmp_path / "a").save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_it_is_a_safetensors_file(engine, tmp_path):
    engine.save(tmp_path / "a")
    with safe_open(tmp_path / "a", "numpy") as file:
        assert file.metadata()["format"] == "trtcli-engine"
        np.testing.assert_array_equal(file.get_tensor("weight:w1"), engine.weights["w1"])
        assert set(file.keys()) == {*(f"weight:{name}" for name in engine.weights), "kernel:k1", "kernel:k2"}


def test_types_with_symbols_and_all_kinds_of_values(graph, tmp_path, same_engine):
    n = symbol("n")
    x, i = graph.input("x", (n, 4)), graph.input("i", (n,), DataType.INT64)
    out = graph.layer(Shuffle(first=(1, 0), reshape=(4 * n,)), graph.layer(Gather(0), x, i))
    engine = graph.engine(out, sizes={"n": (1, 2, 3)})
    engine.save(tmp_path / "a")
    same_engine(Engine.load(tmp_path / "a"), engine)


def test_a_failed_write_leaves_nothing(engine, tmp_path, monkeypatch):
    target = tmp_path / "a.engine"
    target.write_bytes(b"the old one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_file.os, "fsync", full)
    with pytest.raises(EngineError, match="No space left"):
        engine.save(target)
    assert target.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["a.engine"]


def test_unwritable_and_missing(engine, tmp_path):
    with pytest.raises(EngineError, match="cannot write engine file"):
        engine.save(tmp_path / "no" / "such" / "folder")
    with pytest.raises(EngineError, match="cannot open engine file"):
        Engine.load(tmp_path / "missing")
    with pytest.raises(EngineError):
        Engine.load(tmp_path)


def edit(data: bytes, change) -> bytes:
    """``data`` with its description changed by ``change(description)``."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = json.loads(header["__metadata__"]["engine"])
    change(text)
    header["__metadata__"]["engine"] = json.dumps(text)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data[8 + length :]


def spoil(path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(EngineError) as caught:
        Engine.load(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def test_foreign_and_old_files(engine, tmp_path):
    path = tmp_path / "a"
    engine.save(path)
    data = path.read_bytes()
    assert "not an engine file" in spoil(path, b"")
    assert "not an engine file" in spoil(path, b"\x08\x07ONNX model bytes and so on" * 10)
    assert "not an engine" in spoil(path, struct.pack("<Q", 2) + b"{}")
    assert "build it again" in spoil(path, data.replace(b'"version":"2"', b'"version":"0"'))
    assert "build it again" in spoil(path, data.replace(b'"version":"2"', b'"version":"9"'))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text["layers"].pop(),
        lambda text: text["network"]["layers"][0].update({"is": "os.system"}),
        lambda text: text["network"]["layers"][0]["op"].update({"is": "Network"}),
        lambda text: text["network"]["layers"][0].update(inputs=["nowhere"]),
        lambda text: text["network"]["layers"].reverse(),
        lambda text: text["network"]["layers"][0].update(inputs=[5]),
        lambda text: text["network"]["layers"][1].update(outputs=["fc1_out0"]),
        lambda text: text["network"]["tensors"].pop("x"),
        lambda text: text["network"]["tensors"].update(x=5),
        lambda text: text["network"]["tensors"].update(
            w1={"is": "TensorType", "dtype": {"dtype": "int8"}, "shape": [8, 16]}
        ),
        lambda text: text["network"]["tensors"]["x"].update(shape=[{"dim": "floordiv(" * 5000}]),
        lambda text: text["network"]["tensors"]["x"].update(dtype={"dtype": "object"}),
        lambda text: text["layers"][0].update(stream=-1),
        lambda text: text["layers"][0].update(stream=True),
        lambda text: text["layers"][0].update(packed=["nothing"]),
        lambda text: text["layers"][0].update(config=[["a", "b"]]),
        lambda text: text.update(profiles=[]),
        lambda text: text.update(profiles=[{}]),
        lambda text: text["device"].update(kernel="x"),
        lambda text: text["device"].update(multiprocessors="many"),
        lambda text: text.pop("network"),
        lambda text: text.update(tf32="yes"),
        lambda text: text.update(record=[]),
    ],
)
def test_nonsense_is_refused(engine, tmp_path, change):
    path = tmp_path / "a"
    engine.save(path)
    spoil(path, edit(path.read_bytes(), change))


def test_deep_json_is_refused(engine, tmp_path):
    path = tmp_path / "a"
    raw = b'{"a":' + b"[" * 200000 + b"}"
    spoil(path, struct.pack("<Q", len(raw)) + raw)


def test_truncation_anywhere_is_refused(engine, tmp_path):
    engine.save(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for length in sorted({0, 1, 7, 8, 9, 100, *range(0, len(data), 997), len(data) - 1}):
        spoil(tmp_path / "cut", data[:length])
    assert "cut short" in spoil(tmp_path / "cut", data[:500])
    assert "cut short" in spoil(tmp_path / "cut", data[:-1])
    spoil(tmp_path / "long", data + b"\0")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_flipped_bytes_never_crash(small_engine_bytes, tmp_path, flips):
    raw = bytearray(small_engine_bytes)
    for place, value in flips:
        raw[int(place * len(raw))] = value
    (tmp_path / "flipped").write_bytes(raw)
    try:
        Engine.load(tmp_path / "flipped")
    except EngineError as error:
        assert "\n" not in str(error)


def test_offsets_outside_of_the_file_are_refused(engine, tmp_path):
    path = tmp_path / "a"
    engine.save(path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for change in (
        {"data_offsets": [0, 1 << 60]},
        {"shape": [-1, -512]},
        {"shape": [1 << 62, 1 << 62]},
        {"dtype": "X"},
    ):
        broken = {**header, "weight:w1": {**header["weight:w1"], **change}}
        raw = json.dumps(broken).encode()
        spoil(path, struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def test_nan_seconds_survive(engine, tmp_path):
    engine.save(tmp_path / "a")
    loaded = Engine.load(tmp_path / "a")
    assert loaded.layers[0].seconds == math.inf and math.isnan(loaded.layers[1].seconds)


def test_the_example_of_the_documentation(engine, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "engine-file.md").read_text(encoding="utf-8")
    keys = {*engine_file._describe(engine), *(item.name for cls in (LayerPlan, InputRange) for item in dataclasses.fields(cls))}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    engine.save(tmp_path / "model.engine")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "engine-file.md", "exec"), {})
    assert capsys.readouterr().out.startswith("trtcli-engine 2\n['kernel:k1'")
