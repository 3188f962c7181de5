"""Signals that end a program: Ctrl-C, SIGTERM, and SIGHUP when a terminal is closed.

A signal is recorded in addition to raising a KeyboardInterrupt, because exceptions may be lost while a kernel is being compiled,
or in callbacks of C and of the garbage collector. A signal that was ignored when the process started remains ignored: SIGHUP
under `nohup`, or Ctrl-C in the background job of a shell script.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interruption:
    """Records whether a signal was received.

    Attributes
    ----------
    received
        Whether a signal was received.
    deferred
        Whether the first signal is only recorded, because the program checks `received` regularly. A second signal always
        raises a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received = False
        self.deferred = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        at_once = self.received or not self.deferred
        self.received = True
        if at_once:
            raise KeyboardInterrupt


_current: Interruption | None = None


@contextlib.contextmanager
def interruption(signals: Sequence[int] = SIGNALS) -> Iterator[Interruption]:
    """Handle signals inside the block.

    A nested block shares the record of the outer block. Only the main thread receives signals; other threads record none. Python
    prints nothing about a KeyboardInterrupt that is lost in a callback; see `raise_if_interrupted`.
    """
    with _handling(signals) as current:
        try:
            yield current
        except SystemError as error:
            raise_cause(error)


@contextlib.contextmanager
def _handling(signals: Sequence[int]) -> Iterator[Interruption]:
    """Handle signals inside the block."""
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    if _current:
        try:
            yield _current
        finally:
            _current.deferred = False
        return
    _current = Interruption()
    handled = [number for number in signals if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, _current.handle) for number in handled}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else hook(lost)
    try:
        yield _current
    finally:
        _current = None
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_cause(error: SystemError) -> NoReturn:
    """Raise the KeyboardInterrupt that caused an error, or the error itself if it has another cause.

    A compiled function that returns arrays runs a little Python code at its end, where signals are handled that arrived before.
    Numba then reports the exception of the handler as a SystemError.
    """
    cause: BaseException | None = error
    while isinstance(cause, SystemError):
        cause = cause.__cause__
    if isinstance(cause, KeyboardInterrupt):
        raise KeyboardInterrupt from error
    raise error


def raise_if_interrupted() -> None:
    """Raise a KeyboardInterrupt if one was lost: to be called after work whose callbacks lose exceptions, such as LLVM's."""
    if _current and _current.received and not _current.deferred and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def ctrl_c() -> contextlib.AbstractContextManager[Interruption]:
    """Handle Ctrl-C inside a block of a library function, unless the program that calls it does so itself."""
    return interruption([signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else [])
