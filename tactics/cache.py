"""The timing cache: what was measured for which workload on which device, in one JSON file that many builds may share.

The file is text: ``{"schema": 1, "entries": {key: entry}, "kernels": {key: cubin}}``. An entry holds the question (``asked``: the
workload, the device, the limits), the answer (``tactic``, ``config``, ``seconds``), everything that was timed, and how deep the search
was (``level``: an entry answers builds at that level and below). Its key is a hash of the question, so files of different devices or
versions merge without conflict. Cubins are kept for winners only (zlib, base64). A write goes to a temporary file that then replaces the old one,
so that readers need no lock; writers hold ``FILE.lock``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusion.files import replacing

SCHEMA = 1
_HEAD = b'{"schema":'  # how every cache file begins, but for blanks
ENGINE, STREAM_EVENT = "engine", "stream-event"  # in place of a tactic: the latency of a whole engine, the cost of an edge between streams
DEEPEST = 5  # the level of a complete search, and of a choice made by hand


class CacheError(ValueError):
    """A file that is no timing cache, or one of another schema; the text names the file and what was found."""


class ForeignFileError(CacheError):
    """A file that never was a timing cache, whole or not, or one that a newer trtcli writes: it belongs to something else and is not replaced."""


@dataclass(frozen=True)
class Timing:
    """One tactic's measurement: seconds, or why there are none. ``fingerprint`` hashes the code that was measured."""

    tactic: str
    config: tuple[tuple[str, int], ...]
    seconds: float | None
    reason: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Entry:
    """The measurements of one workload; ``timings[0]`` is the winner. ``level`` is the builderOptimizationLevel of the search (0 when an
    older version wrote the entry without one)."""

    asked: Mapping[str, Any]
    timings: tuple[Timing, ...]
    level: int = 0

    @property
    def key(self) -> str:
        """A hash of what was asked."""
        return key_of(self.asked)


@dataclass(frozen=True)
class TimingCache:
    """Entries by key and cubins by kernel key. A value: changes make a new one."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    kernels: Mapping[str, bytes] = field(default_factory=dict)

    def find(self, asked: Mapping[str, Any], level: int = 0) -> Entry | None:
        """The entry for exactly this question, when the search behind it was at least as deep as ``level``."""
        entry = self.entries.get(key_of(asked))
        return entry if entry is not None and entry.level >= level else None

    def nearest_difference(self, asked: Mapping[str, Any], level: int = 0) -> str:
        """For a miss: the fields in which the closest entry for the same workload differs, as ``name: cached != asked``."""
        shallow = self.entries.get(key_of(asked))
        if shallow is not None:
            return f"builderOptimizationLevel: {shallow.level} < {level}"
        same = [entry for entry in self.entries.values() if entry.asked.get("workload") == asked.get("workload")]
        if not same:
            return "no entry for this workload"
        differences: list[list[str]] = [
            [f"{name}: {entry.asked.get(name)!r} != {value!r}" for name, value in asked.items() if entry.asked.get(name) != value]
            for entry in same
        ]
        return "; ".join(sorted(differences, key=len)[0])

    def with_entry(self, entry: Entry, kernels: Mapping[str, bytes]) -> TimingCache:
        """This cache with ``entry`` added or replaced."""
        return replace(self, entries={**self.entries, entry.key: entry}, kernels={**self.kernels, **kernels})

    def merged(self, other: TimingCache) -> TimingCache:
        """Both; where both have an entry, the deeper search stays, and this cache's of two equally deep ones."""
        deeper = {key: one for key, one in other.entries.items() if key in self.entries and one.level > self.entries[key].level}
        return TimingCache({**other.entries, **self.entries, **deeper}, {**other.kernels, **self.kernels})


def key_of(asked: Mapping[str, Any]) -> str:
    """32 hex digits that depend on every field of the question."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def load(path: Path) -> TimingCache:
    """The cache in ``path``; an absent file is an empty cache, and so is one of no bytes, as TensorRT has it.

    Raises:
        CacheError: not a timing cache, or another schema; :class:`ForeignFileError` where it never was one.
        OSError: the file cannot be read.
    """
    return _read(path)


def save(path: Path, cache: TimingCache) -> TimingCache:
    """Merge ``cache`` into the file (see :meth:`TimingCache.merged`) and return what is in the file now.

    Raises:
        ForeignFileError: the file is something else; it is left as it was.
        OSError: the file cannot be written; the old one is left as it was.
    """
    with _lock(path):
        try:
            merged = cache.merged(_read(path))
        except ForeignFileError:
            raise
        except CacheError:  # whoever loaded it has been told; a good file replaces it
            merged = cache
        write(path, merged)
        return merged


def edit(path: Path, change: Callable[[TimingCache], TimingCache]) -> TimingCache:
    """Replace what is in the file by ``change`` of it, while no other process reads or writes it; returns the new cache.

    Raises:
        CacheError: the file is no timing cache; it is left as it was, also when ``change`` raises.
        OSError: it cannot be read or written.
    """
    with _lock(path):
        changed = change(_read(path))
        write(path, changed)
        return changed


def write(path: Path, cache: TimingCache) -> None:
    """Replace the file with ``cache`` in one step (takes no lock)."""
    content = {
        "schema": SCHEMA,
        "entries": {
            key: {
                "asked": dict(entry.asked),
                "level": entry.level,
                "timings": [_timing_json(timing) for timing in entry.timings],
            }
            for key, entry in sorted(cache.entries.items())
        },
        "kernels": {
            key: base64.b64encode(zlib.compress(image, 6)).decode() for key, image in sorted(cache.kernels.items())
        },
    }
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def _timing_json(timing: Timing) -> dict[str, Any]:
    return {
        "tactic": timing.tactic,
        "config": dict(timing.config),
        "seconds": timing.seconds,
        **({"reason": timing.reason} if timing.reason else {}),
        **({"fingerprint": timing.fingerprint} if timing.fingerprint else {}),
    }


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    from filelock import FileLock  # late: it costs start-up time

    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        yield
    finally:
        lock.release()


def _entry(value: Mapping[str, Any]) -> Entry:
    timings = tuple(
        Timing(
            str(item["tactic"]),
            tuple(sorted((str(name), int(number)) for name, number in item["config"].items())),
            None if item["seconds"] is None else _seconds(item["seconds"]),
            str(item.get("reason", "")),
            str(item.get("fingerprint", "")),
        )
        for item in value["timings"]
    )
    asked = value["asked"]
    if not isinstance(asked, dict) or not isinstance(asked.get("workload"), dict | str):
        raise ValueError("an entry without a workload")
    return Entry(asked, timings, int(value.get("level", 0)))


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{seconds} seconds")
    return seconds


def _read(path: Path) -> TimingCache:
    if not path.exists():
        return TimingCache()
    data = path.read_bytes()
    if not data.strip():
        return TimingCache()
    begins = b"".join(data[:64].split())[: len(_HEAD)]
    if not _HEAD.startswith(begins):
        raise ForeignFileError(f"{path}: is no timing cache, but another file; give one of its own")
    try:
        content = json.loads(data.decode("utf-8"))
        if isinstance(content, dict) and content.get("schema") == SCHEMA and not {"entries", "kernels"} & content.keys():
            raise ForeignFileError(f"{path}: is no timing cache, but holds {', '.join(list(content)[1:4]) or 'nothing'}; give one of its own")
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            found = content.get("schema") if isinstance(content, dict) else type(content).__name__
            if isinstance(found, int) and found > SCHEMA:
                raise ForeignFileError(f"{path}: schema {found} is of a newer trtcli, this one knows {SCHEMA}; give another file, or update")
            raise CacheError(
                f"{path}: schema {found!r} where {SCHEMA} is expected; delete the file to start a new cache"
            )
        entries = {}
        for value in content["entries"].values():
            entry = _entry(value)
            entries[entry.key] = entry
        kernels = {str(key): zlib.decompress(base64.b64decode(image)) for key, image in content["kernels"].items()}
    except CacheError:
        raise
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise CacheError(
            f"{path}: is cut off or damaged, and no timing cache any more ({type(error).__name__}: {error}); delete it to start a new one"
        ) from None
    return TimingCache(entries, kernels)
