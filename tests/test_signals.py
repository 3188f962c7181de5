"""Signals that end a program, and exceptions that are lost in callbacks."""

import contextlib
import ctypes
import signal
import threading
import time

import pytest
from tiny import tiny_model

from fflm.signals import interruption, raise_if_interrupted


def interrupt_in_callback():
    """Receive Ctrl-C in a callback of C, which cannot pass on an exception, as while LLVM compiles."""
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()


def test_interruption_that_a_callback_loses_is_raised_later_and_prints_nothing(capfd):
    with interruption([signal.SIGINT]) as interrupted:
        raise_if_interrupted()
        interrupt_in_callback()
        assert interrupted.received
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    raise_if_interrupted()
    assert capfd.readouterr().err == ""


def test_deferred_interruption_is_not_raised():
    with interruption([signal.SIGINT]) as interrupted:
        interrupted.deferred = True
        signal.raise_signal(signal.SIGINT)
        raise_if_interrupted()
    assert interrupted.received


def interrupted_while_scoring(model, lines):
    """Encode lines by a kernel that returns arrays, again and again, until Ctrl-C; return whether it was raised.

    It is lost if it comes while msgspec computes the hash of an annotation. However busy the machine is, it comes inside the
    block that catches it.
    """
    timer = threading.Timer(0.005, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        while timer.is_alive():
            model.scores(lines)
        time.sleep(0.01)  # the main thread handles the signal
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize("context", [interruption, contextlib.nullcontext], ids=["in a command", "in Python"])
def test_interruption_of_compiled_function_is_a_keyboard_interrupt(context):
    model, lines = tiny_model(), ["the cat sat on"] * 2000
    model.scores(lines)
    with context():
        assert sum(interrupted_while_scoring(model, lines) for _ in range(20)) > 10


def test_other_system_errors_are_raised_as_they_are():
    with pytest.raises(SystemError, match="another"), interruption():
        raise SystemError("another")
