"""Kernels compiled in parallel, ahead of their timing: each distinct one once, in a pool of threads."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from tactics.compiler import compile_cubin
from tactics.tactic import Kernel, Launch, Plan


def kernels_of(plan: Plan) -> tuple[Kernel, ...]:
    """The distinct kernels of a plan."""
    return tuple(dict.fromkeys(step.kernel for step in plan.steps if isinstance(step, Launch)))


class Compilers:
    """Compiles kernels in parallel, each distinct one once; NVRTC releases the GIL."""

    def __init__(self, arch: str, threads: int, known: Mapping[str, bytes]) -> None:
        self._arch = arch
        self._pool = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="nvrtc")
        self._images: dict[str, Future[bytes]] = {}
        for key, image in known.items():
            self._images[key] = Future()
            self._images[key].set_result(image)

    def submit(self, plan: Plan) -> dict[str, Future[bytes]]:
        """The cubins of a plan by kernel key, being compiled."""
        found = {}
        for kernel in kernels_of(plan):
            key = kernel.key(self._arch)
            if key not in self._images:
                self._images[key] = self._pool.submit(self._compile, kernel)
            found[key] = self._images[key]
        return found

    def images(self, plan: Plan) -> dict[str, bytes]:
        """The cubins of a plan by kernel key.

        Raises:
            CompileError: a kernel does not compile.
        """
        return {key: future.result() for key, future in self.submit(plan).items()}

    def close(self) -> None:
        """Drop what has not been started; wait for what has."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _compile(self, kernel: Kernel) -> bytes:
        return compile_cubin(kernel.source(), kernel.defines, self._arch, kernel.file or "generated.cu").image
