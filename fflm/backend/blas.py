"""Matrix products inside Numba kernels: SciPy's BLAS, called directly.

Numba's own ``np.dot`` can neither accumulate into its result nor read a slice of columns, so the two BLAS routines are bound by
their addresses (SciPy exports them for Cython). Kernels thread themselves and want a single-threaded BLAS: see `one_thread`.
"""

from functools import cache
from typing import Any

import llvmlite.binding
import numpy as np
from numba import njit, types
from numba.extending import get_cython_function_address, overload
from threadpoolctl import ThreadpoolController


def _routine(name: str, number: types.Type) -> types.ExternalFunction:
    text, integer, real = types.CPointer(types.int8), types.CPointer(types.int32), types.CPointer(number)
    return types.ExternalFunction(
        f"fflm_{name}",
        types.void(text, text, integer, integer, integer, real, real, integer, real, integer, real, real, integer),
    )


for _name in ("sgemm", "dgemm"):
    llvmlite.binding.add_symbol(f"fflm_{_name}", get_cython_function_address("scipy.linalg.cython_blas", _name))
_sgemm = _routine("sgemm", types.float32)
_dgemm = _routine("dgemm", types.float64)


def _call_gemm(*arguments: Any) -> None:
    """Call the BLAS routine of the arrays' dtype (resolved by Numba)."""
    raise NotImplementedError("only inside a kernel")


@overload(_call_gemm)
def _resolve_gemm(transb, transa, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc):  # type: ignore[no-untyped-def]
    if b.dtype is types.float64:
        return lambda transb, transa, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc: _dgemm(
            transb, transa, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc
        )
    return lambda transb, transa, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc: _sgemm(
        transb, transa, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc
    )


@njit(cache=True)
def gemm(a, b, c, transpose_a, transpose_b, beta):  # type: ignore[no-untyped-def]
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
    # BLAS is column-major: a row-major matrix is its own transpose there, so c.T = op(b).T @ op(a).T.
    rows, columns = c.shape
    inner = a.shape[0] if transpose_a else a.shape[1]
    if rows == 0 or columns == 0:
        return
    sizes = np.empty(6, np.int32)
    sizes[0] = columns
    sizes[1] = rows
    sizes[2] = inner
    sizes[3] = max(b.strides[0] // b.itemsize, 1)
    sizes[4] = max(a.strides[0] // a.itemsize, 1)
    sizes[5] = max(c.strides[0] // c.itemsize, 1)
    flags = np.empty(2, np.int8)
    flags[0] = ord("T") if transpose_b else ord("N")
    flags[1] = ord("T") if transpose_a else ord("N")
    factors = np.empty(2, c.dtype)
    factors[0] = 1
    factors[1] = beta
    _call_gemm(
        flags[0:].ctypes, flags[1:].ctypes, sizes[0:].ctypes, sizes[1:].ctypes, sizes[2:].ctypes, factors[0:].ctypes,
        b.ctypes, sizes[3:].ctypes, a.ctypes, sizes[4:].ctypes, factors[1:].ctypes, c.ctypes, sizes[5:].ctypes,
    )  # fmt: skip


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> Any:
    """Return a context manager that keeps every BLAS to one thread, so that it doesn't fight with the kernels' own threads."""
    return _controller().limit(limits=1, user_api="blas")


def description() -> str:
    """Return the BLAS that the kernels call, for reports: library, version, processor kernels."""
    for library in _controller().info():
        if library["user_api"] == "blas" and "scipy.libs" in library["filepath"]:
            return f"{library['internal_api']} {library['version']} ({library.get('architecture', 'unknown')})"
    return "unknown BLAS"
