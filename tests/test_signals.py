"""Signals that end a program, and exceptions that are lost in callbacks."""

import ctypes
import signal

import pytest

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
