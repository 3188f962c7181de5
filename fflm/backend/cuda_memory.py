"""The GPU's memory: what is freed is kept for the next array of about its size.

A step makes some thirty arrays and drops them. To give memory back to the driver makes the host wait until the GPU has done all
its work; to keep it is safe, because what used it and what will use it run one after the other.
"""

import weakref
from collections import defaultdict
from typing import Any

from numba.cuda.cudadrv.driver import AutoFreePointer, CudaAPIError, NumbaCUDAMemoryManager, binding, driver


def size_class(size: int) -> int:
    """Return how many bytes are taken for so many: rounded up to four binary digits, 256 at least."""
    unit = 1 << max(8, size.bit_length() - 4)
    return max(1, -(-size // unit)) * unit


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
        for free in self._pool.values():
            while free:
                driver.cuMemFree(free.pop())
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

    def reset(self) -> None:
        """Forget everything, as when the context ends."""
        self._pool.clear()
        super().reset()
