"""How the kernels of the CPU backend are launched: in several threads, or in the calling thread.

A kernel divides its work into shares (``for t in prange(threads)``), and no two shares write to the same number. Therefore a
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
"""Smallest work that is divided into shares, in numbers to process. Waking threads takes as long as processing some 200,000."""

_AUTOMATIC = ("comprehension", "fusion", "inplace_binop", "numpy", "reduction", "setitem", "stencil")
"""What Numba would also run in parallel. All this is turned off, so that only loops over `prange` run in parallel."""

_launching = threading.Lock()
"""Held while threads work. Not all of Numba's threading layers allow two launches at a time, and one launch uses all cores."""

_threads_unusable = False
"""Whether this process must not use Numba's threads, for example because it was forked from one that had started them."""


KERNELS: "list[Kernel]" = []
"""All kernels that were defined in this process."""


class Kernel:
    """A kernel in two forms: the parallel form runs in Numba's threads, the sequential form in the calling thread.

    The sequential form is used if there is only one share, so that no thread is woken, and in a forked process, which cannot use
    the threads of its parent. Each form is compiled when it is first used. Kernels release the global interpreter lock (GIL).

    Parameters
    ----------
    function
        The kernel in Python. Its last parameter is the number of shares.
    blas
        Whether the kernel calls BLAS, which then must not start threads of its own.
    options
        Options of `numba.njit`.
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
        """Run the form of the kernel that fits the number of shares."""
        shares = arguments[-1]
        if shares == 1 or _threads_unusable:
            self.sequential(*arguments)
            return
        with _launching, limit_threads(shares):
            self.parallel(*arguments)


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Let the calling thread use at most ``count`` of Numba's threads in this context. Entering it starts the threads.

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
    """Return a decorator that makes a `Kernel` of a function; the parameters are those of the class."""
    return lambda function: Kernel(function, blas, options)


def shares_of(work: float, threads: int | None = None) -> int:
    """Return the number of shares to divide work into: one for each thread, or only one if threads are not worth waking.

    Parameters
    ----------
    work
        Number of numbers that a kernel processes.
    threads
        Number of threads. By default `default_threads`, which ignores `numba.set_num_threads`, so that results do not depend on
        that function.
    """
    return 1 if work < WORTH_WAKING else threads or default_threads()


@cache
def default_threads() -> int:
    """Return how many threads kernels use by default: the number of processors that this process may use.

    The environment variable NUMBA_NUM_THREADS overrides this number.
    """
    threads = int(numba.config.NUMBA_NUM_THREADS)
    return threads if "NUMBA_NUM_THREADS" in os.environ else min(threads, usable_processors())


@njit
def share(count, parts, part):
    """Return the bounds (first, last + 1) of share number ``part`` (from 0) if ``count`` items are divided into ``parts``."""
    return part * count // parts, (part + 1) * count // parts


def compute_on_calling_thread() -> None:
    """From now on, compute all shares of kernels on the calling thread: for processes that share the cores with other processes.

    The number of shares does not change, and so the results do not change either.
    """
    global _threads_unusable
    _threads_unusable = True


def _after_fork() -> None:
    """Stop the use of Numba's threads in a forked process if the parent had started them."""
    global _launching, _threads_unusable
    _launching = threading.Lock()  # another thread of the parent may have held the old lock
    try:
        numba.threading_layer()
    except ValueError:  # the threads were never started
        return
    _threads_unusable = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
