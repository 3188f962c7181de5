"""Functions on one row of numbers, compiled into the kernels that call them: those of this backend and those of models."""

from llvmlite import ir
from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

from fflm.backend.formulas import RELU, TANH, activate

REORDER = {"reassoc", "contract", "nsz"}
"""Lets LLVM reorder a sum, without which it could not vectorize it. LLVM is not allowed more, because NaN and infinity must
survive to be noticed. Functions that compute `exp` do without this, because its argument reduction depends on the order."""


@intrinsic
def larger(context, a, b):  # type: ignore[no-untyped-def]
    """Return the larger of two floats of one type, any number if one is NaN.

    LLVM vectorizes the maximum of a row in this form only: Numba's comparisons lose the flag that says that NaN does not matter.
    """

    def call(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = arguments[0].type
        name = f"llvm.maxnum.{'f32' if isinstance(number, ir.FloatType) else 'f64'}"
        routine = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number, number]), name)
        return builder.call(routine, arguments, fastmath=("nnan", "nsz"))

    return a(a, a), call


@njit
def clear(row):
    """Set a row to 0; ``row[:] = 0`` would take Numba nearly a second to compile, wherever it stands."""
    for j in range(len(row)):
        row[j] = 0


@njit(fastmath=REORDER)
def inner_product(values, row):
    """Return the inner product of numbers (H,) and a row (H,), which may be one of integers, in the numbers' precision."""
    total = values.dtype.type(0)
    for j in range(len(values)):
        total += values[j] * values.dtype.type(row[j])
    return total


@njit
def activate_row(code, gamma, row):
    """Replace a row of pre-activations (O,) by ``ACTIVATIONS[code]``. LLVM vectorizes a loop only if it knows the code."""
    if code == RELU:
        for j in range(len(row)):
            row[j] = activate(RELU, gamma, row[j])
    elif code == TANH:
        for j in range(len(row)):
            row[j] = activate(TANH, gamma, row[j])
    else:
        for j in range(len(row)):
            row[j] = activate(code, gamma, row[j])
