"""Arrays in the memory of a GPU, and copies to and from it that do not make the host and the GPU wait for each other.

A training step creates, slices and drops some sixty arrays. It would take numba.cuda tens of microseconds to create each of its
arrays, which is longer than a small step altogether. The arrays of this module are cheaper; they compute their launch arguments
once, when they are created.

Freeing memory through the driver would make the host wait until the GPU has done all its work. Therefore the memory of a dropped
array is kept for the next array of about the same size. This is safe, because all work is done in one stream, and the GPU does
the work on the old array before the work on the new one. The host would also have to wait if it copied from ordinary memory, but
not if it copies from pinned memory, which the operating system never moves.
"""

import contextlib
import math
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError, binding, driver

from fflm.errors import FflmError

PINNED = 2**26
"""Maximum number of bytes of pinned memory from which copies may be in progress."""

_thread = threading.local()

_lock = threading.Lock()

_own_stream = 0
"""The stream of this process; 0 before it has used the GPU."""

_number = 0
"""The number of the GPU of this process."""

_unusable = False
"""Whether this process was forked from one that had used the GPU. CUDA does not work in such a process."""


def use_gpu() -> int:
    """Prepare the calling thread for the use of the GPU, if it has not used it yet; return the stream of its work.

    All threads of a process use one stream, in which the GPU does the work in the order of the requests. It is not the default
    stream, which cannot be recorded, and whose work would wait for that of other streams.

    Raises
    ------
    FflmError
        If this process was forked after the GPU was used.
    """
    global _own_stream
    if not hasattr(_thread, "stream"):
        if _unusable:
            raise FflmError(
                "the GPU cannot be used in a process that was forked after it was used: start workers by multiprocessing's spawn"
            )
        with _lock:
            cuda.current_context(_number)
            _own_stream = _own_stream or int(driver.cuStreamCreate(binding.CUstream_flags.CU_STREAM_NON_BLOCKING.value))
        _thread.stream = _own_stream
    return int(_thread.stream)


def choose_gpu(number: int) -> None:
    """Let this process use the GPU with a number, among those that it sees. By default it uses the first one, number 0.

    Raises
    ------
    FflmError
        If there is no such GPU, or this process uses another one.
    """
    global _number
    count = len(cuda.gpus)
    if number >= count:
        seen = "one GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        raise FflmError(f"there is no GPU cuda:{number}: this process sees {seen}")
    with _lock:
        if _own_stream and number != _number:
            raise FflmError(f"this process uses the GPU cuda:{_number}: use cuda:{number} in another process")
        _number = number


def gpu() -> Any:
    """Return the GPU of this process, as numba.cuda describes it."""
    return cuda.gpus[_number]


@contextlib.contextmanager
def work_in(stream: int) -> Iterator[None]:
    """Send the work of the calling thread to another stream within a block."""
    own = use_gpu()
    _thread.stream = stream
    try:
        yield
    finally:
        _thread.stream = own


def _after_fork() -> None:
    """Note in a forked process whether it can use the GPU."""
    global _lock, _thread, _unusable
    _lock, _thread, _unusable = threading.Lock(), threading.local(), _unusable or bool(_own_stream)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def memory_size() -> int:
    """Return the size of the GPU's memory in bytes."""
    use_gpu()
    return int(driver.cuMemGetInfo()[1])


def size_class(size: int) -> int:
    """Return the number of bytes to allocate for ``size`` bytes: rounded up to four significant binary digits, at least 256."""
    unit = 1 << max(8, size.bit_length() - 4)
    return max(1, -(-size // unit)) * unit


class Memory:
    """A block of memory on the GPU, which returns to its pool when nothing refers to it any more.

    Parameters
    ----------
    pointer
        The driver's pointer to the memory.
    free
        The pool's list of free blocks of this size.
    """

    __slots__ = ("_free", "address", "pointer")

    def __init__(self, pointer: Any, free: list[Any]) -> None:
        self.pointer, self.address, self._free = pointer, int(pointer), free

    def __del__(self) -> None:
        self._free.append(self.pointer)


def _driver_memory(size: int) -> Any:
    """Allocate ``size`` bytes through the driver; return None if there is too little memory."""
    try:
        return driver.cuMemAlloc(size)
    except CudaAPIError as error:
        if error.code != binding.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise
        return None


class Reserve:
    """Memory of a pool for some work only: what that work has freed is not used by other work.

    Attributes
    ----------
    free
        The free blocks by size, as for `Pool`.
    taken
        The number of blocks that were taken from the pool.
    lost
        Whether free blocks were given back to the driver, because there was too little memory.
    """

    def __init__(self) -> None:
        self.free: dict[int, list[Any]] = {}
        self.taken, self.lost = 0, False

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Let arrays that the calling thread creates within a block use this memory."""
        _thread.reserve = self
        try:
            yield
        finally:
            _thread.reserve = None


class Pool:
    """A pool of memory on the GPU: blocks that are not used any more are kept by their size, and reused."""

    def __init__(self) -> None:
        # The free blocks by size. Threads share the lists without a lock: they are never replaced, and their methods are atomic.
        self._free: dict[int, list[Any]] = {}

    def take(self, size: int) -> Memory:
        """Return uninitialized memory of at least ``size`` bytes.

        Raises
        ------
        MemoryError
            If the GPU has too little memory, even after all free blocks have been given back to the driver.
        """
        allocated = size_class(size)
        common = self._free.get(allocated)
        if common is None:
            common = self._free.setdefault(allocated, [])
        reserve: Reserve | None = getattr(_thread, "reserve", None)
        free = reserve.free.setdefault(allocated, []) if reserve else common
        if reserve and not free:
            reserve.taken += 1
            with contextlib.suppress(IndexError):  # the pool has none either
                return Memory(common.pop(), free)
        try:
            pointer = free.pop()
        except IndexError:
            pointer = self._allocate(allocated, reserve)
        return Memory(pointer, free)

    def _allocate(self, size: int, reserve: Reserve | None) -> Any:
        """Allocate memory through the driver; if it has too little, give all free blocks back and try again."""
        use_gpu()
        pointer = _driver_memory(size)
        if pointer is None:
            self.give_back()
            if reserve:
                reserve.lost = True
                _give_back(reserve.free)
            pointer = _driver_memory(size)
        if pointer is None:
            free, total = driver.cuMemGetInfo()
            raise MemoryError(
                f"of the GPU's {total / 1e9:,.1f} GB {free / 1e9:,.1f} are free, and {size / 1e9:,.1f} are needed; "
                "use a smaller network or vocabulary (batches go in parts, they need not be smaller)"
            )
        return pointer

    def give_back(self) -> None:
        """Give all free blocks back to the driver."""
        _give_back(self._free)

    def take_over(self, reserve: Reserve) -> None:
        """Take the free blocks of a reserve, which is not used any more."""
        for size, blocks in reserve.free.items():
            self._free.setdefault(size, []).extend(blocks)


def _give_back(lists: dict[int, list[Any]]) -> None:
    """Give free blocks back to the driver."""
    for free in list(lists.values()):
        with contextlib.suppress(IndexError):  # the list is empty; other threads may also have taken blocks from it
            while True:
                driver.cuMemFree(free.pop())


POOL = Pool()


class DeviceArray:
    """A C-contiguous array of one or two dimensions in the memory of a GPU. Slices and reshaped arrays share the memory.

    Parameters
    ----------
    shape, dtype
        As for ``numpy.empty``. The array is uninitialized.
    memory, address
        For an array that shares memory with another one: this memory, and the address where the array begins.

    Attributes
    ----------
    shape, dtype, size
        As for NumPy's arrays.
    kind
        The type code of the dtype and the number of dimensions. A kernel is compiled for each combination of kinds.
    words
        The arguments of a launch that stand for the array, in the layout of numba.cuda: two unused words, the number of elements,
        the bytes of an element, the address, the shape, and the strides in bytes.
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
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all elements."""
        return int(self.words[2] * self.words[3])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The description by which other libraries share the memory, such as NCCL, CuPy and PyTorch.

        They wait for the work in the stream that it names. Source: the CUDA Array Interface, version 3 (Numba's documentation).
        """
        data, stream = (self.address if self.size else 0, False), use_gpu()
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "strides": None, "version": 3, "stream": stream}

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

    def part(self, begin: int, shape: tuple[int, ...], dtype: Any) -> "DeviceArray":
        """Return a part of the memory, from byte number ``begin`` on, as an array of any shape and dtype."""
        return DeviceArray(shape, dtype, self._memory, self.address + begin)

    def clear(self) -> None:
        """Set all elements to 0, after the work that was requested before."""
        stream = use_gpu()
        if self.size:
            driver.cuMemsetD8Async(self.address, 0, self.nbytes, stream)

    def reshape(self, *shape: Any) -> "DeviceArray":
        """Return an array of one or two dimensions with the same elements; one length may be -1, as for NumPy's reshape.

        Raises
        ------
        ValueError
            If the new shape has another number of elements.
        """
        if isinstance(shape[0], tuple):
            (shape,) = shape
        if shape == (-1,):  # the flattened array is kept, because every training step needs that of every weight
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
    """Copies of arrays to the GPU, for which the host does not wait, and from the GPU.

    Copies to the GPU are made from pinned memory, which must not be reused before the copy is done. The host knows that a copy
    is done when it has received a result that was requested later. Several threads may copy at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[Any]] = defaultdict(list)  # free blocks of pinned memory, by size
        self._sent: list[Any] = []  # blocks from which copies may still be in progress
        self._reserved = 0  # bytes of the blocks in `_sent`, and of those that threads are about to put there

    def send(self, array: Any, copied: DeviceArray) -> None:
        """Copy a contiguous NumPy array to an array of the GPU with the same shape and dtype.

        The host does not wait, unless the array is larger than `PINNED`, or too many copies are in progress.
        """
        if not array.size:
            return
        stream, allocated = use_gpu(), size_class(array.nbytes)
        if stream != _own_stream:  # the copy would be repeated from memory that has other content by then
            raise RuntimeError("work that is recorded must not send arrays to the GPU")
        if not self._reserve(allocated):
            driver.cuMemcpyHtoDAsync(copied.address, array.ctypes.data, array.nbytes, stream)
            self._wait()
            return
        try:
            with self._lock:
                free = self._free[allocated]
                memory = free.pop() if free else None
            if memory is None:
                memory = cuda.pinned_array(allocated, np.uint8)
            memory[: array.nbytes] = array.reshape(-1).view(np.uint8)
            driver.cuMemcpyHtoDAsync(copied.address, memory.ctypes.data, array.nbytes, stream)
        except BaseException:
            self._release(allocated)
            raise
        with self._lock:  # only after the copy was requested, because a thread that finds it in the list may wait for it
            self._sent.append(memory)

    def _reserve(self, size: int) -> bool:
        """Count ``size`` more bytes as being copied, unless that would exceed `PINNED`; return whether they are counted.

        If they would, the host first waits for the copies so far. They may still exceed `PINNED` if other threads copy.
        """
        if size > PINNED:
            return False
        for full in (False, True):
            if full:
                self._wait()
            with self._lock:
                if self._reserved + size <= PINNED:
                    self._reserved += size
                    return True
        return False

    def receive(self, array: DeviceArray) -> Any:
        """Wait until the GPU has done all work that was requested so far, and return an array as a NumPy array."""
        stream, received = use_gpu(), np.empty(array.shape, array.dtype)
        if array.size:
            driver.cuMemcpyDtoHAsync(received.ctypes.data, array.address, array.nbytes, stream)
            self._wait()
        return received

    def _wait(self) -> None:
        """Wait for all work that was requested so far; the pinned memory of the copies among it can then be reused."""
        sent = self._take_sent()
        try:
            driver.cuStreamSynchronize(use_gpu())
        except BaseException:
            self._release(sum(map(len, sent)))
            raise
        self._give_back(sent)

    def _release(self, size: int) -> None:
        """Count ``size`` bytes as not being copied any more."""
        with self._lock:
            self._reserved -= size

    def _take_sent(self) -> list[Any]:
        """Remove and return the pinned memory of the copies so far, which the caller gives back once they are done.

        If the caller is interrupted in between, this memory is lost, but it is never reused too early.
        """
        with self._lock:
            sent, self._sent = self._sent, []
        return sent

    def _give_back(self, sent: list[Any]) -> None:
        """Allow pinned memory to be reused. All copies from it must be done."""
        self._release(sum(map(len, sent)))
        with self._lock:
            for memory in sent:
                self._free[len(memory)].append(memory)
