"""Arrays in a GPU's memory, and how numbers come there, without host and GPU waiting for each other.

A step makes some sixty arrays, slices them, and drops them. numba.cuda's own take the host tens of microseconds each, which
together is longer than a small step; ours know what a kernel is told of them when they are made. To give memory back to the
driver makes the host wait until the GPU has done all its work; to keep it for the next array of about its size is safe, because
what used it and what will use it run one after the other. The host also waits when it copies from ordinary memory, but not from
memory that is pinned: that the system never moves.
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
"""All work is done in the default stream, in its order."""

PINNED = 2**26
"""Bytes on their way through pinned memory at most."""

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
    """Return how many bytes are taken for so many: rounded up to four binary digits, 256 at least."""
    unit = 1 << max(8, size.bit_length() - 4)
    return max(1, -(-size // unit)) * unit


class Memory:
    """Some of a GPU's memory, which goes back to its pool when nothing refers to it."""

    __slots__ = ("_free", "address", "pointer")

    def __init__(self, pointer: Any, free: list[Any]) -> None:
        self.pointer, self.address, self._free = pointer, int(pointer), free

    def __del__(self) -> None:
        self._free.append(self.pointer)


def _driver_memory(size: int) -> Any:
    """Return so much memory from the driver, None if it has too little."""
    try:
        return driver.cuMemAlloc(size)
    except CudaAPIError as error:
        if error.code != binding.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise
        return None


class Pool:
    """The GPU's memory, that which was dropped kept by its size."""

    def __init__(self) -> None:
        self._free: dict[int, list[Any]] = {}  # a list is never replaced, and its methods are atomic

    def take(self, size: int) -> Memory:
        """Return memory of so many bytes, uninitialised.

        Raises
        ------
        MemoryError
            If the GPU has no more, even after the pool was given back.
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
        """Give what was dropped back to the driver."""
        for free in list(self._free.values()):
            with contextlib.suppress(IndexError):  # when all is given back; other threads may take some meanwhile
                while True:
                    driver.cuMemFree(free.pop())


POOL = Pool()


class DeviceArray:
    """A C-contiguous array in a GPU's memory. Slices and reshapes share it.

    Attributes
    ----------
    shape, dtype, size
        As NumPy's.
    kind
        Its dtype and dimensions, by which kernels are compiled.
    words
        What a kernel is told of it, numba.cuda's layout: two words that are not used, numbers, bytes of each, address, shape, and
        strides in bytes.
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
            raise ValueError("a GPU's arrays have slices of consecutive rows alone")
        if (start, stop) == (0, self.shape[0]):
            return self
        row = self.words[-len(self.shape)]
        return DeviceArray((max(0, stop - start), *self.shape[1:]), self.dtype, self._memory, self.address + start * row)

    def clear(self) -> None:
        """Set all numbers to 0, in the order of the GPU's work."""
        use_gpu()
        if self.size:
            driver.cuMemsetD8Async(self.address, 0, self.nbytes, STREAM)

    def reshape(self, *shape: Any) -> "DeviceArray":
        """Return the numbers in another shape, of one or two dimensions; one of them may be -1, as for NumPy."""
        if isinstance(shape[0], tuple):
            (shape,) = shape
        if shape == (-1,):  # asked of every weight at every step
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
    """Copies of arrays to the GPU, in the order of its work, for which the host does not wait.

    They go through pinned memory, which must not be used again before they are done. That the host knows of all copies that were
    asked for before a result that it has seen. Several threads may copy at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[Any]] = defaultdict(list)
        self._sent: list[Any] = []

    def send(self, array: Any, copied: DeviceArray) -> None:
        """Copy a NumPy array to one of the GPU, of the same shape and type, both contiguous."""
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
        with self._lock:  # after the copy was asked for: who sees it in the list may wait for it
            self._sent.append(memory)

    def receive(self, array: DeviceArray) -> Any:
        """Return an array of the GPU as a NumPy array, after all that was asked for so far."""
        use_gpu()
        received = np.empty(array.shape, array.dtype)
        if array.size:
            sent = self._take_sent()
            driver.cuMemcpyDtoH(received.ctypes.data, array.address, array.nbytes)
            self._give_back(sent)
        return received

    def _take_sent(self) -> list[Any]:
        """Return the memory of the copies so far; if its copies are never seen to be done, it is lost, but not used twice."""
        with self._lock:
            sent, self._sent = self._sent, []
        return sent

    def _give_back(self, sent: list[Any]) -> None:
        """Let memory be used again, as all that was asked of the GPU before it was taken has been done."""
        with self._lock:
            for memory in sent:
                self._free[len(memory)].append(memory)
