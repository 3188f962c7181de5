"""Memory of the GPU, and what the host sends there, without waiting for each other.

A step makes some thirty arrays and drops them. To give memory back to the driver makes the host wait until the GPU has done all
its work; to keep it for the next array of about its size is safe, because what used it and what will use it run one after the
other. The host also waits when it copies from ordinary memory, but not from memory that is pinned: that the system never moves.
"""

import weakref
from collections import defaultdict
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.cudadrv.driver import AutoFreePointer, CudaAPIError, NumbaCUDAMemoryManager, binding, driver


def size_class(size: int) -> int:
    """Return how many bytes are taken for so many: rounded up to four binary digits, 256 at least."""
    unit = 1 << max(8, size.bit_length() - 4)
    return max(1, -(-size // unit)) * unit


PINNED = 2**26
"""Bytes on their way through pinned memory at most."""


class PinnedCopies:
    """Copies of arrays to the GPU, in the order of its work, for which the host does not wait.

    They go through pinned memory, which must not be used again before they are done. That the host knows as soon as it has seen a
    result that was asked for later.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Any]] = defaultdict(list)
        self._sent: list[Any] = []

    def send(self, array: Any, copied: Any) -> None:
        """Copy a NumPy array to one of the GPU, of the same shape and type, both contiguous."""
        taken = size_class(array.nbytes)
        if taken > PINNED:
            copied.copy_to_device(array)
            return
        if sum(map(len, self._sent)) + taken > PINNED:
            cuda.synchronize()
            self.done()
        free = self._free[taken]
        memory = free.pop() if free else cuda.pinned_array(taken, np.uint8)
        pinned = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
        pinned[...] = array
        copied.copy_to_device(pinned, stream=cuda.legacy_default_stream())
        self._sent.append(memory)

    def done(self) -> None:
        """Take note that the GPU has done all that was asked of it so far."""
        for memory in self._sent:
            self._free[len(memory)].append(memory)
        self._sent.clear()


class PooledMemory(NumbaCUDAMemoryManager):  # type: ignore[misc]
    """Numba's memory manager, with a pool of freed memory by its size.

    Raises
    ------
    MemoryError
        If the GPU has no more memory, even after the pool was given back.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._pool: dict[int, list[Any]] = defaultdict(list)

    def memalloc(self, size: int) -> Any:
        """Return memory for an array, as `NumbaCUDAMemoryManager` does."""
        taken = size_class(size)
        free, allocations = self._pool[taken], self.allocations
        pointer = free.pop() if free else self._allocate(taken)
        key = int(pointer)

        def finalizer() -> None:
            allocations.pop(key, None)
            free.append(pointer)

        memory = AutoFreePointer(weakref.proxy(self.context), pointer, size, finalizer=finalizer)
        allocations[key] = memory  # it lives until the last array that shares it is gone
        return memory.own()

    def _allocate(self, size: int) -> Any:
        try:
            return driver.cuMemAlloc(size)
        except CudaAPIError as error:
            if error.code != binding.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise
        self.give_back()
        try:
            return driver.cuMemAlloc(size)
        except CudaAPIError as error:
            if error.code != binding.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise
            info = self.get_memory_info()
            raise MemoryError(
                f"of the GPU's {info.total / 1e9:,.1f} GB {info.free / 1e9:,.1f} are free, and {size / 1e9:,.1f} are needed; "
                "use a smaller network or vocabulary (batches go in parts, they need not be smaller)"
            ) from error

    def give_back(self) -> None:
        """Free the pool."""
        for free in self._pool.values():
            while free:
                driver.cuMemFree(free.pop())

    def reset(self) -> None:
        """Forget everything, as when the context ends."""
        self._pool.clear()
        super().reset()
