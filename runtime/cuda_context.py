"""The CUDA context of the calling thread: which GPU, or which share of one, memory is allocated on and kernels are launched in.

Every thread has one, and cupy, torch and we all change it. A device of ours therefore sets its own for as long as it works, and then gives the
thread back the one that it found.
"""

from __future__ import annotations

import ctypes
from typing import Any

from runtime import cuda_driver


def current_context() -> int:
    """The CUcontext of the calling thread, 0 when it has none."""
    handle = ctypes.c_void_p(0)
    cuda_driver.check(cuda_driver.library().cuCtxGetCurrent(ctypes.byref(handle)), "asking for the thread's GPU")
    return handle.value or 0


def select_context(handle: int) -> None:
    """Make ``handle`` (a CUcontext) the calling thread's context.

    Raises:
        DeviceError: the driver refuses.
    """
    cuda_driver.check(cuda_driver.library().cuCtxSetCurrent(ctypes.c_void_p(handle)), "selecting the GPU")


class InContext:
    """A ``with`` statement whose body runs in the context ``handle``. Bodies may nest; a body that finds the context in place costs one driver call."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._before = -1  # the context to go back to, -1 for none

    def __enter__(self) -> None:
        before = current_context()
        if before != self._handle:
            select_context(self._handle)
            self._before = before

    def __exit__(self, *_: Any) -> None:
        if self._before >= 0:
            select_context(self._before)
