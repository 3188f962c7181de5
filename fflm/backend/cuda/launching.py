"""How the CUDA kernels are launched: numba.cuda compiles them, a cache on disk stores them, and cuda.core launches them.

numba.cuda itself takes some 60 microseconds to launch a kernel, because it determines the types of the arguments in each launch,
and a training step has thirty to forty launches. Here each array stores its type. Scalars are passed as ctypes objects, whose
types are known, too.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from cuda.core import LaunchConfig, Stream, launch
from numba import boolean, cuda, float32, int32, types, uint32
from numba.cuda.cudadrv.driver import binding, driver
from numba.cuda.dispatcher import _Kernel
from numba.np.numpy_support import from_dtype

from fflm.backend.cuda.memory import DeviceArray, use_gpu
from fflm.compiling import KernelCache

BLOCK = 256
"""Number of threads in a block of most kernels, a power of two."""

SCALARS = {ctypes.c_float: float32, ctypes.c_int32: int32, ctypes.c_uint32: uint32, ctypes.c_bool: boolean}

_compiled: dict[Any, Any] = {}
"""Loaded kernels; the key is the kernel in Python and the types of its arguments."""


def kernel(name: str | None = None, *, threads: int = BLOCK, shared_bytes: int = 0, **options: Any) -> Any:
    """Return a decorator that makes a function a CUDA kernel, which is compiled when it is first launched, and cached on disk.

    Parameters
    ----------
    name
        Name of the kernel in the cache, as for `KernelCache`, which profilers show after its Python name; by default that alone.
    threads
        Number of threads in a block.
    shared_bytes
        Number of bytes of shared memory of a block that the launch provides, which may be more than 48 KiB.
    options
        Options of `numba.cuda.jit`.
    """

    def decorate(function: Callable[..., None]) -> Any:
        if name:
            function.__qualname__ = f"{function.__name__}_{name}".replace(" ", "_")
        dispatcher = cuda.jit(**options)(function)
        dispatcher.threads, dispatcher.shared_bytes = threads, shared_bytes
        dispatcher._cache = KernelCache(function, name, _Kernel._reduce_states, _rebuild)
        return dispatcher

    return decorate


def _rebuild(target_context: Any, fields: dict[str, Any]) -> Any:
    """Return the kernel that was stored in the cache as ``fields``."""
    target_context.refresh()
    return _Kernel._rebuild(**fields)


def launch_kernel(kernel: Any, blocks: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
    """Launch a kernel, after compiling it if it has not been launched with arguments of these types yet.

    Parameters
    ----------
    kernel
        A function that is decorated with `kernel`.
    blocks
        Shape of the grid: the number of blocks in one, two or three dimensions.
    arguments
        The arguments of the kernel: `DeviceArray` or scalars of the types in `SCALARS`.
    """
    stream = use_gpu()
    key: list[Any] = [kernel]
    words: list[Any] = []
    for argument in arguments:
        if type(argument) is DeviceArray:
            key.append(argument.kind)
            words += argument.words
        else:
            key.append(type(argument))
            words.append(argument)
    found = _compiled.get(tuple(key))
    if found is None:
        found = _compiled[tuple(key)] = _load(kernel, arguments)
    launch(_stream(stream), _config(blocks, kernel.threads, kernel.shared_bytes), found, *words)


def _load(kernel: Any, arguments: tuple[Any, ...]) -> Any:
    """Return a kernel that is compiled for these arguments and loaded, as cuda.core launches it."""
    found = kernel.compile(signature(arguments)).library.get_cufunc().kernel
    if kernel.shared_bytes:
        attribute = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        device = cuda.get_current_device().id
        driver.cuKernelSetAttribute(attribute, kernel.shared_bytes, found.handle, device)
    return found


def signature(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the types of a kernel's arguments, as numba.cuda needs them to compile it."""
    return tuple(
        types.Array(from_dtype(argument.dtype), len(argument.shape), "C")
        if isinstance(argument, DeviceArray)
        else SCALARS[type(argument)]
        for argument in arguments
    )


@cache
def _stream(handle: int) -> Stream:
    """Return a stream, given its handle, as an object of cuda.core."""
    return Stream.from_handle(handle)


@cache
def _config(blocks: tuple[int, ...], threads: int, shared_bytes: int) -> LaunchConfig:
    """Return the launch configuration of a grid of blocks with a number of threads, and bytes of shared memory for each."""
    return LaunchConfig(grid=blocks, block=threads, shmem_size=shared_bytes)
