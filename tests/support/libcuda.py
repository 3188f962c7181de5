"""A fake CUDA driver, on which cuda.bindings, cuda.core and numba-cuda run without a GPU. It interprets the PTX of kernels.

Its library, `libcuda.c`, is loaded in place of the real one. The methods of `FakeDriver` are the functions of the driver's API
(CUDA 13) that have an effect: contexts of threads, memory, pinned memory, modules, launches, streams, events and graphs.

Launches and copies are delayed until the host waits for them, and are then done in the order of the requests, as a real driver
may do it; streams are not compared. Reused memory holds NaN, and ends at the end of its array. Modules are PTX, not machine code.
"""

import functools
import inspect
import itertools
import subprocess
import threading
import traceback
from collections.abc import Callable
from ctypes import (
    CDLL,
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_ulonglong,
    c_void_p,
    cast,
    memmove,
    string_at,
)
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ptx_interpreter import PtxError
from ptx_kernel import PtxKernel
from ptx_memory import Memory

INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, INVALID_CONTEXT, NOT_FOUND = 1, 2, 100, 201, 500
NOT_READY, ILLEGAL_ADDRESS, CAPTURE_UNSUPPORTED, UNKNOWN = 600, 700, 900, 999
"""Errors, ``CUresult``."""

CONTEXT = 0x1000
"""The handle of the only context."""

SHARED = 48 * 1024
"""Bytes of dynamic shared memory that a kernel may have without asking for more."""

Handle = c_size_t  # unlike c_void_p, an int even if it is 0
Handles, Numbers = POINTER(Handle), POINTER(c_int)


class LaunchConfig(Structure):
    """``CUlaunchConfig``."""

    _fields_ = (
        *((name, c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_bytes")),
        *(("stream", c_void_p), ("attributes", c_void_p), ("attribute_count", c_uint)),
    )


class InstantiateParameters(Structure):
    """``CUDA_GRAPH_INSTANTIATE_PARAMS``."""

    _fields_ = (("flags", c_ulonglong), ("stream", c_void_p), ("failed", c_void_p), ("result", c_int))


class DriverError(Exception):
    """An error that a function of the driver returns as a number."""


class FakeDriver:
    """The functions of a fake CUDA driver, and its GPU.

    A method whose name begins with ``cu`` is the function of that name. The annotations of its arguments are their types in C.
    One thread at a time runs a function.

    Attributes
    ----------
    present
        Whether there is a GPU.
    lock
        The lock of the thread that runs a function.
    capacity
        The size of the memory of the GPU in bytes.
    memory
        The memory of the GPU, without the effects of pending launches and copies.
    held
        The size of each allocation in bytes, by its address.
    launched
        The kernels that were launched, in order.
    """

    def __init__(self) -> None:
        self.present, self.capacity = False, 2**30
        self.memory = Memory()
        self.held: dict[int, int] = {}
        self.launched: list[PtxKernel] = []
        self._pinned: dict[int, np.ndarray] = {}
        self._modules: dict[int, tuple[str, PtxKernel]] = {}
        self._shared: dict[int, int] = {}  # bytes of dynamic shared memory that kernels ask for
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._captures: dict[int, int] = {}  # the graph that records a stream
        self._pending: list[Callable[[], None]] = []
        self._handles = itertools.count(CONTEXT + 1)
        self._thread = threading.local()
        self.callbacks: list[Any] = []  # the functions of C, which must not be freed
        self.lock = threading.RLock()

    @property
    def _contexts(self) -> list[int]:
        """The stack of contexts of the calling thread."""
        if not hasattr(self._thread, "contexts"):
            self._thread.contexts = []
        return self._thread.contexts

    def enqueue(self, action: Callable[[], None], stream: int | None = None) -> None:
        """Add an action to the pending ones, or to the graph that records the stream (by default, any stream)."""
        for captured, graph in self._captures.items():
            if stream in (None, captured):
                return self._graphs[graph].append(action)
        return self._pending.append(action)

    def wait(self) -> None:
        """Do all pending actions; an error discards those after it."""
        if self._captures:
            raise DriverError(CAPTURE_UNSUPPORTED)
        pending, self._pending = self._pending, []
        for action in pending:
            action()

    def need_context(self) -> None:
        """Fail in a thread without a context."""
        if not self._contexts:
            raise DriverError(INVALID_CONTEXT)

    # Devices and contexts.

    def cuInit(self, flags: c_uint) -> None:
        if not self.present:
            raise DriverError(NO_DEVICE)

    def cuDevicePrimaryCtxRetain(self, context: Handles, device: c_int) -> None:
        context[0] = CONTEXT

    def cuDevicePrimaryCtxGetState(self, device: c_int, flags: Numbers, active: Numbers) -> None:
        flags[0], active[0] = 0, 1

    def cuCtxGetCurrent(self, context: Handles) -> None:
        context[0] = self._contexts[-1] if self._contexts else 0

    def cuCtxPushCurrent(self, context: Handle) -> None:
        self._contexts.append(context)

    def cuCtxPopCurrent(self, context: Handles) -> None:
        context[0] = self._contexts.pop()

    def cuCtxSetCurrent(self, context: Handle) -> None:
        self._contexts[-1:] = [context] if context else []

    def cuCtxGetDevice(self, device: Numbers) -> None:
        self.need_context()
        device[0] = 0

    def cuCtxSynchronize(self) -> None:
        self.need_context()
        self.wait()

    # Memory.

    def cuMemGetInfo(self, free: Handles, total: Handles) -> None:
        free[0], total[0] = self.capacity - sum(self.held.values()), self.capacity

    def cuMemAlloc(self, pointer: Handles, size: c_size_t) -> None:
        if sum(self.held.values()) + size > self.capacity:
            raise DriverError(OUT_OF_MEMORY)
        pointer[0] = self.memory.take(size)
        self.held[pointer[0]] = size

    def cuMemFree(self, pointer: Handle) -> None:
        self.wait()
        self.memory.lend(pointer, 0, self.held.pop(pointer))

    def cuMemHostAlloc(self, pointer: Handles, size: c_size_t, flags: c_uint) -> None:
        memory = np.empty(size, np.uint8)
        pointer[0] = memory.ctypes.data
        self._pinned[memory.ctypes.data] = memory

    def cuMemFreeHost(self, pointer: Handle) -> None:
        self.wait()
        del self._pinned[pointer]

    def cuMemcpyHtoD(self, target: Handle, source: Handle, size: c_size_t) -> None:
        self.wait()
        self.memory.write(target, np.frombuffer(string_at(source, size), np.uint8))

    def cuMemcpyHtoDAsync(self, target: Handle, source: Handle, size: c_size_t, stream: Handle) -> None:
        if source not in self._pinned:  # a real driver would copy such memory at once
            raise DriverError(INVALID_VALUE)
        memory = self._pinned[source]
        self.enqueue(lambda: self.memory.write(target, memory[:size]), stream)

    def cuMemcpyDtoH(self, target: Handle, source: Handle, size: c_size_t) -> None:
        self.wait()
        data = self.memory.read(source, size)
        memmove(target, data.ctypes.data, size)

    def cuMemsetD8Async(self, target: Handle, byte: c_uint, size: c_size_t, stream: Handle) -> None:
        self.enqueue(lambda: self.memory.write(target, np.full(size, byte & 255, np.uint8)), stream)

    # Modules and launches.

    def cuLibraryLoadData(
        self,
        library: Handles,
        code: c_char_p,
        options: Handle,
        values: Handle,
        count: c_uint,
        library_options: Handle,
        library_values: Handle,
        library_count: c_uint,
    ) -> None:
        text = code.decode()
        library[0] = next(self._handles)
        kernel = PtxKernel(text)
        self._modules[library[0]] = text, kernel

    def cuLibraryGetKernel(self, kernel: Handles, library: Handle, name: c_char_p) -> None:
        if f".entry {name.decode()}(" not in self._modules[library][0]:
            raise DriverError(NOT_FOUND)
        kernel[0] = library  # a module has one kernel

    def cuKernelGetLibrary(self, library: Handles, kernel: Handle) -> None:
        library[0] = kernel

    def cuKernelGetAttribute(self, value: Numbers, attribute: c_int, kernel: Handle, device: c_int) -> None:
        value[0] = 1024 if attribute == 0 else 0  # the largest block; the others need machine code

    def cuKernelSetAttribute(self, attribute: c_int, value: c_int, kernel: Handle, device: c_int) -> None:
        if attribute == 8:  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._shared[kernel] = value

    def cuLaunchKernelEx(self, config: POINTER(LaunchConfig), kernel: Handle, words: Handles, extra: Handles) -> None:
        launch, ptx = config[0], self._modules[kernel][1]
        if launch.shared_bytes > self._shared.get(kernel, SHARED):
            raise DriverError(INVALID_VALUE)
        self.launched.append(ptx)
        values = [np.frombuffer(string_at(words[i], dtype.itemsize), dtype)[0] for i, dtype in enumerate(ptx.types)]
        grid, threads = (launch.grid_x, launch.grid_y, launch.grid_z), launch.block_x
        self.enqueue(lambda: ptx.run(self.memory, grid, threads, values), launch.stream)

    # Streams, events and graphs.

    def cuCtxGetStreamPriorityRange(self, least: Numbers, greatest: Numbers) -> None:
        least[0] = greatest[0] = 0

    def cuStreamCreateWithPriority(self, stream: Handles, flags: c_uint, priority: c_int) -> None:
        stream[0] = next(self._handles)

    def cuStreamGetCtx(self, stream: Handle, context: Handles) -> None:
        context[0] = CONTEXT

    def cuStreamSynchronize(self, stream: Handle) -> None:
        self.wait()

    def cuEventCreate(self, event: Handles, flags: c_uint) -> None:
        event[0] = next(self._handles)

    def cuEventQuery(self, event: Handle) -> None:
        if self._pending:
            raise DriverError(NOT_READY)

    def cuEventSynchronize(self, event: Handle) -> None:
        self.wait()

    def cuStreamBeginCapture(self, stream: Handle, mode: c_int) -> None:
        if not stream:
            raise DriverError(CAPTURE_UNSUPPORTED)  # the default stream cannot be recorded
        self._captures[stream] = next(self._handles)
        self._graphs[self._captures[stream]] = []

    def cuStreamIsCapturing(self, stream: Handle, status: Numbers) -> None:
        status[0] = stream in self._captures

    def cuStreamGetCaptureInfo(self, stream: Handle, status: Numbers, number: Handles, graph: Handles) -> None:
        status[0] = stream in self._captures
        if graph and status[0]:
            graph[0] = self._captures[stream]

    def cuStreamEndCapture(self, stream: Handle, graph: Handles) -> None:
        graph[0] = self._captures.pop(stream)

    def cuGraphInstantiateWithParams(self, execution: Handles, graph: Handle, parameters: POINTER(InstantiateParameters)) -> None:
        execution[0] = next(self._handles)
        self._graphs[execution[0]] = list(self._graphs[graph])
        parameters[0].result = 0

    def cuGraphLaunch(self, execution: Handle, stream: Handle) -> None:
        for action in self._graphs[execution]:
            self.enqueue(action, stream)


def callback(driver: FakeDriver, function: Callable[..., None]) -> Any:
    """Return a method of the driver as a function of C, which returns the number of an error."""

    @functools.wraps(function)
    def call(*arguments: Any) -> int:
        try:
            with driver.lock:
                if not function.__name__.startswith(("cuInit", "cuDevice", "cuCtx")):
                    driver.need_context()
                function(*arguments)
        except DriverError as error:
            return int(error.args[0])
        except Exception as error:
            traceback.print_exc()
            return ILLEGAL_ADDRESS if isinstance(error, PtxError) else UNKNOWN
        return 0

    types = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
    return CFUNCTYPE(c_int, *types)(call)


@functools.cache
def load_driver() -> FakeDriver:
    """Compile and load the fake driver, which is the same at each call.

    The libraries that load libcuda.so.1 later get this one, because it has the same name. It has no GPU until ``present`` is set.
    """
    driver = FakeDriver()
    with TemporaryDirectory() as folder:
        source, path = Path(__file__).with_name("libcuda.c"), Path(folder) / "libcuda.so.1"
        flags = ("-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1")
        subprocess.run(["cc", *flags, "-o", path, source], check=True)
        library = CDLL(str(path))
    for name, function in inspect.getmembers(driver, inspect.ismethod):
        if name.startswith("cu"):
            driver.callbacks.append(callback(driver, function))
            library.provide(name.encode(), cast(driver.callbacks[-1], c_void_p))
    return driver
