"""Functions on the host that the backends of all devices share."""

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fflm.backend.protocol import ACTIVATIONS, NEGATIVE_SLOPES, ActivationFunction, Array, Dropout


class Scratch(threading.local):
    """Named buffers that a backend reuses from call to call; each thread has its own.

    Parameters
    ----------
    empty
        The method ``empty`` of the backend, which allocates an array of a shape and a dtype.
    """

    def __init__(self, empty: Callable[[tuple[int, ...], Any], Array]) -> None:
        self._empty = empty
        self._held: dict[str, Array] = {}
        self._lent: dict[str, Array] = {}  # the latest view of each buffer, because the next call mostly has the same shape

    def borrow(
        self, name: str, shape: tuple[int, ...], dtype: Any = np.float32, make: Callable[[int], Array] | None = None
    ) -> Array:
        """Return the buffer of a name with its old content; one that is too small is replaced, by ``make(size)`` if given."""
        lent = self._lent.get(name)
        if lent is not None and lent.shape == shape and lent.dtype == dtype:
            return lent
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.size < size or held.dtype != dtype:
            # The old buffer is freed first, because both might not fit into memory.
            held = lent = self._held[name] = self._lent[name] = None
            held = self._held[name] = make(size) if make else self._empty((size,), dtype)
        lent = self._lent[name] = held[:size].reshape(shape)
        return lent

    def clear(self) -> None:
        """Free all buffers of the calling thread."""
        self._held.clear()
        self._lent.clear()


def flat(*arrays: Array) -> list[Array]:
    """Return contiguous arrays in one dimension."""
    return [array.reshape(-1) for array in arrays]


def activation_code(activation: ActivationFunction) -> tuple[int, float]:
    """Return the index of an activation in `ACTIVATIONS`, and its slope below 0; 0 if the activation has no such parameter."""
    name, slope = (activation, None) if isinstance(activation, str) else activation
    return ACTIVATIONS.index(name), NEGATIVE_SLOPES.get(name, 0.0) if slope is None else slope


def dropout_words(dropout: Dropout) -> list[np.uint32]:
    """Return the threshold below which a random word drops an element, the layer, and low and high word of step and seed."""
    numbers = [int(dropout.rate * 2**32), dropout.layer, dropout.step, dropout.step >> 32, dropout.seed, dropout.seed >> 32]
    return [np.uint32(number & 0xFFFFFFFF) for number in numbers]


def adam_corrections(beta1: float, beta2: float, step: int) -> tuple[float, float]:
    """Return the factors that undo the bias of Adam's moments towards zero at a step (Kingma & Ba 2015, section 3)."""
    return 1 / (1 - beta1**step), 1 / (1 - beta2**step)
