"""Environment variables of Numba that fflm cannot work with, checked before Numba is imported."""

import os

from fflm.errors import FflmError

THREADS = 4096
"""The largest number of threads."""


def check_environment() -> None:
    """Raise an FflmError if an environment variable has a value with which Numba fails, or prints a warning of many lines."""
    threads = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not (threads.isascii() and threads.isdecimal() and len(threads) < 9 and 1 <= int(threads) <= THREADS):
        remedy = f"set it to a number of threads from 1 to {THREADS:,}, or unset it"
        raise FflmError(f"the environment variable NUMBA_NUM_THREADS is {threads[:20]!r}: {remedy}")
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        raise FflmError("kernels must be compiled: unset the environment variable NUMBA_DISABLE_JIT")
