"""The timing cache of one build: read once, asked and added to by every step, saved after each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tactics import cache as timing_cache
from tactics.cache import CacheError, Entry, ForeignFileError, TimingCache
from trtcli.config import BuildConfig

if TYPE_CHECKING:
    from trtcli.builder.setting import Log


class BuildTimings:
    """What is known and what this build has measured. With ``--noBuilderCache`` nothing is looked up and nothing kept; a search without
    timings (level 0) asks nothing and has nothing to keep.

    Attributes:
        cache: all that is known now.
        hits: the keys of entries that the file had and a layer was decided by.
        misses: workloads that were searched.
        untimed: those of them that ``--buildBudget`` left no time for.
    """

    def __init__(self, config: BuildConfig, log: Log) -> None:
        self._config, self._log = config, log
        self._file = Path(config.timing_cache_file) if config.timing_cache_file and config.builder_cache else None
        self.cache = self._load()
        self._saved = self.cache
        self._given = set(self.cache.entries)
        self.hits: set[str] = set()
        self.misses = 0
        self.untimed = 0

    def find(self, asked: Mapping[str, Any], level: int) -> Entry | None:
        """See :meth:`tactics.cache.TimingCache.find`."""
        return self.cache.find(asked, level) if self._config.builder_cache and level else None

    def add(self, entry: Entry, kernels: Mapping[str, bytes]) -> None:
        """Keep what was measured."""
        if self._config.builder_cache and entry.level:
            self.cache = self.cache.with_entry(entry, kernels)
            self._given.discard(entry.key)

    def hit(self, entry: Entry) -> bool:
        """Whether a layer that is decided by ``entry`` was timed by another build: then it is a hit."""
        given = entry.key in self._given
        if given:
            self.hits.add(entry.key)
        return given

    def save(self) -> None:
        """Merge what is new into the file."""
        if self._file is None or self.cache is self._saved:
            return
        try:
            saved = timing_cache.save(self._file, self.cache if self._config.compilation_cache else replace(self.cache, kernels={}))
        except OSError as error:
            self._log.warning(f"--timingCacheFile={self._file}: cannot write it ({error.strerror or error}); the timings of this build are not kept")
            self._file = None
            return
        self._saved = self.cache
        self._log.verbose(f"Saved timing cache {self._file}: {len(saved.entries)} entries")

    @property
    def summary(self) -> str:
        """``Timing cache: 12 hits, 3 misses (file)``"""
        where = self._config.timing_cache_file or "this build only; --timingCacheFile=FILE keeps them for the next one"
        return f"Timing cache: {len(self.hits)} hits, {self.misses} misses ({where})"

    def _load(self) -> TimingCache:
        if self._file is None:
            return TimingCache()
        if not self._file.exists():
            self._log.info(f"Timing cache {self._file} does not exist yet; it will be made")
            return TimingCache()
        try:
            found = timing_cache.load(self._file)
        except ForeignFileError as error:
            self._log.warning(f"--timingCacheFile={error}. Building without it; the file is left as it is, and nothing is kept")
            self._file = None
            return TimingCache()
        except CacheError as error:
            self._log.warning(f"{error}. Building without it; the build's own timings will replace it")
            return TimingCache()
        self._log.info(f"Loaded timing cache {self._file}: {len(found.entries)} entries, {len(found.kernels)} kernels")
        return found
