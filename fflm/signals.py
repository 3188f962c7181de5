"""Signals that end a program: Ctrl-C, SIGTERM, and SIGHUP when a terminal is closed.

Each is recorded as well as raised, as a KeyboardInterrupt: what is raised while a kernel is being compiled, or in a callback of C
or of the garbage collector, may be swallowed there. A signal that was ignored when the process began stays ignored: by `nohup`,
or Ctrl-C by a shell that runs a script's background job.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interruption:
    """Whether a signal has come.

    Attributes
    ----------
    come
        Whether one has.
    patient
        Whether the first one is only noted, for somebody who looks at `come` before long. The second one is raised in any case.
    """

    def __init__(self) -> None:
        self.come = False
        self.patient = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        at_once = self.come or not self.patient
        self.come = True
        if at_once:
            raise KeyboardInterrupt


_current: Interruption | None = None


@contextlib.contextmanager
def interruption(signals: Sequence[int] = SIGNALS) -> Iterator[Interruption]:
    """Handle signals inside the block.

    A block inside another one shares what has come. Only the main thread receives signals: in other threads, nothing comes.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    if _current:
        try:
            yield _current
        finally:
            _current.patient = False
        return
    _current = Interruption()
    handled = [number for number in signals if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, _current.handle) for number in handled}
    try:
        yield _current
    finally:
        _current = None
        for number, handler in before.items():
            signal.signal(number, handler)


def ctrl_c() -> contextlib.AbstractContextManager[Interruption]:
    """Handle Ctrl-C inside a block of a library function, unless the program that calls it does so itself."""
    return interruption([signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else [])
