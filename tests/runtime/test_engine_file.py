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
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.network import Fate, TensorType
from fusion.ops import Gather, MatrixMultiply, Shuffle
from fusion.ops.control import If
from runtime import engine_file
from runtime.checksums import checksum, verified
from runtime.engine import CONTROL, Alternative, Engine, EngineError, InputRange, LayerPlan
from runtime.loaded import load_engine


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
    return engine_file.header_bytes(header) + data[8 + length :]


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
    assert "reads formats 2 and 3: build it again" in spoil(path, of_version(data, "1"))
    assert "build it again" in spoil(path, of_version(data, "9"))


def of_version(data: bytes, version: str, **metadata: str) -> bytes:
    """``data`` as if another version of trtcli had written them."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= {"version": version, **metadata}
    return engine_file.header_bytes(header) + data[8 + length :]


def test_files_of_format_2_have_no_checksums_and_load(engine, tmp_path, same_engine):
    engine.save(tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]["checksum"], header["__metadata__"]["checksums"]
    for version, loads in (("2", True), ("3", False)):
        header["__metadata__"]["version"] = version
        raw = json.dumps(header).encode()
        old = struct.pack("<Q", len(raw)) + raw + data[8 + length :]
        if loads:
            same_engine(Engine.deserialize(old), engine)
        else:
            assert "has no checksum" in spoil(tmp_path / "b", old)
    assert "those of its tensors" in spoil(tmp_path / "b", of_version(data, "3", checksums="{}"))


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


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8, unique_by=lambda flip: flip[0]))
def test_flipped_bytes_are_found(small_engine_bytes, flips):
    raw = bytearray(small_engine_bytes)
    for place, bits in flips:
        raw[int(place * len(raw))] ^= bits
    if raw == small_engine_bytes:
        return
    with pytest.raises(EngineError) as caught:
        dict(verified(Engine.deserialize(bytes(raw)).weights))
    assert "\n" not in str(caught.value)


def test_a_damaged_weight_is_named_when_it_is_read(engine, tmp_path, cpu):
    path = tmp_path / "a"
    engine.save(path)
    data = bytearray(path.read_bytes())
    data[data.index(engine.weights["w2"].tobytes()) + 100] ^= 1
    path.write_bytes(data)
    damaged = Engine.load(path)  # reads no weight
    text = f"engine file {str(path)!r} is damaged: 'weight:w2' differs from what was saved; copy the file again"
    with pytest.raises(EngineError, match=re.escape(text)):
        load_engine(damaged, cpu)
    with pytest.raises(EngineError, match=re.escape(text)):  # nor are wrong weights given new checksums
        damaged.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    intact = dataclasses.replace(damaged, weights=engine.weights)
    assert load_engine(intact, cpu).weights.keys() == engine.weights.keys()


def test_a_damaged_kernel_is_refused(engine, tmp_path):
    engine.save(tmp_path / "a")
    assert "'kernel:k1' differs" in spoil(tmp_path / "b", (tmp_path / "a").read_bytes().replace(b"\x7fELF", b"\x7fELG"))


@pytest.mark.parametrize("size", [0, 1, 8, 4095, 4096, 4097, 12289])
def test_checksums_see_every_byte_and_the_order_of_blocks(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    whole = checksum(data.tobytes())
    assert whole == checksum(memoryview(b"x" + data.tobytes())[1:])  # at an odd address
    for place in range(0, size, 509):
        assert checksum((data ^ (np.arange(size) == place)).astype(np.uint8).tobytes()) != whole
    if size > 2 * 4096:
        assert checksum(np.roll(data, 4096).tobytes()) != whole


def test_weights_of_bodies_are_held_once(graph, cpu):
    def branch(scale: float) -> Engine:
        inner = type(graph)()
        return inner.engine(inner.layer(MatrixMultiply(), inner.input("x", (1, 4)), inner.constant("w", scale * np.eye(4, dtype=np.float32))))

    branches = branch(2), branch(3)
    kind = TensorType(DataType.FLOAT, (1, 4))
    choice = If(*(one.network for one in branches), takes=((1,), (1,)), types=(kind,))
    condition, x, w = graph.input("c", (), DataType.BOOL), graph.input("x", (1, 4)), graph.constant("w", np.eye(4, dtype=np.float32))
    made = graph.engine(graph.layer(MatrixMultiply(), graph.layer(choice, condition, x), w))
    made = dataclasses.replace(made, layers=(LayerPlan(CONTROL, bodies=branches), *made.layers[1:]))
    loaded = Engine.deserialize(made.serialize())
    assert list(loaded.weights) == ["w"]
    assert [[*body.weights] for body in loaded.layers[0].bodies] == [["w"], ["w"]]
    context = loaded.create_execution_context(cpu)
    for condition, factor in ((True, 2), (False, 3)):
        found = context.execute({"c": np.array(condition), "x": np.ones((1, 4), np.float32)})
        np.testing.assert_array_equal(*found.values(), factor * np.ones((1, 4)))


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
        spoil(path, engine_file.header_bytes(broken) + data[8 + length :])


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
    assert capsys.readouterr().out.startswith("trtcli-engine 3\n['kernel:k1'")
