"""Functions on the host that the backends of all devices share."""

import math
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fflm.backend.protocol import ACTIVATIONS, NEGATIVE_SLOPES, ActivationFunction, Array, Backend, Dropout, StepNumbers


class Scratch(threading.local):
    """Scratch memory of a backend: named buffers that are reused from call to call. Each thread has its own buffers.

    Parameters
    ----------
    empty
        The method ``empty`` of the backend, which allocates an array of a given shape and dtype.
    """

    def __init__(self, empty: Callable[[tuple[int, ...], Any], Array]) -> None:
        self._empty = empty
        self._buffers: dict[Hashable, Array] = {}  # one-dimensional
        self._views: dict[Hashable, Array] = {}  # the last view of each buffer, because most calls ask for the same shape again

    @contextmanager
    def replaced(self, buffers: dict[Hashable, Array]) -> Iterator[None]:
        """Use other buffers in the calling thread, within a block: those in ``buffers``, which gets the new ones."""
        before = self._buffers, self._views
        self._buffers, self._views = buffers, {}
        try:
            yield
        finally:
            self._buffers, self._views = before

    @property
    def names(self) -> Collection[Hashable]:
        """The names of the buffers of the calling thread."""
        return self._buffers.keys()

    def drop(self, *names: Hashable) -> None:
        """Free buffers of the calling thread, of those with these names that there are."""
        for name in names:
            self._buffers.pop(name, None)
            self._views.pop(name, None)

    def borrow(
        self, name: Hashable, shape: tuple[int, ...], dtype: Any = np.float32, make: Callable[[int], Array] | None = None
    ) -> Array:
        """Return a view of the buffer with this name. It contains what the last user of the buffer left in it.

        Parameters
        ----------
        name
            Name of the buffer. A buffer that is too small or has another dtype is replaced.
        shape, dtype
            Shape and dtype of the returned view.
        make
            Function that makes a new buffer, (size,), instead of ``empty``; called only when the buffer is replaced.
        """
        view = self._views.get(name)
        if view is not None and view.shape == shape and view.dtype == dtype:
            return view
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            # The old buffer is freed first, because both might not fit into memory.
            buffer = view = self._buffers[name] = self._views[name] = None
            buffer = self._buffers[name] = make(size) if make else self._empty((size,), dtype)
        view = self._views[name] = buffer[:size].reshape(shape)
        return view

    def clear(self) -> None:
        """Free all buffers of the calling thread."""
        self._buffers.clear()
        self._views.clear()


def flat(*arrays: Array) -> list[Array]:
    """Return one-dimensional views of contiguous arrays."""
    return [array.reshape(-1) for array in arrays]


def placed(backend: Backend, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return NumPy arrays and `StepNumbers` on the device."""
    return {
        name: backend.place(each) if isinstance(each, StepNumbers) else backend.upload(each) for name, each in arguments.items()
    }


def activation_code(activation: ActivationFunction) -> tuple[int, float]:
    """Return the index of an activation function in `ACTIVATIONS`, and its slope below 0 (0.0 if it has no such parameter)."""
    name, slope = (activation, None) if isinstance(activation, str) else activation
    return ACTIVATIONS.index(name), NEGATIVE_SLOPES.get(name, 0.0) if slope is None else slope


def low_and_high(number: int) -> tuple[np.uint32, np.uint32]:
    """Return the low and the high 32 bits of an integer of 64 bits."""
    return np.uint32(number & 0xFFFFFFFF), np.uint32(number >> 32 & 0xFFFFFFFF)


def dropout_threshold(dropout: Dropout) -> np.uint32:
    """Return the number below which the random number of an element must be for the element to be dropped."""
    return np.uint32(int(dropout.rate * 2**32))


def adam_corrections(beta1: float, beta2: float, step: int) -> tuple[float, float]:
    """Return the factors that correct the bias of Adam's two moments towards zero at step number ``step``, counted from 1.

    They are 1 / (1 - beta^step) for either beta (Kingma & Ba 2015, section 3).
    """
    return 1 / (1 - beta1**step), 1 / (1 - beta2**step)
