"""How the CUDA kernels are launched: numba.cuda compiles them, they are kept on disk, and cuda.core launches them.

A launch by numba.cuda takes the host some 60 microseconds, because the types of the arguments are found out anew each time, and a
step has thirty to forty launches. Here the arrays know them. Scalars are those of ctypes, as the driver takes them.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from cuda.core import LaunchConfig, Stream, launch
from numba import boolean, cuda, float32, int32, types, uint32
from numba.cuda.dispatcher import _Kernel
from numba.np.numpy_support import from_dtype

from fflm.backend.cuda.memory import STREAM, DeviceArray, use_gpu
from fflm.compiling import KernelCache

BLOCK = 256
"""Threads of a block, a power of two."""

SCALARS = {ctypes.c_float: float32, ctypes.c_int32: int32, ctypes.c_uint32: uint32, ctypes.c_bool: boolean}

_compiled: dict[Any, Any] = {}
"""Loaded kernels, by the kernel and the kinds of its arguments."""


def kernel(name: str | None = None, **options: Any) -> Any:
    """Return a decorator for a kernel, which is compiled once for a machine and then kept on disk.

    Parameters
    ----------
    name
        The kernel's name in the cache, as `KernelCache` takes it.
    options
        As `cuda.jit` takes them.
    """

    def decorate(function: Callable[..., None]) -> Any:
        dispatcher = cuda.jit(**options)(function)
        dispatcher._cache = KernelCache(function, name, _Kernel._reduce_states, _rebuild)
        return dispatcher

    return decorate


def _rebuild(target_context: Any, fields: dict[str, Any]) -> Any:
    return _Kernel._rebuild(**fields)


def launch_kernel(kernel: Any, blocks: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
    """Launch a kernel with a grid of blocks of `BLOCK` threads; compile it if it was never launched with such arguments."""
    use_gpu()
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
        found = _compiled[tuple(key)] = kernel.compile(signature(arguments)).library.get_cufunc().kernel
    launch(_stream(), _config(blocks), found, *words)


def signature(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the types of arguments, for numba.cuda."""
    return tuple(
        types.Array(from_dtype(argument.dtype), len(argument.shape), "C")
        if isinstance(argument, DeviceArray)
        else SCALARS[type(argument)]
        for argument in arguments
    )


@cache
def _stream() -> Stream:
    return Stream.from_handle(STREAM)


@cache
def _config(blocks: tuple[int, ...]) -> LaunchConfig:
    return LaunchConfig(grid=blocks, block=BLOCK)
