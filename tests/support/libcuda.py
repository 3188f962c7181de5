"""A fake CUDA driver, on which cuda.bindings, cuda.core and numba-cuda run without a GPU. It interprets the PTX of kernels.

Its library, `libcuda.c`, is loaded in place of the real one. The methods of `FakeDriver` are the functions of the driver's API
(CUDA 13) that have an effect: contexts of threads, memory, pinned memory, modules, launches, streams, events and graphs.

Launches and copies are delayed until the host waits for their stream, and are then done in the order of the requests. Work of
other streams is done before only if an event or the default stream demands it, so that a missing order shows: a real driver may
do it as late. A stream that is captured records its work in a graph. Calls that a capture forbids fail and invalidate it, with
the errors of the real driver. Reused memory holds NaN, and ends at the end of its array. Modules are PTX, not machine code.
"""

import contextlib
import functools
import gc
import inspect
import itertools
import subprocess
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
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
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ptx_interpreter import PtxError
from ptx_kernel import PtxKernel
from ptx_memory import Memory

INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, INVALID_CONTEXT, INVALID_HANDLE, ILLEGAL_STATE, NOT_FOUND = 1, 2, 100, 201, 400, 401, 500
NOT_READY, ILLEGAL_ADDRESS, NOT_SUPPORTED, UNKNOWN = 600, 700, 801, 999
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_ISOLATION, CAPTURE_IMPLICIT, WRONG_THREAD = 900, 901, 905, 906, 908
"""Errors, ``CUresult``."""

GLOBAL, THREAD_LOCAL = 0, 1
"""Modes of a capture, ``CUstreamCaptureMode``: in which threads it forbids calls that may wait. The third one forbids none."""

DEFAULT = 0
"""The handle of the default stream, which waits for all others, and for which all others wait, unless they are non-blocking."""

NON_BLOCKING = 1
"""``CU_STREAM_NON_BLOCKING``, a flag of streams."""

CONTEXT = 0x1000
"""The handle of the context of the first GPU; that of the second one follows."""

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


class DriverError(Exception):
    """An error that a function of the driver returns as a number."""


@dataclass
class Capture:
    """The recording of a stream: the graph, its mode, the thread that began it, and whether it is still valid."""

    graph: list[Callable[[], None]]
    mode: int
    thread: int
    valid: bool = True


@dataclass
class Stream:
    """A stream: its context, its pending actions in order, the number of those done, and its capture if it is recorded."""

    blocking: bool
    context: int = CONTEXT
    pending: deque[Callable[[], None]] = field(default_factory=deque)
    done: int = 0
    capture: Capture | None = None

    @property
    def requested(self) -> int:
        """The number of all actions so far."""
        return self.done + len(self.pending)


class FakeDriver:
    """The functions of a fake CUDA driver, and its two GPUs, which share their memory.

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
    used
        The numbers of the GPUs in whose contexts functions were called.
    """

    def __init__(self) -> None:
        self.present, self.capacity = False, 2**30
        self.memory = Memory()
        self.held: dict[int, int] = {}
        self.launched: list[PtxKernel] = []
        self.used: set[int] = set()
        self._pinned: dict[int, np.ndarray] = {}
        self._modules: dict[int, tuple[str, PtxKernel]] = {}
        self._shared: dict[int, int] = {}  # bytes of dynamic shared memory that kernels ask for
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._streams = {DEFAULT: Stream(blocking=True)}
        self._events: dict[int, tuple[Stream, int]] = {}  # the stream of each event, and the number of actions before it
        self._handles = itertools.count(CONTEXT + 2)
        self._thread = threading.local()
        self.callbacks: list[Any] = []  # the functions of C, which must not be freed
        self.lock = threading.RLock()

    @property
    def _contexts(self) -> list[int]:
        """The stack of contexts of the calling thread."""
        if not hasattr(self._thread, "contexts"):
            self._thread.contexts = []
        return self._thread.contexts

    def enqueue(self, action: Callable[[], None], stream: int = DEFAULT) -> None:
        """Add an action to the pending ones of a stream, or to the graph that records it."""
        queue = self._streams[stream or DEFAULT]
        if queue.capture:
            if not queue.capture.valid:
                raise DriverError(CAPTURE_INVALIDATED)
            queue.capture.graph.append(action)
            return
        if queue.blocking:  # the default stream waits for the other blocking streams, and these for the default stream
            default = self._streams[DEFAULT]
            others = [each for each in self._streams.values() if each.blocking] if queue is default else [default]
            self._fail_if(CAPTURE_IMPLICIT, [each.capture for each in others])
            marks = [(each, each.requested) for each in others if each is not queue]
            queue.pending.append(lambda: [self.finish(*mark) for mark in marks] and None)
        queue.pending.append(action)

    def finish(self, stream: Stream, number: int) -> None:
        """Do the pending actions of a stream until ``number`` of its actions are done; an error discards all that is pending."""
        while stream.done < number:
            action = stream.pending.popleft()
            stream.done += 1
            try:
                action()
            except BaseException:
                for each in self._streams.values():
                    each.done += len(each.pending)
                    each.pending.clear()
                raise

    def wait(self, *handles: int) -> None:
        """Do all pending actions of some streams, by default of all."""
        streams = [self._streams[handle or DEFAULT] for handle in handles] or list(self._streams.values())
        self._fail_if(CAPTURE_UNSUPPORTED, [each.capture for each in streams])
        for each in streams:
            self.finish(each, each.requested)

    def _wait_as_default(self) -> None:
        """Do what a synchronous call without a stream waits for: the default stream, and what that waits for."""
        self._refuse_in_capture()
        self.enqueue(lambda: None)
        self.wait(DEFAULT)

    def _wait_to_free(self) -> None:
        """Do all pending actions before memory is freed, which waits for the GPU."""
        self._refuse_in_capture()
        for stream in self._streams.values():
            self.finish(stream, stream.requested)

    def _fail_if(self, error: int, captures: list[Capture | None]) -> None:
        """Invalidate captures, and fail if there are any; None stands for no capture."""
        found = [capture for capture in captures if capture]
        for capture in found:
            capture.valid = False
        if found:
            raise DriverError(error)

    def _refuse_in_capture(self) -> None:
        """Fail in a call that may wait, if a capture forbids this thread such calls, and invalidate the capture."""
        captures = [each.capture for each in self._streams.values() if each.capture]
        here = threading.get_ident()
        forbid = [each for each in captures if each.mode == GLOBAL or (each.mode == THREAD_LOCAL and each.thread == here)]
        self._fail_if(CAPTURE_UNSUPPORTED, list(forbid))

    def need_context(self) -> None:
        """Fail in a thread without a context, and note the GPU of the context."""
        if not self._contexts:
            raise DriverError(INVALID_CONTEXT)
        self.used.add(self._contexts[-1] - CONTEXT)

    # Devices and contexts.

    def cuInit(self, flags: c_uint) -> None:
        if not self.present:
            raise DriverError(NO_DEVICE)

    def cuDevicePrimaryCtxRetain(self, context: Handles, device: c_int) -> None:
        context[0] = CONTEXT + device

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
        device[0] = self._contexts[-1] - CONTEXT

    def cuCtxSynchronize(self) -> None:
        self.need_context()
        self.wait()

    # Memory.

    def cuMemGetInfo(self, free: Handles, total: Handles) -> None:
        free[0], total[0] = self.capacity - sum(self.held.values()), self.capacity

    def cuMemAlloc(self, pointer: Handles, size: c_size_t) -> None:
        self._refuse_in_capture()
        if sum(self.held.values()) + size > self.capacity:
            raise DriverError(OUT_OF_MEMORY)
        pointer[0] = self.memory.take(size)
        self.held[pointer[0]] = size

    def cuMemFree(self, pointer: Handle) -> None:
        self._wait_to_free()
        self.memory.lend(pointer, 0, self.held.pop(pointer))

    def cuMemHostAlloc(self, pointer: Handles, size: c_size_t, flags: c_uint) -> None:
        self._refuse_in_capture()
        memory = np.empty(size, np.uint8)
        pointer[0] = memory.ctypes.data
        self._pinned[memory.ctypes.data] = memory

    def cuMemFreeHost(self, pointer: Handle) -> None:
        self._wait_to_free()
        del self._pinned[pointer]

    def cuMemcpyHtoD(self, target: Handle, source: Handle, size: c_size_t) -> None:
        self._wait_as_default()
        self.memory.write(target, np.frombuffer(string_at(source, size), np.uint8))

    def cuMemcpyHtoDAsync(self, target: Handle, source: Handle, size: c_size_t, stream: Handle) -> None:
        if source in self._pinned:
            memory = self._pinned[source]
            self.enqueue(lambda: self.memory.write(target, memory[:size]), stream)
            return
        self._fail_if(CAPTURE_UNSUPPORTED, [self._streams[stream].capture])
        content = np.frombuffer(string_at(source, size), np.uint8)  # the memory may be changed as soon as this call returns
        self.enqueue(lambda: self.memory.write(target, content), stream)

    def cuMemcpyDtoH(self, target: Handle, source: Handle, size: c_size_t) -> None:
        self._wait_as_default()
        data = self.memory.read(source, size)
        memmove(target, data.ctypes.data, size)

    def cuMemcpyDtoHAsync(self, target: Handle, source: Handle, size: c_size_t, stream: Handle) -> None:
        def copy() -> None:
            data = self.memory.read(source, size)
            memmove(target, data.ctypes.data, size)

        if target not in self._pinned:  # the call returns when the copy is done
            self.wait(stream)
            copy()
        else:
            self.enqueue(copy, stream)

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
        self._refuse_in_capture()
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
        if launch.stream and self._streams[launch.stream].context != self._contexts[-1]:
            raise DriverError(INVALID_HANDLE)
        if launch.shared_bytes > self._shared.get(kernel, SHARED):
            raise DriverError(INVALID_VALUE)
        self.launched.append(ptx)
        values = [np.frombuffer(string_at(words[i], dtype.itemsize), dtype)[0] for i, dtype in enumerate(ptx.types)]
        grid, threads = (launch.grid_x, launch.grid_y, launch.grid_z), launch.block_x
        shared_bytes = launch.shared_bytes
        self.enqueue(lambda: ptx.run(self.memory, grid, threads, values, shared_bytes), launch.stream)

    # Streams, events and graphs.

    def cuCtxGetStreamPriorityRange(self, least: Numbers, greatest: Numbers) -> None:
        least[0] = greatest[0] = 0

    def cuStreamCreateWithPriority(self, stream: Handles, flags: c_uint, priority: c_int) -> None:
        stream[0] = next(self._handles)
        self._streams[stream[0]] = Stream(blocking=flags != NON_BLOCKING, context=self._contexts[-1])

    def cuStreamCreate(self, stream: Handles, flags: c_uint) -> None:
        self.cuStreamCreateWithPriority(stream, flags, 0)

    def cuStreamGetCtx(self, stream: Handle, context: Handles) -> None:
        context[0] = self._streams[stream].context

    def cuStreamSynchronize(self, stream: Handle) -> None:
        self.wait(stream)

    def cuStreamWaitEvent(self, stream: Handle, event: Handle, flags: c_uint) -> None:
        mark = self._events[event]
        self._fail_if(CAPTURE_ISOLATION, [self._streams[stream].capture])  # the event is from outside of the capture
        self.enqueue(lambda: self.finish(*mark), stream)

    def cuEventCreate(self, event: Handles, flags: c_uint) -> None:
        event[0] = next(self._handles)
        self._events[event[0]] = self._streams[DEFAULT], 0

    def cuEventRecord(self, event: Handle, stream: Handle) -> None:
        queue = self._streams[stream]
        if queue.capture:  # a real driver would record the event; fflm needs none
            raise DriverError(NOT_SUPPORTED)
        self._events[event] = queue, queue.requested

    def cuEventQuery(self, event: Handle) -> None:
        stream, number = self._events[event]
        if stream.done < number:
            raise DriverError(NOT_READY)

    def cuEventSynchronize(self, event: Handle) -> None:
        self._refuse_in_capture()
        self.finish(*self._events[event])

    def cuStreamBeginCapture(self, stream: Handle, mode: c_int) -> None:
        if not stream:
            raise DriverError(CAPTURE_UNSUPPORTED)  # the default stream cannot be recorded
        if self._streams[stream].capture:
            raise DriverError(ILLEGAL_STATE)
        self._streams[stream].capture = Capture([], mode, threading.get_ident())

    def cuStreamIsCapturing(self, stream: Handle, status: Numbers) -> None:
        capture = self._streams[stream].capture
        status[0] = 0 if capture is None else 1 if capture.valid else 2

    def cuStreamEndCapture(self, stream: Handle, graph: Handles) -> None:
        queue, graph[0] = self._streams[stream], 0
        if not queue.capture:
            raise DriverError(ILLEGAL_STATE)
        if queue.capture.mode in (GLOBAL, THREAD_LOCAL) and queue.capture.thread != threading.get_ident():
            raise DriverError(WRONG_THREAD)
        capture, queue.capture = queue.capture, None
        if not capture.valid:
            raise DriverError(CAPTURE_INVALIDATED)
        graph[0] = next(self._handles)
        self._graphs[graph[0]] = capture.graph

    def cuGraphInstantiateWithFlags(self, execution: Handles, graph: Handle, flags: c_ulonglong) -> None:
        execution[0] = next(self._handles)
        self._graphs[execution[0]] = list(self._graphs[graph])

    def cuGraphLaunch(self, execution: Handle, stream: Handle) -> None:
        for action in self._graphs[execution]:
            self.enqueue(action, stream)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect no garbage within a block: its finalizers free memory, and would do all pending work before what is being done."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def callback(driver: FakeDriver, function: Callable[..., None]) -> Any:
    """Return a method of the driver as a function of C, which returns the number of an error."""

    @functools.wraps(function)
    def call(*arguments: Any) -> int:
        try:
            with driver.lock, no_garbage_collection():
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
