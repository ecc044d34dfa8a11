"""The timing cache: a file that many builds share, and that survives what happens to files."""

import json
import threading
from pathlib import Path

import pytest

from tactics.cache import CacheError, Entry, ForeignFileError, Timing, TimingCache, load, save

ASKED = {"workload": {"op": 1}, "device": ["cuda", "X"], "versions": {"nvrtc": "13.0"}}
WINNER = Timing("cuda.gemm.mma", (("bm", 64),), 1.5e-6, "", "abc")
LOSER = Timing("cuda.gemm.simt", (), None, "needs more workspace")


def _cache(asked: dict = ASKED) -> TimingCache:
    return TimingCache().with_entry(Entry(asked, (WINNER, LOSER)), {"k": b"\x7fELF" * 100})


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path / "c.json", _cache())
    found = load(tmp_path / "c.json")
    assert found.find(ASKED) == Entry(ASKED, (WINNER, LOSER))
    assert found.kernels == {"k": b"\x7fELF" * 100}


def test_an_absent_file_is_an_empty_cache(tmp_path: Path) -> None:
    assert load(tmp_path / "none.json") == TimingCache()
    (tmp_path / "empty.json").write_text("\n")
    assert load(tmp_path / "empty.json") == TimingCache()
    (tmp_path / "cut.json").write_text('{"schema": 1, "entries": {')
    with pytest.raises(CacheError, match=r"cut\.json: is cut off or damaged"):
        load(tmp_path / "cut.json")


def _one(asked: str = '{"workload": {}}', number: str = "1", seconds: str = "1") -> str:
    timing = f'{{"tactic": "t", "config": {{"n": {number}}}, "seconds": {seconds}}}'
    return f'{{"schema": 1, "kernels": {{}}, "entries": {{"a": {{"asked": {asked}, "timings": [{timing}]}}}}}}'


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "entries": {"a": 1}, "kernels": {}}',
     '{"schema": 1, "entries": {}, "kernels": {"k": "!!!"}}', "\0\1\2",
     _one("[]"), _one('{"workload": 3}'), _one(number="Infinity"), _one(seconds="-1"), _one(seconds="NaN"), _one(seconds="1e999")],
)  # fmt: skip
def test_anything_else_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(CacheError, match=r"c\.json"):
        load(path)
    path.write_text(_one())
    assert len(load(path).entries) == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [("[]", "is no timing cache, but "), ("\x08\x09ONNX", "is no timing cache, but "), ('{"name": 1}', "is no timing cache, but "),
     ('{"schema": 1, "Layers": []}', "is no timing cache, but "), ('{"schema": 2, "entries": {}}', "schema 2 is of a newer trtcli, this one knows 1")],
)  # fmt: skip
def test_what_is_not_ours_is_left_as_it_was(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "model"
    path.write_text(content)
    for work in (load, lambda file: save(file, _cache())):
        with pytest.raises(ForeignFileError, match=f"model: {why}"):
            work(path)
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["", "{", '{"sch', '{\n "schema": 1, "entries": {"a', '{"schema": 0, "Layers": []}'])
def test_a_damaged_or_old_cache_is_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    save(path, _cache())
    assert load(path) == _cache()


def test_saving_merges_with_what_another_build_wrote(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    other = {**ASKED, "device": ["cuda", "Y"]}
    save(path, _cache())
    merged = save(path, _cache(other))
    assert merged.find(ASKED) is not None
    assert load(path).find(other) is not None


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    writers = [
        threading.Thread(target=save, args=(path, _cache({**ASKED, "device": ["cuda", str(number)]}))) for number in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(load(path).entries) == 8


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    save(path, _cache())
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fusion.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save(path, _cache({**ASKED, "device": ["cuda", "Y"]}))
    assert path.read_bytes() == before
    assert not [one for one in tmp_path.iterdir() if one.name not in ("c.json", "c.json.lock")]


def test_a_miss_says_which_field_differs() -> None:
    asked = {**ASKED, "versions": {"nvrtc": "13.5"}}
    assert "versions" in _cache().nearest_difference(asked)
    assert _cache().nearest_difference({**ASKED, "workload": {"op": 2}}) == "no entry for this workload"


def test_the_key_depends_on_every_field() -> None:
    keys = {Entry({**ASKED, name: "other"}, ()).key for name in ASKED} | {Entry(ASKED, ()).key}
    assert len(keys) == len(ASKED) + 1


def test_a_deeper_search_is_not_answered_by_a_shallower_one(tmp_path: Path) -> None:
    shallow = TimingCache().with_entry(Entry(ASKED, (WINNER,), 1), {})
    assert shallow.find(ASKED, 1) == shallow.find(ASKED, 0) and shallow.find(ASKED, 1) is not None
    assert shallow.find(ASKED, 3) is None
    assert shallow.nearest_difference(ASKED, 3) == "builderOptimizationLevel: 1 < 3"
    deep = TimingCache().with_entry(Entry(ASKED, (LOSER, WINNER), 4), {})
    for merged in (shallow.merged(deep), deep.merged(shallow)):
        assert merged.find(ASKED, 4) == Entry(ASKED, (LOSER, WINNER), 4)
    path = tmp_path / "c.json"
    save(path, deep)
    assert save(path, shallow).find(ASKED, 4) is not None  # a shallow build does not undo a deep one
    old = json.loads(path.read_text())
    for entry in old["entries"].values():
        del entry["level"]
    path.write_text(json.dumps(old))
    assert load(path).find(ASKED, 1) is None and load(path).find(ASKED) is not None
