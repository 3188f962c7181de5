"""A clock for the speed of training, which excludes the time that the calling thread spends compiling kernels."""

import threading
import time

_thread = threading.local()


def running_time() -> float:
    """Return the time of the calling thread's clock in seconds; only differences between two calls are meaningful."""
    return time.perf_counter() - float(getattr(_thread, "excluded", 0.0))


def exclude_time(seconds: float) -> None:
    """Exclude a number of seconds, which have passed, from the calling thread's clock."""
    _thread.excluded = getattr(_thread, "excluded", 0.0) + seconds
