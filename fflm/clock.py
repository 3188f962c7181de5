"""A clock for the speed of training, which excludes the time that the calling thread spends compiling kernels; and the date."""

import threading
import time

_thread = threading.local()


def running_time() -> float:
    """Return the time of the calling thread's clock in seconds; only differences between two calls are meaningful."""
    return time.perf_counter() - float(getattr(_thread, "excluded", 0.0))


def local_time() -> str:
    """Return the date and the local time as ISO 8601 has them, with the offset from UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def exclude_time(seconds: float) -> None:
    """Exclude a number of seconds, which have passed, from the calling thread's clock."""
    _thread.excluded = getattr(_thread, "excluded", 0.0) + seconds
