"""Arrays in the memory of a GPU, and copies to and from it, without host and GPU waiting for each other.

A step creates, slices and drops some sixty arrays. An array of numba.cuda takes the host tens of microseconds, which together is
longer than a small step; the arrays of this module compute their launch arguments once, when they are created. If memory were
given back to the driver, the host would have to wait until the GPU has done all its work. It is kept for the next array of about
its size instead; this is safe, because the work on the old array and on the new one is done in order. The host would also have
to wait when it copies from ordinary memory, but not from pinned memory, which the operating system never moves.
"""

import contextlib
import math
import os
import threading
from collections import defaultdict
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError, binding, driver

from fflm.errors import FflmError

STREAM = 0
"""The default stream: all work is done in it, in order."""

PINNED = 2**26
"""Largest number of bytes in pinned memory that are being copied."""

_thread = threading.local()

_used = False
"""Whether this process has used the GPU."""

_lost = False
"""Whether this process was forked from one that had used the GPU: CUDA doesn't work in it."""


def use_gpu() -> None:
    """Let the calling thread use the GPU.

    Raises
    ------
    FflmError
        If this process was forked after the GPU was used.
    """
    global _used
    if not hasattr(_thread, "uses_gpu"):
        if _lost:
            raise FflmError(
                "the GPU cannot be used in a process that was forked after it was used: start workers by multiprocessing's spawn"
            )
        cuda.current_context()
        _thread.uses_gpu = _used = True


def _after_fork() -> None:
    global _thread, _lost
    _thread, _lost = threading.local(), _lost or _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def size_class(size: int) -> int:
    """Return the number of bytes that is allocated for ``size`` bytes: rounded up to four binary digits, at least 256."""
    unit = 1 << max(8, size.bit_length() - 4)
    return max(1, -(-size // unit)) * unit


class Memory:
    """A piece of the memory of a GPU, which goes back to its pool when nothing refers to it."""

    __slots__ = ("_free", "address", "pointer")

    def __init__(self, pointer: Any, free: list[Any]) -> None:
        self.pointer, self.address, self._free = pointer, int(pointer), free

    def __del__(self) -> None:
        self._free.append(self.pointer)


def _driver_memory(size: int) -> Any:
    """Return memory from the driver, or None if it has too little."""
    try:
        return driver.cuMemAlloc(size)
    except CudaAPIError as error:
        if error.code != binding.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise
        return None


class Pool:
    """The memory of the GPU: pieces that were dropped are kept by their size, and used again."""

    def __init__(self) -> None:
        self._free: dict[int, list[Any]] = {}  # a list is never replaced, and its methods are atomic

    def take(self, size: int) -> Memory:
        """Return memory of ``size`` bytes, uninitialized.

        Raises
        ------
        MemoryError
            If the GPU has too little, even after all dropped pieces were given back.
        """
        taken = size_class(size)
        free = self._free.get(taken)
        if free is None:
            free = self._free.setdefault(taken, [])
        try:
            pointer = free.pop()
        except IndexError:
            pointer = self._allocate(taken)
        return Memory(pointer, free)

    def _allocate(self, size: int) -> Any:
        use_gpu()
        pointer = _driver_memory(size)
        if pointer is None:
            self.give_back()
            pointer = _driver_memory(size)
        if pointer is None:
            free, total = driver.cuMemGetInfo()
            raise MemoryError(
                f"of the GPU's {total / 1e9:,.1f} GB {free / 1e9:,.1f} are free, and {size / 1e9:,.1f} are needed; "
                "use a smaller network or vocabulary (batches go in parts, they need not be smaller)"
            )
        return pointer

    def give_back(self) -> None:
        """Give all dropped pieces back to the driver."""
        for free in list(self._free.values()):
            with contextlib.suppress(IndexError):  # raised when none is left; other threads may take some meanwhile
                while True:
                    driver.cuMemFree(free.pop())


POOL = Pool()


class DeviceArray:
    """A C-contiguous array in the memory of a GPU. Slices and reshaped arrays share the memory.

    Attributes
    ----------
    shape, dtype, size
        As NumPy's.
    kind
        Type and number of dimensions; kernels are compiled for each kind.
    words
        The launch arguments, in the layout of numba.cuda: two words that are not used, number of elements, bytes of an element,
        address, shape, and strides in bytes.
    """

    __slots__ = ("_flat", "_memory", "address", "dtype", "kind", "shape", "size", "words")

    def __init__(self, shape: tuple[int, ...], dtype: Any, memory: Memory | None = None, address: int = 0) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.size: int = math.prod(shape)
        each: int = self.dtype.itemsize
        self._memory = memory or POOL.take(self.size * each)
        self._flat: DeviceArray | None = None
        self.address = address or self._memory.address
        self.kind = self.dtype.char, len(shape)
        strides = (each,) if len(shape) == 1 else (shape[1] * each, each)
        self.words = 0, 0, self.size, each, self.address, *shape, *strides

    @property
    def ndim(self) -> int:
        """As NumPy's."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """As NumPy's."""
        return int(self.words[2] * self.words[3])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "DeviceArray":
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("arrays of a GPU can only be sliced into consecutive rows")
        if (start, stop) == (0, self.shape[0]):
            return self
        row = self.words[-len(self.shape)]
        return DeviceArray((max(0, stop - start), *self.shape[1:]), self.dtype, self._memory, self.address + start * row)

    def clear(self) -> None:
        """Set all numbers to 0, in order with the other work of the GPU."""
        use_gpu()
        if self.size:
            driver.cuMemsetD8Async(self.address, 0, self.nbytes, STREAM)

    def reshape(self, *shape: Any) -> "DeviceArray":
        """Return the numbers in another shape, of one or two dimensions; one of them may be -1, as for NumPy."""
        if isinstance(shape[0], tuple):
            (shape,) = shape
        if shape == (-1,):  # every step asks this of every weight
            if len(self.shape) == 1:
                return self
            if self._flat is None:
                self._flat = DeviceArray((self.size,), self.dtype, self._memory, self.address)
            return self._flat
        if -1 in shape:
            known = -math.prod(shape)
            shape = tuple(self.size // known if length == -1 else length for length in shape)
        if math.prod(shape) != self.size:
            raise ValueError(f"an array of shape {self.shape} has none of shape {shape}")
        return self if shape == self.shape else DeviceArray(shape, self.dtype, self._memory, self.address)


class PinnedCopies:
    """Copies of arrays to the GPU, in order with its other work; the host does not wait for them.

    They go through pinned memory, which must not be used again before the copies are done. The host knows that a copy is done
    once it has received a result that was requested later. Several threads may copy at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[Any]] = defaultdict(list)
        self._sent: list[Any] = []

    def send(self, array: Any, copied: DeviceArray) -> None:
        """Copy a NumPy array to an array of the GPU with the same shape and type; both are contiguous."""
        if not array.size:
            return
        use_gpu()
        taken = size_class(array.nbytes)
        if taken > PINNED:
            driver.cuMemcpyHtoD(copied.address, array.ctypes.data, array.nbytes)
            return
        with self._lock:
            full = sum(map(len, self._sent)) + taken > PINNED
        if full:
            sent = self._take_sent()
            driver.cuCtxSynchronize()
            self._give_back(sent)
        with self._lock:
            free = self._free[taken]
            memory = free.pop() if free else None
        if memory is None:
            memory = cuda.pinned_array(taken, np.uint8)
        memory[: array.nbytes] = array.reshape(-1).view(np.uint8)
        driver.cuMemcpyHtoDAsync(copied.address, memory.ctypes.data, array.nbytes, STREAM)
        with self._lock:  # only after the copy was requested, because a thread that finds it in the list may wait for it
            self._sent.append(memory)

    def receive(self, array: DeviceArray) -> Any:
        """Return an array of the GPU as a NumPy array, once all work that was requested so far is done."""
        use_gpu()
        received = np.empty(array.shape, array.dtype)
        if array.size:
            sent = self._take_sent()
            driver.cuMemcpyDtoH(received.ctypes.data, array.address, array.nbytes)
            self._give_back(sent)
        return received

    def _take_sent(self) -> list[Any]:
        """Return the memory of the copies so far; if the caller is interrupted, the memory is lost, but never used too early."""
        with self._lock:
            sent, self._sent = self._sent, []
        return sent

    def _give_back(self, sent: list[Any]) -> None:
        """Let memory be used again, after all work that was requested before it was taken is done."""
        with self._lock:
            for memory in sent:
                self._free[len(memory)].append(memory)
