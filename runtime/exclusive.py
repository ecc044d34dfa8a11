"""Methods that one thread at a time may call on an object: a second thread is refused in words, it neither waits nor corrupts. Within them the
object's device is the thread's, whatever GPU the caller or its other libraries had chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Any, ParamSpec, TypeVar

from runtime.device import Device

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Guarded:
    """Base of objects with :func:`exclusive` methods."""

    def __init__(self, device: Device) -> None:
        self._guard = RLock()
        self.device = device


def exclusive(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """``method`` of a :class:`Guarded` object, which raises RuntimeError when another thread is inside of such a method of the object.

    The object's device is current in the meantime."""

    @wraps(method)
    def guarded(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        owner: Any = arguments[0]
        if not owner._guard.acquire(blocking=False):
            raise RuntimeError(
                f"{type(owner).__name__}.{method.__name__}: another thread is using this context; give every thread a context of its own "
                "(contexts of an engine share its weights), or take turns"
            )
        try:
            with owner.device.current():
                return method(*arguments, **named)
        finally:
            owner._guard.release()

    return guarded
