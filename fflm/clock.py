"""A clock that stands still while the calling thread waits for the compiler, by which the speed of training is measured."""

import threading
import time

_thread = threading.local()


def running_time() -> float:
    """Return the time of the clock, in seconds; only differences mean something."""
    return time.perf_counter() - float(getattr(_thread, "stopped", 0.0))


def stand_still(seconds: float) -> None:
    """Let the calling thread's clock have stood still for so many seconds."""
    _thread.stopped = getattr(_thread, "stopped", 0.0) + seconds
