"""How kernels are launched: numba.cuda compiles them and keeps them on disk, cuda.core launches them.

numba.cuda's own way takes the host some 60 microseconds a launch, of which a step has thirty to forty: what the arguments are is
found out anew each time. Here that is known from the arrays. Scalars are those of ctypes, as the driver takes them.
"""

import ctypes
from functools import cache
from typing import Any

from cuda.core import LaunchConfig, Stream, launch
from numba import boolean, float32, int32, types, uint32
from numba.np.numpy_support import from_dtype

from fflm.backend.cuda.kernels import BLOCK
from fflm.backend.cuda.memory import STREAM, DeviceArray, use_gpu

SCALARS = {ctypes.c_float: float32, ctypes.c_int32: int32, ctypes.c_uint32: uint32, ctypes.c_bool: boolean}

_compiled: dict[Any, Any] = {}
"""Kernels as they were loaded, by themselves and the kinds of their arguments."""


def launch_kernel(kernel: Any, blocks: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
    """Launch a kernel with so many blocks of `BLOCK` threads, compiling it if it was never launched with such arguments."""
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
