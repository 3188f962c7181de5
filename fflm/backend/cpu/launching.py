"""How the CPU's kernels are launched: in shares, which Numba's threads compute at once or one thread computes in turn.

A kernel cuts its work into one contiguous share for each thread (``for t in prange(threads)``). So no two threads race, and a
result depends on the number of shares, but never on which thread computes a share, or when. The number of shares is the last
argument of each kernel.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numba
from numba import get_num_threads, njit, set_num_threads

from fflm.backend.cpu.blas import ONE_THREAD
from fflm.compiling import compiled
from fflm.errors import FflmError
from fflm.processors import usable_processors

WORTH_WAKING = 2_000_000
"""How many numbers a kernel must process before it is cut into shares: waking threads takes as long as some 200,000 numbers."""

# Loops over `prange` run in parallel, and nothing else that Numba might choose to run in parallel.
_AUTOMATIC = ("comprehension", "fusion", "inplace_binop", "numpy", "reduction", "setitem", "stencil")

_launching = threading.Lock()
"""Held while threads work, because not all of Numba's threading layers allow two launches at a time, and one uses all cores."""

_threads_lost = False
"""Whether this process must not use Numba's threads, for example because it was forked from one that had started them."""


KERNELS: "list[Kernel]" = []
"""All kernels of the process."""


class Kernel:
    """A kernel in two forms: in one Numba's threads compute the shares, in the other the calling thread computes them in turn.

    If there is only one share, no thread is woken. In a forked process, which cannot use the threads of its parent, the calling
    thread computes all shares. Each form is compiled when it is first used. Kernels release the interpreter's lock.

    Parameters
    ----------
    function
        The kernel in Python. Its last parameter is the number of shares.
    blas
        Whether it calls BLAS, which is then kept from starting threads of its own.
    options
        As `numba.njit` takes them.
    """

    def __init__(self, function: Callable[..., None], blas: bool, options: dict[str, Any]) -> None:
        self.sequential = compiled(**options)(function)
        self.parallel = compiled(f"{function.__name__}.parallel", parallel=dict.fromkeys(_AUTOMATIC, False), **options)(function)
        self._blas = blas
        KERNELS.append(self)

    def __call__(self, *arguments: Any) -> None:
        """Run the kernel; the last argument is the number of shares."""
        if self._blas:
            with ONE_THREAD:
                self._launch(arguments)
        else:
            self._launch(arguments)

    def _launch(self, arguments: tuple[Any, ...]) -> None:
        shares = arguments[-1]
        if shares == 1 or _threads_lost:
            self.sequential(*arguments)
            return
        with _launching, limit_threads(shares):
            self.parallel(*arguments)


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Let the calling thread use at most ``count`` of Numba's threads inside the context, which also starts them.

    Raises
    ------
    FflmError
        If Numba cannot start its threads.
    """
    try:
        before = int(get_num_threads())
    except ValueError as error:  # the threading layer that the user has chosen does not exist or is not installed
        raise FflmError(f"Numba cannot start its threads: {error} (see the variable NUMBA_THREADING_LAYER)") from error
    if count >= before:
        yield
        return
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)


def kernel(*, blas: bool = False, **options: Any) -> Callable[[Callable[..., None]], Kernel]:
    """Return a decorator that makes a `Kernel`; helpers that Numba compiles are compiled into it."""
    return lambda function: Kernel(function, blas, options)


def shares_of(work: float, threads: int | None = None) -> int:
    """Return into how many shares to cut some work: one for each thread, or only one if threads would not pay off.

    Parameters
    ----------
    work
        How many numbers a kernel processes.
    threads
        Number of threads. By default `default_threads`, whatever `numba.set_num_threads` has set, so that results do not depend
        on it.
    """
    return 1 if work < WORTH_WAKING else threads or default_threads()


@cache
def default_threads() -> int:
    """Return how many threads kernels use by default: as many as Numba has, but at most the processors of this process.

    The environment variable NUMBA_NUM_THREADS overrides this.
    """
    threads = int(numba.config.NUMBA_NUM_THREADS)
    return threads if "NUMBA_NUM_THREADS" in os.environ else min(threads, usable_processors())


@njit
def share(count, parts, part):
    """Return the bounds of number ``part`` of ``parts`` contiguous shares of ``count`` items."""
    return part * count // parts, (part + 1) * count // parts


def compute_on_calling_thread() -> None:
    """Compute all shares of kernels on the calling thread from now on, in a process beside which others use the other cores.

    The number of shares remains, and so do the results.
    """
    global _threads_lost
    _threads_lost = True


def _after_fork() -> None:
    global _launching, _threads_lost
    _launching = threading.Lock()  # another thread of the parent may have held the old one
    try:
        numba.threading_layer()
    except ValueError:  # the threads were never started
        return
    _threads_lost = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
