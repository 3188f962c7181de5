"""A fake CUDA driver, on which fflm's own arrays, launches and pool of memory run without a GPU: it interprets PTX.

Launches and copies of a stream are delayed until the host waits for them, and are then done in order, as a real driver may do it.
Reused memory holds NaN, and ends at the end of its array. Other streams and several GPUs are not supported.
"""

import functools
import threading
import weakref
from collections.abc import Callable
from ctypes import c_void_p, memmove, string_at
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.core._kernel_arg_handler import ParamHolder
from numba.cuda import codegen
from numba.cuda.cudadrv import driver as driver_module
from numba.cuda.cudadrv.driver import Context, CudaAPIError, Device, binding, driver
from ptx_kernel import PtxKernel
from ptx_memory import Memory

from fflm.backend.cuda import launching as cuda_launching
from fflm.backend.cuda import memory as cuda_memory
from fflm.backend.cuda.memory import STREAM, Pool, size_class
from fflm.backend.cuda.memory import Memory as Held

NAME = "Fake GPU"


class FakeGpu:
    """A fake GPU, and the functions of its driver.

    Parameters
    ----------
    capacity
        The size of the memory of the GPU in bytes.

    Attributes
    ----------
    memory
        The memory of the GPU, without the effects of pending launches and copies.
    held
        The size of each allocation in bytes, by its address.
    launched
        The kernels that were launched, in order.
    linked
        Whether kernels are also compiled to machine code, which is cached on disk and not used here. It takes seconds.
    """

    def __init__(self, capacity: int = 2**30) -> None:
        self.capacity = capacity
        self.memory = Memory()
        self.held: dict[int, int] = {}
        self.launched: list[PtxKernel] = []
        self.linked = False
        self._pinned: dict[int, np.ndarray] = {}
        self._pending: list[Callable[[], None]] = []
        self._thread = threading.local()
        self._lock = threading.RLock()
        self.functions: dict[str, Callable[..., Any]] = {
            "cuDeviceGetCount": lambda: 1,
            "cuCtxGetDevice": lambda: 0,
            "cuCtxGetCurrent": lambda: self._contexts[-1] if self._contexts else binding.CUcontext(0),
            "cuCtxPushCurrent": lambda context: self._contexts.append(context),
            "cuCtxPopCurrent": lambda: self._contexts.pop(),
            "cuCtxSynchronize": self.in_context(self.wait),
            "cuMemGetInfo": self.in_context(lambda: (self.capacity - sum(self.held.values()), self.capacity)),
            "cuMemAlloc": self.in_context(self._allocate),
            "cuMemFree": self.in_context(self._free),
            "cuMemHostAlloc": self.in_context(self._allocate_pinned),
            "cuMemFreeHost": self.in_context(self._free_pinned),
            "cuMemcpyHtoD": self.in_context(self._copy_to_device),
            "cuMemcpyHtoDAsync": self.in_context(self._enqueue_copy_to_device),
            "cuMemcpyDtoH": self.in_context(self._copy_to_host),
            "cuMemsetD8Async": self.in_context(self._enqueue_bytes),
        }

    @property
    def _contexts(self) -> list[Any]:
        """The contexts of the calling thread."""
        if not hasattr(self._thread, "contexts"):
            self._thread.contexts = []
        return self._thread.contexts

    def in_context(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that fails in a thread without a context, and is run by one thread at a time."""

        @functools.wraps(function)
        def checked(*arguments: Any) -> Any:
            if not self._contexts:
                raise CudaAPIError(binding.CUresult.CUDA_ERROR_INVALID_CONTEXT, "no context")
            with self._lock:
                return function(*arguments)

        return checked

    def enqueue(self, action: Callable[[], None]) -> None:
        """Add an action to the pending ones, which are done in order when the host waits."""
        self._pending.append(action)

    def wait(self) -> None:
        """Do all pending actions; an error discards those after it."""
        pending, self._pending = self._pending, []
        for action in pending:
            action()

    def launch(self, stream: Any, config: Any, kernel: PtxKernel, *words: Any) -> None:
        """Enqueue a launch; this replaces ``cuda.core.launch``, which converts the words in the same way."""
        assert int(stream.handle) == STREAM
        assert len(words) == len(kernel.types)
        self.launched.append(kernel)
        holder = ParamHolder(words)
        pointers = (c_void_p * len(words)).from_address(holder.ptr)
        values = [
            np.frombuffer(string_at(pointer, dtype.itemsize), dtype)[0]
            for pointer, dtype in zip(pointers, kernel.types, strict=True)
        ]
        self.enqueue(lambda: kernel.run(self.memory, tuple(config.grid), config.block[0], values))

    def _allocate(self, size: int) -> Any:
        if sum(self.held.values()) + size > self.capacity:
            raise CudaAPIError(binding.CUresult.CUDA_ERROR_OUT_OF_MEMORY, "out of memory")
        address = self.memory.take(size)
        self.held[address] = size
        return binding.CUdeviceptr(address)

    def _free(self, pointer: Any) -> None:
        self.wait()
        self.memory.lend(int(pointer), 0, self.held.pop(int(pointer)))

    def _allocate_pinned(self, size: int, flags: int) -> int:
        memory = np.empty(size, np.uint8)
        self._pinned[memory.ctypes.data] = memory
        return memory.ctypes.data

    def _free_pinned(self, pointer: int) -> None:
        self.wait()
        del self._pinned[pointer]

    def _copy_to_device(self, target: int, source: int, size: int) -> None:
        self.wait()
        data = np.empty(size, np.uint8)
        memmove(data.ctypes.data, source, size)
        self.memory.write(target, data)

    def _enqueue_copy_to_device(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream == STREAM
        memory = self._pinned[source]  # the driver copies memory that is not pinned at once
        self.enqueue(lambda: self.memory.write(target, memory[:size]))

    def _enqueue_bytes(self, target: int, byte: int, size: int, stream: int) -> None:
        assert stream == STREAM
        self.enqueue(lambda: self.memory.write(target, np.full(size, byte, np.uint8)))

    def _copy_to_host(self, target: int, source: int, size: int) -> None:
        self.wait()
        data = self.memory.read(source, size)
        memmove(target, data.ctypes.data, size)


class TrackedPool(Pool):
    """The pool of memory of the CUDA backend, which tells the GPU the exact size of each array."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def take(self, size: int) -> Held:
        """Return memory for an array."""
        held = super().take(size)
        address = held.address
        with self._gpu._lock:
            self._gpu.enqueue(lambda: self._gpu.memory.lend(address, size, size_class(size)))
        return held


_installed: list[FakeGpu] = []


def install_fake_driver() -> FakeGpu:
    """Make numba.cuda use a fake driver instead of a real one; return its GPU, which is the same at each call."""
    if not _installed:
        gpu, device = FakeGpu(), Device.__new__(Device)
        device.id, device.name, device.compute_capability = 0, NAME, (9, 0)
        device.primary_context = Context(weakref.proxy(device), binding.CUcontext(1))
        driver.devices[0] = device
        vars(driver).update(gpu.functions)
        driver_module._logger = driver_module.make_logger()
        cuda_memory.POOL, cuda_launching.launch = TrackedPool(gpu), gpu.in_context(gpu.launch)
        codegen.CUDACodeLibrary.get_cufunc = _load
        _installed.append(gpu)
    return _installed[0]


def _load(library: codegen.CUDACodeLibrary) -> Any:
    """Return a kernel for the interpreter; this replaces the method that loads a compiled kernel."""
    if not library._cufunc_cache:
        if _installed[0].linked:
            library.get_cubin()
        kernel = PtxKernel(library.get_asm_str())
        library._cufunc_cache[0] = SimpleNamespace(kernel=kernel, module=SimpleNamespace(initialized=True))
    return library._cufunc_cache[0]
