"""The signals that end a command: Ctrl-C, SIGTERM, and SIGHUP when a terminal is closed.

Each is noted as well as raised, as a KeyboardInterrupt: what is raised while a kernel is being compiled, or in a callback of C or
of the garbage collector, may be swallowed there. A signal that was ignored when the process began stays ignored: by `nohup`, or
Ctrl-C by a shell that runs a script's background job.
"""

import contextlib
import signal
from collections.abc import Iterator
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
def interruption() -> Iterator[Interruption]:
    """Handle the signals inside the block; a block inside another one shares what has come."""
    global _current
    if _current:
        try:
            yield _current
        finally:
            _current.patient = False
        return
    _current = Interruption()
    handled = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, _current.handle) for number in handled}
    try:
        yield _current
    finally:
        _current = None
        for number, handler in before.items():
            signal.signal(number, handler)
