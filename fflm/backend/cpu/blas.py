"""Matrix products inside Numba kernels: SciPy's BLAS, called directly.

Numba's own ``np.dot`` can neither accumulate into its result nor read a slice of columns, so the two BLAS routines are bound by
their addresses (SciPy exports them for Cython). Kernels thread themselves and want a single-threaded BLAS: see `ONE_THREAD`.
"""

import itertools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

import llvmlite.binding
import scipy
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic
from threadpoolctl import ThreadpoolController

_ROUTINES = {types.float32: "fflm_sgemm", types.float64: "fflm_dgemm"}


def _bind() -> None:
    """Make the routines of BLAS known to LLVM.

    SciPy's module is loaded alone, and registered where Numba looks for it: the rest of the package, which is not needed, takes
    as long to import as Numba.
    """
    name = "scipy.linalg.cython_blas"
    spec = None if name in sys.modules else PathFinder.find_spec(name, [f"{path}/linalg" for path in scipy.__path__])
    if spec and spec.loader:
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    for symbol in _ROUTINES.values():
        llvmlite.binding.add_symbol(symbol, get_cython_function_address(name, symbol.removeprefix("fflm_")))


_bind()


@intrinsic
def gemm(context, a, b, c, transpose_a, transpose_b, beta):  # type: ignore[no-untyped-def]
    """Compute ``c = op(a) @ op(b) + beta * c`` with op the identity or the transpose.

    Parameters
    ----------
    a, b, c
        Matrices (M, K), (K, N), (M, N) after op, all float32 or all float64; rows may be slices of longer rows, but the
        elements of a row must be adjacent in memory.
    transpose_a, transpose_b
        Whether ``a`` or ``b`` is stored transposed.
    beta
        0 overwrites ``c`` (whatever it holds, NaN included), 1 adds to it.
    """
    return types.void(a, b, c, types.boolean, types.boolean, c.dtype), _call_gemm


def _call_gemm(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
    """Emit the call as LLVM code; written in Python, it would take a quarter of a second to compile for every layout."""
    kinds, (transpose_a, transpose_b, beta) = signature.args[:3], arguments[3:]
    a, b, c = (context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, arguments[:3], strict=True))

    def address(value):  # type: ignore[no-untyped-def]
        return builder.bitcast(value, cgutils.voidptr_t)

    def number(value):  # type: ignore[no-untyped-def]
        """Return the address of a number, because BLAS takes all arguments by address."""
        return address(cgutils.alloca_once_value(builder, value))

    def size(value):  # type: ignore[no-untyped-def]
        return number(builder.trunc(value, ir.IntType(32)))

    def flag(transpose):  # type: ignore[no-untyped-def]
        return number(builder.select(transpose, ir.IntType(8)(ord("T")), ir.IntType(8)(ord("N"))))

    def step(array):  # type: ignore[no-untyped-def]
        """Return the distance between two rows in elements; at least the length of a row, even if there is at most one row."""
        elements = builder.sdiv(builder.extract_value(array.strides, 0), array.itemsize)
        length = cgutils.unpack_tuple(builder, array.shape)[1]
        least = builder.select(builder.icmp_signed(">", length, length.type(0)), length, length.type(1))
        return size(builder.select(builder.icmp_signed(">", elements, least), elements, least))

    # BLAS is column-major: a row-major matrix is its own transpose there, so c.T = op(b).T @ op(a).T.
    (rows, columns), (first, second) = (cgutils.unpack_tuple(builder, array.shape) for array in (c, a))
    inner = builder.select(transpose_a, first, second)
    values = [
        flag(transpose_b),
        flag(transpose_a),
        size(columns),
        size(rows),
        size(inner),
        number(beta.type(1)),
        address(b.data),
        step(b),
        address(a.data),
        step(a),
        number(beta),
        address(c.data),
        step(c),
    ]
    routine = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, routine, _ROUTINES[kinds[2].dtype]), values)
    return context.get_dummy_value()


@cache
def _libraries() -> list[Any]:
    """Return the controllers of SciPy's BLAS, or of every BLAS if the folders do not tell which one is SciPy's."""
    libraries = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    return [library for library in libraries if "scipy.libs" in library.filepath] or libraries


@dataclass(frozen=True)
class _Setting:
    """The number of threads of a library: functions that read and set it, and whether each thread has a number of its own."""

    get: Callable[[], int]
    set: Callable[[int], None]
    own: bool


@cache
def _settings() -> list[_Setting]:
    settings = []
    for library in _libraries():
        own = getattr(library, "threading_layer", None) == "openmp"
        get, set = library.get_num_threads, library.set_num_threads
        if library.internal_api == "openblas" and not own:
            # To threadpoolctl, the first thread to set the number controls it, and other threads are ignored.
            for prefix, suffix in itertools.product(("scipy_", ""), ("", "64_", "_64")):
                if hasattr(library.dynlib, f"{prefix}openblas_set_num_threads{suffix}"):
                    get = getattr(library.dynlib, f"{prefix}openblas_get_num_threads{suffix}")
                    set = getattr(library.dynlib, f"{prefix}openblas_set_num_threads{suffix}")
        settings.append(_Setting(get, set, own))
    return settings


class _OneThread:
    """A context in which BLAS uses one thread, so that it does not compete with the threads of kernels. It must not be nested.

    The number of threads of BLAS is a setting of the whole process, unless BLAS uses OpenMP. So the first thread that enters
    saves the number, and the last thread that leaves restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[_Setting, int]] = []
        self._own = threading.local()  # the settings that are separate for each thread

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = _limit(own=False)
            self._inside += 1
        self._own.before = _limit(own=True)

    def __exit__(self, *exception: object) -> None:
        _restore(self._own.before)
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _restore(self._before)

    def reset(self) -> None:
        """Reset the context in a forked process, in which the other threads that were inside do not exist."""
        self._lock = threading.Lock()
        if self._inside:
            _restore(self._before)
        self._inside = 0


def _limit(own: bool) -> list[tuple[_Setting, int]]:
    """Let libraries use one thread; return the settings that were changed, with their previous numbers."""
    before = []
    for setting in _settings():
        if setting.own == own and (threads := setting.get()) > 1:
            setting.set(1)
            before.append((setting, threads))
    return before


def _restore(before: list[tuple[_Setting, int]]) -> None:
    for setting, threads in before:
        setting.set(threads)


ONE_THREAD = _OneThread()
"""The context in which kernels call BLAS."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ONE_THREAD.reset)


def description() -> str:
    """Return the BLAS that the kernels call, for reports: library, version, processor kernels."""
    info = _libraries()[0].info() if _libraries() else {}
    name = f"{info.get('internal_api', 'unknown BLAS')} {info.get('version') or ''}".strip()
    return f"{name} ({info.get('architecture', 'unknown')})"
