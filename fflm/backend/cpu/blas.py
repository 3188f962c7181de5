"""Matrix products inside Numba kernels, by direct calls of SciPy's BLAS.

Numba's own ``np.dot`` can neither add to its result nor read a slice of columns. Therefore the two BLAS routines are called by
their addresses, which SciPy exports for Cython. Kernels divide their work among threads themselves, so BLAS must not start
threads of its own; `ONE_THREAD` prevents this.
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
from numba.extending import get_cython_function_address
from threadpoolctl import ThreadpoolController

_ROUTINES = {types.float32: "fflm_sgemm", types.float64: "fflm_dgemm"}


def _bind() -> None:
    """Make the BLAS routines known to LLVM.

    The module ``scipy.linalg.cython_blas`` is loaded alone, and put into ``sys.modules``, where Numba looks for it. The rest of
    scipy.linalg is not needed, and takes as long to import as Numba.
    """
    name = "scipy.linalg.cython_blas"
    spec = None if name in sys.modules else PathFinder.find_spec(name, [f"{path}/linalg" for path in scipy.__path__])
    if spec and spec.loader:
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    for symbol in _ROUTINES.values():
        llvmlite.binding.add_symbol(symbol, get_cython_function_address(name, symbol.removeprefix("fflm_")))


_bind()


def call_gemm(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
    """Emit ``c = op(a) @ op(b) + beta * c`` by BLAS, where op is the identity or the transpose.

    It is LLVM code, because Python code for it would take a quarter of a second to compile for every layout. The signature
    begins with the types of the three matrices. The arguments are:

    a, b, c
        Matrices: op(a) (M, K), op(b) (K, N) and c (M, N), all float32 or all float64. The elements of a row must be adjacent in
        memory, but rows may be slices of longer rows.
    transpose_a, transpose_b
        Whether op is the transpose for ``a``, and for ``b``.
    beta
        0 overwrites ``c``, even if it contains NaN; 1 adds to it.
    """
    kinds, (transpose_a, transpose_b, beta) = signature.args[:3], arguments[3:]
    a, b, c = (context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, arguments[:3], strict=True))

    def address(value):  # type: ignore[no-untyped-def]
        return builder.bitcast(value, cgutils.voidptr_t)

    def number(value):  # type: ignore[no-untyped-def]
        """Store a number and return its address, because BLAS takes all arguments by address."""
        return address(cgutils.alloca_once_value(builder, value))

    def size(value):  # type: ignore[no-untyped-def]
        return number(builder.trunc(value, ir.IntType(32)))

    def flag(transpose):  # type: ignore[no-untyped-def]
        return number(builder.select(transpose, ir.IntType(8)(ord("T")), ir.IntType(8)(ord("N"))))

    def step(array):  # type: ignore[no-untyped-def]
        """Return the leading dimension of a matrix: the distance between two rows, in elements.

        BLAS needs at least the length of a row, also where a matrix of one row has another stride.
        """
        elements = builder.sdiv(builder.extract_value(array.strides, 0), array.itemsize)
        length = cgutils.unpack_tuple(builder, array.shape)[1]
        least = builder.select(builder.icmp_signed(">", length, length.type(0)), length, length.type(1))
        return size(builder.select(builder.icmp_signed(">", elements, least), elements, least))

    # BLAS is column-major and therefore sees the transpose of every row-major matrix. So it computes c.T = op(b).T @ op(a).T.
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
    """Return threadpoolctl's controllers of SciPy's BLAS, or of every BLAS if the paths do not tell which one is SciPy's."""
    libraries = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    return [library for library in libraries if "scipy.libs" in library.filepath] or libraries


@dataclass(frozen=True)
class _Setting:
    """The number of threads of a BLAS library.

    Attributes
    ----------
    get, set
        Functions that read and set the number.
    per_thread
        Whether each thread has its own number, as with OpenMP; otherwise the number is one of the whole process.
    """

    get: Callable[[], int]
    set: Callable[[int], None]
    per_thread: bool


@cache
def _settings() -> list[_Setting]:
    """Return the settings of all libraries that the kernels might call."""
    settings = []
    for library in _libraries():
        per_thread = getattr(library, "threading_layer", None) == "openmp"
        get, set = library.get_num_threads, library.set_num_threads
        if library.internal_api == "openblas" and not per_thread:
            # threadpoolctl's functions work only in the thread that was the first to call them; OpenBLAS's own work in all.
            for prefix, suffix in itertools.product(("scipy_", ""), ("", "64_", "_64")):
                if hasattr(library.dynlib, f"{prefix}openblas_set_num_threads{suffix}"):
                    get = getattr(library.dynlib, f"{prefix}openblas_get_num_threads{suffix}")
                    set = getattr(library.dynlib, f"{prefix}openblas_set_num_threads{suffix}")
        settings.append(_Setting(get, set, per_thread))
    return settings


class _OneThread:
    """A context in which BLAS uses one thread, so that it does not compete with the threads of kernels. It must not be nested.

    The number of threads of BLAS is a setting of the whole process, unless BLAS uses OpenMP. Therefore the first thread that
    enters the context saves the number, and the last thread that leaves restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0  # number of threads inside
        self._before: list[tuple[_Setting, int]] = []  # what to restore for the process
        self._thread = threading.local()  # `before` is what to restore for the thread

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = _limit(per_thread=False)
            self._inside += 1
        self._thread.before = _limit(per_thread=True)

    def __exit__(self, *exception: object) -> None:
        _restore(self._thread.before)
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _restore(self._before)

    def reset(self) -> None:
        """Reset the context in a forked process, where the other threads that were inside do not exist."""
        self._lock = threading.Lock()
        if self._inside:
            _restore(self._before)
        self._inside = 0


def _limit(per_thread: bool) -> list[tuple[_Setting, int]]:
    """Set the settings of one kind to one thread; return those that were changed, with their previous numbers of threads."""
    before = []
    for setting in _settings():
        if setting.per_thread == per_thread and (threads := setting.get()) > 1:
            setting.set(1)
            before.append((setting, threads))
    return before


def _restore(before: list[tuple[_Setting, int]]) -> None:
    """Set settings to their previous numbers of threads, as `_limit` has returned them."""
    for setting, threads in before:
        setting.set(threads)


ONE_THREAD = _OneThread()
"""The context in which kernels that call BLAS are launched."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ONE_THREAD.reset)


def description() -> str:
    """Return a description of the BLAS that the kernels call: library, version, and the processor that it is optimized for."""
    info = _libraries()[0].info() if _libraries() else {}
    name = f"{info.get('internal_api', 'unknown BLAS')} {info.get('version') or ''}".strip()
    return f"{name} ({info.get('architecture', 'unknown')})"
