"""Packing weights once for all candidates of a search: the last result of a function of arrays, remembered by their identity."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

Result = TypeVar("Result")


class LastResult(Generic[Result]):
    """``function(arrays, *others)`` that is not computed again while it is asked for the same arrays (objects, which nobody changes) and equal
    ``others``. It keeps one result and no argument alive."""

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function = function
        self._key: tuple[Any, ...] = ()
        self._arrays: tuple[weakref.ref[np.ndarray], ...] = ()
        self._result: Result | None = None

    def __call__(self, arrays: tuple[np.ndarray, ...], *others: Any) -> Result:
        held = tuple(one() for one in self._arrays)
        same = len(held) == len(arrays) and all(a is b for a, b in zip(held, arrays, strict=True))
        if self._result is None or not same or self._key != others:
            self._result = self._function(arrays, *others)
            self._key, self._arrays = others, tuple(map(weakref.ref, arrays))
        return self._result
