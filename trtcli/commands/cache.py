"""``trtcli cache``: list and edit timing-cache files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tactics import cache as timing_cache
from tactics.cache import DEEPEST, ENGINE, STREAM_EVENT, Entry, Timing, TimingCache
from tactics.tactic import tactic_label
from trtcli.answer import answer
from trtcli.errors import PASSED
from trtcli.log import Log
from trtcli.parse import Parsed, UsageError

SCHEMA = 1


def run(parsed: Parsed, log: Log) -> int:
    """One action on one or more files."""
    action, *words = parsed.words
    actions: dict[str, tuple[Callable[..., Any], int, int]] = {
        "list": (_list, 1, 1), "show": (_show, 2, 2), "set": (_set, 3, 3), "delete": (_delete, 2, 99),
        "merge": (_merge, 2, 99), "diff": (_diff, 2, 2), "prune": (_prune, 1, 1),
    }  # fmt: skip
    if action not in actions:
        raise UsageError([f"Unknown action: {action} ({', '.join(actions)})"], "cache")
    function, least, most = actions[action]
    if not least <= len(words) <= most:
        raise UsageError([f"cache {action}: wrong number of arguments"], "cache")
    value, lines = function(*words)
    answer(parsed, lambda: {"schema": SCHEMA, **value}, lambda: lines)
    return PASSED


Answer = tuple[dict[str, Any], list[str]]  # for programs, for people


def _list(path: str) -> Answer:
    cache = _open(path)
    rows = [_summary(key, entry) for key, entry in sorted(cache.entries.items())]
    lines = [f"{row['key'][:12]}  {_us(row['ms']):>10}  {row['tactic']}  {row['workload']}" for row in rows]
    size = sum(map(len, cache.kernels.values()))
    lines.append(f"{len(rows)} entries, {len(cache.kernels)} kernels ({size / 2**20:.1f} MiB)")
    return {"entries": rows, "kernels": len(cache.kernels)}, lines


def _show(path: str, key: str) -> Answer:
    cache = _open(path)
    key = _find(cache, key)
    entry = cache.entries[key]
    asked = dict(entry.asked)
    lines = [f"{key}  {describe(asked)}"]
    lines += [f"  {name}: {asked[name]}" for name in sorted(asked) if name != "workload"]
    lines.append(f"  searched at --builderOptimizationLevel={entry.level}")
    for number, timing in enumerate(entry.timings):
        mark = "*" if number == _winner(entry) else " "
        result = timing.reason if timing.seconds is None else _us(timing.seconds * 1e3)
        lines.append(f"{mark} {tactic_label(timing.tactic, timing.config)}  {result}")
    timings = [_timing(timing) for timing in entry.timings]
    return {"key": key, "asked": asked, "level": entry.level, "timings": timings}, lines


def _set(path: str, key: str, tactic: str) -> Answer:
    def change(cache: TimingCache) -> TimingCache:
        full = _find(cache, key)
        entry = cache.entries[full]
        chosen = next((one for one in entry.timings if tactic_label(one.tactic, one.config) == tactic), None)
        known = [tactic_label(one.tactic, one.config) for one in entry.timings if one.seconds is not None]
        if chosen is None:
            raise ValueError(f"{tactic!r} was not tried for {full[:12]}; timed were {', '.join(known) or 'none'}")
        if chosen.seconds is None:
            raise ValueError(f"{tactic!r} cannot serve {full[:12]}: {chosen.reason}")
        others = tuple(one for one in entry.timings if one is not chosen)
        return replace(cache, entries={**cache.entries, full: replace(entry, timings=(chosen, *others), level=DEEPEST)})

    timing_cache.edit(_existing(path), change)
    return {"set": tactic}, [f"{tactic} is the winner of {key} now"]


def _delete(path: str, *keys: str) -> Answer:
    gone: list[str] = []

    def change(cache: TimingCache) -> TimingCache:
        gone.extend(_find(cache, key) for key in keys)
        return replace(cache, entries={key: entry for key, entry in cache.entries.items() if key not in gone})

    timing_cache.edit(_existing(path), change)
    return {"deleted": gone}, [f"deleted {len(gone)} entries"]


def _merge(target: str, *sources: str) -> Answer:
    caches = [_open(source) for source in sources]

    def change(cache: TimingCache) -> TimingCache:
        for other in caches:
            cache = cache.merged(other)
        return cache

    merged = timing_cache.edit(Path(target), change)
    return {"entries": len(merged.entries)}, [f"{target}: {len(merged.entries)} entries"]


def _diff(a: str, b: str) -> Answer:
    left, right = _open(a).entries, _open(b).entries
    rows: list[dict[str, str | None]] = []
    lines = []
    for key in sorted({*left, *right}):
        before, after = (_label(entries[key]) if key in entries else None for entries in (left, right))
        if before != after:
            workload = describe((left.get(key) or right[key]).asked)
            rows.append({"key": key, "a": before, "b": after, "workload": workload})
            lines.append(f"{key[:12]}  {before or '-'} -> {after or '-'}  {workload}")
    return {"differences": rows}, [*lines, f"{len(rows)} differences"]


def _prune(path: str) -> Answer:
    """Drop entries whose winner no longer exists here, and kernels: a build compiles those that it needs again."""
    from tactics.registry import tactics

    known = {tactic.id for kind in ("cuda", "cpu") for tactic in tactics(kind)} | {ENGINE, STREAM_EVENT}
    before = _open(path)

    def usable(entry: Entry) -> bool:
        winner = _winner(entry)
        return winner is not None and entry.timings[winner].tactic in known

    def change(cache: TimingCache) -> TimingCache:
        return TimingCache({key: entry for key, entry in cache.entries.items() if usable(entry)}, {})

    after = timing_cache.edit(_existing(path), change)
    dropped = len(before.entries) - len(after.entries)
    return (
        {"dropped": dropped, "kernels": len(before.kernels)},
        [f"dropped {dropped} entries and {len(before.kernels)} kernels; {len(after.entries)} entries are left"],
    )


# --- parts -----------------------------------------------------------------------------------------------------------


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"Cannot open file {path}: it does not exist")
    return Path(path)


def _open(path: str) -> TimingCache:
    return timing_cache.load(_existing(path))


def _find(cache: TimingCache, key: str) -> str:
    found = [full for full in cache.entries if full.startswith(key.lower().removeprefix("0x"))]
    if len(found) != 1:
        raise ValueError(f"key {key!r} fits {len(found) or 'no'} entries; trtcli cache list shows all keys")
    return found[0]


def _winner(entry: Entry) -> int | None:
    return next((number for number, timing in enumerate(entry.timings) if timing.seconds is not None), None)


def _label(entry: Entry) -> str:
    winner = _winner(entry)
    return "none" if winner is None else tactic_label(entry.timings[winner].tactic, entry.timings[winner].config)


def _summary(key: str, entry: Entry) -> dict[str, Any]:
    winner = _winner(entry)
    seconds = None if winner is None else entry.timings[winner].seconds
    return {
        "key": key,
        "workload": describe(entry.asked),
        "tactic": _label(entry),
        "ms": None if seconds is None else seconds * 1e3,
        "tried": len(entry.timings),
        "level": entry.level,
    }


def _timing(timing: Timing) -> dict[str, Any]:
    ms = None if timing.seconds is None else timing.seconds * 1e3
    return {"tactic": tactic_label(timing.tactic, timing.config), "ms": ms, "reason": timing.reason}


def _us(ms: float | None) -> str:
    return "-" if ms is None else f"{ms * 1e3:.2f} us"


def describe(asked: Mapping[str, Any]) -> str:
    """``Convolution float32 1x64x56x56, 64x64x3x3 -> 1x64x56x56 on NVIDIA ...`` of what a cache was asked."""
    workload = asked.get("workload", {})
    device = asked.get("device", [])
    try:
        name = workload.get("op", {}).get("is", "?")
        shapes = [", ".join(map(_tensor, workload.get(side, []))) for side in ("inputs", "outputs")]
    except (AttributeError, KeyError, TypeError):  # an entry that was edited by hand, or one of another version
        return "what it answers cannot be read"
    return f"{name} {' -> '.join(shapes)}" + (f" on {device[1]}" if len(device) > 1 else "")


def _tensor(tensor: Mapping[str, Any]) -> str:
    dtype = tensor.get("dtype")
    shape: Sequence[Any] = tensor.get("shape", ())
    return f"{dtype.get('dtype') if isinstance(dtype, Mapping) else dtype} {'x'.join(map(str, shape)) or 'scalar'}"
