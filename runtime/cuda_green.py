"""A share of a GPU: a green context over some of its streaming multiprocessors (``--limitSMs``).

A green context has the address space of the device's primary context; kernels in streams that are created while it is current run on its
multiprocessors only. Hopper hands them out in groups of 8, so that a share may come out larger than what was asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from runtime import cuda_driver
from runtime.device import DeviceError


@dataclass(frozen=True)
class GreenContext:
    """A context of ``multiprocessors`` of the GPU's ``total``; ``handle`` is its CUcontext."""

    handle: int
    multiprocessors: int
    total: int
    keep: object = field(default=None, repr=False, compare=False)


def wanted_multiprocessors(text: str, total: int) -> int:
    """How many multiprocessors of ``total`` the text (``64``, ``50%``) of ``--limitSMs`` means.

    Raises:
        DeviceError: none, or more than there are.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    count = 0 if match is None else round(total * float(match[1]) / 100) if match[2] else int(float(match[1]))
    if not 1 <= count <= total:
        raise DeviceError(f"--limitSMs={text}: the GPU has {total} SMs, give 1 to {total}, or 1% to 100%")
    return count


def green_context(device: int, text: str) -> GreenContext:
    """A green context over so many multiprocessors of GPU ``device`` as ``text`` says; its primary context must be active.

    Raises:
        DeviceError: a bad count, or a driver or cuda-python that has no green contexts (12.4 and newer have).
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError(f"--limitSMs needs cuda-python, which does not import ({error}): pip install 'trtcli[gpu]'") from error
    try:
        whole = _call(driver.cuDeviceGetDevResource, device, driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM)
        total = int(whole.sm.smCount)
        groups, count, _ = _call(driver.cuDevSmResourceSplitByCount, 1, whole, 0, wanted_multiprocessors(text, total))
        if not count:
            raise DeviceError(f"--limitSMs={text}: the driver cannot split the {total} SMs so")
        described = _call(driver.cuDevResourceGenerateDesc, [groups[0]], 1)
        flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        green = _call(driver.cuGreenCtxCreate, described, device, int(flags))
        context = _call(driver.cuCtxFromGreenCtx, green)
    except AttributeError as error:
        raise DeviceError(f"--limitSMs needs green contexts, which this cuda-python does not know ({error}): upgrade it") from error
    return GreenContext(int(context), int(groups[0].sm.smCount), total, (green, groups))


def _call(function: Any, *arguments: Any) -> Any:
    """What a driver function of cuda-python returns beside its error code.

    Raises:
        DeviceError: the code is an error.
    """
    code, *found = function(*arguments)
    cuda_driver.check(int(code), f"--limitSMs: {function.__name__}")
    return found[0] if len(found) == 1 else found
