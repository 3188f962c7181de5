"""A GPU that is played: arrays, launches and memory are real, and the driver below them executes PTX.

What a driver does later, it does later: launches and copies of a stream wait until the host waits for them, and are done in their
order. Memory that is handed out again holds NaN and ends where its array does. Not played: other streams, other GPUs.
"""

import functools
import threading
import weakref
from collections.abc import Callable
from ctypes import c_void_p, memmove, string_at
from types import SimpleNamespace
from typing import Any

import devices
import numpy as np
from cuda.core._kernel_arg_handler import ParamHolder
from numba.cuda import codegen
from numba.cuda.cudadrv import driver as driver_module
from numba.cuda.cudadrv.driver import Context, CudaAPIError, Device, binding, driver
from ptx import Memory, Ptx

from fflm.backend.cuda import launching as cuda_launching
from fflm.backend.cuda import memory as cuda_memory
from fflm.backend.cuda.memory import STREAM, Pool, size_class
from fflm.backend.cuda.memory import Memory as Held

NAME = "Played GPU"


class PlayedGpu:
    """The GPU.

    Parameters
    ----------
    capacity
        Bytes of its memory.

    Attributes
    ----------
    memory
        What is in it, once the host has waited.
    held
        Bytes of each allocation, by its address.
    launched
        The kernels that were launched, in their order.
    linked
        Whether kernels become machine code, too, which is kept on disk with them and of no use here. It takes seconds.
    """

    def __init__(self, capacity: int = 2**30) -> None:
        self.capacity = capacity
        self.memory = Memory()
        self.held: dict[int, int] = {}
        self.launched: list[Ptx] = []
        self.linked = False
        self._pinned: dict[int, np.ndarray] = {}
        self._promised: list[Callable[[], None]] = []
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
            "cuMemcpyHtoDAsync": self.in_context(self._promise_copy_to_device),
            "cuMemcpyDtoH": self.in_context(self._copy_to_host),
            "cuMemsetD8Async": self.in_context(self._promise_bytes),
        }

    @property
    def _contexts(self) -> list[Any]:
        """Those of the present thread."""
        if not hasattr(self._thread, "contexts"):
            self._thread.contexts = []
        return self._thread.contexts

    def in_context(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that fails in a thread without a context, and is done by one thread at a time."""

        @functools.wraps(function)
        def checked(*arguments: Any) -> Any:
            if not self._contexts:
                raise CudaAPIError(binding.CUresult.CUDA_ERROR_INVALID_CONTEXT, "no context")
            with self._lock:
                return function(*arguments)

        return checked

    def promise(self, action: Callable[[], None]) -> None:
        """Let something be done after all that was promised before."""
        self._promised.append(action)

    def wait(self) -> None:
        """Do all that was promised; after an error nothing more."""
        promised, self._promised = self._promised, []
        for action in promised:
            action()

    def launch(self, stream: Any, config: Any, kernel: Ptx, *words: Any) -> None:
        """Stand in for ``cuda.core.launch``, which converts the words in the same way."""
        assert int(stream.handle) == STREAM
        assert len(words) == len(kernel.types)
        self.launched.append(kernel)
        holder = ParamHolder(words)
        pointers = (c_void_p * len(words)).from_address(holder.ptr)
        values = [
            np.frombuffer(string_at(pointer, dtype.itemsize), dtype)[0]
            for pointer, dtype in zip(pointers, kernel.types, strict=True)
        ]
        self.promise(lambda: kernel.run(self.memory, tuple(config.grid), config.block[0], values))

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

    def _promise_copy_to_device(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream == STREAM
        memory = self._pinned[source]  # of other memory the driver would first make a copy
        self.promise(lambda: self.memory.write(target, memory[:size]))

    def _promise_bytes(self, target: int, byte: int, size: int, stream: int) -> None:
        assert stream == STREAM
        self.promise(lambda: self.memory.write(target, np.full(size, byte, np.uint8)))

    def _copy_to_host(self, target: int, source: int, size: int) -> None:
        self.wait()
        data = self.memory.read(source, size)
        memmove(target, data.ctypes.data, size)


class WatchedPool(Pool):
    """Our pool of memory; what it hands out is known to the GPU to the byte."""

    def __init__(self, gpu: PlayedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def take(self, size: int) -> Held:
        """Return memory for an array."""
        held = super().take(size)
        address = held.address
        with self._gpu._lock:
            self._gpu.promise(lambda: self._gpu.memory.lend(address, size, size_class(size)))
        return held


_played: list[PlayedGpu] = []


def play() -> PlayedGpu:
    """Let numba.cuda use a played GPU from now on, the same one each time; whether there is a driver it is not asked about."""
    if devices.device == "cuda":
        raise RuntimeError("with --device cuda a real one is tested")
    if not _played:
        gpu, device = PlayedGpu(), Device.__new__(Device)
        device.id, device.name, device.compute_capability = 0, NAME, (9, 0)
        device.primary_context = Context(weakref.proxy(device), binding.CUcontext(1))
        driver.devices[0] = device
        vars(driver).update(gpu.functions)
        driver_module._logger = driver_module.make_logger()
        cuda_memory.POOL, cuda_launching.launch = WatchedPool(gpu), gpu.in_context(gpu.launch)
        codegen.CUDACodeLibrary.get_cufunc = _function
        _played.append(gpu)
    return _played[0]


def _function(library: codegen.CUDACodeLibrary) -> Any:
    """Stand in for what loads a compiled kernel."""
    if not library._cufunc_cache:
        if _played[0].linked:
            library.get_cubin()
        library._cufunc_cache[0] = SimpleNamespace(kernel=Ptx(library.get_asm_str()), module=SimpleNamespace(initialized=True))
    return library._cufunc_cache[0]
