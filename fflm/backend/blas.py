"""Matrix products inside Numba kernels: SciPy's BLAS, called directly.

Numba's own ``np.dot`` can neither accumulate into its result nor read a slice of columns, so the two BLAS routines are bound by
their addresses (SciPy exports them for Cython). Kernels thread themselves and want a single-threaded BLAS: see `one_thread`.
"""

import sys
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
    """Make BLAS's routines known to LLVM.

    SciPy's module is loaded by itself, and left where Numba looks for it, too: the rest of its package, which neither of them
    needs, takes as long to import as Numba.
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
    """Emit the call, in LLVM's terms: in Python, the same would take a quarter of a second to compile for every layout."""
    kinds, (transpose_a, transpose_b, beta) = signature.args[:3], arguments[3:]
    a, b, c = (context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, arguments[:3], strict=True))

    def address(value):  # type: ignore[no-untyped-def]
        return builder.bitcast(value, cgutils.voidptr_t)

    def number(value):  # type: ignore[no-untyped-def]
        """Return the address of a number, which BLAS wants of every argument."""
        return address(cgutils.alloca_once_value(builder, value))

    def size(value):  # type: ignore[no-untyped-def]
        return number(builder.trunc(value, ir.IntType(32)))

    def flag(transpose):  # type: ignore[no-untyped-def]
        return number(builder.select(transpose, ir.IntType(8)(ord("T")), ir.IntType(8)(ord("N"))))

    def step(array):  # type: ignore[no-untyped-def]
        """Return the distance of two rows in elements, at least a row's length even where there is one row or none."""
        elements = builder.sdiv(builder.extract_value(array.strides, 0), array.itemsize)
        length = cgutils.unpack_tuple(builder, array.shape)[1]
        least = builder.select(builder.icmp_signed(">", length, length.type(0)), length, length.type(1))
        return size(builder.select(builder.icmp_signed(">", elements, least), elements, least))

    # BLAS is column-major: a row-major matrix is its own transpose there, so c.T = op(b).T @ op(a).T.
    (rows, columns), (first, second) = (cgutils.unpack_tuple(builder, array.shape) for array in (c, a))
    inner = builder.select(transpose_a, first, second)
    values = [
        flag(transpose_b), flag(transpose_a), size(columns), size(rows), size(inner), number(beta.type(1)),
        address(b.data), step(b), address(a.data), step(a), number(beta), address(c.data), step(c),
    ]  # fmt: skip
    routine = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, routine, _ROUTINES[kinds[2].dtype]), values)
    return context.get_dummy_value()


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
